"""Two models that take a step in turns, a layer of the U-Net each.

A shared machine is a fifth slower at one moment than at the next, and a step takes half a minute: measured
one after the other, the step that met the better half minute would win.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from comfy.model_patcher import ModelPatcher

from .variants import Evaluate, evaluating


def seconds_side_by_side(first: ModelPatcher, second: ModelPatcher, size: int, batch: int) -> tuple[float, float]:
    """Of the CPU, for a step of each. Their networks must be two, since ComfyUI patches a network for one at a time.

    `size`: side of the pictures in pixels.
    """
    turns = _Turns()
    with ThreadPoolExecutor(2) as threads:
        steps = [threads.submit(_step, model, size, batch, turns, me) for me, model in enumerate((first, second))]
        one, other = (step.result() for step in steps)
    return one, other


class _Turns:
    """Of two threads, 0 and 1, of which 0 begins."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(1), threading.Semaphore(0)
        self._both_compute = True

    def begin(self, me: int) -> None:
        self._turns[me].acquire()

    def hand_over(self, me: int) -> None:
        if self._both_compute:
            self._turns[1 - me].release()
            self._turns[me].acquire()

    def end(self, me: int) -> None:
        self._both_compute = False
        self._turns[1 - me].release()


@torch.inference_mode()
def _step(model: ModelPatcher, size: int, batch: int, turns: _Turns, me: int) -> float:
    seconds: list[float] = []

    def visit(evaluate: Evaluate) -> None:
        small, latents = (torch.randn(batch, 4, side, side) for side in (8, size // 8))
        evaluate(small)  # The first of a run makes what is kept for the others.
        turns.hand_over(me)
        network = model.model.diffusion_model
        blocks = (*network.input_blocks, network.middle_block, *network.output_blocks)
        hooks = [part.register_forward_pre_hook(lambda *_: turns.hand_over(me)) for block in blocks for part in block]
        started = time.thread_time()
        evaluate(latents)
        seconds.append(time.thread_time() - started)
        for hook in hooks:
            hook.remove()

    turns.begin(me)
    try:
        evaluating(model, size, batch, visit)
    finally:
        turns.end(me)
    return seconds[0]
