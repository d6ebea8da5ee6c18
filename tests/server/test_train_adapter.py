"""DreamCache Train Adapter in a real server: an adapter is trained in the graph and used there, and nothing is lost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.adapter.provenance import Provenance
from dreamcache.nodes.host.frozen_base import ComfyUIBase
from harness.comfyui_server import ComfyUIServer, WorkflowError
from PIL import Image
from support.graph import TRIPLETS, Scene, adapter_file, difference, failure, lora, output, triplets_folder
from support.miniature import models


@pytest.fixture(autouse=True)
def triplets(server: ComfyUIServer) -> Path:
    return triplets_folder(server)


def train(server: ComfyUIServer, name: str, **changes: Any) -> Path:
    """Train and save. Returns the adapter's file."""
    scene = Scene(server)
    adapter = scene.train(name, **changes)
    scene.add("DreamCacheSaveAdapter", adapter=adapter, filename_prefix=name, precision="float32")
    server.run(scene.prompt)
    return max((server.base / "models" / "dreamcache").glob(f"{name}_*"))


def load(path: Path) -> Adapter:
    return load_adapter(path).adapter


def is_same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def losses(server: ComfyUIServer, name: str) -> list[str]:
    file = server.base / "output" / "dreamcache_training" / name / "losses.txt"
    return file.read_text().split() if file.is_file() else []


def plain_picture(server: ComfyUIServer) -> torch.Tensor:
    scene = Scene(server)
    return scene.sample(scene.model)


def test_a_trained_adapter_draws_saved_and_loaded_as_at_once(server: ComfyUIServer) -> None:
    path = train(server, "drawing")
    scene = Scene(server)
    at_once = scene.sample(scene.apply(scene.model, adapter=scene.train("drawing")))
    scene = Scene(server)
    loaded = scene.add("DreamCacheAdapterLoader", adapter_name=path.name)
    assert torch.equal(scene.sample(scene.apply(scene.model, adapter=loaded)), at_once)
    # An untrained one draws the plain picture, as does none.
    assert difference(at_once, plain_picture(server)) > 1e-3


def test_a_trained_adapter_tells_what_it_was_trained_on(server: ComfyUIServer) -> None:
    base = ComfyUIBase(models.unet_patcher("sd15"), models.vae(), models.clip("sd15"), load(train(server, "telling")))
    provenance = Provenance(base.weights_hash, steps=4, batch=2, triplets=3)
    assert load(train(server, "telling")).provenance == (provenance,)
    scene = Scene(server)
    loader = scene.add("DreamCacheAdapterLoader", adapter_name=train(server, "telling").name)
    scene.add("PreviewAny", source=output(loader, 1))
    assert provenance.description in str(server.run(scene.prompt).outputs)


def test_training_leaves_the_model_as_it_was(server: ComfyUIServer) -> None:
    before = plain_picture(server)
    train(server, "leaving", checkpointing=True, sample_every=2)
    assert torch.equal(plain_picture(server), before)


def test_training_that_is_cancelled_goes_on_when_it_is_queued_again(server: ComfyUIServer) -> None:
    before, steps = plain_picture(server), 24
    straight = train(server, "straight", steps=steps)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(train, server, "cancelled", steps=steps)
        while len(losses(server, "cancelled")) < 3:
            assert not run.done()
            time.sleep(0.01)
        server.interrupt()
        with pytest.raises(WorkflowError, match="interrupted"):
            run.result()
    done = losses(server, "cancelled")
    assert 3 <= len(done) < steps
    assert torch.equal(plain_picture(server), before)
    resumed = train(server, "cancelled", steps=steps)
    assert losses(server, "cancelled")[: len(done)] == done
    assert losses(server, "cancelled") == losses(server, "straight")
    assert is_same(load(resumed), load(straight))


def test_more_steps_train_on_and_another_name_begins_anew(server: ComfyUIServer) -> None:
    train(server, "longer", steps=2)
    first = losses(server, "longer")
    train(server, "longer", steps=4)
    assert losses(server, "longer")[:2] == first
    assert len(losses(server, "longer")) == 4
    train(server, "anew", steps=2)
    assert losses(server, "anew") == first


def test_training_begins_with_a_given_adapter(server: ComfyUIServer) -> None:
    first = train(server, "first")
    scene = Scene(server)
    given = scene.add("DreamCacheAdapterLoader", adapter_name=first.name)
    adapter = scene.train("second", steps=1, adapter=given)
    for link, name in ((adapter, "second"), (given, "first")):
        scene.add("DreamCacheSaveAdapter", adapter=link, filename_prefix=f"after_{name}", precision="float32")
    server.run(scene.prompt)
    after = {name: load(first.with_name(f"after_{name}_00001_.safetensors")) for name in ("first", "second")}
    assert is_same(after["first"], load(first))
    assert not is_same(after["second"], load(first))
    assert [training.steps for training in after["second"].provenance] == [4, 1]


def test_samples_and_the_loss_curve_come_out_as_pictures(server: ComfyUIServer, tmp_path: Path) -> None:
    def pictures(**changes: Any) -> dict[str, list[Image.Image]]:
        scene = Scene(server)
        trained = scene.train("seen", sample_every=2, **changes)
        links = {"curve": output(trained, 1), "samples": output(trained, 2)}
        nodes = {scene.add("PreviewImage", images=link)[0]: name for name, link in links.items()}
        outputs = server.run(scene.prompt).outputs
        return {
            name: [
                Image.open(server.download(image, tmp_path / image["filename"])) for image in outputs[node]["images"]
            ]
            for node, name in nodes.items()
        }

    shown = pictures()
    assert len(shown["curve"]) == 1
    first, second = shown["samples"]
    assert first.size == second.size
    assert first.tobytes() != second.tobytes()
    # Two more steps, and a row less: sheets of another size are left out.
    (third,) = pictures(steps=6, sample_prompts="a cup on a beach\n\na cup in the snow")["samples"]
    assert third.height < second.height


