"""What Apply DreamCache promises: when it changes nothing, when it does, and by how much."""

from __future__ import annotations

import pytest
import torch
from support.graph import Scene


def plain(server, **changes) -> torch.Tensor:
    scene = Scene(server)
    return scene.sample(scene.model, **changes)


def with_reference(server, **changes) -> torch.Tensor:
    scene = Scene(server)
    return scene.sample(scene.apply(scene.model, **changes))


def test_the_reference_changes_the_picture(server) -> None:
    assert not torch.equal(with_reference(server), plain(server))


def test_removing_the_node_leaves_nothing_behind(server) -> None:
    before = plain(server)
    with_reference(server)
    assert torch.equal(plain(server), before)


def test_strength_0_is_the_unpatched_model(server) -> None:
    assert torch.equal(with_reference(server, strength=0.0, image_guidance=3.0), plain(server))


def test_outside_the_percent_range_it_is_the_unpatched_model(server) -> None:
    # 4 steps are evaluated at 0, 33, 67 and 100 %.
    assert torch.equal(with_reference(server, start_percent=0.7, end_percent=0.9, image_guidance=3.0), plain(server))


def test_two_runs_are_identical(server) -> None:
    first = with_reference(server, image_guidance=2.0)
    server.free_memory()
    assert torch.equal(with_reference(server, image_guidance=2.0), first)


def test_strength_and_range_act_in_between(server) -> None:
    whole = (with_reference(server) - plain(server)).norm()
    assert 0 < (with_reference(server, strength=0.1) - plain(server)).norm() < whole
    assert not torch.equal(with_reference(server, end_percent=0.4), with_reference(server))
    assert not torch.equal(with_reference(server, end_percent=0.4), plain(server))


@pytest.mark.parametrize("resolution", [64, 136, 256])
def test_a_cache_of_one_size_drives_generation_at_another(server, resolution: int) -> None:
    scene = Scene(server, resolution=resolution)
    latents = scene.sample(scene.apply(scene.model))
    assert latents.shape == (1, 4, 16, 24)
    assert latents.isfinite().all()


def test_sizes_that_are_no_multiple_of_64_and_batches_work(server) -> None:
    scene = Scene(server)
    empty = scene.add("EmptyLatentImage", width=160, height=104, batch_size=3)
    latents = scene.sample(scene.apply(scene.model), latent_image=empty)
    assert latents.shape == (3, 4, 13, 20)
    # Each picture of a batch is the one that it would be alone, but for how the CPU splits larger matrices.
    scene = Scene(server)
    empty = scene.add("EmptyLatentImage", width=160, height=104, batch_size=1)
    alone = scene.sample(scene.apply(scene.model), latent_image=empty)
    torch.testing.assert_close(latents[:1], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_conditioned_rows_leave_the_negative_prompt_as_it_was(server) -> None:
    # At a CFG of 0 only the negative prompt's prediction counts.
    scene = Scene(server)
    untouched = scene.sample(scene.model, cfg=0.0)
    scene = Scene(server)
    assert torch.equal(scene.sample(scene.apply(scene.model, rows="conditioned"), cfg=0.0), untouched)
    scene = Scene(server)
    assert not torch.equal(scene.sample(scene.apply(scene.model, rows="both"), cfg=0.0), untouched)


def test_image_guidance_is_the_papers_third_term(server) -> None:
    """One step of Euler from pure noise is linear in the guided prediction, so its three terms can be taken apart:

    D = D(no ref, neg) + s_text·(D(ref, text) − D(ref, neg)) + s_image·(D(ref, neg) − D(no ref, neg))
    """

    def step(text_guidance: float, image_guidance: float = 1.0, reference: bool = True) -> torch.Tensor:
        scene = Scene(server)
        model = scene.apply(scene.model, image_guidance=image_guidance) if reference else scene.model
        return scene.sample(model, cfg=text_guidance, steps=1)

    neither, both = step(0.0, reference=False), step(1.0)
    reference = step(0.0)
    expected = neither + 4.0 * (both - reference) + 2.5 * (reference - neither)
    torch.testing.assert_close(step(4.0, 2.5), expected, rtol=1e-4, atol=1e-3)


def test_two_applies_add_up_in_either_order(server) -> None:
    def pair(first: float, second: float) -> torch.Tensor:
        scene = Scene(server)
        other = scene.encode(timestep=300, seed=7)
        caches = {0.7: scene.reference, 0.4: other}
        model = scene.apply(scene.model, strength=first, reference_cache=caches[first])
        return scene.sample(scene.apply(model, strength=second, reference_cache=caches[second]))

    one = pair(0.7, 0.4)
    torch.testing.assert_close(one, pair(0.4, 0.7), rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    assert not torch.equal(one, with_reference(server, strength=0.7))
