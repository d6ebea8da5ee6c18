"""What a reference costs, counted and measured beside the plain model and IP-Adapter.

`python3 scripts/benchmarks/benchmark.py` does it all.
"""
