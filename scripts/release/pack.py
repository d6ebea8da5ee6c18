"""The archive that ComfyUI's registry would ship: what git tracks, without what .comfyignore names.

`python3 scripts/release/pack.py` writes it to output/node.zip.
"""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shipped_files() -> list[str]:
    """Names of the files, in the repository."""
    ignored = _tracked("--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted(_tracked() - ignored)


def pack(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in shipped_files():
            file.write(ROOT / name, name)


def _tracked(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return set(filter(None, listed.stdout.decode().split("\0")))


def main() -> None:
    archive = ROOT / "output" / "node.zip"
    pack(archive)
    print(f"{archive}: {len(shipped_files())} files, {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
