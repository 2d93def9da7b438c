"""The kernel of a whole batch for networks with batch normalisation.

Batch normalisation makes every output depend on the whole batch, so there is no kernel of single
inputs. Within one batch the limit exists (Yang et al. 2019, 1902.08129): the units of the
normalised layer are independent copies of the Gaussian vector h over the batch (and positions),
and

    y = (h - mean(h)) / sqrt(var(h) + eps),    moment = E[phi(y) phi(y)^T],

an expectation over as many variables as the batch has points, in general by quasi-Monte Carlo.
For ReLU and its relatives, and for linear layers that follow, it is a one-dimensional integral
(their Theorem 3.2, with eps kept; `homogeneous_batch_norm`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.gaussian.activations import ABReLU, Activation
from priors.gaussian.quasi_monte_carlo import cholesky
from priors.limits.kinds import LinearMap, kind_of
from priors.limits.moments import Moments, Points
from priors.limits.pairs import Pairs
from priors.programs.nodes import BatchNormalise, Nonlinear
from priors.programs.registry import UnsupportedOperationError

__all__ = ["BatchMoments", "homogeneous_batch_norm"]


# Nodes of the integral, and its ends in powers of ten of the spectrum's scale: the integrand falls
# like s below and, where the centred batch has rank 1, like s^(-1/2) above.
_NODES, _REACH = 600, (-14.0, 24.0)
# Most numbers of one step of it.
_CHUNK = 2**22


def homogeneous_batch_norm(phi: ABReLU, psi: ABReLU, covariance: Tensor, eps: float) -> Tensor:
    """E[phi(y) psi(y)^T] of a normalised Gaussian vector y = g / sqrt(|g|^2 / B + eps).

    g = G h, G the centring matrix and S = G Sigma G. phi(y) is phi(g) / sqrt(|g|^2 / B + eps), and
    1 / t = int_0^inf e^(-s t) ds gives

        B int_0^inf V(S (I + 2 s S)^-1) / sqrt(det(I + 2 s S)) e^(-s B eps) ds,

    V the dual of phi and psi (Yang et al. 2019, Theorem 3.2, which has eps = 0). By
    Gauss-Legendre quadrature in log s.

    Args:
        phi: Max(0, .), or another with two slopes.
        psi: The same.
        covariance: Sigma, `[B, B]`.
        eps: Added to the variance, >= 0.

    Returns:
        `[B, B]`; for ReLU and eps = 0 of trace B / 2.
    """
    import numpy

    size = covariance.shape[-1]
    centred = covariance.double() - covariance.double().mean(-1, keepdim=True)
    centred = centred - centred.mean(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred)
    values = values.clamp_min(0)
    top = values.max()
    if not bool(top > 0):  # all points are the same
        return torch.zeros_like(covariance)
    nodes, weights = numpy.polynomial.legendre.leggauss(_NODES)
    low, high = (r * math.log(10) for r in _REACH)
    half = (high - low) / 2
    log_s = (torch.from_numpy(nodes).to(values) + 1) * half + low - top.log()
    mass = torch.from_numpy(weights).to(values) * half
    total = torch.zeros_like(centred)
    for u, w in zip(*(t.split(max(1, _CHUNK // size**2)) for t in (log_s, mass)), strict=True):
        s = u.exp()
        stretched = 1 + 2 * s[:, None] * values
        inner = (vectors * (values / stretched)[:, None, :]) @ vectors.mT
        q = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        dual = phi.dual(psi, q[:, :, None], q[:, None, :], inner)
        dual = torch.diagonal_scatter(dual, phi.dual(psi, q, q, q), dim1=-2, dim2=-1)
        w = w * s * (stretched.log().sum(-1) / -2 - s * size * eps).exp()
        total += (w[:, None, None] * dual).sum(0)
    return (size * total).to(covariance)


class BatchMoments(Moments):
    """Moments of a batch with itself, where normalisations see all of it."""

    def __init__(self, points: Points) -> None:
        super().__init__(points, points)
        self._points_of_batch = points

    def variance_of(self, index: int, side: int) -> Tensor:
        value = self.moment(index, index)
        assert value is not None
        value = value.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        return value.diagonal(dim1=-2, dim2=-1) if value.dim() > 2 else value

    def of_points(self, side: int) -> Moments:
        return self

    def with_exact_diagonal(
        self,
        value: Tensor,
        a: int,
        b: int,
        full: bool,
        exact: Callable[[Pairs], Tensor | None],
    ) -> Tensor:
        """No closed form of a point with itself: it depends on the others."""
        return value

    def _moment(self, a: int, b: int, full: bool) -> Tensor | None:
        plain = self._normalised(a) is None and self._normalised(b) is None
        if plain or any(isinstance(kind_of(self.program.nodes[i]), LinearMap) for i in (a, b)):
            return super()._moment(a, b, full)
        for index in (a, b):
            known = self._normalised(index) is not None or self.program.gaussian(index)
            if not known and not self.is_plain(index):
                raise UnsupportedOperationError(
                    "a batch normalisation that meets another kind of layer again",
                    "a skip connection",
                    "only linear layers and plain nonlinearities are known there",
                )
        value = self._closed(a, b)
        if value is None:
            value = self._sampled(a, b)
        return value if full else value.diagonal(dim1=-2, dim2=-1)

    def _normalised(self, index: int) -> int | None:
        """The normalisation that a node is, or is a nonlinearity of."""
        node = self.program.nodes[index]
        if isinstance(node, BatchNormalise):
            return index
        if isinstance(node, Nonlinear):
            sources = [s for f in node.factors for s in f.sources]
            if any(isinstance(self.program.nodes[s], BatchNormalise) for s in sources):
                return sources[0]
        return None

    def _closed(self, a: int, b: int) -> Tensor | None:
        """The moment of functions with two slopes of one normalised layer."""
        one, two = self._field(a), self._field(b)
        if one.normalisation is None or one.normalisation != two.normalisation:
            return None
        if not (isinstance(one.phi, ABReLU) and isinstance(two.phi, ABReLU)):
            return None
        covariance = self._covariance(one.source, one.source)
        value = homogeneous_batch_norm(one.phi, two.phi, covariance, one.eps)
        return self._shaped(value, a, b)

    def _sampled(self, a: int, b: int) -> Tensor:
        """E[a b^T] over draws of the Gaussian vectors underneath."""
        fields = [self._field(index) for index in (a, b)]
        sources = list(dict.fromkeys(field.source for field in fields))
        rows = [torch.cat([self._covariance(s, t) for t in sources], 1) for s in sources]
        root = cholesky(torch.cat(rows).double())
        draws = self.settings.quadrature.normals(len(root), root) @ root.mT
        parts = dict(zip(sources, draws.split([len(r) for r in rows], -1), strict=True))
        left, right = (field(parts[field.source]) for field in fields)
        return self._shaped((left.mT @ right / len(draws)).to(rows[0]), a, b)

    def _covariance(self, s: int, t: int) -> Tensor:
        """Moments of two Gaussian nodes over the batch and all positions, `[B P, B R]`."""
        n = self._points_of_batch.x.shape[-2]
        p, r = (self.program.positions(i) or 1 for i in (s, t))
        block = self.moment(s, t)
        if block is None:
            block = self._points_of_batch.x.new_zeros(n, n, p, r)
        return block.reshape(n, n, p, r).transpose(1, 2).reshape(n * p, n * r)

    def _shaped(self, value: Tensor, a: int, b: int) -> Tensor:
        """A matrix over the batch and positions as the moment of two nodes."""
        n = self._points_of_batch.x.shape[-2]
        p, r = (self.program.positions(i) or 1 for i in (a, b))
        value = value.reshape(n, p, n, r).transpose(1, 2)
        if self.program.positions(b) is None:
            value = value.squeeze(-1)
        return value.squeeze(2) if self.program.positions(a) is None else value

    def _field(self, index: int) -> _Field:
        node = self.program.nodes[index]
        phi: Activation = ABReLU(1.0, 1.0)
        inner = index
        if isinstance(node, Nonlinear):
            phi, inner = self.activation(index)
        below = self.program.nodes[inner]
        if isinstance(below, BatchNormalise):
            return _Field(phi, below.source, inner, below.eps)
        return _Field(phi, inner, None, 0.0)


@dataclass(frozen=True)
class _Field:
    """A nonlinearity of a Gaussian node, with a normalisation in between or without.

    Attributes:
        phi: The nonlinearity.
        source: The Gaussian node.
        normalisation: The normalisation, if there is one.
        eps: Its eps.
    """

    phi: Activation
    source: int
    normalisation: int | None
    eps: float

    def __call__(self, h: Tensor) -> Tensor:
        """What becomes of draws `[m, B P]` of the Gaussian node."""
        if self.normalisation is None:
            return self.phi(h)
        centred = h - h.mean(-1, keepdim=True)
        return self.phi(centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt())
