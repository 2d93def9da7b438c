"""Scores from the kernels of a candidate on the user's rows.

The kernels are those of the infinitely wide network where `priors.InfiniteNetwork` covers the
architecture; of others the tangent kernel of the finite network at its initial weights takes the
place of both. Kernels are scaled to a mean of 1 on their diagonal.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nas.proxies.candidates import Candidate, network_of, targets_of
from priors import InfiniteNetwork, UnsupportedOperationError, predicted_risk
from priors.kernels.empirical import empirical_ntk

__all__ = [
    "candidate_kernel",
    "label_alignment",
    "nngp_evidence",
    "ntk_condition",
    "ntk_evidence",
    "predicted_error",
]

Kind = Literal["nngp", "ntk"]
NOISES = torch.logspace(-4, 2, 61, dtype=torch.float64)  # variances, in units of the kernel's
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def candidate_kernel(candidate: Candidate, X: Tensor, kind: Kind) -> Tensor:
    """Kernel between the rows, of mean 1 on the diagonal.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        kind: `"nngp"`, the covariance of an output at initialisation, or `"ntk"`, the tangent
            kernel. Where the architecture has no limit in `priors`, both are the tangent kernel of
            the finite network, averaged over outputs.

    Returns:
        `[n, n]` in float64, on the device of X.
    """
    network = network_of(candidate, X)
    with torch.no_grad():
        try:
            # Its parameters are variances of its own; the widths and weights do not matter.
            infinite = InfiniteNetwork(network, input_shape=X.shape[1:]).to(X.device).double()
            rows = X.reshape(len(X), -1).double()
            matrix = infinite.nngp(rows) if kind == "nngp" else infinite.ntk(rows)
        except UnsupportedOperationError:
            weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
            matrix = empirical_ntk(network, weights, X, output="mean", progress=False).double()
    matrix = (matrix + matrix.mT) / 2
    return matrix / matrix.diagonal().mean()


def nngp_evidence(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Log marginal likelihood of the targets under the candidate's NNGP, nats per target.

    The targets, standardised, are Gaussian with covariance s (K + v I) for each column; the scale s
    and the noise v are those of greatest likelihood, v from 1e-4 to 100 in steps of 1/10 of a
    decade. Classes have a column of zeros and ones each. Larger is better.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Classes, integers `[n]`, or numbers `[n]` or `[n, m]`.

    Raises:
        ValueError: targets that do not fit or do not vary.
    """
    return _evidence(candidate_kernel(candidate, X, "nngp"), targets_of(X, y))


def ntk_evidence(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """As `nngp_evidence`, with the tangent kernel as covariance, nats per target.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Classes, integers `[n]`, or numbers `[n]` or `[n, m]`.
    """
    return _evidence(candidate_kernel(candidate, X, "ntk"), targets_of(X, y))


def ntk_condition(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Logarithm of the condition number of the tangent kernel of the rows, nats.

    Largest over least eigenvalue (Chen et al. 2021, 2102.11535, whose kernel is of the finite
    network); smaller is easier to train. Rounding bounds it by about 36.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Not looked at.
    """
    values = torch.linalg.eigvalsh(candidate_kernel(candidate, X, "ntk"))
    least = values[0].clamp_min(torch.finfo(values.dtype).eps * values[-1])
    return float((values[-1] / least).log())


def label_alignment(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Centred alignment of the tangent kernel with the targets, at most 1.

    <H K H, Y Y^T> / (|H K H| |Y Y^T|) with the centred targets Y (Cortes et al. 2012,
    1203.0550). Larger is better.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Classes, integers `[n]`, or numbers `[n]` or `[n, m]`.
    """
    targets = targets_of(X, y)
    matrix = candidate_kernel(candidate, X, "ntk")
    centred = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
    wanted = targets @ targets.mT
    return float((centred * wanted).sum() / (centred.norm() * wanted.norm()).clamp_min(1e-300))


def predicted_error(candidate: Candidate, X: Tensor, y: Tensor) -> float:
    """Predicted squared error of regression with the tangent kernel, in units of the variance of y.

    `priors.predicted_risk` at half as many training points as there are rows, which stand for the
    distribution, with the best of five ridges. Smaller is better.

    Args:
        candidate: A network or an architecture.
        X: Inputs, `[n, *input_shape]`.
        y: Classes, integers `[n]`, or numbers `[n]` or `[n, m]`.
    """
    targets = targets_of(X, y)
    values, vectors = torch.linalg.eigh(candidate_kernel(candidate, X, "ntk"))
    eigenvalues = values.clamp_min(0) / len(X)
    # The error is linear in the squared coefficients, so the columns need no pass each.
    coefficients = (vectors.mT @ targets).square().mean(1).sqrt() / len(X) ** 0.5
    size = max(1, len(X) // 2)
    return min(
        float(predicted_risk(eigenvalues, coefficients, size, ridge=ridge * size).test)
        for ridge in RIDGES
    )


def _evidence(matrix: Tensor, targets: Tensor) -> float:
    values, vectors = torch.linalg.eigh(matrix)
    squares = (vectors.mT @ targets).square().mean(1)
    spectrum = values.clamp_min(0) + NOISES.to(values)[:, None]  # [noises, n]
    scale = (squares / spectrum).mean(1)
    evidence = -0.5 * (math.log(2 * math.pi) + 1 + scale.log() + spectrum.log().mean(1))
    return float(evidence.max())
