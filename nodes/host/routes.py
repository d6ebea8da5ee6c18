"""What the front end asks the server for: files, described without being loaded, and trainings.

    GET /dreamcache/adapters                    all of them: name → AdapterDescription
    GET /dreamcache/adapters/<name>             one
    GET /dreamcache/references                  all saved references: name → ReferenceDescription
    GET /dreamcache/references/<name>           one
    GET /dreamcache/thumbnails/<number>/<name>  a small JPEG of a saved reference, the first of which is number 0
    POST /dreamcache/references/<name>          the body becomes a saved reference: {"name": what it is listed by}
    GET /dreamcache/checkpoints/<name>          {"base_model": its family, or null if its header doesn't tell}
    GET /dreamcache/curve?over_sampling&values  {"curve": the factors that DreamCache Strengths makes of these inputs,
                                                 "problem": why there are none}; one of them is null
    GET /dreamcache/trainings/<name>?first&last {"curve": LossCurve of these steps, "samples": steps with a picture}
    GET /dreamcache/samples/<step>/<name>       the picture of that step of a training, a PNG

Names are those that ComfyUI lists in the `dreamcache`, `dreamcache_references` and `checkpoints` folders, and those of
DreamCache Train Adapter. An error is {"error": a sentence}.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...dreamcache_core.adapter.file import describe_adapter
from ...dreamcache_core.adapter.strengths import CURVES, LIST, make_curve
from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.figures.loss_curve import read_loss_curve
from ...dreamcache_core.io.base_checkpoint import checkpoint_family
from ...dreamcache_core.io.catalogue import Catalogue
from ...dreamcache_core.reference.file import describe_references, read_thumbnails
from ...dreamcache_core.training.output_folder import TrainingFolder
from .folders import ADAPTERS, REFERENCES, is_inside, take_in, trainings_folder

PREFIX = "/dreamcache"


def register_routes() -> None:
    """Add the routes to the server, if there is one."""
    # Here, for it brings in the whole server, which those who only import the pack don't run.
    from server import PromptServer

    if hasattr(PromptServer, "instance"):
        add_routes(PromptServer.instance.routes)


def add_routes(routes: web.RouteTableDef) -> None:
    _describe_files(routes, "adapters", ADAPTERS, Catalogue(describe_adapter))
    _describe_files(routes, "references", REFERENCES, Catalogue(describe_references))

    # Files are read in threads: a disk may be slow, and the server answers others meanwhile.
    @routes.get(f"{PREFIX}/thumbnails/{{number:\\d+}}/{{name:.+}}")
    async def thumbnail(request: web.Request) -> web.Response:
        path = await asyncio.to_thread(_path, REFERENCES, request.match_info["name"])
        number, thumbnails = int(request.match_info["number"]), await asyncio.to_thread(_thumbnails, path)
        if number >= len(thumbnails):
            raise _not_found(f"{path.name} has no thumbnail {number}.")
        return web.Response(body=thumbnails[number], content_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    @routes.post(f"{PREFIX}/references/{{name:.+}}")
    async def save_reference(request: web.Request) -> web.Response:
        try:
            content = await request.read()
            saved = await asyncio.to_thread(_save_reference, request.match_info["name"], content)
        except web.HTTPRequestEntityTooLarge as error:
            raise _bad_request(
                "The file is larger than the server accepts: copy it into models/dreamcache_references instead."
            ) from error
        except DreamCacheError as error:
            raise _bad_request(str(error)) from error
        return web.json_response({"name": saved})

    @routes.get(f"{PREFIX}/checkpoints/{{name:.+}}")
    async def checkpoint(request: web.Request) -> web.Response:
        path = await asyncio.to_thread(_path, "checkpoints", request.match_info["name"])
        return web.json_response({"base_model": await asyncio.to_thread(checkpoint_family, path)})

    @routes.get(f"{PREFIX}/curve")
    async def curve(request: web.Request) -> web.Response:
        over_sampling = request.query.get("over_sampling", "")
        if over_sampling not in (*CURVES, LIST):
            raise _bad_request(f"There is no curve {over_sampling}.")
        try:
            factors = make_curve(over_sampling, request.query.get("values", ""))
        except DreamCacheError as error:
            return web.json_response({"curve": None, "problem": str(error)})
        return web.json_response({"curve": factors, "problem": None})

    @routes.get(f"{PREFIX}/trainings/{{name:.+}}")
    async def training(request: web.Request) -> web.Response:
        folder = _training(request.match_info["name"])
        try:
            steps = {name: int(request.query[name]) for name in ("first", "last") if name in request.query}
        except ValueError as error:
            raise _bad_request("first and last must be step numbers.") from error
        return web.json_response(await asyncio.to_thread(_describe_training, folder, steps))

    @routes.get(f"{PREFIX}/samples/{{step:\\d+}}/{{name:.+}}")
    async def sample(request: web.Request) -> web.StreamResponse:
        path = _training(request.match_info["name"]).sheet_path(int(request.match_info["step"]))
        if not path.is_file():
            raise _not_found(f"There are no samples of step {request.match_info['step']}.")
        return web.FileResponse(path)

    @routes.route("*", f"{PREFIX}/{{rest:.*}}")
    async def nothing(request: web.Request) -> web.Response:
        raise _not_found(f"There is nothing to {request.method} at {request.path}.")


def _describe_files(routes: web.RouteTableDef, what: str, folder: str, catalogue: Catalogue[Any]) -> None:
    """Add the routes that describe all files of a models folder, or one of them."""

    def describe_all() -> dict[str, Any]:
        names = folder_paths.get_filename_list(folder)
        files = {name: Path(path) for name in names if (path := folder_paths.get_full_path(folder, name))}
        return {name: description.to_json() for name, description in catalogue.describe_all(files).items()}

    @routes.get(f"{PREFIX}/{what}")
    async def all_files(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(describe_all))

    @routes.get(f"{PREFIX}/{what}/{{name:.+}}")
    async def one_file(request: web.Request) -> web.Response:
        path = await asyncio.to_thread(_path, folder, request.match_info["name"])
        return web.json_response((await asyncio.to_thread(catalogue.describe, path)).to_json())


def _path(folder: str, name: str) -> Path:
    """The file of a name that ComfyUI lists, so that no other can be named."""
    path = folder_paths.get_full_path(folder, name) if name in folder_paths.get_filename_list(folder) else None
    if path is None:
        raise _not_found(f"There is no file {name} in the {folder} folder.")
    return Path(path)


def _thumbnails(path: Path) -> tuple[bytes, ...]:
    try:
        return read_thumbnails(path)
    except DreamCacheError as error:
        raise _not_found(str(error)) from error


def _save_reference(name: str, content: bytes) -> str:
    def check(path: Path) -> None:
        problem = describe_references(path).problem
        if problem:
            raise DreamCacheError(problem)

    return take_in(REFERENCES, name, content, check)


def _training(name: str) -> TrainingFolder:
    """The training of a name, whether it has begun or not; no folder elsewhere can be named."""
    if not is_inside(trainings_folder(), name):
        raise _not_found(f"{name} is not a valid training name.")
    return TrainingFolder(trainings_folder() / name)


def _describe_training(folder: TrainingFolder, steps: Mapping[str, int]) -> dict[str, Any]:
    return {"curve": read_loss_curve(folder.losses(), **steps).to_json(), "samples": folder.sheet_steps()}


def _not_found(message: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(**_said(message))


def _bad_request(message: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(**_said(message))


def _said(message: str) -> dict[str, Any]:
    return {"text": json.dumps({"error": message}), "content_type": "application/json"}
