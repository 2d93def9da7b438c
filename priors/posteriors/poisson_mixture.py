"""Averages of Poisson distributions, one for each draw of an engine that samples parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from priors.posteriors.draws import average, beside, choose, log_average, normalised
from priors.posteriors.protocol import PredictivePosterior, leading
from priors.representation import count

__all__ = ["PoissonMixturePosterior"]


class PoissonMixturePosterior(PredictivePosterior):
    """A weighted average of S Poisson distributions, points independent given the component.

    `log_prob` is of probabilities rather than densities; -inf for what is no count. Quantiles are
    the smallest counts whose cdf reaches a probability. Samples have no gradient.

    Args:
        log_rates: Logarithms of the components' rates, `[S, ..., n, m]`.
        log_weights: Log probabilities of the components, `[S]`; equal if None. They are normalised
            here.

    Base samples are `[..., n * m + 1]`: the last one chooses the component, shared by all points.
    """

    def __init__(self, log_rates: Tensor, log_weights: Tensor | None = None) -> None:
        self.log_rates = log_rates
        self.log_weights = normalised(log_weights, log_rates)

    @property
    def _kind(self) -> Sequence[str]:
        return [count(len(self.log_rates), "component")]

    @property
    def has_density(self) -> bool:
        """False: single values have positive probability."""
        return False

    @property
    def _rates(self) -> Tensor:
        return self.log_rates.exp()

    @property
    def mean(self) -> Tensor:
        return average(self._rates, self.log_weights)

    @property
    def variance(self) -> Tensor:
        spread = (self._rates - self.mean).square()
        return self.mean + average(spread, self.log_weights)

    def log_prob(self, Y: Tensor) -> Tensor:
        """Marginal log probabilities of counts `Y`, in nats, `[..., n, m]`.

        Args:
            Y: Counts.
        """
        valid = (Y >= 0) & (Y == Y.round())
        counts = torch.where(valid, Y, 0)
        log_rates = beside(self.log_rates, Y)
        each = counts * log_rates - log_rates.exp() - torch.lgamma(counts + 1)
        return torch.where(valid, log_average(each, self.log_weights), -torch.inf)

    def cdf(self, Y: Tensor) -> Tensor:
        below = _cdf(Y, beside(self._rates, Y))
        return average(below, self.log_weights)

    def crps(self, Y: Tensor) -> Tensor:
        p = 1 - 1e2 * torch.finfo(self.dtype).eps
        last = float(torch.maximum(self.quantile(self.log_rates.new_tensor(p)).max(), Y.max()))
        found = torch.zeros(
            torch.broadcast_shapes(Y.shape, self.shape), dtype=self.dtype, device=self.device
        )
        for number in range(int(last) + 1):
            at = torch.full_like(found, number)
            found = found + (self.cdf(at) - (Y <= number).to(found)).square()
        return found

    def quantile(self, value: Tensor) -> Tensor:
        """Smallest counts whose cdf reaches `value` `[*p]`, `[*p, ..., n, m]`.

        Args:
            value: Probabilities in (0, 1).
        """
        p = leading(value, self.log_rates[0])
        shape = p.shape[: p.dim() - self.log_rates.dim() + 1] + self.log_rates.shape[1:]
        return _smallest(self.cdf, p, self.log_rates.new_zeros(shape))

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        rates = choose(self._rates, self.log_weights, base_samples[..., -1])
        normal = base_samples[..., :-1].reshape(*base_samples.shape[:-1], *rates.shape[-2:])
        p = torch.special.ndtr(normal).expand(rates.shape)
        return _smallest(lambda y: _cdf(y, rates), p, torch.zeros_like(rates))

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, n, m = self.log_rates.shape[1:]
        return torch.Size([*batch, n * m + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)


def _cdf(Y: Tensor, rates: Tensor) -> Tensor:
    """P(N <= Y) of Poisson variables, broadcast, by the incomplete gamma function (DLMF 8.4.10)."""
    counts = Y.floor()
    inside = torch.special.gammaincc(*torch.broadcast_tensors(counts.clamp_min(0) + 1, rates))
    return torch.where(counts >= 0, inside, 0)


def _smallest(cdf: Callable[[Tensor], Tensor], p: Tensor, zero: Tensor) -> Tensor:
    """The smallest counts with cdf >= p, in the shape of `zero`; infinite where none reaches p."""
    with torch.no_grad():
        certain = p >= 1
        # half a rounding error of slack, so that the quantile of a cdf value is that count
        p = p - 4 * torch.finfo(zero.dtype).eps
        below, reached = zero - 1, zero
        most = 1 / torch.finfo(zero.dtype).eps  # up to here all counts are numbers of the dtype
        while bool((short := cdf(reached) < p).any()) and float(reached.max()) < most:
            below = torch.where(short, reached, below)
            reached = torch.where(short, 2 * reached + 1, reached)
        endless = certain | (cdf(reached) < p)
        while bool((reached - below > 1).any()):
            middle = ((reached + below) / 2).floor()
            enough = cdf(middle) >= p
            reached = torch.where(enough, middle, reached)
            below = torch.where(enough, below, middle)
        return torch.where(endless, torch.inf, reached)
