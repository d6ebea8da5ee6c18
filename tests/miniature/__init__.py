"""The miniatures as a ComfyUI node pack: link this folder into `custom_nodes` (a copy would not find `scripts/`)."""

from __future__ import annotations

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


class MiniatureEmptyBatch(io.ComfyNode):
    """What a node further up can hand on when it selected no image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MiniatureEmptyBatch",
            category=_CATEGORY,
            inputs=[],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(torch.zeros(0, 64, 64, 3))


class MiniatureExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [MiniatureModel, MiniatureControlNet, MiniatureEmptyBatch]


async def comfy_entrypoint() -> MiniatureExtension:
    return MiniatureExtension()
