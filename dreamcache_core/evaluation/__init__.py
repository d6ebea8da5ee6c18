"""Evaluation of generated images: DINO, CLIP-I and CLIP-T on folders of subjects."""
