"""Train an adapter from the command line, on a checkpoint that ComfyUI loads:

    python -m dreamcache_core.train --comfyui ~/ComfyUI --checkpoint sd15.safetensors --data triplets --output trained

The same command resumes a training that was stopped. `--help` lists the options; `--config` reads them from a JSON
file. On several GPUs or machines: `accelerate launch -m dreamcache_core.train …`.
"""

from .launch import errors_as_sentences, import_from_pack, import_pack

# Here, not in `main`: processes that read pictures import this file where they are spawned, and need the pack's core.
_OPTIONS = import_from_pack("dreamcache_core.training.options")


def main() -> None:
    options = _OPTIONS.read_options()
    with errors_as_sentences():
        # Before ComfyUI, which takes the GPU that is current when it is imported.
        processes = import_from_pack("dreamcache_core.training.processes").join_processes(options.cpu)
        import_pack(options.comfyui, options.cpu)
        import_from_pack("nodes.host.train_command").train(options, processes)


if __name__ == "__main__":
    main()
