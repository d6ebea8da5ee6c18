"""What the operating system refuses: one sentence, at the start, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.generated_images import plan_images, read_manifest, read_settings
from dreamcache.dreamcache_core.evaluation.subjects import open_subjects
from dreamcache.dreamcache_core.io.disk_cache import DiskCache
from dreamcache.dreamcache_core.io.text import read_text
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from dreamcache.dreamcache_core.training.triplets import open_triplets
from PIL import Image
from support.disks import as_nobody, disk


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(DreamCacheError) as raised:
        act()
    return str(raised.value)


def save(folder: Path, side: int = 64) -> None:
    white = Image.new("L", (side, side), 255)
    save_triplet(folder, {"generation": Image.effect_noise((side, side), 90).convert("RGB"), "mask": white}, "a cup")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can get to, which pytest's own are not."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_read_only_disk_is_named_before_anything_is_begun(tmp_path: Path) -> None:
    with disk(tmp_path, "ro"):
        for begin in (
            lambda: TrainingFolder(tmp_path / "training").check_writable(),
            lambda: DiskCache(tmp_path / "cache"),
            lambda: plan_images((), 1, tmp_path / "pictures", {}),
            lambda: save(tmp_path / "triplets"),
        ):
            assert "cannot be written: the disk is read-only; choose another place." in refusal(begin)


def test_a_folder_of_somebody_else_is_named(place: Path) -> None:
    with as_nobody():
        for begin in (
            lambda: TrainingFolder(place / "training").check_writable(),
            lambda: plan_images((), 1, place / "pictures", {}),
            lambda: save(place / "triplets"),
        ):
            assert "cannot be written: permission is denied; change its permissions" in refusal(begin)


def test_a_full_disk_is_named_and_leaves_no_half_triplet(tmp_path: Path) -> None:
    with disk(tmp_path):
        save(tmp_path)
        assert refusal(lambda: save(tmp_path, 1000)) == (
            f"A triplet in {tmp_path} cannot be written: the disk is full; free some space."
        )
        assert len(open_triplets(tmp_path)) == 1
        assert not list(tmp_path.glob(".saving-*"))


def test_names_that_are_taken_by_files_or_folders_are_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "samples").touch()
    assert "samples cannot be written: a file has the name of a folder" in refusal(
        lambda: TrainingFolder(tmp_path).check_writable()
    )
    (tmp_path / "samples").unlink()
    (tmp_path / "adapter.safetensors").mkdir()
    assert "adapter.safetensors is a folder, where the adapter is written: rename it." in refusal(
        lambda: TrainingFolder(tmp_path).check_writable()
    )
    assert "adapter.safetensors cannot be read: it is a folder, not a file" in refusal(
        lambda: read_text(tmp_path / "adapter.safetensors")
    )


def test_what_cannot_be_read_of_triplets_is_named_and_the_rest_is_trained_on(place: Path) -> None:
    save(place)
    (place / "locked").mkdir(mode=0o700)
    (place / "circle").symlink_to(place)
    (place / "00000" / "circle").symlink_to(place)
    (place / "itself").symlink_to(place / "itself")
    (place / "gone_mask.png").symlink_to(place / "nowhere.png")
    open_triplets(place).check()  # Imports what it needs, which nobody may not be allowed to.
    with as_nobody():
        triplets = open_triplets(place)
        assert len(triplets.check()) == 1
    assert triplets.problems == (
        f"{place}/00000/circle is a link to a folder that it is in: it is left out.",
        f"{place}/circle is a link to a folder that it is in: it is left out.",
        f"{place}/itself cannot be read: its links lead in a circle; remove one of them.",
        f"{place}/locked cannot be read: permission is denied; change its permissions or choose another place.",
    )
    (place / "locked").chmod(0o755)
    place.chmod(0o700)
    with as_nobody():
        assert "cannot be read: permission is denied" in refusal(lambda: open_triplets(place))
        assert "cannot be read: permission is denied" in refusal(lambda: open_subjects(place))


def test_damaged_files_of_an_evaluation_are_named_with_what_to_do(tmp_path: Path) -> None:
    settings, manifest = tmp_path / "settings.json", tmp_path / "manifest.jsonl"
    for content in (b"", b'{"steps": 3', b"\xff\xfe\xfd", b"[1]", b"[" * 100_000):
        settings.write_bytes(content)
        for read in (lambda: read_settings(tmp_path), lambda: plan_images((), 1, tmp_path, {})):
            assert refusal(read) == f"{settings} is damaged: delete it, or choose another folder."
    settings.write_text("\ufeff{}", encoding="utf-8")
    assert read_settings(tmp_path) == {}

    # U+2028 and its like are no ends of lines.
    line = '{"file": "a.png", "subject": "cup", "prompt": "a\u2028cup\x85"}'
    manifest.write_text(f"\ufeff{line}\r\n\n{line}\n", encoding="utf-8")
    assert [image.prompt for image in read_manifest(tmp_path)] == ["a\u2028cup\x85"] * 2
    for wrong in ("5", "[]", '{"file": "a.png", "subject": "cup"}', line.replace('"cup"', "[1]"), "{", "[" * 100_000):
        manifest.write_text(f"{line}\n{wrong}\n", encoding="utf-8")
        assert refusal(lambda: read_manifest(tmp_path)).startswith(f"Line 2 of {manifest} is not of the form")
    manifest.write_bytes("Löwe".encode("cp1252"))
    assert refusal(lambda: read_manifest(tmp_path)) == f"{manifest} cannot be read as UTF-8 text: save it in UTF-8."
