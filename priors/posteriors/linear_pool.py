"""The average of several predictive distributions: a linear pool.

Members of an ensemble, or parts of a data set that is too large for one context, each give a
predictive distribution. Their pool is the mixture: densities and distribution functions are
averaged, never parameters, means or quantiles, so that disagreement widens it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from priors.posteriors.protocol import PredictivePosterior, leading

__all__ = ["MixturePosterior"]


class MixturePosterior(PredictivePosterior):
    """A weighted mixture of posteriors of the same points and outputs.

    Args:
        components: At least one, all `[..., n, m]`, of one dtype and device.
        log_weights: Log weights `[S]`; equal without them. Normalised here.

    Joint densities and samples choose one component for all points and outputs. Base samples are
    `[..., k + 1]` for components of k base samples per batch element; the last one chooses.

    Raises:
        ValueError: no components, or shapes that disagree.
    """

    # Twice what bisection alone needs; Newton's steps end the search early.
    _steps = {torch.float32: 80, torch.float64: 160}

    def __init__(
        self, components: Sequence[PredictivePosterior], log_weights: Tensor | None = None
    ) -> None:
        if not components:
            raise ValueError("a mixture needs at least one component.")
        shapes = [tuple(component._extended_shape()) for component in components]
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

        Bracketed by the components' quantiles; bisection unless Newton's steps halve the error.

        Args:
            value: Probabilities in (0, 1), any shape `[*p]`.

        Returns:
            `[*p, ..., n, m]`.
        """
        if len(self.components) == 1:
            return self.components[0].quantile(value)
        p = leading(value, self.log_weights[0].expand(self._extended_shape()))
        value = torch.as_tensor(value, dtype=p.dtype, device=p.device)
        with torch.no_grad():
            each = [component.quantile(value) for component in self.components]
            found = self._invert(p, torch.stack(each).amin(0), torch.stack(each).amax(0))
            density = self.log_prob(found).exp()
            tiny = torch.finfo(found.dtype).tiny
        # Implicit differentiation of cdf(q) = p; the value stays that of the search.
        residual = self.cdf(found) - p
        return found - (residual - residual.detach()) / density.clamp_min(tiny)

    def _invert(self, p: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        precision = 8 * torch.finfo(lower.dtype).eps
        rounding = precision * torch.maximum(lower.abs(), upper.abs())
        found = (lower + upper) / 2
        before = torch.full_like(found, torch.inf)
        for _ in range(self._steps[lower.dtype]):
            miss = self.cdf(found) - p
            move = miss / self.log_prob(found).exp()
            lower = torch.where(miss < 0, found, lower)
            upper = torch.where(miss < 0, upper, found)
            done = (miss.abs() <= precision * p) | (move.abs() <= rounding)
            done = done | (upper - lower <= precision * torch.maximum(lower.abs(), upper.abs()))
            if bool(done.all()):
                break
            newton = found - move
            trusted = (newton > lower) & (newton < upper) & (miss.abs() < before / 2)
            ahead = torch.where(trusted, newton, (lower + upper) / 2)
            found, before = torch.where(done, found, ahead), miss.abs()
        return found

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        return self._log_average([component.joint_log_prob(Y) for component in self.components])

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        each = [c.log_expected_improvement(best_f, maximize) for c in self.components]
        return self._log_average(each)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        each = [c.log_probability_of_improvement(best_f, maximize) for c in self.components]
        return self._log_average(each)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        event = self._event
        own = base_samples[..., :-1].reshape(*base_samples.shape[:-1], *event)
        each = [c.rsample_from_base_samples(sample_shape, own) for c in self.components]
        p = torch.special.ndtr(base_samples[..., -1]).contiguous()
        index = torch.searchsorted(self.log_weights.exp().cumsum(0), p)
        index = index.clamp_max(len(each) - 1)[None, ..., None, None]
        drawn = torch.stack(each)
        return drawn.gather(0, index.expand(1, *drawn.shape[1:]))[0]

    @property
    def _event(self) -> torch.Size:
        """Shape of the base samples of one batch element of a component."""
        batch = len(self.batch_shape)
        shapes = {component.base_sample_shape[batch:] for component in self.components}
        if len(shapes) > 1:
            raise NotImplementedError("samples need components of one shape of base samples.")
        return shapes.pop()

    @property
    def base_sample_shape(self) -> torch.Size:
        return torch.Size([*self.batch_shape, self._event.numel() + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)

    @property
    def device(self) -> torch.device:
        return self.log_weights.device

    @property
    def dtype(self) -> torch.dtype:
        return self.log_weights.dtype

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return self.components[0]._extended_shape(sample_shape)

    def _weights(self, like: Tensor) -> Tensor:
        return self.log_weights.reshape(-1, *[1] * (like.dim() - 1))

    def _average(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return (self._weights(stacked).exp() * stacked).sum(0)

    def _log_average(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return (self._weights(stacked) + stacked).logsumexp(0)
