"""Prompts for training pictures: each of them once, of word lists and of a text file."""

from __future__ import annotations

from collections import Counter

import pytest
from comfyui_server import ComfyUIServer
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.prompts import choose_line, combine_words
from graph import Graph, failure, output

TEMPLATE = "a photo of {subject} {context}, {style}"
SUBJECTS, CONTEXTS, STYLES = "a dog\n\n  a cat \na hat", "on a beach\nin a forest\nat night\nat home", "35mm\nwide"


def run(server: ComfyUIServer, source: str = "word lists", **changes: object) -> list[str]:
    """What the node gives: prompt, subject, number, total."""
    graph = Graph(server)
    lists = {"template": TEMPLATE, "subjects": SUBJECTS, "contexts": CONTEXTS, "styles": STYLES}
    node = graph.add("DreamCachePromptSource", **{"source": source, "seed": 0, **lists, **changes})
    previews = [graph.add("PreviewAny", source=output(node, number)) for number in range(4)]
    outputs = server.run(graph.prompt).outputs
    return [outputs[preview]["text"][0] for preview, _ in previews]


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


def test_the_node_gives_a_prompt_of_its_lists(server: ComfyUIServer) -> None:
    prompt, subject, number, total = run(server, seed=2**40)
    assert prompt.startswith(f"a photo of {subject} ")
    assert (int(number), total) == (2**40 % 24 + 1, "24")
    assert run(server, seed=2**40 + 1)[0] != prompt


def test_the_node_reads_a_text_file_of_the_input_folder_and_sees_when_it_changes(server: ComfyUIServer) -> None:
    assert "There is no text file llm.txt in" in failure(lambda: run(server, "llm.txt"))
    assert "There is no text file ../server.log in" in failure(lambda: run(server, "../server.log"))
    path = server.base / "input" / "llm.txt"
    path.write_text("\ufeffein Löwe im Schnee\nmug | a mug on a rock", encoding="utf-8")
    assert run(server, "llm.txt", seed=3) == ["a mug on a rock", "mug", "2", "2"]
    assert run(server, "llm.txt", seed=4) == ["ein Löwe im Schnee", "", "1", "2"]
    path.write_text("another", encoding="utf-8")
    assert run(server, "llm.txt", seed=4)[0] == "another"
    path.write_bytes("Löwe".encode("latin-1"))
    assert "llm.txt is not in UTF-8" in failure(lambda: run(server, "llm.txt"))
    path.write_text("\n")
    assert "The prompt file is empty" in failure(lambda: run(server, "llm.txt"))
