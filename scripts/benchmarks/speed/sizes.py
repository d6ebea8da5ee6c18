"""What adapters and references take on disk and in memory, in bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

from dreamcache.dreamcache_core.adapter.file import load_adapter
from dreamcache.dreamcache_core.adapter.fused import fuse
from dreamcache.dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from dreamcache.dreamcache_core.reference.cache import ReferenceCache
from dreamcache.dreamcache_core.reference.contents import Precision
from dreamcache.dreamcache_core.reference.file import save_references
from dreamcache.dreamcache_core.unet import DEFAULT_STAGES
from dreamcache.nodes.host.base_model import structure_of

from .variants import Bench


def measure_files(adapter: Path, cache: ReferenceCache) -> dict[str, int]:
    """Bytes on disk, and in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reference.safetensors")
        sizes = {"adapter file": adapter.stat().st_size}
        fused = fuse(load_adapter(adapter).adapter)
        sizes["adapter fused for sampling, in memory"] = sum(tensor.nbytes for tensor in fused.state_dict().values())
        for precision in get_args(Precision):
            save_references(path, cache, precision, DEFAULT_STAGES)
            sizes[f"reference file of 512×512 pixels, {precision}"] = path.stat().st_size
    return sizes


def measure_noise_levels(bench: Bench) -> dict[str, int]:
    """Bytes in memory of what the model's own attention keeps of a reference."""
    (batch,) = bench.references(1).batches
    layers = SelfAttentionAdapter().on(structure_of(bench.model)).layers
    features = [batch.features[layer.name] for layer in layers]
    kept = sum(tensor.nbytes for tensor in features)
    precision = str(features[0].dtype).removeprefix("torch.")
    return {
        f"own attention: a reference of 512×512 pixels at one noise level, {precision}": kept,
        "the same at 20 noise levels, after a run of 20 steps": 20 * kept,
    }
