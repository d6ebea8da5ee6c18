"""Prompts for triplets: combinations of words, or the lines of a text file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import DreamCacheError
from ..io.text import split_lines

_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class ChosenPrompt:
    """One prompt of `total`. `subject`: what it shows, empty if that isn't known. `number`: 1…`total`."""

    prompt: str
    subject: str
    number: int
    total: int


def combine_words(seed: int, template: str, subjects: str, contexts: str, styles: str) -> ChosenPrompt:
    """Fill the template's `{subject}`, `{context}` and `{style}` with a line of each list.

    `total` consecutive seeds give every combination once, and a few consecutive seeds use all subjects about equally.
    Lists that the template has no place for are ignored. Raises DreamCacheError if it has a place for a subject and
    there is none.
    """
    lists = {
        "subject": split_lines(subjects),
        "context": split_lines(contexts) or [""],
        "style": split_lines(styles) or [""],
    }
    lists = {name: lines for name, lines in lists.items() if f"{{{name}}}" in template}
    total = math.prod(map(len, lists.values()))
    if not total:
        raise DreamCacheError("There are no subjects to write prompts for: add some, one per line.")
    position = seed * _stride(total) % total
    words = {}
    for name, lines in lists.items():
        position, line = divmod(position, len(lines))
        words[name] = lines[line]
    prompt = re.sub(r"\{(subject|context|style)\}", lambda match: words[match[1]], template)
    return ChosenPrompt(_tidy(prompt), words.get("subject", ""), seed % total + 1, total)


def choose_line(seed: int, text: str) -> ChosenPrompt:
    """Line number `seed` of a text, counted from 0 over and over, without blank lines: a prompt, or `subject | prompt`.

    Raises DreamCacheError if all lines are blank.
    """
    lines = split_lines(text)
    if not lines:
        raise DreamCacheError("The prompt file is empty: add prompts, one per line.")
    line = lines[seed % len(lines)]
    bar = _find_bar(line)
    subject, prompt = ("", line) if bar is None else (line[:bar], line[bar + 1 :])
    return ChosenPrompt(prompt.strip(), subject.strip(), seed % len(lines) + 1, len(lines))


def _find_bar(line: str) -> int | None:
    """Where the first `|` outside of brackets is: inside, it separates alternatives, such as `{red|blue}`."""
    depth = 0
    for place, character in enumerate(line):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        elif character == "|" and not depth:
            return place
    return None


def _stride(total: int) -> int:
    """The distance between the combinations of consecutive seeds.

    Close to the golden ratio, a few steps spread as evenly as many do; coprime to `total`, `total` steps visit every
    combination once.
    """
    stride = round(total * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, total) > 1:
        stride += 1
    return stride


def _tidy(prompt: str) -> str:
    """A prompt without the commas and spaces that an empty list leaves."""
    prompt = re.sub(r"\s+", " ", prompt)
    return re.sub(r"(\s*,)+", ",", prompt).strip(" ,")
