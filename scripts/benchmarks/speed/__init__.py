"""What a reference costs, counted and measured beside what one might use in its place.

`python3 scripts/benchmarks/benchmark.py` does it all.
"""
