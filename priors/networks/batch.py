"""The kernel of a whole batch from a module with batch normalisation; see `limits.batch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
from priors.limits.batch import BatchMoments
from priors.limits.moments import Points, Settings
from priors.networks.variances import LayerVariances, VarianceSpec
from priors.programs.tracer import trace

__all__ = ["batch_kernel"]


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

    Args:
        module: Like that of `InfiniteNetwork`, with `nn.BatchNorm1d`, `2d` or `3d` directly
            followed by an elementwise nonlinearity or a linear layer.
        X: The batch, `[B, d]`, at least two rows.
        weight_var: As for `InfiniteNetwork`.
        bias_var: As for `InfiniteNetwork`.
        input_shape: As for `InfiniteNetwork`.
        quadrature: Rule for the expectations over the batch; other seeds show its error.

    Returns:
        `[B, B]`.

    Raises:
        UnsupportedOperationError: the module contains something without a limit here.
        ValueError: `X` is no batch of rows.
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
