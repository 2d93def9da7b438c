"""The covariance s K + N of training rows, for every scale s from one eigendecomposition.

With L L' = K + N and L^-1 N L^-T = U diag(share) U', the share of each direction that is noise,

    s K + N = L U diag(c) U' L',   c = s (1 - share) + share,

so that solves and determinants at any s take the time of a product with P = L^-T U. Unlike a
decomposition of the kernel whitened by the noise it needs no noise at all. Where the scale
multiplies the noise too, c = s and nothing is decomposed but K + N.

Everything is in float64, whatever the rows: in float32 the smallest eigenvalues would be rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

__all__ = ["FactoredRows", "ScaledRows", "log_likelihoods"]

_NOTHING = 1e-10  # a share of the kernel in a direction that is rounding
_NO_WEIGHT = 1e-20  # of the largest


class ScaledRows:
    """Rows conditioned on, at all scales.

    Args:
        covariance: K, `[*batch, m or 1, n, n]`.
        noise: Diagonal of N, `[*batch, m or 1, n]`.
        targets: Outcomes y, `[*batch, m, n]`; the outputs share s.
        scale_noise: Whether the covariance is s (K + N).

    Gradients do not pass.
    """

    def __init__(
        self, covariance: Tensor, noise: Tensor, targets: Tensor, scale_noise: bool
    ) -> None:
        covariance, noise = covariance.detach().double(), noise.detach().double()
        factor = psd_safe_cholesky(covariance + torch.diag_embed(noise))
        self.scale_noise = scale_noise
        self.targets = targets.detach().double()
        self.log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if scale_noise:
            vectors = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            self.noise_share = factor.new_zeros(factor.shape[:-1])
        else:
            white = torch.linalg.solve_triangular(
                factor, torch.diag_embed(noise.sqrt()), upper=False
            )
            share, vectors = torch.linalg.eigh(white @ white.mT)
            self.noise_share = share.clamp(0, 1)
        self.basis = torch.linalg.solve_triangular(factor.mT, vectors.expand_as(factor), upper=True)
        self.white = (self.basis.mT @ self.targets.unsqueeze(-1)).squeeze(-1)  # [*batch, m, n]

    @property
    def size(self) -> int:
        """Numbers that tell of s: rows times outputs."""
        return self.targets.shape[-2:].numel()

    def rank(self) -> int:
        """The power of 1 / sqrt(s) by which the likelihood falls for large s, the least of a batch.

        Rows times outputs, or fewer where the noise is not scaled and K is singular.
        """
        kernel = (1 - self.noise_share).expand(self.targets.shape) > _NOTHING
        return self.size if self.scale_noise else int(kernel.sum((-2, -1)).min())

    def factors(self, s: Tensor) -> Tensor:
        """c, `[*batch, m or 1, S, n]` for scales `[S]` or `[*batch, S]`."""
        s, share = s[..., None, :, None], self.noise_share.unsqueeze(-2)
        return s * (1 - share) + share

    def log_likelihoods(self, s: Tensor) -> Tensor:
        """Log densities of all outcomes given s, `[*batch, S]` for `[S]` or `[*batch, S]`."""
        square = self.white.square()
        if self.scale_noise:
            quadratic = square.sum((-2, -1)).unsqueeze(-1) / s
            log_det = self.size * s.log()
        else:
            c = self.factors(s)
            quadratic = (square.unsqueeze(-2) / c).sum(-1).sum(-2)
            log_det = c.log().sum(-1)
            log_det = log_det.expand(*log_det.shape[:-2], square.shape[-2], -1).sum(-2)
        own = self.log_det.unsqueeze(-1)
        own = own.expand(*own.shape[:-2], square.shape[-2], 1).sum(-2)
        return -0.5 * (quadratic + log_det + own + self.size * math.log(2 * math.pi))

    def seen(self, cross: Tensor) -> Tensor:
        """Covariances of queries with the rows `[..., m or 1, q, n]`, in the basis."""
        return cross.double() @ self.basis

    def means_and_reductions(self, seen: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Of f at queries.

        Args:
            seen: Of the queries, `[..., m or 1, q, n]`.
            s: `[S]`.

        Returns:
            Means `[..., S, m, q]`, and by how much the variances are below the prior ones,
            `[..., S, m or 1, q]`.
        """
        if self.scale_noise:
            mean = (seen @ self.white.unsqueeze(-1)).squeeze(-1).unsqueeze(-3)
            reduction = seen.square().sum(-1).unsqueeze(-3) * s[:, None, None]
            return mean.expand(*mean.shape[:-3], len(s), *mean.shape[-2:]), reduction
        c = self.factors(s)
        means = (seen @ (self.white.unsqueeze(-2) * s[:, None] / c).mT).movedim(-1, -3)
        return means, (seen.square() @ (s.square()[:, None] / c).mT).movedim(-1, -3)

    def covariance_reductions(self, seen: Tensor, s: Tensor) -> Tensor:
        """By how much covariances of queries are below the prior ones, `[..., S, m or 1, q, q]`."""
        c = self.factors(s).movedim(-2, -3).unsqueeze(-2)  # [*batch, S, m or 1, 1, n]
        half = seen.unsqueeze(-4) * s[:, None, None, None] / c.sqrt()
        return half @ half.mT

    def limit_of_variance(self, seen: Tensor, variance: Tensor) -> Tensor:
        """Of the variance at queries over s, for large s, `[..., m or 1, q]`.

        Args:
            seen: Of the queries.
            variance: Of f at the queries for s = 1, `[..., m or 1, q]`.
        """
        kernel = 1 - self.noise_share
        weight = torch.where(kernel > _NOTHING, 1 / kernel.clamp_min(_NOTHING), 0.0)
        return variance - (seen.square() * weight.unsqueeze(-2)).sum(-1)

    def left_out(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of each row given the others, `[*batch, S, m, n]` (or m = 1).

        Source: Rasmussen & Williams 2006, eq. 5.12.
        """
        c = self.factors(s)
        precision = self.basis.square() @ (1 / c).mT  # [*batch, m or 1, n, S]
        weights = self.basis @ (self.white.unsqueeze(-2) / c).mT
        variance = 1 / precision
        mean = self.targets.unsqueeze(-1) - variance * weights
        return mean.movedim(-1, -3), variance.expand_as(mean).movedim(-1, -3)


class FactoredRows:
    """What `ScaledRows` tells of queries, with gradients to the rows: a factor for each scale.

    For models whose rows are functions of something, as those of fantasies are of candidates.

    Args:
        covariance: See `ScaledRows`.
        noise: See there.
        targets: See there.
        scale_noise: See there.
    """

    def __init__(
        self, covariance: Tensor, noise: Tensor, targets: Tensor, scale_noise: bool
    ) -> None:
        self._covariance, self._noise = covariance.double(), noise.double()
        self._targets, self._scale_noise = targets.double(), scale_noise

    def seen(self, cross: Tensor) -> Tensor:
        return cross.double()

    def means_and_reductions(self, seen: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        factor, half = self._halves(seen, s)
        y = self._targets.unsqueeze(-3).unsqueeze(-1)  # [*batch, 1, m, n, 1]
        y = y.expand(*torch.broadcast_shapes(factor.shape[:-2], y.shape[:-2]), *y.shape[-2:])
        white = torch.linalg.solve_triangular(factor, y, upper=False)
        return (half.mT @ white).squeeze(-1), half.square().sum(-2)

    def covariance_reductions(self, seen: Tensor, s: Tensor) -> Tensor:
        half = self._halves(seen, s)[1]
        return half.mT @ half

    def _halves(self, seen: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Factors `[*batch, S, m or 1, n, n]` and L^-1 s k(rows, queries)."""
        each = s[:, None, None, None]
        noise = torch.diag_embed(self._noise).unsqueeze(-4)
        covariance = each * self._covariance.unsqueeze(-4)
        factor = psd_safe_cholesky(covariance + (each * noise if self._scale_noise else noise))
        cross = each * seen.unsqueeze(-4).mT
        return factor, torch.linalg.solve_triangular(factor, cross, upper=False)


def log_likelihoods(
    rows: ScaledRows, covariance: Tensor, noise: Tensor, targets: Tensor, s: Tensor
) -> Tensor:
    """`rows.log_likelihoods(s)` with gradients to what the rows were made of.

    Args:
        rows: Made of the next three.
        covariance: `[*batch, m or 1, n, n]`.
        noise: `[*batch, m or 1, n]`.
        targets: `[*batch, m, n]`.
        s: `[S]`.

    Returns:
        `[*batch, S]`, in float64.
    """
    found: Tensor = _LogLikelihoods.apply(
        covariance.double(), noise.double(), targets.double(), s, rows
    )
    return found


class _LogLikelihoods(torch.autograd.Function):
    # The derivative of an eigendecomposition divides by differences of eigenvalues, many of which
    # are equal; that of the result needs no such thing:
    # d log N(y; C) / dC = (a a' - C^-1) / 2 with a = C^-1 y.
    @staticmethod
    def forward(
        ctx: Any, covariance: Tensor, noise: Tensor, targets: Tensor, s: Tensor, rows: ScaledRows
    ) -> Tensor:
        ctx.rows, ctx.s = rows, s
        ctx.shapes = covariance.shape, noise.shape, targets.shape
        return rows.log_likelihoods(s)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = ctx.rows
        of_covariance, of_noise, of_targets = ctx.shapes
        # Of nodes for an integral over s all but some dozens have no weight.
        size = grads[0].abs().flatten(0, -2).amax(0) if grads[0].dim() > 1 else grads[0].abs()
        used = ~(size <= _NO_WEIGHT * size.max())  # nan stays
        s = ctx.s[used]
        g = grads[0][..., None, used, None]  # [*batch, 1, S, 1]
        gs = g * s[:, None]
        c = rows.factors(s)
        P = rows.basis
        a = (rows.white.unsqueeze(-2) / c) @ P.mT  # [*batch, m, S, n]

        def in_basis(weights: Tensor) -> Tensor:
            """Sum over scales of weights times the eigenvalues of C^-1, `[*batch, m, n]`."""
            return (weights / c).expand_as(a).sum(-2)

        full = (gs * a).mT @ a - (P * in_basis(gs).unsqueeze(-2)) @ P.mT
        if rows.scale_noise:
            diagonal = full.diagonal(dim1=-2, dim2=-1)
        else:
            inverse = (P.square() @ in_basis(g).unsqueeze(-1)).squeeze(-1)
            diagonal = (g * a.square()).sum(-2) - inverse
        y = -(g * a).sum(-2)
        return (
            0.5 * full.sum_to_size(of_covariance),
            0.5 * diagonal.sum_to_size(of_noise),
            y.sum_to_size(of_targets),
            None,
            None,
        )
