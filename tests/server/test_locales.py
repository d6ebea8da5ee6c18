"""The languages of the pack: every node, input and text is in each of them, and the front end shows it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from harness.comfyui_server import ComfyUIServer
from harness.environment import ROOT
from harness.front_end import open_front_end

LANGUAGES = ("en", "de", "es", "fr", "ja", "ko", "ru", "zh")
# The front end that ComfyUI 0.30 brings has no German yet.
SHOWN = tuple(language for language in LANGUAGES if language != "de")
# Once is enough to see that they follow, and a reload takes seconds.
TITLES_SHOWN = ("zh", "fr")


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
    assert {key: _values(text) for key, text in translated.items()} == {
        key: _values(text) for key, text in english.items()
    }


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
            page.evaluate("id => app.extensionManager.setting.set('Comfy.Locale', id)", language)
            texts = _read(language, "nodeDefs")["ApplyDreamCache"]
            shown = {name: text["name"] for name, text in texts["inputs"].items()}
            page.wait_for_function(f"name => {_INPUT_NAMES}.strength === name", arg=shown["strength"])
            assert page.evaluate(_INPUT_NAMES) == shown
            if language not in TITLES_SHOWN:
                continue
            # Titles, of whatever pack, follow when the page is reloaded.
            page.reload()
            page.wait_for_function(
                """title => window.app?.extensionManager
                    && LiteGraph.registered_node_types.ApplyDreamCache?.title === title""",
                arg=texts["display_name"],
            )
        page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
        assert not front_end.errors


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
