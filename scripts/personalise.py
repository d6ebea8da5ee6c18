"""The main job: a real ComfyUI server draws the subject of a picture, through a shipped workflow.

`python3 scripts/personalise.py` draws a thing that the demo model was never trained on, with that model and its
adapter, which ship with the nodes. `--checkpoint` and `--adapter` take the files that you have, for the basic workflow,
and `--generated` makes some of full size: everything runs as it does with real ones, but the picture is noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.comfyui_server import ComfyUIServer, WorkflowError
from harness.environment import DEV, ROOT, enter
from harness.workflow_prompt import BASIC, DEMO, PHOTOGRAPH, basic_prompt, demo_prompt, set_inputs

BASE = DEV / "personalise"
MODELS = BASE / "models"
SEED = 1


def main() -> None:
    options = _options()
    environment = enter(pack=options.generated)
    models = _place_models(options)
    workflow, picture = (BASIC, options.picture or PHOTOGRAPH) if models else (DEMO, options.picture)
    print("Starting ComfyUI …", flush=True)
    with ComfyUIServer(environment, {"dreamcache": ROOT}, base=BASE, arguments=options.arguments) as server:
        print(f"ComfyUI runs at {server.url}, and writes to {server.log}.")
        prompt = basic_prompt(server, *models, picture) if models else demo_prompt(server, picture)
        given = {"seed": options.seed, "steps": 4 if options.generated and options.steps is None else options.steps}
        set_inputs(prompt, "KSampler", **{name: value for name, value in given.items() if value is not None})
        (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
        positive = prompt[sampler["inputs"]["positive"][0]]["inputs"]
        positive["text"] = options.prompt or positive["text"]
        print(f"Drawing “{positive['text']}” through {workflow.name} …", flush=True)
        try:
            result = server.run(prompt, on_progress=lambda bar: print(f"  {bar}", flush=True), timeout=3600)
        except WorkflowError as error:
            sys.exit(str(error))
        (saved,) = (image for image in result.images if image["type"] == "output")
        drawn = server.download(saved, options.output.resolve())
    print(f"The picture is {drawn}. It took {result.seconds:.0f} seconds.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the subject of a picture in a real ComfyUI server.")
    parser.add_argument(
        "--photograph",
        dest="picture",
        type=Path,
        help="of your subject; for the demo model, cut out, on a transparent background (default: one that ships)",
    )
    parser.add_argument("--prompt", help="what to draw (default: as the workflow has it)")
    parser.add_argument("--steps", type=int, help="of sampling (default: as the workflow has it; 4 if generated)")
    parser.add_argument("--seed", type=int, help="of the picture (default: as the workflow has it)")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.5 checkpoint, in place of the demo model")
    parser.add_argument("--adapter", type=Path, help="an adapter for it")
    parser.add_argument("--generated", action="store_true", help="both of full size, with weights that aren't trained")
    parser.add_argument("--output", type=Path, default=Path("output/personalised.png"), help="(default: %(default)s)")
    parser.add_argument(
        "--gpu", dest="arguments", action="store_const", const=(), default=("--cpu",), help="let ComfyUI use the GPU"
    )
    options = parser.parse_args()
    if bool(options.checkpoint) != bool(options.adapter):
        parser.error("--checkpoint and --adapter belong together")
    return options


def _place_models(options: argparse.Namespace) -> tuple[str, str] | None:
    """Put the model files where the server looks for them. Returns their names, or None for the demo model.

    Raises SystemExit if a given file isn't there.
    """
    if options.checkpoint:
        return _link(options.checkpoint, "checkpoints"), _link(options.adapter, "dreamcache")
    if options.generated:
        from harness.generated_weights import write_models

        print("Weights are generated, not trained: the picture will be noise.")
        name = write_models(MODELS, "SD15", SEED)
        return name, name
    return None


def _link(given: Path, folder: str) -> str:
    if not given.is_file():
        sys.exit(f"{given} is not there.")
    link = MODELS / folder / given.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(given.resolve())
    return given.name


if __name__ == "__main__":
    main()
