"""Training an adapter on the very U-Net that ComfyUI runs: what changes, what doesn't, and that nothing is lost."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import comfy.model_patcher
import comfy.sd
import pytest
import torch
from dreamcache.dreamcache_core.adapter.network import Adapter, untrained_adapter
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from dreamcache.dreamcache_core.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from dreamcache.dreamcache_core.training.loss import Batch, denoising_loss, draw
from dreamcache.dreamcache_core.training.session import resume, run
from dreamcache.dreamcache_core.training.settings import TrainingSettings
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from dreamcache.nodes.host.generation import SampleSettings, draw_samples
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.patching.injection import Injection, wrap_adapter, wrap_for_sampling
from dreamcache.nodes.host.patching.training import attending_to, make_trainable
from miniature import models

Models = tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE, comfy.sd.CLIP]

SETTINGS = TrainingSettings(steps=6, batch=4, learning_rate=1e-3, warm_up=2, ema=0.9, seed=3)


def new_adapter(structure: str = "sd15") -> Adapter:
    unet = structure_of(models.unet_patcher(structure))
    adapter = Adapter(select_layers(unet.layers), unet.base_model)
    adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
    return adapter


def new_trainer(structure: str = "sd15", settings: TrainingSettings = SETTINGS, **how) -> Trainer:
    adapter = new_adapter(structure)
    base = ComfyUIBase(models.unet_patcher(structure), models.vae(), models.clip(structure), adapter, **how)
    base.load()
    return Trainer(base, adapter, settings)


def base_of(trainer: Trainer) -> ComfyUIBase:
    assert isinstance(trainer.base, ComfyUIBase)
    return trainer.base


@pytest.fixture
def models_of_a_node() -> Models:
    with torch.inference_mode():
        return models.unet_patcher("sd15"), models.vae(), models.clip("sd15")


def pictures(numbers: Iterable[int], size: int = 64) -> torch.Tensor:
    noise = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(number)) for number in numbers)
    return torch.nn.functional.interpolate(torch.stack(list(noise)), size=size, mode="bilinear")


def batch(step: int, size: int = 4, first: int = 0) -> Batch:
    numbers = range(step * size + first, (step + 1) * size)
    references = pictures(range(1000 + numbers.start, 1000 + numbers.stop))
    return Batch(numbers, pictures(numbers), references, [f"picture {number}" for number in numbers])


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.adapter.parameters()])


def test_gradients_through_the_injection_agree_with_finite_differences() -> None:
    """In float64, along a random direction of all of the adapter's weights, each sample with a reference of its own."""
    model = models.unet_patcher("sd15", dtype=torch.float64)
    adapter = new_adapter().double()
    trainable = make_trainable(model, adapter)
    trainable.patch_model()
    torch.manual_seed(0)
    features = {layer.name: torch.randn(2, layer.channels, 3, 4, dtype=torch.float64) for layer in adapter.layers}
    references = ReferenceBatch(features, adapter.base_model, adapter.layers, (24, 32), timestep=1, prompt="")
    injection = Injection(wrap_adapter(adapter), ReferenceCache((references,), per_latent=True))
    x, context, weight = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 8, 8), (7, 48), (4, 8, 8)))
    timesteps = torch.tensor([10, 600])

    def value() -> torch.Tensor:
        predicted = model.model.diffusion_model(x, timesteps, context, transformer_options=attending_to(injection))
        return (predicted * weight).sum()

    parameters: list[torch.Tensor] = list(adapter.requires_grad_().parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(value(), parameters)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))

    def moved(distance: float) -> torch.Tensor:
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=distance)
            result = value()
            torch._foreach_add_(parameters, directions, alpha=-distance)
        return result

    step = 1e-6
    torch.testing.assert_close((moved(step) - moved(-step)) / (2 * step), slope, rtol=1e-6, atol=0)
    trainable.unpatch_model()


def test_an_untrained_adapter_changes_nothing() -> None:
    model = models.unet_patcher("sd15")
    adapter = untrained_adapter(structure_of(model), seed=1)
    base = ComfyUIBase(model, models.vae(), models.clip("sd15"), adapter)
    base.load()
    latents = base.encode_images(pictures(range(2)))
    cache = base.cache(latents, torch.zeros_like(latents))
    sigma, prompts = base.sigmas[[100, 900]], base.encode_prompts(["a dog", ""])
    with torch.no_grad():
        plain, reading = (base.denoise(latents, sigma, prompts, read) for read in (None, cache))
    torch.testing.assert_close(reading, plain, rtol=1e-5, atol=1e-5)


