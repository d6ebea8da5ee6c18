"""A page of results, and what was measured for it, row by row: a command that was stopped goes on with the next row."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.environment import ROOT
from harness.markdown_table import markdown_table
from PIL import Image

from .artwork import DEMO

DOCS = ROOT / "web" / "docs"
NAME = "demo_model.md"
SCORES = DEMO / "scores.json"


def fingerprint(*paths: Path) -> str:
    """Files in words, with the first digits of their SHA-256."""
    return ", ".join(f"{path.stem} `{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`" for path in paths)


@dataclass(frozen=True)
class Page:
    """`folder`: of the page and its images. `weights`: the `fingerprint` of what is measured. `name`: of its file."""

    folder: Path
    weights: str
    name: str = NAME

    def measured(self, row: str, measure: Callable[[], Any]) -> Any:
        """What is known of a row with these weights. Unless it is, it is measured, kept and printed.

        `measure`: gives what JSON can hold.
        """
        known, key = _known(), f"{row}, with {self.weights}"
        if key not in known:
            measured = measure()
            # Read anew: another step may have measured something meanwhile.
            known = _known() | {key: measured}
            partial = SCORES.with_suffix(".partial")
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
            partial.replace(SCORES)
            print(f"measured: {row}", flush=True)
        return known[key]

    def write_table(self, place: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Put a table where the page has a place of this name."""
        self._write(place, "\n".join(markdown_table(heads, rows)))

    def write_image(self, place: str, image: Image.Image, file: str, caption: str) -> None:
        """Save an image, and show it where the page has a place of this name."""
        path = self.folder / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=80, optimize=True)
        self._write(place, f"![{caption}](images/{file})")

    def _write(self, place: str, content: str) -> None:
        path = self.folder / self.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(DOCS / self.name, path)
        text = path.read_text(encoding="utf-8")
        pattern = rf"(<!-- {place} -->\n).*?(<!-- end -->)"
        block = f"{content}\n\nWeights: {self.weights}.\n"
        text, count = re.subn(pattern, lambda match: f"{match[1]}\n{block}\n{match[2]}", text, flags=re.DOTALL)
        assert count == 1, f"{path} has no place for {place}"
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {place}", flush=True)


def _known() -> dict[str, Any]:
    return json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.exists() else {}
