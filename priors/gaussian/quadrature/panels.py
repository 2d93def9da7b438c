"""Expectations of pairs that the series does not reach, by panels in two dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from priors.gaussian.quadrature.functions import Elementwise
from priors.gaussian.quadrature.rules import (
    DIRECT_REACH,
    PER_PANEL,
    edges,
    equal_panels,
    legendre,
    narrow_rule,
    resolution_of,
    standard_density,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["direct"]

_EVALUATIONS = 2**19  # held at once by the two-dimensional rule


def direct(
    f: Elementwise,
    g: Elementwise,
    r1: Float[Tensor, " p"],
    r2: Float[Tensor, " p"],
    rho: Float[Tensor, " p"],
    s: Float[Tensor, " p"],
    kinks1: Float[Tensor, "p k1"],
    kinks2: Float[Tensor, "p k2"],
    f_parameters: Sequence[Float[Tensor, " p"]],
    g_parameters: Sequence[Float[Tensor, " p"]],
) -> Float[Tensor, " p"]:
    """E[f(u) g(v)] for a list of pairs, by panels in two dimensions."""
    fixed = edges(DIRECT_REACH, 1.5, resolution_of(torch.maximum(r1, r2) ** 2)).to(rho.device)
    order = 12 if f.kinks or g.kinks else PER_PANEL
    nodes, weights = (x.to(rho.device) for x in legendre(order))
    graded = torch.tensor([-7, -3.5, 0, 3.5, 7], dtype=torch.float64, device=rho.device)
    num_outer = (len(fixed) - 1 + kinks1.shape[-1] + 5 * kinks2.shape[-1]) * len(nodes)
    size = max(1, _EVALUATIONS // (40 * num_outer))
    results = torch.empty_like(rho)
    # like widths together: the inner rule is the widest one's
    for pairs in (r2 * s).argsort().split(size):
        u, v, p, w = (t[pairs, None] for t in (r1, r2, rho, s))
        t2 = (kinks2[pairs] / v).sort(-1).values
        narrow = (t2 / p)[..., None] + w[..., None] * graded
        cuts = [fixed.expand(len(u), -1), _inside(kinks1[pairs] / u), _inside(narrow.flatten(1))]
        ends = torch.cat(cuts, -1).sort(-1).values
        width = ends.diff()[..., None]
        z = (ends[:, :-1, None] + width * nodes).flatten(1)
        outer = (width * weights).flatten(1) * standard_density(z)
        outer = outer * f(u * z, *(x[pairs, None] for x in f_parameters))
        inner = _conditional(g, v, w, p * z, t2, [x[pairs, None] for x in g_parameters])
        results[pairs] = (outer * inner).sum(-1)
    return results


def _conditional(
    g: Elementwise,
    r: Float[Tensor, "p 1"],
    s: Float[Tensor, "p 1"],
    centre: Float[Tensor, "p m"],
    t: Float[Tensor, "p k"],
    parameters: Sequence[Float[Tensor, "p 1"]],
) -> Float[Tensor, "p m"]:
    """E[g(r (centre + s w))] over standard normal w.

    Args:
        g: The function.
        r: Standard deviations of v.
        s: Those of v given u, over `r`.
        centre: Means of v given u, over `r`, at m nodes.
        t: Sorted kinks of g in units of `r`.
        parameters: Of g.
    """
    spread = float((r * s).max())
    steps, weights = (x.to(r.device) for x in narrow_rule(spread))
    x = r[..., None] * (centre[..., None] + s[..., None] * steps)
    values = g(x.flatten(1), *parameters).expand(len(r), x[0].numel()).view(x.shape) @ weights
    # once more, panels between kinks, for the nodes that have one in reach
    distance = ((t[:, None, :] - centre[..., None]) / s[..., None]).nan_to_num(
        math.inf, math.inf, -math.inf
    )
    near = (distance.abs() < DIRECT_REACH).sum(-1)
    row, node = near.nonzero(as_tuple=True)
    if not len(row):
        return values
    nearest = distance[row, node].abs().argsort(-1)[:, : int(near.max())]
    cuts = _inside(distance[row, node].gather(-1, nearest)).sort(-1).values
    panels = max(2, min(64, math.ceil(spread * DIRECT_REACH / 2)))
    steps, weights = (x.to(r.device) for x in equal_panels(panels))
    r, s, centre = r[row], s[row], centre[row, node, None]
    parameters = [x[row] for x in parameters]
    end = torch.full_like(centre, DIRECT_REACH)
    total = torch.zeros_like(centre[:, 0])
    for low, high in itertools.pairwise(torch.cat([-end, cuts, end], -1).split(1, -1)):
        w = low + (high - low) * steps
        mass = (high - low) * weights * standard_density(w)
        total += (mass * g(r * (centre + s * w), *parameters)).sum(-1)
    values[row, node] = total
    return values


def _inside(z: Tensor) -> Tensor:
    """Ends of panels within the reach of the two-dimensional rule, a missing kink at its end."""
    reach = DIRECT_REACH
    return z.nan_to_num(reach, reach, -reach).clamp(-reach, reach)
