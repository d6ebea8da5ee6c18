"""Import this to have ComfyUI in the process, and the pack as ComfyUI imports it, under the name `dreamcache`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from harness import environment

environment.import_pack(environment.ensure())
