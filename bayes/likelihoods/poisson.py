"""Counts, with a rate whose logarithm the network gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from bayes.likelihoods.base import Likelihood, NormalPrior, check_functions, check_whole_numbers
from priors.functions import draw
from priors.posteriors.poisson_mixture import PoissonMixturePosterior

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts y of rate exp(b + f), one network output for each column.

    Attributes:
        log_base_rate: b, one number for each column; the logarithm of the mean count of the
            training rows if None, so that the prior of f need not reach it.
    """

    real_valued: ClassVar[bool] = False

    log_base_rate: tuple[float, ...] | None = None

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        check_functions(self, num_functions, Y.shape[-1], "one for each column of train_Y")
        self.check_outcomes(Y, "train_Y")
        if self.log_base_rate is None:
            # where nothing was counted, as if half an event had been
            mean = Y.mean(-2).clamp_min(0.5 / len(Y))
            return replace(self, log_base_rate=tuple(mean.log().tolist()))
        if len(self.log_base_rate) != Y.shape[-1]:
            raise ValueError(
                f"Poisson needs a log_base_rate for each of {Y.shape[-1]} columns of train_Y, got "
                f"{self.log_base_rate}."
            )
        return replace(self, log_base_rate=tuple(self.log_base_rate))

    def check_outcomes(self, Y: Tensor, name: str = "Y") -> None:
        check_whole_numbers(self, Y, name, "counts", None)

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        return {}

    def _log_rates(self, f: Tensor) -> Tensor:
        assert self.log_base_rate is not None
        return f + f.new_tensor(self.log_base_rate)

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        log_rates = self._log_rates(f)
        return Y * log_rates - log_rates.exp() - torch.lgamma(Y + 1)

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._log_rates(f).exp()

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> PoissonMixturePosterior:
        return PoissonMixturePosterior(self._log_rates(f)[..., outputs], log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        law = torch.distributions.Poisson(self._log_rates(f).exp(), validate_args=False)
        return draw(law, torch.Size(), generator=generator)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}
