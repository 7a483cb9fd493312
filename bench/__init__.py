"""Benchmarks against PyTorch and JAX, one command each; see ``python -m bench``."""
