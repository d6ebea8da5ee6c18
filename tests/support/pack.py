"""Import this to have ComfyUI in the process, and the pack as ComfyUI imports it, under the name `dreamcache`."""

from __future__ import annotations

from harness import environment

environment.import_pack(environment.ensure())
