"""Noise with heavy tails, which single outliers do not pull: of one or of varying scale."""

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

__all__ = ["HeteroscedasticStudentT", "StudentT"]

# Mean and deviation of log(df - 1); 95% between 2 and 53 degrees of freedom.
_LOG_EXCESS_DF = (2.0, 1.0)


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
    log_excess_df_prior: tuple[float, float] = _LOG_EXCESS_DF

    def __post_init__(self) -> None:
        _check_df("StudentT", self.df, "gaussian")
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
        return _degrees(self.df, parameters, parameters["log_scale"])

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        log_scale = per_row(parameters["log_scale"])
        return (
            t_log_density((Y - f) * (-log_scale).exp(), per_row(self._df(parameters))) - log_scale
        )

    def curvature(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        # expected: that of an outcome far out is negative
        df, log_scale = self._df(parameters), parameters["log_scale"]
        each = (df + 1) / (df + 3) * (-2 * log_scale).exp()
        return torch.diag_embed(per_row(each).expand_as(f))

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


@dataclass(frozen=True)
class HeteroscedasticStudentT(Likelihood):
    """y = f + exp((b + h) / 2) t, t standard Student t: the second half of the outputs is h.

    For noise that depends on the input, among rows of which some are odd: a normal law of small
    variance gives an odd one hundreds of nats.

    Attributes:
        df: Degrees of freedom; one unknown number per output if None.
        log_square_scale: b, the logarithm of the squared scale where h is 0, its prior mean, on the
            model's (standardised) scale.
        log_excess_df_prior: Mean and standard deviation of the normal prior of log(df - 1), where
            df is not given. The default puts 95% between 2 and 53 degrees of freedom.

    Raises:
        ValueError: df is not above 1, where the mean of y does not exist.
    """

    df: float | None = None
    log_square_scale: float = -2.0
    log_excess_df_prior: tuple[float, float] = _LOG_EXCESS_DF

    def __post_init__(self) -> None:
        _check_df("HeteroscedasticStudentT", self.df, "heteroscedastic")
        check_prior("log_excess_df_prior", self.log_excess_df_prior)

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        why = "one for the location and one for the log squared scale of each column of train_Y"
        check_functions(self, num_functions, 2 * Y.shape[-1], why)
        return self

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        if self.df is not None:
            return {}
        return {"log_excess_df": NormalPrior.repeated(*self.log_excess_df_prior, num_columns)}

    def _parts(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and log scales."""
        location, h = f.chunk(2, dim=-1)
        return location, 0.5 * (self.log_square_scale + h)

    def _df(self, parameters: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """`[..., m]`, like `[..., n, m]`."""
        return _degrees(self.df, parameters, like[..., 0, :])

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        location, log_scale = self._parts(f)
        df = per_row(self._df(parameters, location))
        return t_log_density((Y - location) * (-log_scale).exp(), df) - log_scale

    def curvature(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        # expected: that of an outcome far out is negative
        location, log_scale = self._parts(f)
        df = per_row(self._df(parameters, location)).expand_as(location)
        of_location = (df + 1) / (df + 3) * (-2 * log_scale).exp()
        return torch.diag_embed(torch.cat([of_location, df / (2 * (df + 3))], dim=-1))

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._parts(f)[0]

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> StudentTMixturePosterior:
        location, log_scale = self._parts(f)
        df = _degrees(self.df, parameters, location.new_zeros(len(f), location.shape[-1]))
        df = per_draw(df, f).expand_as(location)
        scale = log_scale.exp()
        return StudentTMixturePosterior(
            location[..., outputs], scale[..., outputs], df[..., outputs], log_weights
        )

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        location, log_scale = self._parts(f)
        df = per_row(self._df(parameters, location)).expand_as(location)
        law = torch.distributions.StudentT(df, validate_args=False)
        return location + log_scale.exp() * draw(law, torch.Size(), generator=generator)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.df is not None else {"df": _degrees(None, parameters, None)}


def _check_df(owner: str, df: float | None, normal: str) -> None:
    if df is not None and not 1 < df < float("inf"):
        raise ValueError(
            f"{owner} needs 1 < df < inf, got {df}; for very many degrees of freedom "
            f'use likelihood="{normal}".'
        )


def _degrees(df: float | None, parameters: Mapping[str, Tensor], like: Tensor | None) -> Tensor:
    """Degrees of freedom `[..., m]`, drawn or known, then as `like`."""
    if df is None:
        return 1 + parameters["log_excess_df"].exp()
    assert like is not None
    return torch.full_like(like, df)
