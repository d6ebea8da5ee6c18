"""The data set of an evaluation: a folder for each subject with its references, and prompts.

    dataset/prompts.txt             prompts, one on each line, with {} in place of the subject: "a {} in the jungle"
    dataset/dog2/00.jpg             references: images of the subject; images are generated from the first by name
    dataset/dog2/00_mask.png        optional: the mask of a reference, white on the subject
    dataset/dog2/prompts.txt        optional: prompts for this subject, in place of the shared ones
    dataset/dog2/class.txt          optional: the subject's class, such as "dog"; default: the folder's name without
                                    digits at the end

DreamBooth's data set has a `prompts_and_classes.txt`; classes and prompts that these files lack are read from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DreamCacheError
from ..io.images import read_image, read_mask, to_tensor
from .metrics import MaskedImage

PLACEHOLDER = "{}"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MASK = "_mask"
# DreamBooth's data set has two lists of prompts. The second is for these classes.
_LIVE_CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Subject:
    """A subject of the data set.

    `name`: its folder. `class_name`: what it is, in a few words. `references`: image files, at least one. `prompts`:
    at least one, with the class filled in.
    """

    name: str
    class_name: str
    references: tuple[Path, ...]
    prompts: tuple[str, ...]


def open_subjects(folder: Path) -> tuple[Subject, ...]:
    """Read the subjects of a data set, in the order of their names.

    Raises DreamCacheError if there is no subject, or if one lacks a reference, a class or a prompt.
    """
    if not folder.is_dir():
        raise DreamCacheError(f"{folder} is not a folder: choose the one that contains a folder for each subject.")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DreamCacheError(f"There are no subjects in {folder}: add a folder of images for each subject.")
    classes, prompts = _read_dreambooth(folder / "prompts_and_classes.txt")
    return tuple(_open_subject(path, classes, prompts) for path in folders)


def load_masked_image(path: Path) -> MaskedImage:
    """Read an image, and the mask beside it if there is one: `00_mask.png` for `00.jpg`.

    Raises DreamCacheError if either is damaged.
    """
    image, mask = read_image(path.read_bytes, str(path)), path.with_name(f"{path.stem}{_MASK}.png")
    if not mask.is_file():
        return MaskedImage(to_tensor(image))
    return MaskedImage(to_tensor(image), to_tensor(read_mask(mask.read_bytes, str(mask), image.size)))


def _open_subject(folder: Path, classes: Mapping[str, str], prompts: Mapping[bool, list[str]]) -> Subject:
    references = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.stem.endswith(_MASK) and not path.name.startswith(".")
    )
    if not references:
        raise DreamCacheError(f"{folder} contains no images: add some, or remove the folder.")
    class_file = folder / "class.txt"
    folder_name = re.sub(r"\d+$", "", folder.name).replace("_", " ").strip()
    class_name = _read(class_file).strip() if class_file.is_file() else classes.get(folder.name, folder_name)
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
    """Read prompts, one on each line. Raises DreamCacheError for a prompt without PLACEHOLDER."""
    prompts = [line.strip() for line in _read(path).splitlines() if line.strip()]
    for prompt in prompts:
        if PLACEHOLDER not in prompt:
            raise DreamCacheError(f'{path} has a prompt without {PLACEHOLDER} in place of the subject: "{prompt}".')
    return prompts


def _read_dreambooth(path: Path) -> tuple[dict[str, str], dict[bool, list[str]]]:
    """Read DreamBooth's file: the class of each subject, and the prompts of objects (False) and of animals (True).

    The file has lines of `subject,class` and two Python lists of prompts. In a prompt, {0} is a rare word that stands
    for the subject in DreamBooth's training, which adapters don't need, and {1} is the class. Both results are empty if
    the file is missing.
    """
    if not path.is_file():
        return {}, {}
    objects, _, animals = _read(path).partition("Live Subject Prompts")
    classes = dict(re.findall(r"^(\w+),([^,\n]+?)\s*$", objects, re.MULTILINE))
    prompts = {
        live: [prompt.replace("{0} ", "").replace("{1}", PLACEHOLDER) for prompt in re.findall(r"'([^'\n]+)'", text)]
        for live, text in ((False, objects), (True, animals))
    }
    return classes, prompts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DreamCacheError(f"{path} is not in UTF-8: save it as UTF-8 text.") from error
