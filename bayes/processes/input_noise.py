"""Noise whose variance is a function of the inputs, learnt with everything else.

    y = f(x) + e,  e ~ N(0, exp(b + h(x))),  h ~ GP(0, k_h)

(Goldberg, Williams & Bishop 1998). h is represented by its values at M inputs Z, as
h(x) = k_h(x, Z) L^-T v with L L' = k_h(Z, Z) and v ~ N(0, I). Predictions are those of one v, the
most likely (Kersting et al. 2007). Hyperparameters that are chosen together with it follow chance
in the residuals: a large k_h allows any h with a small v. With v integrated out, by Laplace's
approximation, they do not:

    log p(y) = log p(y | v) + log N(v; 0, I) + M log(2 pi) / 2 - log det(I + A' F A) / 2,

A = k_h(X, Z) L^-T, and F the expected information of y about the log noise variances of its rows
(that of a normal distribution about parameters of its covariance S, e.g. Rasmussen & Williams 2006,
eq. 5.9), F_ij = (S^-1)_ij^2 D_i D_j / 2 with D the noise variances.
"""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from gpytorch.likelihoods.noise_models import Noise
from gpytorch.priors import NormalPrior
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor, nn

from bayes.noise import NoiseLevel
from bayes.processes.marginal_likelihood import JointMarginalLogLikelihood, relative_jitter
from bayes.processes.quadratic_form import quadratic_log_det_and_inverse

__all__ = ["InputNoise", "IntegratedNoiseLogLikelihood"]

_LEAST = 1e-7  # of the outcomes' variance


class InputNoise(_GaussianLikelihoodBase):
    """A Gaussian likelihood whose log noise variance is a function of the inputs.

    Args:
        kernel: k_h, prior covariance of the log noise variance.
        points: Z, `[M, d]`, on the model's scale.
        num_outputs: Each has a function of its own.
    """

    def __init__(self, kernel: Kernel, points: Tensor, num_outputs: int) -> None:
        super().__init__(_NoiseOfInputs(kernel, points, num_outputs))


class _NoiseOfInputs(Noise):
    def __init__(self, kernel: Kernel, points: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("points", points)
        outputs = [num_outputs] if num_outputs > 1 else []
        self.whitened = nn.Parameter(points.new_zeros(*outputs, len(points)))
        self.log_mean = nn.Parameter(points.new_full((*outputs, 1), -2.0))
        self.register_prior("log_mean_prior", NormalPrior(-3.0, 3.0), "log_mean")

    @property
    def level(self) -> NoiseLevel | None:
        """Of inputs far from all others."""
        log_mean = self.log_mean
        if not log_mean.requires_grad:
            return None
        prior = self.log_mean_prior
        return NoiseLevel(
            log_mean.exp,
            lambda noise: log_mean.data.copy_(noise.log()),
            lambda: prior.log_prob(log_mean).sum(),
        )

    def basis(self, X: Tensor) -> Tensor:
        """k_h(X, Z) L^-T at inputs `[..., n, d]`, `[..., n, M]`: h is its product with v."""
        covariance = to_dense(self.kernel(self.points))
        with relative_jitter(covariance.diagonal()):
            eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            # always a little: what is nearly singular has gradients of rounding errors
            factor = psd_safe_cholesky(covariance + 1e-6 * covariance.diagonal().mean() * eye)
        cross = to_dense(self.kernel(X, self.points))
        return torch.linalg.solve_triangular(factor.mT, cross, upper=True, left=False)

    def log_variance(self, X: Tensor, basis: Tensor | None = None) -> Tensor:
        """b + h at inputs `[..., n, d]`; `[..., n]`, of several outputs `[..., m, n]`."""
        if basis is None:
            basis = self.basis(X)  # for all outputs, or one for each
        return self.log_mean + (basis @ self.whitened.unsqueeze(-1)).squeeze(-1)

    def forward(
        self, *params: Any, shape: torch.Size | None = None, **kwargs: Any
    ) -> DiagLinearOperator:
        (X,) = params if isinstance(params[0], Tensor) else params[0]
        variance = self.log_variance(X).exp() + _LEAST
        if shape is not None:  # rows may be those of one output for all
            variance = variance.expand(torch.broadcast_shapes(variance.shape, shape))
        return DiagLinearOperator(variance)


class IntegratedNoiseLogLikelihood(JointMarginalLogLikelihood):
    """The marginal likelihood of a model with `InputNoise`, h integrated out; see the module."""

    def evidence(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Log density of the outcomes, a scalar in nats, by Laplace's approximation at v."""
        (X,) = params
        noise: Any = self.likelihood.noise_covar
        prior = to_dense(function_dist.lazy_covariance_matrix)
        covariance = to_dense(self.likelihood(function_dist, X).lazy_covariance_matrix)
        with relative_jitter(covariance.diagonal(dim1=-2, dim2=-1)):
            quadratic, log_det, inverse = quadratic_log_det_and_inverse(covariance, target)
        given = self.log_marginal(quadratic.sum(), log_det.sum(), target.numel())
        basis = noise.basis(X)
        of_h = noise.log_variance(X, basis).exp()
        variance = (covariance - prior).diagonal(dim1=-2, dim2=-1)
        slope = variance * of_h / (of_h + _LEAST)  # what rows weigh is in the variance
        known = getattr(self.likelihood, "known", None)
        if known is not None:
            slope = torch.where(known.isnan(), slope, 0.0)
        weighed = slope.unsqueeze(-1) * basis
        precision = 0.5 * weighed.mT @ inverse.square() @ weighed
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
        log_det_of_v = 2 * psd_safe_cholesky(precision + eye).diagonal(dim1=-2, dim2=-1).log().sum()
        return given - 0.5 * noise.whitened.square().sum() - 0.5 * log_det_of_v
