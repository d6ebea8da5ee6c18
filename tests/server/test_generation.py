"""Generation without a graph: the images are those that a graph draws."""

from __future__ import annotations

from pathlib import Path

import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.generation import GenerationSettings
from dreamcache.dreamcache_core.io.images import to_image, to_tensor
from dreamcache.nodes.host.generation import generate_samples
from dreamcache.nodes.host.patching.injection import wrap_for_sampling
from harness import environment
from PIL import Image
from support.graph import Scene
from support.miniature import models

SAMPLES = GenerationSettings(seed=5, steps=3, cfg=4.0, resolution=128, negative="blurry")


def test_a_sample_is_what_apply_dreamcache_draws(server, tmp_path: Path) -> None:
    scene = Scene(server)
    latent = scene.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    sampled = scene.sampler(scene.apply(scene.model), latent_image=latent, steps=3)
    scene.add("SaveImage", images=scene.add("VAEDecode", samples=sampled, vae=scene.vae), filename_prefix="sample")
    (image,) = server.run(scene.prompt).images
    drawn = to_tensor(Image.open(server.download(image, tmp_path / "drawn.png")))

    reference = to_tensor(Image.open(environment.ensure().comfyui / "input" / "example.png").convert("RGB"))
    file = load_adapter(server.base / "models" / "dreamcache" / "sd15.safetensors")
    model, adapter = models.unet_patcher("sd15"), wrap_for_sampling(file.adapter)
    prompts, references = ["a dog on a beach"] * 2, [reference, None]
    with_reference, without = generate_samples(
        model, models.clip("sd15"), models.vae(), adapter, prompts, references, SAMPLES
    )
    torch.testing.assert_close(to_tensor(to_image(with_reference)), drawn, rtol=0, atol=2 / 255)
    assert (without - with_reference).abs().mean() > 10 / 255
