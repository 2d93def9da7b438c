"""GPyTorch's likelihoods as laws of the variational engine.

Expectations are sums over fixed nodes of `likelihood.forward(f)`, the distribution of outcomes
given the functions; GPyTorch's own draw at random where it has no quadrature.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from botorch.posteriors import Posterior
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    StudentTLikelihood,
    _OneDimensionalLikelihood,
)
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor, distributions

from bayes.description import describe_module
from bayes.noise import NoiseLevel
from bayes.variational.latent import Latent
from bayes.variational.laws import Law, NormalInstead, check_all_classes
from bayes.variational.nodes import normal_line, normal_nodes
from bayes.variational.outcome_posterior import (
    DistributionMixture,
    OutcomePosterior,
    ScaledNoisePosterior,
)
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.draws import EmpiricalPosterior, log_average

__all__ = ["gpytorch_law"]

_NODES, _JOINT_NODES, _PREDICTION = 64, 256, 512
_LEAST_NOISE = 1e-8


class _GPyTorchLaw(Law):
    """A likelihood with a function for each column of outcomes.

    Args:
        likelihood: Copied.
        num_columns: Columns of outcomes.
        like: Whose dtype and device the parameters have.

    Attributes:
        made_as: What the likelihood was before it was copied, for files.
    """

    def __init__(self, likelihood: GPyTorchLikelihood, num_columns: int, like: Tensor) -> None:
        super().__init__()
        self.made_as = describe_module(likelihood)
        self.likelihood = copy.deepcopy(likelihood).to(like)
        self.num_functions = self.num_outputs = num_columns

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        each, log_weights = self._given(mean, variance.clamp_min(1e-24), _NODES)
        return torch.tensordot(log_weights.exp(), each.log_prob(Y).sum(-1), dims=1)

    def _given(self, mean: Tensor, variance: Tensor, size: int) -> tuple[Any, Tensor]:
        """Distributions of outcomes at nodes, `[S, ..., q, m]`, and log weights `[S]`."""
        x, log_weights = normal_line(size, mean)
        f = mean + variance.sqrt() * x.reshape(-1, *[1] * mean.dim())
        return self.likelihood.forward(f), log_weights

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return latent.of_functions(outputs).posterior()

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        latent = latent.of_functions(outputs)
        laws, log_weights = self._given(latent.mean, latent.variance, _PREDICTION)
        marginal = DistributionMixture(laws, log_weights)

        def given(f: Tensor) -> DistributionMixture:
            return DistributionMixture(self.likelihood.forward(f), f.new_zeros(1))

        return OutcomePosterior(marginal, latent.posterior(), given)


class _Noise(_GPyTorchLaw):
    """One noise variance, or squared scale, for all columns."""

    def __init__(self, likelihood: GPyTorchLikelihood, num_columns: int, like: Tensor) -> None:
        super().__init__(likelihood, num_columns, like)
        _learn_in_logs(getattr(self.likelihood, "noise_covar", self.likelihood))

    @property
    def noise_level(self) -> NoiseLevel | None:
        return NoiseLevel.of(self.likelihood)


class _NormalNoise(_Noise):
    """`GaussianLikelihood`."""

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        noise = self.likelihood.noise.to(mean)
        square = ((Y - mean).square() + variance) / noise
        return -0.5 * (square + noise.log() + math.log(2 * math.pi)).sum(-1)

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        noise = self.likelihood.noise.to(latent.mean)
        return latent.of_functions(outputs).posterior(noise)


class _HeavyTails(_Noise):
    """Noise with outliers."""

    @property
    def approach(self) -> Law:
        """Heavy tails take any misfit for outliers, so they drive no function from smoothness."""
        columns = self.num_functions
        return NormalInstead(
            self, lambda like: self.likelihood.noise.to(like).log().expand(columns)
        )


class _LaplaceNoise(_HeavyTails):
    """`LaplaceLikelihood`: E|y - f| is the mean of a folded normal, and has no kink."""

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.likelihood.noise.sqrt().to(mean)
        std, d = variance.clamp_min(1e-24).sqrt(), Y - mean
        u = d / std
        peak = math.sqrt(2 / math.pi) * std * (-0.5 * u.square()).exp()
        distance = peak + d * torch.erf(u / math.sqrt(2))
        return -(distance / scale + (2 * scale).log()).sum(-1)


class _StudentTNoise(_HeavyTails):
    """`StudentTLikelihood`: one scale and one number of degrees of freedom for all columns."""

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        latent = latent.of_functions(outputs)
        columns = latent.mean.shape[-1]
        scale = self.likelihood.noise.sqrt().to(latent.mean).expand(columns)
        df = self.likelihood.deg_free.to(latent.mean).expand(columns)
        marginal = ScaledNoisePosterior(latent.mean, latent.variance, scale, df)

        def given(f: Tensor) -> ScaledNoisePosterior:
            return ScaledNoisePosterior(f[0], torch.zeros_like(f[0]), scale, df)

        return OutcomePosterior(marginal, latent.posterior(), given)


def _learn_in_logs(owner: Any) -> None:
    """Have fits move a noise by factors, as those of our own models.

    A step in GPyTorch's parameters, which are no logarithms, takes it from hardly any to much.

    Args:
        owner: Has the parameter `raw_noise`.
    """
    constraint = getattr(owner, "raw_noise_constraint", None)
    if constraint is None or not constraint.enforced or math.isfinite(constraint.upper_bound):
        return
    noise, least = owner.noise.detach().clone(), float(constraint.lower_bound)
    logarithm = GreaterThan(least, transform=torch.exp, inv_transform=torch.log)
    owner.register_constraint("raw_noise", logarithm)
    owner.initialize(noise=noise.clamp_min(least + _LEAST_NOISE))


class _Probit(_GPyTorchLaw):
    """`BernoulliLikelihood`, P(y = 1) = Phi(f); predictions closed: Phi(mean / sqrt(1 + var))."""

    real_valued = False

    def __init__(self, likelihood: GPyTorchLikelihood, num_columns: int, like: Tensor) -> None:
        super().__init__(likelihood, num_columns, like)
        if num_columns != 1:
            raise ValueError(
                f"BernoulliLikelihood needs one column of classes 0 and 1, got {num_columns}."
            )
        self.num_outputs = 2

    def check_outcomes(self, Y: Tensor, name: str) -> None:
        bad = (Y != 0) & (Y != 1)
        if bool(bad.any()):
            raise ValueError(
                f"BernoulliLikelihood needs {name} of 0 and 1, got {Y[bad][0].item():g} in "
                f"{int(bad.sum())} of {Y.numel()} values."
            )

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        x, log_weights = normal_line(_NODES, mean)
        f = mean + variance.clamp_min(1e-24).sqrt() * x.reshape(-1, 1, 1)
        each = torch.special.log_ndtr((2 * Y - 1) * f).sum(-1)
        return torch.tensordot(log_weights.exp(), each, dims=1)

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        x, log_weights = normal_line(_PREDICTION, latent.mean)
        f = latent.mean + latent.variance.sqrt() * x.reshape(-1, *[1] * latent.mean.dim())
        draws = torch.special.ndtr(torch.cat([-f, f], dim=-1))
        return ClassProbabilityPosterior(draws[..., list(outputs)], log_weights)

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        check_all_classes(outputs, 2)
        u = latent.mean / (1 + latent.variance).sqrt()
        return CategoricalPosterior(torch.special.log_ndtr(torch.cat([-u, u], dim=-1)))


class _Joint(_GPyTorchLaw):
    """A likelihood of one column of classes with several functions, such as `SoftmaxLikelihood`."""

    real_valued = False

    def __init__(self, likelihood: Any, num_columns: int, like: Tensor) -> None:
        super().__init__(likelihood, num_columns, like)
        self.num_functions = likelihood.num_features
        self.num_nodes = _JOINT_NODES
        self.num_outputs = likelihood.num_classes
        if num_columns != 1:
            raise ValueError(
                f"{type(likelihood).__name__} needs one column of class numbers, got {num_columns}."
            )

    def check_outcomes(self, Y: Tensor, name: str) -> None:
        bad = (Y != Y.round()) | (Y < 0) | (Y >= self.num_outputs)
        if bool(bad.any()):
            raise ValueError(
                f"{type(self.likelihood).__name__} needs {name} of class numbers 0, ..., "
                f"{self.num_outputs - 1}, got {Y[bad][0].item():g}."
            )

    def _log_probabilities(
        self, mean: Tensor, variance: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """At nodes, `[S, ..., q, C]`, and log weights `[S]`."""
        x, log_weights = normal_nodes(self.num_functions, size, mean)
        x = x.reshape(len(x), *[1] * (mean.dim() - 1), x.shape[-1])
        f = mean + variance.clamp_min(1e-24).sqrt() * x
        own = next(self.likelihood.parameters(), f)
        # as one list of rows: as many rows as functions are taken for a transposed matrix
        rows = f.reshape(-1, f.shape[-1]).to(own.dtype)
        given = self.likelihood.forward(torch.cat([rows, rows[:1]]))
        return given.logits[:-1].to(f).reshape(*f.shape[:-1], -1), log_weights

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        each, log_weights = self._log_probabilities(mean, variance, _JOINT_NODES)
        index = Y.long().expand(len(each), *Y.shape)
        chosen = each.gather(-1, index).squeeze(-1)
        return torch.tensordot(log_weights.exp(), chosen, dims=1)

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        each, log_weights = self._log_probabilities(latent.mean, latent.variance, _PREDICTION)
        return ClassProbabilityPosterior(each.exp()[..., list(outputs)], log_weights)

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        check_all_classes(outputs, self.num_outputs)
        each, log_weights = self._log_probabilities(latent.mean, latent.variance, _PREDICTION)
        return CategoricalPosterior(log_average(each, log_weights))


class _Untransformed(_GPyTorchLaw):
    """Counts, shares and the like, which are not standardised; noise-free is their mean given f."""

    real_valued = False

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        latent = latent.of_functions(outputs)
        laws, log_weights = self._given(latent.mean, latent.variance, _PREDICTION)
        return EmpiricalPosterior(laws.mean, log_weights)


def gpytorch_law(likelihood: GPyTorchLikelihood, Y: Tensor) -> Law:
    """The law of a GPyTorch likelihood for outcomes `[n, m]`.

    Raises:
        NotImplementedError: it has no distribution of outcomes given functions that is understood.
    """
    columns = Y.shape[-1]
    if isinstance(likelihood, GaussianLikelihood):
        return _NormalNoise(likelihood, columns, Y)
    if isinstance(likelihood, LaplaceLikelihood):
        return _LaplaceNoise(likelihood, columns, Y)
    if isinstance(likelihood, StudentTLikelihood):
        return _StudentTNoise(likelihood, columns, Y)
    if isinstance(likelihood, BernoulliLikelihood):
        return _Probit(likelihood, columns, Y)
    if isinstance(likelihood, _OneDimensionalLikelihood):
        example = likelihood.forward(Y.new_zeros(1, 1))
        discrete = isinstance(example, distributions.Distribution) and bool(
            example.support.is_discrete  # type: ignore[union-attr]
        )
        bounded = isinstance(example, distributions.Beta)
        kind = _Untransformed if discrete or bounded else _GPyTorchLaw
        return kind(likelihood, columns, Y)
    if hasattr(likelihood, "num_features") and hasattr(likelihood, "num_classes"):
        return _Joint(likelihood, columns, Y)
    raise NotImplementedError(
        "The variational engine takes GPyTorch likelihoods of one function for each column, and "
        f"of classes; {type(likelihood).__name__} is neither."
    )
