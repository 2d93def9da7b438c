"""Amortised inference: prior-data fitted networks."""
