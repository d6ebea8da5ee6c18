"""The pictures of the README and of the help pages, taken in ComfyUI's own front end.

`python3 scripts/release/screenshots.py` takes them all, as is due after a change of a workflow or of a node's inputs;
with names of parts, only these.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.environment import ROOT, enter

ENVIRONMENT = enter()

import torch  # noqa: E402
from dreamcache.dreamcache_core.adapter.file import save_adapter  # noqa: E402
from dreamcache.dreamcache_core.adapter.network import Adapter  # noqa: E402
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache, Source  # noqa: E402
from dreamcache.dreamcache_core.reference.file import save_references  # noqa: E402
from dreamcache.dreamcache_core.reference.thumbnails import make_thumbnail  # noqa: E402
from dreamcache.dreamcache_core.unet import TransformerLayer  # noqa: E402
from harness.comfyui_server import ComfyUIServer  # noqa: E402
from harness.front_end import (  # noqa: E402
    ADAPTER,
    REFERENCES,
    WORKFLOWS,
    Box,
    FrontEnd,
    Point,
    Workflow,
    open_front_end,
    place_models,
)
from harness.workflow_prompt import PHOTOGRAPH  # noqa: E402
from PIL import Image  # noqa: E402

IMAGES = ROOT / "web" / "docs" / "images"
CLOSE_UPS = {
    "dreamcache_basic": {
        "DreamCacheAdapterLoader": "adapter_loader.png",
        "ApplyDreamCache": "apply.png",
    },
    "dreamcache_make_triplets": {"DreamCachePromptSource": "prompt_source.png"},
}
# Of nodes that show what they have made, in templates that run on the demo model.
AFTER_A_RUN = {
    "dreamcache_demo_save_reference": {
        "DreamCacheEncodeReference": "encode_reference.png",
        "DreamCachePreviewReferenceCache": "preview_reference_cache.png",
        "DreamCacheSaveReferenceCache": "save_reference_cache.png",
    },
    "dreamcache_demo_attention": {"DreamCachePreviewAttention": "preview_attention.png"},
    "dreamcache_demo_compare": {"DreamCacheCompare": "compare.png"},
    "dreamcache_demo_train_adapter": {
        "DreamCacheSaveTriplet": "save_triplet.png",
        "DreamCacheTrainAdapter": "train_adapter.png",
        "DreamCacheSaveAdapter": "save_adapter.png",
    },
}
# Of nodes that are in none of the workflows.
ALONE = {
    "DreamCacheDemoModel": "demo_model.png",
    "DreamCacheEvaluate": "evaluate.png",
    "DreamCacheStrengths": "strengths.png",
    "DreamCacheGuider": "guider.png",
    "DreamCacheOneNode": "one_node.png",
    "DreamCacheCombineReferences": "combine_references.png",
    "DreamCacheLoadReferenceCache": "load_reference_cache.png",
}
# Of SD1.x, as Adapter Loader tells of them.
WIDTHS = {"middle_block.1": 1280, "output_blocks.4.1": 1280}
WIDTHS |= {"output_blocks.6.1": 640, "output_blocks.8.1": 640, "output_blocks.10.1": 320}
LAYERS = [TransformerLayer(name, width, heads=8) for name, width in WIDTHS.items()]
README_WIDTH = 1400
COLOURS = 256
"""Of a picture with results, which is a third as large for that."""
TITLE = 30
"""Height of a node's title, which is above its place."""
WIDE = 600
"""Pixels up to which a close-up is larger than its node."""
CAPTURE_SIZE = (900, 680)
MARGIN = 12


def main() -> None:
    parts = {"workflows": take_workflows, "results": take_results, "nodes": take_nodes, "capture": take_capture}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), help="which to make, of: " + ", ".join(parts))
    wanted = parser.parse_args().parts
    IMAGES.mkdir(exist_ok=True)
    with ComfyUIServer(ENVIRONMENT, {"dreamcache": ROOT}) as server:
        place_models(server)
        save_adapter(server.base / "models" / "dreamcache" / ADAPTER, Adapter(LAYERS, "SD1.x"), torch.float16)
        mine, demos = (server.base / "models" / "dreamcache_references" / name for name in REFERENCES)
        save_references(mine, reference())
        demos.unlink()
        for part in wanted:
            parts[part](server)


def take_workflows(server: ComfyUIServer) -> None:
    for name in CLOSE_UPS:
        # Of a new browser each: pictures of one workflow's nodes would haunt the next's.
        with open_front_end(server) as front_end:
            workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
            front_end.load(workflow)
            front_end.hide_menus()
            if name == "dreamcache_basic":
                save(front_end.picture(graph_box(workflow), README_WIDTH), IMAGES / "basic.png")
            for class_type, file in CLOSE_UPS[name].items():
                take_close_up(front_end, class_type, IMAGES / file)


