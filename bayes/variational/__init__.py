"""Gaussian processes by variational inference: any outcomes, many rows, classes."""
