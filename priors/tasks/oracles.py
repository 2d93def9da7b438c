"""Exact posteriors and evidences of Gaussian functions: references for trained networks."""

from __future__ import annotations

import math

import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior
from priors.tasks.task import Task

__all__ = [
    "check_complete_regression",
    "gaussian_log_evidence",
    "gaussian_oracle",
    "gaussian_predictions",
]


def check_complete_regression(task: Task, name: str) -> None:
    """Refuse classes and missing values, for which what is called `name` has no formula."""
    if task.num_classes is not None or not bool(task.X.isfinite().all()):
        raise ValueError(f"The {name} supports only regression without missing values.")


def gaussian_oracle(
    task: Task, covariance: Tensor, mean: Tensor | None = None
) -> GaussianPosterior:
    """Posterior of y at the queries of `task` for Gaussian f and noise of known covariance.

    Args:
        task: B tasks of N rows, all of them counting.
        covariance: Covariance of f at all rows, `[B, N, N]`.
        mean: Mean of f at all rows, `[B, N]`; zero if None.

    Raises:
        ValueError: the noise of a task is not Gaussian, or values are missing.
    """
    n = task.num_context
    noise = task.row_noise_var.to(covariance)
    if not bool(noise.isfinite().all()):
        raise ValueError("The oracle needs Gaussian noise, but a noise variance is not finite.")
    check_complete_regression(task, "oracle")
    prior_mean = covariance.new_zeros(covariance.shape[:2]) if mean is None else mean
    residual = task.y[:, :n, 0].to(covariance) - prior_mean[:, :n]
    found, variance = gaussian_predictions(covariance, noise, residual)
    found = found + prior_mean[:, n:]
    return GaussianPosterior(
        MultivariateNormal(found.to(task.y), DiagLinearOperator(variance.to(task.y)))
    )


def gaussian_predictions(covariance: Tensor, noise_var: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of y at the rows behind the known ones, `[B, N - n]`.

    Args:
        covariance: Covariance of f at N rows, `[B, N, N]`.
        noise_var: `[B, N]`.
        y: Targets of the first n rows, `[B, n]`.
    """
    n = y.shape[1]
    root = torch.linalg.cholesky(covariance[:, :n, :n] + torch.diag_embed(noise_var[:, :n]))
    cross = torch.linalg.solve_triangular(root, covariance[:, :n, n:], upper=False)
    target = torch.linalg.solve_triangular(root, y[..., None], upper=False)
    mean = (cross.mT @ target)[..., 0]
    variance = covariance[:, n:, n:].diagonal(dim1=-2, dim2=-1) - cross.square().sum(1)
    return mean, variance.clamp_min(0) + noise_var[:, n:]


def gaussian_log_evidence(covariance: Tensor, noise_var: Tensor, y: Tensor) -> Tensor:
    """Log density of y `[B, n]` at rows of the covariance `[B, n, n]` and noise `[B, n]`, `[B]`."""
    root = torch.linalg.cholesky(covariance + torch.diag_embed(noise_var))
    target = torch.linalg.solve_triangular(root, y[..., None], upper=False)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (target.square().sum((1, 2)) + y.shape[1] * math.log(2 * math.pi)) - log_det
