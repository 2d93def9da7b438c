"""The marginal likelihood of exact processes, and the exact solves that it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gpytorch
import linear_operator
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator import to_dense
from torch import Tensor

from bayes.log_priors import log_priors
from bayes.processes.quadratic_form import quadratic_and_log_det

__all__ = ["JointMarginalLogLikelihood", "exact_solves", "relative_jitter"]


@contextmanager
def exact_solves() -> Iterator[None]:
    """Cholesky factorisations whatever the size, whatever other imports set globally.

    Importing BoTorch changes GPyTorch's global solver settings; these are the ones this package
    is tested with.
    """
    with ExitStack() as stack:
        for setting in (
            linear_operator.settings.max_cholesky_size(2**31),
            linear_operator.settings.cholesky_max_tries(6),
            linear_operator.settings.fast_computations(
                covar_root_decomposition=False, log_prob=False, solves=False
            ),
            gpytorch.settings.max_eager_kernel_size(2**31),
        ):
            stack.enter_context(setting)
        yield


@contextmanager
def relative_jitter(diagonal: Tensor) -> Iterator[None]:
    """What factorisations add to a diagonal where they must, in units of its mean.

    The first try adds GPyTorch's usual 1e-6 (float32) or 1e-8 (float64) of the mean. An absolute
    jitter would be lost in the rounding of a large kernel and drown a small one.

    Args:
        diagonal: Diagonal of the matrix that is factorised, any shape.
    """
    scale = float(diagonal.detach().mean())
    if not 0 < scale < float("inf"):
        yield
        return
    with linear_operator.settings.cholesky_jitter(
        float_value=1e-6 * scale, double_value=1e-8 * scale
    ):
        yield


class JointMarginalLogLikelihood(ExactMarginalLogLikelihood):
    """Log marginal likelihood of all rows and outputs, plus each log prior once, per row.

    GPyTorch's own returns one value per output, each with all priors added, so that the priors of
    a kernel shared by m outputs count m times.
    """

    def forward(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """The objective, a scalar, in nats per row.

        Args:
            function_dist: Prior of f at the training rows, `[..., n]` with outputs as batch.
            target: Outcomes on the model's scale, of the same shape.
            *params: Passed to the likelihood.
            **kwargs: Passed to the likelihood.
        """
        total = self.evidence(function_dist, target, *params, **kwargs)
        return (total + log_priors(self.model)) / function_dist.event_shape.numel()

    def evidence(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Log density of the outcomes without the hyperparameters' priors, a scalar in nats.

        Args:
            function_dist: See `forward`.
            target: See `forward`.
            *params: Passed to the likelihood.
            **kwargs: Passed to the likelihood.
        """
        prior = self.likelihood(function_dist, *params, **kwargs)
        covariance = to_dense(prior.lazy_covariance_matrix)
        with relative_jitter(covariance.diagonal(dim1=-2, dim2=-1)):
            quadratic, log_det = quadratic_and_log_det(covariance, target)
        return self.log_marginal(quadratic.sum(), log_det.sum(), target.numel())

    def log_marginal(self, quadratic: Tensor, log_det: Tensor, size: int) -> Tensor:
        """Log density of the targets, a scalar in nats.

        Args:
            quadratic: y' C^-1 y of all targets y and their covariance C, noise included.
            log_det: log |C|.
            size: Number of targets.
        """
        return -0.5 * (quadratic + log_det + size * math.log(2 * math.pi))
