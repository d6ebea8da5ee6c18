"""The frozen base model of a training: the U-Net, VAE and CLIP that ComfyUI runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...dreamcache_core.adapter.network import Adapter
from ...dreamcache_core.adapter.own_start import FrozenTokens, begin_with_own_attention
from ...dreamcache_core.adapter.provenance import hash_weights
from ...dreamcache_core.adapter.self_attention import SelfAttentionLayer
from ...dreamcache_core.io.disk_cache import DiskCache
from ...dreamcache_core.io.images import planar
from ...dreamcache_core.reference.cache import ReferenceBatch, ReferenceCache
from ...dreamcache_core.reference.masks import resize_mask
from ...dreamcache_core.training.loss import EncodedPrompts
from ...dreamcache_core.unet import PIXELS_PER_LATENT
from .base_model import check_clip, check_prompt_width, check_vae, structure_of, weights_of
from .patching.injection import Injection, wrap_adapter
from .patching.recording import recording
from .patching.training import make_trainable, training_options
from .reference import PROMPT, TIMESTEP

FITTED_ON = 48
"""How many references `begin_as_the_model` needs."""


class ComfyUIBase:
    """The FrozenBase (training/loss.py) of a MODEL, its VAE and its CLIP.

    `adapter`: float32, on the model's device. `precision`: what U-Net and adapter compute in. `checkpointing`: compute
    activations again in the backward pass, to save memory. `disk_cache`: keeps latents and encoded prompts, by the
    weights of VAE and CLIP; it doesn't notice LoRAs on the CLIP. Raises DreamCacheError if adapter, VAE or CLIP doesn't
    fit the model.
    """

    timestep = TIMESTEP
    """The timestep of the caching pass."""

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
            # Autocast casts only what is in float32.
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
        """`hash_weights` of the U-Net in its file, without any LoRAs that are on it."""
        return weights_of(self._patcher).base_hash

    def load(self) -> None:
        """Load the U-Net onto its device with its patches, unless it is there. `unload` takes the patches off again."""
        if not self._patcher.is_injected or self._model.model_lowvram:
            # Completely: weights that are streamed in share their memory, and the backward pass still needs them.
            comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)

    def unload(self) -> None:
        self._patcher.detach()

    def encode_images(self, images: torch.Tensor, keys: Sequence[str | None] = ()) -> torch.Tensor:
        if not (self._disk_cache and keys):
            return self._encode_images(images)
        keys = [key and f"{self._vae_hash}/{key}" for key in keys]
        shape = (None, *(side // PIXELS_PER_LATENT for side in images.shape[1:3]))
        latents = self._disk_cache.get(
            keys, [shape] * len(keys), lambda numbers: list(self._encode_images(images[numbers]))
        )
        return torch.stack([latent.to(self.device) for latent in latents])

    def _encode_images(self, images: torch.Tensor) -> torch.Tensor:
        # Planar, since earlier versions held them so: an old training resumes to the same bits.
        latents = self._model.process_latent_in(self._vae.encode(planar(images)))
        return latents.to(self.device, torch.float32)

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts:
        encodings = self._disk_cached_prompts(prompts) if self._disk_cache else self._encode_prompts(prompts)
        # A long prompt has a multiple of the tokens of a short one. Repeat each until all are of one length, as ComfyUI
        # does.
        tokens = math.lcm(*(context.shape[1] for context, *_ in encodings))
        contexts, *pooled = zip(*encodings, strict=True)
        repeated = [context.to(self.device).repeat(1, tokens // context.shape[1], 1) for context in contexts]
        return EncodedPrompts(torch.cat(repeated), *(torch.cat(vectors).to(self.device) for vectors in pooled))

    def _disk_cached_prompts(self, prompts: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
        assert self._disk_cache
        # A context is (1, tokens, channels), a pooled vector (1, channels).
        kinds: dict[str, tuple[int | None, ...]] = {"": (1, None, self.structure.context_dim)}
        kinds |= {"pooled of ": (1, None)} if self._reads_pooled else {}
        keys = [f"{kind}{self._clip_hash}/{prompt}" for kind in kinds for prompt in prompts]

        def make(numbers: Sequence[int]) -> list[torch.Tensor]:
            missing = sorted({number % len(prompts) for number in numbers})
            encodings = dict(zip(missing, self._encode_prompts([prompts[number] for number in missing]), strict=True))
            return [encodings[number % len(prompts)][number // len(prompts)] for number in numbers]

        shapes = [shape for shape in kinds.values() for _ in prompts]
        tensors = self._disk_cache.get(keys, shapes, make)
        return list(zip(*(tensors[n * len(prompts) :][: len(prompts)] for n in range(len(kinds))), strict=True))

    def _encode_prompts(self, prompts: Sequence[str]) -> list[tuple[torch.Tensor, ...]]:
        """The context of each prompt, (1, tokens, channels), and its pooled vector, (1, channels), if the U-Net reads
        one.
        """
        tokens = [self._clip.tokenize(prompt) for prompt in prompts]
        if self._reads_pooled:
            # One at a time: of several prompts, ComfyUI returns only the first one's vector.
            return [self._clip.encode_from_tokens(each, return_pooled=True) for each in tokens]
        # ComfyUI cuts a long prompt into sections, encodes them as a batch and joins them: here those of all prompts.
        sections = {name: [section for each in tokens for section in each[name]] for name in tokens[0]}
        row = self._clip.encode_from_tokens(sections)
        counts = [max(map(len, each.values())) for each in tokens]
        return [(context,) for context in row.split([count * (row.shape[1] // sum(counts)) for count in counts], dim=1)]

    def cache(self, latents: torch.Tensor, noise: torch.Tensor, subjects: torch.Tensor | None = None) -> ReferenceCache:
        # VAE, CLIP or the samples may have displaced the U-Net.
        self.load()
        sigma = self.sigmas[self.timestep].expand(len(latents))
        prompts, layers = self._empty_prompt.expand(len(latents)), self._adapter.model.layers
        with recording(self.unet, layers) as features:
            self._evaluate(latents + self.sigmas[self.timestep] * noise, sigma, prompts)
        size = (latents.shape[2], latents.shape[3])
        subject = None if subjects is None else resize_mask(subjects, *size)
        batch = ReferenceBatch(
            features, self.structure.base_model, layers, size, self.timestep, PROMPT, subject=subject
        )
        return ReferenceCache((batch,), per_latent=True)

    def frozen_tokens(self, latents: torch.Tensor, noise: torch.Tensor) -> dict[str, FrozenTokens]:
        """What the adapted transformers make of the features of a caching pass, by layer."""
        (batch,) = self.cache(latents, noise).batches
        tokens = {}
        for name, features in batch.features.items():
            with self._computing():
                key, value = SelfAttentionLayer(self.unet.get_submodule(name)).keys_values(features)
            tokens[name] = FrozenTokens(features.flatten(2).transpose(1, 2), key, value)
        return tokens

    def denoise(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, cache: ReferenceCache | None
    ) -> torch.Tensor:
        injections = () if cache is None else (Injection(self._adapter, cache),)
        return self._evaluate(noised, sigma, prompts, *injections)

    def _computing(self) -> AbstractContextManager[object]:
        return nullcontext() if self._precision == torch.float32 else torch.autocast(self.device.type, self._precision)

    def _evaluate(
        self, noised: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, *injections: Injection
    ) -> torch.Tensor:
        # Read by inpainting models: a mask that covers the entire image.
        concat = self._model.concat_cond(noise=noised, latent_image=noised, device=self.device)
        # Read by SDXL: the pooled prompt, and the size of the image.
        height, width = (PIXELS_PER_LATENT * side for side in noised.shape[2:])
        adm = self._model.encode_adm(pooled_output=prompts.pooled, height=height, width=width, device=self.device)
        with self._computing():
            return self._model.apply_model(
                noised,
                sigma,
                c_concat=concat,
                c_crossattn=prompts.context,
                transformer_options=training_options(*injections),
                y=None if adm is None else adm.expand(len(noised), -1),
            )


@torch.no_grad()
def begin_as_the_model(base: ComfyUIBase, adapter: Adapter, images: Iterable[torch.Tensor], seed: int) -> None:
    """Give an untrained adapter of `base` the start of adapter/own_start.py.

    `images`: batches of references, a few dozen in all, (batch, height, width, 3), 0…1. `seed`: of the noise in the
    caching pass.
    """
    random = torch.Generator().manual_seed(seed)

    def pictures() -> Iterator[dict[str, FrozenTokens]]:
        for batch in images:
            latents = base.encode_images(batch)
            yield base.frozen_tokens(latents, torch.randn(latents.shape, generator=random).to(latents))

    base.load()
    transformers: dict[str, Any] = {layer.name: base.unet.get_submodule(layer.name) for layer in adapter.layers}
    blocks = {name: transformer.transformer_blocks[0] for name, transformer in transformers.items()}
    begin_with_own_attention(adapter, blocks, pictures())
