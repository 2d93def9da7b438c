"""The Gaussian process over encoded architecture and hyperparameters together.

A Matern-5/2 kernel over the encoded architecture and hyperparameters with a length scale for each
coordinate, so that what does not matter is switched off and what interacts (a deep network wants
a smaller learning rate) stays together. The length scales have the dimension-scaled prior of
Hvarfner et al. 2024 (2402.02229, section 5), the noise BoTorch's; the targets are standardised,
so the kernel needs no scale. A sum of kernels of either part and of their product has twice the
hyperparameters for the same few data, and was no better in pilot studies of 30 trials.
"""

from __future__ import annotations

import gpytorch
from botorch.exceptions import ModelFittingError
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

__all__ = ["gaussian_process"]


def gaussian_process(train_X: Tensor, train_Y: Tensor, num_architecture: int) -> SingleTaskGP:
    """A `SingleTaskGP` with the kernel above, its hyperparameters at their posterior mode.

    Args:
        train_X: Encoded points of the unit cube, `[n, d]`.
        train_Y: Standardised targets, `[n, 1]`.
        num_architecture: How many of the d coordinates are the architecture's; this kernel
            treats all alike.
    """
    from botorch.fit import fit_gpytorch_mll  # with BoTorch's optimisers, slow to load

    with train_X.device:
        kernel = get_covar_module_with_dim_scaled_prior(
            ard_num_dims=train_X.shape[-1], use_rbf_kernel=False
        )
        model = SingleTaskGP(train_X, train_Y, covar_module=kernel, outcome_transform=None)
    at_prior = {name: value.clone() for name, value in model.state_dict().items()}
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    with gpytorch.settings.fast_computations(False, False, False):
        try:
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 200}})
        except (ModelFittingError, RuntimeError):
            model.load_state_dict(at_prior)  # the prior's own hyperparameters still rank points
    return model.eval()
