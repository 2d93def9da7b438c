"""From a tensor program to kernels: the infinite-width limits.

Importing this package registers what each kind of node means in the limit (`kinds`).
"""

from priors.limits import attention, maps, nonlinearities, normalisation, weights

__all__ = ["attention", "maps", "nonlinearities", "normalisation", "weights"]
