"""What a reference costs, in operations and in memory: both are counted, so that a busy machine makes no difference."""

from __future__ import annotations

import gc

import comfy.sample
import pytest
import torch
from benchmarks.speed.counting import bench_on_paper, count_encoding, count_step, count_training
from benchmarks.speed.variants import CONDITIONED, PLAIN, READING, STRENGTH_0, VARIANTS, Bench
from comfy.model_patcher import ModelPatcher
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.training.estimate import count_operations
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.caching_pass import record_references
from dreamcache.nodes.host.patching.injection import Injection, unfused, wrap_for_sampling
from support.miniature import models
from torch.nn.attention import SDPBackend, sdpa_kernel

SIZE = 512
PROMPT = [[torch.zeros(1, 77, 48), {}]]


@pytest.fixture(scope="module")
def bench() -> Bench:
    """SD1.5 at full size, of shapes only: a step that waited for a value of the device would fail."""
    return bench_on_paper()


@pytest.fixture(scope="module")
def plain(bench: Bench) -> int:
    return count_step(VARIANTS[PLAIN](bench), SIZE)


@pytest.mark.parametrize(("variant", "rows"), [(READING, 2), (CONDITIONED, 1), (STRENGTH_0, 0)])
def test_a_step_does_what_it_must_and_nothing_more(bench: Bench, plain: int, variant: str, rows: int) -> None:
    """Of each token a query and Linear's two halves, and its attention to all tokens of the reference."""
    (references,) = bench.references(1).batches
    floor = 0
    for layer in bench.adapter.layers:
        tokens = references.features[layer.name].shape[2:].numel()
        floor += 2 * rows * (3 * tokens * layer.channels**2 + 2 * tokens**2 * layer.channels)
    count = count_step(VARIANTS[variant](bench), SIZE)
    assert count - plain == floor
    assert count <= 1.05 * plain


def test_a_disk_cache_spares_training_half_of_its_operations(bench: Bench) -> None:
    """Of SD1.5 at 512², for each sample: the VAE's for target and reference."""
    cached, encoding = count_training(bench, SIZE), count_encoding(SIZE)
    assert cached <= 2.3e12
    assert cached + 2 * encoding == pytest.approx(4.50e12, rel=0.01)


def test_an_estimate_counts_attention_as_products_of_matrices() -> None:
    """PyTorch's own counter doesn't count that of CPUs."""

    def count() -> int:
        query, key = (torch.randn(1, 2, tokens, 8, requires_grad=True) for tokens in (64, 16))
        with count_operations() as counter:
            torch.nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()
        return counter.get_total_flops()

    with sdpa_kernel(SDPBackend.MATH):
        products = count()
    assert count() == products == 3 * 2 * (2 * 2 * 64 * 16 * 8)


@pytest.fixture(scope="module")
def miniature() -> tuple[ModelPatcher, ModelPatcher]:
    """A model and an adapter, small and real."""
    model = models.unet_patcher("sd15")
    structure = structure_of(model)
    adapter = Adapter(select_layers(structure.layers), structure.base_model)
    adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
    return model, wrap_for_sampling(adapter)


def encode(model: ModelPatcher, seed: int) -> ReferenceCache:
    latent = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(seed))
    return record_references(model, latent, torch.zeros_like(latent), PROMPT, 1, "")


def draw(model: ModelPatcher, seed: int) -> None:
    latent = torch.zeros(1, 4, 16, 24)
    noise = comfy.sample.prepare_noise(latent, seed)
    comfy.sample.sample(model, noise, 1, 4.0, "euler", "normal", PROMPT, PROMPT, latent, disable_pbar=True)


def test_encoding_ends_where_the_last_layer_is_recorded(miniature: tuple[ModelPatcher, ModelPatcher]) -> None:
    model, _ = miniature
    reached: list[bool] = []
    hook = model.model.diffusion_model.output_blocks[-1][0].register_forward_hook(lambda *_: reached.append(True))
    encode(model, seed=0)
    assert not reached
    draw(model, seed=0)
    assert reached
    hook.remove()


def test_runs_with_changing_references_end_at_the_memory_they_began_with(
    miniature: tuple[ModelPatcher, ModelPatcher],
) -> None:
    model, adapter = miniature

    def run(seed: int) -> None:
        draw(inject(model, Injection(adapter, encode(model, seed))), seed)

    run(0)
    before = bytes_of_tensors()
    for seed in range(1, 10):
        run(seed)
    assert bytes_of_tensors() == before


def test_an_adapter_that_comfyui_has_no_memory_for_changes_the_same(
    miniature: tuple[ModelPatcher, ModelPatcher],
) -> None:
    adapter = unfused(miniature[1])

    def changes(memory: int) -> list[torch.Tensor]:
        """`memory`: bytes that ComfyUI lets the adapter take of the device, 0 for all that it needs."""
        patcher = wrap_for_sampling(adapter)
        patcher.load(torch.device("cpu"), lowvram_model_memory=memory, full_load=not memory)
        assert patcher.model.model_lowvram == bool(memory)
        assert patcher.loaded_size() == (0 if memory else patcher.model_size())
        generator = torch.Generator().manual_seed(0)
        made = []
        for layer in adapter.layers:
            x, self_attention, cached = torch.randn(3, 1, 6, layer.channels, generator=generator)
            made.append(patcher.model[layer.name](x, self_attention, *patcher.model[layer.name].keys_values(cached)))
        return made

    assert all(map(torch.equal, changes(memory=0), changes(memory=1)))


def bytes_of_tensors() -> int:
    """Of all that this process holds."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
