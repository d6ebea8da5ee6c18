"""Attention that trains quickly with few channels a head: on a CPU, PyTorch's takes half the time of a step."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .artwork import DEMO
from .loop import DEVICE

_SOURCE = Path(__file__).with_suffix(".cpp")
_CHANNELS = (4, 8, 16)
"""Of a head, which the source has code for."""


def options() -> dict[str, Any]:
    """The transformer_options that put it in place of ComfyUI's."""
    if DEVICE.type == "cuda":
        return {"optimized_attention_override": _padded}
    return {"optimized_attention_override": _attention} if shutil.which("g++") else {}


def _padded(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """PyTorch's, whose kernels that don't keep all weights want 8 channels a head, or a multiple."""
    channels = query.shape[-1] // heads
    query, key, value = (
        F.pad(tensor.unflatten(-1, (heads, channels)).transpose(1, 2), (0, -channels % 8))
        for tensor in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value, scale=channels**-0.5)
    return out[..., :channels].transpose(1, 2).flatten(2)


def _attention(
    others: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """What ComfyUI takes as `optimized_attention_override`: (batch, tokens, channels) each."""
    channels = query.shape[-1] // heads
    if channels not in _CHANNELS:
        return others(query, key, value, heads, *args, **kwargs)
    with torch.autocast(DEVICE.type, enabled=False):
        scaled = query.float().unflatten(-1, (heads, channels)).transpose(1, 2).flatten(0, 1) * channels**-0.5
        laid_out = (
            tensor.float().unflatten(-1, (heads, channels)).permute(0, 2, 3, 1).flatten(0, 1) for tensor in (key, value)
        )
        out: torch.Tensor = _Attention.apply(scaled, *laid_out)
        return out.unflatten(0, (len(query), heads)).transpose(1, 2).flatten(2).to(query.dtype)


class _Attention(torch.autograd.Function):
    """Of query (heads, rows, channels), key and value (heads, channels, tokens), float32."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = (tensor.contiguous() for tensor in inputs)
        out, log_sums = torch.empty_like(query), torch.empty(query.shape[:2])
        _call(_library().forward, (query, key, value, out, log_sums), query, key)
        ctx.save_for_backward(query, key, value, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, out, log_sums = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        tensors = (query, key, value, out, log_sums, gradients[0].contiguous(), d_query, d_key, d_value)
        _call(_library().backward, tensors, query, key)
        return d_query, d_key, d_value


def _call(function: Any, tensors: tuple[torch.Tensor, ...], query: torch.Tensor, key: torch.Tensor) -> None:
    heads, rows, channels = query.shape
    sizes = (ctypes.c_long(size) for size in (heads, rows, key.shape[2], channels))
    function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *sizes)


@functools.cache
def _library() -> ctypes.CDLL:
    """The source beside this file, compiled for this machine the first time."""
    path = DEMO / f"attention_{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = ("-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-shared", "-fPIC")
        subprocess.run(["g++", *flags, _SOURCE, "-o", path], check=True)
    return ctypes.CDLL(str(path))
