"""The pictures of the README, of the help pages and of the template browser, taken in ComfyUI's own front end.

`python3 scripts/screenshots.py` makes them all anew, as is due after a change of a workflow or of a node's inputs.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from environment import ROOT, enter

ENVIRONMENT = enter()

import torch  # noqa: E402
from comfyui_server import ComfyUIServer  # noqa: E402
from front_end import ADAPTER, WORKFLOWS, Box, FrontEnd, Workflow, open_front_end, place_models  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from workflow_prompt import PHOTOGRAPH  # noqa: E402

from dreamcache_core import Adapter, TransformerLayer, save_adapter  # noqa: E402

IMAGES = ROOT / "web" / "docs" / "images"
CLOSE_UPS = {
    "dreamcache_basic": {
        "DreamCacheEncodeReference": "encode_reference.png",
        "DreamCacheAdapterLoader": "adapter_loader.png",
        "ApplyDreamCache": "apply.png",
    },
    "dreamcache_make_triplets": {
        "DreamCachePromptSource": "prompt_source.png",
        "DreamCacheSaveTriplet": "save_triplet.png",
    },
    "dreamcache_train_adapter": {
        "DreamCacheTrainAdapter": "train_adapter.png",
        "DreamCacheSaveAdapter": "save_adapter.png",
    },
}
# Of nodes that are in none of the workflows.
ALONE = {
    "DreamCacheEvaluate": "evaluate.png",
    "DreamCacheStrengths": "strengths.png",
    "DreamCacheGuider": "guider.png",
    "DreamCacheOneNode": "one_node.png",
    "DreamCacheCombineReferences": "combine_references.png",
    "DreamCacheSaveReferenceCache": "save_reference_cache.png",
    "DreamCacheLoadReferenceCache": "load_reference_cache.png",
    "DreamCachePreviewReferenceCache": "preview_reference_cache.png",
    "DreamCachePreviewAttention": "preview_attention.png",
    "DreamCacheCompare": "compare.png",
}
# Of SD1.x, as Adapter Loader tells of them.
WIDTHS = {"middle_block.1": 1280, "output_blocks.4.1": 1280}
WIDTHS |= {"output_blocks.6.1": 640, "output_blocks.8.1": 640, "output_blocks.10.1": 320}
LAYERS = [TransformerLayer(name, width, heads=8) for name, width in WIDTHS.items()]
# Of workflows whose subject says less of them than another group: what their thumbnail shows.
SHOWN = {
    "dreamcache_attention": "What the model sees in it, and where it looks",
    "dreamcache_compare": "Every combination",
}
README_WIDTH = 1400
THUMBNAIL_WIDTH = 512
LEGIBLE = 920
"""How much of a graph a thumbnail can show."""
MARGIN = 12
# Ellipses over the photograph, as someone with a brush would cover the cup and its handle.
PAINTED = [(168, 14, 412, 212), (172, 100, 404, 288), (194, 226, 268, 310)]


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with ComfyUIServer(ENVIRONMENT, {"dreamcache": ROOT}) as server:
        place_models(server)
        save_adapter(server.base / "models" / "dreamcache" / ADAPTER, Adapter(LAYERS, "SD1.x"), torch.float16)
        for name, path in WORKFLOWS.items():
            # What the workflows load by this name. The picture that ComfyUI ships under it is a child's drawing.
            photograph(painted=name == "dreamcache_subject_mask").save(server.base / "input" / "example.png")
            # Of a new browser each: pictures of one workflow's nodes would haunt the next's.
            with open_front_end(server) as front_end:
                workflow = json.loads(path.read_text(encoding="utf-8"))
                front_end.load(workflow)
                front_end.hide_menus()
                front_end.show_output("DreamCacheSaveTriplet", "example.png")
                # Twice as large as it is kept: the front end leaves out texts that it would have to draw very small.
                thumbnail = front_end.picture(thumbnail_box(workflow, SHOWN.get(name)), 2 * THUMBNAIL_WIDTH)
                save(thumbnail, path.with_suffix(".jpg"), THUMBNAIL_WIDTH)
                if name == "dreamcache_basic":
                    save(front_end.picture(graph_box(workflow), README_WIDTH), IMAGES / "basic.png")
                for class_type, file in CLOSE_UPS.get(name, {}).items():
                    take_close_up(front_end, class_type, IMAGES / file)
        with open_front_end(server) as front_end:
            front_end.load_blank()
            front_end.hide_menus()
            for number, (class_type, file) in enumerate(ALONE.items()):
                front_end.add(class_type, (1000.0 * number, 0.0))
                take_close_up(front_end, class_type, IMAGES / file)


def photograph(painted: bool) -> Image.Image:
    """The photograph, and where it is painted on as the mask editor saves that: transparent."""
    image = Image.open(PHOTOGRAPH)
    if painted:
        mask = Image.new("L", image.size, 255)
        for ellipse in PAINTED:
            ImageDraw.Draw(mask).ellipse(ellipse, fill=0)
        image.putalpha(mask)
    return image


def take_close_up(front_end: FrontEnd, class_type: str, path: Path) -> None:
    """A node at one and a half of its size, with as much around it as shows what is connected to it."""
    box = grown(front_end.box(class_type), 30)
    save(front_end.picture(box, round(1.5 * box[2])), path)


def graph_box(workflow: Workflow) -> Box:
    boxes = [group["bounding"] for group in workflow["groups"]]
    boxes += [[*node["pos"], *node["size"]] for node in workflow["nodes"]]
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    return grown((left, top, right - left, bottom - top), MARGIN)


def thumbnail_box(workflow: Workflow, shown: str | None = None) -> Box:
    """The lower left corner of the graph, where the subject is: a square from as high a group as leaves it legible. Or
    of the group of that title.
    """
    for group in workflow["groups"]:
        if group["title"] == shown:
            left, top, _, side = grown(tuple(group["bounding"]), MARGIN)
            return left, top, side, side
    left, top, _, height = graph_box(workflow)
    bottom = top + height
    heights = [bottom - group["bounding"][1] + MARGIN for group in workflow["groups"]]
    side = max(height for height in heights if height < LEGIBLE)
    return left, bottom - side, side, side


def grown(box: Box, margin: float) -> Box:
    x, y, width, height = box
    return x - margin, y - margin, width + 2 * margin, height + 2 * margin


def save(picture: bytes, path: Path, width: int | None = None) -> None:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if width:
        image = image.resize((width, round(image.height * width / image.width)))
    image.save(path, optimize=True, quality=88)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
