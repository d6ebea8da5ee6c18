"""The training command with settings for a small training, and triplets for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dreamcache.dreamcache_core.training.triplet_files import save_triplet
from harness import environment
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image


def save_triplets(folder: Path) -> Path:
    """Save two triplets. Returns the folder."""
    picture = Image.open(PHOTOGRAPH)
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (80, 15, 480, 390))
    for prompt in ("a coffee cup", "a cup of coffee on a table"):
        save_triplet(folder, {"generation": picture, "mask": mask}, prompt)
    return folder


class Command:
    """The command with settings for a small training."""

    def __init__(self, checkpoint: Path, triplets: Path, output: Path) -> None:
        made = environment.ensure()
        command = [made.python, "-m", "dreamcache_core.train", "--comfyui", made.comfyui, "--checkpoint", checkpoint]
        command += ["--data", triplets, "--output", output, "--cpu", "--precision", "float32"]
        settings = ["--resolution", "64", "--batch", "2", "--warm-up", "1", "--every", "1", "--workers", "0"]
        self._command = [str(part) for part in command] + settings

    def start(self, *arguments: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen([*self._command, *arguments], cwd=environment.ROOT, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        return subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
