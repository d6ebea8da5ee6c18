"""DreamCache Save and Load Reference Cache in a real server: what was saved draws what it drew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.adapter.file import save_adapter
from dreamcache.dreamcache_core.adapter.network import Adapter
from dreamcache.dreamcache_core.reference.file import load_references
from dreamcache.dreamcache_core.unet import DEFAULT_STAGES, STAGES, select_layers
from dreamcache.nodes.host.base_model import structure_of
from harness import environment
from harness.comfyui_server import ComfyUIServer, Result, WorkflowError
from support.graph import Graph, Link, Scene, difference, failure, lora, output
from support.miniature import models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def references(server: ComfyUIServer) -> Path:
    return server.base / "models" / "dreamcache_references"


def save(scene: Scene, prefix: str, reference: Link | None = None, **changes: str) -> Result:
    """Save a reference, or the scene's."""
    settings = {"filename_prefix": prefix, "precision": "float16", "layers": "middle and decoder", **changes}
    scene.add("DreamCacheSaveReferenceCache", reference_cache=reference or scene.reference, **settings)
    return scene.server.run(scene.prompt)


def said(result: Result) -> str:
    """What the one node with something to say says."""
    (text,) = (output["text"][0] for output in result.outputs.values() if "text" in output)
    return text


def load(graph: Graph, name: str) -> Link:
    return graph.add("DreamCacheLoadReferenceCache", reference_name=f"{name}_00001_.safetensors")


def apply_loaded(scene: Scene, name: str, model: Link | None = None) -> Link:
    return scene.apply(model or scene.model, reference_cache=load(scene, name))


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("float8", 0.05)])
def test_a_saved_reference_draws_what_it_drew(server: ComfyUIServer, precision: str, tolerance: float) -> None:
    result = save(Scene(server), f"drawing/{precision}", precision=precision)
    assert said(result).startswith(f"Saved drawing/{precision}_00001_.safetensors, ")
    scene = Scene(server)
    before = scene.sample(scene.apply(scene.model))
    scene = Scene(server)
    assert difference(scene.sample(apply_loaded(scene, f"drawing/{precision}")), before) < tolerance


def test_two_saved_references_read_together_draw_what_they_drew(server: ComfyUIServer) -> None:
    def both(scene: Scene) -> Link:
        named = {"references.reference_1": scene.reference, "references.reference_2": scene.encode(resolution=64)}
        return scene.add("DreamCacheCombineReferences", mode="concatenate", strengths="1, 0.5", **named)

    scene = Scene(server)
    save(scene, "both", both(scene))
    scene = Scene(server)
    before = scene.sample(scene.apply(scene.model, reference_cache=both(scene)))
    scene = Scene(server)
    assert difference(scene.sample(apply_loaded(scene, "both")), before) < 1e-3


@pytest.mark.parametrize("mode", ["concatenate", "average", "one per latent"])
def test_a_loaded_reference_and_an_encoded_one_are_combined(server: ComfyUIServer, mode: str) -> None:
    save(Scene(server), "mixed")

    def drawn(loaded: bool) -> torch.Tensor:
        scene = Scene(server)
        first = load(scene, "mixed") if loaded else scene.reference
        named = {"references.reference_1": first, "references.reference_2": scene.encode(timestep=400)}
        both = scene.add("DreamCacheCombineReferences", mode=mode, strengths="", **named)
        empty = scene.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        return scene.sample(scene.apply(scene.model, reference_cache=both), latent_image=empty, steps=2)

    assert difference(drawn(loaded=True), drawn(loaded=False)) < 1e-3


def test_a_saved_reference_is_shown_and_the_loader_tells_of_it(server: ComfyUIServer) -> None:
    saved = save(Scene(server), "shown")
    graph = Graph(server)
    graph.add("PreviewAny", source=output(load(graph, "shown"), 1))
    loaded = server.run(graph.prompt)
    (picture,) = (image for shown in saved.outputs.values() for image in shown.get("images", []))
    assert server.download(picture, server.base / "shown.png").stat().st_size > 1000
    first, layers, third = said(loaded).splitlines()
    assert first.startswith("1 reference for a U-Net of 32 channels and 48-wide prompts, float16, error 0.0")
    assert layers.startswith("layers: middle_block.1, output_blocks.4.1")
    assert third.startswith('128×128 pixels, timestep 1, prompt "", encoded with ')


def test_all_layers_are_saved_for_those_who_ask(server: ComfyUIServer, references: Path) -> None:
    layers = structure_of(models.unet_patcher("sd15")).layers
    for choice, stages in (("all", STAGES), ("middle and decoder", DEFAULT_STAGES)):
        save(Scene(server), choice, layers=choice)
        saved = load_references(references / f"{choice}_00001_.safetensors").references
        assert saved.layers == select_layers(layers, stages)


