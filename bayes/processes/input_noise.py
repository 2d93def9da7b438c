"""Noise whose variance is a function of the inputs, learnt with everything else.

    y = f(x) + e,  e ~ N(0, exp(b + h(x))),  h ~ GP(0, k_h)

(Goldberg, Williams & Bishop 1998). h is represented by its values at M inputs Z, as
h(x) = k_h(x, Z) L^-T v with L L' = k_h(Z, Z) and v ~ N(0, I), and the v of highest posterior is
taken (Kersting et al. 2007, most likely noise; here together with the hyperparameters, by gradients
of the marginal likelihood, not by alternating). Whitened, the prior of v does not reward a noise
that is flat.
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
from bayes.processes.marginal_likelihood import relative_jitter

__all__ = ["InputNoise"]

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

    @property
    def noise_level(self) -> NoiseLevel:
        """Of inputs far from all others."""
        log_mean: Tensor = self.noise_covar.log_mean
        return NoiseLevel(log_mean.exp, lambda noise: log_mean.data.copy_(noise.log()))


class _NoiseOfInputs(Noise):
    def __init__(self, kernel: Kernel, points: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("points", points)
        outputs = [num_outputs] if num_outputs > 1 else []
        self.whitened = nn.Parameter(points.new_zeros(*outputs, len(points)))
        self.log_mean = nn.Parameter(points.new_full((*outputs, 1), -2.0))
        self.register_prior("whitened_prior", NormalPrior(0.0, 1.0), "whitened")
        self.register_prior("log_mean_prior", NormalPrior(-3.0, 3.0), "log_mean")

    def log_variance(self, X: Tensor) -> Tensor:
        """b + h at inputs `[..., n, d]`; `[..., n]`, of several outputs `[..., m, n]`."""
        covariance = to_dense(self.kernel(self.points))
        with relative_jitter(covariance.diagonal()):
            eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            # always a little: what is nearly singular has gradients of rounding errors
            factor = psd_safe_cholesky(covariance + 1e-6 * covariance.diagonal().mean() * eye)
        weights = torch.linalg.solve_triangular(factor.mT, self.whitened.unsqueeze(-1), upper=True)
        h = to_dense(self.kernel(X, self.points)) @ weights  # one, or one for each output
        return self.log_mean + h.squeeze(-1)

    def forward(
        self, *params: Any, shape: torch.Size | None = None, **kwargs: Any
    ) -> DiagLinearOperator:
        (X,) = params if isinstance(params[0], Tensor) else params[0]
        variance = self.log_variance(X).exp() + _LEAST
        if shape is not None:  # rows may be those of one output for all
            variance = variance.expand(torch.broadcast_shapes(variance.shape, shape))
        return DiagLinearOperator(variance)
