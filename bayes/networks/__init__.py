"""Bayesian neural networks: an `nn.Module` with a weight prior, given data."""
