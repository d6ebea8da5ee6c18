"""What is compared: a model with DreamCache, used in several ways, and with what one might use in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.nodes.host.base_model import structure_of
from dreamcache.nodes.host.patching.apply import inject
from dreamcache.nodes.host.patching.injection import Injection, wrap_adapter, wrap_for_sampling
from dreamcache.nodes.host.patching.options import RUN_KEY

from .reference_only import reference_only

PROMPT_TOKENS = 77
CFG = 7.0
"""Any but 1, so that both prompts are evaluated."""
# Near the first of SD1.5's sigmas, and the end of sampling.
_SIGMAS = (14.0, 0.0)


@dataclass(frozen=True, eq=False)
class Bench:
    """What is compared: a model, an adapter as it was trained, and references, on the same device.

    `plain`: the model again, with weights of its own where both take a step in turns.
    """

    model: ModelPatcher
    plain: ModelPatcher
    adapter: Adapter
    references: Callable[[int], ReferenceCache]
    """Makes a cache of this many references, as Encode Reference does at the size that the model was trained at."""

    def reading(self, references: int = 1, **settings: Any) -> ModelPatcher:
        """With DreamCache. `settings`: of the injection."""
        adapter = wrap_for_sampling(self.adapter)
        return inject(self.model, Injection(adapter, self.references(references), **settings))

    def attending_itself(self, all_layers: bool = False, **settings: Any) -> ModelPatcher:
        """With the model's own attention in place of an adapter. `settings`: of the injection."""
        return inject(self.model, Injection(SelfAttentionAdapter(all_layers), self.references(1), **settings))

    def reference_only(self) -> ModelPatcher:
        """With the model's own attention in its plain form, without a cache."""
        (given,) = self.references(1).batches[0].caching_inputs
        return reference_only(self.model, given, SelfAttentionAdapter())

    def projecting_anew(self) -> ModelPatcher:
        """The straightforward form of DreamCache: weights not fused, keys and values computed at every step."""
        # A copy, for ComfyUI moves it to where the model is.
        adapter = wrap_adapter(copy.deepcopy(self.adapter).to(self.model.model.get_dtype_inference()))
        model = inject(self.model, Injection(adapter, self.references(1)))
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "benchmark", _forget_memories)
        return model

    def with_image_tokens(self, tokens: int) -> ModelPatcher:
        """The mechanism of an IP-Adapter: beside every cross-attention over the prompt, another over `tokens` image
        tokens, with keys and values of its own.
        """
        structure, device = structure_of(self.model), self.model.load_device
        kind: dict[str, Any] = {"device": device, "dtype": self.model.model.get_dtype_inference()}
        image = torch.randn(1, tokens, structure.context_dim, **kind)
        model = self.model.clone()
        for layer in structure.layers:
            weights = torch.randn(2, layer.channels, structure.context_dim, **kind) * structure.context_dim**-0.5
            side, number, *_ = layer.name.replace("middle_block", "middle_block.0").split(".")
            model.set_model_attn2_replace(
                partial(_attend_to_image_too, image, weights), side.partition("_")[0], int(number)
            )
        return model


PLAIN, READING, CONDITIONED, STRENGTH_0 = "plain model", "DreamCache", "rows: conditioned", "strength: 0"
GUIDED, IPADAPTER, IPADAPTER_PLUS = "image_guidance: 2", "IP-Adapter, 4 tokens", "IPAdapter_plus"
OWN_ATTENTION, REFERENCE_ONLY = "own attention", "reference-only, plain form"
# Any strength but 1 needs the attention without the reference, too.
OWN_AND_PLAIN = "own attention, strength 0.8"
Variant = Callable[[Bench], ModelPatcher]
VARIANTS: dict[str, Variant] = {
    PLAIN: lambda bench: bench.plain.clone(),
    READING: lambda bench: bench.reading(),
    CONDITIONED: lambda bench: bench.reading(rows="conditioned"),
    GUIDED: lambda bench: bench.reading(image_guidance=2.0),
    STRENGTH_0: lambda bench: bench.reading(strength=0.0),
    "4 references": lambda bench: bench.reading(4),
    "16 references": lambda bench: bench.reading(16),
    "straightforward": lambda bench: bench.projecting_anew(),
    OWN_ATTENTION: lambda bench: bench.attending_itself(),
    OWN_AND_PLAIN: lambda bench: bench.attending_itself(strength=0.8),
    "own attention, all layers": lambda bench: bench.attending_itself(all_layers=True),
    REFERENCE_ONLY: lambda bench: bench.reference_only(),
    IPADAPTER: lambda bench: bench.with_image_tokens(4),
    "IP-Adapter, 16 tokens": lambda bench: bench.with_image_tokens(16),
}


