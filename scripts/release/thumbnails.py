"""The template browser's thumbnails: what each template does, drawn with the demo model.

`python3 scripts/release/thumbnails.py` draws them all, as is due after the demo model was trained again; with lasting
names of templates, only these. Pictures in a lower corner are the references.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.environment import ROOT, enter

ENVIRONMENT = enter()

from dreamcache.dreamcache_core.figures.attention_sheet import CAPTION as ATTENTION_CAPTION  # noqa: E402
from dreamcache.dreamcache_core.figures.attention_sheet import SIDE as ATTENTION_SIDE  # noqa: E402
from dreamcache.dreamcache_core.figures.reference_sheet import CAPTION, COLUMNS  # noqa: E402
from dreamcache.dreamcache_core.figures.tile_sheet import Section, Tile, TileSheet  # noqa: E402
from harness.comfyui_server import ComfyUIServer, Prompt  # noqa: E402
from harness.workflow_prompt import WORKFLOWS, demo_prompt, load_prompt, set_inputs, without_reference  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

SUBJECTS = ROOT / "tests" / "support" / "subjects"
TURTLE = ROOT / "nodes" / "demo" / "subject.png"
SIDE = 384
INSET = 112
SEED = 42


@dataclass(frozen=True)
class Subject:
    """Of which the model has never been trained on a picture. `file`: None is the one that the demo node has."""

    name: str
    file: Path | None


DEMO = Subject("turtle", None)
KOALA = Subject("koala", SUBJECTS / "noto" / "1f428.png")
FLAMINGO = Subject("flamingo", SUBJECTS / "twemoji" / "1f9a9.png")
GORILLA = Subject("gorilla", SUBJECTS / "fluent" / "1f98d.png")
BISON = Subject("bison", SUBJECTS / "noto" / "1f9ac.png")
DOLPHIN = Subject("dolphin", SUBJECTS / "twemoji" / "1f42c.png")


class Artist:
    """Draws with the demo workflow on a running server."""

    def __init__(self, server: ComfyUIServer) -> None:
        self.server = server

    def prompt(self, subject: Subject, background: str, seed: int = SEED, **apply: Any) -> Prompt:
        prompt = demo_prompt(self.server, subject.file)
        set_inputs(prompt, "KSampler", seed=seed)
        set_inputs(prompt, "ApplyDreamCache", **apply)
        texts = [node for node in prompt.values() if node["class_type"] == "CLIPTextEncode" and node["inputs"]["text"]]
        texts[0]["inputs"]["text"] = f"a {subject.name} {background}"
        return prompt

    def run(self, prompt: Prompt) -> Image.Image:
        """The picture that a prompt saves or, if it has a node `sheet`, that this one shows."""
        result = self.server.run(prompt)
        if "sheet" in prompt:
            (image,) = result.outputs["sheet"]["images"]
        else:
            image = next(image for image in result.images if image["type"] == "output")
        return Image.open(self.server.download(image, self.server.base / "drawn.png")).convert("RGB")

    def draw(self, subject: Subject, background: str, seed: int = SEED, **apply: Any) -> Image.Image:
        return self.run(self.prompt(subject, background, seed, **apply))

    def draw_without(self, subject: Subject, background: str, seed: int = SEED) -> Image.Image:
        return self.run(without_reference(self.prompt(subject, background, seed)))


def personalised(
    subject: Subject, background: str, insets: int = 1, seed: int = SEED
) -> Callable[[Artist], Image.Image]:
    def draw(artist: Artist) -> Image.Image:
        shown = [paper(subject), ImageOps.mirror(paper(subject))][:insets]
        return with_insets(artist.draw(subject, background), shown)

    return draw


def cut_out(artist: Artist) -> Image.Image:
    busy = artist.draw_without(BISON, "in a forest")
    busy.paste(*cut(GORILLA, busy.size))
    return with_insets(artist.draw(GORILLA, "in the desert"), [busy])


def two_subjects(artist: Artist) -> Image.Image:
    """Both halves of one picture, each with its own reference."""
    prompt = artist.prompt(KOALA, "on a green meadow")
    other = artist.prompt(FLAMINGO, "on a green meadow")
    numbers = {node["class_type"]: number for number, node in prompt.items()}
    apply, encode = numbers["ApplyDreamCache"], numbers["DreamCacheEncodeReference"]
    sides = {}
    for side, x in (("left", 0), ("right", 128)):
        for name, value, width in (("black", 0.0, 256), ("white", 1.0, 128)):
            prompt[f"{side} {name}"] = {
                "class_type": "SolidMask",
                "inputs": {"value": value, "width": width, "height": 128},
            }
        inputs = {"destination": [f"{side} black", 0], "source": [f"{side} white", 0], "x": x, "y": 0}
        prompt[side] = {"class_type": "MaskComposite", "inputs": {**inputs, "operation": "add"}}
        sides[side] = [side, 0]
    prompt |= {f"other {number}": other[number] for number in ("picture", "mask", encode, apply)}
    inputs = prompt[f"other {encode}"]["inputs"]
    inputs |= {"image": ["other picture", 0], "mask": ["other mask", 0]}
    prompt["other mask"]["inputs"]["mask"] = ["other picture", 1]
    prompt[f"other {apply}"]["inputs"] |= {"model": [apply, 0], "reference_cache": [f"other {encode}", 0]}
    prompt[apply]["inputs"]["region"] = sides["left"]
    prompt[f"other {apply}"]["inputs"]["region"] = sides["right"]
    set_inputs(prompt, "KSampler", model=[f"other {apply}", 0])
    set_inputs(prompt, "EmptyLatentImage", width=256)
    drawn = artist.run(prompt)
    return with_insets(ImageOps.pad(drawn, (SIDE, SIDE), color="white"), [paper(KOALA), paper(FLAMINGO)])


def by_strength(artist: Artist) -> Image.Image:
    return grid([paper(DEMO), *(artist.draw(DEMO, "in the desert", strength=strength) for strength in (0.3, 0.6, 1.0))])


def compared(artist: Artist) -> Image.Image:
    settings = itertools.product((0.5, 1.0), (1.0, 5.0))
    return grid([artist.draw(KOALA, "in the water", strength=one, image_guidance=two) for one, two in settings])


def looked_at(artist: Artist) -> Image.Image:
    """The image, the colour key, and the fine layers: where the image looks, and the heat map."""
    prompt = artist.prompt(DEMO, "on a sandy beach")
    numbers = {node["class_type"]: number for number, node in prompt.items()}
    sampler, decoder = prompt[numbers["KSampler"]]["inputs"], prompt[numbers["VAEDecode"]]["inputs"]
    inputs = {"model": sampler["model"], "positive": sampler["positive"], "vae": decoder["vae"]}
    inputs |= {
        "image": [numbers["VAEDecode"], 0],
        "start_percent": 0.3,
        "end_percent": 0.9,
        "noise_levels": 1,
        "seed": 0,
    }
    prompt["sheet"] = {"class_type": "DreamCachePreviewAttention", "inputs": inputs}
    sheet = artist.run(prompt)
    columns = sheet.width // ATTENTION_SIDE
    sections = [Section("title", [Tile("label", None)] * columns)] * 2
    looks, heat = cropped(sheet, TileSheet(ATTENTION_CAPTION, sections, columns, ATTENTION_SIDE))
    return grid([looks[0], heat[0], looks[-1], heat[-1]])


def encoded(artist: Artist) -> Image.Image:
    """The reference and what the model sees in it, from fine to coarse."""
    tiles = TileSheet(CAPTION, [Section("", [Tile("reference", None), *[Tile("one\ntwo", None)] * 8])], COLUMNS)
    prompt = artist.prompt(FLAMINGO, "")
    (encoder,) = (number for number, node in prompt.items() if node["class_type"] == "DreamCacheEncodeReference")
    preview = {"class_type": "DreamCachePreviewReferenceCache", "inputs": {"reference_cache": [encoder, 0]}}
    (pictures,) = cropped(artist.run({**prompt, "sheet": preview}), tiles)
    return grid([pictures[number] for number in (0, 1, 2, 8)])


def made_for_training(artist: Artist) -> Image.Image:
    subjects = zip(
        (KOALA, BISON, DOLPHIN, GORILLA), ("in a pink room", "at sunset", "in the water", "in a forest"), strict=True
    )
    return grid([artist.draw_without(subject, background) for subject, background in subjects])


def trained(artist: Artist) -> Image.Image:
    """Two references, each beside what the trained adapter draws."""
    pictures = [(paper(one), artist.draw(one, "on grey cobblestones")) for one in (BISON, DOLPHIN)]
    return grid([picture for pair in pictures for picture in pair])


def shown_by(class_type: str, template: str) -> Callable[[Artist], Image.Image]:
    """What the last node of a class shows when the template is run: a sheet, or a picture with its references."""

    def draw(artist: Artist) -> Image.Image:
        prompt = load_prompt(WORKFLOWS[template], artist.server.object_info())
        artist.server.free_memory()  # Nodes that have nothing to do show nothing.
        outputs = artist.server.run(prompt).outputs
        shown = [outputs[number]["images"][-1] for number, node in prompt.items() if node["class_type"] == class_type]
        picture = Image.open(artist.server.download(shown[-1], artist.server.base / "drawn.png")).convert("RGB")
        square = ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.LANCZOS, "white")
        encoded = [jpeg for output in outputs.values() for jpeg in output.get("dreamcache_thumbnails", [])]
        references = [Image.open(io.BytesIO(base64.b64decode(jpeg))).convert("RGB") for jpeg in encoded]
        return with_insets(square, references or [paper(DEMO)]) if class_type == "SaveImage" else square

    return draw


THUMBNAILS: dict[str, Callable[[Artist], Image.Image]] = {
    "dreamcache_demo": personalised(DEMO, "on a snowy field"),
    "dreamcache_basic": personalised(KOALA, "in a forest"),
    "dreamcache_sd21": personalised(FLAMINGO, "on a sandy beach"),
    "dreamcache_subject_mask": cut_out,
    "dreamcache_several_references": personalised(BISON, "in the mountains", insets=2),
    "dreamcache_two_subjects": two_subjects,
    "dreamcache_strengths": by_strength,
    "dreamcache_compare": compared,
    "dreamcache_attention": looked_at,
    "dreamcache_save_reference": encoded,
    "dreamcache_saved_reference": personalised(DOLPHIN, "at sunset"),
    "dreamcache_lora_controlnet": personalised(DEMO, "on a red checkered tablecloth"),
    "dreamcache_make_triplets": made_for_training,
    "dreamcache_train_adapter": trained,
}
# Templates on the demo model. In this order, because one saves what the next loads.
for _feature, _class_type in (
    ("several_references", "SaveImage"),
    ("two_subjects", "SaveImage"),
    ("strengths", "SaveImage"),
    ("compare", "DreamCacheCompare"),
    ("attention", "DreamCachePreviewAttention"),
    ("save_reference", "DreamCachePreviewReferenceCache"),
    ("saved_reference", "SaveImage"),
    ("train_adapter", "PreviewImage"),
):
    THUMBNAILS[f"dreamcache_demo_{_feature}"] = shown_by(_class_type, f"dreamcache_demo_{_feature}")


def cropped(sheet: Image.Image, tiles: TileSheet) -> list[list[Image.Image]]:
    """The pictures in a sheet, section by section. `tiles`: a sheet with as many tiles, and as many lines of text."""
    if tiles.draw().size != sheet.size:
        raise ValueError(f"A sheet of {sheet.size} isn't laid out like one of {tiles.draw().size}.")
    return [[sheet.crop(box) for box in boxes] for boxes in tiles.boxes()]


def cut(subject: Subject, size: tuple[int, int]) -> tuple[Image.Image, None, Image.Image]:
    """The subject with its opacity as a mask, as `Image.paste` takes them."""
    image = Image.open(subject.file or TURTLE).convert("RGBA").resize(size)
    return image.convert("RGB"), None, image.getchannel("A")


def paper(subject: Subject) -> Image.Image:
    """The subject on white."""
    white = Image.new("RGB", (SIDE, SIDE), "white")
    white.paste(*cut(subject, white.size))
    return white


def with_insets(picture: Image.Image, references: Sequence[Image.Image]) -> Image.Image:
    """A picture as large as a thumbnail, with its references in the lower left corner."""
    thumbnail = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    for number, reference in enumerate(references):
        framed = ImageOps.expand(reference.resize((INSET, INSET), Image.Resampling.LANCZOS), 3, "#333333")
        thumbnail.paste(framed, (8 + number * (framed.width + 8), SIDE - framed.height - 8))
    return thumbnail


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Four pictures."""
    side = SIDE // 2
    thumbnail = Image.new("RGB", (SIDE, SIDE), "white")
    for number, picture in enumerate(pictures):
        thumbnail.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (number % 2 * side, number // 2 * side))
    return thumbnail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=list(THUMBNAILS), help="which to draw, of: " + ", ".join(THUMBNAILS)
    )
    with ComfyUIServer(ENVIRONMENT, {"dreamcache": ROOT}) as server:
        artist = Artist(server)
        for name in parser.parse_args().names:
            path = WORKFLOWS[name].with_suffix(".jpg")
            THUMBNAILS[name](artist).save(path, optimize=True, quality=82)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
