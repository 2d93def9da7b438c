"""Infinite ensembles of infinitely wide networks trained by gradient descent."""
