"""The structure that tests of the core use in place of a U-Net."""

from __future__ import annotations

from dreamcache.nodes.host.base_model import structure_of
from support import structures
from support.miniature import models


def test_it_is_that_of_comfyuis_unet() -> None:
    assert structure_of(models.unet_patcher("sd15")) == structures.SD15
