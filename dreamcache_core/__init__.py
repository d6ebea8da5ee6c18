"""DreamCache in plain PyTorch: personalised image generation by feature caching (arXiv 2411.17786).

Nothing here imports ComfyUI, `launch.py` excepted; `nodes/host/` connects the two. The packages form a ladder, each
importing only those before it: `errors`, `version`, `unet`, `generation` → `io` → `reference`, `adapter` → `training`,
`figures` → `evaluation`.
"""
