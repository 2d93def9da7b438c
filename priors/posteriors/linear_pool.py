"""The average of several predictive distributions: a linear pool.

Members of an ensemble, or parts of a data set that is too large for one context, each give a
predictive distribution. Their pool is the mixture: densities and distribution functions are
averaged, never parameters, means or quantiles, so that disagreement widens it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from priors.posteriors.crps import shared_out
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.inversion import invert_cdf
from priors.posteriors.protocol import PredictivePosterior, leading
from priors.representation import count

__all__ = ["MixturePosterior"]


class MixturePosterior(PredictivePosterior):
    """A weighted mixture of posteriors of the same points and outputs.

    Args:
        components: At least one, all `[..., n, m]`, of one dtype and device.
        log_weights: Log weights `[S]`; equal if None. They are normalised here.

    Joint densities and samples choose one component for all points and outputs. Base samples are
    `[..., k + 1]` for components of up to k base samples per batch element, which have the first
    of them; the last one chooses.

    Raises:
        ValueError: no components, or shapes that disagree.
    """

    def __init__(
        self, components: Sequence[PredictivePosterior], log_weights: Tensor | None = None
    ) -> None:
        if not components:
            raise ValueError("a mixture needs at least one component.")
        shapes = [tuple(component.shape) for component in components]
        if len(set(shapes)) > 1:
            raise ValueError(f"the components of a mixture must have one shape, got {shapes}.")
        self.components = list(components)
        if log_weights is None:
            log_weights = torch.zeros(len(components), device="cpu")
        if log_weights.shape != (len(components),):
            raise ValueError(
                f"log_weights must be [{len(components)}], one per component, got "
                f"{tuple(log_weights.shape)}."
            )
        log_weights = log_weights.to(device=components[0].device, dtype=components[0].dtype)
        self.log_weights = log_weights.log_softmax(0)

    @property
    def _kind(self) -> Sequence[str]:
        return [count(len(self.components), "component")]

    @property
    def atoms(self) -> tuple[Tensor, Tensor] | None:
        each = [component.atoms for component in self.components]
        known = [atoms for atoms in each if atoms is not None]
        if len(known) < len(each):
            return None
        log_weights = [w + own for w, (_, own) in zip(self.log_weights, known, strict=True)]
        return torch.cat([values for values, _ in known]), torch.cat(log_weights)

    @property
    def has_density(self) -> bool:
        return all(component.has_density for component in self.components)

    @property
    def mean(self) -> Tensor:
        return self._average([component.mean for component in self.components])

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._average([c.variance + (c.mean - mean).square() for c in self.components])

    def log_prob(self, Y: Tensor) -> Tensor:
        return self._log_average([component.log_prob(Y) for component in self.components])

    def cdf(self, Y: Tensor) -> Tensor:
        return self._average([component.cdf(Y) for component in self.components])

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles to rounding, differentiable in the components.

        Without a gradient where some components have a density and others are sets of draws.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        if len(self.components) == 1:
            return self.components[0].quantile(value)
        if (atoms := self.atoms) is not None:
            return EmpiricalPosterior(*atoms).quantile(value)
        p = leading(value, self.log_weights[0].expand(self.shape))
        value = torch.as_tensor(value, dtype=p.dtype, device=p.device)
        with torch.no_grad():
            each = torch.stack([component.quantile(value) for component in self.components])
        return invert_cdf(self, p, each.amin(0), each.amax(0))

    def crps(self, Y: Tensor) -> Tensor:
        if len(self.components) == 1:
            return self.components[0].crps(Y)
        if (atoms := self.atoms) is not None:
            return EmpiricalPosterior(*atoms).crps(Y)
        return super().crps(Y)

    def _knots(self, levels: Tensor) -> Tensor:
        # where the components bend, without the search for quantiles
        weights = self.log_weights.tolist()
        kept = [c for c, weight in zip(self.components, weights, strict=True) if weight > -math.inf]
        each = shared_out(levels, len(kept)) if len(kept) > 1 else [levels]
        knots = [component._knots(own) for component, own in zip(kept, each, strict=True)]
        return torch.cat(knots).sort(0).values

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return self._log_average([component.joint_log_prob(Y) for component in self.components])

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        each = [component.log_excess(threshold, order, above) for component in self.components]
        return self._log_average(each)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        each = []
        for component, event in zip(self.components, self._events, strict=True):
            own = base_samples[..., : event.numel()].unflatten(-1, event)
            each.append(component.rsample_from_base_samples(sample_shape, own))
        p = torch.special.ndtr(base_samples[..., -1]).contiguous()
        index = torch.searchsorted(self.log_weights.exp().cumsum(0), p)
        index = index.clamp_max(len(each) - 1)[None, ..., None, None]
        drawn = torch.stack(each)
        return drawn.gather(0, index.expand(1, *drawn.shape[1:]))[0]

    @property
    def _events(self) -> list[torch.Size]:
        """Shapes of the base samples of one batch element, component by component."""
        batch = len(self.batch_shape)
        return [component.base_sample_shape[batch:] for component in self.components]

    @property
    def base_sample_shape(self) -> torch.Size:
        most = max(event.numel() for event in self._events)
        return torch.Size([*self.batch_shape, most + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)

    @property
    def device(self) -> torch.device:
        return self.log_weights.device

    @property
    def dtype(self) -> torch.dtype:
        return self.log_weights.dtype

    @property
    def shape(self) -> torch.Size:
        return self.components[0].shape

    def _weights(self, like: Tensor) -> Tensor:
        return self.log_weights.reshape(-1, *[1] * (like.dim() - 1))

    def _average(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return (self._weights(stacked).exp() * stacked).sum(0)

    def _log_average(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return (self._weights(stacked) + stacked).logsumexp(0)
