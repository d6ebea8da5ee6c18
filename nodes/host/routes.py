"""The routes of the front end: descriptions of files, from their headers, and the progress of trainings.

    GET /dreamcache/adapters                    name of each adapter → AdapterDescription
    GET /dreamcache/adapters/<name>             AdapterDescription
    GET /dreamcache/references                  name of each saved reference → ReferenceDescription
    GET /dreamcache/references/<name>           ReferenceDescription
    GET /dreamcache/thumbnails/<number>/<name>  JPEG: a thumbnail of a saved reference; numbers count from 0
    POST /dreamcache/references/<name>          saves the body as a reference: {"name": its name in the list}
    GET /dreamcache/checkpoints/<name>          {"base_model": the family, null if the header doesn't show it}
    GET /dreamcache/curve?over_sampling&values  {"curve": the curve that DreamCache Strengths makes of these inputs,
                                                 "problem": why there is none}; one of the two is null
    GET /dreamcache/trainings/<name>?first&last {"curve": LossCurve of these steps, "samples": steps with a sheet,
                                                 "validations": each Validation, with its gap}
    GET /dreamcache/samples/<step>/<name>       PNG: a training's sheet of samples after this step

The names of files are those that ComfyUI lists in the folders `dreamcache`, `dreamcache_references` and `checkpoints`;
the name of a training is the input `name` of DreamCache Train Adapter. An error is {"error": a sentence}.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...dreamcache_core.adapter.file import AdapterDescription, describe_adapter
from ...dreamcache_core.adapter.strengths import CURVES, LIST, make_curve
from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.figures.loss_curve import make_loss_curve
from ...dreamcache_core.io.base_checkpoint import checkpoint_family
from ...dreamcache_core.io.catalogue import Catalogue
from ...dreamcache_core.reference.file import ReferenceDescription, describe_references, read_thumbnails
from ...dreamcache_core.training.output_folder import TrainingFolder
from .adapters import SELF_ATTENTION
from .folders import ADAPTERS, REFERENCES, import_file, is_inside, trainings_folder
from .templates import Handler, add_template_routes, sort_templates

PREFIX = "/dreamcache"

_LOG = logging.getLogger(__name__)


def register_routes() -> None:
    """Add the routes to the running server, if there is one."""
    # Imported here because it imports the whole server, which isn't there when only the pack is imported.
    from server import PromptServer

    if hasattr(PromptServer, "instance"):
        add_routes(PromptServer.instance.routes)
        PromptServer.instance.app.middlewares.append(sort_templates)


def add_routes(server: web.RouteTableDef) -> None:
    """Add all routes to the server's."""
    routes = web.RouteTableDef()
    own_attention = {name: AdapterDescription(0, adapter.description) for name, adapter in SELF_ATTENTION.items()}
    adapters = Catalogue(describe_adapter, lambda path: AdapterDescription(0, problem=_undescribed(path)))
    references = Catalogue(describe_references, lambda path: ReferenceDescription(0, problem=_undescribed(path)))
    _describe_files(routes, "adapters", ADAPTERS, adapters, own_attention)
    _describe_files(routes, "references", REFERENCES, references)
    add_template_routes(routes)

    # Files are read in threads, so that a slow disk doesn't block other requests.
    @routes.get(f"{PREFIX}/thumbnails/{{number:[0-9]{{1,9}}}}/{{name:.+}}")
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
        asked = {name: request.query[name] for name in ("first", "last") if name in request.query}
        if not all(re.fullmatch("-?[0-9]{1,18}", step) for step in asked.values()):
            raise _bad_request("first and last must be step numbers.")
        steps = {name: int(step) for name, step in asked.items()}
        return web.json_response(await asyncio.to_thread(_describe_training, folder, steps))

    @routes.get(f"{PREFIX}/samples/{{step:[0-9]{{1,18}}}}/{{name:.+}}")
    async def sample(request: web.Request) -> web.Response:
        path = _training(request.match_info["name"]).sheet_path(int(request.match_info["step"]))
        if not path.is_file():
            raise _not_found(f"There are no samples of step {request.match_info['step']}.")
        sheet = await asyncio.to_thread(path.read_bytes)
        return web.Response(body=sheet, content_type="image/png", headers={"Cache-Control": "no-cache"})

    @routes.route("*", f"{PREFIX}/{{rest:.*}}")
    async def nothing(request: web.Request) -> web.Response:
        raise _not_found(f"There is nothing to {request.method} at {request.path}.")

    for route in routes:
        assert isinstance(route, web.RouteDef)
        server.route(route.method, route.path, **route.kwargs)(_with_json_errors(route.handler))