def ipadapter_plus(pack: ModuleType) -> Variant:
    """IPAdapter_plus itself, its node for image embeddings, with generated weights of an IP-Adapter of 4 tokens.

    `pack`: its folder of custom_nodes, imported. Only for models built as SD1.5 is, whose blocks the node numbers.
    """

    def apply(bench: Bench) -> ModelPatcher:
        structure = structure_of(bench.model)
        tokens, embedding, context = 4, 1024, structure.context_dim
        image_proj = {
            "proj.weight": torch.randn(tokens * context, embedding) * embedding**-0.5,
            "proj.bias": torch.zeros(tokens * context),
            "norm.weight": torch.ones(context),
            "norm.bias": torch.zeros(context),
        }
        # The order of such a file: encoder, decoder, middle, with odd numbers.
        sides = ("input_blocks", "output_blocks", "middle_block")
        layers = sorted(structure.layers, key=lambda layer: sides.index(layer.name.partition(".")[0]))
        ip_adapter = {
            f"{2 * number + 1}.to_{kind}_ip.weight": torch.randn(layer.channels, context) * context**-0.5
            for number, layer in enumerate(layers)
            for kind in "kv"
        }
        image = torch.randn(1, embedding)
        (model, *_) = pack.NODE_CLASS_MAPPINGS["IPAdapterEmbeds"]().apply_ipadapter(
            bench.model,
            {"image_proj": image_proj, "ip_adapter": ip_adapter},
            pos_embed=image,
            neg_embed=torch.zeros_like(image),
            weight=1.0,
            weight_type="linear",
            start_at=0.0,
            end_at=1.0,
        )
        return model

    return apply


def _forget_memories(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, *args):
    model_options["transformer_options"][RUN_KEY].keys_values.clear()
    return executor(x, timestep, model_options, *args)


def _attend_to_image_too(image: torch.Tensor, weights: torch.Tensor, query, key, value, options: dict) -> torch.Tensor:
    attention = partial(
        optimized_attention,
        heads=options["n_heads"],
        attn_precision=options["attn_precision"],
        transformer_options=options,
    )
    of_image = (torch.nn.functional.linear(image, weight).expand(len(query), -1, -1) for weight in weights)
    return attention(query, key, value) + attention(query, *of_image)


Evaluate = Callable[[torch.Tensor], torch.Tensor]
"""Of latents, with both prompts, as in a step."""


class Evaluations(comfy.samplers.Sampler):
    """A sampler that leaves it to someone else when, and how often, the model is evaluated, at the first sigma."""

    def __init__(self, visit: Callable[[Evaluate], None]) -> None:
        self._visit = visit

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        self._visit(lambda latents: model_wrap(latents, sigmas[:1].expand(len(latents)), **extra_args))
        return noise


def guider_of(model: ModelPatcher) -> comfy.samplers.CFGGuider:
    """What samples with two prompts, which are zeros."""
    guider = comfy.samplers.CFGGuider(model)
    prompt = torch.zeros(1, PROMPT_TOKENS, structure_of(model).context_dim, device=model.load_device)
    guider.set_conds([[prompt, {}]], [[prompt, {}]])
    guider.set_cfg(CFG)
    return guider


def evaluating(model: ModelPatcher, size: int, batch: int, visit: Callable[[Evaluate], None]) -> None:
    """Let a model sample pictures of `size`×`size` pixels, as far as `visit` evaluates it."""
    noise = torch.zeros(batch, 4, size // 8, size // 8)
    guider_of(model).sample(noise, noise, Evaluations(visit), torch.tensor(_SIGMAS), disable_pbar=True)
