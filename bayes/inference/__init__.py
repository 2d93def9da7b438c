"""Inference methods for `bayes.BayesianNetwork`, one per file."""
