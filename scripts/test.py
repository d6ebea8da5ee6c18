"""Everything that must hold before a change is kept: lint, format, types, and the tests.

`python3 scripts/test.py` makes the development environment if need be. Arguments go to pytest: `-k apply`, `-x`; with
`--types` alone it only checks types.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.environment import ROOT, chromium, ensure

# Files of tests run side by side, more than there are cores to run them, for much of a test is waiting: for a server,
# or for a page.
WORKERS = 3


def main() -> int:
    python = str(ensure().python)
    if sys.argv[1:] == ["--types"]:
        return check_types(python)
    chromium()
    checks = [
        [python, "-m", "ruff", "check"],
        [python, "-m", "ruff", "format", "--check"],
    ]
    failed = [command for command in checks if subprocess.run(command, cwd=ROOT).returncode]
    if failed or check_types(python):
        return 1
    if sys.argv[1:]:
        return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT).returncode
    # To each its own cores: two that share them wait for each other at every operation.
    shared = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS))}
    # Dozens of servers and commands start in the tests: each would compile all of ComfyUI.
    shared["PYTHONDONTWRITEBYTECODE"] = ""
    command = [python, "-m", "pytest", "--numprocesses", str(WORKERS), "--dist", "loadfile", "--durations", "15"]
    return subprocess.run(command, cwd=ROOT, env=shared).returncode


def check_types(python: str) -> int:
    """Run mypy on the repository as the package that ComfyUI makes of it, whatever the checkout's folder is called."""
    with tempfile.TemporaryDirectory() as custom_nodes:
        Path(custom_nodes, "dreamcache").symlink_to(ROOT)
        command = [python, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
        return subprocess.run([*command, "--package", "dreamcache"], cwd=custom_nodes).returncode


if __name__ == "__main__":
    sys.exit(main())
