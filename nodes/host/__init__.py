"""All that touches ComfyUI: its models, memory management, folders, server and command line."""
