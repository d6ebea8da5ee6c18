"""Figures: what the reference cache, attention, a training or a comparison looks like."""
