"""Wrong use gives one sentence that says what is wrong and what to do; and the next prompt in the queue runs."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.comfyui_server import WorkflowError
from safetensors.torch import save_file
from support.graph import Link, Scene, adapter_file, difference, failure, output
from support.miniature import models

AUTHORS_FILE = Path(__file__).parents[1] / "support" / "conformance" / "official_format_sd21_mini.pt"


@pytest.fixture(autouse=True)
def the_next_prompt_runs(server):
    yield
    scene = Scene(server)
    assert scene.sample(scene.apply(scene.model), steps=1).isfinite().all()


def failure_to_draw(scene: Scene, model: Link | None = None, **apply: Any) -> str:
    return failure(lambda: scene.sample(scene.apply(model or scene.model, **apply), steps=1))


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["encode", "apply"])
def test_a_model_without_a_unet(server, node: str) -> None:
    scene = Scene(server)
    model = scene.add("MiniatureModel", structure="flux", seed=models.SEED)
    if node == "encode":
        own = {"model": model, "clip": output(model, 1), "vae": output(model, 2)}
        message = failure_to_draw(scene, reference_cache=scene.encode(**own))
    else:
        message = failure_to_draw(scene, model)
    assert "works with U-Nets, and Flux is not one: load a checkpoint of SD1.x, SD2.x or SDXL" in message


def test_a_cache_of_another_base_model(server) -> None:
    scene = Scene(server)
    other = scene.add("MiniatureModel", structure="sd21", seed=models.SEED)
    own = {"model": other, "clip": output(other, 1), "vae": output(other, 2)}
    message = failure_to_draw(scene, reference_cache=scene.encode(**own))
    assert "The reference cache was encoded with" in message
    assert "connect this model to DreamCache Encode Reference too" in message


def test_the_clip_of_another_model(server) -> None:
    scene = Scene(server)
    other = scene.add("MiniatureModel", structure="sd21", seed=models.SEED)
    message = failure_to_draw(scene, reference_cache=scene.encode(clip=output(other, 1)))
    assert "prompts to 64 channels, but the model needs 48: connect the CLIP of the model's own checkpoint" in message


def test_the_vae_of_another_model(server) -> None:
    scene = Scene(server)
    other = scene.add("VAELoader", vae_name="pixel_space")
    message = failure_to_draw(scene, reference_cache=scene.encode(vae=other))
    assert "connect the VAE of the model's own checkpoint" in message


@pytest.mark.parametrize(("part", "number"), [("clip", 1), ("vae", 2)])
def test_a_checkpoint_without_clip_or_vae(server, part: str, number: int) -> None:
    scene = Scene(server)
    bare = scene.add("MiniatureBareModel")
    message = failure_to_draw(scene, reference_cache=scene.encode(**{part: output(bare, number)}))
    assert f"load one with Load {part.upper()}" in message


# --- Adapter files ---------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_model(server) -> None:
    scene = Scene(server)
    adapter = scene.add("DreamCacheAdapterLoader", adapter_name=adapter_file(server, "sd21"))
    message = failure_to_draw(scene, adapter=adapter)
    assert "The adapter was trained for" in message
    assert "load an adapter for" in message


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def write_lora(path: Path) -> None:
    save_file(models.lora("sd15"), path)


def write_checkpoint(path: Path) -> None:
    unet = models.unet_patcher("sd15").model.diffusion_model.state_dict()
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}, path)


def write_half_a_safetensors(path: Path) -> None:
    write_lora(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_half_a_pickle(path: Path) -> None:
    whole = AUTHORS_FILE.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_text(path: Path) -> None:
    path.write_text("This is what some servers send where a file was moved.")


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_code(path: Path) -> None:
    torch.save({"diffusion_model": RunsCode(path.with_suffix(".ran"))}, path)


def write_bare_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_suffix(".ran"))))


def write_a_number(path: Path) -> None:
    torch.save(1.0, path)


@pytest.mark.parametrize(
    ("write", "suffix", "words"),
    [
        (write_lora, "safetensors", "a LoRA (load it with Load LoRA)"),
        (write_checkpoint, "safetensors", "a checkpoint (load it with Load Checkpoint)"),
        (write_half_a_safetensors, "safetensors", "download it again"),
        (write_half_a_pickle, "pt", "download it again"),
        (write_text, "safetensors", "download it again"),
        (write_text, "pt", "download it again"),
        (write_nothing, "safetensors", "download it again"),
        (write_nothing, "pt", "download it again"),
        (write_code, "pt", "was not opened because it contains more than tensors"),
        (write_bare_code, "pt", "was not opened because it contains more than tensors"),
        (write_a_number, "pt", "contains other things than tensors"),
    ],
)
def test_files_that_are_no_adapter(server, write: Callable[[Path], None], suffix: str, words: str) -> None:
    path = server.base / "models" / "dreamcache" / f"{write.__name__}.{suffix}"
    write(path)
    try:
        scene = Scene(server)
        message = failure_to_draw(scene, adapter=scene.add("DreamCacheAdapterLoader", adapter_name=path.name))
    finally:
        path.unlink()
    assert path.name in message
    assert words in message
    assert not path.with_suffix(".ran").exists()


def test_an_adapter_that_is_not_there(server) -> None:
    scene = Scene(server)
    adapter = scene.add("DreamCacheAdapterLoader", adapter_name="gone.safetensors")
    with pytest.raises(WorkflowError, match=r"There is no adapter gone\.safetensors in .*: put it there"):
        scene.sample(scene.apply(scene.model, adapter=adapter))


# --- References ------------------------------------------------------------------------------------------------------


def images(scene: Scene, count: int = 1, height: int = 64, width: int = 64, channels: int = 3) -> Link:
    return scene.add("MiniatureImages", count=count, height=height, width=width, channels=channels)


def test_no_image(server) -> None:
    scene = Scene(server)
    message = failure_to_draw(scene, reference_cache=scene.encode(image=images(scene, count=0)))
    assert "The image batch is empty" in message
    assert "connect an image" in message


def test_a_black_mask(server) -> None:
    scene = Scene(server)
    black = scene.add("SolidMask", value=0.0, width=64, height=64)
    message = failure_to_draw(scene, reference_cache=scene.encode(mask=black))
    assert "Mask 1 is black" in message
    assert "paint the subject white" in message


def test_masks_for_some_of_the_images(server) -> None:
    scene = Scene(server)
    masks = scene.add("ImageToMask", image=images(scene, count=2), channel="red")
    message = failure_to_draw(scene, reference_cache=scene.encode(image=images(scene, count=3), mask=masks))
    assert "2 masks for 3 images: connect one mask for all, or one for each image" in message


# 24×24 pixels are the fewest that the miniature's narrow normalisation takes.
@pytest.mark.parametrize(
    ("height", "width", "resolution"), [(1, 1, 128), (24, 24, 0), (8, 2048, 128), (8, 2048, 0), (2048, 8, 0)]
)
def test_images_of_odd_sizes_work(server, height: int, width: int, resolution: int) -> None:
    scene = Scene(server)
    reference = scene.encode(image=images(scene, height=height, width=width), resolution=resolution)
    latents = scene.sample(scene.apply(scene.model, reference_cache=reference), steps=1)
    assert latents.isfinite().all()
    scene = Scene(server)
    assert difference(latents, scene.sample(scene.model, steps=1)) > 0.01


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_images_and_those_with_alpha_are_as_their_colours_are(server, channels: int) -> None:
    def drawn(channels: int) -> torch.Tensor:
        scene = Scene(server)
        reference = scene.encode(image=images(scene, channels=channels))
        return scene.sample(scene.apply(scene.model, reference_cache=reference), steps=1)

    assert torch.equal(drawn(channels), drawn(3))


# --- The server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"strength": 2.5}, {"strength": -0.1}, {"start_percent": -0.5}, {"end_percent": 1.5}, {"image_guidance": 11.0}],
    ids=str,
)
def test_the_server_refuses_values_out_of_range(server, settings: dict[str, float]) -> None:
    scene = Scene(server)
    with pytest.raises(WorkflowError, match=r"ApplyDreamCache: Value -?[\d.]+ (bigger|smaller) than (max|min) of"):
        scene.sample(scene.apply(scene.model, **settings))


def test_nan_is_refused_though_it_passes_all_limits(server) -> None:
    message = failure_to_draw(Scene(server), strength=math.nan)
    # ComfyUI's own page can't read a history with NaN, and other tests open it.
    server.clear_history()
    assert message.endswith("strength of Apply DreamCache is nan: enter a number, or connect another node.")


def test_a_range_that_ends_before_it_begins_is_said_on_the_node(server) -> None:
    scene = Scene(server)
    scene.sampler(scene.apply(scene.model, start_percent=0.8, end_percent=0.3), steps=1)
    scene.add("SaveLatent", samples=[max(scene.prompt, key=int), 0], filename_prefix="test")
    (said,) = (output["text"][0] for output in server.run(scene.prompt).outputs.values() if "text" in output)
    assert said == ("The reference never applies, because start_percent (0.8) is above end_percent (0.3): swap them.")


def test_an_interrupted_run_leaves_nothing_behind(server) -> None:
    def plain() -> torch.Tensor:
        scene = Scene(server)
        return scene.sample(scene.model, steps=1)

    before = plain()
    scene = Scene(server)
    endless = scene.sampler(scene.apply(scene.model, image_guidance=2.0), steps=5000)
    with pytest.raises(WorkflowError, match="Not done after"):
        scene.latents(endless, timeout=3)
    assert torch.equal(plain(), before)
