"""The main job: a real ComfyUI server draws the subject of a photograph, through the shipped workflow.

`python3 scripts/personalise.py` uses a photograph that ships with the project, and a checkpoint and an adapter with
generated weights, because those of Stable Diffusion 1.5 can't ship with a node pack: everything runs as it does with
real ones, at full size, but the picture is noise. `--checkpoint` and `--adapter` take the files that you have.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comfyui_server import ComfyUIServer, WorkflowError
from environment import DEV, ROOT, enter
from workflow_prompt import BASIC, PHOTOGRAPH, basic_prompt, set_inputs

BASE = DEV / "personalise"
MODELS = BASE / "models"
SEED = 1


def main() -> None:
    options = _options()
    environment = enter()
    checkpoint, adapter = _place_models(options.checkpoint, options.adapter)
    print("Starting ComfyUI …", flush=True)
    with ComfyUIServer(environment, {"dreamcache": ROOT}, base=BASE, arguments=options.arguments) as server:
        print(f"ComfyUI runs at {server.url}, and writes to {server.log}.")
        prompt = basic_prompt(server, checkpoint, adapter, options.photograph)
        set_inputs(prompt, "KSampler", seed=SEED, steps=options.steps)
        if options.prompt:
            (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
            prompt[sampler["inputs"]["positive"][0]]["inputs"]["text"] = options.prompt
        print(f"Drawing the subject of {options.photograph.name} through {BASIC.name} …", flush=True)
        try:
            result = server.run(prompt, on_progress=lambda bar: print(f"  {bar}", flush=True), timeout=3600)
        except WorkflowError as error:
            sys.exit(str(error))
        picture = server.download(result.images[0], options.output.resolve())
    print(f"The picture is {picture}. It took {result.seconds:.0f} seconds.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the subject of a photograph in a real ComfyUI server.")
    parser.add_argument("--photograph", type=Path, default=PHOTOGRAPH, help="of your subject (default: a coffee cup)")
    parser.add_argument("--prompt", help="what to draw (default: as the workflow has it)")
    parser.add_argument("--steps", type=int, default=4, help="of sampling (default: 4; take 20 with real weights)")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.5 checkpoint (default: one with generated weights)")
    parser.add_argument("--adapter", type=Path, help="an adapter for it (default: one with generated weights)")
    parser.add_argument("--output", type=Path, default=Path("output/personalised.png"), help="(default: %(default)s)")
    parser.add_argument(
        "--gpu", dest="arguments", action="store_const", const=(), default=("--cpu",), help="let ComfyUI use the GPU"
    )
    return parser.parse_args()


def _place_models(checkpoint: Path | None, adapter: Path | None) -> tuple[str, str]:
    """Put the model files where the server looks for them. Returns their names.

    Raises SystemExit if a given file isn't there.
    """
    generated = ""
    if not (checkpoint and adapter):
        from generated_weights import write_models

        print("Without --checkpoint and --adapter, weights are generated, not trained: the picture will be noise.")
        generated = write_models(MODELS, "SD15", SEED)
    return _link(checkpoint, "checkpoints") or generated, _link(adapter, "dreamcache") or generated


def _link(given: Path | None, folder: str) -> str:
    if not given:
        return ""
    if not given.is_file():
        sys.exit(f"{given} is not there.")
    link = MODELS / folder / given.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(given.resolve())
    return given.name


if __name__ == "__main__":
    main()
