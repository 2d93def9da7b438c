"""Infinite-width networks as GPyTorch kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Self

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor, nn

from priors.kernels.base import NetworkKernel
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork
from priors.networks.input_scale import InputScale
from priors.networks.shared_columns import joined, shared_columns
from priors.networks.variances import LayerVariances, VarianceSpec

__all__ = ["NNGPKernel", "NTKKernel", "columns_together"]


class _InfiniteKernel(NetworkKernel):
    # GPyTorch makes a length scale of this kernel's own where True; ours is the network's.
    has_lengthscale = False

    def __init__(
        self,
        module: nn.Module | InfiniteNetwork | NetworkPrior,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        ard_num_dims: int | None = None,
        input_shape: Sequence[int] | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        if isinstance(module, InfiniteNetwork):
            given = (weight_var, bias_var, ard_num_dims, input_shape)
            if any(value is not None for value in given):
                raise ValueError(
                    f"{type(self).__name__} made from an InfiniteNetwork shares its variances, "
                    "length scales and input_shape; set them there."
                )
            network = module
            if batch_shape is not None and torch.Size(batch_shape) != network.variances.batch_shape:
                raise ValueError(
                    f"batch_shape {tuple(batch_shape)} differs from that of the given network, "
                    f"{tuple(network.variances.batch_shape)}."
                )
        else:
            network = InfiniteNetwork(
                module,
                weight_var=weight_var,
                bias_var=bias_var,
                ard_num_dims=ard_num_dims,
                input_shape=input_shape,
                batch_shape=torch.Size() if batch_shape is None else batch_shape,
            )
        super().__init__(batch_shape=network.variances.batch_shape, active_dims=active_dims)
        self.network = network
        scale = network.variances.input_scale
        if scale is not None and scale.repeats == (1, 1):
            self.ard_num_dims = scale.num_scales  # GPyTorch compares it with the columns

    def __repr__(self) -> str:
        return self._represented(self.network)

    @property
    def variances(self) -> LayerVariances:
        """What is learnt: variances of the layers and length scales; prints as a table."""
        return self.network.variances

    @property
    def lengthscale(self) -> Tensor | None:
        """What inputs are divided by, `[*batch, 1, k]`; None without `ard_num_dims`."""
        scale = self.variances.input_scale
        return None if scale is None else scale.lengthscale

    @lengthscale.setter
    def lengthscale(self, value: float | Tensor) -> None:
        self._input_scale("lengthscale").lengthscale = value

    @property
    def raw_lengthscale(self) -> Tensor:
        """The parameter behind `lengthscale`, its logarithm unless its constraint was replaced."""
        raw: Tensor = self._input_scale("raw_lengthscale").raw_lengthscale
        return raw

    @property
    def raw_lengthscale_constraint(self) -> Interval:
        """The constraint of `raw_lengthscale`."""
        return self._input_scale("raw_lengthscale").raw_lengthscale_constraint

    @property
    def lengthscale_prior(self) -> Prior:
        """The prior of `lengthscale`."""
        return self._input_scale("lengthscale").lengthscale_prior

    def register_prior(self, name: str, *args: Any, **kwargs: Any) -> None:
        """As in GPyTorch; `lengthscale_prior` replaces that of the length scales."""
        if name == "lengthscale_prior":
            self._input_scale("lengthscale").register_prior(name, *args, **kwargs)
        else:
            super().register_prior(name, *args, **kwargs)

    def register_constraint(self, param_name: str, *args: Any, **kwargs: Any) -> None:
        """As in GPyTorch; of `raw_lengthscale` it replaces that of the length scales."""
        if param_name == "raw_lengthscale":
            self._input_scale(param_name).register_constraint(param_name, *args, **kwargs)
        else:
            super().register_constraint(param_name, *args, **kwargs)

    def _input_scale(self, name: str) -> InputScale:
        scale = self.variances.input_scale
        if scale is None:
            raise AttributeError(
                f"This {type(self).__name__} has no {name}; make it with ard_num_dims, the number "
                "of features of an input."
            )
        return scale

    def _with_batch(self, change: Callable[[Tensor], Tensor]) -> Self:
        kernel = deepcopy(self)
        kernel.network.variances.with_batch(change)
        kernel.batch_shape = kernel.network.variances.batch_shape
        return kernel


class NNGPKernel(_InfiniteKernel):
    """Covariance of an infinitely wide network with random weights.

    Args:
        module: A `torch.nn.Module`, or an `InfiniteNetwork` or `NetworkPrior` whose variances
            are then shared.
        weight_var: Starting values of the weight variances, one value or a dict by layer name;
            None: 2 behind a rectifier, 1 elsewhere. All are learnt, except that 0 is fixed.
        bias_var: The same for the biases; None starts them at 0.1.
        ard_num_dims: k, the number of features of a row, channels of an image or features of a
            token: inputs are divided by `lengthscale`, `[*batch, 1, k]`, and the first layer's
            weight variance is held. No length scales if None.
        input_shape: Shape of one input; flat rows are reshaped to it.
        batch_shape: Batch of independent variances and length scales.
        active_dims: Features that the kernel sees.

    Raises:
        UnsupportedOperationError: the module contains something without a limit here.
        ValueError: bad variances or shapes.

    `kernel(x1, x2).to_dense()` is the matrix `[*batch, n1, n2]`, `kernel(x, diag=True)` its
    diagonal. `variances` holds what is learnt and prints as a table, `lengthscale` the length
    scales, and `network` the `InfiniteNetwork` with its errors and costs. All else is
    inherited from `gpytorch.kernels.Kernel`: kernels are added, multiplied and scaled as any.

    Source: Lee et al. 2018 (1711.00165); as a tensor program Yang 2019 (1910.12478).
    """

    def _evaluate(self, x1: Tensor, x2: Tensor | None, diag: bool) -> Tensor:
        return self.network.nngp(x1, x2, diag=diag)


class NTKKernel(_InfiniteKernel):
    """Neural tangent kernel of an infinitely wide network.

    Arguments and everything else are as in `NNGPKernel`.

    Source: Jacot et al. 2018 (1806.07572); as a tensor program Yang 2020 (2006.14548).
    """

    def _evaluate(self, x1: Tensor, x2: Tensor | None, diag: bool) -> Tensor:
        return self.network.ntk(x1, x2, diag=diag)


def columns_together(kernel: nn.Module) -> list[list[int]]:
    """Groups of columns that the networks in a kernel give the same weights.

    Args:
        kernel: Any, also a sum or product of several kernels.
    """
    found: list[list[int]] = []
    for part in kernel.modules():
        if isinstance(part, _InfiniteKernel):
            groups = shared_columns(part.network.program)
            if part.active_dims is not None:
                seen = part.active_dims.tolist()
                groups = [[seen[column] for column in group] for group in groups]
            found += groups
    return joined(found)
