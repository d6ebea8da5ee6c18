"""The U-Net that ComfyUI runs, as the frozen base that an adapter is trained on: what is trained is what runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import comfy.model_management
import comfy.model_sampling
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...dreamcache_core.adapter.network import Adapter
from ...dreamcache_core.adapter.provenance import hash_weights
from ...dreamcache_core.io.disk_cache import DiskCache
from ...dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from ...dreamcache_core.training.loss import EncodedPrompts
from ...dreamcache_core.unet import PIXELS_PER_LATENT
from .base_model import check_clip, check_prompt_width, check_vae, structure_of, weights_of
from .patching.injection import Injection, wrap_adapter
from .patching.options import Options
from .patching.recording import recording
from .patching.training import attending_to, make_trainable
from .reference import PROMPT, TIMESTEP


class ComfyUIBase:
    """A FrozenBase, as dreamcache_core.training describes it, of a MODEL, its VAE and its CLIP.

    `adapter`: in float32, on the model's device. `precision`: what U-Net and adapter compute in. `checkpointing`: as in
    make_trainable. `disk_cache`: keeps latents and prompts that come again, under the weights of VAE and CLIP;
    it knows nothing of LoRAs on the CLIP. Raises DreamCacheError if adapter, VAE or CLIP isn't one for this model.
    """

    timestep = TIMESTEP
    """Of the caching pass."""

    def __init__(
        self,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        clip: comfy.sd.CLIP,
        adapter: Adapter,
        precision: torch.dtype = torch.float32,
        checkpointing: bool = False,
        disk_cache: DiskCache | None = None,
    ) -> None:
        self.device = model.load_device
        self.structure = structure_of(model)
        check_vae(vae, model)
        check_clip(clip)
        self._vae = vae
        self._clip = clip
        self._adapter = wrap_adapter(adapter)
        self._precision = precision
        self._reads_pooled = bool(model.model.adm_channels)
        self._patcher = make_trainable(model, adapter, checkpointing)
        self._model = self._patcher.model
        if self._model.get_dtype_inference() not in (torch.float32, precision):
            # Autocast takes a U-Net in float32 to its precision, and none in another.
            self._patcher.set_model_compute_dtype(precision)
        sampling = self._patcher.get_model_object("model_sampling")
        self.sigmas = sampling.sigmas.to(self.device)
        self.predicts_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        self._disk_cache = disk_cache
        if disk_cache:
            self._vae_hash, self._clip_hash = (hash_weights(part.get_sd()) for part in (vae, clip))
        with torch.no_grad():
            self._empty_prompt = self.encode_prompts([PROMPT])
        check_prompt_width(self._empty_prompt.context.shape[-1], self.structure)

    @property
    def unet(self) -> torch.nn.Module:
        return self._model.diffusion_model

    @property
    def weights_hash(self) -> str:
        """hash_weights of the U-Net as its file has it, whatever LoRAs are on it."""
        return weights_of(self._patcher).base_hash

    def load(self) -> None:
        """Put the U-Net where it computes, with its patches on, if it isn't there; `unload` takes them off again."""
        if not self._patcher.is_injected or self._model.model_lowvram:
            # All of it: weights that come in one by one share their memory, and the backward pass needs them later.
            comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)

    def unload(self) -> None:
        self._patcher.detach()

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        if not (self._disk_cache and keys):
            return self._encode_images(images)
        keys = [key and f"{self._vae_hash}/{key}" for key in keys]
        latents = self._disk_cache.get(keys, lambda numbers: list(self._encode_images(images[numbers])))
        return torch.stack([latent.to(self.device) for latent in latents])

    def _encode_images(self, images: torch.Tensor) -> torch.Tensor:
        latents = self._model.process_latent_in(self._vae.encode(images.movedim(1, -1)))
        return latents.to(self.device, torch.float32)

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts:
        encodings = self._disk_cached_prompts(prompts) if self._disk_cache else self._encode_prompts(prompts)
        # Long prompts have some times as many tokens as short ones. As ComfyUI does, repeat each until all are as long.
        tokens = math.lcm(*(context.shape[1] for context, *_ in encodings))
        contexts, *pooled = zip(*encodings, strict=True)
        repeated = [context.to(self.device).repeat(1, tokens // context.shape[1], 1) for context in contexts]
        return EncodedPrompts(torch.cat(repeated), *(torch.cat(vectors).to(self.device) for vectors in pooled))

    def _disk_cached_prompts(self, prompts: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
        assert self._disk_cache
        parts = ["", "pooled of "][: 1 + self._reads_pooled]
        keys = [f"{part}{self._clip_hash}/{prompt}" for part in parts for prompt in prompts]

        def make(numbers: Sequence[int]) -> list[torch.Tensor]:
            missing = sorted({number % len(prompts) for number in numbers})
            encodings = dict(zip(missing, self._encode_prompts([prompts[number] for number in missing]), strict=True))
            return [encodings[number % len(prompts)][number // len(prompts)] for number in numbers]

        tensors = self._disk_cache.get(keys, make)
        return list(zip(*(tensors[n * len(prompts) :][: len(prompts)] for n in range(len(parts))), strict=True))

    def _encode_prompts(self, prompts: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
        """Of each its context, (1, tokens, channels), and its pooled vector, (1, channels), if the U-Net reads one."""
        tokens = [self._clip.tokenize(prompt) for prompt in prompts]
        if self._reads_pooled:
            # Of several together, ComfyUI gives the vector of the first.
            return [self._clip.encode_from_tokens(each, return_pooled=True) for each in tokens]
        # ComfyUI cuts a long prompt into sections, encodes them as a batch, and puts them in a row: here those of all.
        sections = {name: [section for each in tokens for section in each[name]] for name in tokens[0]}
        row = self._clip.encode_from_tokens(sections)
        counts = [max(map(len, each.values())) for each in tokens]
        return [(context,) for context in row.split([count * (row.shape[1] // sum(counts)) for count in counts], dim=1)]

    def cache(self, latents: torch.Tensor, noise: torch.Tensor) -> ReferenceCache:
        # VAE or CLIP may have taken its place.
        self.load()
        sigma = self.sigmas[self.timestep].expand(len(latents))
        prompts, layers = self._empty_prompt.expand(len(latents)), self._adapter.model.layers
        with recording(self.unet, layers) as features:
            self._evaluate(latents + self.sigmas[self.timestep] * noise, sigma, prompts, {})
        size = (latents.shape[2], latents.shape[3])
        batch = ReferenceBatch(features, self.structure.base_model, layers, size, self.timestep, PROMPT)
        return ReferenceCache((batch,), per_latent=True)

    def denoise(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, cache: ReferenceCache | None
    ) -> torch.Tensor:
        if cache is None:
            return self._evaluate(noised, sigma, prompts, {})
        injection = Injection(self._adapter, cache)
        return self._evaluate(noised, sigma, prompts, attending_to(injection))

    def _evaluate(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, options: Options
    ) -> torch.Tensor:
        # What an inpainting model reads beside the latents: that all of the picture is to be painted.
        concat = self._model.concat_cond(noise=noised, latent_image=noised, device=self.device)
        # And what SDXL reads beside the prompt: its pooled vector, and how large the picture is.
        height, width = (PIXELS_PER_LATENT * side for side in noised.shape[2:])
        adm = self._model.encode_adm(pooled_output=prompts.pooled, height=height, width=width, device=self.device)
        with torch.autocast(self.device.type, self._precision, enabled=self._precision != torch.float32):
            return self._model.apply_model(
                noised,
                sigma,
                c_concat=concat,
                c_crossattn=prompts.context,
                transformer_options=options,
                y=None if adm is None else adm.expand(len(noised), -1),
            )
