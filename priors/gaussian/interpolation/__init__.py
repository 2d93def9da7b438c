"""Gaussian expectations of smooth functions from Chebyshev tables, at the price of a closed form.

E[f(u) g(v)] depends on two variances and a correlation only, and smoothly. A table of it, made
once from `quadrature` and shared by equal activations, costs some forty operations a pair, its
gradient twice as many.
"""

from priors.gaussian.interpolation.expectations import expectations, mean
from priors.gaussian.interpolation.store import Tables, tables_of

__all__ = ["Tables", "expectations", "mean", "tables_of"]
