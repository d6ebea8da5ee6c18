"""The recipe of the demo model, step by step; each can be stopped at any moment, and goes on when it is run again.
What it makes lies in .dev/demo. The adapter, and what measures it, are still to come.

python3 scripts/make_demo.py artwork       fetches the subjects (with npm)
python3 scripts/make_demo.py autoencoder   trains what turns pictures into latents and back
python3 scripts/make_demo.py scenes        draws scenes, and encodes them
python3 scripts/make_demo.py base          trains U-Net and text encoder, and writes the model's file
python3 scripts/make_demo.py triplets      draws triplets
"""

from __future__ import annotations

import argparse
import importlib

import environment

ENVIRONMENT = environment.enter()

import torch  # noqa: E402
from comfy.cli_args import args  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from dreamcache_core.train import import_pack  # noqa: E402

# The quickest of ComfyUI's kinds of attention that has gradients, on a CPU too.
args.use_pytorch_cross_attention = True
args.cpu = not torch.cuda.is_available()

PACK = import_pack(ENVIRONMENT.comfyui, args.cpu)
NETWORK = importlib.import_module(f"{PACK.__name__}.nodes.demo_network")

from demo import artwork, autoencoder, base, package, scenes, triplets  # noqa: E402

STEPS = ("artwork", "autoencoder", "scenes", "base", "triplets")
MODEL = artwork.DEMO / "dreamcache_demo_model.safetensors"


def main() -> None:
    options = _options()
    match options.step:
        case "artwork":
            artwork.fetch()
        case "autoencoder":
            weights = autoencoder.train_autoencoder(NETWORK.DemoAutoencoder(), options.count or autoencoder.STEPS)
            save_file({f"autoencoder.{name}": tensor for name, tensor in weights.items()}, package.AUTOENCODER)
        case "scenes":
            scenes.write_scenes(NETWORK.demo_networks(load_file(package.AUTOENCODER)), options.count or scenes.COUNT)
        case "base":
            _make_base(options.count or base.STEPS, options.batch or base.BATCH)
        case "triplets":
            triplets.write_triplets(options.count or triplets.COUNT)


def _make_base(steps: int, batch: int) -> None:
    weights = load_file(package.AUTOENCODER)
    weights |= base.train_base(NETWORK.demo_networks(weights), steps, batch)
    networks = NETWORK.demo_networks(weights)
    header = package.provenance(steps=steps, batch=batch)
    header["rgb_factors"] = package.rgb_factors(
        lambda images: networks.model.model.process_latent_in(networks.vae.encode(images))
    )
    package.write_model(MODEL, NETWORK.FILE_KIND, NETWORK.FILE_VERSION, weights, header)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--count", type=int, help="of steps, scenes or triplets")
    parser.add_argument("--batch", type=int, help="samples a step")
    return parser.parse_args()


if __name__ == "__main__":
    main()
