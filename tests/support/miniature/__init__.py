"""The miniatures as a ComfyUI node pack: link this folder into `custom_nodes` (a copy would not find `scripts/`)."""

from __future__ import annotations

import copy
import logging

import comfy.sd
import torch
from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from . import models

_CATEGORY = "tests/miniature"


def _structure_input() -> io.Combo.Input:
    return io.Combo.Input("structure", options=list(models.STRUCTURES))


def _seed_input() -> io.Int.Input:
    return io.Int.Input("seed", default=models.SEED, min=0, max=2**32 - 1)


class MiniatureModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureModel",
            category=_CATEGORY,
            inputs=[_structure_input(), _seed_input()],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, structure: str, seed: int) -> io.NodeOutput:
        return io.NodeOutput(models.unet_patcher(structure, seed), models.clip(structure, seed), models.vae(seed))


class MiniatureClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureClipVision",
            category=_CATEGORY,
            inputs=[_structure_input(), _seed_input()],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, structure: str, seed: int) -> io.NodeOutput:
        return io.NodeOutput(models.clip_vision(structure, seed))


class MiniatureControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureControlNet",
            category=_CATEGORY,
            inputs=[_structure_input(), _seed_input()],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls, structure: str, seed: int) -> io.NodeOutput:
        return io.NodeOutput(models.controlnet(structure, seed))


class MiniatureBareModel(io.ComfyNode):
    """What Load Checkpoint makes of a checkpoint that holds a U-Net and nothing else."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureBareModel",
            category=_CATEGORY,
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(models.unet_patcher("sd15"), None, None)


class MiniatureWatchedVae(io.ComfyNode):
    """A VAE that says so in the server's log when it encodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureWatchedVae", category=_CATEGORY, inputs=[io.Vae.Input("vae")], outputs=[io.Vae.Output()]
        )

    @classmethod
    def execute(cls, vae: comfy.sd.VAE) -> io.NodeOutput:
        def encode(pixels: torch.Tensor) -> torch.Tensor:
            logging.info("the watched VAE encodes")
            return vae.encode(pixels)

        watched = copy.copy(vae)
        watched.encode = encode
        return io.NodeOutput(watched)


class MiniatureImages(io.ComfyNode):
    """Images of any form that a node further up can hand on: none at all, or grey ones, or of odd sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureImages",
            category=_CATEGORY,
            inputs=[io.Int.Input(name, min=0) for name in ("count", "height", "width", "channels")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, count: int, height: int, width: int, channels: int) -> io.NodeOutput:
        return io.NodeOutput(torch.linspace(0, 1, width).reshape(1, 1, width, 1).expand(count, height, width, channels))


class _BackgroundRemoval:
    """Stands in for a network: where a picture is redder than it is on average, there is its subject."""

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        red = image[..., 0]
        return (red > red.mean(dim=(1, 2), keepdim=True)).float()


class MiniatureBackgroundRemoval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureBackgroundRemoval",
            category=_CATEGORY,
            inputs=[],
            outputs=[io.BackgroundRemoval.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(_BackgroundRemoval())


class MiniatureExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [
            MiniatureModel,
            MiniatureBareModel,
            MiniatureClipVision,
            MiniatureControlNet,
            MiniatureWatchedVae,
            MiniatureImages,
        ]
        # Older ComfyUIs remove no backgrounds.
        return [*nodes, MiniatureBackgroundRemoval] if hasattr(io, "BackgroundRemoval") else nodes


async def comfy_entrypoint() -> MiniatureExtension:
    return MiniatureExtension()
