"""Patching models through ComfyUI's own API: caching passes are recorded, and adapters attend to the reference.

Everything is put on a clone of the ModelPatcher, and ComfyUI takes it off the network after each run. From the bottom
up: `options` → `injection`, `recording`, `layout` → `run_state` → `blocks`, `guidance` → `sampling` → `apply`,
`attention_probe`, `training`.
"""
