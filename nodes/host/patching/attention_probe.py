"""The attention probe: where in its references a model looks while it draws a given image."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ....dreamcache_core.adapter.network import Attention
from ....dreamcache_core.figures.attention_maps import AttentionMap, attention_maps, mean_map
from .caching_pass import SingleEvaluation
from .injection import Injection
from .options import RUN_KEY, Options, with_options
from .run_state import RunState, run_state

# The options of a prompt that restrict it to a part of the image.
_PLACEMENT = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength")


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """The attention maps of one evaluation; an AttentionObserver.

    `region`: mask of the image tokens that count, one or one for each latent, (masks, height, width), 0…1; None: all.
    `found`: by injection, layer and number of the latent, for each prompt the map of each reference.
    """

    region: torch.Tensor | None
    found: dict[tuple[Injection, str, int], list[list[AttentionMap]]] = field(default_factory=dict)

    def maps(self, injection: Injection, latent: int) -> list[dict[str, AttentionMap]]:
        """For each reference that a latent attends to: its maps by layer, averaged over prompts. Empty without any."""
        maps: list[dict[str, AttentionMap]] = []
        for (of, layer, number), prompts in self.found.items():
            if (of, number) == (injection, latent):
                means = [mean_map(of_reference) for of_reference in zip(*prompts, strict=True)]
                maps = maps or [{} for _ in means]
                for reference, mean in zip(maps, means, strict=True):
                    reference[layer] = mean
        return maps

    def observe(
        self,
        attention: Attention,
        injection: Injection,
        layer: str,
        cached_tokens: int,
        rows: slice,
        x: torch.Tensor,
        options: Options,
    ) -> Attention:
        """The same attention function, which adds its maps to `found`."""

        def observed(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            output = attention(query, key, value, heads, bias)
            if injection.uses_noise_levels and key.shape[1] == x.shape[1]:
                return output  # The image tokens attend to themselves only.
            run = run_state(options)
            region = x.new_ones(len(x), x.shape[1], 1)
            for mask in (self.region, injection.region):
                if mask is not None:
                    region = region * run.region(mask, x, options)
            size = tuple(options["activations_shape"][-2:])
            kept = injection.cache.kept(layer)
            latents = len(x) // len(options["uuids"])
            # AdapterLayer puts the queries of each reference side by side; here they are split by row again.
            queries = query.unflatten(1, (-1, x.shape[1])).transpose(0, 1).flatten(0, 1)
            for row, (of_row, weights) in enumerate(zip(queries, region[rows], strict=True)):
                cached, own = key[row % len(key)].tensor_split([cached_tokens])
                maps = attention_maps(
                    of_row,
                    cached,
                    heads,
                    weights.reshape(size),
                    [kept[row % len(kept)]] if injection.cache.per_latent else kept,
                    None if bias is None else bias[row % len(bias), 0],
                    own_key=own,
                )
                self.found.setdefault((injection, layer, row % latents), []).append(maps)
            return output

        return observed


def probe_attention(
    model: ModelPatcher,
    latent: torch.Tensor,
    noise: torch.Tensor,
    conditioning: list,
    progress: float,
    region: torch.Tensor | None = None,
) -> AttentionProbe:
    """Run a model with injections once over finished images, noised as at a point of sampling.

    `latent`, `noise`: (batch, 4, height, width). `conditioning`: the positive prompt; its areas and masks are ignored.
    `progress`: the point of sampling, 0…1. `region`: mask of the image tokens that count.
    """
    probe = AttentionProbe(region)
    probed = model.clone()
    # Guidance doesn't decide where the model looks, and would evaluate it again with something left out.
    options = {name: value for name, value in model.model_options.items() if not name.startswith("sampler_")}
    probed.model_options = with_options(options, {RUN_KEY: RunState(observer=probe)})
    everywhere = [
        [prompt, {name: value for name, value in details.items() if name not in _PLACEMENT}]
        for prompt, details in conditioning
    ]
    guider = comfy.samplers.CFGGuider(probed)
    guider.inner_set_conds({"positive": everywhere})
    # ComfyUI's sigmas of exactly 0 % and 100 % lie outside of every schedule.
    sampling = probed.get_model_object("model_sampling")
    sigma = torch.tensor([sampling.percent_to_sigma(min(max(progress, 1e-6), 1 - 1e-6))])
    guider.sample(noise, latent, SingleEvaluation(), sigma, disable_pbar=True)
    return probe
