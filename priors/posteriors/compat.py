"""Names that posteriors borrow from private parts of BoTorch, GPyTorch and torch.

`tests/priors/posteriors/test_compat.py` says of each what is relied on. `_extended_shape`, which
BoTorch's samplers call, is defined by `PredictivePosterior`.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor
from torch.distributions.transforms import Transform
from torch.distributions.transforms import _InverseTransform as InverseTransform

__all__ = ["InverseTransform", "copied", "is_stored_by_output", "log_ndtr_integral"]

_Transform = TypeVar("_Transform", bound=Transform)


def log_ndtr_integral(u: Tensor) -> Tensor:
    """Log of φ(u) + u Φ(u), the integral of Φ up to u, accurate and differentiable far below 0."""
    from botorch.acquisition.analytic import _log_ei_helper  # slow to load

    return _log_ei_helper(u)


def is_stored_by_output(distribution: MultivariateNormal) -> bool:
    """Whether a Gaussian of several outputs has all points of the first, then of the second, ..."""
    return isinstance(distribution, MultitaskMultivariateNormal) and not distribution._interleaved


def copied(transform: _Transform) -> _Transform:
    """A shallow copy that does not answer `inv` by the inverse of the original."""
    new = copy.copy(transform)
    new._inv = None
    return new
