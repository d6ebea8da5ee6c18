"""Preparing a data set: what was written stays, what was stopped is resumed, and the result is the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dreamcache.dreamcache_core.datasets import preparation
from dreamcache.dreamcache_core.datasets.coco import Choice, Coco
from dreamcache.dreamcache_core.datasets.preparation import Report, make_rows, prepare
from dreamcache.dreamcache_core.datasets.source import PictureTriplet, Row, UnusableError
from dreamcache.dreamcache_core.datasets.subjects200k import Subjects200K
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.prepare import main
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image
from support.public_data import SCORES, CocoFiles, scene, subject_row, write_parquet

ROOT = Path(__file__).resolve().parents[2]


class Rows:
    """A data set of rows that count how often they are made. Every tenth can't be used."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made: Counter[int] = Counter()
        self.given = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"data": "test", "files": [["a", self.count]]}

    def __len__(self) -> int:
        return self.count

    def rows(self, first: int) -> Iterator[Row]:
        for number in range(first, self.count):
            self.given += 1
            yield Row(f"row {number}", partial(self.make, number))

    def make(self, number: int) -> list[PictureTriplet]:
        self.made[number] += 1
        if number % 10 == 0:
            raise UnusableError("it is a tenth", f"{number} is")
        return [PictureTriplet(scene(number, 0), f"thing {number}", reference=scene(number, 1))]


@pytest.fixture(autouse=True)
def small_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "ROWS_PER_TAR", 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_left_out_is_counted_by_reason_and_named(tmp_path: Path) -> None:
    report = prepare(Rows(50), tmp_path, threads=2)
    assert report == Report(50, 45, Counter({"it is a tenth": 5}))
    lines = (tmp_path / "left_out.txt").read_text().splitlines()
    assert lines == [f"row {number}: it is a tenth ({number} is)" for number in range(0, 50, 10)]
    triplets = open_triplets(tmp_path).check()
    assert triplets.problems == ()
    assert [triplets.plain(index, 64).prompt for index in (0, 9, 44)] == ["thing 1", "thing 11", "thing 49"]


def test_a_run_that_stops_is_resumed_without_making_a_row_twice(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop_after_two_tars(report: Report, made: int) -> None:
        if report.rows == 40:
            raise StopError

    rows = Rows(110)
    with pytest.raises(StopError):
        prepare(rows, tmp_path / "stopped", threads=2, on_progress=stop_after_two_tars)
    (tmp_path / "stopped" / f".00002.tar.{'0' * 32}").write_bytes(b"what a killed process has written so far")
    seen = []
    report = prepare(rows, tmp_path / "stopped", threads=1, on_progress=lambda *progress: seen.append(progress))
    assert set(rows.made.values()) == {1}
    assert [(each.rows, made) for each, made in seen] == [(60, 20), (80, 40), (100, 60), (110, 70)]
    assert report == prepare(Rows(110), tmp_path / "whole", threads=3)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["00001.tar", ".prepared/00001.json"])
def test_a_tar_that_is_gone_is_made_and_no_other(tmp_path: Path, lost: str) -> None:
    rows = Rows(100)
    prepare(rows, tmp_path, threads=2)
    before = contents(tmp_path)
    (tmp_path / lost).unlink()
    prepare(rows, tmp_path, threads=2)
    assert contents(tmp_path) == before
    assert [number for number, times in sorted(rows.made.items()) if times > 1] == list(range(20, 40))


def test_a_note_that_a_power_failure_emptied_is_made_again(tmp_path: Path) -> None:
    prepare(Rows(60), tmp_path, threads=2)
    before = contents(tmp_path)
    (tmp_path / ".prepared" / "00002.json").write_bytes(b"")
    prepare(Rows(60), tmp_path, threads=2)
    assert contents(tmp_path) == before


def test_only_a_few_rows_wait_for_their_turn() -> None:
    rows = Rows(1000)
    results = make_rows(rows.rows(0), threads=2)
    for taken in range(1, 101):
        next(results)
        assert rows.given - taken <= 8
    results.close()  # type: ignore[attr-defined]


def test_a_row_that_fails_in_an_unforeseen_way_is_left_out(tmp_path: Path) -> None:
    class Odd(Rows):
        def make(self, number: int) -> list[PictureTriplet]:
            if number == 3:
                return [PictureTriplet(Image.new("F", (8, 8)), "a picture that JPEG cannot hold", mask=scene(0, 0))]
            if number == 4:
                raise KeyError("unforeseen")
            return super().make(number)

    report = prepare(Odd(9), tmp_path, threads=1)
    assert report == Report(9, 6, Counter({"it is a tenth": 1, "it cannot be read": 2}))
    assert "row 4: it cannot be read (KeyError: 'unforeseen')" in (tmp_path / "left_out.txt").read_text()


