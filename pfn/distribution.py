"""The bar distribution: one density on the whole real line from a vector of logits.

Between the borders b_0 < ... < b_K the density is constant on each bar. Below b_0 and above b_K
it falls off as a Lomax (Pareto II) law, density (a / s) (1 + t / s)^(-a-1) at distance t, whose
survival, quantile, moments and expected excess are all closed. Logit 0 is the mass of the lower
tail, logits 1 .. K of the bars, logit K + 1 of the upper tail. Log density, distribution
function, quantiles, moments, samples and expected improvement are all of this one density.

Shapes: logits `[..., K + 2]`; values `[...]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BarDistribution"]


class BarDistribution(nn.Module):
    """Borders and tails shared by all predictions of a network.

    Args:
        borders: Strictly increasing, `[K + 1]`.
        tail_scale: Scale s of both tails, in the units of the borders.
        tail_index: Index a of both tails; moments of order below a exist, so a > 2.

    Raises:
        ValueError: borders that do not increase, or a tail without variance.
    """

    borders: Tensor

    def __init__(self, borders: Tensor, *, tail_scale: float, tail_index: float = 5.0) -> None:
        super().__init__()
        if borders.dim() != 1 or len(borders) < 2 or not bool((borders.diff() > 0).all()):
            raise ValueError(
                f"borders must be a strictly increasing vector, got shape {tuple(borders.shape)}."
            )
        if tail_scale <= 0 or tail_index <= 2:
            raise ValueError(
                f"the tails need scale > 0 and index > 2, got {tail_scale} and {tail_index}."
            )
        self.register_buffer("borders", borders.clone())
        self.tail_scale = float(tail_scale)
        self.tail_index = float(tail_index)

    @property
    def num_logits(self) -> int:
        """Length of the vector of logits, K + 2."""
        return len(self.borders) + 1

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Log density at `y`, nats per unit of y."""
        b = self.borders.to(logits)
        index = torch.searchsorted(b, y.detach().contiguous())  # 0 below, K + 1 above
        log_mass = logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]
        log_width = b.diff().log()
        inside = -log_width[(index - 1).clamp(0, len(log_width) - 1)]
        a, s = self.tail_index, self.tail_scale
        distance = torch.where(index == 0, b[0] - y, y - b[-1]).clamp_min(0)
        outside = torch.log(torch.as_tensor(a / s).to(b)) - (a + 1) * torch.log1p(distance / s)
        return log_mass + torch.where((index == 0) | (index == len(b)), outside, inside)

    def cdf(self, logits: Tensor, y: Tensor) -> Tensor:
        """Probability of a value at most `y`."""
        b, mass = self.borders.to(logits), logits.softmax(-1)
        a, s = self.tail_index, self.tail_scale
        index = torch.searchsorted(b, y.detach().contiguous())
        below = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], dim=-1)
        start = below.gather(-1, index[..., None])[..., 0]
        own = mass.gather(-1, index[..., None])[..., 0]
        left = b[(index - 1).clamp(0, len(b) - 2)]
        width = b.diff()[(index - 1).clamp(0, len(b) - 2)]
        inside = ((y - left) / width).clamp(0, 1)
        lower = (1 + (b[0] - y).clamp_min(0) / s) ** -a
        upper = 1 - (1 + (y - b[-1]).clamp_min(0) / s) ** -a
        share = torch.where(index == 0, lower, torch.where(index == len(b), upper, inside))
        return start + own * share

    def quantile(self, logits: Tensor, p: Tensor) -> Tensor:
        """The value with probability `p` below it; differentiable in the logits."""
        b, mass = self.borders.to(logits), logits.softmax(-1)
        a, s = self.tail_index, self.tail_scale
        mass, p = torch.broadcast_tensors(mass, p[..., None])
        p = p[..., 0]
        tiny = torch.finfo(mass.dtype).tiny
        total = mass.cumsum(-1)
        index = torch.searchsorted(total.detach().contiguous(), p.detach()[..., None].contiguous())
        index = index.clamp(max=mass.shape[-1] - 1)
        own = mass.gather(-1, index)[..., 0].clamp_min(tiny)
        end = total.gather(-1, index)[..., 0]
        index = index[..., 0]
        # Distances from both ends, each the accurate one in its tail.
        fraction = (1 - (end - p) / own).clamp(0, 1)
        eps = torch.finfo(mass.dtype).eps
        lower = b[0] - s * (fraction.clamp_min(tiny) ** (-1 / a) - 1)
        upper = b[-1] + s * (((1 - p) / own).clamp(eps**2, 1) ** (-1 / a) - 1)
        bar = (index - 1).clamp(0, len(b) - 2)
        inside = b[bar] + fraction * b.diff()[bar]
        return torch.where(index == 0, lower, torch.where(index == len(b), upper, inside))

    def mean(self, logits: Tensor) -> Tensor:
        """Mean."""
        return (logits.softmax(-1) * self._centres(logits)).sum(-1)

    def variance(self, logits: Tensor) -> Tensor:
        """Variance."""
        mass, centres = logits.softmax(-1), self._centres(logits)
        a, s = self.tail_index, self.tail_scale
        spread = self.borders.to(logits).diff() ** 2 / 12
        tail = s**2 * a / ((a - 1) ** 2 * (a - 2)) * torch.ones_like(spread[:1])
        within = torch.cat([tail, spread, tail])
        mean = (mass * centres).sum(-1, keepdim=True)
        return (mass * (within + (centres - mean) ** 2)).sum(-1)

    def log_expected_improvement(self, logits: Tensor, best: Tensor, maximize: bool) -> Tensor:
        """Log E[max(y - best, 0)], or of max(best - y, 0) when minimising."""
        b = self.borders.to(logits)
        a, s = self.tail_index, self.tail_scale
        best = best[..., None]
        if not maximize:  # mirror
            b, best, logits = -b.flip(0), -best, logits.flip(-1)
        left, right = b[:-1], b[1:]
        low = torch.maximum(left, torch.minimum(best, right))
        bars = ((right - best) + (low - best)) / 2 * (right - low) / (right - left)
        beyond = (best - b[-1]).clamp_min(0)
        # Expected excess of a Lomax: s / (a - 1) (1 + t / s)^(1 - a), plus the way up to b_K.
        upper = s / (a - 1) * (1 + beyond / s) ** (1 - a) + (b[-1] - best).clamp_min(0)
        # Lower tail y = b_0 - t, with gap g = b_0 - best: E[(g - t)+] = g - E t + E[(t - g)+].
        gap = (b[0] - best).clamp_min(0)
        lower = gap - s / (a - 1) * (1 - (1 + gap / s) ** (1 - a))
        terms = torch.cat([lower.clamp_min(0), bars.clamp_min(0), upper], dim=-1)
        positive = terms > 0
        log_terms = torch.where(positive, torch.where(positive, terms, 1.0).log(), -torch.inf)
        return (logits.log_softmax(-1) + log_terms).logsumexp(-1)

    def _centres(self, like: Tensor) -> Tensor:
        b = self.borders.to(like)
        excess = self.tail_scale / (self.tail_index - 1)
        return torch.cat([b[:1] - excess, (b[1:] + b[:-1]) / 2, b[-1:] + excess])
