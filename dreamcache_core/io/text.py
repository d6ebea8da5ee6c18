"""Text that people write: decoding it, its lines, and JSON."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DreamCacheError
from .failures import reading
from .json_fields import MalformedError, parse_json

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Not all that `str.splitlines` splits at: prompts pasted from the web contain U+2028, and JSON may too.
_LINE_END = re.compile(r"\r\n|\r|\n")


def read_text(path: Path) -> str:
    """Read a text file. Raises DreamCacheError if it can't be read or isn't UTF-8 text."""
    return decode_text(path.read_bytes, str(path))


def decode_text(read: Callable[[], bytes], what: str) -> str:
    """Decode text in UTF-8, or in UTF-16 that begins with a byte-order mark. No byte-order mark is left.

    `read`: returns the bytes of the file. `what`: the text in words, for the message. Raises DreamCacheError if it
    can't be read or is in another encoding, such as Windows' cp1252.
    """
    with reading(what):
        content = read()
    try:
        return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DreamCacheError(f"{what} cannot be read as UTF-8 text: save it in UTF-8.") from error


def split_lines(text: str) -> list[str]:
    """The lines of a text, without spaces at their ends and without blank lines."""
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """Read a file with a JSON object. `advice`: what to do if it is damaged, which a DreamCacheError then says."""
    with reading(path):
        content = path.read_bytes()
    try:
        value = parse_json(content.removeprefix(codecs.BOM_UTF8))
        if not isinstance(value, dict):
            raise MalformedError("not an object")
    except MalformedError as error:
        raise DreamCacheError(f"{path} is damaged: {advice}.") from error
    return value