def test_apply_tells_of_other_weights_and_of_a_lora(server: ComfyUIServer) -> None:
    save(Scene(server), "weights")

    def warning(model: str) -> str | None:
        scene = Scene(server)
        if model == "lora":
            drawing = lora(scene, scene.model)
        else:
            seed = models.SEED + (model == "fine-tuned")
            drawing = scene.add("MiniatureModel", structure="sd15", seed=seed)
        scene.add("SaveLatent", samples=scene.sampler(apply_loaded(scene, "weights", drawing)), filename_prefix="test")
        shown = [output["text"][0] for output in server.run(scene.prompt).outputs.values() if "text" in output]
        return shown[0] if shown else None

    assert warning("same") is None
    for model in ("lora", "fine-tuned"):
        assert "The reference was encoded with different weights" in str(warning(model))
    assert "with LoRAs" in str(warning("lora"))


def test_no_file_is_ever_overwritten(server: ComfyUIServer, references: Path) -> None:
    save(Scene(server), "many")
    before = (references / "many_00001_.safetensors").read_bytes()
    assert said(save(Scene(server), "many", precision="float8")).startswith("Saved many_00002_.safetensors, ")
    assert (references / "many_00001_.safetensors").read_bytes() == before


def test_extra_model_paths_are_searched(server: ComfyUIServer, references: Path, tmp_path: Path) -> None:
    save(Scene(server), "elsewhere")
    (tmp_path / "subjects").mkdir()
    shutil.copyfile(references / "elsewhere_00001_.safetensors", tmp_path / "subjects" / "cup.safetensors")
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  dreamcache_references: subjects\n")
    arguments = ["--cpu", "--extra-model-paths-config", str(config)]
    with ComfyUIServer(environment.ensure(), {"dreamcache": ROOT}, arguments=arguments) as other:
        node = other.object_info()["DreamCacheLoadReferenceCache"]
        assert node["input"]["required"]["reference_name"][1]["options"] == ["cup.safetensors"]


# --- Wrong use -------------------------------------------------------------------------------------------------------


def test_a_saved_reference_of_another_base_model(server: ComfyUIServer) -> None:
    save(Scene(server, "sd21"), "other_base")
    scene = Scene(server)
    message = failure(lambda: scene.sample(apply_loaded(scene, "other_base")))
    assert "The reference cache was encoded with" in message


def test_a_saved_reference_without_the_layers_that_the_adapter_reads(server: ComfyUIServer) -> None:
    save(Scene(server), "few_layers")
    unet = structure_of(models.unet_patcher("sd15"))
    adapter = Adapter(select_layers(unet.layers, STAGES), unet.base_model)
    save_adapter(server.base / "models" / "dreamcache" / "encoder.safetensors", adapter)
    scene = Scene(server)
    scene.adapter = scene.add("DreamCacheAdapterLoader", adapter_name="encoder.safetensors")
    message = failure(lambda: scene.sample(apply_loaded(scene, "few_layers")))
    assert "lacks layers that the adapter uses (input_blocks.2.1, input_blocks.5.1, input_blocks.8.1)" in message
    assert "save it with layers set to all" in message


def test_files_that_are_no_references(server: ComfyUIServer, references: Path) -> None:
    references.mkdir(exist_ok=True)
    for name, adapter in (("adapter", server.base / "models" / "dreamcache" / "sd15.safetensors"), ("damaged", None)):
        path = references / f"{name}_00001_.safetensors"
        scene = Scene(server)
        if adapter:
            shutil.copyfile(adapter, path)
        else:
            path.write_text("This is what some servers send where a file was moved.")
        message = failure(lambda scene=scene, name=name: scene.sample(apply_loaded(scene, name)))
        path.unlink()
        assert path.name in message
    with pytest.raises(WorkflowError, match=r"There is no reference gone_00001_\.safetensors in .*: put it there"):
        scene.sample(apply_loaded(scene, "gone"))


@pytest.mark.parametrize("prefix", ["", "../outside", "/tmp/outside"])
def test_names_outside_the_models_folder_are_refused(server: ComfyUIServer, prefix: str) -> None:
    with pytest.raises(WorkflowError, match=r"is not a valid file name in .*: use a name such as my_subject"):
        save(Scene(server), prefix)
    scene = Scene(server)
    given = scene.add("PrimitiveString", value=prefix)
    message = failure(lambda: save(scene, given))
    assert "is not a valid file name in" in message
