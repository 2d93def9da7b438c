"""What every posterior of this package answers, whichever engine made it.

A `PredictivePosterior` is a BoTorch `Posterior` that also knows the density of its own
marginals. Shapes: `n` points, `m` outputs, any batch dimensions before them; "marginal" means
per point and per output. Densities are in nats and in the units of the user's Y: transforms of
the outcome are undone with their Jacobian by `TransformedPosterior`.

Sampling goes through standard normal base samples (`rsample_from_base_samples`), so that
BoTorch's sample average approximation works: the same base samples give the same function of X.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from botorch.acquisition.objective import (
    ExpectationPosteriorTransform,
    PosteriorTransform,
    ScalarizedPosteriorTransform,
)
from botorch.posteriors import GPyTorchPosterior, Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Normal
from torch.distributions.transforms import AffineTransform, Transform

from priors.posteriors.transforms import TailCompression

__all__ = [
    "GaussianPosterior",
    "PredictivePosterior",
    "Scores",
    "TransformedPosterior",
    "apply_posterior_transform",
    "as_predictive",
    "leading",
    "probabilities",
    "score",
]


class PredictivePosterior(Posterior, ABC):
    """A predictive distribution with exact marginals.

    Subclasses give the abstract members below; `device`, `dtype` and the sampling shapes follow
    from `mean`. An infinite variance is `inf`; what is undefined raises.
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Marginal means, `[..., n, m]`."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances, `[..., n, m]`."""

    @abstractmethod
    def log_prob(self, Y: Tensor) -> Tensor:
        """Marginal log densities at `Y` `[..., n, m]`, in nats, `[..., n, m]`."""

    @abstractmethod
    def cdf(self, Y: Tensor) -> Tensor:
        """Marginal probabilities of a value at most `Y` `[..., n, m]`, `[..., n, m]`."""

    @abstractmethod
    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """

    @abstractmethod
    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples as a differentiable function of standard normals.

        Args:
            sample_shape: Shape of the sample dimensions.
            base_samples: Standard normals `[*sample_shape, *base_sample_shape]`; the batch
                dimensions may be 1 and broadcast.

        Returns:
            `[*sample_shape, ..., n, m]`, joint over points where the engine has a joint.
        """

    def __getattr__(self, name: str) -> Any:
        # `hasattr` of these is how BoTorch asks for a Gaussian.
        if name in ("distribution", "mvn"):
            raise AttributeError(
                f"{type(self).__name__} is not Gaussian and has no {name!r}. An acquisition "
                "function that needs a Gaussian takes GaussianApproximation(model)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        """Log density of all `n` points and `m` outputs together, `[...]`, in nats.

        Raises:
            NotImplementedError: this posterior has no joint density.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has marginal densities only; use log_prob(Y) for them."
        )

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        """Log of the marginal expected improvement over `best_f`, `[..., n, m]`.

        E[max(y - best_f, 0)], or E[max(best_f - y, 0)] when minimising, under the true marginal.

        Raises:
            NotImplementedError: no closed form; use a BoTorch Monte Carlo acquisition.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form expected improvement; use "
            "botorch.acquisition.qLogExpectedImprovement, which samples it."
        )

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        """Log of the marginal probability to improve on `best_f`, `[..., n, m]`.

        P(y > best_f), or P(y < best_f) when minimising, under the true marginal, accurate however
        small it is.

        Raises:
            NotImplementedError: no closed form; use a BoTorch Monte Carlo acquisition.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form probability of improvement; use "
            "botorch.acquisition.qProbabilityOfImprovement, which samples it."
        )

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draw samples with gradients, `[*sample_shape, ..., n, m]`; one, `[1, ...]`, without."""
        shape = torch.Size([1]) if sample_shape is None else torch.Size(sample_shape)
        base = torch.randn(shape + self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(shape, base)

    def density(self, value: Tensor) -> Tensor:
        """Marginal densities at `value`, `[..., n, m]`."""
        return self.log_prob(value).exp()

    @property
    def device(self) -> torch.device:
        """Device of the distribution."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the distribution."""
        return self.mean.dtype

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the posterior, without points and outputs."""
        return self._extended_shape()[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.mean.shape

    @property
    def base_sample_shape(self) -> torch.Size:
        """Shape of the standard normals that one sample needs."""
        return self.mean.shape

    @property
    def batch_range(self) -> tuple[int, int]:
        """The dimensions of `base_sample_shape` over which base samples are shared."""
        return (0, -2)


@GetSampler.register(PredictivePosterior)
def _sampler(
    posterior: PredictivePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)


class GaussianPosterior(GPyTorchPosterior, PredictivePosterior):
    """A GPyTorch multivariate normal posterior that answers the whole protocol."""

    def log_prob(self, Y: Tensor) -> Tensor:
        return self._marginals.log_prob(Y)

    def cdf(self, Y: Tensor) -> Tensor:
        return self._marginals.cdf(Y)

    def quantile(self, value: Tensor) -> Tensor:
        return self._marginals.icdf(leading(value, self.mean))

    def density(self, value: Tensor) -> Tensor:
        return self.log_prob(value).exp()

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        # GPyTorch's multitask log_prob scrambles values of a distribution that is not interleaved.
        ordered = Y if not self._is_mt or self.distribution._interleaved else Y.mT
        return MultivariateNormal.log_prob(self.distribution, ordered.flatten(-2))

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return gaussian_log_expected_improvement(sign * self.mean, self.variance, sign * best)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        sign = 1.0 if maximize else -1.0
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return gaussian_log_probability_of_improvement(sign * self.mean, self.variance, sign * best)

    @property
    def _marginals(self) -> Normal:
        return Normal(self.mean, self.variance.sqrt(), validate_args=False)


def as_predictive(posterior: Posterior) -> PredictivePosterior:
    """A posterior that answers for its densities.

    Args:
        posterior: One of this package's, or BoTorch's Gaussian one.

    Raises:
        TypeError: any other kind, whose density is not known.
    """
    if isinstance(posterior, PredictivePosterior):
        return posterior
    if isinstance(posterior, GPyTorchPosterior):
        return GaussianPosterior(posterior.distribution)
    raise TypeError(
        f"A {type(posterior).__name__} has no exact marginal density. BoTorch's outcome "
        "transforms other than Standardize lose it: give the outcome transform to a model of "
        "this package."
    )


class TransformedPosterior(PredictivePosterior):
    """A posterior of z seen as a posterior of y = T(z), T monotone and elementwise.

    Args:
        base: Posterior of z, `[..., n, m]`.
        transform: A `torch.distributions` transform from z to y with event dimension 0 whose
            parameters broadcast with `[..., n, m]`; `AffineTransform` undoes a standardisation.

    Moments and expected improvement are closed for an affine map; other maps take the moments
    by quadrature of the quantile function and have no closed expected improvement, but for
    `TailCompression` on its good side. The quadrature (tanh-sinh, 256 nodes) ends at probabilities
    of a rounding error of the dtype, and the variance goes on as a power law: behind tails of
    index 2.5 it is right to 0.1% in float32. Moments that overflow or that do not exist are
    infinite, as far as quantiles at such probabilities show it: an exponential of heavy tails,
    those of a bar distribution or Student's t, has no mean. Its quantiles are right.

    Values outside the range of the transform have density 0.
    """

    def __init__(self, base: PredictivePosterior, transform: Transform) -> None:
        if not transform.bijective or transform.domain.event_dim != 0:
            raise ValueError(
                f"TransformedPosterior needs an elementwise monotone transform, got {transform}."
            )
        self.base = base
        self.transform = transform

    @property
    def _affine(self) -> AffineTransform | None:
        return self.transform if isinstance(self.transform, AffineTransform) else None

    def _own(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=self.dtype, device=self.device)

    def _sign(self) -> Tensor:
        return self._own(self.transform.sign)

    def _increasing(self, what: str) -> bool:
        """Whether the map is increasing in all outputs, rather than decreasing in all."""
        sign = self._sign()
        if bool((sign > 0).all()):
            return True
        if bool((sign < 0).all()):
            return False
        raise NotImplementedError(f"{what} needs a transform of one sign for all outputs.")

    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Values of y `[k, ..., n, m]` and their probabilities `[k]`."""
        nodes, weights = _tanh_sinh(self.dtype)
        # a few at a time: a quantile may take memory for each of them
        values = [self.quantile(some) for some in self._own(nodes).split(64)]
        return torch.cat(values), self._own(weights)

    @property
    def mean(self) -> Tensor:
        if self._affine is not None:
            return self.transform(self.base.mean)
        values, weights = self._quadrature()
        mean = torch.tensordot(weights, values, dims=1)
        far = (values - values[len(values) // 2]).detach().abs()
        above, below = (_exponent(tail) >= 1 for tail in (far.flip(0), far))
        mean = torch.where(above, torch.where(below, torch.nan, torch.inf), mean)
        return torch.where(below & ~above, -torch.inf, mean)

    @property
    def variance(self) -> Tensor:
        if self._affine is not None:
            return self.base.variance * self._own(self._affine.scale) ** 2
        values, weights = self._quadrature()
        mean = torch.tensordot(weights, values, dims=1)
        squares = (values - mean).square()  # E[y^2] - E[y]^2 would cancel far from zero
        variance = torch.tensordot(weights, squares, dims=1)
        variance = variance + _behind(squares) + _behind(squares.flip(0))
        exists = torch.maximum(_exponent(squares), _exponent(squares.flip(0))) < 1
        return torch.where(mean.isfinite() & exists, variance, torch.inf)

    def _jacobian(self, z: Tensor, y: Tensor) -> Tensor:
        return self.transform.log_abs_det_jacobian(z, y)

    def _within(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values moved into the range of the transform, and which ones were below and above."""
        wrong = ~self.transform.codomain.check(Y) & ~Y.isnan()
        if not bool(wrong.any()):
            return Y, wrong, wrong
        inner = self.transform(self.base.quantile(self._own(0.5))).detach()
        Y, inner, wrong = torch.broadcast_tensors(Y, inner, wrong)
        return torch.where(wrong, inner, Y), wrong & (Y < inner), wrong & (Y > inner)

    def log_prob(self, Y: Tensor) -> Tensor:
        Y, below, above = self._within(Y)
        z = self.transform.inv(Y)
        found = self.base.log_prob(z) - self._jacobian(z, Y)
        return torch.where(below | above, -torch.inf, found)

    def cdf(self, Y: Tensor) -> Tensor:
        Y, below, above = self._within(Y)
        p = self.base.cdf(self.transform.inv(Y))
        p = torch.where(self._sign() > 0, p, 1 - p)
        return torch.where(below, 0, torch.where(above, 1, p))

    def quantile(self, value: Tensor) -> Tensor:
        value = self._own(value)
        value = value if self._increasing("quantile") else 1 - value
        return self.transform(self.base.quantile(value))

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        Y, below, above = self._within(Y)
        z = self.transform.inv(Y)
        jacobian = self._jacobian(z, Y).expand(z.shape)
        found = self.base.joint_log_prob(z) - jacobian.sum(dim=(-2, -1))
        return torch.where((below | above).any(-1).any(-1), -torch.inf, found)

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        best, affine = self._own(best_f), self._affine
        if isinstance(self.transform, TailCompression):
            affine = self.transform.straight(best, maximize)
        if affine is None:
            return super().log_expected_improvement(best_f, maximize)
        same = self._increasing("Expected improvement")
        improvement = self.base.log_expected_improvement(affine.inv(best), maximize == same)
        return improvement + self._own(affine.scale).abs().log()

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        same = self._increasing("Probability of improvement")
        best, below, above = self._within(self._own(best_f))
        best = self.transform.inv(best)
        found = self.base.log_probability_of_improvement(best, maximize == same)
        certain, never = (below, above) if maximize else (above, below)
        return torch.where(certain, 0.0, torch.where(never, -torch.inf, found))

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return self.transform(self.base.rsample_from_base_samples(sample_shape, base_samples))

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return self.base._extended_shape(sample_shape)

    @property
    def base_sample_shape(self) -> torch.Size:
        return self.base.base_sample_shape

    @property
    def batch_range(self) -> tuple[int, int]:
        return self.base.batch_range


def apply_posterior_transform(
    transform: PosteriorTransform | None, posterior: Posterior, X: Tensor
) -> Posterior:
    """What a model's `posterior` returns under BoTorch's `posterior_transform`.

    Args:
        transform: The transform, or None.
        posterior: Of the model, `[..., n, m]`.
        X: The queries.

    Returns:
        A scalarisation of one output is exact, whatever its distribution.

    Raises:
        NotImplementedError: a combination of several outputs, or of points, of a posterior that
            is not Gaussian.
    """
    if transform is None:
        return posterior
    needs_gaussian = isinstance(
        transform, ScalarizedPosteriorTransform | ExpectationPosteriorTransform
    )
    if isinstance(posterior, GPyTorchPosterior) or not needs_gaussian:
        return transform(posterior=posterior, X=X)
    if isinstance(transform, ScalarizedPosteriorTransform) and len(transform.weights) == 1:
        scale = transform.weights.to(device=posterior.device, dtype=posterior.dtype)
        assert isinstance(posterior, PredictivePosterior)
        return TransformedPosterior(posterior, AffineTransform(transform.offset, scale))
    raise NotImplementedError(
        f"{type(transform).__name__} of a {type(posterior).__name__}: a weighted sum of values "
        "that are not Gaussian has no closed distribution. Use a Monte Carlo acquisition function "
        "with objective=LinearMCObjective(weights), or GaussianApproximation(model)."
    )


@dataclass(frozen=True)
class Scores:
    """Scores of a predictive distribution on held-out targets, averaged over points and outputs.

    Attributes:
        rmse: Root mean squared error of the mean, units of Y.
        nlpd: Negative mean marginal log predictive density, nats.
        coverage: Share of targets inside the central interval.
        level: Nominal probability of that interval.
    """

    rmse: float
    nlpd: float
    coverage: float
    level: float


def score(posterior: PredictivePosterior, Y: Tensor, *, level: float = 0.9) -> Scores:
    """Score a predictive posterior of y on held-out targets.

    Args:
        posterior: `model.posterior(X, observation_noise=True)`, `[..., n, m]`.
        Y: Targets, `[..., n, m]`.
        level: Probability of the central interval whose coverage is counted.

    Raises:
        ValueError: `Y` has another shape than the posterior, or level is outside (0, 1).
    """
    if Y.shape != posterior.mean.shape:
        raise ValueError(
            f"score got Y of shape {tuple(Y.shape)} for a posterior of shape "
            f"{tuple(posterior.mean.shape)}; they must agree."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    with torch.no_grad():
        tail = (1 - level) / 2
        lower, upper = posterior.quantile(Y.new_tensor([tail, 1 - tail]))
        inside = (lower <= Y) & (upper >= Y)
        return Scores(
            rmse=float((posterior.mean - Y).square().mean().sqrt()),
            nlpd=float(-posterior.log_prob(Y).mean()),
            coverage=float(inside.to(Y.dtype).mean()),
            level=level,
        )


def gaussian_log_expected_improvement(mean: Tensor, variance: Tensor, best_f: Tensor) -> Tensor:
    """Log E[max(y - best_f, 0)] for y ~ N(mean, variance), stable far below `best_f`.

    Uses BoTorch's `_log_ei_helper`, Ament et al. 2023 (2310.20708), eq. 9.
    """
    from botorch.acquisition.analytic import _log_ei_helper

    std = _positive_std(variance)
    return _log_ei_helper((mean - best_f) / std) + std.log()


def gaussian_log_probability_of_improvement(
    mean: Tensor, variance: Tensor, best_f: Tensor
) -> Tensor:
    """Log P(y > best_f) for y ~ N(mean, variance), stable far below `best_f`."""
    return torch.special.log_ndtr((mean - best_f) / _positive_std(variance))


def _positive_std(variance: Tensor) -> Tensor:
    return variance.clamp_min(torch.finfo(variance.dtype).tiny ** 0.5).sqrt()


def probabilities(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the dtype and on the device of `like`.

    Raises:
        ValueError: one of them is outside [0, 1].
    """
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    fine = (value >= 0) & (value <= 1)
    if not bool(fine.all()):
        raise ValueError(f"quantile takes probabilities in [0, 1], got {value[~fine].tolist()}.")
    return value


def leading(value: Tensor, like: Tensor) -> Tensor:
    """Probabilities `[*p]` as `[*p, 1, ..., 1]`, to broadcast over the shape of `like`.

    Raises:
        ValueError: one of them is outside [0, 1].
    """
    value = probabilities(value, like)
    return value.reshape(value.shape + (1,) * like.dim())


def _tanh_sinh(dtype: torch.dtype, num: int = 256) -> tuple[Tensor, Tensor]:
    """Nodes and weights in float64 of tanh-sinh quadrature on (0, 1).

    Takahasi & Mori 1974: the trapezium rule in u with p = (1 + tanh(pi/2 sinh u)) / 2, which
    converges with poles of the integrand at both ends; u ends where p, and 1 - p, is eps.
    """
    end = math.asinh(2 / math.pi * math.atanh(1 - 2 * torch.finfo(dtype).eps))
    u = torch.linspace(-end, end, num, dtype=torch.float64, device="cpu")
    # p of minus the absolute value, without the cancellation of 1 + tanh
    below = torch.sigmoid(-math.pi * u.abs().sinh())
    nodes = torch.where(u < 0, below, 1 - below)
    weights = math.pi * u.cosh() * below * (1 - below) * (u[1] - u[0])
    weights[[0, -1]] /= 2
    return nodes, weights / weights.sum()


def _behind(values: Tensor) -> Tensor:
    """Integral over (0, p of the first node of `_tanh_sinh`) of a power law through two nodes.

    Args:
        values: At the nodes, `[k, ...]`, >= 0.
    """
    start = float(_tanh_sinh(values.dtype)[0][0])
    # far from 1, where the integral is infinite: two nodes do not tell that for certain
    return start * values[0] / (1 - _exponent(values).clamp(0, 0.9))


def _exponent(values: Tensor) -> Tensor:
    """Exponent k of values ~ p^-k at the first nodes of `_tanh_sinh`; no integral for k >= 1."""
    p = _tanh_sinh(values.dtype)[0]
    return (values[0] / values[8]).detach().log().nan_to_num(0.0) / math.log(p[8] / p[0])
