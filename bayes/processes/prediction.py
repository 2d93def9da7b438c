"""Predictions of exact processes at many queries, without their joint covariance.

Means and variances at q queries cost q times the number of rows; the q x q covariance is another
matter. Where it would be the larger part, the marginals are computed in blocks of queries, and the
covariance only once somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from botorch.models.utils import gpt_posterior_settings
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_dense, to_linear_operator
from linear_operator.operators import DiagLinearOperator, LinearOperator
from torch import Tensor

from bayes.processes.deferred_covariance import DeferredCovariance
from bayes.processes.marginal_likelihood import exact_solves
from bayes.processes.rows import ProcessRows

__all__ = ["conditional"]

# Queries whose covariance is computed with their marginals: acquisition functions ask for it.
_JOINT_QUERIES = 512
_JOINT_NUMBERS = 2**24
# Covariances between queries and rows in one block.
_BLOCK_NUMBERS = 2**20


def conditional(process: ProcessRows, X: Tensor) -> MultivariateNormal:
    """Posterior of f on the model's scale.

    Args:
        process: In evaluation mode.
        X: Queries after the input transform, `[..., q, d]`; of several outputs `[..., 1, q, d]`.

    Returns:
        Mean `[..., q]`, of several outputs `[..., m, q]`. The covariance of many queries is a
        `DeferredCovariance`; asking for it after the hyperparameters or the data have changed
        raises ValueError.
    """
    with process.conditioned():
        return _conditional(process, X)


def _conditional(process: ProcessRows, X: Tensor) -> MultivariateNormal:
    rows = _common_rows(process)
    queries, outputs = X.shape[-2], process.num_outputs
    numbers = outputs * X.shape[:-1].numel() * (process.train_targets.shape[-1] + queries)
    few = queries <= _JOINT_QUERIES and numbers <= _JOINT_NUMBERS
    if few and (queries > 1 or rows is None):
        return _joint(process, X, rows)
    if rows is None:
        mean, variance = _marginals(process, X, process.prediction_strategy.train_inputs[0])
    else:
        mean, variance = (
            _like_queries(value, X, outputs)
            for value in _marginals(process, X.reshape(-1, X.shape[-1]), rows)
        )
    if queries == 1:
        return MultivariateNormal(mean, to_linear_operator(variance.unsqueeze(-1)))
    unchanged = process.same_as_now()

    def covariance() -> LinearOperator:
        if not unchanged():
            # no RuntimeError, after which linear_operator would try other factorisations
            raise ValueError(
                f"The covariance of these {queries} queries was not computed yet, and the "
                f"{type(process).__name__} has changed since: call posterior(X) again."
            )
        with _solver(), process.conditioned():
            return _joint(process, X, rows).lazy_covariance_matrix

    return MultivariateNormal(mean, DeferredCovariance(variance, covariance=covariance))


def _common_rows(process: ProcessRows) -> Tensor | None:
    """The training rows `[n, d]` if all batches and outputs have them and one kernel."""
    rows = process.train_inputs[0]
    if process.covar_module.batch_shape or process._input_batch_shape:
        return None
    if rows.dim() == 2:
        return rows
    return rows[0] if process.num_outputs > 1 and rows.dim() == 3 else None


def _joint(process: ProcessRows, X: Tensor, rows: Tensor | None) -> MultivariateNormal:
    """Posterior of f at X; common rows meet all queries at once instead of batch by batch."""
    if rows is None:
        joint = process(X)
        mean, covariance = joint.mean, joint.lazy_covariance_matrix
    else:
        kernel, strategy = process.covar_module, process.prediction_strategy
        cross = to_dense(kernel(X.reshape(-1, X.shape[-1]), rows)).unflatten(0, X.shape[:-1])
        mean = strategy.exact_predictive_mean(process.mean_module(X), cross)
        covariance = strategy.exact_predictive_covar(to_dense(kernel(X)), cross)
    # outputs of one noise, and fantasies, share a covariance
    return MultivariateNormal(mean, covariance.expand(*mean.shape, mean.shape[-1]))


def _marginals(process: ProcessRows, X: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances `[..., q]` of f at X `[..., q, d]` given rows `[..., n, d]`."""
    batch = torch.broadcast_shapes(X.shape[:-2], rows.shape[:-2])
    X, rows = X.expand(*batch, *X.shape[-2:]), rows.expand(*batch, *rows.shape[-2:])
    size = max(1, _BLOCK_NUMBERS // (batch.numel() * rows.shape[-2]))
    strategy, kernel = process.prediction_strategy, process.covar_module
    means, variances = [], []
    for block in X.split(size, dim=-2):
        covariance = to_dense(kernel(block, rows))
        prior = DiagLinearOperator(kernel(block, diag=True))
        means.append(strategy.exact_predictive_mean(process.mean_module(block), covariance))
        posterior = strategy.exact_predictive_covar(prior, covariance)
        variance = posterior.diagonal(dim1=-1, dim2=-2)
        variances.append(variance.expand_as(means[-1]))  # outputs of one noise share it
    return torch.cat(means, dim=-1), torch.cat(variances, dim=-1)


def _like_queries(values: Tensor, X: Tensor, outputs: int) -> Tensor:
    """Values `[N]` or `[m, N]` of all queries in the shape of X `[..., q, d]`, without d."""
    if outputs == 1:
        return values.reshape(X.shape[:-1])
    *batch, _, queries, _ = X.shape
    return values.reshape(outputs, *batch, queries).movedim(0, -2)


@contextmanager
def _solver() -> Iterator[None]:
    with exact_solves(), gpt_posterior_settings():
        yield
