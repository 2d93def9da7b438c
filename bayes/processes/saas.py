"""The SAAS prior: few inputs matter (Eriksson & Jankowiak 2021, 2103.00377).

    tau ~ HalfCauchy(shrinkage),  rho_i | tau ~ HalfCauchy(tau),  lengthscale_i = rho_i^-1/2

Most inverse squared length scales are shrunk to nearly 0, while half-Cauchy tails let a few be
large.
"""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.priors import HalfCauchyPrior, Prior
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["SaasPrior"]


class SaasPrior(Prior, gpytorch.Module):
    """A prior of length scales `[..., 1, d]` under which most inputs hardly matter.

    Give it to a kernel with one length scale for each input, and draw the hyperparameters:

        kernel = ScaleKernel(
            MaternKernel(ard_num_dims=d, lengthscale_prior=SaasPrior()),
            outputscale_prior=GammaPrior(2.0, 0.15),
        )
        model = GaussianProcess(X, Y, kernel).fit(method=ChEES())

    Its tau is a hyperparameter with a prior of its own, drawn (or maximised over) with the others.

    Args:
        shrinkage: Scale of tau's prior; smaller makes fewer inputs matter.

    Raises:
        ValueError: `shrinkage` is not positive.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.positive

    def __init__(self, shrinkage: float = 0.1) -> None:
        if not 0 < shrinkage < math.inf:
            raise ValueError(f"SaasPrior needs 0 < shrinkage < inf, got {shrinkage}.")
        gpytorch.Module.__init__(self)
        torch.distributions.Distribution.__init__(self, validate_args=False)
        self.shrinkage = shrinkage
        self.register_parameter("raw_tau", nn.Parameter(torch.full((1, 1), math.log(shrinkage))))
        self.register_constraint("raw_tau", Positive(torch.exp, torch.log))
        self.register_prior("tau_prior", HalfCauchyPrior(shrinkage), _tau, _set_tau)

    @property
    def tau(self) -> Tensor:
        """Scale of the inverse squared length scales, `[..., 1, 1]`."""
        value: Tensor = self.raw_tau_constraint.transform(self.raw_tau)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of length scales given tau, of the shape of `value`.

        Args:
            value: Length scales, `[..., 1, d]`.
        """
        ratio = value.square() * self.tau  # tau / rho
        # 2 / (pi tau (1 + rho^2 / tau^2)) times |d rho / d lengthscale| = 2 lengthscale^-3
        density = math.log(4 / math.pi) + self.tau.log() - torch.log1p(ratio.square())
        return density + value.log()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Length scales given tau, `[*sample_shape]`."""
        u = torch.rand(sample_shape, dtype=self.raw_tau.dtype, device=self.raw_tau.device)
        rho = self.tau.reshape(()) * torch.tan(0.5 * math.pi * u)
        return rho.rsqrt()


def _tau(prior: SaasPrior) -> Tensor:
    return prior.tau


def _set_tau(prior: SaasPrior, value: Tensor) -> None:
    prior.initialize(raw_tau=prior.raw_tau_constraint.inverse_transform(value))
