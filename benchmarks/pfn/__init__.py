"""Benchmarks of the prior-data fitted networks."""
