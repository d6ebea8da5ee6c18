"""The demo model's recipe: what was stopped goes on, and what was measured isn't measured again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from demo_recipe import artwork, composer, joint, page
from demo_recipe.adapter import AS_IT_SHIPS, TIMESTEP_BIAS, Training
from demo_recipe.alignment import wanted_attention
from demo_recipe.loop import ALONE
from demo_recipe.muon import orthogonalised
from demo_recipe.page import Page
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.training.loss import biased_timesteps
from dreamcache.nodes import demo_model
from harness.environment import ROOT


@pytest.fixture
def few_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artwork, "ARTWORK", ROOT / "tests" / "support" / "subjects")
    monkeypatch.setattr(composer, "trained_subjects", lambda: artwork.subjects()[::6])


@pytest.mark.usefixtures("few_subjects")
def test_a_scene_is_shown_where_in_its_reference_it_finds_itself() -> None:
    torch.manual_seed(0)
    composed = composer.Composer(demo_model.load_networks(), composer.draw_backgrounds(1)).draw(12)
    wanted = wanted_attention(composed, 16)
    shown = wanted.sum(-1) > 0.5
    assert 0.2 < float(shown.float().mean()) < 0.9

    def likeness(references: torch.Tensor) -> float:
        found = wanted @ references.flatten(2).mT
        pairs = torch.stack([found[shown].flatten(), composed.latents.flatten(2).mT[shown].flatten()])
        return float(torch.corrcoef(pairs)[0, 1])

    assert likeness(composed.references) > 0.8 > 0.6 > likeness(composed.references.flip(-1))


@pytest.mark.usefixtures("few_subjects")
def test_u_net_and_adapter_train_together_and_go_on_where_they_were(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(joint, "REFERENCES", 2)
    monkeypatch.setattr(joint, "FOLDER", tmp_path)

    def begun() -> Training:
        return Training(demo_model.load_networks())

    def train(steps: int) -> torch.nn.Module:
        training = begun()
        drawn = composer.Composer(training.networks, composer.draw_backgrounds(1))
        return joint.train_together(training, training.untrained(AS_IT_SHIPS), drawn, ALONE, steps)

    with pytest.raises(DreamCacheError, match="run the step `joint` first"):
        joint.load_reached(begun(), begun().untrained(AS_IT_SHIPS))
    train(1)
    trained = train(2).state_dict()
    training = begun()
    reached, steps = joint.load_reached(training, training.untrained(AS_IT_SHIPS))
    assert steps == 2
    assert all(torch.equal(tensor, trained[name]) for name, tensor in reached.state_dict().items())


@torch.no_grad()
def test_a_prediction_that_is_guided_already_is_asked_for_no_more() -> None:
    torch.manual_seed(0)
    adapter = load_adapter(demo_model.FOLDER / demo_model.ADAPTER_FILE).adapter.float()
    base = Training(demo_model.load_networks()).base_of(adapter, AS_IT_SHIPS)
    base.load()
    latents, noise, uniform = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([0.2, 0.6])
    cache, prompts = joint.cached(base, latents, noise), base.encode_prompts(["a turtle at sunset"] * 2)
    sigma = base.sigmas[biased_timesteps(uniform, len(base.sigmas), TIMESTEP_BIAS)]
    noised = latents + sigma.reshape(-1, 1, 1, 1) * noise
    read, plain = (base.denoise(noised, sigma, prompts, of) for of in (cache, None))

    def losses(guidance: float) -> torch.Tensor:
        """Of what is `read`, if it is as image guidance makes it of the right latents."""
        right = plain + (read - plain) / guidance
        as_noised = (noised - right) / sigma.reshape(-1, 1, 1, 1)
        return joint.loss(base, right, cache, prompts.context, uniform, as_noised, guided=0.5)

    assert losses(2).max() < 1e-6 < 1e-3 < losses(1).min()


def test_muon_makes_all_singular_values_of_a_matrix_about_one() -> None:
    matrices = torch.randn(3, 24, 80, generator=torch.Generator().manual_seed(0))
    for wide in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(wide))
        assert 0.6 < float(values.min()) < float(values.max()) < 1.3


def test_a_row_is_measured_once_for_the_same_weights_and_the_page_says_which(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "SCORES", tmp_path / "scores.json")
    measured: list[str] = []

    def measure() -> int:
        measured.append("once")
        return len(measured)

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"these")
    first = Page(tmp_path, page.fingerprint(weights))
    assert [first.measured("a row", measure) for _ in range(2)] == [1, 1]
    assert first.measured("another row", lambda: first.measured("a row of another step", measure)) == 2
    # Neither lost the other's.
    assert [first.measured(row, measure) for row in ("a row", "another row", "a row of another step")] == [1, 2, 2]
    weights.write_bytes(b"others")
    second = Page(tmp_path, page.fingerprint(weights))
    assert second.measured("a row", measure) == 3
    for each in (first, second):
        each.write_table("views", ("references", "found"), [("1", "always")])
    text = (tmp_path / page.NAME).read_text(encoding="utf-8")
    block = text.split("<!-- views -->")[1].split("<!-- end -->")[0]
    assert block.strip().splitlines() == [
        *("| references | found |", "| --- | --- |", "| 1 | always |"),
        *("", f"Weights: {second.weights}."),
    ]
