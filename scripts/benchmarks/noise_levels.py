"""How near the model's own attention comes to reference-only with features of fewer noise levels.

`python3 scripts/benchmarks/noise_levels.py` samples 20 steps on the demo model and on miniatures of SD1.5, SD2.1 and
SDXL, with features cached at every step and at fewer, evenly over the steps. It prints, as a Markdown table, how far
the final latents are from those with all features, as a share of what the reference changes in them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.environment import ROOT, enter

enter(pack=True)
sys.path.append(str(ROOT / "tests"))

import comfy.sample  # noqa: E402
import torch  # noqa: E402
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter  # noqa: E402
from dreamcache.dreamcache_core.reference.cache import ReferenceCache  # noqa: E402
from dreamcache.dreamcache_core.reference.noise_levels import NoiseLevels  # noqa: E402
from dreamcache.nodes import demo_model  # noqa: E402
from dreamcache.nodes.host.patching.apply import inject  # noqa: E402
from dreamcache.nodes.host.patching.caching_pass import record_references, weights_key  # noqa: E402
from dreamcache.nodes.host.patching.injection import Injection  # noqa: E402
from support.miniature import models  # noqa: E402

STEPS = 20
LEVELS = (20, 10, 5, 3, 1)


def distances(model: Any, clip: Any, latent: torch.Tensor) -> list[float]:
    """The distance for each of LEVELS, as a share of the effect. `latent`: of the reference, (1, 4, height, width)."""
    encode = lambda prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt))  # noqa: E731
    prompts = encode("a turtle on a snowy field"), encode("")
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    (batch,) = record_references(model, latent, noise, encode(""), 1, "").batches
    (given,) = batch.caching_inputs

    def sample(patched: Any) -> torch.Tensor:
        empty = torch.zeros_like(latent)
        noise = comfy.sample.prepare_noise(empty, 5)
        return comfy.sample.sample(patched, noise, STEPS, 4.0, "euler", "normal", *prompts, empty, disable_pbar=True)

    exact = sample(inject(model, Injection(SelfAttentionAdapter(), ReferenceCache((batch,)))))
    effect = (exact - sample(model)).norm()
    weights, levels = weights_key(model), given.noise_levels.sigmas(weights_key(model))
    found = []
    for count in LEVELS:
        few = NoiseLevels()
        for number in range(count):
            sigma = levels[round((number + 0.5) * len(levels) / count - 0.5)]
            few.add(sigma, weights, given.noise_levels.nearest(sigma, weights))
        cache = ReferenceCache((replace(batch, caching_inputs=(replace(given, noise_levels=few),)),))
        nearest = SelfAttentionAdapter(reuse_within=math.inf)
        found.append(float((sample(inject(model, Injection(nearest, cache))) - exact).norm() / effect))
    return found


def main() -> None:
    print("| model |", " | ".join(map(str, LEVELS)), "|\n| --- |", " | ".join(["---"] * len(LEVELS)), "|")
    networks = demo_model.load_networks()
    image = demo_model.DreamCacheDemoModel.execute()[4]
    rows = {"demo model": (networks.model, networks.clip, networks.vae.encode(image))}
    for name in ("sd15", "sd21", "sdxl"):
        reference = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
        rows[f"{name}, miniature"] = models.unet_patcher(name), models.clip(name), reference
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(f"{share:.1%}" for share in distances(*row)), "|", flush=True)


if __name__ == "__main__":
    main()
