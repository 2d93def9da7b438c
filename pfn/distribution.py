"""The output distribution: one continuous density on the whole real line from a vector of logits.

Between the nodes b_0 < ... < b_K the density is continuous and piecewise linear, outside it falls
off as a Lomax (Pareto II) law. It is a mixture, with weights p = softmax(logits), of K + 1 unit
masses, one for each node: p_j / A_j is the density at b_j, where A_j is the area under the hat
function of node j,

    1 <= j < K:  the triangle over [b_{j-1}, b_{j+1}],        A_j = (b_{j+1} - b_{j-1}) / 2;
    j = 0:       half a triangle over [b_0, b_1] and the      A_0 = (b_1 - b_0) / 2 + s / a,
                 tail (1 + t / s)^(-a-1) at b_0 - t;
    j = K:       its mirror image.

So the tails meet the inside without a jump, and hat functions are positive, sum to one between
the nodes and interpolate: with the density of the target at the nodes as heights the error is
second order in the spacing w, and the Kullback-Leibler divergence from a smooth posterior with
standard deviation sd is of order (w / sd)^4 nats. Bars of constant density, as in Müller et al.
2022 (2112.10510), have (w / sd)^2 and jump at every border. Neither resolves a posterior much
narrower than w: `choose_num_nodes` finds how many nodes a prior needs. Log density, distribution
function, quantiles, moments and partial moments are closed forms of this one density.

Far below and above, where probabilities underflow, use `log_excess`: it adds components in log
space, from the side that is small.

Shapes: logits `[..., K + 1]`; values `[...]`, which broadcast with the logits' batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priors.representation import count

if TYPE_CHECKING:
    from jaxtyping import Float, Int


__all__ = ["BarDistribution", "binning_error", "choose_num_nodes", "place_nodes"]

# Abscissae and weights of the Gauss-Legendre rule of five points on [-1, 1].
_GAUSS = (
    (-0.906179845938664, -0.538469310105683, 0.0, 0.538469310105683, 0.906179845938664),
    (0.236926885056189, 0.478628670499366, 0.568888888888889, 0.478628670499366, 0.236926885056189),
)


class BarDistribution(nn.Module):
    """Nodes and tails shared by all predictions of a network.

    Args:
        borders: Nodes b, strictly increasing, `[K + 1]`.
        tail_scale: Scale s of both tails, in the units of the nodes.
        tail_index: Index a of both tails; moments of order below a exist, so a > 2.

    Raises:
        ValueError: nodes that do not increase, or a tail without variance.
    """

    borders: Tensor

    def __init__(self, borders: Tensor, *, tail_scale: float, tail_index: float = 5.0) -> None:
        super().__init__()
        finite = bool(borders.isfinite().all())
        if borders.dim() != 1 or len(borders) < 2 or not (borders.diff() > 0).all() or not finite:
            raise ValueError(
                "borders must be a finite, strictly increasing vector of at least two nodes, got "
                f"shape {tuple(borders.shape)}."
            )
        if not (0 < tail_scale < math.inf and 2 < tail_index < math.inf):
            raise ValueError(
                f"the tails need scale > 0 and index > 2, got {tail_scale} and {tail_index}."
            )
        self.register_buffer("borders", borders.clone())
        self.tail_scale = float(tail_scale)
        self.tail_index = float(tail_index)

    @property
    def num_logits(self) -> int:
        """Length of the vector of logits: one for each node, K + 1."""
        return len(self.borders)

    def extra_repr(self) -> str:
        """Nodes, their range, and the tails beyond it."""
        low, high = self.borders[[0, -1]].tolist()
        return (
            f"{count(self.num_logits, 'node')} from {low:.4g} to {high:.4g}, tails of scale "
            f"{self.tail_scale:.4g} and index {self.tail_index:.4g}"
        )

    def log_prob(
        self, logits: Float[Tensor, "*#batch nodes"], y: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch"]:
        """Log density at `y`, nats per unit of y."""
        logits, b = self._prepare(logits)
        a, s = self.tail_index, self.tail_scale
        logits, y, restore = _by_row(logits, y)
        left = (torch.searchsorted(b, y.detach().contiguous()) - 1).clamp(0, len(b) - 2)
        ends = torch.stack([left, left + 1], dim=-1)
        log_height = _gather(logits.log_softmax(-1), ends) - self.areas(b).log()[ends]
        low, high = b[left], b[left + 1]
        # Beyond an end node the shares are (1, 0) or (0, 1), and the density there that node's.
        nearest = y.clamp(b[0], b[-1])
        share = torch.stack([high - nearest, nearest - low], dim=-1) / (high - low)[..., None]
        # Relative to the higher of the nodes that have a share; the bound is for one that has none,
        # where only the gradient in y sees it. Sum and gradient are then finite for any logits.
        top = torch.where(share > 1e-30, log_height.detach(), -torch.inf).amax(-1, keepdim=True)
        ratio = (log_height - top).clamp_max(60.0).exp()
        inside = top[..., 0] + (share * ratio).sum(-1).log()
        outside = F.relu(b[0] - y) + F.relu(y - b[-1])
        return restore(inside - (a + 1) * torch.log1p(outside / s))

    def cdf(
        self, logits: Float[Tensor, "*#batch nodes"], y: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch"]:
        """Probability of a value at most `y`."""
        logits, b = self._prepare(logits)
        a, s = self.tail_index, self.tail_scale
        logits, y, restore = _by_row(logits, y)
        height, mass = self._masses(logits, b)
        below = mass[..., :-1].cumsum(-1)  # at the nodes
        left = (torch.searchsorted(b, y.detach().contiguous()) - 1).clamp(0, len(b) - 2)
        ends = torch.stack([left, left + 1], dim=-1)
        low, width = b[left], b.diff()[left]
        u = (y.clamp(b[0], b[-1]) - low) / width
        parts = width[..., None] * torch.stack([u * (2 - u) / 2, u**2 / 2], dim=-1)
        inside = below.gather(-1, left) + (_gather(height, ends) * parts).sum(-1)
        lower = mass[..., :1] * (1 + F.relu(b[0] - y) / s) ** -a
        upper = -mass[..., -1:] * torch.expm1(-a * torch.log1p(F.relu(y - b[-1]) / s))
        return restore(torch.where(y < b[0], lower, inside + upper))

    def quantile(
        self, logits: Float[Tensor, "*#batch nodes"], p: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch"]:
        """The value with probability `p` in (0, 1) below it; differentiable in both.

        Solved from the nearer end, so that both tails are resolved; p = 0 and 1 give large
        finite values.
        """
        logits, b = self._prepare(logits)
        logits, p, restore = _by_row(logits, p)
        height, mass = self._masses(logits, b)
        below = self._lower_quantile(height, mass, b, p.clamp(max=0.5))
        mirrored = height.flip(-1), mass.flip(-1), -b.flip(0)
        above = self._lower_quantile(*mirrored, (1 - p).clamp(max=0.5))
        return restore(torch.where(p <= 0.5, below, -above))

    def mean(self, logits: Float[Tensor, "*batch nodes"]) -> Float[Tensor, "*batch"]:
        """Mean."""
        logits, b = self._prepare(logits)
        return logits.softmax(-1) @ self._moments(b)[0]

    def variance(self, logits: Float[Tensor, "*batch nodes"]) -> Float[Tensor, "*batch"]:
        """Variance."""
        logits, b = self._prepare(logits)
        mass, (centres, within) = logits.softmax(-1), self._moments(b)
        # Not E[y^2] - E[y]^2, which would cancel for a narrow density far from zero.
        distance = centres - (mass @ centres)[..., None]
        return mass @ within + (mass * distance.square()).sum(-1)

    def log_excess(
        self,
        logits: Float[Tensor, "*#batch nodes"],
        threshold: Float[Tensor, "*#batch"],
        order: int,
        above: bool = True,
    ) -> Float[Tensor, "*batch"]:
        """Log of E[(y - threshold)^order; y > threshold], or of its mirror image below.

        For order 0 the log probability of a value beyond the threshold, for order 1 the log
        expected improvement on it; both accurate far beyond all nodes.
        """
        if order not in (0, 1):
            raise ValueError(f"log_excess takes order 0 or 1, got {order!r}.")
        logits, b = self._prepare(logits)
        a, s = self.tail_index, self.tail_scale
        x = threshold[..., None]
        if not above:  # mirror
            b, x, logits = -b.flip(0), -x, logits.flip(-1)
        w = b.diff()
        # Part of each interval above x. Written so that at a node one interval has the gradient,
        # as relu has none at 0 and clamp_min has.
        q = torch.where(x < b[:-1], 1.0, F.relu((b[1:] - x) / w))
        t, g = (x - b[-1]).clamp_min(0), F.relu(b[0] - x)
        # Over an interval: legs that rise to its upper node, and that fall from its lower one.
        # Every term is a sum of positive ones (but the lower tail's first-order one, a difference
        # that matters only if all mass lies in that tail), so small values are accurate.
        if order == 0:
            rising, falling = w * q * (2 - q) / 2, w * q**2 / 2
            lower = -s / a * torch.expm1(-a * torch.log1p(g / s))
            log_upper = math.log(s / a) - a * torch.log1p(t / s)
        else:
            whole = F.relu(b[:-1] - x) * w / 2
            rising, falling = (w * q) ** 2 * (3 - q) / 6 + whole, w**2 * q**3 / 6 + whole
            lower = s / a * (g + s / (a - 1) * torch.expm1((1 - a) * torch.log1p(g / s)))
            log_upper = (
                math.log(s / a)
                + torch.log(s / (a - 1) + F.relu(b[-1] - x))
                + (1 - a) * torch.log1p(t / s)
            )
        terms = F.pad(rising, (1, 0)) + F.pad(falling, (0, 1))
        terms = torch.cat([terms[..., :1] + lower.clamp_min(0), terms[..., 1:]], dim=-1)
        positive = terms > torch.finfo(terms.dtype).tiny
        log_terms = torch.where(positive, torch.where(positive, terms, 1.0).log(), -torch.inf)
        log_height = logits.log_softmax(-1) - self.areas(b).log()
        log_tail = log_height[..., -1:] + log_upper  # positive at every x
        return torch.cat([log_height + log_terms, log_tail], dim=-1).logsumexp(-1)

    def rsample(
        self,
        logits: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples `[*sample_shape, ...]`, differentiable in the logits."""
        logits, _ = self._prepare(logits)
        shape = (*sample_shape, *logits.shape[:-1])
        p = torch.rand(shape, dtype=logits.dtype, device=logits.device, generator=generator)
        eps = torch.finfo(p.dtype).eps
        return self.quantile(logits, p.clamp(eps / 4, 1 - eps / 2))

    def _prepare(
        self, logits: Float[Tensor, "*batch nodes"]
    ) -> tuple[Float[Tensor, "*batch nodes"], Float[Tensor, " nodes"]]:
        """Logits in at least single precision, and the nodes like them."""
        if logits.shape[-1] != self.num_logits:
            raise ValueError(
                f"expected {self.num_logits} logits, one per node, got {logits.shape[-1]}."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits, self.borders.to(logits)

    def areas(self, b: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
        """Areas under the hat functions of nodes `b`, those of the distribution in some dtype."""
        tail = self.tail_scale / self.tail_index
        legs = F.pad(b.diff() / 2, (1, 1), value=tail)
        return legs[:-1] + legs[1:]

    def _masses(
        self, logits: Float[Tensor, "*batch nodes"], b: Float[Tensor, " nodes"]
    ) -> tuple[Float[Tensor, "*batch nodes"], Float[Tensor, "*batch nodes+1"]]:
        """Densities at the nodes, and masses of tail, intervals and tail."""
        height, tail = logits.softmax(-1) / self.areas(b), self.tail_scale / self.tail_index
        inner = (height[..., :-1] + height[..., 1:]) * (b.diff() / 2)
        return height, torch.cat([height[..., :1] * tail, inner, height[..., -1:] * tail], dim=-1)

    def _moments(
        self, b: Float[Tensor, " nodes"]
    ) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
        """Means and variances of the components."""
        a, s = self.tail_index, self.tail_scale
        w, area = b.diff(), self.areas(b)
        # Integrals of distance and of its square to the node over one leg.
        first = F.pad(w**2 / 6, (1, 1), value=s**2 / (a * (a - 1)))
        second = F.pad(w**3 / 12, (1, 1), value=2 * s**3 / (a * (a - 1) * (a - 2)))
        offset = (first[1:] - first[:-1]) / area
        return b + offset, (second[1:] + second[:-1]) / area - offset**2

    def _lower_quantile(
        self,
        height: Float[Tensor, "*batch nodes"],
        mass: Float[Tensor, "*batch nodes+1"],
        b: Float[Tensor, " nodes"],
        p: Float[Tensor, "*batch L"],
    ) -> Float[Tensor, "*batch L"]:
        """The quantiles of p <= 1/2, from masses added up from below."""
        a, s = self.tail_index, self.tail_scale
        tiny = torch.finfo(b.dtype).tiny
        total = mass.cumsum(-1)
        index = torch.searchsorted(total.detach(), p.detach().contiguous()).clamp(max=len(b))
        own = mass.gather(-1, index).clamp_min(tiny)
        end = total.gather(-1, index)
        start = total.gather(-1, (index - 1).clamp_min(0))
        in_lower, in_upper = index == 0, index == len(b)
        lower = b[0] - s * ((p / torch.where(in_lower, own, 1.0)).clamp(tiny, 1) ** (-1 / a) - 1)
        left_over = (end - p) / torch.where(in_upper, own, 1.0)
        upper = b[-1] + s * (left_over.clamp(tiny, 1) ** (-1 / a) - 1)
        # Inside: in units of the width and of the mass, from the end with the lower density,
        # where it is alpha <= 1: alpha u + (1 - alpha) u^2 = v, no cancellation in its root.
        cell = (index - 1).clamp(0, len(b) - 2)
        low, width = b[cell], b.diff()[cell]
        left, right = height.gather(-1, cell), height.gather(-1, cell + 1)
        rises = left <= right
        inner = ~(in_lower | in_upper)
        own = torch.where(inner, own, 1.0)
        alpha = (torch.where(rises, left, right) * width / own).clamp(max=1)
        v = (torch.where(rises, p - start, end - p) / own).clamp(0, 1)
        root = (alpha**2 + 4 * (1 - alpha) * v).clamp_min(tiny).sqrt()
        u = 2 * v / (alpha + root)
        inside = low + width * torch.where(rises, u, 1 - u)
        return torch.where(in_lower, lower, torch.where(in_upper, upper, inside))


def _by_row(
    logits: Float[Tensor, "*#batch nodes"], values: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*kept nodes"], Float[Tensor, "*kept L"], Callable[[Tensor], Tensor]]:
    """Logits and the values that belong to each of them.

    Dimensions of the values that the logits lack (samples, probabilities) are L: searchsorted and
    gather then take many values for one row, where logits expanded to `[L, *b, K + 1]` would be
    held in memory, in the backward pass too.

    Returns:
        Both, and what gives a result `[*kept, L]` the shape of the broadcast.
    """
    batch = torch.broadcast_shapes(values.shape, logits.shape[:-1])
    own = (1,) * (len(batch) - logits.dim() + 1) + logits.shape[:-1]
    kept = [n for n, size in zip(own, batch, strict=True) if n == size]
    lacking = [i for i, size in enumerate(batch) if own[i] != size]
    last = list(range(-len(lacking), 0))
    moved = values.expand(batch).movedim(lacking, last)

    def restore(found: Tensor) -> Tensor:
        return found.reshape(moved.shape).movedim(last, lacking)

    rows = moved.unsqueeze(-1).flatten(len(kept))
    return logits.reshape(*kept, logits.shape[-1]), rows, restore


def _gather(
    values: Float[Tensor, "*batch K"], index: Int[Tensor, "*batch L k"]
) -> Float[Tensor, "*batch L k"]:
    """Entries of `values`, several for each place."""
    return values.gather(-1, index.flatten(-2)).unflatten(-1, index.shape[-2:])


def place_nodes(
    targets: Tensor,
    num: int,
    *,
    tail_mass: float = 5e-4,
    equal_mass: float = 0.5,
    tail_index: float = 5.0,
) -> tuple[Float[Tensor, " num"], float]:
    """Nodes and the scale of the tails for targets drawn from the prior.

    A share `equal_mass` of the nodes follows the targets' distribution, the others lie evenly
    over their range. So no interval is wider than that range / ((1 - equal_mass) num), and a
    narrow posterior at an unusual target is resolved too.

    Args:
        targets: Values in the units of the network, any shape.
        num: Number of nodes, at least 2.
        tail_mass: Share of the targets beyond each end node; never fewer than ten of them,
            where there are that many.
        equal_mass: Share of the nodes that follow the targets' distribution, in [0, 1).
        tail_index: Index of the tails, whose scale is the maximum likelihood estimate.

    Returns:
        Nodes `[num]` in the targets' dtype, and the scale.

    Raises:
        ValueError: fewer than two different targets, values that are not finite, or arguments
            out of range.
    """
    if num < 2 or not 0 <= equal_mass < 1 or not 0 < tail_mass < 0.5:
        raise ValueError(
            "place_nodes needs num >= 2, equal_mass in [0, 1) and tail_mass in (0, 0.5), got "
            f"{num}, {equal_mass} and {tail_mass}."
        )
    z = targets.detach().double().flatten().sort().values
    if len(z) < 2 or not bool(z.isfinite().all()) or not bool(z[0] < z[-1]):
        raise ValueError("place_nodes needs at least two different targets, all of them finite.")
    tail = min(max(tail_mass, 10 / len(z)), 0.05)

    def at(level: Tensor) -> Tensor:  # quantiles, interpolated
        place = level * (len(z) - 1)
        low = place.long().clamp(max=len(z) - 2)
        return torch.lerp(z[low], z[low + 1], place - low)

    ends = at(torch.tensor([tail, 1 - tail], dtype=z.dtype, device=z.device))
    if not bool(ends[0] < ends[1]):
        ends = z[[0, -1]]
    # Distribution function of the nodes on the knots of a polygon, and its inverse at equal steps.
    steps = torch.linspace(0, 1, 4 * num + 1, dtype=z.dtype, device=z.device)
    knots = torch.cat([at(tail + (1 - 2 * tail) * steps), torch.lerp(ends[0], ends[1], steps)])
    knots = knots.clamp(ends[0], ends[1]).sort().values
    below = torch.searchsorted(z, knots, right=True) / len(z)
    mass = (below - below[0]) / (below[-1] - below[0])
    level = equal_mass * mass + (1 - equal_mass) * (knots - ends[0]) / (ends[1] - ends[0])
    wanted = torch.linspace(0, 1, num, dtype=z.dtype, device=z.device)
    i = torch.searchsorted(level, wanted).clamp(1, len(level) - 1)
    part = (wanted - level[i - 1]) / (level[i] - level[i - 1]).clamp_min(1e-300)
    nodes = torch.lerp(knots[i - 1], knots[i], part.clamp(0, 1))
    # Repeated targets pull nodes together; keep them apart.
    span = ends[1] - ends[0]
    width = nodes.diff().clamp_min(span / (20 * num))
    width = width * span / width.sum()
    nodes = torch.cat([ends[:1], ends[0] + width.cumsum(0)])
    excess = torch.cat([nodes[0] - z[z < nodes[0]], z[z > nodes[-1]] - nodes[-1]])
    return nodes.to(targets.dtype), _tail_scale(excess, tail_index, float(width.mean()))


def _tail_scale(excess: Tensor, a: float, smallest: float) -> float:
    """The scale s of a Lomax law by maximum likelihood: mean of t / (s + t) = 1 / (a + 1).

    At least `smallest`, which keeps the tails of few or equal targets as wide as an interval.
    """
    low, high = math.log(smallest), math.log(smallest) + 40.0
    if len(excess) == 0:
        return smallest
    for _ in range(60):
        middle = (low + high) / 2
        share = float((excess / (math.exp(middle) + excess)).mean())
        low, high = (middle, high) if share > 1 / (a + 1) else (low, middle)
    return math.exp(low)


def binning_error(
    bars: BarDistribution,
    means: Float[Tensor, "*#posteriors"],
    sds: Float[Tensor, "*#posteriors"],
    *,
    iterations: int = 30,
) -> Float[Tensor, "*posteriors"]:
    """How well the nodes can represent normal posteriors, in nats.

    KL(N(mean, sd^2) || q) for the best weights that the EM algorithm finds from the masses of the
    normal under each hat function. The problem is convex and EM approaches its minimum from
    above: an upper bound of the least possible divergence, up to the quadrature's error.

    Args:
        bars: Nodes and tails.
        means: Means of the posteriors in the nodes' units.
        sds: Their standard deviations, positive.
        iterations: Steps of the EM algorithm.

    Returns:
        In float64; takes some milliseconds for each posterior.

    Raises:
        ValueError: standard deviations that are not positive.
    """
    if not bool((sds > 0).all()):
        raise ValueError("binning_error needs positive standard deviations.")
    means, sds = torch.broadcast_tensors(means, sds)
    b = bars.borders.double()
    pairs = torch.stack([means.flatten(), sds.flatten()], dim=-1).to(b)
    errors = [_binning_error(bars, b, m, s, iterations) for m, s in pairs]
    return torch.stack(errors).reshape(means.shape)


def _binning_error(
    bars: BarDistribution,
    b: Float[Tensor, " nodes"],
    mean: Float[Tensor, ""],
    sd: Float[Tensor, ""],
    iterations: int,
) -> Float[Tensor, ""]:
    # Gauss-Legendre on every piece between nodes and steps of sd / 2, where all is smooth.
    reach = 8.0
    steps = torch.linspace(-reach, reach, int(4 * reach) + 1, dtype=b.dtype, device=b.device)
    edges = torch.cat([mean + sd * steps, b[(b - mean).abs() < reach * sd]]).sort().values
    x, weight = (torch.tensor(v, dtype=b.dtype, device=b.device) for v in _GAUSS)
    half = edges.diff()[:, None] / 2
    y = (edges[:-1, None] + half + half * x).flatten()
    log_p = -((y - mean) / sd).square() / 2 - sd.log() - math.log(2 * math.pi) / 2
    mass = (half * weight).flatten() * log_p.exp()
    mass = mass / mass.sum()
    left = (torch.searchsorted(b, y) - 1).clamp(0, len(b) - 2)
    share = ((y - b[left]) / (b[left + 1] - b[left])).clamp(0, 1)
    outside = F.relu(b[0] - y) + F.relu(y - b[-1])
    tail = (1 + outside / bars.tail_scale) ** -(bars.tail_index + 1)
    ends = torch.stack([left, left + 1])
    hats = torch.stack([1 - share, share]) * tail
    area = bars.areas(b)
    weights = torch.zeros_like(b).scatter_add_(0, ends.flatten(), (mass * hats / tail).flatten())
    for _ in range(iterations):
        parts = (weights / area)[ends] * hats
        density = parts.sum(0).clamp_min(1e-300)
        weights = torch.zeros_like(b).scatter_add_(
            0, ends.flatten(), (mass * parts / density).flatten()
        )
    density = ((weights / area)[ends] * hats).sum(0).clamp_min(1e-300)
    return (mass * (log_p - density.log())).sum()


def choose_num_nodes(
    targets: Tensor,
    means: Tensor,
    sds: Tensor,
    *,
    tolerance: float = 3e-3,
    largest: int = 4096,
) -> int:
    """The fewest nodes, in steps of about a fifth, that represent posteriors well enough.

    Args:
        targets: Values from which `place_nodes` places the nodes.
        means: Means of posteriors as the prior's tasks have them, approximated by normal ones,
            `[...]`; for noise-free functions as narrow as the network is to become.
        sds: Their standard deviations, `[...]`.
        tolerance: Largest mean of `binning_error` over the posteriors, nats.
        largest: Most nodes to try.

    Raises:
        ValueError: not even `largest` nodes suffice.
    """
    num, error = 32, math.inf
    while num <= largest:
        nodes, scale = place_nodes(targets.double(), num)
        error = float(binning_error(BarDistribution(nodes, tail_scale=scale), means, sds).mean())
        if error <= tolerance:
            return num
        num = math.ceil(num * 1.2)
    raise ValueError(
        f"{largest} nodes leave an error of {error:.2g} nats, above the tolerance of "
        f"{tolerance:.2g}; the narrowest posterior has standard deviation "
        f"{float(sds.min()):.2g}. Raise tolerance or largest, or add noise."
    )
