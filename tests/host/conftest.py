"""Tests of what touches ComfyUI, with a real ComfyUI in this process."""

from __future__ import annotations

from support import pack  # noqa: F401
