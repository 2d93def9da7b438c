"""Benchmarks of infinite-width kernels."""
