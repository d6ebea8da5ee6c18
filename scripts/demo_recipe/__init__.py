"""The recipe of the demo model: a small world of its own, and a miniature of SD1.5 that is trained on it.

`python3 scripts/demo_recipe/make_demo.py` runs it, step by step.
"""
