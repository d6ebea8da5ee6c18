"""What a node says of itself while the graph is open."""

from __future__ import annotations

from comfy_api.latest import io


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on a node that is running and has its `unique_id` among its hidden inputs, as long as the graph is
    open.
    """
    # Here, for it brings in the whole server, which those who only import the pack don't run.
    from server import PromptServer

    if node.hidden.unique_id:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
