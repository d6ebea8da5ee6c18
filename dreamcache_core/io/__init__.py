"""Input and output: tensor files with a header, images, lists of numbers, atomic writes, and a cache on disk."""