def test_without_samples_what_would_show_them_does_not_run(server: ComfyUIServer) -> None:
    scene = Scene(server)
    preview = scene.add("PreviewImage", images=output(scene.train("unseen"), 2))
    assert preview[0] not in server.run(scene.prompt).outputs


# --- Wrong use -------------------------------------------------------------------------------------------------------


def failure_to_train(scene: Scene, **changes: Any) -> str:
    adapter = scene.train("wrong", **changes)
    return failure(lambda: scene.sample(scene.apply(scene.model, adapter=adapter)))


def test_a_folder_without_triplets(server: ComfyUIServer) -> None:
    assert "is not a folder: choose the folder that contains the triplets" in failure_to_train(
        Scene(server), folder="gone"
    )
    (server.base / "output" / "empty").mkdir(exist_ok=True)
    assert "make some with DreamCache Save Triplet" in failure_to_train(Scene(server), folder="empty")


def test_a_model_that_dreamcache_does_not_work_on(server: ComfyUIServer) -> None:
    scene = Scene(server)
    model = scene.add("MiniatureModel", structure="flux", seed=models.SEED)
    own = {"model": model, "clip": output(model, 1), "vae": output(model, 2)}
    assert "load a checkpoint of SD1.x, SD2.x or SDXL" in failure_to_train(scene, **own)


def test_the_parts_of_another_checkpoint(server: ComfyUIServer) -> None:
    scene = Scene(server)
    other = scene.add("MiniatureModel", structure="sd21", seed=models.SEED)
    assert "connect the CLIP of the model's own checkpoint" in failure_to_train(scene, clip=output(other, 1))
    scene = Scene(server)
    vae = scene.add("VAELoader", vae_name="pixel_space")
    assert "connect the VAE of the model's own checkpoint" in failure_to_train(scene, vae=vae)
    scene = Scene(server)
    adapter = scene.add("DreamCacheAdapterLoader", adapter_name=adapter_file(server, "sd21"))
    assert "The adapter was trained for" in failure_to_train(scene, adapter=adapter)


@pytest.mark.parametrize(("part", "number"), [("clip", 1), ("vae", 2)])
def test_a_checkpoint_without_clip_or_vae(server: ComfyUIServer, part: str, number: int) -> None:
    scene = Scene(server)
    bare = scene.add("MiniatureBareModel")
    assert f"load one with Load {part.upper()}" in failure_to_train(scene, **{part: output(bare, number)})


def test_a_resolution_that_latents_do_not_have(server: ComfyUIServer) -> None:
    with pytest.raises(WorkflowError, match=r"The resolution 100 is not a multiple of 8: use 96\."):
        train(server, "wrong", resolution=100)
    scene = Scene(server)
    resolution = scene.add("PrimitiveInt", value=100)
    assert "The resolution 100 is not a multiple of 8: use 96." in failure_to_train(scene, resolution=resolution)


def test_a_batch_that_cannot_be_cut(server: ComfyUIServer) -> None:
    assert "choose a multiple of 3" in failure_to_train(Scene(server), parts=3)


@pytest.mark.parametrize("name", ["", "../outside", "/tmp/outside"])
def test_a_name_outside_the_output_folder(server: ComfyUIServer, name: str) -> None:
    with pytest.raises(WorkflowError, match=r"is not a valid folder name in .*: use a name such as my_adapter\."):
        train(server, name)


def test_a_training_that_goes_on_with_other_settings(server: ComfyUIServer) -> None:
    train(server, "settled")
    scene = Scene(server)
    message = failure(lambda: scene.sample(scene.apply(scene.model, adapter=scene.train("settled", batch=4))))
    assert 'The training "settled" was started with batch 2, but now it is 4' in message
    assert "choose a new name to start over" in message


def test_a_training_that_goes_on_without_its_lora_or_with_another_strength_of_it(server: ComfyUIServer) -> None:
    def go_on(strength: float, steps: int = 1) -> torch.Tensor:
        scene = Scene(server)
        model = lora(scene, scene.model)
        scene.prompt[model[0]]["inputs"]["strength_model"] = strength
        trained = scene.train("with_lora", model=model if strength else scene.model, steps=steps)
        return scene.sample(scene.apply(scene.model, adapter=trained), steps=1)

    go_on(1.0)
    go_on(1.0, steps=2)
    for strength in (0.0, 0.5):
        message = failure(lambda strength=strength: go_on(strength, steps=3))
        assert 'The training "with_lora" was started with LoRAs' in message
    assert len(losses(server, "with_lora")) == 2


@pytest.mark.parametrize("folder", ["", "  ", '""', "."])
def test_no_folder_is_not_all_of_output(server: ComfyUIServer, folder: str) -> None:
    with pytest.raises(WorkflowError, match="The folder's name is empty: enter that of the folder with the triplets"):
        train(server, "none", folder=folder)


def test_a_folder_is_found_as_it_was_pasted(server: ComfyUIServer) -> None:
    train(server, "pasted", folder=f' "{(server.base / "output" / TRIPLETS).as_uri()}" ', steps=1)
    assert len(losses(server, "pasted")) == 1
