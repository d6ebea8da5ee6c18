"""The data set of an evaluation: a folder for each subject with its references, and prompts.

    dataset/prompts.txt             prompts, one on each line, with {} in place of the subject: "a {} in the jungle"
    dataset/dog2/00.jpg             references: images of the subject; images are generated from the first by name
    dataset/dog2/00_mask.png        optional: the mask of a reference, white on the subject, of any type
    dataset/dog2/prompts.txt        optional: prompts for this subject, in place of the shared ones
    dataset/dog2/class.txt          optional: the subject's class, such as "dog"; default: the folder's name without
                                    digits at the end

Names may be in any case. DreamBooth's data set has a `prompts_and_classes.txt`; classes and prompts that these files
lack are read from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DreamCacheError
from ..io.failures import reading
from ..io.images import read_image, read_mask, to_tensor
from ..io.names import check_type, find_file, in_words, picture_types, plain
from ..io.text import read_text, split_lines
from .metrics import MaskedImage

PLACEHOLDER = "{}"
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
    with reading(folder):
        if not folder.is_dir():
            raise DreamCacheError(f"{folder} is not a folder: choose the one that contains a folder for each subject.")
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise DreamCacheError(f"There are no subjects in {folder}: add a folder of images for each subject.")
        classes, prompts = _read_dreambooth(find_file(folder, "prompts_and_classes.txt"))
    return tuple(_open_subject(path, classes, prompts) for path in folders)


def load_masked_image(path: Path) -> MaskedImage:
    """Read an image, and the mask beside it if there is one: `00_mask.png` for `00.jpg`.

    Raises DreamCacheError if either is damaged, or if it is unclear which file is the mask.
    """
    image, mask = read_image(path.read_bytes, str(path)), _find_mask(path)
    if not mask:
        return MaskedImage(to_tensor(image))
    return MaskedImage(to_tensor(image), to_tensor(read_mask(mask.read_bytes, str(mask), image.size)))


def _find_mask(image: Path) -> Path | None:
    """The mask beside an image. Raises DreamCacheError if there are several, or if its type isn't read."""
    name = f"{image.stem}{_MASK}"
    with reading(image.parent):
        masks = [path for path in image.parent.iterdir() if _is_mask(path) and plain(path.stem) == plain(name)]
    # Two images whose names differ only in case each have their own.
    masks = [path for path in masks if path.stem == name] or masks
    if len(masks) > 1:
        raise DreamCacheError(
            f"{image} has several masks, {' and '.join(sorted(path.name for path in masks))}: remove all but one."
        )
    for mask in masks:
        check_type(mask, picture_types())
    return masks[0] if masks else None


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(_MASK) and not path.name.startswith(".")


def _open_subject(folder: Path, classes: Mapping[str, str], prompts: Mapping[bool, list[str]]) -> Subject:
    with reading(folder):
        references = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in picture_types() and not _is_mask(path) and not path.name.startswith(".")
        )
        class_file = find_file(folder, "class.txt")
        prompts_file = find_file(folder, "prompts.txt") or find_file(folder.parent, "prompts.txt")
    if not references:
        raise DreamCacheError(
            f"{folder} contains no images: add some ({in_words(picture_types())}), or remove the folder."
        )
    folder_name = re.sub(r"\d+$", "", folder.name).replace("_", " ").strip()
    class_name = read_text(class_file).strip() if class_file else classes.get(folder.name, folder_name)
    if not class_name:
        raise DreamCacheError(
            f"{folder} does not say what its subject is: write a word such as dog into its class.txt."
        )
    templates = _read_prompts(prompts_file) if prompts_file else prompts.get(class_name in _LIVE_CLASSES, [])
    if not templates:
        raise DreamCacheError(
            f"There are no prompts for {folder.name}: write some into {folder.parent / 'prompts.txt'}, one per line, "
            f"with {PLACEHOLDER} in place of the subject."
        )
    filled = tuple(template.replace(PLACEHOLDER, class_name) for template in templates)
    return Subject(folder.name, class_name, tuple(references), filled)


def _read_prompts(path: Path) -> list[str]:
    """Read prompts, one on each line. Raises DreamCacheError for a prompt without PLACEHOLDER."""
    prompts = split_lines(read_text(path))
    for prompt in prompts:
        if PLACEHOLDER not in prompt:
            raise DreamCacheError(f'{path} has a prompt without {PLACEHOLDER} in place of the subject: "{prompt}".')
    return prompts


def _read_dreambooth(path: Path | None) -> tuple[dict[str, str], dict[bool, list[str]]]:
    """Read DreamBooth's file: the class of each subject, and the prompts of objects (False) and of animals (True).

    The file has lines of `subject,class` and two Python lists of prompts. In a prompt, {0} is a rare word that stands
    for the subject in DreamBooth's training, which adapters don't need, and {1} is the class. Both results are empty
    without the file.
    """
    if not path:
        return {}, {}
    objects, _, animals = read_text(path).partition("Live Subject Prompts")
    classes = dict(re.findall(r"^(\w+),([^,\n]+?)\s*$", objects, re.MULTILINE))
    prompts = {
        live: [prompt.replace("{0} ", "").replace("{1}", PLACEHOLDER) for prompt in re.findall(r"'([^'\n]+)'", text)]
        for live, text in ((False, objects), (True, animals))
    }
    return classes, prompts
