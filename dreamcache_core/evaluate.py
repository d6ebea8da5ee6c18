"""Evaluate an adapter from the command line, on a folder of subjects such as DreamBooth's dataset:

    python -m dreamcache_core.evaluate draw --comfyui ~/ComfyUI --checkpoint sd15.safetensors \\
        --adapter adapter.safetensors --subjects dreambooth/dataset --pictures drawn
    python -m dreamcache_core.evaluate measure --comfyui ~/ComfyUI --subjects dreambooth/dataset --pictures drawn \\
        --clip clip-vit-large-patch14.safetensors --dino dino_deitsmall16_pretrain.pth

The second also measures pictures that were drawn elsewhere. `--help` after `draw` or `measure` lists the options.
"""

from .launch import errors_as_sentences, import_from_pack, import_pack


def main() -> None:
    options = import_from_pack("dreamcache_core.evaluation.options").read_options()
    with errors_as_sentences():
        import_pack(options.comfyui, options.cpu)
        import_from_pack("nodes.host.evaluate_command").evaluate(options)


if __name__ == "__main__":
    main()
