"""Text on a node, which the front end shows until the graph is closed."""

from __future__ import annotations

import logging

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on a node that is running. The node needs `unique_id` among its hidden inputs."""
    # Imported here because it imports the whole server, which isn't there when only the pack is imported.
    from server import PromptServer

    if node.hidden.unique_id:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def show_text_now(text: str) -> None:
    """Log a warning, and show it on the node that is running, which may be another's."""
    logging.warning("DreamCache: %s", text)
    context = get_executing_context()
    if context:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, context.node_id)
