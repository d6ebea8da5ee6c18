"""Which files make a triplet, by their names: in any case and Unicode form, and in folders of any layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.names import TEXT_TYPES, in_words, picture_types, plain

_NAME = re.compile(r"(.+)[_./](generation|mask|reference|caption)(\.[^./]+)", re.DOTALL | re.IGNORECASE)
_IN_WORDS = {"generation": "picture", "caption": "caption", "mask": "mask", "reference": "reference"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a file are: `size` bytes from `offset` on in a file of its own or in a tar."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class TripletFiles:
    """The files of a triplet. `mask` may be None if there is a `reference`."""

    name: str
    picture: Place
    caption: Place
    mask: Place | None
    reference: Place | None


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a triplet. `path`: in the folder. `is_read`: whether files of its type are."""

    path: str
    is_read: bool
    place: Place


# The files that may belong to a triplet, by their kind.
_Files = dict[str, list[_File]]


def is_triplets(path: str) -> bool:
    """Whether a path in a folder of triplets is that of a file of a triplet."""
    return bool(_NAME.fullmatch(path))


def match_files(places: Iterable[tuple[str, Place]]) -> tuple[list[TripletFiles], list[str]]:
    """The triplets that have all their files, ordered by name; and a sentence for each that lacks one.

    `places`: of files for which `is_triplets` is true, each with its path in the folder.
    """
    found: dict[str, _Files] = {}
    for path, place in places:
        name, kind, suffix = _NAME.fullmatch(path).groups()  # type: ignore[union-attr]
        file = _File(path, suffix.lower() in _types(kind.lower()), place)
        found.setdefault(name, {}).setdefault(kind.lower(), []).append(file)
    _join_folders_of_one_kind(found)
    triplets, problems = [], []
    for name, files in _join_names(found):
        triplet = _make(name, files)
        if isinstance(triplet, TripletFiles):
            triplets.append(triplet)
        elif triplet:
            problems.append(triplet)
    return sorted(triplets, key=lambda triplet: triplet.name), sorted(problems)


def _make(name: str, files: _Files) -> TripletFiles | str | None:
    """A triplet, or what is wrong with it as far as names and sizes show.

    None for files that only happen to have such a name.
    """
    read = {kind: [file for file in of_kind if file.is_read] for kind, of_kind in files.items()}
    read = {kind: of_kind for kind, of_kind in read.items() if of_kind}
    if not read:
        return None
    missing = _missing(files)
    if missing:
        return f"{name}: its {_IN_WORDS[missing]} is missing{_seen_instead(missing, files.get(missing, ()))}."
    for kind, of_kind in read.items():
        if len(of_kind) > 1:
            paths = sorted(file.path for file in of_kind)
            return f"{name}: there are several files for its {_IN_WORDS[kind]}: {' and '.join(paths)}."
        if not of_kind[0].place.size:
            return f"{name}: its {_IN_WORDS[kind]} is empty."
    places = {kind: of_kind[0].place for kind, of_kind in read.items()}
    return TripletFiles(name, places["generation"], places["caption"], places.get("mask"), places.get("reference"))


def _join_folders_of_one_kind(found: dict[str, _Files]) -> None:
    """Put triplets together whose files lie in a folder for each kind, as in images/1_generation.png, masks/1_mask.png.

    Such triplets lose that folder from their names. Nothing changes where the result would not be a complete triplet.
    """
    kinds: dict[str, set[str]] = {}
    for name, files in found.items():
        for folder in _folders(name):
            kinds.setdefault(folder, set()).update(files)
    groups: dict[str, list[str]] = {}
    for name in found:
        of_one_kind = next((folder for folder in _folders(name) if len(kinds[folder]) == 1), None)
        if of_one_kind is not None:
            parent = of_one_kind[: of_one_kind.rfind("/") + 1]
            groups.setdefault(parent + name[len(of_one_kind) + 1 :], []).append(name)
    for joined, names in groups.items():
        files = {kind: of_kind for name in names for kind, of_kind in found[name].items()}
        if joined not in found and len(files) == len(names) and _missing(files) is None:
            for name in names:
                del found[name]
            found[joined] = files


def _join_names(found: Mapping[str, _Files]) -> Iterator[tuple[str, _Files]]:
    """The name and the files of each triplet. Where files are missing, names that differ only in case or in Unicode
    form are one: that of the picture.
    """
    names: dict[str, str] = {}
    incomplete: dict[str, _Files] = {}
    for name, files in found.items():
        if _missing(files) is None:
            yield name, files
            continue
        key = plain(name)
        if "generation" in files or key not in names:
            names[key] = name
        joined = incomplete.setdefault(key, {})
        for kind, of_kind in files.items():
            joined.setdefault(kind, []).extend(of_kind)
    yield from ((names[key], files) for key, files in incomplete.items())


def _missing(files: _Files) -> str | None:
    """The kind of a file that a triplet lacks."""
    kinds = {kind for kind, of_kind in files.items() if any(file.is_read for file in of_kind)}
    needed = ("generation", "caption", *(() if "reference" in kinds else ("mask",)))
    return next((kind for kind in needed if kind not in kinds), None)


def _seen_instead(kind: str, files: Sequence[_File]) -> str:
    """A file of this kind whose type isn't read, to end a sentence."""
    return f"; {files[0].path} must be {in_words(_types(kind))}" if files else ""


def _types(kind: str) -> tuple[str, ...]:
    return TEXT_TYPES if kind == "caption" else picture_types()


def _folders(name: str) -> list[str]:
    """The folders that a triplet lies in, from the top: "a" and "a/b" for "a/b/1"."""
    return [name[: match.start()] for match in re.finditer("/", name)]
