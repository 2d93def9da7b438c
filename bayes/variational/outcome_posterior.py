"""Posteriors of outcomes given Gaussian functions: exact marginals, joint samples.

The marginals are a mixture, over the nodes of a quadrature or over a random scale. A sample is one
of the functions jointly at all points, and then outcomes that are independent given it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from bayes.variational.nodes import normal_line
from priors.posteriors.draws import average, log_average
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading

__all__ = ["DistributionMixture", "OutcomePosterior", "ScaledNoisePosterior"]

Conditional = Callable[[Tensor], PredictivePosterior]


class OutcomePosterior(PredictivePosterior):
    """Outcomes whose marginals are known and whose points depend on each other through functions.

    Args:
        marginal: Whose marginals are those of the outcomes, `[..., q, m]`.
        functions: Posterior of the functions, `[..., q, k]`.
        conditional: The posterior of outcomes `[..., q, m]` given functions `[1, ..., q, k]`.

    Base samples are `[..., q * k + q * m + 1]`: of the functions, of the noise, and one unused.
    """

    def __init__(
        self,
        marginal: PredictivePosterior,
        functions: GaussianPosterior,
        conditional: Conditional,
    ) -> None:
        self.marginal = marginal
        self.functions = functions
        self.conditional = conditional

    @property
    def mean(self) -> Tensor:
        return self.marginal.mean

    @property
    def variance(self) -> Tensor:
        return self.marginal.variance

    @property
    def has_density(self) -> bool:
        return self.marginal.has_density

    def log_prob(self, Y: Tensor) -> Tensor:
        return self.marginal.log_prob(Y)

    def cdf(self, Y: Tensor) -> Tensor:
        return self.marginal.cdf(Y)

    def quantile(self, value: Tensor) -> Tensor:
        return self.marginal.quantile(value)

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        return self.marginal.log_excess(threshold, order, above)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        queries, functions = self.functions.shape[-2:]
        split = queries * functions
        # of one function GPyTorch has them without the last dimension
        own = self.functions.base_sample_shape[len(self.functions.batch_shape) :]
        first = base_samples[..., :split].reshape(*base_samples.shape[:-1], *own)
        f = self.functions.rsample_from_base_samples(sample_shape, first)
        given = self.conditional(f.unsqueeze(0))
        return given.rsample_from_base_samples(torch.Size(), base_samples[..., split:])

    @property
    def base_sample_shape(self) -> torch.Size:
        *batch, queries, outputs = self.shape
        functions = self.functions.shape[-1]
        return torch.Size([*batch, queries * (functions + outputs) + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)


class ScaledNoisePosterior(GaussianMixturePosterior):
    """Gaussian functions with Student t noise, as a mixture over the scale of the noise.

    s t = s z / sqrt(w), w ~ Gamma(df / 2, df / 2): given w Gaussian. The nodes of w are its
    quantiles at those of a standard normal.

    Args:
        means: Of the functions, `[..., q, m]`.
        variances: Of the functions, `[..., q, m]`.
        scale: s, `[m]`; or with `scale_log_weights` values of it, `[J, ..., q, m]`.
        df: Degrees of freedom > 1, `[m]`.
        scale_log_weights: Log probabilities of these values, `[J]`.
    """

    def __init__(
        self,
        means: Tensor,
        variances: Tensor,
        scale: Tensor,
        df: Tensor,
        scale_log_weights: Tensor | None = None,
    ) -> None:
        from scipy import stats  # slow to load

        if scale_log_weights is None:
            scale, scale_log_weights = scale.expand_as(means)[None], means.new_zeros(1)
        x, log_weights = normal_line(128 if len(scale) == 1 else 64, means)
        half = df.detach().double().cpu().numpy() / 2
        p = torch.special.ndtr(x.double().cpu()).numpy()[:, None]
        above = torch.special.ndtr(-x.double().cpu()).numpy()[:, None]
        w = torch.where(
            torch.from_numpy(p < 0.5),
            torch.from_numpy(stats.gamma.ppf(p, half)),
            torch.from_numpy(stats.gamma.isf(above, half)),
        )
        w = (w / torch.from_numpy(half)).to(means)  # [S, m]
        w = w.reshape(len(w), *[1] * means.dim(), w.shape[-1])
        noise = (scale.square() / w).flatten(0, 1)
        together = (log_weights[:, None] + scale_log_weights).flatten()
        super().__init__(means.expand_as(noise), variances + noise, together)
        of_noise = torch.where(df > 2, df / (df - 2).clamp_min(1e-30), torch.inf)
        self._variance = variances + average(scale.square(), scale_log_weights) * of_noise

    @property
    def variance(self) -> Tensor:
        return self._variance


class DistributionMixture(PredictivePosterior):
    """An average of torch distributions, one for each node of a quadrature.

    Quantiles need the distribution's `cdf`, samples its `icdf`; each raises NotImplementedError
    where torch has none.

    Args:
        laws: A distribution of batch shape `[S, ..., q, m]`.
        log_weights: `[S]`.
    """

    def __init__(self, laws: Distribution, log_weights: Tensor) -> None:
        self.laws = laws
        self.log_weights = log_weights

    @property
    def mean(self) -> Tensor:
        return average(self.laws.mean, self.log_weights)

    @property
    def variance(self) -> Tensor:
        spread = (self.laws.mean - self.mean).square()
        return average(self.laws.variance + spread, self.log_weights)

    @property
    def has_density(self) -> bool:
        return not self.laws.support.is_discrete  # type: ignore[union-attr]

    def _asked(self, Y: Tensor) -> Tensor:
        """Values `[..., q, m]`, or `[*s, ..., q, m]` one leading dimension at a time."""
        return Y.expand(torch.broadcast_shapes(Y.shape, self.shape))

    def log_prob(self, Y: Tensor) -> Tensor:
        Y = self._asked(Y)
        if Y.dim() > len(self.shape):
            return torch.stack([self.log_prob(part) for part in Y])
        return log_average(self.laws.log_prob(Y), self.log_weights)

    def cdf(self, Y: Tensor) -> Tensor:
        Y = self._asked(Y)
        if Y.dim() > len(self.shape):
            return torch.stack([self.cdf(part) for part in Y])
        return average(self.laws.cdf(Y), self.log_weights)

    def quantile(self, value: Tensor) -> Tensor:
        p = leading(value, self.mean)
        lower, upper = self._ends(p)
        return invert_cdf(self, p, lower, upper)

    def _ends(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Values below and above the quantiles, found by doubling."""
        center, width = self.mean, self.variance.sqrt()
        shape = torch.broadcast_shapes(p.shape, center.shape)
        lower, upper = (center - width).expand(shape), (center + width).expand(shape)
        for k in range(60):
            low, high = self.cdf(lower) > p, self.cdf(upper) < p
            if not bool((low | high).any()):
                break
            lower = torch.where(low, center - 2.0**k * width, lower)
            upper = torch.where(high, center + 2.0**k * width, upper)
        return lower, upper

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        points = self.shape[-2:].numel()
        p = torch.special.ndtr(base_samples[..., :points].unflatten(-1, self.shape[-2:]))
        if len(self.log_weights) > 1:
            raise NotImplementedError("Samples of a mixture are drawn given its functions.")
        return self.laws.icdf(p.unsqueeze(0)).squeeze(0)
