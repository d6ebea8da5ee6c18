"""Prompts for training data, from lists of words or from lines of a text."""

from __future__ import annotations

from collections import Counter

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.prompts import choose_line, combine_words

TEMPLATE = "a photo of {subject} {context}, {style}"
SUBJECTS, CONTEXTS, STYLES = "a dog\n\n  a cat \na hat", "on a beach\nin a forest\nat night\nat home", "35mm\nwide"


def test_counting_up_gives_every_combination_once_and_all_subjects_equally_often() -> None:
    chosen = [combine_words(seed, TEMPLATE, SUBJECTS, CONTEXTS, STYLES) for seed in range(24)]
    assert len({one.prompt for one in chosen}) == 24
    assert [one.number for one in chosen] == list(range(1, 25))
    assert {one.total for one in chosen} == {24}
    assert all(f"a photo of {one.subject} " in one.prompt for one in chosen)
    assert Counter(one.subject for one in chosen[:9]) == {"a dog": 3, "a cat": 3, "a hat": 3}
    assert combine_words(24, TEMPLATE, SUBJECTS, CONTEXTS, STYLES) == chosen[0]


def test_empty_lists_and_those_that_the_template_leaves_out_leave_no_trace() -> None:
    assert combine_words(0, TEMPLATE, "a dog", "", "").prompt == "a photo of a dog"
    assert combine_words(0, TEMPLATE, "a dog", "", "wide").prompt == "a photo of a dog, wide"
    alone = combine_words(1, "{subject} {twice}", SUBJECTS, CONTEXTS, STYLES)
    assert (alone.total, alone.prompt) == (3, f"{alone.subject} {{twice}}")
    assert combine_words(5, "a plain prompt", "", "", "").prompt == "a plain prompt"
    with pytest.raises(DreamCacheError, match="There are no subjects"):
        combine_words(0, TEMPLATE, "\n", CONTEXTS, STYLES)


def test_lines_of_a_text_are_taken_in_turn() -> None:
    lines = "a dog on a beach\n\ncat | a cat, asleep\n"
    assert choose_line(0, lines).prompt == "a dog on a beach"
    second = choose_line(3, lines)
    assert (second.prompt, second.subject, second.number, second.total) == ("a cat, asleep", "cat", 2, 2)


@pytest.mark.parametrize(
    ("line", "subject", "prompt"),
    [
        ("a {red|blue} cat", "", "a {red|blue} cat"),
        ("cat | a {red|{blue|green}} cat", "cat", "a {red|{blue|green}} cat"),
        ("[cat|dog] | a [cat|dog] (asleep|awake) | in bed", "[cat|dog]", "a [cat|dog] (asleep|awake) | in bed"),
        ("cat\u2028dog | a cat\u2028and a dog\x85", "cat\u2028dog", "a cat\u2028and a dog"),
    ],
)
def test_only_a_bar_outside_of_brackets_splits_a_line_and_only_an_end_of_line_splits_lines(
    line: str, subject: str, prompt: str
) -> None:
    chosen = choose_line(1, f"first\r\n{line}\rlast\n")
    assert (chosen.subject, chosen.prompt, chosen.total) == (subject, prompt, 3)
