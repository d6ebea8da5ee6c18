"""The structure of a U-Net: its base model family, and which of its transformers are cached and adapted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from .errors import DreamCacheError

Stage = Literal["encoder", "middle", "decoder"]
STAGES: tuple[Stage, ...] = get_args(Stage)
DEFAULT_STAGES: tuple[Stage, ...] = ("middle", "decoder")
Group = Literal["bottleneck", "coarse", "medium", "fine"]

PIXELS_PER_LATENT = 8
"""How many pixels of a side one latent pixel stands for, in the autoencoder of every base model here."""

_BLOCKS_AT_A_SIZE = 3
"""How many blocks of the encoder, and of the decoder, run at one resolution, in every base model here."""

_LAYER_NAME = re.compile(r"(middle_block|(in|out)put_blocks\.[0-9]{1,3})\.[0-9]{1,3}")
# Ten times as many as the widest layer of SDXL has.
_MAX_CHANNELS = 12_800

_STAGE_OF_PREFIX: dict[str, Stage] = {"input_blocks": "encoder", "middle_block": "middle", "output_blocks": "decoder"}

# (model_channels, context_dim) of the base models that have a name.
_FAMILIES = {(320, 768): "SD1.x", (320, 1024): "SD2.x", (320, 2048): "SDXL", (384, 1280): "SDXL refiner"}

_ADVICE = "load a checkpoint of SD1.x, SD2.x or SDXL"


@dataclass(frozen=True)
class TransformerLayer:
    """One transformer of the U-Net. `name`: its LDM block name, such as `output_blocks.4.1`.

    Its input is cached. Where it has several blocks (SDXL), the adapter sits on the first: the image tokens of that
    block are the projected input, as they are in a transformer of a single block.
    """

    name: str
    channels: int
    heads: int

    @property
    def stage(self) -> Stage:
        return _STAGE_OF_PREFIX[self.name.partition(".")[0]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_possible(self) -> bool:
        """Whether there can be such a layer: its name is a block's, and its heads divide its channels."""
        return bool(
            _LAYER_NAME.fullmatch(self.name)
            and 0 < self.channels <= _MAX_CHANNELS
            and self.heads > 0
            and not self.channels % self.heads
        )


@dataclass(frozen=True)
class UNetStructure:
    """The transformers of a U-Net in the order in which they run, and the widths that tell its base model.

    `model_channels`: of its first convolution. `context_dim`: of the conditioning that it reads.
    """

    model_channels: int
    context_dim: int
    layers: tuple[TransformerLayer, ...]

    @property
    def base_model(self) -> str:
        return family(self.model_channels, self.context_dim)


def family(model_channels: int, context_dim: int) -> str:
    """The base model family in words: `SD1.x`, `SD2.x`, `SDXL`, or a description of one without a name."""
    name = _FAMILIES.get((model_channels, context_dim))
    return name or f"a U-Net of {model_channels} channels and {context_dim}-wide prompts"


def read_structure(unet: torch.nn.Module, kind: str) -> UNetStructure:
    """Read the structure of a U-Net in the LDM layout (`input_blocks`, `middle_block`, `output_blocks`).

    `kind`: name of the model's class, for the message. Raises DreamCacheError for a model without these blocks (Flux,
    SD3) or without transformers in them, and for a video U-Net, whose transformers mix frames.
    """
    if not all(hasattr(unet, prefix) for prefix in _STAGE_OF_PREFIX):
        raise DreamCacheError(f"DreamCache works with U-Nets, and {kind} is not one: {_ADVICE}.")
    transformers: dict[str, Any] = {
        name: module
        for name, module in unet.named_modules()
        if name.partition(".")[0] in _STAGE_OF_PREFIX and hasattr(module, "transformer_blocks")
    }
    if not transformers or any(hasattr(transformer, "time_stack") for transformer in transformers.values()):
        raise DreamCacheError(
            f"DreamCache works with U-Nets that generate single images, and {kind} is not one: {_ADVICE}."
        )
    blocks = {name: transformer.transformer_blocks[0] for name, transformer in transformers.items()}
    return UNetStructure(
        model_channels=int(unet.model_channels),  # type: ignore[arg-type]
        context_dim=next(iter(blocks.values())).attn2.to_k.in_features,
        layers=tuple(
            TransformerLayer(name, channels=block.attn1.to_q.in_features, heads=block.attn1.heads)
            for name, block in blocks.items()
        ),
    )


def select_layers(
    layers: Sequence[TransformerLayer], stages: Sequence[Stage] = DEFAULT_STAGES
) -> tuple[TransformerLayer, ...]:
    """The layers that are cached and adapted: the middle block's, and every other one of encoder and decoder.

    By default SD1.x and SD2.x give middle block 1 and output blocks 4, 6, 8, 10 (paper, section 3.2). The encoder, part
    of the paper's ablation, gives input blocks 2, 5, 8. SDXL has fewer and deeper transformers: middle block 1, output
    blocks 1, 3, 5, and input blocks 5 and 8.
    """
    selected: list[TransformerLayer] = []
    for stage in STAGES:
        if stage in stages:
            in_stage = [layer for layer in layers if layer.stage == stage]
            selected += in_stage if stage == "middle" else in_stage[1::2]
    return tuple(selected)


def group_of(layer: TransformerLayer, layers: Sequence[TransformerLayer]) -> Group:
    """The resolution group of a layer: the middle block is the bottleneck; among the others, those at the highest
    resolution are fine, those at the lowest coarse, and those between medium.

    `layers`: all cached layers of the same U-Net. In the decoder of SD1.x, SD2.x and the demo model, output block 4 is
    coarse, 6 and 8 are medium, 10 is fine. In SDXL's, 1 is coarse, 3 and 5 fine.
    """
    if layer.stage == "middle":
        return "bottleneck"
    sized = [other for other in (layer, *layers) if other.stage != "middle"]
    # Encoder and decoder have their transformers at the same resolutions.
    coarsest = {
        stage: min(_fineness(other) for other in sized if other.stage == stage)
        for stage in {other.stage for other in sized}
    }
    finer = {other.name: _fineness(other) - coarsest[other.stage] for other in sized}
    if finer[layer.name] == max(finer.values()):
        return "fine"
    return "medium" if finer[layer.name] else "coarse"


def _fineness(layer: TransformerLayer) -> int:
    """How much finer a layer is than others of its stage: each step doubles the resolution."""
    block = int(layer.name.split(".")[1])
    # Input block 0 is the first convolution. The encoder halves where the decoder doubles.
    return -((block - 1) // _BLOCKS_AT_A_SIZE) if layer.stage == "encoder" else block // _BLOCKS_AT_A_SIZE
