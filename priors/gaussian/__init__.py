"""Gaussian expectations: E[phi(u) psi(v)] of activations, and of many variables."""
