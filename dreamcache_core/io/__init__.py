"""Input and output: tensor files, images, text, names of files, atomic writes, a cache on disk; and what fails."""
