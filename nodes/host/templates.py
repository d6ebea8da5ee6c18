"""The templates: their order, their lasting names as addresses, and the photograph that they open with.

ComfyUI's template browser knows nothing of a pack's template but its file name. So the files are named as people read
and sort them, and `workflows/names.txt` has the lasting name of each, which links and the front end's commands use.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import folder_paths
from aiohttp import web

PACK = Path(__file__).parents[2]
FOLDER = PACK / "workflows"
PHOTOGRAPH = FOLDER / "input" / "dreamcache_coffee_cup.jpg"
LISTS = ("/workflow_templates", "/api/workflow_templates")
"""ComfyUI's addresses of the list of all packs' templates."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def template_files() -> dict[str, Path]:
    """The files of the templates, by their lasting names."""
    lines = (FOLDER / "names.txt").read_text(encoding="utf-8").splitlines()
    return {name: FOLDER / f"{title}.json" for name, title in (line.split(" = ") for line in lines)}


def add_template_routes(routes: web.RouteTableDef) -> None:
    """Serve each template and its thumbnail under its lasting name, too."""
    for name, file in template_files().items():
        for suffix in (".json", ".jpg"):
            routes.get(f"/workflow_templates/{PACK.name}/{name}{suffix}")(_serve(file.with_suffix(suffix)))


@web.middleware
async def sort_templates(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Sort this pack's templates in ComfyUI's list, which has them in any order, as the disk does."""
    response = await handler(request)
    if request.path in LISTS and isinstance(response, web.Response) and response.text:
        packs = json.loads(response.text)
        response.text = json.dumps({pack: sorted(packs[pack]) if pack == PACK.name else packs[pack] for pack in packs})
    return response


def _serve(file: Path) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file)

    return serve


def place_photograph() -> None:
    """Put the photograph into ComfyUI's input folder, the only place that Load Image reads, unless it is there."""
    placed = Path(folder_paths.get_input_directory(), PHOTOGRAPH.name)
    try:
        if not placed.exists():
            shutil.copyfile(PHOTOGRAPH, placed)
    except OSError as error:
        logging.warning("DreamCache: cannot copy %s to %s: %s.", PHOTOGRAPH.name, placed.parent, error.strerror)
