"""Triplets to train on: a target image, a reference of its subject, and the target's prompt."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ..errors import DreamCacheError
from ..io.failures import reading
from ..io.images import read_image, read_mask, to_tensor
from ..io.text import decode_text
from ..reference.image import how_bright, place_on_white, resize, subject_box, subject_on_white
from ..unet import PIXELS_PER_LATENT
from .augmentation import augment_reference
from .triplet_files import find_triplets
from .triplet_matching import TripletFiles

# How often training empties a prompt. It never leaves a reference out: without one, the network is the frozen base.
EMPTY_PROMPT_PROBABILITY = 0.07

_PROBLEMS_IN_DESCRIPTION = 10
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Triplet:
    """What an adapter learns from. `target`, `reference`: (height, width, 3), float32, 0…1.

    `name`: of its files. `augmented`: whether the reference differs in each epoch, as a cut-out of the target does.
    `subject`: (height, width), 1 on the subject of a reference of which only the subject is read; None: all of it is.
    """

    target: torch.Tensor
    reference: torch.Tensor
    prompt: str
    name: str
    augmented: bool
    subject: torch.Tensor | None = None


class Triplets:
    """The triplets of a folder. Augmentation depends on (seed, epoch, index) and nothing else, so that a training can
    be resumed, in any number of processes.

    `problems`: a sentence for each triplet that can't be used, as far as is known.
    """

    def __init__(self, folder: Path, files: Sequence[TripletFiles], problems: Sequence[str]) -> None:
        self.folder = folder
        self.names = tuple(each.name for each in files)
        self._files = tuple(files)
        self._problems = dict.fromkeys(problems)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems)

    @property
    def own_references(self) -> int:
        """How many triplets have a reference of their own, which isn't augmented."""
        return sum(files.reference is not None for files in self._files)

    @property
    def description(self) -> str:
        """How many triplets there are, and the problems of others, in a few lines."""
        count, problems = f"{len(self):,} triplets in {self.folder}", self.problems
        if not problems:
            return count
        more = ["…"] if len(problems) > _PROBLEMS_IN_DESCRIPTION else []
        return "\n".join([f"{count}; left out: {len(problems):,}", *problems[:_PROBLEMS_IN_DESCRIPTION], *more])

    def load(self, index: int, resolution: int, seed: int, epoch: int, subject_only: bool = False) -> Triplet:
        """A triplet as training sees it in an epoch, at `resolution` pixels square.

        `subject_only`: only the subject of its reference is read, unless that is a file of its own. If the triplet
        turns out to be damaged, the next one takes its place, the same in each run, and a warning is logged once.
        Raises DreamCacheError if all are damaged.
        """
        return self._load(index, resolution, f"{seed}/{epoch}/{index}", subject_only)

    def plain(self, index: int, resolution: int) -> Triplet:
        """A triplet without augmentation: with its prompt, and the subject as Encode Reference cuts it out."""
        return self._load(index, resolution, None)

    def _load(self, index: int, resolution: int, seed: str | None, subject_only: bool = False) -> Triplet:
        for step in range(len(self)):
            files = self._files[(index + step) % len(self)]
            try:
                return _make(files, resolution, Random(seed) if seed else None, subject_only)
            except DreamCacheError as error:
                if str(error) not in self._problems:
                    self._problems[str(error)] = None
                    _LOG.warning("DreamCache trains without a triplet: %s", error)
        raise DreamCacheError(f"No triplet of {self.folder} can be used: {next(iter(self._problems))}")

    def hold_out(self, count: int) -> tuple[Triplets, Triplets]:
        """The first `count` triplets by name, which aren't trained on, and the others. More data, with later names,
        leaves them what they are.

        Raises DreamCacheError if no triplet is left to train on.
        """
        if count >= len(self):
            raise DreamCacheError(
                f"{count} triplets can't be held out of the {len(self)} in {self.folder}: hold out fewer, or add some."
            )
        held_out, rest = self._files[:count], self._files[count:]
        return Triplets(self.folder, held_out, ()), Triplets(self.folder, rest, self.problems)

    def check(self, on_progress: Callable[[int], None] = lambda done: None) -> Triplets:
        """Read every file. Returns the triplets that can be used, with the problems of all others.

        `on_progress`: called with the number of triplets that are checked. Raises DreamCacheError if none can be used.
        """
        sound, problems = [], list(self.problems)
        for number, files in enumerate(self._files, start=1):
            try:
                _make(files, PIXELS_PER_LATENT, Random(0))
                sound.append(files)
            except DreamCacheError as error:
                problems.append(str(error))
            on_progress(number)
        return _some(self.folder, sound, problems)


