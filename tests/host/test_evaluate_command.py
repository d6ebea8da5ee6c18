"""The evaluation command: small pictures of a checkpoint with generated weights, drawn and measured."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from harness import environment
from harness.workflow_prompt import PHOTOGRAPH
from PIL import Image
from support.small_networks import new_clip, new_dino, write

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_draws_and_measures(short_models: tuple[Path, Path], tmp_path: Path) -> None:
    made, (checkpoint, adapter) = environment.ensure(), short_models
    subjects, pictures = tmp_path / "subjects", tmp_path / "drawn"
    (subjects / "cup").mkdir(parents=True)
    Image.open(PHOTOGRAPH).save(subjects / "cup" / "1.jpg")
    (subjects / "prompts.txt").write_text("a {} on a beach\n")
    clip, dino = (write(new(), tmp_path / f"{new.__name__}.safetensors") for new in (new_clip, new_dino))

    def evaluate(*arguments: object) -> subprocess.CompletedProcess:
        command = [made.python, "-m", "dreamcache_core.evaluate", *arguments, "--comfyui", made.comfyui, "--cpu"]
        command += ["--subjects", subjects, "--pictures", pictures]
        return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)

    model = ["--checkpoint", checkpoint, "--adapter", adapter]
    drawn = evaluate("draw", *model, "--seeds", 1, "--steps", 1, "--resolution", 64)
    assert "1 of 1: cup/00_0.png, a cup on a beach" in drawn.stdout, drawn.stderr
    assert len(Image.open(pictures / "cup" / "00_0.png").getcolors(64 * 64) or []) > 100

    measured = evaluate("measure", "--clip", clip, "--dino", dino)
    assert re.search(r"\| cup \| 1 \|( -?0\.\d{3} \|){3}\n", measured.stdout), measured.stderr
    results = json.loads((pictures / "results.json").read_text())
    assert re.fullmatch(rf"{checkpoint.name} \([0-9a-f]{{12}}\)", results["settings"]["checkpoint"])
    assert results["settings"]["resolution"] == 64
    assert (pictures / "results.md").read_text() in measured.stdout
    assert Image.open(pictures / "contact_sheet.jpg").size > (192, 192)

    pictures_only = write(new_clip(), tmp_path / "pictures_only.safetensors", without=("text_",))
    assert (
        f"Without CLIP-T, for {pictures_only} holds no text encoder"
        in evaluate("measure", "--clip", pictures_only).stdout
    )
    refused = evaluate("measure", "--dino", "nothing.pth")
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(
        "There is no file nothing.pth, neither here nor in ComfyUI's models/clip_vision: check its name."
    )
