"""The options of the command that prepares data sets."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import subjects200k
from .coco import Choice

_CHOICE = Choice()
_SHEET_ROWS = 8


def read_options() -> argparse.Namespace:
    """The command's options. Ends the process if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamcache_core.prepare",
        description="Turn a public data set into triplets to train on, or look at the triplets of a folder.",
    )
    steps = parser.add_subparsers(dest="step", required=True)
    _add_subjects200k(steps.add_parser("subjects200k", help="pairs of pictures, in parquet files"))
    _add_coco(steps.add_parser("coco", help="photographs with masks of objects: COCO, LVIS, exports of Open Images"))
    _add_look(steps.add_parser("look", help="draw some triplets of a folder, and name those that can't be used"))
    return parser.parse_args()


def _add_subjects200k(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files, or one of them")
    _add_output(parser)
    parser.add_argument(
        "--quality",
        type=float,
        default=subjects200k.QUALITY,
        help="least score, 0 to 5, for each of three; 0 also takes pairs without scores (default: %(default)s)",
    )
    parser.add_argument(
        "--padding",
        type=_whole,
        default=subjects200k.PADDING,
        help="pixels by which each half of an image is larger than its picture (default: %(default)s)",
    )


def _add_coco(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instances", type=Path, required=True, help="file such as instances_train2017.json")
    parser.add_argument(
        "--captions", type=Path, help="file such as captions_train2017.json; without it, prompts name the category"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    _add_output(parser)
    parser.add_argument(
        "--smallest",
        type=float,
        default=_CHOICE.smallest,
        help="least area of an object, as a fraction of the square (default: %(default)s)",
    )
    parser.add_argument(
        "--largest",
        type=float,
        default=_CHOICE.largest,
        help="most area of an object, as a fraction of the square (default: %(default)s)",
    )
    parser.add_argument(
        "--objects", type=_counted, default=_CHOICE.objects, help="most objects of a picture (default: %(default)s)"
    )


def _add_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of triplets")
    parser.add_argument("--sheet", type=Path, required=True, help="file for the picture, such as sheet.png")
    parser.add_argument(
        "--rows",
        type=_counted,
        default=_SHEET_ROWS,
        help="triplets to draw, spread evenly (default: %(default)s)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for the triplets")
    parser.add_argument("--dry-run", action="store_true", help="measure some rows, say what all will take, and stop")
    parser.add_argument(
        "--threads",
        type=_counted,
        default=os.cpu_count() or 1,
        help="that read pictures (default: %(default)s)",
    )


def _whole(text: str) -> int:
    """A whole number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _counted(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
