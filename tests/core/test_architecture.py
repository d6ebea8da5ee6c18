"""The structure of the product, read from its source: what each file may import, and how long it may be.

The checks take a folder, so they also run on another checkout. Nothing of the product is imported. See
docs/architecture.md for the drawing of what is checked here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 350

CORE_NEEDS = {"torch", "numpy", "safetensors", "PIL"}
OPTIONAL = {
    "dreamcache_core/datasets/coco_mask.py": {"pycocotools"},
    "dreamcache_core/datasets/subjects200k.py": {"pyarrow"},
    "dreamcache_core/training/processes.py": {"accelerate"},
    "dreamcache_core/training/log.py": {"torch.utils.tensorboard"},
}
"""Packages that one file imports when they are asked for."""
DOORWAY = "dreamcache_core/launch.py"
"""The one file of the core that may import ComfyUI."""

# From the bottom up: a rung imports only what is below it, and its members don't import each other.
CORE = (
    ("errors", "version"),
    ("unet", "generation"),
    ("io",),
    ("adapter", "reference"),
    ("training", "figures"),
    ("evaluation", "datasets"),
    ("launch",),
    ("train", "evaluate", "prepare"),
)
PATCHING = (
    ("options",),
    ("injection", "recording", "layout"),
    ("run_state",),
    ("blocks", "guidance", "caching_pass"),
    ("sampling",),
    ("apply", "attention_probe", "training"),
)


def test_the_core_imports_no_comfyui_and_nothing_that_need_not_be_installed() -> None:
    assert foreign_imports(ROOT) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(ROOT) == []


def test_each_package_of_the_core_imports_only_lower_ones() -> None:
    assert upward_imports(ROOT, "dreamcache_core", CORE) == []


def test_node_files_import_the_schema_and_the_host_and_neither_imports_them() -> None:
    assert upward_imports(ROOT, "nodes", (("host",), ("schema",), node_files(ROOT))) == []


def test_each_module_of_patching_imports_only_lower_ones() -> None:
    assert upward_imports(ROOT, "nodes.host.patching", PATCHING) == []


def test_no_file_of_the_product_is_too_long() -> None:
    assert long_files(ROOT) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import comfy.sd", "dreamcache_core/io/file.py imports comfy.sd"),
        ("def late():\n    from folder_paths import models_dir", "dreamcache_core/io/file.py imports folder_paths"),
        ("from ...nodes import schema", "dreamcache_core/io/file.py imports nodes.schema"),
        ("import accelerate", "dreamcache_core/io/file.py imports accelerate"),
        (
            "from torch.utils.tensorboard import SummaryWriter",
            "dreamcache_core/io/file.py imports torch.utils.tensorboard",
        ),
    ],
)
def test_a_forbidden_import_is_found(source: str, found: str, tmp_path: Path) -> None:
    write(tmp_path, {"nodes/schema.py": "", "dreamcache_core/io/file.py": source})
    assert foreign_imports(tmp_path) == [found]


def test_circles_and_upward_imports_are_found_wherever_the_import_stands(tmp_path: Path) -> None:
    late = "def late():\n    from ..unet import STAGES"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .io import images"
    write(tmp_path, {"dreamcache_core/io/images.py": late, "dreamcache_core/unet.py": typed})
    assert circles(tmp_path) == ["dreamcache_core.io.images → dreamcache_core.unet"]
    assert upward_imports(tmp_path, "dreamcache_core", CORE) == [
        "dreamcache_core.unet imports dreamcache_core.io.images"
    ]


# --- The checks ------------------------------------------------------------------------------------------------------


def foreign_imports(root: Path) -> list[str]:
    """Imports of the core that are neither its own nor in CORE_NEEDS, OPTIONAL or the standard library."""
    found = []
    for path in sorted((root / "dreamcache_core").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        allowed = CORE_NEEDS | sys.stdlib_module_names | {"dreamcache_core"}
        for name in _imported(root, path):
            optional = next((extra for extra in _all_optional() if _within(name, extra)), None)
            if file == DOORWAY or (optional and optional in OPTIONAL.get(file, ())):
                continue
            if optional or name.partition(".")[0] not in allowed:
                found.append(f"{file} imports {name}")
    return found


def circles(root: Path) -> list[str]:
    """Sets of modules of the core and the nodes that import each other, directly or by way of others of the set."""
    graph = imports(root)
    reached = {module: _reached(graph, module) for module in graph}
    sets = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(" → ".join(sorted(members)) for members in sets if members)


def upward_imports(root: Path, package: str, ladder: Sequence[Sequence[str]]) -> list[str]:
    """Imports inside a package of a member that isn't on a lower rung, and members that are on no rung."""
    rung = {member: number for number, members in enumerate(ladder) for member in members}
    found = []
    for module, names in imports(root).items():
        member = _member(module, package)
        if not member:
            continue
        if member not in rung:
            found.append(f"{module} is on no rung of {package}")
            continue
        for name in names:
            other = _member(name, package)
            if other and other != member and rung.get(other, len(ladder)) >= rung[member]:
                found.append(f"{module} imports {name}")
    return sorted(found)


def long_files(root: Path) -> list[str]:
    """Files of the product with more than MAX_LINES lines."""
    files = [root / "__init__.py", *(root / "web" / "js").rglob("*.js"), *_modules(root)]
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sorted(files)}
    return [f"{file.relative_to(root)}: {length}" for file, length in lengths.items() if length > MAX_LINES]


def imports(root: Path) -> Mapping[str, set[str]]:
    """The modules of the core and the nodes, and which of them each imports anywhere in its file."""
    modules = {_name(root, path): path for path in _modules(root)}
    return {module: {name for name in _imported(root, path) if name in modules} for module, path in modules.items()}


def node_files(root: Path) -> list[str]:
    """Names of the modules beside the schema that define one node each."""
    return [path.stem for path in (root / "nodes").glob("*.py") if path.stem not in ("__init__", "schema")]


# --- Reading imports -------------------------------------------------------------------------------------------------


def _modules(root: Path) -> list[Path]:
    return [path for package in ("dreamcache_core", "nodes") for path in sorted((root / package).rglob("*.py"))]


def _name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def _imported(root: Path, path: Path) -> tuple[str, ...]:
    """Modules that a file imports, absolute and relative, in functions and under TYPE_CHECKING too."""
    return tuple(dict.fromkeys(_names(root, path)))


def _names(root: Path, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` in a/b.py is of package a; `..` is one higher.
            package = path.relative_to(root).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base else alias.name
                is_module = (root / whole.replace(".", "/")).with_suffix(".py").is_file()
                is_package = (root / whole.replace(".", "/") / "__init__.py").is_file()
                yield whole if is_module or is_package or not base else base


def _member(module: str, package: str) -> str:
    """The part of a package that a module lies in; empty for the package itself and what is outside of it."""
    return module.removeprefix(f"{package}.").partition(".")[0] if module.startswith(f"{package}.") else ""


def _reached(graph: Mapping[str, set[str]], module: str) -> set[str]:
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        for name in graph[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _all_optional() -> set[str]:
    return set().union(*OPTIONAL.values())


def write(root: Path, files: Mapping[str, str]) -> None:
    """Write files, and make a package of each folder of theirs."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
