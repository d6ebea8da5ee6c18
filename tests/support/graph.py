"""Graphs as a user wires them, sent to a real server, with latents to compare as their result."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from dreamcache.dreamcache_core.adapter.file import save_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from dreamcache.dreamcache_core.unet import select_layers
from dreamcache.nodes.host.base_model import structure_of
from harness.comfyui_server import ComfyUIServer, Prompt, WorkflowError
from harness.workflow_prompt import OWN_ATTENTION, PHOTOGRAPH
from PIL import Image
from support.miniature import models

TRIPLETS = "dreamcache_triplets/graph"
"""A folder of ComfyUI's output folder."""

_RUNS = itertools.count()

# An output of a node, as prompts in API format name it.
Link = list[Any]


@dataclass
class Graph:
    """A prompt under construction. Equal graphs get equal node numbers, so that the server reuses its results."""

    server: ComfyUIServer
    prompt: Prompt = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Add a node. Returns its first output; `output` gives the others."""
        number = str(max(map(int, self.prompt), default=0) + 1)
        self.prompt[number] = {"class_type": class_type, "inputs": inputs}
        return [number, 0]

    def latents(self, samples: Link, **how: Any) -> torch.Tensor:
        """Run the graph. Returns the latents of `samples`: (batch, 4, height, width) float32, on the CPU."""
        self.add("SaveLatent", samples=samples, filename_prefix="test")
        result = self.server.run(self.prompt, **how)
        (saved,) = (latent for output in result.outputs.values() for latent in output.get("latents", []))
        path = self.server.base / "output" / saved["subfolder"] / saved["filename"]
        return safetensors.torch.load_file(path)["latent_tensor"]


def output(link: Link, number: int) -> Link:
    return [link[0], number]


def failure(run: Callable[[], Any]) -> str:
    """The error message of a failing run, which must be one sentence."""
    with pytest.raises(WorkflowError) as raised:
        run()
    message = str(raised.value)
    assert re.fullmatch(r"(ApplyDreamCache|DreamCache\w+): [^\n]+\.", message), message
    assert not re.search(r"[.!?] ", message), message
    return message


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The distance between two results, as a fraction of the second's norm."""
    return float((one - other).norm() / other.norm())


class Scene(Graph):
    """The graph of every test: a miniature model, two prompts, a picture as reference, and its adapter."""

    def __init__(self, server: ComfyUIServer, structure: str = "sd15", resolution: int = 128) -> None:
        super().__init__(server)
        self.model = self.add("MiniatureModel", structure=structure, seed=models.SEED)
        self.clip, self.vae = output(self.model, 1), output(self.model, 2)
        self.positive = self.add("CLIPTextEncode", clip=self.clip, text="a dog on a beach")
        self.negative = self.add("CLIPTextEncode", clip=self.clip, text="blurry")
        self.image = self.add("LoadImage", image="example.png")
        self.adapter = self.add("DreamCacheAdapterLoader", adapter_name=adapter_file(server, structure))
        self.resolution = resolution
        self.reference = self.encode()

    def encode(self, **changes: Any) -> Link:
        """An Encode Reference node."""
        inputs = {"model": self.model, "vae": self.vae, "image": self.image, "clip": self.clip}
        settings = {"timestep": 1, "seed": 0, "resolution": self.resolution}
        return self.add("DreamCacheEncodeReference", **{**inputs, **settings, **changes})

    def own_attention(self, all_layers: bool = False) -> Link:
        """An Adapter Loader that needs no file."""
        return self.add("DreamCacheAdapterLoader", adapter_name=OWN_ATTENTION[all_layers])

    def apply(self, model: Link, **changes: Any) -> Link:
        """An Apply DreamCache node."""
        inputs = {"model": model, "adapter": self.adapter, "reference_cache": self.reference}
        settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "image_guidance": 1.0, "rows": "both"}
        return self.add("ApplyDreamCache", **{**inputs, **settings, **changes})

    def train(self, name: str, **changes: Any) -> Link:
        """A Train Adapter node: 4 steps on the triplets of `triplets_folder`."""
        inputs = {"model": self.model, "vae": self.vae, "clip": self.clip, "folder": TRIPLETS, "name": name}
        settings = {"steps": 4, "batch": 2, "resolution": 64, "learning_rate": 1e-3, "seed": 1, "warm_up": 0}
        samples = {"sample_every": 0, "sample_prompts": ""}
        cost = {"parts": 1, "checkpointing": False, "precision": "float32", "checkpoint_every": 100}
        return self.add("DreamCacheTrainAdapter", **{**inputs, **settings, **samples, **cost, **changes})

    def sample(self, model: Link, **changes: Any) -> torch.Tensor:
        """A KSampler, run. Returns its latents."""
        return self.latents(self.sampler(model, **changes))

    def sampler(self, model: Link, **changes: Any) -> Link:
        """A KSampler node on 128×192 pixels."""
        inputs = {"model": model, "positive": self.positive, "negative": self.negative}
        if "latent_image" not in changes:
            inputs["latent_image"] = self.add("EmptyLatentImage", width=192, height=128, batch_size=1)
        settings = {"seed": 5, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        # No input of the node's, but part of what the server knows its results by: it must not answer from memory.
        settings["test_run"] = next(_RUNS)
        return self.add("KSampler", **{**inputs, **settings, **changes})


def triplets_folder(server: ComfyUIServer) -> Path:
    """Three triplets, where DreamCache Save Triplet puts its own."""
    folder = server.base / "output" / TRIPLETS
    if not folder.is_dir():
        for left in (0, 60, 120):
            picture = Image.open(PHOTOGRAPH).crop((left, 0, left + 360, 360)).resize((96, 96))
            mask = Image.new("L", picture.size, 0)
            mask.paste(255, (10, 5, 80, 90))
            save_triplet(folder, {"generation": picture, "mask": mask}, f"a cup, {left} pixels from the left")
    return folder


def lora(scene: Scene, model: Link) -> Link:
    """A Load LoRA node, of a LoRA with generated weights."""
    path = scene.server.base / "models" / "loras" / "miniature.safetensors"
    if not path.is_file():
        safetensors.torch.save_file(models.lora("sd15"), path)
    return scene.add("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0)


def adapter_file(server: ComfyUIServer, structure: str) -> str:
    """Name of an adapter with generated weights, in the server's models folder."""
    path: Path = server.base / "models" / "dreamcache" / f"{structure}.safetensors"
    if not path.is_file():
        unet = structure_of(models.unet_patcher(structure))
        adapter = Adapter(select_layers(unet.layers), unet.base_model)
        adapter.load_state_dict(models.generated_weights(adapter, models.SEED))
        save_adapter(path, adapter)
    return path.name
