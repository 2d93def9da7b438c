"""Kernels between architectures."""
