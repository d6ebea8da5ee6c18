"""The adapter: its network, its fused form for sampling, its files, provenance and strengths."""
