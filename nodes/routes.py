"""What the front end asks the server for: adapters and checkpoints, described without being loaded.

    GET /dreamcache/adapters            all of them: name → AdapterDescription
    GET /dreamcache/adapters/<name>     one
    GET /dreamcache/checkpoints/<name>  {"base_model": its family, or null if its header doesn't tell}

Names are those that ComfyUI lists in the `dreamcache` and `checkpoints` folders. An error is {"error": a sentence}.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ..dreamcache_core import AdapterCatalogue, checkpoint_family
from .adapter_loader import FOLDER

PREFIX = "/dreamcache"


def register_routes() -> None:
    """Add the routes to the server, if there is one."""
    # Here, for it brings in the whole server, which those who only import the pack don't run.
    from server import PromptServer

    if hasattr(PromptServer, "instance"):
        add_routes(PromptServer.instance.routes)


def add_routes(routes: web.RouteTableDef) -> None:
    catalogue = AdapterCatalogue()

    # Files are read in threads: a disk may be slow, and the server answers others meanwhile.
    @routes.get(f"{PREFIX}/adapters")
    async def adapters(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(_describe_all, catalogue))

    @routes.get(f"{PREFIX}/adapters/{{name:.+}}")
    async def adapter(request: web.Request) -> web.Response:
        path = await asyncio.to_thread(_path, FOLDER, request.match_info["name"])
        return web.json_response((await asyncio.to_thread(catalogue.describe, path)).to_json())

    @routes.get(f"{PREFIX}/checkpoints/{{name:.+}}")
    async def checkpoint(request: web.Request) -> web.Response:
        path = await asyncio.to_thread(_path, "checkpoints", request.match_info["name"])
        return web.json_response({"base_model": await asyncio.to_thread(checkpoint_family, path)})

    @routes.route("*", f"{PREFIX}/{{rest:.*}}")
    async def nothing(request: web.Request) -> web.Response:
        raise _not_found(f"There is nothing to {request.method} at {request.path}.")


def _describe_all(catalogue: AdapterCatalogue) -> dict[str, Any]:
    names = folder_paths.get_filename_list(FOLDER)
    files = {name: Path(path) for name in names if (path := folder_paths.get_full_path(FOLDER, name))}
    return {name: description.to_json() for name, description in catalogue.describe_all(files).items()}


def _path(folder: str, name: str) -> Path:
    """The file of a name that ComfyUI lists, so that no other can be named."""
    path = folder_paths.get_full_path(folder, name) if name in folder_paths.get_filename_list(folder) else None
    if path is None:
        raise _not_found(f"There is no file {name} in the {folder} folder.")
    return Path(path)


def _not_found(message: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=json.dumps({"error": message}), content_type="application/json")
