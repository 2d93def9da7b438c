"""Further observations: their checks, their rows beside the old ones, and their noise.

A model is conditioned on further rows by being made of all rows: the covariance is factorised
anew, in the cost of the first time, and nothing that was derived from the old rows is used.
GPyTorch's update of its caches costs no less and takes fewer shapes.

Rows that a batch shares are views that repeat them (stride 0): fantasies differ in Y alone, and
their common covariance is factorised once.
"""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import Likelihood
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from linear_operator.operators import DiagLinearOperator, LinearOperator
from torch import Tensor

__all__ = ["NoiseOfRows", "check_observations", "joined", "unrepeated"]


def check_observations(
    owner: str,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    train_X: Tensor,
    train_Y: Tensor,
    *,
    missing: bool = False,
) -> None:
    """Refuse further observations that do not fit the rows of a model.

    Args:
        owner: Name of the model, for the message.
        X: Inputs, to be `[..., n', d]`.
        Y: Outcomes, to be `[..., n', m]`; batch dimensions of all arguments broadcast.
        noise: Noise variances, to broadcast with Y and to be >= 0, or None.
        train_X: Inputs of the model, `[*batch, n, d]`.
        train_Y: Outcomes of the model, `[*batch, n, m]`.
        missing: Whether inputs may be NaN.

    Raises:
        TypeError: something is not a tensor of the model's dtype.
        ValueError: shapes or devices disagree, values are not finite or variances negative.
    """
    given = {"X": X, "Y": Y, "noise": noise}
    tensors = {name: value for name, value in given.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.dtype != train_X.dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{owner} was trained in {train_X.dtype} and got {name} as {found}; use "
                f"torch.as_tensor({name}, dtype={train_X.dtype})."
            )
        if value.device != train_X.device:
            raise ValueError(
                f"{owner} is on {train_X.device} and got {name} on {value.device}; use "
                f"{name}.to({str(train_X.device)!r})."
            )
        fine = ~value.isinf() if missing and name == "X" else value.isfinite()
        if not bool(fine.all()):
            bad = int((~fine).sum())
            raise ValueError(
                f"{owner} got {name} with {bad} NaN or infinite values; remove those rows."
            )
    inputs, outputs = train_X.shape[-1], train_Y.shape[-1]
    wanted = f"X [..., n, {inputs}] and Y [..., n, {outputs}]"
    if X.dim() < 2 or X.shape[-1] != inputs or Y.dim() < 2 or Y.shape[-1] != outputs:
        raise ValueError(
            f"{owner} is conditioned on {wanted}, got X of shape {tuple(X.shape)} and Y of shape "
            f"{tuple(Y.shape)}; one row is X[None], one output Y.unsqueeze(-1)."
        )
    if X.shape[-2] != Y.shape[-2]:
        raise ValueError(
            f"{owner} is conditioned on {wanted} with the same rows, got {X.shape[-2]} of X and "
            f"{Y.shape[-2]} of Y."
        )
    batches = {"the model": train_Y.shape[:-2], "X": X.shape[:-2], "Y": Y.shape[:-2]}
    if noise is not None:
        if noise.dim() < 2 or not _broadcasts(noise.shape[-2:], Y.shape[-2:]):
            raise ValueError(
                f"{owner} got noise of shape {tuple(noise.shape)} for Y of shape "
                f"{tuple(Y.shape)}; expected a variance for each, [..., n, {outputs}]."
            )
        if bool((noise < 0).any()):
            raise ValueError(f"{owner} got negative variances in noise.")
        batches["noise"] = noise.shape[:-2]
    try:
        torch.broadcast_shapes(*batches.values())
    except RuntimeError as error:
        told = ", ".join(f"{tuple(shape)} of {name}" for name, shape in batches.items())
        raise ValueError(f"{owner} got batch dimensions that do not broadcast: {told}.") from error


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return all(one in (1, other) for one, other in zip(shape, to, strict=True))


def joined(before: Tensor, after: Tensor) -> Tensor:
    """Rows `[*batch, n, k]` and then `[..., n', k]`, `[..., n + n', k]`; batches broadcast.

    What is repeated in both stays one row of memory that is repeated.
    """
    batch = torch.broadcast_shapes(before.shape[:-2], after.shape[:-2])
    parts = [part.expand(*batch, *part.shape[-2:]) for part in (before, after)]
    # The batch of each that is more than repetition
    own = torch.broadcast_shapes(*(unrepeated(part).shape[:-2] for part in parts))
    parts = [unrepeated(part).expand(*own, *part.shape[-2:]) for part in parts]
    return torch.cat(parts, dim=-2).expand(*batch, -1, -1)


def unrepeated(rows: Tensor) -> Tensor:
    """Batch dimensions that repeat the same memory as dimensions of size 1."""
    batch = zip(rows.shape[:-2], rows.stride()[:-2], strict=True)
    return rows[tuple(slice(0, 1) if stride == 0 < size else slice(None) for size, stride in batch)]


class NoiseOfRows(_GaussianLikelihoodBase):
    """A Gaussian likelihood that learns its noise, of which training rows have a multiple or none.

    Queries have the learnt noise.

    Args:
        learnt: The likelihood that learns; its parameters are shared.
        known: Noise variances of the rows `[..., n]` on the model's scale, NaN where learnt; None
            where all are.
        weights: By which the learnt noise variances of the rows are divided, `[..., n]`, > 0; 1
            where None.
    """

    def __init__(self, learnt: Likelihood, known: Tensor | None, weights: Tensor | None) -> None:
        super().__init__(learnt.noise_covar)
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.rows = next(part.shape[-1] for part in (known, weights) if part is not None)

    @property
    def noise(self) -> Tensor:
        """The learnt noise variance."""
        return self.noise_covar.noise

    @noise.setter
    def noise(self, value: Tensor | float) -> None:
        self.noise_covar.initialize(noise=value)

    def of_queries(self, X: Tensor, f: MultivariateNormal) -> MultivariateNormal:
        """The distribution of y at queries `X` from that of f."""
        noise = self.noise_covar(X, shape=f.mean.shape)
        return type(f)(f.mean, f.lazy_covariance_matrix + noise)

    def _shaped_noise_covar(
        self, base_shape: torch.Size, *params: Any, **kwargs: Any
    ) -> LinearOperator:
        noise = super()._shaped_noise_covar(base_shape, *params, **kwargs)
        if "noise" in kwargs or base_shape[-1] != self.rows:
            return noise
        variances = noise.diagonal(dim1=-1, dim2=-2)
        if self.weights is not None:
            variances = variances / self.weights
        if self.known is not None:
            variances = torch.where(self.known.isnan(), variances, self.known)
        return DiagLinearOperator(variances)
