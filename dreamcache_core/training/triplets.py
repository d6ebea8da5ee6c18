"""Triplets to train on: a target picture, a reference of its subject, and the target's prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ..errors import DreamCacheError
from ..io.images import read_mask, read_picture, to_tensor
from ..reference.image import place_on_white, resize, subject_box, subject_on_white
from ..unet import PIXELS_PER_LATENT
from .augmentation import make_reference
from .triplet_files import SampleFiles, find_samples

# How often a prompt is left empty. A reference never is: without one, the network is the frozen base model.
EMPTY_PROMPT_PROBABILITY = 0.07

_PROBLEMS_IN_DESCRIPTION = 10
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Triplet:
    """`target` and `reference`: (3, height, width), float32, 0…1. `name`: of the sample. `augmented`: whether the
    reference is another one in each epoch, as those are that are made of the target.
    """

    target: torch.Tensor
    reference: torch.Tensor
    prompt: str
    name: str
    augmented: bool


class Triplets:
    """The samples of a folder. What is made of them is drawn from (seed, epoch, index) and nothing else, so that a
    training run can go on where it stopped, in any number of processes.

    `problems`: a sentence for each sample that can't be used, as far as is known.
    """

    def __init__(self, folder: Path, samples: Sequence[SampleFiles], problems: Sequence[str]) -> None:
        self.folder = folder
        self.names = tuple(sample.name for sample in samples)
        self._samples = tuple(samples)
        self._problems = dict.fromkeys(problems)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems)

    @property
    def description(self) -> str:
        """How many samples there are, and what is wrong with others, in a few lines."""
        count, problems = f"{len(self):,} triplets in {self.folder}", self.problems
        if not problems:
            return count
        more = ["…"] if len(problems) > _PROBLEMS_IN_DESCRIPTION else []
        return "\n".join([f"{count}; left out: {len(problems):,}", *problems[:_PROBLEMS_IN_DESCRIPTION], *more])

    def load(self, index: int, resolution: int, seed: int, epoch: int) -> Triplet:
        """One triplet, at `resolution` pixels square.

        For a sample that turns out to be damaged the next one steps in, which is the same at each run; the log tells of
        it once. Raises DreamCacheError if all are damaged.
        """
        return self._load(index, resolution, f"{seed}/{epoch}/{index}")

    def plain(self, index: int, resolution: int) -> Triplet:
        """The same with nothing drawn at random: the whole prompt, and the subject as Encode Reference cuts it out."""
        return self._load(index, resolution, None)

    def _load(self, index: int, resolution: int, seed: str | None) -> Triplet:
        for step in range(len(self)):
            sample = self._samples[(index + step) % len(self)]
            try:
                return _make(sample, resolution, Random(seed) if seed else None)
            except DreamCacheError as error:
                if str(error) not in self._problems:
                    self._problems[str(error)] = None
                    _LOG.warning("DreamCache skips a training sample: %s", error)
        raise DreamCacheError(f"No sample in {self.folder} can be used: {next(iter(self._problems))}")

    def check(self, on_progress: Callable[[int], None] = lambda done: None) -> Triplets:
        """Read every file. Returns the samples that are sound, with the problems of all others.

        `on_progress` hears how many are done. Raises DreamCacheError if none is sound.
        """
        sound, problems = [], list(self.problems)
        for number, sample in enumerate(self._samples, start=1):
            try:
                _make(sample, PIXELS_PER_LATENT, Random(0))
                sound.append(sample)
            except DreamCacheError as error:
                problems.append(str(error))
            on_progress(number)
        return _some(self.folder, sound, problems)


def open_triplets(folder: Path) -> Triplets:
    """The samples of a folder and its tars, as triplet_files describes them, whose files are there.

    What is in the files is seen when they are loaded, or by `Triplets.check`. Raises DreamCacheError if there are none.
    """
    if not folder.is_dir():
        raise DreamCacheError(f"{folder} is not a folder: choose the folder that contains the triplets.")
    return _some(folder, *find_samples(folder))


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch goes through `length` samples: each once."""
    order = list(range(length))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def _some(folder: Path, samples: Sequence[SampleFiles], problems: Sequence[str]) -> Triplets:
    if samples:
        return Triplets(folder, samples, problems)
    if problems:
        raise DreamCacheError(
            f"None of the {len(problems)} samples in {folder} can be used; the first problem: {problems[0]}"
        )
    raise DreamCacheError(
        f"There are no triplets in {folder}: make some with DreamCache Save Triplet, or choose a folder with files "
        "named …_generation.png, …_caption.txt and …_mask.png."
    )


def _make(sample: SampleFiles, resolution: int, random: Random | None) -> Triplet:
    """`random`: None for a plain triplet.

    Raises DreamCacheError with the sample's name if a file of it is damaged, or holds nothing.
    """
    caption, picture = _read_caption(sample), read_picture(sample.picture.read, f"{sample.name}: its picture")
    prompt = "" if random and random.random() < EMPTY_PROMPT_PROBABILITY else caption
    square = to_tensor(_centre(picture))
    if sample.reference:
        reference = to_tensor(read_picture(sample.reference.read, f"{sample.name}: its reference"))
        reference = place_on_white(reference, resolution, size=1)
    else:
        mask = to_tensor(_centre(_read_mask(sample, picture.size)))
        box = subject_box(mask)
        if box is None:
            raise DreamCacheError(f"{sample.name}: its mask is black in the square at its centre.")
        if random:
            reference = make_reference(square[box], mask[box], resolution, random)
        else:
            (reference,) = subject_on_white(square.unsqueeze(0), mask.unsqueeze(0), resolution)
    target = resize(square.unsqueeze(0), resolution, resolution)[0]
    augmented = not sample.reference and random is not None
    return Triplet(_channels_first(target), _channels_first(reference), prompt, sample.name, augmented)


def _read_caption(sample: SampleFiles) -> str:
    try:
        caption = sample.caption.read().decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DreamCacheError(f"{sample.name}: its caption cannot be read as UTF-8 text.") from error
    if not caption:
        raise DreamCacheError(f"{sample.name}: its caption is empty.")
    return caption


def _read_mask(sample: SampleFiles, size: tuple[int, int]) -> Image.Image:
    assert sample.mask  # It may be missing only where there is a reference.
    return read_mask(sample.mask.read, f"{sample.name}: its mask", size)


def _centre(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _channels_first(picture: torch.Tensor) -> torch.Tensor:
    return picture.movedim(-1, 0).contiguous()
