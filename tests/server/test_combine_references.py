"""DreamCache Combine References in a real server: who reads which references, and how much each counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness.comfyui_server import ComfyUIServer, WorkflowError
from support.graph import Link, Scene, difference, failure, output
from support.miniature import models

# Of references. They differ in size, in how noisy they are, and so in what the model sees.
A = {"resolution": 128, "timestep": 1}
B = {"resolution": 64, "timestep": 400}


def combined(scene: Scene, *references: Link, mode: str = "concatenate", strengths: str = "") -> Link:
    named = {f"references.reference_{number}": reference for number, reference in enumerate(references, 1)}
    return scene.add("DreamCacheCombineReferences", mode=mode, strengths=strengths, **named)


def drawn(server: ComfyUIServer, *references: dict[str, int], batch: int = 1, **how: Any) -> torch.Tensor:
    """With these references, combined."""
    scene = Scene(server)
    reference = combined(scene, *(scene.encode(**each) for each in references), **how)
    return sample(scene, reference, batch)


def sample(scene: Scene, reference: Link, batch: int = 1) -> torch.Tensor:
    empty = scene.add("EmptyLatentImage", width=192, height=128, batch_size=batch)
    return scene.sample(scene.apply(scene.model, reference_cache=reference), latent_image=empty)


def alone(server: ComfyUIServer, reference: dict[str, int], batch: int = 1) -> torch.Tensor:
    scene = Scene(server)
    return sample(scene, scene.encode(**reference), batch)


def failure_to_combine(server: ComfyUIServer, *references: dict[str, int], **how: Any) -> str:
    return failure(lambda: drawn(server, *references, **how))


def test_one_reference_combined_is_that_reference(server: ComfyUIServer) -> None:
    expected = alone(server, A)
    for mode in ("concatenate", "average", "one per latent"):
        assert torch.equal(drawn(server, A, mode=mode), expected)


def test_all_references_are_read_in_any_order(server: ComfyUIServer) -> None:
    both = drawn(server, A, B)
    for reference in (A, B):
        assert difference(alone(server, reference), both) > 1e-3
    assert difference(drawn(server, B, A), both) < 1e-4


def test_references_without_strengths_and_of_strength_1_are_the_same_to_the_bit(server: ComfyUIServer) -> None:
    assert torch.equal(drawn(server, A, B, strengths="1, 1.0"), drawn(server, A, B))


def test_a_reference_of_strength_2_is_as_one_that_is_there_twice(server: ComfyUIServer) -> None:
    twice = drawn(server, A, B, B)
    assert difference(drawn(server, A, B, strengths="1, 2"), twice) < 1e-4
    assert difference(drawn(server, A, B), twice) > 1e-3


def test_a_reference_of_strength_0_is_as_one_that_is_not_there(server: ComfyUIServer) -> None:
    for mode in ("concatenate", "average"):
        assert torch.equal(drawn(server, A, B, strengths="1, 0", mode=mode), alone(server, A))


def test_strengths_are_those_of_the_inputs_in_the_order_of_their_names(server: ComfyUIServer) -> None:
    scene = Scene(server)
    named = {"references.reference_2": scene.encode(**B), "references.reference_1": scene.encode(**A)}
    reference = scene.add("DreamCacheCombineReferences", mode="concatenate", strengths="1, 0", **named)
    assert torch.equal(sample(scene, reference), alone(server, A))


def test_combinations_can_be_combined(server: ComfyUIServer) -> None:
    scene = Scene(server)
    a, b = scene.encode(**A), scene.encode(**B)
    nested = combined(scene, combined(scene, a, b, strengths="1, 0.5"), a, strengths="0.5, 0.25")
    assert difference(sample(scene, nested), drawn(server, A, B, A, strengths="0.5, 0.25, 0.25")) < 1e-6


def test_an_average_lies_between_its_references(server: ComfyUIServer) -> None:
    other = {**A, "timestep": 400}
    assert difference(drawn(server, A, A, mode="average"), alone(server, A)) < 1e-4
    mean = drawn(server, A, other, mode="average")
    near = drawn(server, A, other, mode="average", strengths="9, 1")
    assert 0 < difference(near, alone(server, A)) < difference(mean, alone(server, A))


def test_each_latent_of_a_batch_reads_its_own_reference_whatever_its_size(server: ComfyUIServer) -> None:
    paired = drawn(server, A, B, batch=2, mode="one per latent")
    tolerance = 1e-4 * float(paired.abs().max())
    for number, reference in enumerate((A, B)):
        expected = alone(server, reference, batch=2)[number]
        torch.testing.assert_close(paired[number], expected, rtol=1e-4, atol=tolerance)


def test_a_batch_of_pictures_can_be_paired_too(server: ComfyUIServer) -> None:
    def first(mode: str) -> torch.Tensor:
        scene = Scene(server)
        flipped = scene.add("ImageFlip", image=scene.image, flip_method="y-axis: horizontally")
        pictures = scene.add("ImageBatch", image1=scene.image, image2=flipped)
        return sample(scene, combined(scene, scene.encode(image=pictures), mode=mode), batch=2)[0]

    expected = alone(server, A, batch=2)[0]
    assert difference(first("one per latent"), expected) < 1e-4
    assert difference(first("concatenate"), expected) > 1e-3


# --- Wrong use -------------------------------------------------------------------------------------------------------


def test_one_reference_per_latent_needs_as_many_latents(server: ComfyUIServer) -> None:
    with pytest.raises(WorkflowError, match=r"There are 2 references, one for each latent, and 3 latents in the batch"):
        drawn(server, A, B, batch=3, mode="one per latent")


def test_references_of_several_sizes_have_no_average(server: ComfyUIServer) -> None:
    message = failure_to_combine(server, A, B, mode="average")
    assert "The references have different sizes (64×64 and 128×128 pixels)" in message


def test_references_of_several_base_models_are_refused(server: ComfyUIServer) -> None:
    scene = Scene(server)
    other = scene.add("MiniatureModel", structure="sd21", seed=models.SEED)
    own = {"model": other, "clip": output(other, 1), "vae": output(other, 2)}
    reference = combined(scene, scene.reference, scene.encode(**own))
    message = failure(lambda: sample(scene, reference))
    assert "encoded with different base models" in message


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ("1, much", "is not a list of strengths: write numbers from 0 to 10"),
        ("1, -1", "is not a list of strengths"),
        ("nan", "is not a list of strengths"),
        ("1, 1, 1", "There are 3 strengths for 2 references"),
        ("0, 0", "All references have a strength of 0"),
    ],
)
def test_strengths_that_are_none(server: ComfyUIServer, strengths: str, words: str) -> None:
    assert words in failure_to_combine(server, A, B, strengths=strengths)


def test_strengths_where_each_latent_reads_its_own(server: ComfyUIServer) -> None:
    assert "leave strengths empty" in failure_to_combine(server, A, B, mode="one per latent", strengths="1, 2")
