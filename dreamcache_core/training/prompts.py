"""Prompts for triplets: words put together, or the lines of a text file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import DreamCacheError


@dataclass(frozen=True)
class ChosenPrompt:
    """One prompt of several. `subject`: what it is of, empty if that isn't known. `number`: 1…`total`."""

    prompt: str
    subject: str
    number: int
    total: int


def combine_words(seed: int, template: str, subjects: str, contexts: str, styles: str) -> ChosenPrompt:
    """Put one line of each list into the template's `{subject}`, `{context}` and `{style}`.

    `total` seeds in a row give every combination once, and any few of them all subjects about as often. Lists that the
    template doesn't ask for don't count. Raises DreamCacheError if it asks for a subject and there is none.
    """
    lists = {"subject": _lines(subjects), "context": _lines(contexts) or [""], "style": _lines(styles) or [""]}
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
    """The line that the seed says, of those that aren't blank: a prompt, or `subject | prompt`.

    Raises DreamCacheError if there is none.
    """
    lines = _lines(text)
    if not lines:
        raise DreamCacheError("The prompt file is empty: add prompts, one per line.")
    subject, bar, prompt = lines[seed % len(lines)].partition("|")
    if not bar:
        subject, prompt = "", subject
    return ChosenPrompt(prompt.strip(), subject.strip(), seed % len(lines) + 1, len(lines))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _stride(total: int) -> int:
    """How far apart two prompts in a row are. By the golden ratio, few steps spread as evenly as many; sharing no
    divisor with `total`, that many steps come everywhere once.
    """
    stride = round(total * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, total) > 1:
        stride += 1
    return stride


def _tidy(prompt: str) -> str:
    """Without the commas and spaces that an empty list leaves."""
    prompt = re.sub(r"\s+", " ", prompt)
    return re.sub(r"(\s*,)+", ",", prompt).strip(" ,")