def test_a_folder_with_other_data_or_without_room_is_refused(tmp_path: Path) -> None:
    prepare(Rows(20), tmp_path / "triplets", threads=1)
    with pytest.raises(DreamCacheError, match=r"triplets was begun with other data or settings \(files\): choose ano"):
        prepare(Rows(21), tmp_path / "triplets", threads=1)
    (tmp_path / "taken").touch()
    with pytest.raises(DreamCacheError, match=r"taken.* could not be read or written: .*start the same command again"):
        prepare(Rows(20), tmp_path / "taken", threads=1)


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command in this process. Returns what it prints."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def test_a_killed_command_ends_with_the_same_files_when_it_is_started_again(
    tmp_path: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "ROWS_PER_TAR", 500)  # As in a process of its own.
    images = [subject_row(number)["image"] for number in range(20)]
    rows = [subject_row(number, image=images[number % 20]) for number in range(1100)]
    rows[7]["quality_assessment"] = dict.fromkeys(SCORES, 2)
    data = write_parquet(tmp_path / "data" / "train.parquet", rows)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "dreamcache_core.prepare", "subjects200k", "--data", data, "--output", killed]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (killed / "00000.tar").is_file():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "left_out.txt").exists()

    resumed = say("subjects200k", "--data", data.parent, "--output", killed)
    assert "2,198 triplets in" in resumed
    assert "left out: 1, named in" in resumed
    assert "  1: its quality is too low" in resumed
    say("subjects200k", "--data", data.parent, "--output", whole)
    assert contents(killed) == contents(whole)


def test_a_dry_run_estimates_and_writes_nothing(tmp_path: Path, say: Callable[..., str]) -> None:
    files = CocoFiles(tmp_path / "coco", pictures=30)
    files.annotations[4]["iscrowd"] = 1
    paths = [part for name, path in files.write().items() for part in (f"--{name}", path)]
    said = say("coco", *paths, "--output", tmp_path / "triplets", "--smallest", 0.05, "--dry-run")
    assert "30 rows, found in" in said
    assert "29 triplets, 1 left out\n  1: it is a crowd\n" in said
    for line in ("all 30 rows: 0:00:0", "a million rows: ", "memory: "):
        assert line in said
    assert not (tmp_path / "triplets").exists()


def test_triplets_are_looked_at_in_a_contact_sheet(tmp_path: Path, say: Callable[..., str]) -> None:
    prepare(Rows(20), tmp_path / "triplets", threads=1)
    said = say("look", "--data", tmp_path / "triplets", "--sheet", tmp_path / "sheet.png", "--rows", 5)
    assert said == f"18 triplets in {tmp_path / 'triplets'}\n5 of them are drawn in {tmp_path / 'sheet.png'}.\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 5 * 256
    with pytest.raises(SystemExit, match="nowhere is not a folder"):
        say("look", "--data", tmp_path / "nowhere", "--sheet", tmp_path / "sheet.png")
    with pytest.raises(SystemExit, match=r"sheet\.png/two\.png cannot be written: a file has the name of a folder"):
        say("look", "--data", tmp_path / "triplets", "--sheet", tmp_path / "sheet.png" / "two.png")


def test_wrong_options_and_empty_data_end_the_command_with_a_sentence(
    tmp_path: Path, say: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_parquet(tmp_path / "train.parquet", [])
    output = ("--data", data, "--output", tmp_path / "triplets")
    with pytest.raises(SystemExit, match="The data set has no rows: choose other files"):
        say("subjects200k", *output, "--dry-run")
    for option, value in (("--threads", 0), ("--padding", -1)):
        with pytest.raises(SystemExit):
            say("subjects200k", *output, option, value)
        assert f"argument {option}: {value} is less than" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = CocoFiles(tmp_path / "coco", pictures=1).write()
    for package in ("pyarrow", "pycocotools"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DreamCacheError, match="need pyarrow: run pip install pyarrow"):
        Subjects200K(tmp_path)
    with pytest.raises(DreamCacheError, match="need pycocotools: run pip install pycocotools"):
        Coco(choice=Choice(), **paths)
