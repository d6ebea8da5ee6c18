"""Workflows as the front end saves them, turned into the prompts that a server runs.

The front end does this when one presses Run; here it is done without a browser. A test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.comfyui_server import ComfyUIServer, Prompt
from harness.environment import ROOT

FOLDER = ROOT / "workflows"
WORKFLOWS = {
    name: FOLDER / f"{title}.json"
    for name, title in (line.split(" = ") for line in (FOLDER / "names.txt").read_text().splitlines())
}
"""The templates by the names that links and code use, in the order in which people meet them."""
BASIC = WORKFLOWS["dreamcache_basic"]
DEMO = WORKFLOWS["dreamcache_demo"]
OWN_ATTENTION = ("none (the model's own attention)", "none (the model's own attention, all layers)")
"""The entries of Adapter Loader that need no file."""
PHOTOGRAPH = FOLDER / "input" / "dreamcache_coffee_cup.jpg"


def load_prompt(path: Path, object_info: Mapping[str, Any]) -> Prompt:
    """The prompt of a workflow file in UI format, with all its nodes switched on.

    `object_info`: the definitions of the server that it is for, which name the widgets. Notes are left out.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in object_info:
            inputs = dict(_widgets(object_info[node["type"]], node.get("widgets_values", [])))
            inputs |= {slot["name"]: origins[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def set_inputs(prompt: Prompt, class_type: str, **inputs: Any) -> None:
    """Change inputs of every node of a class."""
    for node in prompt.values():
        if node["class_type"] == class_type:
            node["inputs"] |= inputs


def basic_prompt(server: ComfyUIServer, checkpoint: str, adapter: str, photograph: Path = PHOTOGRAPH) -> Prompt:
    """The prompt of the basic workflow, for files that the server has and a photograph that it is given."""
    prompt = load_prompt(BASIC, server.object_info())
    set_inputs(prompt, "CheckpointLoaderSimple", ckpt_name=checkpoint)
    set_inputs(prompt, "DreamCacheAdapterLoader", adapter_name=adapter)
    set_inputs(prompt, "LoadImage", image=server.upload_image(photograph))
    return prompt


def demo_prompt(server: ComfyUIServer, subject: Path | None = None) -> Prompt:
    """The prompt of the demo model's workflow, with its own subject or another, on a transparent background."""
    prompt = load_prompt(DEMO, server.object_info())
    if subject:
        # Load Image's mask is white where a picture is transparent.
        prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": server.upload_image(subject)}}
        prompt["mask"] = {"class_type": "InvertMask", "inputs": {"mask": ["picture", 1]}}
        set_inputs(prompt, "DreamCacheEncodeReference", image=["picture", 0], mask=["mask", 0])
        set_inputs(prompt, "PreviewImage", images=["picture", 0])
    return prompt


def without_reference(prompt: Prompt) -> Prompt:
    """The same prompt with Apply DreamCache bypassed, as the front end bypasses a node, and without what needs one."""
    numbers = [number for number, node in prompt.items() if node["class_type"] == "ApplyDreamCache"]
    previews = [number for number, node in prompt.items() if node["class_type"] == "DreamCachePreviewAttention"]
    prompt = {number: node for number, node in prompt.items() if number not in previews}
    for number in numbers:
        model = prompt[number]["inputs"]["model"]
        for node in prompt.values():
            node["inputs"] = {name: model if value == [number, 0] else value for name, value in node["inputs"].items()}
    return prompt


def _widgets(definition: Mapping[str, Any], values: list[Any]) -> Iterator[tuple[str, Any]]:
    remaining = iter(values)
    inputs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
    for name, (kind, *rest) in inputs.items():
        options = rest[0] if rest else {}
        if not _is_widget(kind) or options.get("forceInput"):
            continue
        # Workflows of earlier versions lack the inputs that were added at the end.
        yield name, next(remaining, options.get("default"))
        # Two widgets have a second one beside them, which the server doesn't have: a seed, "control after
        # generate"; a picture, the upload button.
        is_seed = kind == "INT" and name in ("seed", "noise_seed")
        if options.get("control_after_generate", is_seed) or options.get("image_upload"):
            next(remaining)


def _is_widget(kind: Any) -> bool:
    # Nodes of the first schema give a combo's options in place of its type.
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
