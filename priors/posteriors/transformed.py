"""A posterior seen through a monotone map of its values: outcome transforms, undone exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from botorch.acquisition.objective import (
    ExpectationPosteriorTransform,
    PosteriorTransform,
    ScalarizedPosteriorTransform,
)
from botorch.posteriors import GPyTorchPosterior, Posterior
from torch import Tensor
from torch.distributions.transforms import AffineTransform, Transform

from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior, check_order
from priors.posteriors.transforms import affine_beyond

__all__ = ["TransformedPosterior", "apply_posterior_transform"]


class TransformedPosterior(PredictivePosterior):
    """A posterior of z seen as a posterior of y = T(z), T monotone and elementwise.

    Args:
        base: Posterior of z, `[..., n, m]`.
        transform: A `torch.distributions` transform from z to y with event dimension 0 whose
            parameters broadcast with `[..., n, m]`; `AffineTransform` undoes a standardisation.

    Moments and expected improvement are closed for an affine map; other maps take the moments
    by quadrature of the quantile function and have a closed expected improvement where they are
    affine beyond the threshold (`affine_beyond`). The quadrature (tanh-sinh, 256 nodes) ends at
    probabilities of a rounding error of the dtype; beyond, the variance follows a power law: for
    tails of index 2.5 it is right to 0.1% in float32. Moments that overflow or that do not exist
    are infinite, as far as quantiles at such probabilities show it: an exponential of heavy tails,
    those of a bar distribution or Student's t, has no mean. Its quantiles are exact. Finitely many
    values (`atoms`) are mapped themselves.

    Values outside the range of the transform have density 0.
    """

    def __init__(self, base: PredictivePosterior, transform: Transform) -> None:
        if not transform.bijective or transform.domain.event_dim != 0:
            raise ValueError(
                f"TransformedPosterior needs an elementwise monotone transform, got {transform}."
            )
        self.base = base
        self.transform = transform

    @property
    def _kind(self) -> Sequence[str]:
        return [f"{type(self.base).__name__} through {type(self.transform).__name__}"]

    @property
    def _affine(self) -> AffineTransform | None:
        return self.transform if isinstance(self.transform, AffineTransform) else None

    def _own(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=self.dtype, device=self.device)

    def _sign(self) -> Tensor:
        return self._own(self.transform.sign)

    def _increasing(self, what: str) -> bool:
        """Whether the map is increasing in all outputs, rather than decreasing in all."""
        sign = self._sign()
        if bool((sign > 0).all()):
            return True
        if bool((sign < 0).all()):
            return False
        raise NotImplementedError(
            f"{what} needs a transform that is increasing for all outputs or decreasing for all "
            "outputs."
        )

    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Values of y `[k, ..., n, m]` and their probabilities `[k]`."""
        nodes, weights = _tanh_sinh(self.dtype)
        # a few at a time: a quantile may take memory for each of them
        values = [self.quantile(some) for some in self._own(nodes).split(64)]
        return torch.cat(values), self._own(weights)

    @property
    def atoms(self) -> tuple[Tensor, Tensor] | None:
        atoms = self.base.atoms
        return None if atoms is None else (self.transform(atoms[0]), atoms[1])

    @property
    def has_density(self) -> bool:
        return self.base.has_density

    @property
    def _draws(self) -> EmpiricalPosterior | None:
        """The posterior itself where it is one of finitely many values."""
        atoms = self.atoms
        return None if atoms is None else EmpiricalPosterior(*atoms)

    @property
    def mean(self) -> Tensor:
        if self._affine is not None:
            return self.transform(self.base.mean)
        if (draws := self._draws) is not None:
            return draws.mean
        values, weights = self._quadrature()
        mean = torch.tensordot(weights, values, dims=1)
        far = (values - values[len(values) // 2]).detach().abs()
        above, below = (_exponent(tail) >= 1 for tail in (far.flip(0), far))
        mean = torch.where(above, torch.where(below, torch.nan, torch.inf), mean)
        return torch.where(below & ~above, -torch.inf, mean)

    @property
    def variance(self) -> Tensor:
        if self._affine is not None:
            return self.base.variance * self._own(self._affine.scale) ** 2
        if (draws := self._draws) is not None:
            return draws.variance
        values, weights = self._quadrature()
        mean = torch.tensordot(weights, values, dims=1)
        squares = (values - mean).square()  # E[y^2] - E[y]^2 would cancel far from zero
        variance = torch.tensordot(weights, squares, dims=1)
        variance = variance + _behind(squares) + _behind(squares.flip(0))
        exists = torch.maximum(_exponent(squares), _exponent(squares.flip(0))) < 1
        return torch.where(mean.isfinite() & exists, variance, torch.inf)

    def _jacobian(self, z: Tensor, y: Tensor) -> Tensor:
        return self.transform.log_abs_det_jacobian(z, y)

    def _within(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values moved into the range of the transform, and which ones were below and above."""
        wrong = ~self.transform.codomain.check(Y) & ~Y.isnan()
        if not bool(wrong.any()):
            return Y, wrong, wrong
        inner = self.transform(self.base.quantile(self._own(0.5))).detach()
        Y, inner, wrong = torch.broadcast_tensors(Y, inner, wrong)
        return torch.where(wrong, inner, Y), wrong & (Y < inner), wrong & (Y > inner)

    def log_prob(self, Y: Tensor) -> Tensor:
        Y, below, above = self._within(Y)
        z = self.transform.inv(Y)
        found = self.base.log_prob(z) - self._jacobian(z, Y)
        return torch.where(below | above, -torch.inf, found)

    def cdf(self, Y: Tensor) -> Tensor:
        if (draws := self._draws) is not None:  # rounding is not to miss a value of theirs
            return draws.cdf(Y)
        Y, below, above = self._within(Y)
        p = self.base.cdf(self.transform.inv(Y))
        p = torch.where(self._sign() > 0, p, 1 - p)
        return torch.where(below, 0, torch.where(above, 1, p))

    def quantile(self, value: Tensor) -> Tensor:
        value = self._own(value)
        if (draws := self._draws) is not None:
            return draws.quantile(value)
        value = value if self._increasing("quantile") else 1 - value
        return self.transform(self.base.quantile(value))

    def crps(self, Y: Tensor) -> Tensor:
        if (draws := self._draws) is not None:
            return draws.crps(Y)
        if self._affine is None:
            return super().crps(Y)
        return self.base.crps(self.transform.inv(Y)) * self._own(self._affine.scale).abs()

    def _knots(self, levels: Tensor) -> Tensor:
        return self.transform(self.base._knots(levels)).sort(0).values

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        Y, below, above = self._within(Y)
        z = self.transform.inv(Y)
        jacobian = self._jacobian(z, Y).expand(z.shape)
        found = self.base.joint_log_prob(z) - jacobian.sum(dim=(-2, -1))
        return torch.where((below | above).any(-1).any(-1), -torch.inf, found)

    def log_excess(self, threshold: Tensor | float, order: int, above: bool = True) -> Tensor:
        check_order(order)
        same_side = self._increasing("log_excess") == above
        threshold = self._own(threshold)
        if order == 0:
            inside, lower, higher = self._within(threshold)
            found = self.base.log_excess(self.transform.inv(inside), 0, same_side)
            certain, never = (lower, higher) if above else (higher, lower)
            return torch.where(certain, 0.0, torch.where(never, -torch.inf, found))
        affine = affine_beyond(self.transform, threshold, above)
        if affine is None:
            return super().log_excess(threshold, order, above)
        improvement = self.base.log_excess(affine.inv(threshold), 1, same_side)
        return improvement + self._own(affine.scale).abs().log()

    def independent(self) -> TransformedPosterior | None:
        base = self.base.independent()
        return None if base is None else TransformedPosterior(base, self.transform)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return self.transform(self.base.rsample_from_base_samples(sample_shape, base_samples))

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def base_sample_shape(self) -> torch.Size:
        return self.base.base_sample_shape

    @property
    def batch_range(self) -> tuple[int, int]:
        return self.base.batch_range


def apply_posterior_transform(
    transform: PosteriorTransform | None, posterior: Posterior, X: Tensor
) -> Posterior:
    """What a model's `posterior` returns under BoTorch's `posterior_transform`.

    Args:
        transform: The transform, or None.
        posterior: Posterior of the model, `[..., n, m]`.
        X: The queries.

    Returns:
        A scalarisation of one output is exact, whatever its distribution.

    Raises:
        NotImplementedError: a combination of several outputs, or of points, of a posterior that
            is not Gaussian.
    """
    if transform is None:
        return posterior
    needs_gaussian = isinstance(
        transform, ScalarizedPosteriorTransform | ExpectationPosteriorTransform
    )
    if isinstance(posterior, GaussianPosterior) and needs_gaussian:
        return _transformed_gaussian(transform, posterior, X)
    if isinstance(posterior, GPyTorchPosterior) or not needs_gaussian:
        return transform(posterior=posterior, X=X)
    if isinstance(transform, ScalarizedPosteriorTransform) and len(_weights(transform)) == 1:
        scale = _weights(transform).to(device=posterior.device, dtype=posterior.dtype)
        assert isinstance(posterior, PredictivePosterior)
        return TransformedPosterior(posterior, AffineTransform(transform.offset, scale))
    raise NotImplementedError(
        f"{type(transform).__name__} of a {type(posterior).__name__}: a weighted sum of values "
        "that are not Gaussian has no closed distribution. Use a Monte Carlo acquisition function "
        "with objective=LinearMCObjective(weights), or GaussianApproximation(model)."
    )


def _weights(transform: ScalarizedPosteriorTransform) -> Tensor:
    return cast(Tensor, transform.weights)  # a buffer


def _transformed_gaussian(
    transform: PosteriorTransform, posterior: GaussianPosterior, X: Tensor
) -> GaussianPosterior:
    """A weighted sum of outputs, or an average of points, with the unit of the posterior."""
    if isinstance(transform, ScalarizedPosteriorTransform):
        return posterior.scalarised(_weights(transform), transform.offset)
    base = transform(posterior=GaussianPosterior(posterior.base), X=X)
    return GaussianPosterior(base.distribution, posterior.transform)


def _tanh_sinh(dtype: torch.dtype, num: int = 256) -> tuple[Tensor, Tensor]:
    """Nodes and weights in float64 of tanh-sinh quadrature on (0, 1).

    Takahasi & Mori 1974: the trapezium rule in u with p = (1 + tanh(pi/2 sinh u)) / 2, which
    converges with poles of the integrand at both ends; u ends where p, and 1 - p, is eps.
    """
    end = math.asinh(2 / math.pi * math.atanh(1 - 2 * torch.finfo(dtype).eps))
    u = torch.linspace(-end, end, num, dtype=torch.float64, device="cpu")
    # p of minus the absolute value, without the cancellation of 1 + tanh
    below = torch.sigmoid(-math.pi * u.abs().sinh())
    nodes = torch.where(u < 0, below, 1 - below)
    weights = math.pi * u.cosh() * below * (1 - below) * (u[1] - u[0])
    weights[[0, -1]] /= 2
    return nodes, weights / weights.sum()


def _behind(values: Tensor) -> Tensor:
    """Integral over (0, p of the first node of `_tanh_sinh`) of a power law through two nodes.

    Args:
        values: At the nodes, `[k, ...]`, >= 0.
    """
    start = float(_tanh_sinh(values.dtype)[0][0])
    # far from 1, where the integral is infinite: two nodes do not tell that for certain
    return start * values[0] / (1 - _exponent(values).clamp(0, 0.9))


def _exponent(values: Tensor) -> Tensor:
    """Exponent k of values ~ p^-k at the first nodes of `_tanh_sinh`; no integral for k >= 1."""
    p = _tanh_sinh(values.dtype)[0]
    return (values[0] / values[8]).detach().log().nan_to_num(0.0) / math.log(p[8] / p[0])