def test_only_the_adapter_changes() -> None:
    trainer = new_trainer()
    unet = base_of(trainer).unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    adapter_before = {name: tensor.clone() for name, tensor in trainer.adapter.state_dict().items()}
    for step in range(2):
        assert math.isfinite(trainer.train([batch(step)]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())
    changed = {name for name, tensor in trainer.adapter.state_dict().items() if not tensor.equal(adapter_before[name])}
    assert changed == set(adapter_before)


def test_nothing_is_left_on_the_model() -> None:
    trainer = new_trainer()
    unet = base_of(trainer).unet
    base_of(trainer).unload()
    assert all(getattr(module.forward, "__func__", None) is type(module).forward for module in unet.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_in_half_precision_is_trained_on_in_any(dtype: torch.dtype, precision: torch.dtype) -> None:
    model, adapter = models.unet_patcher("sd15", dtype=dtype), new_adapter()
    base = ComfyUIBase(model, models.vae(), models.clip("sd15"), adapter, precision)
    base.load()
    assert Trainer(base, adapter, SETTINGS).train([batch(0)]) == pytest.approx(
        new_trainer().train([batch(0)]), rel=0.01
    )
    base.unload()
    assert model.model.get_dtype_inference() == dtype


def test_models_loaded_in_inference_mode_are_trained_on_as_others(models_of_a_node: Models) -> None:
    """As ComfyUI's nodes load them: autograd itself would refuse their weights."""
    model, vae, clip = models_of_a_node
    originals = list(model.model.parameters())
    assert all(weight.is_inference() for weight in originals)
    adapter = new_adapter()
    base = ComfyUIBase(model, vae, clip, adapter)
    base.load()
    trainer, usual = Trainer(base, adapter, SETTINGS), new_trainer()
    assert trainer.train([batch(0)]) == usual.train([batch(0)])
    assert torch.equal(weights(trainer), weights(usual))
    base.unload()
    assert all(weight is original for weight, original in zip(model.model.parameters(), originals, strict=True))


def test_the_hash_of_a_base_model_is_that_of_its_file(models_of_a_node: Models) -> None:
    """Whatever LoRAs are on the model, and wherever it is loaded."""
    model, vae, clip = models_of_a_node
    with_lora, _ = comfy.sd.load_lora_for_models(model, None, models.lora("sd15"), 1.0, 1.0)
    base = ComfyUIBase(with_lora, vae, clip, new_adapter())
    before = base.weights_hash
    base.load()
    assert base.weights_hash == before == base_of(new_trainer()).weights_hash
    other = ComfyUIBase(models.unet_patcher("sd15", seed=models.SEED + 1), vae, clip, new_adapter())
    assert other.weights_hash != before
    base.unload()


@pytest.mark.parametrize("structure", ["sd15", "sdxl"])
def test_the_caching_pass_of_training_is_that_of_encode_reference(structure: str) -> None:
    trainer = new_trainer(structure)
    images = pictures(range(2))
    latents, noise = trainer.base.encode_images(images), torch.randn(2, 4, 8, 8)
    ours = trainer.base.cache(latents, noise)
    model, clip = models.unet_patcher(structure), models.clip(structure)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    theirs = record_references(model, models.vae().encode(images.movedim(1, -1)), noise, conditioning, 1, "")
    for layer in trainer.adapter.layers:
        torch.testing.assert_close(
            ours.batches[0].features[layer.name], theirs.batches[0].features[layer.name], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("structure", ["sd15", "sdxl"])
def test_prompts_of_a_batch_are_encoded_as_they_are_alone(structure: str) -> None:
    base, clip = base_of(new_trainer(structure)), models.clip(structure)
    prompts = ["a dog", "", "a (very:1.3) long prompt, " * 30]
    encoded = base.encode_prompts(prompts)
    assert encoded.context.shape[1] > 77
    assert (encoded.pooled is None) == (structure == "sd15")
    for number, prompt in enumerate(prompts):
        alone, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        repeated = alone.repeat(1, encoded.context.shape[1] // alone.shape[1], 1)
        torch.testing.assert_close(encoded.context[number : number + 1], repeated, rtol=1e-4, atol=1e-4)
        if encoded.pooled is not None:
            torch.testing.assert_close(encoded.pooled[number : number + 1], pooled, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_sdxl_learns() -> None:
    """The same samples again and again, with the same noise."""
    trainer = new_trainer("sdxl", replace(SETTINGS, learning_rate=3e-3))
    losses = [trainer.train([batch(0)]) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0], losses


def test_each_sample_reads_its_own_reference_as_it_would_alone() -> None:
    trainer = new_trainer()
    whole = denoising_loss(trainer.base, batch(0), SETTINGS)
    alone = [denoising_loss(trainer.base, batch(0, size=1, first=0), SETTINGS)]
    torch.testing.assert_close(whole[:1], torch.cat(alone), rtol=1e-4, atol=1e-4)
    swapped = batch(0)
    swapped = Batch(swapped.numbers, swapped.targets, swapped.references.flip(0), swapped.prompts)
    assert ((denoising_loss(trainer.base, swapped, SETTINGS) - whole).abs() > 1e-4).all()


@pytest.mark.parametrize("structure", ["sd15", "sd21_v"])
def test_the_loss_is_the_textbooks(structure: str) -> None:
    """The mean square of what the U-Net's own output lacks to ε, or to v = √ᾱ·ε − √(1−ᾱ)·x₀."""
    trainer, samples = new_trainer(structure), batch(0)
    base = base_of(trainer)
    latents = base.encode_images(samples.targets)
    timesteps, noise, reference_noise = draw(samples.numbers, latents.shape[1:], len(base.sigmas), SETTINGS.seed)
    signal = (1 + base.sigmas[timesteps] ** 2).rsqrt().reshape(-1, 1, 1, 1)
    rest = (1 - signal**2).sqrt()
    target = noise if structure == "sd15" else signal * noise - rest * latents

    cache = base.cache(base.encode_images(samples.references), reference_noise)
    injection = Injection(wrap_adapter(trainer.adapter), cache)
    context = base.encode_prompts(samples.prompts).context
    options = attending_to(injection)
    with torch.no_grad():
        output = base.unet(signal * latents + rest * noise, timesteps, context, transformer_options=options)
        loss = denoising_loss(base, samples, SETTINGS)
        textbook = (output - target).square().flatten(1).mean(1)
        torch.testing.assert_close(loss, textbook, rtol=1e-3, atol=0)
        min_snr = denoising_loss(base, samples, replace(SETTINGS, min_snr=5.0))
    snr = base.sigmas[timesteps] ** -2
    weight = snr.clamp(max=5.0) / (snr if structure == "sd15" else snr + 1)
    torch.testing.assert_close(min_snr, textbook * weight, rtol=1e-3, atol=0)


def test_noisy_timesteps_are_drawn_more_often_if_they_should_be() -> None:
    uniform, noisy = (draw(range(4000), (1,), 1000, 0, bias)[0] for bias in (0.0, 1.0))
    assert 0 <= noisy.min() < noisy.max() <= 999
    # Of a density that rises as t does, three quarters lie in the upper half, and the rest is drawn as before.
    assert (uniform >= 500).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (noisy >= 500).float().mean() == pytest.approx(0.75, abs=0.03)


def test_parts_of_a_batch_and_checkpointing_give_the_same_step() -> None:
    whole, cut, checkpointed = new_trainer(), new_trainer(), new_trainer(checkpointing=True)
    first = whole.train([batch(0)])
    halves = batch(0)
    parts = [
        Batch(halves.numbers[part], halves.targets[part], halves.references[part], halves.prompts[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert cut.train(parts) == pytest.approx(first, rel=1e-4)
    assert checkpointed.train([batch(0)]) == pytest.approx(first, rel=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=1e-4)
    torch.testing.assert_close(weights(checkpointed), weights(whole), rtol=0, atol=1e-4)


def test_samples_in_the_midst_of_training_leave_it_as_it_was() -> None:
    (reference,) = pictures([7]).movedim(1, -1)
    settings = SampleSettings(steps=2, resolution=64)

    def train(draws: bool) -> tuple[Trainer, list[torch.Tensor]]:
        model, vae, clip, adapter = models.unet_patcher("sd15"), models.vae(), models.clip("sd15"), new_adapter()
        base = ComfyUIBase(model, vae, clip, adapter)
        base.load()
        trainer = Trainer(base, adapter, SETTINGS)
        drawn: list[torch.Tensor] = []
        for step in range(3):
            trainer.train([batch(step)])
            if draws:
                averaged = wrap_for_sampling(trainer.averaged_adapter())
                drawn += draw_samples(model, clip, vae, averaged, ["a dog"], [reference], settings)
                base.load()
        return trainer, drawn

    (straight, _), (drawing, (first, second, third)) = train(draws=False), train(draws=True)
    assert torch.equal(weights(drawing), weights(straight))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_training_that_was_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight, stopped = new_trainer(), new_trainer()
    batches = [[batch(step)] for step in range(SETTINGS.steps)]
    losses = [progress.loss for progress in run(straight, batches, tmp_path / "straight", every=100)]
    assert len(losses) == SETTINGS.steps
    # Stopped after a step that no checkpoint was written for.
    first = [progress.loss for progress in run(stopped, batches[:5], tmp_path / "stopped", every=2)]
    assert first == losses[:5]

    resumed = new_trainer()
    assert resume(resumed, tmp_path / "stopped") == 4
    rest = [progress.loss for progress in run(resumed, batches[4:], tmp_path / "stopped", every=2)]
    assert rest == losses[4:]
    assert torch.equal(weights(resumed), weights(straight))
    for ours, theirs in zip(
        resumed.averaged_adapter().parameters(), straight.averaged_adapter().parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def train_to_the_end(folder: Path) -> None:
    """Also in a process of its own, which may be killed."""
    trainer = new_trainer(settings=replace(SETTINGS, steps=12))
    done = resume(trainer, folder)
    for _ in run(trainer, ([batch(step)] for step in range(done, 12)), folder, every=1):
        pass


def test_training_that_is_killed_at_any_moment_ends_as_if_it_were_not(tmp_path: Path) -> None:
    train_to_the_end(tmp_path / "straight")
    random = Random(1)
    folder = str(tmp_path / "killed")
    script = f"import conftest, pathlib, test_training as t; t.train_to_the_end(pathlib.Path({folder!r}))"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)
        before = newest_checkpoint(tmp_path / "killed")
        while newest_checkpoint(tmp_path / "killed") == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.wait()
    train_to_the_end(tmp_path / "killed")

    straight, killed = load_checkpoint(tmp_path / "straight"), load_checkpoint(tmp_path / "killed")
    assert straight
    assert killed
    assert killed["step"] == 12
    for name, tensor in straight["adapter"].items():
        assert torch.equal(killed["adapter"][name], tensor)


def test_a_loss_that_is_no_number_stops_training_and_changes_nothing(tmp_path: Path) -> None:
    trainer = new_trainer()
    bad = batch(2)
    bad.targets[0] = float("nan")
    steps = run(trainer, [[batch(0)], [batch(1)], [bad]], tmp_path, every=2)
    next(steps), next(steps)
    before = weights(trainer)
    with pytest.raises(DreamCacheError, match=r"loss of step 3 is not a number: resume from step_000000002.checkpoint"):
        next(steps)
    assert torch.equal(weights(trainer), before)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        newest = save_checkpoint(tmp_path, {"step": step, "tensor": torch.full((100,), float(step))})
    assert len(list(tmp_path.iterdir())) == 2
    newest.write_bytes(newest.read_bytes()[:200])
    state = load_checkpoint(tmp_path)
    assert state
    assert state["step"] == 2
    assert load_checkpoint(tmp_path / "nothing") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]).returncode:
        pytest.skip("only root can mount a disk")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_reported_and_the_last_checkpoint_is_whole(small_disk: Path) -> None:
    save_checkpoint(small_disk, {"step": 1, "tensor": torch.zeros(100_000)})
    with pytest.raises(DreamCacheError, match=r"disk of .* is full .* resume from step_000000001.checkpoint"):
        save_checkpoint(small_disk, {"step": 2, "tensor": torch.zeros(400_000)})
    state = load_checkpoint(small_disk)
    assert state
    assert state["step"] == 1
    with pytest.raises(DreamCacheError, match=r"has 1 MB left, but training needs 12 MB"):
        resume(new_trainer(), small_disk)
