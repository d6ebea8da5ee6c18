"""Turn a public data set into triplets to train on:

    python -m dreamcache_core.prepare subjects200k --data Subjects200K --output triplets
    python -m dreamcache_core.prepare coco --instances instances_train2017.json --captions captions_train2017.json \\
        --images train2017 --output triplets
    python -m dreamcache_core.prepare look --data triplets --sheet sheet.png

The data set is on disk already; nothing is downloaded. The same command resumes a preparation that was stopped.
`--help` after each of the three words lists its options. Needs no ComfyUI.
"""

from .launch import errors_as_sentences, import_from_pack


def main() -> None:
    options = import_from_pack("dreamcache_core.datasets.options").read_options()
    with errors_as_sentences():
        import_from_pack("dreamcache_core.datasets.command").run(options)


if __name__ == "__main__":
    main()
