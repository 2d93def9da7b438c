"""What the variational engine asks of a likelihood, and the answers of this package's own.

A `Law` gives E[log p(y | f)] over independent Gaussian functions, which the bound needs, and the
posteriors of what is noise-free and of outcomes. Expectations are closed where they are, and
otherwise sums over fixed nodes (`bayes.variational.nodes`). Parameters are point estimates under
their priors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from botorch.posteriors import Posterior
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform

from bayes.likelihoods import (
    Categorical,
    Gaussian,
    Heteroscedastic,
    HeteroscedasticStudentT,
    Likelihood,
    Ordinal,
    Poisson,
    StudentT,
)
from bayes.likelihoods.categorical import num_classes_of, of_class
from bayes.noise import NoiseLevel
from bayes.variational.latent import Latent
from bayes.variational.nodes import normal_line, normal_nodes
from bayes.variational.outcome_posterior import OutcomePosterior, ScaledNoisePosterior
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.transformed import TransformedPosterior

__all__ = [
    "CategoricalLaw",
    "Law",
    "NormalInstead",
    "Slopes",
    "check_all_classes",
    "class_posterior",
    "own_law",
    "predicted_classes",
]

# Nodes of an expected log likelihood, of one function and of several.
_NODES, _JOINT_NODES = 64, 256
# Nodes of a log scale that is a function.
_SCALE_NODES = 32
# Nodes of predictions of one function, at least and at most.
_FEWEST, _MOST = 64, 2048
_JOINT_PREDICTION = 1024
# Numbers that predictions of classes hold at once.
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Slopes:
    """An expected log likelihood of n rows and its derivatives.

    Attributes:
        value: Their sum, a scalar in nats.
        mean: Derivatives in the means of the functions, `[n, k]`.
        variance: Derivatives in the variances of the functions, `[n, k]`.
        coupling: Minus the Hessian in the means of a row, `[n, k, k]`, positive semidefinite; None
            where it is not known or has no entries between functions.
    """

    value: Tensor
    mean: Tensor
    variance: Tensor
    coupling: Tensor | None = None


class Law(gpytorch.Module, ABC):
    """A likelihood as the variational engine sees it.

    Attributes:
        real_valued: Whether outcomes are real numbers, which are standardised.
        num_functions: k, Gaussian functions.
        num_outputs: Columns of a posterior: those of outcomes, or classes.
        num_nodes: Nodes of an expected log likelihood, for each row.
    """

    real_valued = True
    num_functions: int
    num_outputs: int
    num_nodes: int = 64

    @abstractmethod
    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """E[log p(y | f)] over f ~ N(mean, diag(variance)), `[n]` in nats, differentiable.

        Args:
            Y: Outcomes on the model's scale, `[n, m]`.
            mean: Of the functions, `[n, k]`.
            variance: Of the functions, `[n, k]`, >= 0.
        """

    def slopes(
        self, Y: Tensor, mean: Tensor, variance: Tensor, weights: Tensor | float = 1.0
    ) -> Slopes:
        """The sum of `expected_log_prob` over rows with its derivatives; arguments as there.

        Args:
            Y: Outcomes.
            mean: Of the functions.
            variance: Of the functions.
            weights: Of the rows, `[n]`.
        """
        with torch.enable_grad():
            mean, variance = (part.detach().requires_grad_() for part in (mean, variance))
            value = (weights * self.expected_log_prob(Y, mean, variance)).sum()
            of_mean, of_variance = torch.autograd.grad(value, (mean, variance))
        return Slopes(value.detach(), of_mean, of_variance)

    @abstractmethod
    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        """Posterior of what outcomes scatter about, on the model's scale."""

    @abstractmethod
    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        """Posterior of outcomes, on the model's scale."""

    def check_outcomes(self, Y: Tensor, name: str) -> None:
        """Refuse outcomes that it cannot give."""

    def log_prior(self) -> Tensor | float:
        """Log prior density of its parameters that GPyTorch does not know of, in nats."""
        return 0.0

    def divergence(self) -> Tensor | float:
        """KL of what it has a distribution of besides the functions, such as a scale, in nats."""
        return 0.0

    def inverse_scale(self) -> Tensor | float:
        """E[1 / s] of a random scale s of the functions' variance; 1 without one."""
        return 1.0

    @property
    def noise_level(self) -> NoiseLevel | None:
        """Of noise that is learnt and falls off on both sides of a function, else None."""
        return None

    @property
    def approach(self) -> Law | None:
        """What shows a fit from little noise its way, see `bayes.noise.LessNoise`."""
        return None

    def values(self) -> dict[str, Tensor]:
        """Its parameters as a user reads them, by name."""
        return {}


