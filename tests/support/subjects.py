"""A data set of subjects, as the evaluation reads them."""

from __future__ import annotations

from pathlib import Path

from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image


def write_subjects(folder: Path) -> Path:
    """Two subjects of two pictures each, of which one's first has a mask."""
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    for number, name in enumerate(("coffee_cup", "dog2")):
        (folder / name).mkdir(parents=True)
        for picture in (0, 1):
            left = 100 * (2 * number + picture)
            photograph.crop((left, 50, left + 200, 250)).save(folder / name / f"{picture:02}.jpg")
    mask = Image.new("L", (200, 200), 0)
    mask.paste(255, (50, 50, 150, 150))
    mask.save(folder / "dog2" / "00_mask.png")
    (folder / "prompts.txt").write_text("a {} in the jungle\n\na red {}\n", encoding="utf-8")
    return folder
