"""The processes of a training: one, or all that Hugging Face Accelerate's launcher has started."""

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
    """This process among those of a training. `index`: its number, from 0. `count`: how many there are.

    `average`: gives the mean of a tensor over all processes. Each call waits until all processes have called it.
    """

    index: int = 0
    count: int = 1
    average: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.index == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is true in any process. Waits for all, as `average` does. `device`: where they compute."""
        return flag if self.count == 1 else bool(self.average(torch.tensor(float(flag), device=device)) > 0)

    def say(self, text: str) -> None:
        """Print a line at once, in the main process only."""
        if self.is_main:
            print(text, flush=True)


ALONE = Processes()
"""A training in one process."""


def join_processes(cpu: bool) -> Processes:
    """Join the other processes of the launcher, if it has started this one.

    Makes the GPU that the launcher gave to this process torch's current one. ComfyUI takes the current GPU when it is
    imported, so call this first. Raises DreamCacheError if a launcher started this process and Accelerate is missing.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        return ALONE
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