class _LikelihoodLaw(Law):
    """One of `bayes.likelihoods`, its parameters at a point.

    Args:
        likelihood: Fitted to the outcomes.
        num_functions: k.
        num_columns: Columns of outcomes.
        like: Whose dtype and device the parameters have.
    """

    def __init__(
        self, likelihood: Likelihood, num_functions: int, num_columns: int, like: Tensor
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.num_functions = num_functions
        self.num_outputs = likelihood.num_outputs(num_columns)
        self.real_valued = likelihood.real_valued
        self.num_nodes = _NODES if self._elementwise or num_functions == 1 else _JOINT_NODES
        self.priors = likelihood.priors(num_columns)
        for name, prior in self.priors.items():
            self.register_parameter(name, nn.Parameter(prior.tensors(like)[0]))

    def check_outcomes(self, Y: Tensor, name: str) -> None:
        self.likelihood.check_outcomes(Y, name)

    def own_parameters(self, like: Tensor) -> dict[str, Tensor]:
        """Unconstrained, by name, `[p]`, in the dtype of `like`."""
        return {name: getattr(self, name).to(like) for name in self.priors}

    def log_prior(self) -> Tensor | float:
        return sum(
            (prior.log_prob(getattr(self, name)) for name, prior in self.priors.items()), start=0.0
        )

    def values(self) -> dict[str, Tensor]:
        return self.likelihood.constrained({name: getattr(self, name) for name in self.priors})

    @property
    def _elementwise(self) -> bool:
        """Whether each column of outcomes has its own function."""
        return False

    def _nodes(self, mean: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Standard normals that broadcast with `[S, ..., k]`, and log weights `[S]`."""
        k = self.num_functions
        if self._elementwise or k == 1:
            x, log_weights = normal_line(size, mean)
            return x.reshape(-1, *[1] * mean.dim()), log_weights
        x, log_weights = normal_nodes(k, max(size, _JOINT_NODES), mean)
        return x.reshape(len(x), *[1] * (mean.dim() - 1), k), log_weights

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        x, log_weights = self._nodes(mean, _NODES)
        f = mean + _root(variance) * x
        each = self.likelihood.log_prob(Y, f, self.own_parameters(mean)).sum(-1)
        return torch.tensordot(log_weights.exp(), each, dims=1)

    def _width(self, latent: Latent) -> Tensor:
        """The smallest distance in f over which the probability of an outcome changes."""
        return torch.ones((), dtype=latent.mean.dtype, device=latent.mean.device)

    def _of_nodes(self, latent: Latent) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Functions at nodes `[S, ..., q, k]`, parameters `[S, p]` and log weights `[S]`."""
        size = _JOINT_PREDICTION
        if self._elementwise or self.num_functions == 1:
            spread = latent.variance.detach().max().sqrt() / self._width(latent).detach()
            wanted = max(_FEWEST, min(_MOST, 17 * float(spread)))
            size = 2 ** math.ceil(math.log2(wanted))
        x, log_weights = self._nodes(latent.mean, size)
        f = latent.mean + latent.variance.sqrt() * x
        own = {
            name: value.expand(len(log_weights), -1)
            for name, value in self.own_parameters(latent.mean).items()
        }
        return f, own, log_weights

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        f, own, log_weights = self._of_nodes(latent)
        return self.likelihood.of_functions(f, own, outputs, log_weights)

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        f, own, log_weights = self._of_nodes(latent)
        marginal = self.likelihood.of_outcomes(f, own, outputs, log_weights)
        return self._joint(marginal, latent, outputs)

    def _joint(self, marginal: Posterior, latent: Latent, outputs: Sequence[int]) -> Posterior:
        if isinstance(marginal, CategoricalPosterior):
            return marginal

        def given(f: Tensor) -> Any:
            own = {name: value[None] for name, value in self.own_parameters(f).items()}
            return self.likelihood.of_outcomes(f, own, outputs)

        return OutcomePosterior(marginal, latent.posterior(), given)  # type: ignore[arg-type]


class _ColumnLaw(_LikelihoodLaw):
    """Of likelihoods in which each column of outcomes has its own function."""

    @property
    def _elementwise(self) -> bool:
        return True


class _GaussianLaw(_ColumnLaw):
    """Normal noise: everything closed."""

    @property
    def noise_level(self) -> NoiseLevel | None:
        log_var: Tensor = self.log_noise_var
        if not log_var.requires_grad:
            return None
        return NoiseLevel(
            log_var.exp, lambda noise: log_var.data.copy_(noise.log()), self.log_prior
        )

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        log_var = self.own_parameters(mean)["log_noise_var"]
        square = ((Y - mean).square() + variance) * (-log_var).exp()
        return -0.5 * (square + log_var + math.log(2 * math.pi)).sum(-1)

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return latent.of_functions(outputs).posterior()

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        noise = self.own_parameters(latent.mean)["log_noise_var"].exp()[list(outputs)]
        return latent.of_functions(outputs).posterior(noise)


class _StudentTLaw(_ColumnLaw):
    """Student t noise: a scale mixture of Gaussians, whose predictions are one too."""

    @property
    def noise_level(self) -> NoiseLevel | None:
        log_scale: Tensor = self.log_scale
        if not log_scale.requires_grad:
            return None
        return NoiseLevel(
            lambda: (2 * log_scale).exp(),
            lambda noise: log_scale.data.copy_(noise.log() / 2),
            self.log_prior,
        )

    @property
    def approach(self) -> Law:
        """Heavy tails take any misfit for outliers, so they drive no function from smoothness."""
        return NormalInstead(self, lambda like: 2 * self.own_parameters(like)["log_scale"])

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return latent.of_functions(outputs).posterior()

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        index = list(outputs)
        noise = self.likelihood.constrained(self.own_parameters(latent.mean))
        marginal = ScaledNoisePosterior(
            latent.mean[..., index],
            latent.variance[..., index],
            noise["scale"][index],
            noise["df"][index],
        )
        return self._joint(marginal, latent, outputs)


class NormalInstead(_GaussianLaw):
    """Normal noise in the place of noise with heavy tails.

    Args:
        law: With the heavy tails.
        log_noise_var: Gives log variances for its columns, in the dtype of what it is given.
    """

    def __init__(self, law: Law, log_noise_var: Callable[[Tensor], Tensor]) -> None:
        Law.__init__(self)
        self.num_functions, self.num_outputs = law.num_functions, law.num_outputs
        self.num_nodes = law.num_nodes
        self.law, self.log_noise_var = law, log_noise_var

    def own_parameters(self, like: Tensor) -> dict[str, Tensor]:
        return {"log_noise_var": self.log_noise_var(like)}

    def log_prior(self) -> Tensor | float:
        return self.law.log_prior()


class _PoissonLaw(_ColumnLaw):
    """Counts: E[y f - exp f] closed, rates log-normal."""

    @property
    def _base(self) -> tuple[float, ...]:
        assert isinstance(self.likelihood, Poisson)
        assert self.likelihood.log_base_rate is not None
        return self.likelihood.log_base_rate

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        log_rate = mean + mean.new_tensor(self._base)
        expected = (log_rate + 0.5 * variance).exp()
        return (Y * log_rate - expected - torch.lgamma(Y + 1)).sum(-1)

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        base = latent.mean.new_tensor(self._base)[list(outputs)]
        rate = ComposeTransform([AffineTransform(base, 1.0), ExpTransform()])
        return TransformedPosterior(latent.of_functions(outputs).posterior(), rate)

    def _width(self, latent: Latent) -> Tensor:
        highest = latent.mean + latent.mean.new_tensor(self._base) + 3 * latent.variance.sqrt()
        return (-0.5 * highest.max()).exp().clamp_max(1.0)


class _HeteroscedasticLaw(_LikelihoodLaw):
    """Normal noise whose log variance is a second half of functions; closed but for that."""

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        m = Y.shape[-1]
        assert isinstance(self.likelihood, Heteroscedastic)
        log_var = self.likelihood.log_noise_var + mean[..., m:]
        inverse = (0.5 * variance[..., m:] - log_var).exp()  # E exp(-log_var)
        square = ((Y - mean[..., :m]).square() + variance[..., :m]) * inverse
        return -0.5 * (square + log_var + math.log(2 * math.pi)).sum(-1)

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return latent.of_functions(outputs).posterior()

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        assert isinstance(self.likelihood, Heteroscedastic)
        m = self.num_outputs
        index, noisy = list(outputs), [m + k for k in outputs]
        x, log_weights = normal_line(_FEWEST, latent.mean)
        x = x.reshape(-1, *[1] * latent.mean.dim())
        log_var = latent.mean[..., noisy] + latent.variance[..., noisy].sqrt() * x
        noise = (log_var + self.likelihood.log_noise_var).exp()
        means = latent.mean[..., index].expand_as(noise)
        marginal = GaussianMixturePosterior(means, latent.variance[..., index] + noise, log_weights)
        return self._joint(marginal, latent, outputs)


class _HeteroscedasticStudentTLaw(_LikelihoodLaw):
    """Student t noise whose log squared scale is a second half of functions."""

    def __init__(
        self, likelihood: Likelihood, num_functions: int, num_columns: int, like: Tensor
    ) -> None:
        super().__init__(likelihood, num_functions, num_columns, like)
        self.num_nodes = _NODES * _SCALE_NODES

    def _nodes(self, mean: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Of pairs: each column of outcomes has a location and a scale, and no others."""
        x, log_weights = normal_line(size, mean)
        h, of_scale = normal_line(_SCALE_NODES, mean)
        pairs = torch.cartesian_prod(x, h).repeat_interleave(self.num_outputs, dim=-1)
        pairs = pairs.reshape(len(pairs), *[1] * (mean.dim() - 1), self.num_functions)
        return pairs, (log_weights[:, None] + of_scale).flatten()

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return latent.of_functions(outputs).posterior()

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        assert isinstance(self.likelihood, HeteroscedasticStudentT)
        index, scales = list(outputs), [self.num_outputs + k for k in outputs]
        h, log_weights = normal_line(_SCALE_NODES, latent.mean)
        h = h.reshape(-1, *[1] * latent.mean.dim())
        h = latent.mean[..., scales] + latent.variance[..., scales].sqrt() * h
        df = self.likelihood.df
        if df is None:
            known = self.values()["df"].to(latent.mean)[index]
        else:
            known = latent.mean.new_full((len(index),), df)
        marginal = ScaledNoisePosterior(
            latent.mean[..., index],
            latent.variance[..., index],
            (0.5 * (self.likelihood.log_square_scale + h)).exp(),
            known,
            log_weights,
        )
        return self._joint(marginal, latent, outputs)


class CategoricalLaw(_LikelihoodLaw):
    """Classes by softmax of as many functions."""

    def _normals(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Deviations of the functions in standard deviations, `[S, 1, C]`, log weights `[S]`."""
        x, log_weights = normal_nodes(self.num_functions, _JOINT_NODES, like)
        return x.unsqueeze(-2), log_weights

    def expected_log_prob(self, Y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        x, log_weights = self._normals(mean)
        each = (mean + _root(variance) * x).log_softmax(-1)
        return torch.tensordot(log_weights.exp(), of_class(each, Y).squeeze(-1), dims=1)

    def slopes(
        self, Y: Tensor, mean: Tensor, variance: Tensor, weights: Tensor | float = 1.0
    ) -> Slopes:
        with torch.no_grad():
            (x, log_masses), std = self._normals(mean), _root(variance)
            masses = log_masses.exp()
            each = (mean + std * x).log_softmax(-1)
            value = torch.tensordot(masses, of_class(each, Y).squeeze(-1), dims=1)
            p = each.exp()
            weighed = masses[:, None, None] * p
            chosen = nn.functional.one_hot(Y[:, 0].long(), self.num_functions).to(mean)
            expected = weighed.sum(0)
            # the deviations x of all nodes have mean 0
            of_variance = -0.5 * (weighed * x).sum(0) / std
            together = weighed.permute(1, 2, 0) @ p.permute(1, 0, 2)
            w = torch.as_tensor(weights, dtype=mean.dtype, device=mean.device).reshape(-1, 1)
            return Slopes(
                (w[:, 0] * value).sum(),
                w * (chosen - expected),
                w * of_variance,
                w.unsqueeze(-1) * (torch.diag_embed(expected) - together),
            )

    def noise_free(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return class_posterior(latent.mean, latent.variance, outputs)

    def outcomes(self, latent: Latent, outputs: Sequence[int]) -> Posterior:
        return predicted_classes(latent.mean, latent.variance, outputs)


def class_posterior(
    mean: Tensor,
    variance: Tensor,
    outputs: Sequence[int],
    scales: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> ClassProbabilityPosterior:
    """Probabilities softmax(f) of Gaussian functions at the nodes of a quadrature.

    Args:
        mean: `[..., q, C]`.
        variance: `[..., q, C]`.
        outputs: Which classes.
        scales: Factors of the variance, `[J]`, over which to average.
        log_weights: Of the scales, `[J]`.
    """
    x, weights = normal_nodes(mean.shape[-1], _JOINT_PREDICTION // 2, mean)
    roots = mean.new_ones(1) if scales is None else scales.to(mean).sqrt()
    weights = weights + (
        mean.new_zeros(1, 1) if log_weights is None else log_weights.to(mean)[:, None]
    )
    x = (roots[:, None, None] * x).flatten(0, 1)
    x = x.reshape(len(x), *[1] * (mean.dim() - 1), mean.shape[-1])
    draws = (mean + variance.sqrt() * x).softmax(-1)
    return ClassProbabilityPosterior(draws[..., list(outputs)], weights.flatten())


def predicted_classes(
    mean: Tensor,
    variance: Tensor,
    outputs: Sequence[int],
    scales: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> CategoricalPosterior:
    """Averages of these probabilities, in blocks of queries; arguments as of `class_posterior`."""
    classes = mean.shape[-1]
    check_all_classes(outputs, classes)
    nodes = _JOINT_PREDICTION // 2 * (1 if scales is None else len(scales))
    size = max(1, _NUMBERS_AT_ONCE // (nodes * classes))
    flat = [part.reshape(-1, classes).split(size) for part in (mean, variance)]
    found = [
        class_posterior(some, other, outputs, scales, log_weights).mean
        for some, other in zip(*flat, strict=True)
    ]
    tiny = torch.finfo(mean.dtype).tiny
    logits = torch.cat(found).reshape(mean.shape).clamp_min(tiny).log()
    return CategoricalPosterior(logits)


def check_all_classes(outputs: Sequence[int], classes: int) -> None:
    """Refuse some classes only: their probabilities come together."""
    if list(outputs) != list(range(classes)):
        raise ValueError(
            f"Class probabilities come together, got outputs {list(outputs)} of {classes} classes; "
            "take columns of posterior(X).mean."
        )


def _root(variance: Tensor) -> Tensor:
    """Standard deviations, with a finite gradient at 0."""
    return variance.clamp_min(1e-24).sqrt()


_LAWS: Mapping[type[Likelihood], type[_LikelihoodLaw]] = {
    Gaussian: _GaussianLaw,
    StudentT: _StudentTLaw,
    Poisson: _PoissonLaw,
    Ordinal: _LikelihoodLaw,
    Heteroscedastic: _HeteroscedasticLaw,
    HeteroscedasticStudentT: _HeteroscedasticStudentTLaw,
    Categorical: CategoricalLaw,
}


def own_law(likelihood: Likelihood, Y: Tensor) -> Law:
    """The law of one of `bayes.likelihoods`, fitted to outcomes `[n, m]`.

    Others than those shipped are asked with one function for each column of outcomes.
    """
    columns = Y.shape[-1]
    functions = columns
    if isinstance(likelihood, Categorical):
        functions = likelihood.num_classes or num_classes_of("Categorical", Y)
    elif isinstance(likelihood, Heteroscedastic | HeteroscedasticStudentT):
        functions = 2 * columns
    fitted = likelihood.fitted_to(Y, functions)
    return _LAWS.get(type(likelihood), _LikelihoodLaw)(fitted, functions, columns, Y)
