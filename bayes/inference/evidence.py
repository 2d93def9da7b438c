"""Laplace's estimate of a network's evidence, for the numbers that are not weights.

Those are h, the likelihood's parameters and drawn variances of the prior. Maximising the density of
weights and h together is no way to find them: a network that passes through its data is given no
noise. With the weights integrated out (MacKay 1992; Immer et al. 2021, 2104.04975),

    log p(y, h) = log p(y | f, h) + log p(w, h) + g' P^-1 g / 2 - log det P / 2,  P = I + J' L J

about weights w, whitened; f are outputs at the rows, J their derivatives in w, L the curvature of
the likelihood in f, g the gradient of the first two terms in w, which is zero at a mode. The third
term is what a step to the mode of the linearised network gains (Antoran et al. 2022, 2206.08900):
with it the estimate is exact in h for linear networks with Gaussian noise, wherever w is. The
weights themselves, not the whitened ones, stay where they are while h moves, so that f and all but
the scale of J do.

A network follows its linearisation for short steps only, so that h and w move in turns: h by no
more than e^2 in a variance, w to its mode there, and only while the evidence grows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes.inference.ascent import polished
from bayes.inference.log_density import HasParts, value_and_gradient

__all__ = ["Evidence", "blocks_of_rows", "jacobian"]

# Numbers of a block of derivatives of outputs in weights.
_BLOCK = 2**25


def jacobian(model: HasParts, position: Tensor, free: Tensor, rows: Tensor) -> Tensor:
    """Derivatives of outputs in whitened weights, `[rows, k, F]`.

    Args:
        model: The network.
        position: Where, `[d]`.
        free: Numbers of the F weights.
        rows: Numbers of training rows.
    """

    def of_row(some: Tensor, row: Tensor) -> Tensor:
        moved = position.index_copy(0, free, some)
        return model.functions(moved, index=row.unsqueeze(0))[0]

    # row by row, whose derivatives pass through no other rows
    jacobians = torch.func.vmap(torch.func.jacrev(of_row), (None, 0))
    found: Tensor = jacobians(position[free], rows)
    return found.detach()


def blocks_of_rows(model: HasParts, num_outputs: int, free: Tensor) -> tuple[Tensor, ...]:
    """Numbers of the training rows whose derivatives are formed at once."""
    size = max(1, _BLOCK // (num_outputs * len(free)))
    return torch.arange(model.num_rows, device=free.device).split(size)


class Evidence:
    """log p(y, h) about a position, as a function of h.

    Args:
        model: The network.
        position: Whitened weights and h, `[d]`.
    """

    def __init__(self, model: HasParts, position: Tensor) -> None:
        self.model, self.position = model, position
        with torch.no_grad():
            self.f = model.functions(position)
            self.scales = model.scales(position)
        every = torch.arange(model.num_weights, device=position.device)
        blocks = blocks_of_rows(model, self.f.shape[-1], every)
        self.jacobian = torch.cat([jacobian(model, position, every, rows) for rows in blocks])

    @property
    def start(self) -> Tensor:
        """h of the position."""
        return self.position[self.model.num_weights :]

    def position_at(self, h: Tensor) -> Tensor:
        """The same weights under other h, `[d]`."""
        eps = self.position[: self.model.num_weights]
        scales = self.model.scales(torch.cat([eps, h]))
        return torch.cat([eps * self.scales / scales, h])

    def __call__(self, h: Tensor) -> Tensor:
        """In nats, with what the step to the linearised mode gains; differentiable."""
        value, gain = self._terms(h)
        return value + gain

    def here(self) -> float:
        """In nats, at the position itself."""
        with torch.no_grad():
            return float(self._terms(self.start)[0])

    def _terms(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """All but the gain, and the gain."""
        model, position = self.model, self.position_at(h)
        J = self.jacobian * (model.scales(position) / self.scales)
        L = model.likelihood_curvature(self.f, position)

        def likelihood(f: Tensor) -> Tensor:
            return model.log_likelihood_of(f, position).sum()

        slope, value = torch.func.grad_and_value(likelihood)(self.f)
        gradient = torch.einsum("nkd,nk->d", J, slope) - position[: model.num_weights]
        n, k, d = J.shape
        if n * k < d:  # by the matrix of rows
            flat = J.flatten(0, 1)
            kernel = (flat @ flat.mT).unflatten(0, (n, k))
            inner = torch.einsum("nkl,nlm->nkm", L, kernel).flatten(0, 1)
            inner = inner + torch.eye(n * k, dtype=J.dtype, device=J.device)
            along = flat @ gradient
            weighted = torch.einsum("nkl,nl->nk", L, along.unflatten(0, (n, k))).flatten()
            gain = gradient.square().sum() - along @ torch.linalg.solve(inner, weighted)
            log_det = torch.linalg.slogdet(inner)[1]
        else:
            precision = torch.einsum("nkd,nkl,nle->de", J, L, J)
            precision = precision + torch.eye(d, dtype=J.dtype, device=J.device)
            factor = torch.linalg.cholesky(precision)
            gain = (
                torch.linalg.solve_triangular(factor, gradient.unsqueeze(-1), upper=False)
                .square()
                .sum()
            )
            log_det = 2 * factor.diagonal().log().sum()
        constant = d * math.log(2 * math.pi)
        return value + model.log_prior(position) + 0.5 * (constant - log_det), 0.5 * gain

    def improved(self, radius: float) -> Tensor:
        """h towards the largest evidence, no number by more than `radius`."""

        def objective(some: Tensor) -> tuple[Tensor, Tensor]:
            return value_and_gradient(lambda h: self(h[0]).unsqueeze(0), some)

        step = polished(objective, self.start.unsqueeze(0))[0] - self.start
        return self.start + step * (radius / step.abs().max().clamp_min(radius))

    def precision(self) -> Tensor:
        """Minus its second derivatives at the position, `[p, p]`.

        In directions in which these are not positive, as they may be where a network has kinks and
        the search ends between them, those of the prior.
        """
        weights = self.position[: self.model.num_weights]

        def log_prior(h: Tensor) -> Tensor:
            return self.model.log_prior(torch.cat([weights, h]))

        # not by `torch.func.hessian`, which turns float32 into float64 on its way
        found, prior = (
            -torch.func.jacrev(torch.func.grad(function))(self.start).detach()
            for function in (self, log_prior)
        )
        values, vectors = torch.linalg.eigh((found + found.mT) / 2)
        others = ((vectors.mT @ prior) * vectors.mT).sum(-1)
        return (vectors * torch.where(values > 0, values, others)) @ vectors.mT
