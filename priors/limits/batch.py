"""The kernel of a whole batch for networks with batch normalisation.

Batch normalisation makes every output depend on the whole batch, so there is no kernel of single
inputs. Within one batch the limit exists (Yang et al. 2019, 1902.08129): the units of the
normalised layer are independent copies of the Gaussian vector h over the batch (and positions),
and

    y = (h - mean(h)) / sqrt(var(h) + eps),    moment = E[phi(y) phi(y)^T],

an expectation over as many variables as the batch has points, here by quasi-Monte Carlo. For ReLU
it is a one-dimensional integral (their Theorem 3.2, `relu_batch_norm`), the test of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from priors.gaussian.activations import ABReLU, Activation
from priors.gaussian.quasi_monte_carlo import cholesky
from priors.limits.kinds import LinearMap, kind_of
from priors.limits.moments import Moments, Points
from priors.limits.pairs import Pairs
from priors.programs.nodes import BatchNormalise, Nonlinear
from priors.programs.registry import UnsupportedOperationError

__all__ = ["BatchMoments", "relu_batch_norm"]


def relu_batch_norm(covariance: Tensor) -> Tensor:
    """E[relu(y) relu(y)^T] of a normalised Gaussian vector, with eps = 0.

    Sigma' = B int_0^inf V(S (I + 2 s S)^-1) / sqrt(det(I + 2 s S)) ds, S = G Sigma G, G the
    centring matrix and V the ReLU dual (Yang et al. 2019, Theorem 3.2). By Gauss-Legendre
    quadrature in log s.

    Args:
        covariance: Sigma, `[B, B]`, of rank above 1 after centring.

    Returns:
        `[B, B]`, of trace B / 2.
    """
    import numpy

    size = covariance.shape[-1]
    centred = covariance.double() - covariance.double().mean(-1, keepdim=True)
    centred = centred - centred.mean(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred)
    values = values.clamp_min(0)
    nodes, weights = numpy.polynomial.legendre.leggauss(400)
    # s from 1e-12 to 1e12 of the spectrum's scale
    reach = 12 * math.log(10)
    log_s = torch.from_numpy(nodes).to(values) * reach - values.max().log()
    s = log_s.exp()
    shrunk = values / (1 + 2 * s[:, None] * values)
    inner = (vectors * shrunk[:, None, :]) @ vectors.mT
    q = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    relu = ABReLU()
    dual = relu.dual(relu, q[:, :, None], q[:, None, :], inner)
    dual = torch.diagonal_scatter(dual, relu.second_moment(q), dim1=-2, dim2=-1)
    mass = (
        torch.from_numpy(weights).to(values)
        * reach
        * s
        * (1 + 2 * s[:, None] * values).log().sum(-1).div(-2).exp()
    )
    return (size * (mass[:, None, None] * dual).sum(0)).to(covariance)


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

    def _sampled(self, a: int, b: int) -> Tensor:
        """E[a b^T] over draws of the Gaussian vectors underneath."""
        fields = [self._field(index) for index in (a, b)]
        sources = list(dict.fromkeys(source for source, _ in fields))
        n = self._points_of_batch.x.shape[-2]
        sizes = [self.program.positions(s) or 1 for s in sources]
        blocks = []
        for s, p in zip(sources, sizes, strict=True):
            row = []
            for t, r in zip(sources, sizes, strict=True):
                block = self.moment(s, t)
                if block is None:
                    block = self._points_of_batch.x.new_zeros(n, n, p, r)
                row.append(block.reshape(n, n, p, r).transpose(1, 2).reshape(n * p, n * r))
            blocks.append(torch.cat(row, 1))
        root = cholesky(torch.cat(blocks).double())
        draws = self.settings.quadrature.normals(len(root), root) @ root.mT
        parts = dict(zip(sources, draws.split([n * p for p in sizes], -1), strict=True))
        left, right = (function(parts[source]) for source, function in fields)
        value = left.mT @ right / len(draws)
        p, r = (self.program.positions(i) or 1 for i in (a, b))
        value = value.reshape(n, p, n, r).transpose(1, 2).to(self._points_of_batch.x.dtype)
        if self.program.positions(b) is None:
            value = value.squeeze(-1)
        return value.squeeze(2) if self.program.positions(a) is None else value

    def _field(self, index: int) -> tuple[int, Callable[[Tensor], Tensor]]:
        """The Gaussian node underneath, and what becomes of its draws `[m, B P]`."""
        node = self.program.nodes[index]
        phi: Activation = ABReLU(1.0, 1.0)
        inner = index
        if isinstance(node, Nonlinear):
            phi, inner = self.activation(index)
        below = self.program.nodes[inner]
        if not isinstance(below, BatchNormalise):
            return inner, phi
        eps = below.eps

        def normalise(h: Tensor) -> Tensor:
            centred = h - h.mean(-1, keepdim=True)
            return phi(centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt())

        return below.source, normalise
