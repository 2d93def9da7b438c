"""A Student-t process of learning curves: where a curve that has begun will end.

Curves y_i(t) at common steps are a common curve g plus a deviation with a scale of its own,
y_i = g + s_i (f_i + noise), so that a curve that lies still is expected to lie still and one that
moves to move on. With s_i^2 inverse-gamma, y_i is multivariate t with nu degrees of freedom,
centre g and shape A = K + sigma^2 I. The kernel K is on u = log(1 + t):

    a^2 + b^2 Matern-3/2(u, u') + c^2 (beta / (t + t' + beta))^alpha,

a level at which the curve settles, changes that slow down as epochs go by, and the exponential
decays of freeze-thaw (Swersky et al. 2014, 1406.3896, eq. 12). g has a Gaussian process prior and
is learnt with the hyperparameters at their joint mode.

A curve that ends early is the beginning of its vector, whose shape is the leading block of A. So
one Cholesky factor serves all curves, and stopping curves by what was seen of them does no harm.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import StudentT

__all__ = ["CurveProcess"]

_NAMES = ("level", "change", "lengthscale", "decay", "alpha", "beta", "noise", "dof")
_MODES = (0.5, 0.3, 1.0, 0.5, 1.0, 3.0, 0.05, 4.0)
_SPREADS = (1.0, 1.0, 0.5, 1.0, 0.5, 1.0, 1.5, 0.5)  # of their logarithms
_COMMON_LENGTH = 1.0  # of g on log(1 + t)
_JITTER = 1e-6


class CurveProcess:
    """The process, fitted to curves.

    Args:
        steps: Where curves are known, `[T]`, increasing, at least 0.
        curves: Values of about unit size, `[n, T]`, NaN from the step on at which a curve ends.
        max_iter: Steps of the fit at most.

    Attributes:
        log_parameters: Logarithms of the hyperparameters in the order of the module's docstring
            (a, b, the length scale of the Matern kernel, c, alpha, beta, sigma, nu), `[8]`.
        common: g, `[T]`.
    """

    def __init__(self, steps: Tensor, curves: Tensor, *, max_iter: int = 50) -> None:
        self.steps = steps.to(torch.float64)
        self.known = ~curves.isnan()
        self.values = curves.nan_to_num().to(torch.float64)
        self.log_parameters = torch.tensor(_MODES, dtype=torch.float64).log()
        self._u = self.steps.log1p()
        self._prior_factor = torch.linalg.cholesky(
            1.0 + _matern(self._u, _COMMON_LENGTH) + _JITTER * torch.eye(len(steps)).double()
        )
        self._mean = float(self.values[self.known].mean())
        self.common = torch.full_like(self.steps, self._mean)
        self._fit(max_iter)

    def shape(self, log_parameters: Tensor) -> Tensor:
        """A, `[T, T]`."""
        a, b, length, c, alpha, beta, noise, _ = log_parameters.exp()
        total = self.steps[:, None] + self.steps
        kernel = a.square() + b.square() * _matern(self._u, length)
        kernel = kernel + c.square() * (beta / (total + beta)) ** alpha
        return kernel + (noise.square() + _JITTER) * torch.eye(len(total)).double()

    def log_likelihood(self, log_parameters: Tensor, common: Tensor) -> Tensor:
        """Log density of all curves, each up to its end."""
        factor = torch.linalg.cholesky(self.shape(log_parameters))
        white = torch.linalg.solve_triangular(factor, (self.values - common).T, upper=False).T
        # Entry j of a forward substitution depends on entries up to j only.
        white = torch.where(self.known, white, 0.0)
        count = self.known.sum(1).to(white)
        log_det = (self.known * factor.diagonal().log()).sum(1)
        dof = log_parameters[-1].exp()
        tail = torch.lgamma((dof + count) / 2) - torch.lgamma(dof / 2)
        tail = tail - count / 2 * (dof * math.pi).log() - log_det
        return (tail - (dof + count) / 2 * (1 + white.square().sum(1) / dof).log()).sum()

    def end(self, beginning: Tensor) -> StudentT:
        """The distribution of the value at the last step.

        Args:
            beginning: Values at the first steps, `[k]`, k from 0 to T - 1.
        """
        k = len(beginning)
        with torch.no_grad():
            factor = torch.linalg.cholesky(self.shape(self.log_parameters))
            apart = (beginning.to(torch.float64) - self.common[:k])[:, None]
            white = torch.linalg.solve_triangular(factor[:k, :k], apart, upper=False)[:, 0]
            last = factor[-1]
            dof = self.log_parameters[-1].exp()
            place = self.common[-1] + last[:k] @ white
            variance = last[k:].square().sum() * (dof + white.square().sum()) / (dof + k)
            return StudentT(dof + k, place, variance.sqrt())

    def _fit(self, max_iter: int) -> None:
        from scipy.optimize import minimize

        modes = torch.tensor(_MODES, dtype=torch.float64).log()
        spreads = torch.tensor(_SPREADS, dtype=torch.float64)
        split = len(modes)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.tensor(flat, requires_grad=True)
            scaled, white = point[:split], point[split:]
            common = self._mean + self._prior_factor @ white
            value = 0.5 * scaled.square().sum() + 0.5 * white.square().sum()
            value = value - self.log_likelihood(modes + spreads * scaled, common)
            value.backward()
            assert point.grad is not None
            return value.item(), point.grad.numpy()

        start = np.zeros(split + len(self.steps))
        found = minimize(
            objective, start, jac=True, method="L-BFGS-B",
            bounds=[(-4.0, 4.0)] * split + [(None, None)] * len(self.steps),
            options={"maxiter": max_iter},
        )  # fmt: skip
        point = torch.tensor(found.x)
        self.log_parameters = modes + spreads * point[:split]
        self.common = self._mean + self._prior_factor @ point[split:]


def _matern(u: Tensor, length: Tensor | float) -> Tensor:
    distance = 3**0.5 * (u[:, None] - u).abs() / length
    return (1 + distance) * (-distance).exp()
