"""Prompts for training pictures: each of them once, of word lists and of a text file."""

from __future__ import annotations

from harness.comfyui_server import ComfyUIServer
from support.graph import Graph, failure, output

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
    assert "llm.txt cannot be read as UTF-8 text: save it in UTF-8" in failure(lambda: run(server, "llm.txt"))
    path.write_text("\n")
    assert "The prompt file is empty" in failure(lambda: run(server, "llm.txt"))
