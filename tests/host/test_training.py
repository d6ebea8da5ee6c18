"""Training an adapter on the very U-Net that ComfyUI runs: what changes, and what doesn't."""

from __future__ import annotations

import math
from dataclasses import replace

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_basic, wrap_attn
from dreamcache.dreamcache_core.adapter.network import untrained_adapter
from dreamcache.dreamcache_core.generation import GenerationSettings
from dreamcache.dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from dreamcache.dreamcache_core.training.loss import Batch, denoising_loss, sample_noise
from dreamcache.dreamcache_core.training.trainer import Trainer
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from dreamcache.nodes.host.generation import generate_samples
from dreamcache.nodes.host.patching import blocks
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.patching.injection import Injection, wrap_adapter, wrap_for_sampling
from dreamcache.nodes.host.patching.training import make_trainable, training_options
from support.miniature import models
from support.trainings import SETTINGS, base_of, batch, new_adapter, new_trainer, pictures, weights
from torch.nn.attention import SDPBackend, sdpa_kernel

Models = tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE, comfy.sd.CLIP]


@pytest.fixture
def models_of_a_node() -> Models:
    with torch.inference_mode():
        return models.unet_patcher("sd15"), models.vae(), models.clip("sd15")


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
        predicted = model.model.diffusion_model(x, timesteps, context, transformer_options=training_options(injection))
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
    theirs = record_references(model, models.vae().encode(images), noise, conditioning, 1, "")
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


def test_only_the_subject_of_some_references_is_read() -> None:
    trainer, plain = new_trainer(), batch(0)
    whole = denoising_loss(trainer.base, plain, SETTINGS)
    subjects = torch.ones(4, 64, 64)
    assert torch.equal(denoising_loss(trainer.base, replace(plain, subjects=subjects), SETTINGS), whole)
    subjects[1:3, :, 24:] = 0
    losses = denoising_loss(trainer.base, replace(plain, subjects=subjects), SETTINGS)
    torch.testing.assert_close(losses[[0, 3]], whole[[0, 3]], rtol=1e-4, atol=1e-4)
    assert ((losses - whole)[1:3].abs() > 1e-4).all()
    alone = replace(batch(1, size=1), subjects=subjects[1:2])
    torch.testing.assert_close(denoising_loss(trainer.base, alone, SETTINGS), losses[1:2], rtol=1e-4, atol=1e-4)
    assert math.isfinite(trainer.train([replace(plain, subjects=subjects)]))


@pytest.mark.parametrize("structure", ["sd15", "sd21_v"])
def test_the_loss_is_the_textbooks(structure: str) -> None:
    """The mean square of what the U-Net's own output lacks to ε, or to v = √ᾱ·ε − √(1−ᾱ)·x₀."""
    trainer, samples = new_trainer(structure), batch(0)
    base = base_of(trainer)
    latents = base.encode_images(samples.targets)
    timesteps, noise, reference_noise = sample_noise(
        samples.numbers, latents.shape[1:], len(base.sigmas), SETTINGS.seed
    )
    signal = (1 + base.sigmas[timesteps] ** 2).rsqrt().reshape(-1, 1, 1, 1)
    rest = (1 - signal**2).sqrt()
    target = noise if structure == "sd15" else signal * noise - rest * latents

    cache = base.cache(base.encode_images(samples.references), reference_noise)
    injection = Injection(wrap_adapter(trainer.adapter), cache)
    context = base.encode_prompts(samples.prompts).context
    options = training_options(injection)
    with torch.no_grad():
        output = base.unet(signal * latents + rest * noise, timesteps, context, transformer_options=options)
        loss = denoising_loss(base, samples, SETTINGS)
        textbook = (output - target).square().flatten(1).mean(1)
        torch.testing.assert_close(loss, textbook, rtol=1e-3, atol=0)
        min_snr = denoising_loss(base, samples, replace(SETTINGS, min_snr=5.0))
    snr = base.sigmas[timesteps] ** -2
    weight = snr.clamp(max=5.0) / (snr if structure == "sd15" else snr + 1)
    torch.testing.assert_close(min_snr, textbook * weight, rtol=1e-3, atol=0)


def test_training_needs_no_gradients_of_the_attention_that_comfyui_was_started_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SageAttention has none."""
    usual, trainer = new_trainer(), new_trainer()
    usual.train([batch(0)])
    without_gradients = wrap_attn(torch.no_grad()(attention_basic))
    for module in (comfy.ldm.modules.attention, blocks):
        monkeypatch.setattr(module, "optimized_attention", without_gradients)
    trainer.train([batch(0)])
    assert torch.equal(weights(trainer), weights(usual))


# Fused attention rounds by the size of a batch, which AdamW takes for a gradient where there is next to none.
@sdpa_kernel(SDPBackend.MATH)
def test_micro_batches_and_checkpointing_give_the_same_step() -> None:
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
    (reference,) = pictures([7])
    settings = GenerationSettings(steps=2, resolution=64)

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
                drawn += generate_samples(model, clip, vae, averaged, ["a dog"], [reference], settings)
                base.load()
        return trainer, drawn

    (straight, _), (drawing, (first, second, third)) = train(draws=False), train(draws=True)
    assert torch.equal(weights(drawing), weights(straight))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
