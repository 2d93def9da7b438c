"""Noise with heavy tails, which single outliers do not pull."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayes.likelihoods.base import Likelihood, NormalPrior, check_functions, per_draw, per_row
from bayes.likelihoods.gaussian import check_prior
from priors.functions import draw
from priors.posteriors.student_t import t_log_density
from priors.posteriors.student_t_mixture import StudentTMixturePosterior

__all__ = ["StudentT"]


@dataclass(frozen=True)
class StudentT(Likelihood):
    """y = f + s t, t standard Student t: one scale s per output, degrees of freedom df > 1.

    Attributes:
        df: Degrees of freedom; one unknown number per output if None.
        log_scale_prior: Mean and standard deviation of the normal prior of log s, on the model's
            (standardised) scale.
        log_excess_df_prior: The same of log(df - 1), where df is not given. The default puts 95%
            between 2 and 53 degrees of freedom.

    Raises:
        ValueError: df is not above 1, where the mean of y does not exist.
    """

    df: float | None = None
    log_scale_prior: tuple[float, float] = (-1.0, 0.75)
    log_excess_df_prior: tuple[float, float] = (2.0, 1.0)

    def __post_init__(self) -> None:
        if self.df is not None and not 1 < self.df < float("inf"):
            raise ValueError(
                f"StudentT needs 1 < df < inf, got {self.df}; for very many degrees of freedom "
                'use likelihood="gaussian".'
            )
        check_prior("log_scale_prior", self.log_scale_prior)
        check_prior("log_excess_df_prior", self.log_excess_df_prior)

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        check_functions(self, num_functions, Y.shape[-1], "one for each column of train_Y")
        return self

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        found = {"log_scale": NormalPrior.repeated(*self.log_scale_prior, num_columns)}
        if self.df is None:
            found["log_excess_df"] = NormalPrior.repeated(*self.log_excess_df_prior, num_columns)
        return found

    def _df(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """`[..., m]`."""
        if self.df is None:
            return 1 + parameters["log_excess_df"].exp()
        return torch.full_like(parameters["log_scale"], self.df)

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        log_scale = per_row(parameters["log_scale"])
        return (
            t_log_density((Y - f) * (-log_scale).exp(), per_row(self._df(parameters))) - log_scale
        )

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return f

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> StudentTMixturePosterior:
        scale = per_draw(parameters["log_scale"].exp(), f)[..., outputs]
        df = per_draw(self._df(parameters), f)[..., outputs]
        return StudentTMixturePosterior(f[..., outputs], scale, df, log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        df = per_row(self._df(parameters)).expand_as(f)
        scale = per_row(parameters["log_scale"]).exp()
        law = torch.distributions.StudentT(df, validate_args=False)
        return f + scale * draw(law, torch.Size(), generator=generator)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"scale": parameters["log_scale"].exp(), "df": self._df(parameters)}
