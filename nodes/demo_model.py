"""DreamCache Demo Model: a small trained model and its adapter, from files that come with the pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.adapter.file import load_adapter
from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.evaluation.subjects import load_masked_image
from ..dreamcache_core.io.json_fields import Fields
from ..dreamcache_core.io.tensor_file import read_header, read_tensors
from .host.demo_network import FILE_KIND, FILE_VERSION, DemoNetworks, demo_networks
from .host.patching.injection import wrap_for_sampling
from .schema import CATEGORY, AdapterType

FOLDER = Path(__file__).parent / "demo"
MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.safetensors"
SUBJECT_FILE = "subject.png"

_Content = TypeVar("_Content")


class DreamCacheDemoModel(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheDemoModel",
            display_name="DreamCache Demo Model",
            category=CATEGORY,
            description="A small model with its own adapter. Try everything without a checkpoint: it generates "
            "emoji-style things at 128 × 128.",
            search_aliases=["personalize", "load checkpoint", "example model"],
            inputs=[],
            outputs=[
                io.Model.Output("model", tooltip="SD1.5 in miniature, for Encode Reference and Apply DreamCache."),
                io.Clip.Output("clip", tooltip="For CLIP Text Encode. The help page lists what you can ask for."),
                io.Vae.Output("vae", tooltip="For Encode Reference and VAE Decode."),
                AdapterType.Output("adapter", tooltip="For Apply DreamCache. Trained for this model."),
                io.Image.Output("image", tooltip="A sample subject that the model was never trained on."),
                io.Mask.Output("mask", tooltip="Mask of that subject, for Encode Reference."),
            ],
        )

    @classmethod
    @override
    def execute(cls) -> io.NodeOutput:
        networks = load_networks()
        adapter = wrap_for_sampling(_read(FOLDER / ADAPTER_FILE, load_adapter).adapter)
        subject = _read(FOLDER / SUBJECT_FILE, load_masked_image)
        assert subject.mask is not None  # The pack has a mask beside the image.
        image, mask = subject.image.unsqueeze(0), subject.mask.unsqueeze(0)
        return io.NodeOutput(networks.model, networks.clip, networks.vae, adapter, image, mask)


def load_networks(disable_dynamic: bool = False) -> DemoNetworks:
    """Load the demo model's networks. `disable_dynamic`: without dynamic VRAM.

    Raises DreamCacheError if the file is missing or damaged.
    """
    header, networks = _read(FOLDER / MODEL_FILE, lambda path: _load(path, disable_dynamic))
    # Previews of the demo model's latents need other factors than SD1.5's, whose class it has.
    latent_format = networks.model.model.latent_format
    latent_format.latent_rgb_factors = header.items("rgb_factors")
    latent_format.taesd_decoder_name = None
    for part, patcher in networks.patchers.items():
        patcher.cached_patcher_init = (_load_patcher, (part,))
    return networks


def _load_patcher(part: str, disable_dynamic: bool = False) -> ModelPatcher:
    """Load one part again. ComfyUI calls this to put a copy on another GPU, or to have one without dynamic VRAM."""
    return load_networks(disable_dynamic).patchers[part]


def _load(path: Path, disable_dynamic: bool) -> tuple[Fields, DemoNetworks]:
    """Header and networks of the model's file."""
    metadata, tensors = read_tensors(path)
    header = read_header(path, FILE_KIND, FILE_VERSION, metadata)
    if header is None:
        raise DreamCacheError(f"{path.name} is not a DreamCache {FILE_KIND}.")
    return header, demo_networks(tensors, disable_dynamic)


def _read(path: Path, read: Callable[[Path], _Content]) -> _Content:
    """Read one of the pack's own files. Raises DreamCacheError with advice for a broken installation."""
    try:
        return read(path)
    except DreamCacheError as error:
        problem = "is damaged" if path.is_file() else "is not there"
        raise DreamCacheError(
            f"{path} {problem}: reinstall the DreamCache nodes, which include the demo model."
        ) from error
