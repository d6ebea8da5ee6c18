"""The subjects of the demo world: openly licensed emoji, drawn by three vendors, as pictures with alpha."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from harness.environment import DEV
from PIL import Image

DEMO = DEV / "demo"
ARTWORK = DEMO / "artwork"
SIZE = 96  # the side of each picture, in pixels

# Packages of the npm registry, and the licence of the artwork in each.
PACKAGES = {
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "MIT, Microsoft Fluent Emoji"),
    "noto": ("emoji-datasource-google@16.0.0", "Apache-2.0, Google Noto Emoji"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "CC-BY-4.0, Twemoji by Twitter and contributors"),
}
VENDORS = tuple(PACKAGES)

# Things that stand somewhere: no flags, symbols, people, places, weather or clock faces.
_CATEGORIES = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
_PICTURE = re.compile(r"/(assets|img/\w+/64)/[\w-]+\.(webp|png)$")
_OTHER_SUBCATEGORIES = ("time", "sky & weather", "hotel", "arts & crafts", "event")

HELD_OUT_CLASSES = 60
HELD_OUT_DRAWINGS = 60


@dataclass(frozen=True)
class Subject:
    """One vendor's drawing of one class of things. `held_out`: "" if it is trained on, else `class` if no drawing of
    its class is, or `drawing` if those of other vendors are.
    """

    vendor: str
    code: str
    name: str
    held_out: str = ""

    @property
    def key(self) -> str:
        return f"{self.vendor}/{self.code}"

    @property
    def path(self) -> Path:
        return ARTWORK / self.vendor / f"{self.code}.png"

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - subjects live as long as the program
    def picture(self) -> Image.Image:
        """RGBA, cut to what is drawn, its longer side SIZE."""
        return Image.open(self.path).convert("RGBA")


def subjects() -> list[Subject]:
    """All that were fetched, always in the same order."""
    return [Subject(**entry) for entry in json.loads((ARTWORK / "subjects.json").read_text(encoding="utf-8"))]


def trained_subjects() -> list[Subject]:
    """Those that aren't held out."""
    return [subject for subject in subjects() if not subject.held_out]


def fetch() -> None:
    """Fetch the artwork with npm, and write each drawing, and which of them are held out."""
    archives = {vendor: _download(package) for vendor, (package, _) in PACKAGES.items()}
    classes = list(_classes(archives["noto"]))
    drawings = {vendor: _drawings(archive, classes) for vendor, archive in archives.items()}
    complete = [entry for entry in classes if all(entry["code"] in drawings[vendor] for vendor in VENDORS)]
    random = np.random.default_rng(0)
    order = random.permutation(len(complete))
    held_out_classes = set(order[:HELD_OUT_CLASSES])
    held_out_drawings = {
        (place, random.choice(VENDORS)) for place in order[HELD_OUT_CLASSES : HELD_OUT_CLASSES + HELD_OUT_DRAWINGS]
    }
    found = []
    for place, entry in enumerate(complete):
        for vendor in VENDORS:
            held_out = "class" if place in held_out_classes else ""
            held_out = "drawing" if (place, vendor) in held_out_drawings else held_out
            subject = Subject(vendor, entry["code"], entry["name"], held_out)
            subject.path.parent.mkdir(parents=True, exist_ok=True)
            _trimmed(drawings[vendor][subject.code]).save(subject.path)
            found.append(asdict(subject))
    (ARTWORK / "subjects.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"{len(found)} drawings of {len(complete)} classes are in {ARTWORK}.")


def copy_some_held_out(folder: Path, count: int = 24) -> None:
    """Put some of the held-out subjects into a folder that `subjects` can read in place of ARTWORK, for tests."""
    held_out = [subject for subject in subjects() if subject.held_out]
    chosen = held_out[:: len(held_out) // count][:count]
    for subject in chosen:
        path = folder / subject.path.relative_to(ARTWORK)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(subject.path, path)
    described = json.dumps([asdict(subject) for subject in chosen], indent=1)
    (folder / "subjects.json").write_text(described + "\n", encoding="utf-8")


def _download(package: str) -> Path:
    ARTWORK.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=ARTWORK, check=True, capture_output=True, text=True
    )
    return ARTWORK / packed.stdout.strip().splitlines()[-1]


def _classes(archive: Path) -> Iterator[dict]:
    with tarfile.open(archive) as tar:
        table = tar.extractfile("package/emoji.json")
        assert table
        entries = json.load(table)
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        group, subgroup = entry["category"], entry["subcategory"]
        if group in _CATEGORIES and not subgroup.startswith("place-") and subgroup not in _OTHER_SUBCATEGORIES:
            code = entry["unified"].lower()
            yield {"code": code, "name": entry["name"].lower()}


def _drawings(archive: Path, classes: list[dict]) -> dict[str, Image.Image]:
    """The pictures of the archive that lie in files of their own, by code."""
    with tarfile.open(archive) as tar:
        members = {Path(member.name).stem: member for member in tar if _PICTURE.search(member.name)}
        found = {}
        for code in (entry["code"] for entry in classes):
            member = members.get(code) or members.get(code.replace("-fe0f", ""))
            file = tar.extractfile(member) if member else None
            if file:
                found[code] = Image.open(io.BytesIO(file.read())).convert("RGBA")
    return found


def _trimmed(picture: Image.Image) -> Image.Image:
    """Cut to what is drawn, and brought to SIZE along its longer side."""
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    scale = SIZE / max(picture.size)
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