def _with_json_errors(handler: Handler) -> Handler:
    """The same handler, whose every error is a sentence as JSON."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except DreamCacheError as error:
            raise _bad_request(str(error)) from error
        except OSError as error:
            raise _not_found(f"{request.path} cannot be read: {error.strerror or error}.") from error
        except web.HTTPException:
            raise
        except Exception as error:
            _LOG.exception("%s could not be answered.", request.path)
            sentence = f"{request.path} could not be answered: see the server's log, and report this."
            raise web.HTTPInternalServerError(**_error(sentence)) from error

    return answer


def _describe_files(
    routes: web.RouteTableDef,
    what: str,
    folder: str,
    catalogue: Catalogue[Any],
    without_file: Mapping[str, Any] | None = None,
) -> None:
    """Add the routes that describe the files of a models folder. `what`: the route's last part. `folder`: its name.

    `without_file`: descriptions of what a list has beside files, by name.
    """
    constant = without_file or {}

    def describe_all() -> dict[str, Any]:
        names = folder_paths.get_filename_list(folder)
        files = {name: Path(path) for name in names if (path := folder_paths.get_full_path(folder, name))}
        described = {**constant, **catalogue.describe_all(files)}
        return {name: description.to_json() for name, description in described.items()}

    @routes.get(f"{PREFIX}/{what}")
    async def all_files(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(describe_all))

    @routes.get(f"{PREFIX}/{what}/{{name:.+}}")
    async def one_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name in constant:
            return web.json_response(constant[name].to_json())
        path = await asyncio.to_thread(_path, folder, name)
        return web.json_response((await asyncio.to_thread(catalogue.describe, path)).to_json())


def _path(folder: str, name: str) -> Path:
    """The path of a file by the name that ComfyUI lists; no other file can be reached. Raises HTTPNotFound."""
    path = folder_paths.get_full_path(folder, name) if name in folder_paths.get_filename_list(folder) else None
    if path is None:
        raise _not_found(f"There is no file {name} in the {folder} folder.")
    return Path(path)


def _undescribed(path: Path) -> str:
    return f"{path.name} could not be described: see the server's log, and report this."


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

    return import_file(REFERENCES, name, content, check)


def _training(name: str) -> TrainingFolder:
    """The folder of a training, which need not exist; no folder elsewhere can be reached. Raises HTTPNotFound."""
    if not is_inside(trainings_folder(), name):
        raise _not_found(f"{name} is not a valid training name.")
    return TrainingFolder(trainings_folder() / name)


def _describe_training(folder: TrainingFolder, steps: Mapping[str, int]) -> dict[str, Any]:
    return {
        "curve": make_loss_curve(folder.losses(), **steps).to_json(),
        "samples": folder.sheet_steps(),
        "validations": [{**validation.to_json(), "gap": validation.gap} for validation in folder.validations()],
    }


def _not_found(message: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(**_error(message))


def _bad_request(message: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(**_error(message))


def _error(message: str) -> dict[str, Any]:
    """The arguments of a response that carries an error message as JSON."""
    return {"text": json.dumps({"error": message}), "content_type": "application/json"}
