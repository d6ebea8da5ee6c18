"""Files that ComfyUI loads: whatever is wrong with one is a sentence that names it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import torch

from ...dreamcache_core.errors import DreamCacheError
from ...dreamcache_core.io.failures import reading

# What files may lack: counters, a token of the pre-training, and numbers that follow from the size.
_UNUSED = ("num_batches_tracked", "mask_token", "relative_position_index")


@contextmanager
def loading(path: Path, network: str) -> Iterator[None]:
    """Turn what ComfyUI raises while it loads a file into a DreamCacheError. `network`: to be loaded, in words."""
    with reading(path), path.open("rb"):
        pass
    try:
        yield
    except (DreamCacheError, MemoryError, comfy.model_management.OOM_EXCEPTION):
        raise
    except Exception as error:  # Damaged and unknown files raise many types.
        raise DreamCacheError(
            f"{path.name} cannot be loaded as {network}, because it is damaged or of another network: download it "
            "again, or use another file."
        ) from error


def check_complete(path: Path, network: torch.nn.Module, tensors: Container[str]) -> None:
    """Raise DreamCacheError if a file lacks weights of the network that was loaded from it: ComfyUI only logs them.

    `tensors`: their names in the file, as the network names them.
    """
    missing = [name for name in network.state_dict() if name not in tensors and not name.endswith(_UNUSED)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DreamCacheError(
            f"{path.name} lacks the weight {missing[0]}{more}: download it again, or use another file."
        )
