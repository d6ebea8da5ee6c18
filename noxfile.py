"""The tasks of this repository: `nox --list` shows them. Arguments go after `--`, as in `nox -s tests -- -k apply`.

Each task runs a script, which makes the development environment in `.dev/` the first time. So nox makes none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from harness import environment

nox.needs_version = ">=2024.3.2"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]


def run(session: nox.Session, *command: str) -> None:
    """Run a command in the environment's Python."""
    session.run(str(environment.ensure().python), *command, *session.posargs, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that must hold before a change is merged: lint, format, types and all tests."""
    run(session, "scripts/test.py")


@nox.session
def core(session: nox.Session) -> None:
    """The tests of the core, in seconds and without ComfyUI."""
    run(session, "-m", "pytest", "tests/core")


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the format."""
    run(session, "-m", "ruff", "check")
    run(session, "-m", "ruff", "format", "--check")


@nox.session
def format(session: nox.Session) -> None:  # noqa: A001
    """Fix what ruff can fix, and format."""
    run(session, "-m", "ruff", "check", "--fix")
    run(session, "-m", "ruff", "format")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy."""
    run(session, "scripts/test.py", "--types")


@nox.session
def draw(session: nox.Session) -> None:
    """Draw a subject in a real server."""
    run(session, "scripts/personalise.py")


@nox.session
def demo(session: nox.Session) -> None:
    """A step of the demo model's recipe, such as `nox -s demo -- results`."""
    run(session, "scripts/demo_recipe/make_demo.py")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure sampling, and write web/docs/speed.md."""
    run(session, "scripts/benchmarks/benchmark.py")


@nox.session
def training_throughput(session: nox.Session) -> None:
    """Measure training, and write web/docs/training_speed.md."""
    run(session, "scripts/benchmarks/training_throughput.py")


@nox.session
def full_size(session: nox.Session) -> None:
    """Time and memory of full-size models in a real server."""
    run(session, "scripts/benchmarks/full_size.py")


@nox.session
def screenshots(session: nox.Session) -> None:
    """Take the pictures of the README, the help pages and the template browser."""
    run(session, "scripts/release/screenshots.py")
    run(session, "scripts/release/thumbnails.py")


@nox.session
def pack(session: nox.Session) -> None:
    """Write the archive that the Comfy registry would ship to output/node.zip."""
    run(session, "scripts/release/pack.py")
