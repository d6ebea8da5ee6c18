"""The command that prepares data sets: what it does and prints."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from PIL import Image

from ..errors import DreamCacheError
from ..figures.contact_sheet import contact_sheet
from ..io.atomic import open_atomically
from ..io.failures import writing
from ..io.images import to_image
from ..training.estimate import memory_of
from ..training.triplets import open_triplets
from .coco import Choice, Coco
from .preparation import Report, make_rows, prepare
from .source import Source
from .subjects200k import Subjects200K

_MEASURED_ROWS = 500
_SECONDS_BETWEEN_LINES = 10
_SIDE = 256
_GIB = 2**30
# A tar's header, and half of what fills a file's last block.
_TAR_BYTES_PER_FILE = 512 + 256


def run(options: argparse.Namespace) -> None:
    """Run a step of the command. `options`: as options.py reads them. Raises DreamCacheError."""
    try:
        if options.step == "look":
            _look(options.data, options.sheet, options.rows)
            return
        begun = time.monotonic()
        source = _SOURCES[options.step](options)
        if not len(source):
            raise DreamCacheError("The data set has no rows: choose other files.")
        print(f"{len(source):,} rows, found in {_in_words(time.monotonic() - begun)}", flush=True)
        if options.dry_run:
            print(_estimate(source, options.threads, options.output))
        else:
            _prepare(source, options.threads, options.output)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on where it stopped.")


_SOURCES: dict[str, Callable[[argparse.Namespace], Source]] = {
    "subjects200k": lambda options: Subjects200K(options.data, options.quality, options.padding),
    "coco": lambda options: Coco(
        options.instances,
        options.captions,
        options.images,
        Choice(options.smallest, options.largest, options.objects),
    ),
}


def _prepare(source: Source, threads: int, folder: Path) -> None:
    begun = said = time.monotonic()

    def say(report: Report, made: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < _SECONDS_BETWEEN_LINES:
            return
        said, rate = now, made / (now - begun)
        print(
            f"{report.rows:,} of {len(source):,} rows: {report.triplets:,} triplets, {rate:,.0f} rows/s, "
            f"{_in_words((len(source) - report.rows) / rate)} left",
            flush=True,
        )

    report = prepare(source, folder, threads, say)
    print(f"{report.triplets:,} triplets in {folder}")
    if report.left_out:
        print(f"left out: {report.left_out.total():,}, named in {folder / 'left_out.txt'}")
        print(_by_reason(report.left_out))


def _estimate(source: Source, threads: int, folder: Path) -> str:
    """What preparing takes, measured on the first rows. Nothing is written."""
    begun = time.monotonic()
    rows = triplets = size = 0
    left_out: Counter[str] = Counter()
    for row in make_rows(itertools.islice(source.rows(0), _MEASURED_ROWS), threads):
        rows += 1
        triplets += len(row.triplets)
        left_out.update(each.reason for each in row.left_out)
        files = [content for each in row.triplets for content in each.values()]
        size += sum(map(len, set(files))) + len(files) * _TAR_BYTES_PER_FILE
    rate, memory = rows / (time.monotonic() - begun), memory_of(torch.device("cpu"), "VmHWM")
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free

    def takes(count: int) -> str:
        return f"{_in_words(count / rate)}, {size / rows * count / _GIB:,.1f} GiB"

    lines = [
        f"measured: {rows:,} rows, {rate:,.1f} rows/s, {triplets:,} triplets, {left_out.total():,} left out",
        *([_by_reason(left_out)] if left_out else []),
        f"all {len(source):,} rows: {takes(len(source))} of {free / _GIB:,.1f} GiB free",
        f"a million rows: {takes(1_000_000)}",
        f"memory: {memory / _GIB:.2f} GiB at the peak, however many rows there are",
    ]
    return "\n".join(lines)


def _look(data: Path, sheet: Path, rows: int) -> None:
    triplets = open_triplets(data)
    count = min(rows, len(triplets))
    chosen = [triplets.plain(number * len(triplets) // count, _SIDE) for number in range(count)]
    print(triplets.description)
    cells: list[list[Image.Image | None]] = [[to_image(each.target), to_image(each.reference)] for each in chosen]
    labels = [f"{each.name}: {each.prompt}" for each in chosen]
    with writing(sheet), open_atomically(sheet) as file:
        contact_sheet(cells, labels, ["target", "reference"], _SIDE).save(file, format="PNG")
    print(f"{count} of them are drawn in {sheet}.")


def _by_reason(left_out: Counter[str]) -> str:
    return "\n".join(f"  {count:,}: {reason}" for reason, count in left_out.most_common())


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
