"""DreamCache Evaluate in a real server: a graph's pictures are measured as the command measures them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.evaluation.metrics import METRICS, MaskedImage, MetricNetworks, SubjectMetrics
from dreamcache.dreamcache_core.io.images import to_tensor
from dreamcache.nodes.host import encoders
from harness.comfyui_server import ComfyUIServer, Result
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from support.graph import Graph, Link, failure, output
from support.miniature import models
from support.small_networks import new_dino, write

DINO = "small_dino.safetensors"
REFERENCE = "reference.png"


@pytest.fixture(scope="module", autouse=True)
def inputs(server: ComfyUIServer) -> None:
    Image.open(PHOTOGRAPH).save(server.base / "input" / REFERENCE)
    (server.base / "models" / "clip_vision").mkdir(exist_ok=True)
    write(new_dino(), server.base / "models" / "clip_vision" / DINO)


class Measurement(Graph):
    """An Evaluate node: one picture, measured against another."""

    def __init__(self, server: ComfyUIServer, **changes: object) -> None:
        super().__init__(server)
        self.image = self.add("LoadImage", image="example.png")
        self.reference = self.add("LoadImage", image=REFERENCE)
        self.clip = output(self.add("MiniatureModel", structure="sd15", seed=models.SEED), 1)
        self.clip_vision = self.add("MiniatureClipVision", structure="sd15", seed=models.SEED)
        inputs = {"image": self.image, "reference": self.reference, "dino": DINO}
        self.node = self.add("DreamCacheEvaluate", **{**inputs, **changes})

    def connect(self, **inputs: object) -> Measurement:
        self.prompt[self.node[0]]["inputs"].update(inputs)
        return self

    def run(self) -> tuple[list[str], Result]:
        """What the node says, line for line, with its numbers after that."""
        texts = [self.add("PreviewAny", source=output(self.node, number))[0] for number in range(len(METRICS) + 1)]
        self.add("PreviewImage", images=output(self.node, len(METRICS) + 1))
        result = self.server.run(self.prompt)
        text, *numbers = (result.outputs[node]["text"][0] for node in texts)
        return [*text.splitlines(), *numbers], result


def test_a_graphs_pictures_are_measured(server: ComfyUIServer, tmp_path: Path) -> None:
    scores = Measurement(server)
    scores.connect(clip_vision=scores.clip_vision, clip=scores.clip, prompt="a dog on a beach")
    scores.connect(mask=output(scores.image, 1), reference_mask=output(scores.reference, 1))
    (summary, *_, dino, clip_i, clip_t, _, _), result = scores.run()

    clip = encoders.clip_image_encoder(models.clip_vision("sd15"))
    text = encoders.ClipTextEncoder(models.clip("sd15"), clip)
    networks = MetricNetworks(encoders.load_dino(server.base / "models" / "clip_vision" / DINO), clip, text)
    drawn, reference = (
        MaskedImage(to_tensor(Image.open(path).convert("RGB")))
        for path in (server.base / "input" / name for name in ("example.png", REFERENCE))
    )
    expected = SubjectMetrics(networks, [reference]).measure(drawn, "a dog on a beach")
    told = {"DINO": float(dino), "CLIP-I": float(clip_i), "CLIP-T": float(clip_t)}
    assert told == pytest.approx(expected, abs=1e-3)
    assert summary.startswith(f"DINO {told['DINO']:.3f}, CLIP-I {told['CLIP-I']:.3f}, CLIP-T ")
    assert "DINO masked" in summary
    (sheet,) = result.images
    width, height = Image.open(server.download(sheet, tmp_path / "sheet.png")).size
    assert height > width


def test_what_is_not_measured_is_no_number(server: ComfyUIServer) -> None:
    itself = Measurement(server)
    (summary, network, *numbers), _ = itself.connect(image=itself.reference).run()
    assert summary == "DINO 1.000"
    assert re.fullmatch(r"DINO: DINO ViT/16, 3 layers, small_dino\.safetensors \([0-9a-f]{12}\)", network)
    assert float(numbers[0]) == pytest.approx(1, abs=1e-5)
    assert all(math.isnan(float(number)) for number in numbers[1:])


def test_wrong_use_is_refused_in_a_sentence(server: ComfyUIServer) -> None:
    def refusal(**inputs: str) -> str:
        """`inputs`: those of the node, as attributes of the graph, or as they are."""
        graph = Measurement(server)
        graph.connect(**{name: getattr(graph, value, value) for name, value in inputs.items()})
        return failure(graph.run)

    def empty(graph: Graph) -> Link:
        return graph.add("MiniatureImages", count=0, height=8, width=8, channels=3)

    assert "There is no network to score with" in refusal(dino="none")
    assert "connect Load CLIP Vision too" in refusal(clip="clip", prompt="a dog")
    assert "The prompt is empty" in refusal(clip="clip", clip_vision="clip_vision")
    assert "2 lines of prompts for 1 images" in refusal(prompt="a dog\na cat")

    graph = Measurement(server)
    assert "The batch of references is empty" in failure(graph.connect(reference=empty(graph)).run)
    graph = Measurement(server)
    other = graph.add("MiniatureClipVision", structure="sd21", seed=models.SEED)
    graph.connect(clip_vision=other, clip=graph.clip, prompt="a dog")
    assert "The text encoder belongs to another CLIP than the image encoder" in failure(graph.run)