def take_results(server: ComfyUIServer) -> None:
    for name, close_ups in AFTER_A_RUN.items():
        with open_front_end(server) as front_end:
            front_end.load(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")))
            front_end.hide_menus()
            front_end.page.evaluate("app.queuePrompt(0)")
            server.wait_until_idle(600)
            for class_type, file in close_ups.items():
                front_end.page.wait_for_load_state("networkidle")
                take_close_up(front_end, class_type, IMAGES / file, COLOURS)


def take_nodes(server: ComfyUIServer) -> None:
    with open_front_end(server) as front_end:
        front_end.hide_menus()
        for class_type, file in ALONE.items():
            front_end.load_blank()
            front_end.add(class_type, (0.0, 0.0))
            front_end.page.wait_for_load_state("networkidle")
            take_close_up(front_end, class_type, IMAGES / file)


def take_capture(server: ComfyUIServer) -> None:
    """The animated capture of the README: a saved reference is dropped and wired, and its strengths are drawn."""
    frames: list[Image.Image] = []
    with open_front_end(server, CAPTURE_SIZE) as front_end, tempfile.TemporaryDirectory() as folder:
        page = front_end.page

        def film(times: int = 1) -> None:
            frames.extend([Image.open(io.BytesIO(page.screenshot())).convert("RGB")] * times)

        def drag(start: Point, end: Point) -> None:
            page.mouse.move(*start)
            page.mouse.down()
            for step in range(1, 7):
                page.mouse.move(*(a + (b - a) * step / 6 for a, b in zip(start, end, strict=True)))
                film()
            page.mouse.up()
            film(3)

        front_end.load_blank()
        front_end.hide_menus()
        page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] })")
        front_end.add("ApplyDreamCache", (540.0, 60.0))
        front_end.select("ApplyDreamCache")
        film(4)
        dropped = Path(folder, "my_cup.safetensors")
        save_references(dropped, reference())
        front_end.drop(dropped, (40.0, 60.0))
        page.locator(".dreamcache-note img").wait_for()
        page.wait_for_load_state("networkidle")
        film(8)
        front_end.add("DreamCacheStrengths", (160.0, 330.0))
        page.locator(".dreamcache-strengths circle").first.wait_for()
        film(5)
        strengths = front_end.slot("DreamCacheStrengths", "output", "strengths")
        drag(strengths, front_end.slot("ApplyDreamCache", "input", "strengths"))
        points = page.locator(".dreamcache-strengths circle")
        for number, by in ((1, 20), (2, -20), (3, 15), (4, 22)):
            box = points.nth(number).bounding_box()
            if box:
                start = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
                drag(start, (start[0], start[1] + by))
        film(12)
    path = IMAGES / "capture.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120, loop=0, quality=60, method=4)
    print(path.relative_to(ROOT), f"{path.stat().st_size / 1e6:.2f} MB")


def reference() -> ReferenceCache:
    """Of the photograph, as a file tells of it. It holds no features, which nobody looks at here."""
    features = {layer.name: torch.zeros(1, layer.channels, 1, 1) + 1 for layer in LAYERS}
    source = Source("5f3c2a917be4" + "0" * 52, patched=False, thumbnails=(make_thumbnail(Image.open(PHOTOGRAPH)),))
    return ReferenceCache((ReferenceBatch(features, "SD1.x", tuple(LAYERS), (64, 64), 1, "", source),))


def take_close_up(front_end: FrontEnd, class_type: str, path: Path, colours: int | None = None) -> None:
    """A node with as much around it as shows what is connected to it, larger than it is unless it is wide."""
    box = grown(front_end.box(class_type), 30)
    save(front_end.picture(box, min(round(1.5 * box[2]), max(round(box[2]), WIDE))), path, colours)


def graph_box(workflow: Workflow) -> Box:
    boxes = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append([x, y - TITLE, width, height + TITLE])
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    return grown((left, top, right - left, bottom - top), MARGIN)


def grown(box: Box, margin: float) -> Box:
    x, y, width, height = box
    return x - margin, y - margin, width + 2 * margin, height + 2 * margin


def save(picture: bytes, path: Path, colours: int | None = None) -> None:
    """`colours`: at most so many; None: all."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if colours:
        image = image.quantize(colours, kmeans=4)
    image.save(path, optimize=True)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