def open_triplets(folder: Path) -> Triplets:
    """The triplets of a folder and its tars, laid out as triplet_files describes.

    Only checks that all files exist: `Triplets.load` and `Triplets.check` read them. Raises DreamCacheError if there is
    no triplet.
    """
    with reading(folder):
        is_folder = folder.is_dir()
    if not is_folder:
        raise DreamCacheError(f"{folder} is not a folder: choose the folder that contains the triplets.")
    return _some(folder, *find_triplets(folder))


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The order of `length` triplets in an epoch: each comes once."""
    order = list(range(length))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def _some(folder: Path, files: Sequence[TripletFiles], problems: Sequence[str]) -> Triplets:
    if files:
        return Triplets(folder, files, problems)
    if problems:
        raise DreamCacheError(
            f"None of the {len(problems)} samples in {folder} can be used; the first problem: {problems[0]}"
        )
    raise DreamCacheError(
        f"There are no triplets in {folder}: make some with DreamCache Save Triplet, or choose a folder with files "
        "named …_generation.png, …_caption.txt and …_mask.png."
    )


def _make(files: TripletFiles, resolution: int, random: Random | None, subject_only: bool = False) -> Triplet:
    """Read a triplet. `random`: for augmentation; None for none. `subject_only`: as in `Triplets.load`.

    Raises DreamCacheError with the triplet's name if a file is damaged or empty.
    """
    caption, picture = _read_caption(files), read_image(files.picture.read, f"{files.name}: its picture")
    prompt = "" if random and random.random() < EMPTY_PROMPT_PROBABILITY else caption
    square, subject = to_tensor(_centre(picture)), None
    if files.reference:
        reference = to_tensor(read_image(files.reference.read, f"{files.name}: its reference"))
        reference = place_on_white(reference, resolution, size=1)
    else:
        mask = to_tensor(_centre(_read_mask(files, picture.size)))
        box = subject_box(mask)
        if box is None:
            raise DreamCacheError(f"{files.name}: its mask is {how_bright(mask)} in the square at its centre.")
        if random and subject_only:
            # The same changes to a black subject.
            black = torch.zeros_like(square[box])
            subject = 1 - augment_reference(black, mask[box], resolution, copy.deepcopy(random))[..., 0]
        if random:
            reference = augment_reference(square[box], mask[box], resolution, random)
        else:
            (reference,) = subject_on_white(square.unsqueeze(0), mask.unsqueeze(0), resolution)
    target = resize(square.unsqueeze(0), resolution, resolution)[0]
    augmented = not files.reference and random is not None
    return Triplet(target, reference, prompt, files.name, augmented, subject)


def _read_caption(files: TripletFiles) -> str:
    caption = decode_text(files.caption.read, f"{files.name}: its caption").strip()
    if not caption:
        raise DreamCacheError(f"{files.name}: its caption is empty.")
    return caption


def _read_mask(files: TripletFiles, size: tuple[int, int]) -> Image.Image:
    assert files.mask  # Only a triplet with a reference may lack it.
    return read_mask(files.mask.read, f"{files.name}: its mask", size)


def _centre(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
