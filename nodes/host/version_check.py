"""Checks ComfyUI's version, before the pack imports anything that older versions lack."""

from __future__ import annotations

import re

OLDEST_COMFYUI = "0.16.3"
"""The same as in pyproject.toml."""


def check_comfyui(version: str) -> None:
    """Raise ImportError if `version` is older than OLDEST_COMFYUI. ComfyUI logs the message when it starts."""
    if _numbers(version) < _numbers(OLDEST_COMFYUI):
        raise ImportError(f"DreamCache needs ComfyUI {OLDEST_COMFYUI} or newer, but this is {version}: update ComfyUI.")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
