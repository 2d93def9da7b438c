"""Log density of a model's hyperparameters under their priors."""

from __future__ import annotations

import gpytorch
from linear_operator.utils.errors import NanError
from torch import Tensor

__all__ = ["log_priors"]


def log_priors(model: gpytorch.Module) -> Tensor | float:
    """Sum over all priors that are registered in a model, nats; 0.0 if there are none.

    Raises:
        NanError: a value is outside of the support of its prior, as a positive one is that has
            become zero by underflow: to an optimiser that is a step too far.
    """
    total: Tensor | float = 0.0
    for name, module, prior, closure, _ in model.named_priors():
        try:
            total = total + prior.log_prob(closure(module)).sum()
        except ValueError as error:
            if "within the support" not in str(error):
                raise
            raise NanError(f"{name} is not defined at the present values.") from error
    return total
