"""Subjects to evaluate with, as they lie on disk: a folder of pictures for each, and prompts.

    dataset/prompts.txt             prompts, one a line, with {} where the subject goes: "a {} in the jungle"
    dataset/dog2/00.jpg             references: pictures of the subject, of which the first, by name, is drawn from
    dataset/dog2/00_mask.png        white on the subject, if there is such a picture
    dataset/dog2/prompts.txt        prompts for this subject alone, if there are any
    dataset/dog2/class.txt          what it is: "dog"; else its folder's name, without digits at the end

`prompts_and_classes.txt`, which DreamBooth's dataset has, is read for what these files don't tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DreamCacheError
from ..io.images import read_mask, read_picture, to_tensor
from .metrics import Picture

PLACEHOLDER = "{}"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_MASK = "_mask"
# DreamBooth's dataset has two lists of prompts, and this is whom the second is for.
_LIVE_CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Subject:
    """`class_name`: what it is, in a word or a few. `references`: at least one. `prompts`: with the class in them."""

    name: str
    class_name: str
    references: tuple[Path, ...]
    prompts: tuple[str, ...]


def open_subjects(folder: Path) -> tuple[Subject, ...]:
    """The subjects of a folder, in the order of their names.

    Raises DreamCacheError if there are none, or if one has no reference or no prompt.
    """
    if not folder.is_dir():
        raise DreamCacheError(f"{folder} is not a folder: choose the one that contains a folder for each subject.")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DreamCacheError(f"There are no subjects in {folder}: add a folder of images for each subject.")
    classes, prompts = _read_dreambooth(folder / "prompts_and_classes.txt")
    return tuple(_open_subject(path, classes, prompts) for path in folders)


def load_picture(path: Path) -> Picture:
    """A picture, with its mask if there is one beside it. Raises DreamCacheError if either is damaged."""
    image, mask = read_picture(path.read_bytes, str(path)), path.with_name(f"{path.stem}{_MASK}.png")
    if not mask.is_file():
        return Picture(to_tensor(image))
    return Picture(to_tensor(image), to_tensor(read_mask(mask.read_bytes, str(mask), image.size)))


def _open_subject(folder: Path, classes: Mapping[str, str], prompts: Mapping[bool, list[str]]) -> Subject:
    references = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _PICTURES and not path.stem.endswith(_MASK) and not path.name.startswith(".")
    )
    if not references:
        raise DreamCacheError(f"{folder} contains no images: add some, or remove the folder.")
    class_file = folder / "class.txt"
    named = re.sub(r"\d+$", "", folder.name).replace("_", " ").strip()
    class_name = _read(class_file).strip() if class_file.is_file() else classes.get(folder.name, named)
    if not class_name:
        raise DreamCacheError(
            f"{folder} does not say what its subject is: write a word such as dog into its class.txt."
        )
    templates = next(
        (_read_prompts(path) for path in (folder / "prompts.txt", folder.parent / "prompts.txt") if path.is_file()),
        prompts.get(class_name in _LIVE_CLASSES, []),
    )
    if not templates:
        raise DreamCacheError(
            f"There are no prompts for {folder.name}: write some into {folder.parent / 'prompts.txt'}, one per line, "
            f"with {PLACEHOLDER} in place of the subject."
        )
    filled = tuple(template.replace(PLACEHOLDER, class_name) for template in templates)
    return Subject(folder.name, class_name, tuple(references), filled)


def _read_prompts(path: Path) -> list[str]:
    prompts = [line.strip() for line in _read(path).splitlines() if line.strip()]
    for prompt in prompts:
        if PLACEHOLDER not in prompt:
            raise DreamCacheError(f'{path} has a prompt without {PLACEHOLDER} in place of the subject: "{prompt}".')
    return prompts


def _read_dreambooth(path: Path) -> tuple[dict[str, str], dict[bool, list[str]]]:
    """Classes of subjects, and prompts, of those that live and of those that don't; both empty without such a file.

    The file holds lines of `subject,class`, and two lists of prompts, as Python has them, in which {0} is a word that
    stands for the subject, which adapters need none of, and {1} its class.
    """
    if not path.is_file():
        return {}, {}
    things, _, live = _read(path).partition("Live Subject Prompts")
    classes = dict(re.findall(r"^(\w+),([^,\n]+?)\s*$", things, re.MULTILINE))
    prompts = {
        lives: [prompt.replace("{0} ", "").replace("{1}", PLACEHOLDER) for prompt in re.findall(r"'([^'\n]+)'", text)]
        for lives, text in ((False, things), (True, live))
    }
    return classes, prompts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DreamCacheError(f"{path} is not in UTF-8: save it as UTF-8 text.") from error
