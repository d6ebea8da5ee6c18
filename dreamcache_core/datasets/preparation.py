"""Writing the triplets of a data set: a tar for each 500 rows, so that a run that was stopped can be resumed.

00000.tar                       the triplets of the first 500 rows, named by the number of their row
left_out.txt                    everything that was left out, and why; written at the end
.prepared/begun_with.json       the data and settings that the folder was begun with
.prepared/00000.json            what the first 500 rows gave
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ..errors import DreamCacheError
from ..io.atomic import open_atomically, remove_partial_files, write_atomically
from ..io.json_fields import parse_json
from ..io.text import read_json_object
from ..training.triplet_files import write_tar
from .source import LeftOut, PictureTriplet, Row, Source, UnusableError

ROWS_PER_TAR = 500
_OUR_FILES = re.compile(r"\d{5}\.(tar|json)|left_out\.txt|begun_with\.json")
# JPEG's, without subsampling of colours. The data sets' own pictures are compressed more.
_JPEG_QUALITY = 95
# Rows that wait for their turn to be written, for each thread.
_ROWS_AHEAD = 4


@dataclass(frozen=True)
class MadeRow:
    """What a row gave. `triplets`: each as the contents of its files, by what their names end with."""

    triplets: tuple[dict[str, bytes], ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Report:
    """What rows gave. `left_out`: how many, by their reason."""

    rows: int
    triplets: int
    left_out: Counter[str]

    def __add__(self, other: Report) -> Report:
        return Report(self.rows + other.rows, self.triplets + other.triplets, self.left_out + other.left_out)


NOTHING = Report(0, 0, Counter())


class PreparedFolder:
    """A folder of prepared triplets.

    Raises DreamCacheError if it holds triplets of other data or settings than `source`.
    """

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder = folder
        self.left_out_path = folder / "left_out.txt"
        self._notes = folder / ".prepared"
        self._begin({"rows_per_tar": ROWS_PER_TAR, **source.identity})
        for each in (folder, self._notes):
            remove_partial_files(each, lambda name: bool(_OUR_FILES.fullmatch(name)))

    def is_done(self, tar: int) -> bool:
        try:
            self.read(tar)
        except (OSError, ValueError, KeyError, TypeError):  # It is missing, or was damaged when the power failed.
            return False
        return self._tar(tar).is_file()

    def write(self, tar: int, first_row: int, rows: Iterable[MadeRow]) -> None:
        """Write the triplets of some rows, the first of which has the number `first_row`."""
        count = triplets = 0
        left_out: list[LeftOut] = []
        with write_tar(self._tar(tar)) as add:
            for count, row in enumerate(rows, start=1):
                left_out += row.left_out
                triplets += len(row.triplets)
                for number, files in enumerate(row.triplets):
                    for ending, content in files.items():
                        add(f"{first_row + count - 1:08}_{number}_{ending}", content)
        note = {"rows": count, "triplets": triplets, "left_out": [asdict(each) for each in left_out]}
        write_atomically(self._note(tar), json.dumps(note, ensure_ascii=False).encode(errors="replace"))

    def read(self, tar: int) -> tuple[Report, list[LeftOut]]:
        """What the rows of a tar that is done gave."""
        note = parse_json(self._note(tar).read_bytes())
        left_out = [LeftOut(**each) for each in note["left_out"]]
        return Report(note["rows"], note["triplets"], Counter(each.reason for each in left_out)), left_out

    def finish(self, tars: int) -> None:
        """Write the list of what was left out."""
        with open_atomically(self.left_out_path) as file:
            for tar in range(tars):
                file.writelines(f"{each}\n".encode(errors="replace") for each in self.read(tar)[1])

    def _begin(self, identity: dict[str, object]) -> None:
        path = self._notes / "begun_with.json"
        if not path.is_file():
            write_atomically(path, json.dumps(identity, indent=2).encode(errors="replace"))
        before = read_json_object(path, "choose another folder")
        changed = sorted(name for name in before.keys() | identity if before.get(name) != identity.get(name))
        if changed:
            raise DreamCacheError(
                f"{self.folder} was begun with other data or settings ({', '.join(changed)}): choose another folder."
            )

    def _tar(self, tar: int) -> Path:
        return self.folder / f"{tar:05}.tar"

    def _note(self, tar: int) -> Path:
        return self._notes / f"{tar:05}.json"


def prepare(
    source: Source, folder: Path, threads: int, on_progress: Callable[[Report, int], None] = lambda report, made: None
) -> Report:
    """Write the triplets of all rows that aren't written yet. Returns what all rows gave.

    `on_progress`: called after each tar with what was done so far, and the number of rows of this run.
    Raises DreamCacheError if the folder holds other data, or can't be written.
    """
    try:
        prepared = PreparedFolder(folder, source)
        return _prepare(source, prepared, threads, on_progress)
    except OSError as error:
        raise DreamCacheError(
            f"{error.filename or folder} could not be read or written: {error.strerror or error}; make room or put it "
            "right, then start the same command again: it goes on where it stopped."
        ) from error


def make_rows(rows: Iterable[Row], threads: int) -> Iterator[MadeRow]:
    """Make rows in threads. The results come in the order of the rows, and only a few of them wait at any time."""
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool, rows, threads * _ROWS_AHEAD)


def _prepare(
    source: Source, prepared: PreparedFolder, threads: int, on_progress: Callable[[Report, int], None]
) -> Report:
    tars = math.ceil(len(source) / ROWS_PER_TAR)
    missing = [tar for tar in range(tars) if not prepared.is_done(tar)]
    total = sum((prepared.read(tar)[0] for tar in range(tars) if prepared.is_done(tar)), NOTHING)
    first = missing[0] if missing else tars
    rows = source.rows(first * ROWS_PER_TAR)
    made = 0
    for tar in range(first, tars):
        part = itertools.islice(rows, ROWS_PER_TAR)
        if prepared.is_done(tar):
            deque(part, maxlen=0)  # Skipped, without being made.
            continue
        prepared.write(tar, tar * ROWS_PER_TAR, make_rows(part, threads))
        report = prepared.read(tar)[0]
        total += report
        made += report.rows
        on_progress(total, made)
    prepared.finish(tars)
    return total


def _in_order(pool: Executor, rows: Iterable[Row], ahead: int) -> Iterator[MadeRow]:
    waiting: deque[Future[MadeRow]] = deque()
    for row in rows:
        waiting.append(pool.submit(_make, row))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _make(row: Row) -> MadeRow:
    try:
        outcomes = row.make()
        encoded: dict[int, bytes] = {}
        triplets = tuple(_encode(each, encoded) for each in outcomes if isinstance(each, PictureTriplet))
    except UnusableError as error:
        return MadeRow((), (LeftOut(row.name, error.reason, error.detail),))
    except DreamCacheError:
        raise
    except Exception as error:  # One row of a million must not end a night's run, whatever is wrong with it.
        return MadeRow((), (LeftOut(row.name, "it cannot be read", f"{type(error).__name__}: {error}"),))
    return MadeRow(triplets, tuple(each for each in outcomes if isinstance(each, LeftOut)))


def _encode(triplet: PictureTriplet, encoded: dict[int, bytes]) -> dict[str, bytes]:
    """The contents of a triplet's files. `encoded`: the pictures of the row that are encoded already, by their id()."""
    files = {"caption.txt": triplet.caption.encode()}
    if triplet.mask:
        files["mask.png"] = _save(triplet.mask, format="PNG")
    for kind, picture in (("reference", triplet.reference), ("generation", triplet.picture)):
        if picture:
            if id(picture) not in encoded:
                encoded[id(picture)] = _save(picture, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
            files[f"{kind}.jpg"] = encoded[id(picture)]
    return files


def _save(picture: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, **options)  # type: ignore[arg-type]
    return content.getvalue()
