"""Queries of a process whose scale is unknown: what they are given each scale, and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from botorch.models.utils import gpt_posterior_settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.settings import min_variance
from linear_operator import to_dense, to_linear_operator
from linear_operator.operators import DiagLinearOperator, LinearOperator
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from bayes.conditioning import unrepeated
from bayes.processes.deferred_covariance import DeferredCovariance
from bayes.processes.marginal_likelihood import exact_solves
from bayes.processes.scale_quadrature import ScaleNodes, integrate
from bayes.processes.scaled_rows import FactoredRows, ScaledRows, log_likelihoods
from priors.posteriors.protocol import PredictivePosterior

__all__ = ["Queries", "own_unit"]

# Queries whose covariance is computed with their marginals, and numbers in one block of others.
_JOINT_QUERIES = 512
_BLOCK_NUMBERS = 2**20


class Queries:
    """Covariances of queries among themselves and with the rows, for a scale of 1.

    Args:
        process: A `ScaleMixtureProcess`, within `conditioned`.
        X: Queries after the input transform, `[..., q, d]`.
        observation_noise: As for `posterior`.
        outputs: Those asked for.
    """

    def __init__(
        self,
        process: Any,
        X: Tensor,
        observation_noise: bool | Tensor,
        outputs: Sequence[int],
    ) -> None:
        self._process, self._outputs = process, list(outputs)
        several = process.num_outputs > 1
        self._X = X.unsqueeze(-3) if several else X
        self._rows = unrepeated(process.train_inputs[0])
        kernel = process.covar_module
        size = max(1, _BLOCK_NUMBERS // self._rows.shape[-2])
        blocks = self._X.split(size, dim=-2)
        cross = torch.cat([to_dense(kernel(block, self._rows)) for block in blocks], -2)
        self._prior: Tensor | None = None
        if X.shape[-2] <= _JOINT_QUERIES:
            self._prior = to_dense(kernel(self._X))
            variance = self._prior.diagonal(dim1=-2, dim2=-1)
        else:
            variance = torch.cat([kernel(block, diag=True) for block in blocks], -1)
        mean = variance.new_zeros(
            *torch.broadcast_shapes(variance.shape[:-1], process.train_targets.shape[:-1]),
            variance.shape[-1],
        )
        nothing = MultivariateNormal(mean, DiagLinearOperator(torch.zeros_like(mean)))
        noisy = process._apply_noise(self._X, nothing, observation_noise)
        noise = noisy.lazy_covariance_matrix.diagonal(dim1=-2, dim2=-1)
        self._cross, self._variance, self._noise = (
            part if several else part.unsqueeze(dim)
            for part, dim in ((cross, -3), (variance, -2), (noise, -2))
        )
        self._unchanged = process.same_as_now()

    def given(
        self, rows: ScaledRows | FactoredRows, transform: AffineTransform | None
    ) -> Callable[[Tensor], PredictivePosterior]:
        """The posterior given scales `[S]`, as a function of them.

        Args:
            rows: With or without gradients to them.
            transform: To the units of Y.
        """
        seen = rows.seen(self._cross)
        outputs = self._outputs

        def posterior(s: Tensor) -> PredictivePosterior:
            each = s[:, None, None]
            means, reductions = rows.means_and_reductions(seen, s)
            noise = self._noise.double().unsqueeze(-3)
            noise = each * noise if self._process.scale_noise else noise
            variance = (each * self._variance.double().unsqueeze(-3) - reductions).clamp_min(0)
            variance = (variance + noise).expand(means.shape)
            unit = own_unit(variance, self._X.dtype)

            def covariance() -> LinearOperator:
                with _solving(), self._process.conditioned():
                    prior = each.unsqueeze(-1) * self._prior_covariance().double().unsqueeze(-4)
                whole = prior - rows.covariance_reductions(seen, s) + torch.diag_embed(noise)
                whole = whole.expand(*means.shape, means.shape[-1])[..., outputs, :, :]
                units = unit[..., outputs, :]
                return to_linear_operator(
                    (whole / units.unsqueeze(-1) / units.unsqueeze(-2)).to(self._X)
                )

            diagonal = (variance / unit.square())[..., outputs, :].to(self._X)
            # GPyTorch does so with a warning: large scales leave nothing but rounding
            diagonal = diagonal.clamp_min(min_variance.value(diagonal.dtype))
            lazy = DeferredCovariance(diagonal, covariance=covariance)
            return self._process.gaussians(
                means[..., outputs, :], lazy, unit[..., outputs, :], transform
            )

        return posterior

    def growing(self, rows: ScaledRows) -> Tensor:
        """Where `[..., q, m]` the variance has no bound as s grows."""
        limit = rows.limit_of_variance(rows.seen(self._cross), self._variance.double())
        grows = limit > 1e-8 * self._variance
        grows = grows.expand(*grows.shape[:-2], self._process.num_outputs, -1)
        return grows[..., self._outputs, :].mT

    def joint(
        self, rows: ScaledRows, nodes: ScaleNodes, transform: AffineTransform | None
    ) -> Callable[[Tensor], Tensor]:
        """Log density of all queries together, as a function of values `[..., q, m]`.

        It is the evidence of rows and queries less that of the rows, both integrals over the scale:
        the queries narrow its posterior as rows do.

        Args:
            rows: The training rows.
            nodes: Of their posterior of the scale.
            transform: To the units of Y.
        """

        process, outputs = self._process, self._outputs

        def chosen(part: Tensor, dim: int) -> Tensor:
            """Of the outputs asked for, or the one that all share."""
            index = torch.tensor(outputs, device=part.device)
            return part if part.shape[dim] == 1 else part.index_select(dim, index)

        def log_density(Y: Tensor) -> Tensor:
            z = Y if transform is None else transform.inv(Y)
            self._refuse_changes()
            with _solving(), process.conditioned():
                K, noise, y = process.row_parts()
                matrix = _bordered(K, self._cross, self._prior_covariance())
                matrix, ends = chosen(matrix, -3), chosen(self._noise, -2)
                known, given = chosen(noise, -2), chosen(y, -2)
                together = (
                    matrix,
                    _beside(known, ends.expand(*ends.shape[:-1], z.shape[-2])),
                    _beside(given, z.mT),
                )
                joint = ScaledRows(*together, process.scale_noise)
                others = ScaledRows(chosen(K, -3), known, given, process.scale_noise)

                def log_prior(t: Tensor) -> Tensor:
                    """Given the outcomes of outputs that are not asked for."""
                    density: Tensor = process.scale_prior.log_density(t)
                    if y.shape[-2] == given.shape[-2]:
                        return density
                    s = t.exp()
                    return density + rows.log_likelihoods(s) - others.log_likelihoods(s)

                landmarks = process.landmarks(joint)
                of_joint = integrate(
                    lambda t: log_prior(t) + joint.log_likelihoods(t.exp()), landmarks
                )
                found = (
                    log_prior(of_joint.t)
                    + log_likelihoods(joint, *together, of_joint.scales)
                    + of_joint.log_weights
                ).logsumexp(-1)
                evidence = (
                    process.scale_prior.log_density(nodes.t)
                    + log_likelihoods(rows, K, noise, y, nodes.scales)
                    + nodes.log_weights
                ).logsumexp(-1)
            if transform is not None:
                unit = torch.as_tensor(transform.scale, device=z.device).abs().log()
                found = found - unit.expand(z.shape).sum((-2, -1))
            return (found - evidence).to(Y)

        return log_density

    def _prior_covariance(self) -> Tensor:
        """`[..., m or 1, q, q]`."""
        if self._prior is None:
            self._refuse_changes()
            self._prior = to_dense(self._process.covar_module(self._X))
        return self._prior if self._process.num_outputs > 1 else self._prior.unsqueeze(-3)

    def _refuse_changes(self) -> None:
        if not self._unchanged():
            # no RuntimeError, after which linear_operator would try other factorisations
            raise ValueError(
                f"The covariance of these {self._X.shape[-2]} queries was not computed yet, and "
                f"the {type(self._process).__name__} has changed since: call posterior(X) again."
            )


def own_unit(variance: Tensor, dtype: torch.dtype) -> Tensor:
    """The deviation of every query given every scale, of the shape of the variances.

    GPyTorch has an absolute smallest variance, which is nothing in these units. One unit for all
    queries of a scale would not do: where the scale is large and the noise is not scaled, variances
    at the rows are that of the noise, and others beyond 1e10 times as much.

    Args:
        variance: `[..., S, m, q]`.
        dtype: In which the units and their squares are numbers.
    """
    limits = torch.finfo(dtype)
    return variance.detach().clamp(limits.tiny, limits.max).sqrt()


def _bordered(K: Tensor, cross: Tensor, prior: Tensor) -> Tensor:
    """Covariance of rows `[..., n, n]` and queries `[..., q, q]` together."""
    batch = torch.broadcast_shapes(K.shape[:-2], cross.shape[:-2], prior.shape[:-2])
    K, cross, prior = (part.expand(*batch, *part.shape[-2:]) for part in (K, cross, prior))
    return torch.cat([torch.cat([K, cross.mT], -1), torch.cat([cross, prior], -1)], -2)


def _beside(before: Tensor, after: Tensor) -> Tensor:
    """`[..., n]` and `[..., q]` as `[..., n + q]`; the other dimensions broadcast."""
    batch = torch.broadcast_shapes(before.shape[:-1], after.shape[:-1])
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in (before, after)], -1)


@contextmanager
def _solving() -> Iterator[None]:
    with exact_solves(), gpt_posterior_settings():
        yield
