"""The kernel of a whole batch from a module with batch normalisation; see `limits.batch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, jackknife
from priors.limits.batch import BatchMoments
from priors.limits.moments import Points, Settings
from priors.networks.variances import LayerVariances, VarianceSpec
from priors.programs.tracer import trace

__all__ = ["batch_kernel", "batch_kernel_error"]


def batch_kernel(
    module: nn.Module,
    X: Tensor,
    *,
    weight_var: VarianceSpec | None = None,
    bias_var: VarianceSpec | None = None,
    input_shape: Sequence[int] | None = None,
    quadrature: QuasiMonteCarlo | None = None,
) -> Tensor:
    """NNGP kernel of one output unit over one batch, in training mode.

    Exact if every normalisation is followed by a linear layer or by ReLU, LeakyReLU or the like;
    otherwise by quasi-Monte Carlo, with the error that `batch_kernel_error` states.

    Args:
        module: Like that of `InfiniteNetwork`, with `nn.BatchNorm1d`, `2d` or `3d` directly
            followed by an elementwise nonlinearity or a linear layer.
        X: The batch, `[B, d]`, at least two rows.
        weight_var: See `InfiniteNetwork`.
        bias_var: See `InfiniteNetwork`.
        input_shape: See `InfiniteNetwork`.
        quadrature: Rule for the expectations over the batch that have no closed form.

    Returns:
        `[B, B]`.

    Raises:
        UnsupportedOperationError: the module contains something without a limit here.
        ValueError: `X` is not a batch of rows.
    """
    if X.dim() != 2 or len(X) < 2 or not X.is_floating_point():
        raise ValueError(
            f"batch_kernel needs one batch of at least 2 rows [B, d], got {tuple(X.shape)}."
        )
    program = trace(module, input_shape, whole_batch=True)
    with X.device:
        variances = LayerVariances(program, weight_var=weight_var, bias_var=bias_var)
    rule = QuasiMonteCarlo() if quadrature is None else quadrature
    with torch.no_grad():
        points = Points(program, Settings(variances.value, rule), X)
        kernel = BatchMoments(points).moment(program.output, program.output)
    assert kernel is not None
    return kernel if program.positions(program.output) is None else kernel[..., 0, 0]


def batch_kernel_error(
    module: nn.Module,
    X: Tensor,
    *,
    quadrature: QuasiMonteCarlo | None = None,
    replicates: int = 8,
    **options: Any,
) -> Tensor:
    """Bound on the quasi-Monte Carlo error of `batch_kernel`, `[B, B]`; 0 where it is exact.

    Half the width of a 99% interval, from the kernels without each part of the points in use.

    Args:
        module: See `batch_kernel`.
        X: See `batch_kernel`.
        quadrature: See `batch_kernel`.
        replicates: Parts left out in turn, 2 to 8.
        **options: The other arguments of `batch_kernel`.
    """
    rule = QuasiMonteCarlo() if quadrature is None else quadrature
    parts, _ = rule.variants(replicates)
    return jackknife([batch_kernel(module, X, quadrature=part, **options) for part in parts])
