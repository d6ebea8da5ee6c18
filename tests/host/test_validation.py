"""Validations: the gap between another's reference and the right one is 0 without looking, and grows with training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_recipe import artwork
from demo_recipe.scenes import reference
from demo_recipe.world import BACKGROUNDS, draw_scene
from dreamcache.dreamcache_core.adapter.network import untrained_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.batches import make_batches
from dreamcache.dreamcache_core.training.output_folder import TrainingFolder
from dreamcache.dreamcache_core.training.processes import Processes
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from dreamcache.dreamcache_core.training.triplets import Triplets, open_triplets
from dreamcache.dreamcache_core.training.validation import HeldOut, Validation, is_flat
from dreamcache.nodes.host import demo_network
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from harness.environment import ROOT
from PIL import Image
from safetensors.torch import load_file
from support.trainings import SETTINGS, batches, new_trainer, open_session, weights

SUBJECTS = Path(__file__).resolve().parents[1] / "support" / "subjects"
SCENES_OF_EACH = 4
HELD_OUT = 16


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Triplets:
    """Scenes of the demo world's held-out subjects, each with a reference of its own, in order of the subjects."""
    folder = tmp_path_factory.mktemp("triplets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artwork, "ARTWORK", SUBJECTS)
        for number, subject in enumerate(artwork.subjects()):
            for scene in range(SCENES_OF_EACH):
                random = np.random.default_rng([number, scene])
                drawn = draw_scene(subject, list(BACKGROUNDS)[(number + scene) % len(BACKGROUNDS)], random)
                pictures = {"generation": drawn.image, "reference": reference(subject, drawn.mirrored)}
                save_triplet(
                    folder, {kind: Image.fromarray(picture) for kind, picture in pictures.items()}, drawn.caption
                )
    return open_triplets(folder)


def test_the_gap_is_zero_without_looking_and_grows_in_a_short_training(triplets: Triplets) -> None:
    """The demo model, whose adapter begins at ignoring its reference: what it then sees, it has learned."""
    settings = TrainingSettings(steps=45, batch=8, learning_rate=2e-3, warm_up=10, ema=0.98, timestep_bias=1.0)
    networks = demo_network.demo_networks(load_file(ROOT / "nodes" / "demo" / "model.safetensors"))
    adapter = untrained_adapter(structure_of(networks.model), seed=0)
    base = ComfyUIBase(networks.model, networks.vae, networks.clip, adapter)
    base.load()
    trainer = Trainer(base, adapter, settings)
    unseen, rest = triplets.hold_out(HELD_OUT)
    held_out = HeldOut(unseen, settings, 128, together=8)

    before = held_out.validate(base, 0)
    assert before.gap == before.error == 0
    assert before.right == pytest.approx(before.none, rel=1e-4)
    gaps = []
    for progress in trainer.run(make_batches(rest, settings, 128)):
        if progress.step in (10, 45):
            with trainer.averaged_weights():
                gaps.append(held_out.validate(base, progress.step))
    middle, last = gaps
    assert last.gap > 2 * last.error
    assert last.gap > middle.gap
    assert last.right < last.none


@pytest.fixture
def unseen(triplets: Triplets) -> Triplets:
    return triplets.hold_out(5)[0]


def test_validating_leaves_training_as_it_was(unseen: Triplets, tmp_path: Path) -> None:
    straight, validated = new_trainer(), new_trainer()
    list(open_session(straight, tmp_path / "straight", 2).run(batches()))
    held_out = HeldOut(unseen, SETTINGS, 64, together=2)
    session = open_session(validated, tmp_path / "validated", 2, held_out=held_out)
    list(session.run(batches()))
    assert torch.equal(weights(validated), weights(straight))
    assert [validation.step for validation in session.validations] == [2, 4, 6]
    # Measured is what is used: the averaged weights.
    base, settled = new_trainer(), validated.averaged_adapter().state_dict()
    base.adapter.load_state_dict(settled)
    assert HeldOut(unseen, SETTINGS, 64, together=2).validate(base.base, 6) == session.validations[-1]


def test_processes_that_share_a_validation_measure_what_one_does(unseen: Triplets) -> None:
    trainer, shares = new_trainer(), []

    def share(losses: torch.Tensor) -> torch.Tensor:
        shares.append(losses)
        return torch.stack(shares).sum(0) / 2

    whole = HeldOut(unseen, SETTINGS, 64, together=2).validate(trainer.base, 1)
    for index in range(2):
        processes = Processes(index, 2, share)
        shared = HeldOut(unseen, SETTINGS, 64, together=2, processes=processes).validate(trainer.base, 1)
    for name, value in whole.to_json().items():
        assert shared.to_json()[name] == pytest.approx(value, rel=1e-4), name


def test_validations_are_kept_up_to_the_checkpoint_a_training_resumes_from(unseen: Triplets, tmp_path: Path) -> None:
    def train(last_step: int) -> list[Validation]:
        settings = replace(SETTINGS, steps=last_step)
        held_out = HeldOut(unseen, settings, 64, together=5)
        session = open_session(new_trainer(settings=settings), tmp_path, 2, held_out=held_out)
        list(session.run(batches(session.step, last_step)))
        return session.validations

    first = train(4)
    # A later one, whose checkpoint was lost.
    TrainingFolder(tmp_path).add_validation(replace(first[-1], step=5))
    assert train(6)[:2] == first
    assert [validation.step for validation in TrainingFolder(tmp_path).validations()] == [2, 4, 6]


def test_patience_ends_a_training_whose_gap_no_longer_grows(unseen: Triplets, tmp_path: Path) -> None:
    """Without a learning rate, it never does."""
    settings = replace(SETTINGS, learning_rate=0.0)

    def train(patience: int) -> int:
        held_out = HeldOut(unseen, settings, 64, together=5)
        session = open_session(new_trainer(settings=settings), tmp_path, 1, held_out=held_out, patience=patience)
        list(session.run(batches(session.step)))
        return session.step

    assert train(patience=2) == 3
    assert train(patience=2) == 3
    assert train(patience=0) == SETTINGS.steps


def test_growth_of_less_than_a_hundredth_is_none() -> None:
    def flat(*gaps: float) -> bool:
        return is_flat([Validation(step, 1.0, 1.0 + gap, 1.0, 0.0) for step, gap in enumerate(gaps)], patience=2)

    assert not flat(0.1, 0.1)
    assert flat(0.1, 0.1, 0.1005)
    assert not flat(0.1, 0.1, 0.102)
    assert not flat(0.1, 0.2, 0.15)


def test_what_is_held_out_is_not_trained_on_and_stays_the_same(triplets: Triplets, unseen: Triplets) -> None:
    _, rest = triplets.hold_out(5)
    assert (*unseen.names, *rest.names) == triplets.names
    with pytest.raises(DreamCacheError, match=r"^96 triplets can't be held out of the 96 in .*: hold out fewer, or"):
        triplets.hold_out(len(triplets))
    with pytest.raises(DreamCacheError, match=r"at least 2 held-out triplets"):
        HeldOut(triplets.hold_out(1)[0], SETTINGS, 64, together=1)
