"""Heavy-tailed distributions of a variance sigma^2, beside those that torch has.

A scale mixture of Gaussian processes takes any `torch.distributions` distribution on the positive
reals as the prior of sigma^2. Torch has `InverseGamma`, `LogNormal`, `Gamma` and others, and
mixtures by `MixtureSameFamily`; here are three more. All fall like a power at both ends:

                         density near 0      far out
    BurrXII(c, k)        x^(c - 1)           x^(-c k - 1)
    BetaPrime(a, b)      x^(a - 1)           x^(-b - 1)
    half-Cauchy sigma    x^(-1/2)            x^(-3/2)

Parameters are numbers or tensors that broadcast; gradients reach them through `log_prob` and
`rsample`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from scipy.special import betainc, betaincinv
from torch import Tensor
from torch.distributions import Distribution, Gamma, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import softplus

__all__ = ["BetaPrime", "BurrXII", "HalfCauchyVariance"]

_Shape = torch.Size | list[int] | tuple[int, ...]


class _Scaled(Distribution):
    """A distribution on the positive reals with a scale among its parameters."""

    support = constraints.positive
    has_rsample = True
    _parameters: tuple[str, ...]

    def _take(self, validate_args: bool | None, *values: Tensor | float) -> None:
        values = broadcast_all(*values)
        for name, value in zip(self._parameters, values, strict=True):
            setattr(self, name, value)
        super().__init__(values[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> Self:
        """The same distribution of a larger batch.

        Args:
            batch_shape: Its shape.
        """
        new = self._get_checked_instance(type(self), _instance)
        for name in self._parameters:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _log(self, value: Tensor) -> Tensor:
        """Log of a value in units of the scale."""
        if self._validate_args:
            self._validate_sample(value)
        return value.log() - self.scale.log()

    scale: Tensor


class _PowerLaw(_Scaled):
    """Two concentrations, the powers near 0 and far out, and a scale."""

    arg_constraints = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
        "scale": constraints.positive,
    }
    _parameters = ("concentration1", "concentration0", "scale")
    concentration1: Tensor
    concentration0: Tensor

    def __init__(
        self,
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        scale: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self._take(validate_args, concentration1, concentration0, scale)


class BurrXII(_PowerLaw):
    """The Burr type XII distribution, F(x) = 1 - (1 + (x / scale)^c)^-k.

    For c = 1 it is a Lomax, for k = 1 a log-logistic distribution; `scipy.stats.burr12(c, k)`.

    Args:
        concentration1: c > 0, the power of the density near 0 plus one.
        concentration0: k > 0; the tail falls as x^-(c k).
        scale: > 0.
    """

    @property
    def mean(self) -> Tensor:
        """k B(k - 1/c, 1 + 1/c) scale; infinite for c k <= 1."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """Infinite for c k <= 2, undefined (NaN) for c k <= 1."""
        return self._moment(2) - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats; finite however large or small the value.

        Args:
            value: > 0.
        """
        log_x = self._log(value)
        c, k = self.concentration1, self.concentration0
        density = c.log() + k.log() + (c - 1) * log_x - (k + 1) * softplus(c * log_x)
        return density - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`.

        Args:
            value: > 0.
        """
        return -torch.expm1(-self.concentration0 * softplus(self.concentration1 * self._log(value)))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles.

        Args:
            value: Probabilities in (0, 1).
        """
        power = torch.expm1(-torch.log1p(-value) / self.concentration0)
        return self.scale * power ** (1 / self.concentration1)

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with gradients, `[*sample_shape, *batch_shape]`, by inversion.

        Args:
            sample_shape: Their shape.
        """
        return self.icdf(_uniform(self._extended_shape(sample_shape), self.scale))

    def _moment(self, order: int) -> Tensor:
        c, k = self.concentration1, self.concentration0
        exists = c * k > order
        left = torch.where(exists, k - order / c, 1.0)
        log_moment = torch.lgamma(left) + torch.lgamma(1 + order / c) - torch.lgamma(k)
        return torch.where(exists, self.scale**order * log_moment.exp(), torch.inf)


class BetaPrime(_PowerLaw):
    """The beta prime distribution, that of `scale` times a ratio of gamma variables.

    Density x^(a - 1) (1 + x)^(-a - b) / B(a, b) of x in units of the scale; a multiple of an F
    distribution, `scipy.stats.betaprime(a, b)`.

    Args:
        concentration1: a > 0, the power of the density near 0 plus one.
        concentration0: b > 0; the tail falls as x^-b.
        scale: > 0.
    """

    @property
    def mean(self) -> Tensor:
        """a scale / (b - 1); infinite for b <= 1."""
        a, b = self.concentration1, self.concentration0
        return torch.where(b > 1, self.scale * a / (b - 1).clamp_min(_tiny(b)), torch.inf)

    @property
    def variance(self) -> Tensor:
        """Infinite for b <= 2, undefined (NaN) for b <= 1."""
        a, b = self.concentration1, self.concentration0
        second = self.scale.square() * a * (a + 1)
        second = second / ((b - 1) * (b - 2)).clamp_min(_tiny(b))
        return torch.where(b > 2, second, torch.inf) - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats; finite however large or small the value.

        Args:
            value: > 0.
        """
        log_x = self._log(value)
        a, b = self.concentration1, self.concentration0
        constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        return constant + (a - 1) * log_x - (a + b) * softplus(log_x) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`, differentiable in it but not in the parameters.

        Args:
            value: > 0.
        """
        a, b = (part.detach() for part in (self.concentration1, self.concentration0))
        found: Tensor = _BetaPrimeCdf.apply(self._log(value), a, b)
        return found

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, without gradients.

        Args:
            value: Probabilities in (0, 1).
        """
        a, b, p = (_numpy(part) for part in (self.concentration1, self.concentration0, value))
        share, rest = betaincinv(a, b, p), betaincinv(b, a, 1 - p)  # x / (1 + x), 1 / (1 + x)
        return self.scale.detach() * torch.as_tensor(share / rest, device=self.scale.device).to(
            self.scale
        )

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with gradients, `[*sample_shape, *batch_shape]`.

        Args:
            sample_shape: Their shape.
        """
        above, below = (
            Gamma(part, torch.ones_like(part)).rsample(sample_shape)
            for part in (self.concentration1, self.concentration0)
        )
        return self.scale * above / below


class HalfCauchyVariance(_Scaled):
    """The distribution of sigma^2 for a half-Cauchy sigma, a weakly informative prior of scales.

    A beta prime distribution with both concentrations 1/2 and the square of the scale (Gelman 2006,
    https://doi.org/10.1214/06-BA117A).

    Args:
        scale: Median of sigma, > 0, not of its square.
    """

    arg_constraints = {"scale": constraints.positive}
    _parameters = ("scale",)

    def __init__(self, scale: Tensor | float = 1.0, validate_args: bool | None = None) -> None:
        self._take(validate_args, scale)

    @property
    def mean(self) -> Tensor:
        """Infinite."""
        return torch.full_like(self.scale, torch.inf)

    @property
    def variance(self) -> Tensor:
        """Undefined (NaN), as the mean is infinite."""
        return torch.full_like(self.scale, torch.nan)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats; finite however large or small the value.

        Args:
            value: > 0.
        """
        log_x = self._log(value) - self.scale.log()
        return -math.log(math.pi) - log_x / 2 - softplus(log_x) - 2 * self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`.

        Args:
            value: > 0.
        """
        sigma = (0.5 * (self._log(value) - self.scale.log())).exp()
        return torch.atan(sigma) * (2 / math.pi)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles.

        Args:
            value: Probabilities in (0, 1).
        """
        return (self.scale * torch.tan(value * (math.pi / 2))).square()

    def rsample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with gradients, `[*sample_shape, *batch_shape]`, by inversion.

        Args:
            sample_shape: Their shape.
        """
        return self.icdf(_uniform(self._extended_shape(sample_shape), self.scale))


class _BetaPrimeCdf(torch.autograd.Function):
    """Regularised incomplete beta function at x / (1 + x), from log x."""

    @staticmethod
    def forward(ctx: Any, log_x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(log_x, a, b)
        left, right = _numpy(a), _numpy(b)
        below = betainc(left, right, _numpy(torch.sigmoid(log_x)))
        above = betainc(right, left, _numpy(torch.sigmoid(-log_x)))
        small, large = (
            torch.as_tensor(p, device=log_x.device).to(log_x) for p in (below, 1 - above)
        )
        return torch.where(log_x < 0, small, large)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        log_x, a, b = ctx.saved_tensors
        constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        slope: Tensor = (constant + a * log_x - (a + b) * softplus(log_x)).exp()
        return grads[0] * slope, None, None


def _uniform(shape: torch.Size, like: Tensor) -> Tensor:
    """Uniform numbers inside the unit interval, without its ends."""
    limits = torch.finfo(like.dtype)
    draws = torch.rand(shape, dtype=like.dtype, device=like.device)
    return draws.clamp(limits.tiny, 1 - limits.eps / 2)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _numpy(value: Tensor) -> Any:
    return value.detach().double().cpu().numpy()
