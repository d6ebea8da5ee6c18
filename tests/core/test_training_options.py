"""The options of the training command: recipes, config files, and values that training can't use."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.training.options import read_options, settings_of
from dreamcache.dreamcache_core.training.recipes import RECIPES
from dreamcache.dreamcache_core.training.settings import TrainingSettings


class Command:
    """Reads the command's options, with those of what to train on."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._config = folder / "settings.json"
        checkpoint = folder / "model.safetensors"
        checkpoint.touch()
        self._required = [f"--{name}={folder}" for name in ("comfyui", "data", "output")]
        self._required.append(f"--checkpoint={checkpoint}")

    def read(self, *arguments: str, config: object = None) -> Namespace:
        """`config`: the content of a config file, if any."""
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            # With a byte-order mark, as Windows' Notepad writes it; a lone surrogate is a byte that is no UTF-8.
            self._config.write_bytes("\ufeff".encode() + text.encode(errors="surrogateescape"))
            arguments = (*arguments, f"--config={self._config}")
        self._patch.setattr("sys.argv", ["train", *self._required, *arguments])
        return read_options()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


def test_without_a_recipe_everything_is_as_it_was(command: Command) -> None:
    """Trainings of earlier versions resume with these."""
    options = command.read()
    assert settings_of(options) == TrainingSettings()
    assert (options.held_out, options.patience, options.cache_precision, options.start) == (0, 0, "float32", "random")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_options_that_the_command_has(command: Command, recipe: str) -> None:
    options = vars(command.read("--recipe", recipe))
    assert options.items() >= RECIPES[recipe].options.items()
    assert options["batch"] % options["parts"] == 0


def test_a_config_overrides_a_recipe_and_the_command_line_overrides_both(command: Command) -> None:
    options = command.read("--steps=7", config={"recipe": "evening", "steps": 5, "batch": 4})
    assert (options.steps, options.batch, options.held_out) == (7, 4, 64)


@pytest.mark.parametrize(
    ("arguments", "config", "sentence"),
    [
        (["--batch", "0"], None, "batch is 0: give a whole number of at least 1"),
        (["--held-out", "-1"], None, "held_out is -1: give a whole number of at least 0"),
        (["--learning-rate", "nan"], None, "learning_rate is nan: give a number of at least 0"),
        (["--subject-only", "1.5"], None, "subject_only is 1.5: give a number of 0 to 1"),
        (["--resolution", "100"], None, "the resolution 100 is not a multiple of 8: use 96"),
        (["--checkpoint", "gone.safetensors"], None, "gone.safetensors is not there: give the file of a base model"),
        ([], {"steps": 4.5}, "steps is 4.5: give a whole number of at least 1"),
        ([], {"steps": True}, "steps is True: give a whole number of at least 1"),
        ([], {"cosine": "yes"}, "cosine is 'yes': give true or false"),
        ([], {"precision": "fp16"}, "precision is 'fp16': choose one of bfloat16, float32"),
        ([], {"recipe": "weekend"}, "recipe is 'weekend': choose one of smoke, evening, paper"),
        ([], {"step": 3}, "has settings that don't exist: step"),
        ([], "{", "can't be read as a JSON object of settings: not JSON: Expecting"),
        ([], "[" * 100_000, "can't be read as a JSON object of settings: not JSON: "),
        ([], '{"ema": NaN}', "can't be read as a JSON object of settings: not JSON: NaN is no number"),
        ([], "\udce9", "settings.json cannot be read as UTF-8 text: save it in UTF-8"),
        ([], [], "can't be read as a JSON object of settings: it is no JSON object"),
        (["--config", "gone.json"], None, "gone.json cannot be read: it does not exist; check its name"),
    ],
)
def test_what_training_cannot_use_is_named(
    command: Command, capsys: pytest.CaptureFixture, arguments: list[str], config: object, sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.read(*arguments, config=config)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
