"""The processes that train together: this one alone, or all that Hugging Face Accelerate's launcher has started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import DreamCacheError

# Accelerate's launcher sets one or the other, torchrun the first.
_LAUNCHED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")


@dataclass(frozen=True)
class Processes:
    """`index`: of this one among `count`. `average`: the mean of a tensor over all, once all have called it."""

    index: int = 0
    count: int = 1
    average: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def say(self, text: str) -> None:
        """Print it at once, in one of them."""
        if self.is_main:
            print(text, flush=True)


def join_processes(cpu: bool) -> Processes:
    """Join the others, and make the GPU that the launcher has given to this process torch's current one, which is the
    one that ComfyUI takes when it is imported afterwards.

    Raises DreamCacheError if a launcher has started this process and Accelerate is missing.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        return Processes()
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError as error:
        raise DreamCacheError(
            "Accelerate is not installed, which training in several processes needs: run pip install accelerate."
        ) from error
    state = PartialState(cpu=cpu)
    atexit.register(state.destroy_process_group)
    return Processes(state.process_index, state.num_processes, partial(reduce, reduction="mean"))
