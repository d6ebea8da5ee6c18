"""The reference: how its image is prepared, the features that are cached of it, and their files."""
