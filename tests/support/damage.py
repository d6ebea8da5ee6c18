"""Damage to files: of bytes, of JSON, of the headers of tensor files, of the members of zips, and of pickles.

Everything is drawn from a random generator, so that a file that does harm can be made again.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from dreamcache.dreamcache_core.errors import DreamCacheError

SECONDS = 10
"""Of the processor's time that a file may take: far more than it needs, and less than for ever."""

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 64, 10**9, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "0", "320", "F32", "I64", "BOOL", "\ud800", "\0", "é" * 50, "x" * 100_000, "middle_block.1", "a.b.c", "."),
    *([], {}, [[]], [1, 2], [-1], [2**62, 2**62], {"a": 1}, ["x"] * 100),
)


def verdict(read: Callable[[], Any]) -> str | None:
    """Why something can't be read; None if it can."""
    try:
        read()
    except DreamCacheError as error:
        return str(error)
    return None


def attack(count: int, seed: str, path: Path, damage: Callable[[Random], bytes], read: Callable[[], None]) -> None:
    """Write `count` damaged files to `path`, and read each."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"{SECONDS} s of the processor's time")

    before = signal.signal(signal.SIGPROF, too_long)
    try:
        for number in range(count):
            path.write_bytes(damage(Random(f"{seed}/{number}")))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read()
            except Exception as error:
                raise AssertionError(f"file {number} of {seed}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Change, cut, repeat, insert or zero some bytes."""
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 50))):
        # Most formats begin and end with what says how to read the rest.
        place = random.choice((random.randrange(len(damaged) + 1), random.randrange(min(len(damaged), 600) + 1)))
        length = random.choice((1, 1, 2, 8, 100, 5000))
        change = random.randrange(7)
        if change == 0:
            damaged[place : place + length] = random.randbytes(min(length, len(damaged) - place))
        elif change == 1:
            damaged[place : place + length] = bytes(min(length, len(damaged) - place))
        elif change == 2:
            del damaged[place : place + length]
        elif change == 3:
            damaged[place:place] = random.randbytes(length)
        elif change == 4:
            del damaged[place:]
        elif change == 5:
            damaged[place:place] = damaged[place : place + length]
        elif place < len(damaged):
            damaged[place] ^= 1 << random.randrange(8)
    return bytes(damaged)


def damage_json(value: Any, random: Random) -> Any:
    """Change a few values of JSON, wherever they lie: to odd ones, away, or to each other's."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return _odd(random)
        holder, key = random.choice(places)
        change = random.randrange(8)
        if change == 0:
            del holder[key]
        elif change == 1:
            other, other_key = random.choice(places)
            holder[key] = json.loads(json.dumps(other[other_key]))
        elif change == 2 and isinstance(holder, dict):
            holder[random.choice(("", "extra", "__metadata__", "x" * 1000, "\ud800"))] = holder.pop(key)
        elif change == 3 and isinstance(holder, list):
            holder.extend([holder[key]] * random.choice((1, 2, 2000)))
        else:
            holder[key] = _odd(random)
    return value


def dump_json(value: Any, random: Random) -> str:
    """JSON as text, which may be nested without end, cut off or not JSON at all."""
    change = random.randrange(20)
    if change == 0:
        return "[" * 100_000
    if change == 1:
        return '{"a":' * 50_000
    text = json.dumps(value)
    return text[: random.randrange(len(text) + 1)] if change == 2 else text


def damage_tensor_file(content: bytes, random: Random) -> bytes:
    """Damage a `.safetensors`: its bytes, its table of tensors, or the JSON in its metadata."""
    kind = random.randrange(4)
    if kind == 0:
        return damage_bytes(content, random)
    length = int.from_bytes(content[:8], "little")
    table, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = table.get("__metadata__")
    if kind == 1 and metadata and "header" in metadata:
        metadata["header"] = dump_json(damage_json(json.loads(metadata["header"]), random), random)
    elif kind == 2 and metadata:
        table["__metadata__"] = damage_json(metadata, random)
    else:
        table = damage_json(table, random)
    header = dump_json(table, random).encode(errors="surrogatepass")
    claimed = random.choice((len(header),) * 9 + (2**63, 0, len(header) + 1))
    return claimed.to_bytes(8, "little") + header + data


def damage_zip(content: bytes, random: Random) -> bytes:
    """Damage a zip: its bytes, or a member, whose checksum is then right."""
    if random.randrange(3) == 0:
        return damage_bytes(content, random)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        chosen = random.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen or (random.randrange(2) and name.endswith("data.pkl")):
                change = random.randrange(6)
                if change == 0:
                    continue
                if change == 1:
                    name = random.choice((name + "x", "../" + name, names[0]))
                elif change == 2:
                    member = bytes(random.choice((0, 10, 3_000_000)))
                elif change < 5:
                    member = damage_bytes(member, random)
            compressed = random.randrange(10) == 0
            new.writestr(name, member, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    return written.getvalue()


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def odd_pickle(tensors: dict[str, torch.Tensor], traps: Path, random: Random) -> bytes:
    """A pickle of tensors some of which are odd, or of something else. `traps`: a file that code in it would make."""
    odd: dict[Any, Any] = dict(tensors)
    name = random.choice(list(odd))
    tensor = odd[name]
    changes: list[Callable[[], Any]] = [
        lambda: tensor.int(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.zeros(1).expand(tensor.shape),
        lambda: torch.zeros(1).expand(2**20, 2**20),
        lambda: torch.empty(2**40, device="meta"),
        lambda: tensor[..., :0],
        lambda: tensor.mT if tensor.ndim > 1 else tensor,
        lambda: torch.nn.Parameter(tensor),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: random.choice(_ODD),
        lambda: odd,
        lambda: RunsCode(traps),
        lambda: [tensor] * 1000,
    ]
    odd[name] = random.choice(changes)()
    change = random.randrange(8)
    if change == 0:
        odd[random.choice((1, None, ("a", 1), b"name", 2.5))] = odd.pop(name)
    content: Any = random.choice((list(odd.values()), RunsCode(traps), 3, tensor)) if change == 1 else odd
    file = io.BytesIO()
    if change == 2:
        pickle.dump(odd if odd[name] is not odd else 3, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=bool(random.randrange(5)))
    return file.getvalue()


def _odd(random: Random) -> Any:
    # A copy, for it may be damaged in turn.
    return copy.deepcopy(random.choice(_ODD))


def _places(value: Any) -> Any:
    """Each value inside of JSON, as what holds it and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
