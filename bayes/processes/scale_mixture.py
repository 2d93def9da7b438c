"""The posterior of a Gaussian process whose scale is unknown: a mixture over the scale.

Given the scale s it is Gaussian; s itself has a posterior, of which a rule for integrals is known
(`ScaleNodes`). Moments and quantiles average over its bulk. Densities and improvements far from
the means are those of large scales and take its far tail as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayes.processes.scale_quadrature import ScaleNodes
from priors.posteriors.batch_mixture import BatchMixturePosterior
from priors.posteriors.protocol import PredictivePosterior

__all__ = ["ScaleMixturePosterior"]

# The share of the last component of the bulk, in nats, above which the tail is asked.
_SHARE = -34.0


class ScaleMixturePosterior(BatchMixturePosterior):
    """A mixture of Gaussians `[..., n, m]` over the scale that all points and outputs share.

    Args:
        components: Takes scales `[S]` and returns the posterior given each, `[..., S, n, m]`.
        nodes: Of the posterior of s.
        joint_log_prob: Log density `[...]` of values `[..., n, m]` of all points together.
        moments: Moments of the square root of s below this order exist, and none above.
        growing: Where `[..., n, m]` the variance grows with s without bound.

    Attributes:
        nodes: Scales, their posterior probabilities and the error of integrals over them.
    """

    def __init__(
        self,
        components: Callable[[Tensor], PredictivePosterior],
        nodes: ScaleNodes,
        joint_log_prob: Callable[[Tensor], Tensor],
        *,
        moments: float,
        growing: Tensor,
    ) -> None:
        self.nodes = nodes
        self._at = components
        self._joint_log_prob = joint_log_prob
        self._moments, self._growing = moments, growing
        self._every: BatchMixturePosterior | None = None
        bulk = nodes.bulk()
        of_bulk = components(bulk.scales)
        super().__init__(of_bulk, bulk.log_masses.to(of_bulk.dtype))

    @property
    def _kind(self) -> Sequence[str]:
        return [f"{len(self.nodes.t)} scales"]

    @property
    def mean(self) -> Tensor:
        """Marginal means, `[..., n, m]`.

        Raises:
            ValueError: the scale's posterior has so heavy a tail that no mean exists.
        """
        self._require_mean("mean")
        return super().mean

    @property
    def variance(self) -> Tensor:
        """Marginal variances, `[..., n, m]`, infinite where the scale's posterior has no mean.

        Raises:
            ValueError: no mean exists.
        """
        self._require_mean("variance")
        finite = super().variance
        if self._moments > 2:
            return finite
        return torch.where(self._growing, torch.inf, finite)

    def crps(self, Y: Tensor) -> Tensor:
        if self._has_mean:
            return super().crps(Y)
        return PredictivePosterior.crps(self, Y)  # whose closed form would be inf - inf

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return self._joint_log_prob(Y)

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        """See `PredictivePosterior.log_excess`; exact up to the error of the nodes.

        Args:
            threshold: Broadcasting with `[..., n, m]`.
            order: 0 or 1.
            above: Whether values above the threshold count, rather than those below.

        Raises:
            ValueError: another order; or order 1 where no mean exists.
        """
        if order == 1:
            self._require_mean("expected improvement")
        return super().log_excess(threshold, order, above)

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles to rounding, differentiable in the components.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        return BatchMixturePosterior(self.components, self.log_weights).quantile(value)

    @property
    def _has_mean(self) -> bool:
        return self._moments > 1 or not bool(self._growing.any())

    def _require_mean(self, what: str) -> None:
        if not self._has_mean:
            raise ValueError(
                f"The posterior of the scale falls so slowly that there is no {what}: too few rows "
                "for this scale prior. Use quantiles, or a prior with a lighter tail."
            )

    def _log_average(self, ask: Callable[[PredictivePosterior], Tensor]) -> Tensor:
        terms = ask(self.components) + self.log_weights
        total = terms.logsumexp(-3)
        last = (terms[..., -1, :, :] - total).nan_to_num(-torch.inf)
        if bool((last < _SHARE).all()) or len(self.nodes.t) == self.components.shape[-3]:
            return total
        if self._every is None:
            each = self._at(self.nodes.scales)
            self._every = BatchMixturePosterior(each, self.nodes.log_masses.to(each.dtype))
        return self._every._log_average(ask)


def order_of_moments(tail_index: float, rank: int) -> float:
    """Below which order moments of sqrt(s) exist, given the rows.

    The prior's tail s^(-a - 1) times a likelihood that falls as s^(-rank / 2).

    Args:
        tail_index: a.
        rank: Of the kernel matrix.
    """
    return math.inf if tail_index == math.inf else 2 * tail_index + rank
