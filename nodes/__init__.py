"""The nodes, one file each; `schema.py` has what their schemas share, `host/` what touches ComfyUI."""
