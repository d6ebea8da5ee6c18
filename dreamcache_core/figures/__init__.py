"""Figures for people: contact sheets, attention maps, reference features and loss curves."""
