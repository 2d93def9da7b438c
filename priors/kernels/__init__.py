"""Kernels for GPyTorch, and random features of them."""
