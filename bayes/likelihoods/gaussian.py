"""Normal noise: of one unknown variance per output, or with a variance that the network gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from bayes.likelihoods.base import Likelihood, NormalPrior, check_functions, per_draw, per_row
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.randomness import RandomSource

__all__ = ["Gaussian", "Heteroscedastic"]


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y = f + e, e ~ N(0, v), one variance v per output or known variances.

    Attributes:
        log_noise_var_prior: Mean and standard deviation of the normal prior of log v, on the
            model's (standardised) scale. The default puts 95% between 0.7% and 2.6 of the
            outcome's variance.
    """

    takes_variances: ClassVar[bool] = True

    log_noise_var_prior: tuple[float, float] = (-2.0, 1.5)

    def __post_init__(self) -> None:
        check_prior("log_noise_var_prior", self.log_noise_var_prior)

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        check_functions(self, num_functions, Y.shape[-1], "one for each column of train_Y")
        return self

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        return {"log_noise_var": NormalPrior.repeated(*self.log_noise_var_prior, num_columns)}

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        log_var = per_row(parameters["log_noise_var"]) if Yvar is None else Yvar.log()
        return normal_log_density(Y - f, log_var)

    def curvature(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        log_var = per_row(parameters["log_noise_var"]) if Yvar is None else Yvar.log()
        return torch.diag_embed((-log_var).exp().expand_as(f))

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return f

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> GaussianMixturePosterior:
        if Yvar is None:
            Yvar = per_draw(parameters["log_noise_var"].exp(), f)
        return GaussianMixturePosterior(f[..., outputs], Yvar[..., outputs], log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        var = per_row(parameters["log_noise_var"]).exp() if Yvar is None else Yvar
        return f + var.sqrt() * RandomSource(generator, f.device, f.dtype).normal(*f.shape)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"noise_var": parameters["log_noise_var"].exp()}


@dataclass(frozen=True)
class Heteroscedastic(Likelihood):
    """y = f + e, e ~ N(0, exp(b + h)): the network's second half of outputs is h.

    Attributes:
        log_noise_var: b, the logarithm of the noise variance where h is 0, its prior mean, on the
            model's (standardised) scale.
    """

    log_noise_var: float = -2.0

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        why = "one for the mean and one for the log noise variance of each column of train_Y"
        check_functions(self, num_functions, 2 * Y.shape[-1], why)
        return self

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        return {}

    def _parts(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log noise variances."""
        mean, h = f.chunk(2, dim=-1)
        return mean, self.log_noise_var + h

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        mean, log_var = self._parts(f)
        return normal_log_density(Y - mean, log_var)

    def curvature(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        # expected: that of the outcomes is negative in some direction wherever they miss the mean
        log_var = self._parts(f)[1]
        return torch.diag_embed(
            torch.cat([(-log_var).exp(), torch.full_like(log_var, 0.5)], dim=-1)
        )

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._parts(f)[0]

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> GaussianMixturePosterior:
        mean, log_var = (part[..., outputs] for part in self._parts(f))
        return GaussianMixturePosterior(mean, log_var.exp(), log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        mean, log_var = self._parts(f)
        noise = RandomSource(generator, f.device, f.dtype).normal(*mean.shape)
        return mean + (0.5 * log_var).exp() * noise

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


def normal_log_density(residual: Tensor, log_var: Tensor) -> Tensor:
    """Log density of N(0, exp(log_var)) in nats, the shape of both broadcast."""
    square = residual.square() * (-log_var).exp()
    return -0.5 * (square + log_var + math.log(2 * math.pi))


def check_prior(name: str, prior: tuple[float, float]) -> None:
    """Refuse anything but a mean and a standard deviation."""
    try:
        NormalPrior.repeated(*prior, 1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be (mean, std) with std > 0, got {prior}.") from error
