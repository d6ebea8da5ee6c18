"""Files and their contents: tensors with a header, images, lists of numbers, and what is cached on disk."""
