"""The languages of the pack: every node, input and text is in each of them, and the front end shows it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from harness.comfyui_server import ComfyUIServer
from harness.environment import ROOT
from harness.front_end import FrontEnd, open_front_end
from harness.workflow_prompt import WORKFLOWS

LANGUAGES = ("en", "de", "es", "fr", "ja", "ko", "ru", "zh")
# The front end that ComfyUI 0.30 brings has no German yet.
SHOWN = tuple(language for language in LANGUAGES if language != "de")
# Once is enough to see that they follow, and a reload takes seconds.
TITLES_SHOWN = ("zh", "fr")
TEMPLATES = "dreamcacheTemplates"
"""The section of main.json with the texts of templates. In English, they are in the templates."""
LISTS = ("mode", "rows", "over_sampling", "layers")
"""The inputs that list words alone. Others list files after them, types of numbers, or what ComfyUI has."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_input_is_translated(server: ComfyUIServer, language: str) -> None:
    definitions = {
        name: definition
        for name, definition in server.object_info().items()
        if definition["python_module"] == "custom_nodes.dreamcache"
    }
    expected = set()
    for node, definition in definitions.items():
        expected |= {f"{node}.display_name", f"{node}.description"}
        for name in (*definition["input"]["required"], *definition["input"].get("optional", {})):
            expected |= {f"{node}.inputs.{name}.name", f"{node}.inputs.{name}.tooltip"}
        expected |= {f"{node}.outputs.{number}.name" for number in range(len(definition["output"]))}
    found = set(_flat(_read(language, "nodeDefs")))
    assert not expected - found, f"add to locales/{language}/nodeDefs.json: {sorted(expected - found)}"
    assert not found - expected, f"remove from locales/{language}/nodeDefs.json: {sorted(found - expected)}"


def test_english_says_what_the_nodes_say(server: ComfyUIServer) -> None:
    object_info = server.object_info()
    for node, texts in _read("en", "nodeDefs").items():
        definition = object_info[node]
        inputs = {**definition["input"]["required"], **definition["input"].get("optional", {})}
        assert (texts["display_name"], texts["description"]) == (definition["display_name"], definition["description"])
        for name, text in texts["inputs"].items():
            assert text == {"name": name, "tooltip": inputs[name][1]["tooltip"]}, f"{node}.{name}"


@pytest.mark.parametrize("file", ["main", "commands", "settings"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_other_text_is_translated_with_its_values(language: str, file: str) -> None:
    english, translated = (_flat(_read(one, file)) for one in ("en", language))
    translated = {key: text for key, text in translated.items() if not key.startswith(TEMPLATES)}
    assert {key: _values(text) for key, text in translated.items()} == {
        key: _values(text) for key, text in english.items()
    }


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_title_and_note_of_the_templates_is_translated(language: str) -> None:
    texts, titles, notes = _read(language, "main")[TEMPLATES], set(), {}
    for name, path in WORKFLOWS.items():
        workflow = json.loads(path.read_text(encoding="utf-8"))
        assert workflow["extra"]["dreamcache_template"] == name
        titles |= {part["title"] for part in (*workflow["groups"], *workflow["nodes"]) if part.get("title")}
        (notes[name],) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert set(texts["titles"]) == titles
    assert {name: _marks(note) for name, note in texts["notes"].items()} == {
        name: _marks(note) for name, note in notes.items()
    }


def test_every_word_in_a_list_has_a_label(server: ComfyUIServer) -> None:
    lists: dict[str, list[str]] = {}
    for definition in server.object_info().values():
        if definition["python_module"] == "custom_nodes.dreamcache":
            inputs = {**definition["input"]["required"], **definition["input"].get("optional", {})}
            lists |= {name: options["options"] for name, (kind, options) in inputs.items() if kind == "COMBO"}
    labelled = set(_read("en", "main")["dreamcacheValues"])
    assert {value for name in LISTS for value in lists[name]} <= labelled
    assert {value for value in lists["adapter_name"] if value.startswith("none")} <= labelled
    assert labelled <= {value for values in lists.values() for value in values}


def test_every_text_that_the_extension_says_is_there() -> None:
    code = "".join(path.read_text() for path in (ROOT / "web").rglob("*.js"))
    assert set(re.findall(r"\bsay\('(\w+)'", code)) == set(_read("en", "main")["dreamcache"])


_INPUT_NAMES = (
    "Object.fromEntries(LiteGraph.createNode('ApplyDreamCache').inputs.map("
    "(input) => [input.name, input.localized_name]))"
)


def test_the_front_end_shows_the_language_that_it_is_set_to(server: ComfyUIServer) -> None:
    with open_front_end(server) as front_end:
        page = front_end.page
        for language in SHOWN:
            front_end.choose_language(language)
            texts = _read(language, "nodeDefs")["ApplyDreamCache"]
            shown = {name: text["name"] for name, text in texts["inputs"].items()}
            assert page.evaluate(_INPUT_NAMES) == shown
            if language not in TITLES_SHOWN:
                continue
            _check_template(front_end, language)
            # Titles of nodes, of whatever pack, follow when the page is reloaded.
            front_end.reload()
            page.wait_for_function(
                """title => window.app?.extensionManager
                    && LiteGraph.registered_node_types.ApplyDreamCache?.title === title""",
                arg=texts["display_name"],
            )
        front_end.choose_language("en")
        assert not front_end.errors


def _check_template(front_end: FrontEnd, language: str) -> None:
    """A template opens in the language, and what is saved and sent is what it was."""
    workflow = json.loads(WORKFLOWS["dreamcache_demo"].read_text(encoding="utf-8"))
    front_end.load(workflow)
    texts, saved = _read(language, "main"), front_end.page.evaluate("app.graph.serialize()")
    (note,) = (node["widgets_values"] for node in saved["nodes"] if node["type"] == "MarkdownNote")
    assert note == [texts[TEMPLATES]["notes"]["dreamcache_demo"]]
    for parts in ("groups", "nodes"):
        titles = [texts[TEMPLATES]["titles"][part["title"]] for part in workflow[parts] if part.get("title")]
        assert set(titles) <= {part.get("title") for part in saved[parts]}
    assert "dreamcache_template" not in saved["extra"]
    shown = front_end.page.evaluate(
        "app.graph.findNodesByType('ApplyDreamCache')[0].widgets.find((widget) => widget.name === 'rows')._displayValue"
    )
    assert shown == texts["dreamcacheValues"]["both"]
    sent = front_end.prompt()
    (apply,) = (node["inputs"] for node in sent.values() if node["class_type"] == "ApplyDreamCache")
    assert apply["rows"] == "both"
    prompts = {node["inputs"]["text"] for node in sent.values() if node["class_type"] == "CLIPTextEncode"}
    assert prompts == {node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "CLIPTextEncode"}


def _marks(note: str) -> tuple[list[str], int, int]:
    """What a note has in any language: links and names of files, and how many bold words and paragraphs."""
    names = re.findall(r"https?://[^)]+|\w+/[\w/]+|\w+\.safetensors|v[12]-[\w-]+", note, re.ASCII)
    return sorted(names), note.count("**"), note.count("\n\n")


def _read(language: str, file: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


def _flat(texts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Texts by the whole path of their keys."""
    flat: dict[str, str] = {}
    for key, text in texts.items():
        flat |= _flat(text, f"{prefix}{key}.") if isinstance(text, dict) else {f"{prefix}{key}": text}
    return flat


def _values(text: str) -> set[str]:
    return set(re.findall(r"\{\w+\}", text))
