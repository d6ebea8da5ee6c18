"""DINO's network: its numbers, and files of other networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.dino import load_vision_transformer
from dreamcache.dreamcache_core.io.images import to_tensor
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from safetensors.torch import load_file, save_file
from support.small_networks import SIDE, in_authors_names, new_dino, write


@pytest.fixture
def photograph() -> torch.Tensor:
    return to_tensor(Image.open(PHOTOGRAPH).convert("RGB"))


def test_dinos_network_computes_what_hugging_faces_does(photograph: torch.Tensor, tmp_path: Path) -> None:
    dino = new_dino()
    ours = load_vision_transformer(write(dino, tmp_path / "dino.safetensors"))
    assert ours
    pixels = ours.preprocess(photograph.unsqueeze(0))
    assert pixels.shape == (1, 3, SIDE, SIDE)
    theirs = dino(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(ours(pixels), theirs, rtol=1e-5, atol=1e-5)

    torch.save(in_authors_names(load_file(tmp_path / "dino.safetensors")), tmp_path / "dino.pth")
    again = load_vision_transformer(tmp_path / "dino.pth")
    assert again
    assert torch.equal(again(pixels), ours(pixels))


def test_other_networks_are_told_from_dinos(tmp_path: Path) -> None:
    tensors = in_authors_names(load_file(write(new_dino(), tmp_path / "dino.safetensors")))
    save_file({**tensors, "blocks.0.ls1.gamma": torch.ones(128)}, tmp_path / "dinov2.safetensors")
    assert load_vision_transformer(tmp_path / "dinov2.safetensors") is None
    save_file({"weight": torch.ones(1)}, tmp_path / "other.SafeTensors")
    assert load_vision_transformer(tmp_path / "other.SafeTensors") is None
    (tmp_path / "damaged.pth").write_bytes(b"PK")
    with pytest.raises(DreamCacheError, match=r"^damaged\.pth cannot be read because it is damaged or incomplete: "):
        load_vision_transformer(tmp_path / "damaged.pth")
