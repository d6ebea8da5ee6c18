"""The options of the training command: from its command line, and from a file that it overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dreamcache.dreamcache_core.training.options import read_options

REQUIRED = ["--comfyui", "ComfyUI", "--checkpoint", "sd15.safetensors", "--data", "triplets", "--output", "trained"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def read(content: bytes | dict[str, Any], *arguments: str) -> Any:
        """The options, or what the command says as it ends."""
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        config = ["--config", str(tmp_path / "config.json")]
        monkeypatch.setattr("sys.argv", ["train", *REQUIRED, *config, *arguments])
        try:
            return read_options()
        except SystemExit:
            return capsys.readouterr().err.replace(str(tmp_path), "…")

    return read


def test_the_command_line_overrides_the_file(read: Any) -> None:
    config = {"steps": 7, "learning_rate": 1e-5, "cosine": True, "tensorboard": False, "cache_latents": "latents"}
    options = read(config, "--steps", "9", "--no-cosine")
    assert (options.steps, options.learning_rate, options.cosine, options.tensorboard) == (9, 1e-5, False, False)
    assert options.cache_latents == Path("latents")
    assert read("\ufeff{}".encode()).steps == 200_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "…/config.json is damaged: write an object of options in JSON."),
        (b'{"steps": 7', "…/config.json is damaged: write an object of options in JSON."),
        (b"[7]", "…/config.json is damaged: write an object of options in JSON."),
        ("{'Löwe'}".encode("cp1252"), "…/config.json is damaged: write an object of options in JSON."),
        ({"step": 7}, "…/config.json has settings that don't exist: step"),
        ({"steps": [7]}, "argument --steps: invalid int value: '[7]'"),
        ({"precision": "float8"}, "argument --precision: invalid choice: 'float8'"),
        ({"cosine": 3}, "argument --cosine/--no-cosine: ignored explicit argument '3'"),
        ({"data": " "}, "argument --data: the path is empty"),
    ],
)
def test_a_file_of_options_is_checked_like_the_command_line(read: Any, content: Any, words: str) -> None:
    assert words in read(content)


def test_a_path_that_is_empty_is_not_the_current_folder(read: Any) -> None:
    assert "argument --output: the path is empty" in read({}, "--output", "")
    assert read({}, "--output", ".").output == Path()
    assert read({}, "--output", '"file:///data/my%20adapter"').output == Path("/data/my adapter")
