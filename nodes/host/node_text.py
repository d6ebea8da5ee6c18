"""Text on a node, which the front end shows until the graph is closed."""

from __future__ import annotations

from comfy_api.latest import io


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on a node that is running. The node needs `unique_id` among its hidden inputs."""
    # Imported here because it imports the whole server, which isn't there when only the pack is imported.
    from server import PromptServer

    if node.hidden.unique_id:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
