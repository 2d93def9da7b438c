"""Newton steps for the means of functions that the likelihood of a row couples, such as classes.

The natural gradient of a q(v) that is independent between functions takes the curvature of the
likelihood to be so too. Softmax's is far from that: adding the same to every class changes nothing,
and the difference of two classes counts double, so that its steps overshoot or creep. Here

    (r I + A' W A) step = A' g - r m

is solved for the means of all functions together, W_i `[k, k]` minus the Hessian of the expected
log likelihood of row i in its means, by conjugate gradients preconditioned with the independent
precisions (for classes: Rasmussen & Williams 2006, section 3.5, under an expectation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CoupledRows", "coupled_means"]

_ITERATIONS, _TOLERANCE = 50, 1e-3


@dataclass(frozen=True)
class CoupledRows:
    """What the step needs of a block of rows.

    Attributes:
        weights: A, `[n, M]`.
        slope: g, derivatives of the expected log likelihood in the means, `[n, k]`.
        curvature: W, `[n, k, k]`, positive semidefinite.
    """

    weights: Tensor
    slope: Tensor
    curvature: Tensor


def coupled_means(
    mean: Tensor, precision: Tensor, inverse_scale: float, blocks: Sequence[CoupledRows]
) -> Tensor:
    """The means `[k, M]` after a Newton step.

    Args:
        mean: Present ones, m, `[k, M]`.
        precision: Of each function by itself, `[k, M, M]`, the preconditioner.
        inverse_scale: r, added to it in place of the 1 of the prior.
        blocks: Of all rows.
    """
    eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    root, failed = torch.linalg.cholesky_ex(precision + (inverse_scale - 1) * eye)
    if bool(failed.any()):
        root = eye.expand_as(precision)

    def curved(step: Tensor) -> Tensor:
        total = inverse_scale * step
        for rows in blocks:
            of_rows = rows.weights @ step.mT  # [n, k]
            weighed = (rows.curvature @ of_rows.unsqueeze(-1)).squeeze(-1)
            total = total + weighed.mT @ rows.weights
        return total

    def preconditioned(values: Tensor) -> Tensor:
        return torch.cholesky_solve(values.unsqueeze(-1), root).squeeze(-1)

    slope = sum((rows.slope.mT @ rows.weights for rows in blocks), start=-inverse_scale * mean)
    step, left = torch.zeros_like(mean), slope
    ahead = z = preconditioned(left)
    size = first = float((left * z).sum())
    for _ in range(_ITERATIONS):
        if not size > _TOLERANCE**2 * first:
            break
        bent = curved(ahead)
        length = size / float((ahead * bent).sum())
        step, left = step + length * ahead, left - length * bent
        z = preconditioned(left)
        size, before = float((left * z).sum()), size
        ahead = z + (size / before) * ahead
    return mean + step
