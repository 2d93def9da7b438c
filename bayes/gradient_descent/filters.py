"""What gradient descent makes of residuals: functions of a kernel matrix, and rows left out.

In the eigenbasis of A = Theta + ridge I gradient flow for a time t multiplies by

    g(a) = (1 - exp(-t a)) / a,     g(a) = 1 / a at infinite time.

Of all rows g(A) comes from one eigendecomposition, for every t. Without row i it would need another
one for each i; instead g is written as a sum of resolvents,

    g(a) = sum_p 2 Re c_p / (a + s_p),

with the poles of the best rational approximation of exp(-x) on x >= 0 of degree 14 (Carpenter,
Ruttan & Varga 1984; its error is 2e-14, that of g 2e-12 of g). Each resolvent has the closed form
of leaving a row out: with B = (A + s I)^-1,

    A_{i,-i} (A_{-i,-i} + s I)^-1 = - B_{i,-i} / B_ii,

the row of the inverse by its block form. So all n rows cost seven complex inverses, exactly, with
gradients that repeated eigenvalues do not harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decay", "left_out_weights", "null_below", "trained_weights"]

# exp(-x) = 2 Re sum_j alpha_j / (-x - theta_j); a pole and a residue each (Pusa 2011, table I).
_POLES = (
    -8.897773186468889 + 16.630982619902086j,
    -3.703275049423448 + 13.656371871483268j,
    -0.2087586382501301 + 10.991260561901261j,
    3.9933697105785685 + 6.004831642235037j,
    5.089345060580625 + 3.588824029027007j,
    5.623142572745977 + 1.194069046343967j,
    2.2697838292311127 + 8.461737973040221j,
)
_RESIDUES = (
    -7.154288063589067e-5 + 1.43610433495413e-4j,
    9.439025310736169e-3 - 1.7184791958483018e-2j,
    -3.7636003878226969e-1 + 3.3518347029450104e-1j,
    -23.498232091082701 - 5.8083591297142074j,
    46.933274488831293 + 45.643649768827761j,
    -27.875161940145646 - 102.14733999056451j,
    4.8071120988325089 - 1.3209793837428724j,
)


def decay(eigenvalues: Tensor, ridge: Tensor, time: Tensor, null: Tensor) -> Tensor:
    """g of the eigenvalues of Theta.

    Args:
        eigenvalues: Of Theta, `[..., n]`.
        ridge: >= 0.
        time: >= 0, may be infinite.
        null: `[..., 1]`; smaller eigenvalues of A are taken for 0. No function of the network
            changes along them, so that their g does not matter.

    Returns:
        `[..., n]`.
    """
    total = eigenvalues.clamp_min(0) + ridge
    return torch.where(total > null, -torch.expm1(-time * total) / total.clamp_min(null), 0.0)


def null_below(tangent: Tensor) -> Tensor:
    """What rounding leaves of an eigenvalue 0 of Theta `[..., n, n]`, `[...]`."""
    trace = tangent.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    return 4 * torch.finfo(tangent.dtype).eps * trace


def trained_weights(tangent: Tensor, ridge: Tensor, time: Tensor) -> Tensor:
    """g(A) `[..., n, n]`, with gradients in all arguments."""
    if not float(time.detach()) > 0:
        return torch.zeros_like(tangent)
    parts = [factor * inverse for factor, inverse in _resolvents(tangent, ridge, time)]
    return torch.stack([part.real for part in parts]).sum(0)


def left_out_weights(tangent: Tensor, ridge: Tensor, time: Tensor) -> Tensor:
    """The weights by which each row is predicted from the residuals of the others.

    Args:
        tangent: Theta of the rows, `[..., n, n]`.
        ridge: >= 0.
        time: >= 0, may be infinite.

    Returns:
        R `[..., n, n]` with a zero diagonal: a network f that is trained on all rows but i has
        f(x_i) = f_0(x_i) + sum_j R_ij (y_j - f_0(x_j)), f_0 the network before.
    """
    if not float(time.detach()) > 0:
        return torch.zeros_like(tangent)
    eye = torch.eye(tangent.shape[-1], dtype=tangent.dtype, device=tangent.device)
    parts = []
    for factor, inverse in _resolvents(tangent, ridge, time):
        diagonal = inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        parts.append((factor * (eye - inverse / diagonal)).real)
    return torch.stack(parts).sum(0) * (1 - eye)


def _resolvents(tangent: Tensor, ridge: Tensor, time: Tensor) -> list[tuple[complex, Tensor]]:
    """Coefficients 2 c_p and (A + s_p I)^-1, whose real parts sum up to g(A)."""
    eye = torch.eye(tangent.shape[-1], dtype=tangent.dtype, device=tangent.device)
    if bool(time.detach().isinf()):
        least = null_below(tangent)[..., None, None]
        inverse = torch.linalg.inv(tangent + (ridge + least) * eye)
        return [(1.0, inverse)]
    found = []
    for pole, residue in zip(_POLES, _RESIDUES, strict=True):
        inverse = torch.linalg.inv(tangent + (ridge + pole / time) * eye)
        found.append((-2 * residue / pole, inverse))
    return found
