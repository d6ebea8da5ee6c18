"""DINO, CLIP-I and CLIP-T: the scores are what one computes by hand."""

from __future__ import annotations

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.dino import VisionTransformer
from dreamcache.dreamcache_core.evaluation.metrics import MaskedImage, MetricNetworks, SubjectMetrics, mean_scores
from dreamcache.dreamcache_core.io.images import to_tensor
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image


class ByColour:
    """Encoders whose vectors one can work out: a picture's mean colour, and the colour that a prompt names."""

    description = "mean colours"

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=(0, 1))

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        return torch.tensor([float(prompt == colour) for colour in ("red", "green", "blue")])


class ByVisionTransformer:
    """A small network with weights at random."""

    description = "a small ViT"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._network = VisionTransformer(width=64, depth=2, hidden=128, patch=16, side=64).eval()

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self._network(self._network.preprocess(image.unsqueeze(0)))[0]


def plain(*colour: float, mask: torch.Tensor | None = None) -> MaskedImage:
    return MaskedImage(torch.tensor(colour, dtype=torch.float32).expand(4, 4, 3), mask)


@pytest.fixture
def photograph() -> torch.Tensor:
    return to_tensor(Image.open(PHOTOGRAPH).convert("RGB"))


def test_scores_are_mean_cosines_with_all_references_and_with_the_prompt() -> None:
    networks = MetricNetworks(dino=ByColour(), clip_image=ByColour(), clip_text=ByColour())
    metrics = SubjectMetrics(networks, [plain(1, 0, 0), plain(0, 0.5, 0)])
    # Cosines of (3, 4, 0) / 5 with red and with green.
    scores = metrics.measure(plain(0.6, 0.8, 0), "green")
    assert scores == pytest.approx({"DINO": 0.7, "CLIP-I": 0.7, "CLIP-T": 0.8})
    assert mean_scores([scores, {"DINO": 0.1}]) == pytest.approx({"DINO": 0.4, "CLIP-I": 0.7, "CLIP-T": 0.8})


def test_masked_scores_are_of_the_subject_on_white() -> None:
    half = torch.zeros(4, 4)
    half[:, :2] = 1
    metrics = SubjectMetrics(MetricNetworks(dino=ByColour()), [plain(1, 0, 0, mask=half), plain(0, 0, 1)])
    # Half red, half white is (2, 1, 1) / √6; half green, half white (1, 2, 1) / √6. The second reference has no mask.
    scores = metrics.measure(plain(0, 1, 0, mask=half))
    assert scores == pytest.approx({"DINO": 0, "DINO masked": 5 / 6}, abs=1e-6)


def test_only_what_can_be_measured_is() -> None:
    metrics = SubjectMetrics(MetricNetworks(clip_image=ByColour(), clip_text=ByColour()), [plain(1, 0, 0)])
    assert metrics.measure(plain(1, 0, 0, mask=torch.ones(4, 4))).keys() == {"CLIP-I"}
    with pytest.raises(DreamCacheError, match="no reference"):
        SubjectMetrics(MetricNetworks(dino=ByColour()), [])


def test_a_picture_is_like_itself_and_masked_it_is_whatever_its_background(photograph: torch.Tensor) -> None:
    mask = torch.zeros(photograph.shape[:2])
    mask[100:300, 200:400] = 1
    reference = MaskedImage(photograph, mask)
    metrics = SubjectMetrics(MetricNetworks(dino=ByVisionTransformer()), [reference])
    assert metrics.measure(reference) == pytest.approx({"DINO": 1, "DINO masked": 1})

    elsewhere = torch.where(mask.bool().unsqueeze(-1), photograph, photograph.flip(0, 1, 2))
    scores = metrics.measure(MaskedImage(elsewhere, mask))
    assert scores["DINO masked"] == pytest.approx(1)
    assert scores["DINO"] < 0.99
    another = torch.where(mask.bool().unsqueeze(-1), photograph.flip(0, 1, 2), photograph)
    assert metrics.measure(MaskedImage(another, mask))["DINO masked"] < 0.99


def test_a_network_that_overflows_is_named() -> None:
    with pytest.raises(DreamCacheError, match="The embedding of an image by mean colours contains NaN or infinity"):
        SubjectMetrics(MetricNetworks(dino=ByColour()), [plain(float("nan"), 0, 0)])

    class Overflows(ByColour):
        def encode_prompt(self, prompt: str) -> torch.Tensor:
            return torch.full((3,), float("inf"))

    networks = MetricNetworks(clip_image=ByColour(), clip_text=Overflows())
    with pytest.raises(DreamCacheError, match="The embedding of a prompt by mean colours contains NaN or infinity"):
        SubjectMetrics(networks, [plain(1, 0, 0)]).measure(plain(1, 0, 0), "red")
