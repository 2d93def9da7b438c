"""Neural tangent kernels of finite networks, as functions and as a GPyTorch kernel.

For a network f(theta, x) with m outputs, the empirical neural tangent kernel is

    Theta_op(x, x') = sum_k  s_k^2  df_o(x)/dtheta_k  df_p(x')/dtheta_k

with s_k = 1 for gradient descent on the weights themselves ("standard") and, in the NTK
parametrisation z = sqrt(weight_var / fan_in) W x + sqrt(bias_var) b, the prior standard deviation
of theta_k, because the gradient is then one in the standard normal W and b.

Source: Jacot et al. 2018 (1806.07572).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.func import vjp

from priors.kernels.base import NetworkKernel
from priors.kernels.parameters import (
    ByName,
    ParametricFunction,
    as_function,
    batch_shape_of,
    checked,
    parameters_of,
)
from priors.kernels.tangent import METHODS, Method, Tangent, along, check_pair
from priors.networks.finite import NetworkPrior
from priors.networks.functional_call import call_module

__all__ = ["EmpiricalNTKKernel", "empirical_ntk", "ntk_vector_product", "whitened"]


def empirical_ntk(
    function: nn.Module | ParametricFunction,
    parameters: Mapping[str, Tensor],
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    output: Literal["all", "mean"] | int = "all",
    method: Method = "auto",
    diag: bool = False,
    max_bytes: int = 2**30,
    progress: bool = True,
) -> Tensor:
    """Tangent kernel of a network at given parameters, unscaled.

    With P parameters, m outputs and FP multiply-adds of a forward pass on one example, counting
    a derivative as two forward passes, the methods cost

        jacobian_contraction    2 (n1 + n2) m FP + n1 n2 m^2 P    (m P where only the mean is asked)
        ntk_vector_products     2 n2 m FP + 2 n1 n2 m FP

    multiply-adds (Novak et al. 2022, table 1, with the passes that a block-wise evaluation
    repeats). "auto" takes the smaller of those that fit the memory and that torch can
    differentiate; FP comes from `torch.utils.flop_counter`, which knows products and
    convolutions, on one example, and is taken to be at least P.

    Differentiable in inputs and parameters. Where these require a gradient the graph keeps all
    Jacobians, whatever `max_bytes` is; detach what needs none.

    Args:
        function: A module, or f(parameters, x) of a batch of inputs `[n, *input_shape]` that maps
            each example separately to `[n, *output_shape]`, flattened to m outputs.
        parameters: By name, those that the kernel differentiates in; a module keeps its own
            values for names not given.
        x1: Inputs `[n1, *input_shape]`.
        x2: Inputs `[n2, *input_shape]`; None means x1.
        output: All pairs of outputs, the mean over outputs of each with itself, or one output.
        method: Which algorithm; NTK-vector products need forward derivatives of every operation.
        diag: Row by row instead of all pairs.
        max_bytes: Memory for Jacobians and the intermediate values of their examples. NTK-vector
            products hold at least one vector of parameters.
        progress: Show a progress bar when it takes longer than a few seconds.

    Returns:
        `[n1, n2, m, m]`, or `[n, m, m]` with `diag`; without the last two unless all outputs are
        asked. Entry o, p belongs to output o at x1 and p at x2.

    Raises:
        ValueError: no parameters, shapes that do not fit, an unknown method or output, or a
            memory limit below the Jacobians of two examples for "jacobian_contraction".
        NotImplementedError: torch has no forward derivative that NTK-vector products need.
        TypeError: the inputs are not tensors.
    """
    check_pair(x1, x2, flat=False, diag=diag)
    tangent = Tangent(
        as_function(function), parameters, x1, output=output, method=method, max_bytes=max_bytes
    )
    if diag:
        return tangent.diagonal(x1, x2, progress=progress)
    return tangent.matrix(x1, x2, progress=progress)


def ntk_vector_product(
    function: nn.Module | ParametricFunction,
    parameters: Mapping[str, Tensor],
    x1: Tensor,
    x2: Tensor,
    vector: Tensor,
) -> Tensor:
    """The product of the tangent kernel of all outputs and a vector, without the kernel.

    Args:
        function: See `empirical_ntk`.
        parameters: See `empirical_ntk`.
        x1: Inputs `[n1, *input_shape]`.
        x2: Inputs `[n2, *input_shape]`.
        vector: A value for each output at x2, `[n2, *output_shape]`.

    Returns:
        `[n1, *output_shape]`: the change of f(x1) under a unit step of gradient descent along
        `vector` at x2.

    Raises:
        ValueError: no parameters, or `vector` has not the shape of f(x2).
    """
    f, values = as_function(function), checked(parameters)
    check_pair(x1, x2, flat=False, diag=False)
    pulled = vjp(lambda p: f(p, x2), values)
    value, pullback = pulled[0], pulled[1]
    if vector.shape != value.shape:
        raise ValueError(
            f"vector has shape {tuple(vector.shape)}; it must have the shape of the outputs at "
            f"x2, {tuple(value.shape)}."
        )
    return along(lambda p: f(p, x1), values, pullback(vector)[0])[1]


class EmpiricalNTKKernel(NetworkKernel):
    """Neural tangent kernel of one output unit of a finite network.

    The weights are copied and stay fixed; they are buffers of the kernel. In the NTK
    parametrisation the prior's variances scale the contributions of the layers and are learnable,
    like a learning rate for each layer; a parameter of variance 0 contributes nothing, and neither
    does one that has `requires_grad` False when the kernel is made.

    Args:
        module: A `torch.nn.Module`, or a `NetworkPrior` whose variances are then shared.
        parameters: Weights by name, each `[*batch_shape, *its shape]`, so that
            `NetworkPrior.draw(batch_shape)` gives a batch of kernels; None means the module's own.
        weight_var: See `NetworkPrior`.
        bias_var: See `NetworkPrior`.
        input_shape: Shape of one input; flat rows are reshaped to it.
        parameterization: "ntk", or "standard" for the gradient in the weights themselves, which
            takes any module that `torch.func` can differentiate.
        output: The mean over output units, or the index of one.
        method: See `empirical_ntk`.
        max_bytes: See `empirical_ntk`.
        progress: Show a progress bar when it takes longer than a few seconds.
        active_dims: Features that the kernel sees.

    Raises:
        ValueError: bad variances, shapes or names, or a module without parameters to train.
        UnsupportedOperationError: `NetworkPrior` does not know the module; "standard" may.
    """

    has_lengthscale = False

    def __init__(
        self,
        module: nn.Module | NetworkPrior,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        weight_var: float | Mapping[str, float] | None = None,
        bias_var: float | Mapping[str, float] | None = None,
        input_shape: Sequence[int] | None = None,
        parameterization: Literal["ntk", "standard"] = "ntk",
        output: Literal["mean"] | int = "mean",
        method: Method = "auto",
        max_bytes: int = 2**30,
        progress: bool = True,
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        if parameterization not in ("ntk", "standard"):
            raise ValueError(
                f'parameterization must be "ntk" or "standard", got {parameterization!r}.'
            )
        if output != "mean" and not isinstance(output, int):
            raise ValueError(f'output must be "mean" or the index of an output, got {output!r}.')
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
        prior: NetworkPrior | None = None
        if isinstance(module, NetworkPrior):
            if not (weight_var is None and bias_var is None and input_shape is None):
                raise ValueError(
                    "EmpiricalNTKKernel made from a NetworkPrior shares its variances and "
                    "input_shape; set them there."
                )
            prior, network = module, module.module
        else:
            network = module
            if parameterization == "ntk":
                parameters_of(network, None)
                prior = NetworkPrior(
                    network, weight_var=weight_var, bias_var=bias_var, input_shape=input_shape
                )
            elif not (weight_var is None and bias_var is None):
                raise ValueError(
                    "Variances scale the gradient in the NTK parametrisation only; omit "
                    'weight_var and bias_var, or use parameterization="ntk".'
                )
        weights = parameters_of(network, parameters)
        super().__init__(batch_shape=batch_shape_of(network, weights), active_dims=active_dims)
        # In a tuple: its code alone is used, with the weights and buffers kept here.
        self._template = (network,)
        self.prior = prior
        self.weights = ByName({name: p.detach().clone() for name, p in weights.items()})
        self.constants = ByName({name: b.clone() for name, b in network.named_buffers()})
        self._untrained = frozenset(
            name for name, p in network.named_parameters() if not p.requires_grad
        )
        if self._untrained >= weights.keys():
            raise ValueError(
                f"The tangent kernel is 0: every parameter of the {type(network).__name__} has "
                "requires_grad=False. Set it to True for those that are trained."
            )
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.parameterization = parameterization
        self.output: Literal["mean"] | int = output
        self.method: Method = method
        self.max_bytes = max_bytes
        self.progress = progress

    def _with_batch(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._with_networks(change(self._places))

    @property
    def _places(self) -> Tensor:
        """Numbers of the networks, of the shape of the batch."""
        count = torch.arange(self.batch_shape.numel(), device="cpu")
        return count.reshape(self.batch_shape)

    def _with_networks(self, grid: Tensor) -> Self:
        """A copy with the networks of these positions in the flattened batch."""
        kernel = deepcopy(self)
        depth = len(self.batch_shape)
        kernel.weights = ByName(
            {
                name: p.reshape(-1, *p.shape[depth:])[grid.to(p.device)]
                for name, p in self.weights.tensors().items()
            }
        )
        kernel.batch_shape = grid.shape
        return kernel

    def _evaluate(self, x1: Tensor, x2: Tensor | None, diag: bool) -> Tensor:
        if not self.batch_shape:
            return self._of_network(self.weights.tensors(), x1, x2, diag)
        inputs = [x1] if x2 is None else [x1, x2]
        shape = torch.broadcast_shapes(self.batch_shape, *(x.shape[:-2] for x in inputs))
        rows = [x.expand(*shape, *x.shape[-2:]) for x in inputs]
        weights = {
            name: p.expand(*shape, *p.shape[len(self.batch_shape) :])
            for name, p in self.weights.tensors().items()
        }
        kernels = [
            self._of_network(
                {name: p[i] for name, p in weights.items()},
                rows[0][i],
                None if x2 is None else rows[1][i],
                diag,
            )
            for i in product(*map(range, shape))
        ]
        return torch.stack(kernels).reshape(*shape, *kernels[0].shape)

    def _of_network(
        self, weights: dict[str, Tensor], x1: Tensor, x2: Tensor | None, diag: bool
    ) -> Tensor:
        check_pair(x1, x2, flat=True, diag=diag)
        if self.prior is not None and self.parameterization == "ntk":
            function, point = whitened(self.prior, weights, x1)
        else:
            held = {name: p.to(x1) for name, p in weights.items()}
            point = {name: held.pop(name) for name in weights if name not in self._untrained}

            def function(trained: Mapping[str, Tensor], x: Tensor) -> Tensor:
                return self._rows({**held, **trained}, x)

        tangent = Tangent(
            function,
            point,
            x1.reshape(-1, x1.shape[-1]),
            output=self.output,
            method=self.method,
            max_bytes=self.max_bytes,
        )
        return tangent.batched(x1, x2, diag=diag, progress=self.progress)

    def _rows(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.prior is not None:
            return self.prior.apply_parameters(parameters, x)
        constants = {
            name: b.to(x) if b.is_floating_point() else b.to(x.device)
            for name, b in self.constants.tensors().items()
        }
        shaped = x if self.input_shape is None else x.reshape(-1, *self.input_shape)
        return call_module(self._template[0], {**parameters, **constants}, shaped)


def whitened(
    prior: NetworkPrior, weights: Mapping[str, Tensor], x: Tensor
) -> tuple[ParametricFunction, dict[str, Tensor]]:
    """The prior's network in steps of prior standard deviations from `weights`, and no step.

    The gradient there is that in the standard normal W and b of the NTK parametrisation. There are
    no steps of parameters that are not trained (`requires_grad` False).
    """
    std = {name: s.to(x) for name, s in prior.parameter_std().items()}
    origin = {name: p.to(x) for name, p in weights.items()}
    trained = {name: s for name, s in std.items() if name not in prior.program.frozen}
    steps = {
        name: torch.zeros_like(origin[name]) for name, s in trained.items() if bool((s > 0).any())
    }

    def function(steps: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = {name: origin[name] + std[name] * step for name, step in steps.items()}
        return prior.apply_parameters({**origin, **moved}, x)

    return function, steps
