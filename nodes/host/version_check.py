"""Whether ComfyUI is new enough, told before anything of the pack is imported that an older one hasn't got."""

from __future__ import annotations

import re

OLDEST_COMFYUI = "0.16.3"
"""As in pyproject.toml."""


def check_comfyui(version: str) -> None:
    """Raises ImportError, which ComfyUI shows where it starts, if `version` is older than OLDEST_COMFYUI."""
    if _numbers(version) < _numbers(OLDEST_COMFYUI):
        raise ImportError(f"DreamCache needs ComfyUI {OLDEST_COMFYUI} or newer, but this is {version}: update ComfyUI.")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
