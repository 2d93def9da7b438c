"""E[f(u) g(v)] of smooth functions for all combinations of variances and correlations at once.

Of two lists of variances and one of correlations what depends on one of them, or on two, is
computed once: a table of n x m variances and k correlations costs little more than n + m of them.
Where Mehler's series in the correlation converges it is a product of matrices for each
correlation; near |rho| = 1, v is rho u and a narrow rest, over which one function is averaged at
the nodes of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from priors.gaussian.quadrature.functions import Function
from priors.gaussian.quadrature.mehler import REACH, rest_of
from priors.gaussian.quadrature.rules import (
    edges,
    narrow_rule,
    panels,
    resolution_of,
    standard_density,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Marginal", "on_a_grid"]

_ORDER = 2048  # terms of the series
_REACH = 8.5  # of the nodes near |rho| = 1: squares of polynomials are to be kept
_BLOCK = 128  # terms computed at once
_TOLERANCE = 1e-13  # of the series, in units of the roots of E[f^2] and E[g^2]
_NEGLIGIBLE = 1e-15  # a block of coefficients as small as this is the last
_EVALUATIONS = 2**18  # held at once near |rho| = 1


@dataclass(frozen=True)
class Marginal:
    """A function of a normal variable of several variances, divided by a scale for each.

    Attributes:
        function: Elementwise and smooth.
        variances: In float64.
        inverse: One over the scales; the roots of E[f^2], so that results are at most 1.
    """

    function: Function
    variances: Float[Tensor, " n"]
    inverse: Float[Tensor, " n"]

    def at(self, z: Tensor) -> Tensor:
        """The function of `z`, `[..., n, k]` or of a shape that broadcasts to it, standardised."""
        x = self.variances.sqrt()[:, None] * z
        values = self.function(x)
        if values.shape != x.shape:  # a constant
            values = values.expand(x.shape)
        return values * self.inverse[:, None]


def on_a_grid(f: Marginal, g: Marginal, rho: Float[Tensor, " k"]) -> Float[Tensor, "k n m"]:
    """E[f(u) g(v)] over both scales, without gradient.

    Args:
        f: Of n variances; near |rho| = 1 it is called at more points than `g`.
        g: Of m variances.
        rho: Correlations, `[k]`, |rho| <= 1.

    Returns:
        `[k, n, m]`.
    """
    a, left = _coefficients(f)
    b, right = (a, left) if f is g else _coefficients(g)
    number = min(a.shape[-1], b.shape[-1])
    a, b = a[:, :number], b[:, :number]
    missed = rest_of(a, left).max() * rest_of(b, right).max() * rho.abs() ** number
    near = ~(missed <= _TOLERANCE)
    value = rho.new_empty(len(rho), len(a), len(b))
    powers = rho[~near, None] ** torch.arange(number, device=rho.device)
    rows = [(p * a) @ b.T for p in powers[:, None, :]]
    if rows:
        value[~near] = torch.stack(rows)
    where = near.nonzero()[:, 0]
    if len(where):
        value[where] = _near_one(f, g, rho[where])
    return value


def _coefficients(one: Marginal) -> tuple[Float[Tensor, "n terms"], Float[Tensor, " n"]]:
    """Hermite coefficients, as many as matter or may be computed; E of the square."""
    ends = edges(REACH, 0.5, resolution_of(one.variances)).to(one.variances.device)
    z, weights = panels(ends)
    mass = weights * standard_density(z)
    values = one.at(z)
    square = values**2 @ mass
    values = values * mass
    found = [torch.stack([values.sum(-1), values @ z], -1)]
    nodes = z.cpu().numpy()  # thousands of short operations, each several times as long in torch
    before, last = numpy.ones_like(nodes), nodes
    for start in range(2, _ORDER, _BLOCK):
        block = numpy.empty((min(_BLOCK, _ORDER - start), len(nodes)))
        for row, k in zip(block, range(start, _ORDER), strict=False):
            numpy.multiply(nodes, last, out=row)
            row -= math.sqrt(k - 1) * before
            row /= math.sqrt(k)
            before, last = last, row
        found.append(values @ torch.from_numpy(block).to(z.device).T)
        if float(found[-1].abs().max()) < _NEGLIGIBLE:
            break
    return torch.cat(found, -1), square


def _near_one(f: Marginal, g: Marginal, rho: Float[Tensor, " k"]) -> Float[Tensor, "k n m"]:
    """The same for correlations near -1 and 1: u is rho v and a rest, standardised."""
    largest = torch.maximum(f.variances.max(), g.variances.max())
    z, weights = panels(edges(_REACH, 1.5, resolution_of(largest)).to(rho.device))
    right = g.at(z) * (weights * standard_density(z))
    rest = ((1 - rho) * (1 + rho)).sqrt()
    spread = float(f.variances.max().sqrt())
    rows = []
    for r, s in zip(rho, rest, strict=True):
        steps, shares = (t.to(rho.device) for t in narrow_rule(spread * float(s)))
        size = max(1, _EVALUATIONS // (len(f.variances) * len(steps)))
        parts = [
            (f.at((r * part[:, None] + s * steps).view(1, -1)).unflatten(-1, (-1, len(steps))))
            @ shares
            for part in z.split(size)
        ]
        rows.append(torch.cat(parts, -1) @ right.T)
    return torch.stack(rows)
