"""The doorway to ComfyUI, and the only file of the core that may touch it: imports the pack as ComfyUI does.

The pack is imported from its folder under the name `dreamcache`, whatever the folder is called. Its core is imported
under that name too, so that a process holds one copy of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parents[1]
NAME = "dreamcache"


def import_from_pack(module: str) -> ModuleType:
    """Import a module of the pack, such as `dreamcache_core.errors`; before `import_pack`, only one of the core."""
    _register(PACK, NAME)
    return importlib.import_module(f"{NAME}.{module}")


def import_pack(comfyui: Path, cpu: bool) -> ModuleType:
    """Import ComfyUI and the pack. Ends the process if `comfyui` is not its folder.

    `cpu`: whether ComfyUI leaves the GPU alone.
    """
    if not (comfyui / "comfy").is_dir():
        sys.exit(f"{comfyui} is not a ComfyUI folder: give the one that holds its main.py.")
    # First, since ComfyUI has a module `nodes` and this repository a folder of that name.
    sys.path.insert(0, str(comfyui.resolve()))
    from comfy.cli_args import args

    args.cpu = cpu
    return import_folder(PACK, NAME)


def import_folder(folder: Path, name: str) -> ModuleType:
    """Import a folder of custom_nodes as ComfyUI does, but under `name`."""
    module = _register(folder, name)
    assert module.__spec__ and module.__spec__.loader
    module.__spec__.loader.exec_module(module)
    return module


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the process with the sentence of a DreamCacheError, not with a traceback."""
    try:
        yield
    except import_from_pack("dreamcache_core.errors").DreamCacheError as error:
        sys.exit(str(error))


def _register(folder: Path, name: str) -> ModuleType:
    """Make a folder known as the package `name`, without running its `__init__.py`."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return sys.modules[name]
