"""Deciding what to try next: Bayesian search over architectures and hyperparameters."""
