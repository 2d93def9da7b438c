"""Kernels of finite networks: tangent kernels by automatic differentiation, limits by Monte Carlo.

For a network f(theta, x) with m outputs, the empirical neural tangent kernel is

    Theta_op(x, x') = sum_k  s_k^2  df_o(x)/dtheta_k  df_p(x')/dtheta_k

with s_k = 1 for gradient descent on the weights themselves ("standard") and, in the NTK
parametrisation z = sqrt(weight_var / fan_in) W x + sqrt(bias_var) b, the prior standard deviation
of theta_k, because the gradient is then one in the standard normal W and b. It is computed either
from whole Jacobians (Jacobian contraction) or one column at a time, a forward derivative along a
backward one (NTK-vector products); both are exact, and which is cheaper depends on the network.

Sources: Jacot et al. 2018 (1806.07572); Novak et al. 2022 (2206.08720) for the two methods and
their costs; Lee et al. 2019 (1902.06720) for the linearised network. Left out: their structured
derivatives, which need rules for every primitive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from priors.networks.finite import NetworkPrior
from priors.networks.functional_call import call_module

__all__ = [
    "EmpiricalNTKKernel",
    "LinearizedModule",
    "MonteCarloKernels",
    "empirical_ntk",
    "linearize",
    "monte_carlo_kernels",
    "ntk_vector_product",
]

ParametricFunction = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Method = Literal["auto", "jacobian_contraction", "ntk_vector_products"]
METHODS = ("auto", "jacobian_contraction", "ntk_vector_products")


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
            each example by itself to `[n, *output_shape]`, flattened to m outputs.
        parameters: By name, those that the kernel differentiates in; a module keeps its own
            values for names not given.
        x1: Inputs `[n1, *input_shape]`.
        x2: Inputs `[n2, *input_shape]`; None means x1.
        output: All pairs of outputs, the mean over outputs of each with itself, or one output.
        method: How; NTK-vector products need forward derivatives of every operation.
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
        TypeError: the inputs are no tensors.
    """
    _check_pair(x1, x2, flat=False, diag=diag)
    tangent = _Tangent(
        _as_function(function), parameters, x1, output=output, method=method, max_bytes=max_bytes
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
        function: As for `empirical_ntk`.
        parameters: As for `empirical_ntk`.
        x1: Inputs `[n1, *input_shape]`.
        x2: Inputs `[n2, *input_shape]`.
        vector: A value for each output at x2, `[n2, *output_shape]`.

    Returns:
        `[n1, *output_shape]`: the change of f(x1) under a unit step of gradient descent along
        `vector` at x2.

    Raises:
        ValueError: no parameters, or `vector` has not the shape of f(x2).
    """
    f, values = _as_function(function), _checked(parameters)
    _check_pair(x1, x2, flat=False, diag=False)
    pulled = vjp(lambda p: f(p, x2), values)
    value, pullback = pulled[0], pulled[1]
    if vector.shape != value.shape:
        raise ValueError(
            f"vector has shape {tuple(vector.shape)}; the outputs at x2, {tuple(value.shape)}, "
            "need one number each."
        )
    return _along(lambda p: f(p, x1), values, pullback(vector)[0])[1]


def linearize(
    function: nn.Module | ParametricFunction, parameters: Mapping[str, Tensor]
) -> ParametricFunction:
    """First-order Taylor expansion of a network in its parameters.

    Args:
        function: As for `empirical_ntk`.
        parameters: The point of expansion theta_0, by name.

    Returns:
        f_lin(theta, x) = f(theta_0, x) + df(theta_0, x)/dtheta (theta - theta_0), for theta by the
        same names.

    Raises:
        ValueError: no parameters; on a call, other names than the expansion's.
    """
    f, origin = _as_function(function), _checked(parameters)

    def linearized(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if parameters.keys() != origin.keys():
            raise ValueError(
                f"The expansion is in the parameters {sorted(origin)}, got {sorted(parameters)}."
            )
        step = {name: parameters[name] - value for name, value in origin.items()}
        value, change = _along(lambda p: f(p, x), origin, step)
        return value + change

    return linearized


class LinearizedModule(nn.Module):
    """A network linearised at given weights, as a module to train.

    Its parameters are the displacements from the weights, 0 at first. Weights and buffers of the
    module are copied: its later training changes nothing here.

    Args:
        module: The network; called with one tensor.
        parameters: The weights to expand at, by name; None means the module's own.

    Raises:
        ValueError: the module has no parameters, or not those named, or of other shapes.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        origin = _parameters_of(module, parameters)
        if batch := _batch_shape(module, origin):
            raise ValueError(f"One network is linearised; got a batch {tuple(batch)} of weights.")
        # In a tuple: its code alone is used, with the weights and buffers kept here.
        self._template = (module,)
        self.origin = _ByName({name: p.detach().clone() for name, p in origin.items()})
        self.constants = _ByName({name: b.clone() for name, b in module.named_buffers()})
        self.displacement = _ByName(
            {name: nn.Parameter(torch.zeros_like(p)) for name, p in origin.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        """The linearised outputs at a batch of inputs, in the shape of the module's."""
        constants = self.constants.tensors()

        def f(parameters: Mapping[str, Tensor]) -> Tensor:
            return call_module(self._template[0], {**parameters, **constants}, x)

        value, change = _along(f, self.origin.tensors(), self.displacement.tensors())
        return value + change


class EmpiricalNTKKernel(Kernel):
    """Neural tangent kernel of one output unit of a finite network.

    The weights are copied and stay fixed; they are buffers of the kernel. In the NTK
    parametrisation the prior's variances scale the contributions of the layers and are learnable,
    like a learning rate for each layer; a parameter of variance 0 contributes nothing.

    Args:
        module: A `torch.nn.Module`, or a `NetworkPrior` whose variances are then shared.
        parameters: Weights by name, each `[*batch_shape, *its shape]`, so that
            `NetworkPrior.draw(batch_shape)` gives a batch of kernels; None means the module's own.
        weight_var: As for `NetworkPrior`.
        bias_var: As for `NetworkPrior`.
        input_shape: Shape of one input; flat rows are reshaped to it.
        parameterization: "ntk", or "standard" for the gradient in the weights themselves, which
            takes any module that `torch.func` can differentiate.
        output: The mean over output units, or the index of one.
        method: As for `empirical_ntk`.
        max_bytes: As for `empirical_ntk`.
        progress: Show a progress bar when it takes longer than a few seconds.
        active_dims: Features that the kernel sees.

    Raises:
        ValueError: bad variances, shapes or names, or a module without parameters.
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
                _parameters_of(network, None)
                prior = NetworkPrior(
                    network, weight_var=weight_var, bias_var=bias_var, input_shape=input_shape
                )
            elif not (weight_var is None and bias_var is None):
                raise ValueError(
                    "Variances scale the gradient in the NTK parametrisation only; leave out "
                    'weight_var and bias_var, or use parameterization="ntk".'
                )
        weights = _parameters_of(network, parameters)
        super().__init__(batch_shape=_batch_shape(network, weights), active_dims=active_dims)
        # In a tuple: its code alone is used, with the weights and buffers kept here.
        self._template = (network,)
        self.prior = prior
        self.weights = _ByName({name: p.detach().clone() for name, p in weights.items()})
        self.constants = _ByName({name: b.clone() for name, b in network.named_buffers()})
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.parameterization = parameterization
        self.output: Literal["mean"] | int = output
        self.method: Method = method
        self.max_bytes = max_bytes
        self.progress = progress

    @property
    def is_stationary(self) -> bool:
        """Network kernels depend on more than the difference of their inputs."""
        return False

    def __getitem__(self, index: Any) -> EmpiricalNTKKernel:
        if len(self.batch_shape) == 0:
            return self
        return self._with_networks(self._places[index])

    def expand_batch(self, *sizes: Any) -> EmpiricalNTKKernel:
        """A copy whose batch of networks is expanded to the given shape."""
        shape = torch.Size(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
        if shape == self.batch_shape:
            return self
        return self._with_networks(self._places.expand(shape))

    @property
    def _places(self) -> Tensor:
        """Numbers of the networks, of the shape of the batch."""
        count = torch.arange(self.batch_shape.numel(), device="cpu")
        return count.reshape(self.batch_shape)

    def _with_networks(self, grid: Tensor) -> EmpiricalNTKKernel:
        """A copy with the networks of these positions in the flattened batch."""
        kernel = deepcopy(self)
        depth = len(self.batch_shape)
        kernel.weights = _ByName(
            {
                name: p.reshape(-1, *p.shape[depth:])[grid.to(p.device)]
                for name, p in self.weights.tensors().items()
            }
        )
        kernel.batch_shape = grid.shape
        return kernel

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Kernel between `x1` `[..., n1, d]` and `x2` `[..., n2, d]`.

        Returns:
            `[..., n1, n2]`, or `[..., n]` with `diag`.

        Raises:
            NotImplementedError: `last_dim_is_batch`, which GPyTorch deprecates.
            ValueError: shapes that do not fit.
        """
        if last_dim_is_batch:
            raise NotImplementedError(
                "Network kernels are not additive over features; last_dim_is_batch has no meaning."
            )
        # The same points in two tensors: equal values without separate gradients to keep apart.
        same = x1 is x2 or (
            x1.shape == x2.shape
            and not (x1.requires_grad or x2.requires_grad)
            and torch.equal(x1, x2)
        )
        other = None if same else x2
        if not self.batch_shape:
            return self._evaluate(self.weights.tensors(), x1, other, diag)
        inputs = [x1] if other is None else [x1, other]
        shape = torch.broadcast_shapes(self.batch_shape, *(x.shape[:-2] for x in inputs))
        rows = [x.expand(*shape, *x.shape[-2:]) for x in inputs]
        weights = {
            name: p.expand(*shape, *p.shape[len(self.batch_shape) :])
            for name, p in self.weights.tensors().items()
        }
        kernels = [
            self._evaluate(
                {name: p[i] for name, p in weights.items()},
                rows[0][i],
                None if other is None else rows[1][i],
                diag,
            )
            for i in product(*map(range, shape))
        ]
        return torch.stack(kernels).reshape(*shape, *kernels[0].shape)

    def _evaluate(
        self, weights: dict[str, Tensor], x1: Tensor, x2: Tensor | None, diag: bool
    ) -> Tensor:
        _check_pair(x1, x2, flat=True, diag=diag)
        if self.prior is not None and self.parameterization == "ntk":
            function, point = _whitened(self.prior, weights, x1)
        else:
            function, point = self._rows, {name: p.to(x1) for name, p in weights.items()}
        tangent = _Tangent(
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


@dataclass(frozen=True)
class MonteCarloKernels:
    """Averages over random finite networks, `[..., n1, n2]` or `[..., n]` each.

    Attributes:
        nngp: Second moment of one output unit.
        nngp_error: Its standard error over networks.
        ntk: Tangent kernel of one output unit; None where it was not asked.
        ntk_error: Its standard error over networks.
    """

    nngp: Tensor
    nngp_error: Tensor
    ntk: Tensor | None
    ntk_error: Tensor | None


def monte_carlo_kernels(
    prior: NetworkPrior,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    num_networks: int,
    generator: torch.Generator | None = None,
    ntk: bool = True,
    diag: bool = False,
    method: Method = "auto",
    max_bytes: int = 2**30,
    progress: bool = True,
) -> MonteCarloKernels:
    """Kernels of a random network at its own widths, averaged over independent draws.

    Unbiased for those widths, at any module that `NetworkPrior` takes. Towards the infinite-width
    limit the bias is of order 1 / width; a fully connected network of one hidden layer has none.
    The errors measure the spread over networks alone, not that bias. Each average is also one
    over the output units.

    Args:
        prior: The networks and their scaling.
        x1: Inputs `[..., n1, d]`.
        x2: Inputs `[..., n2, d]`; None means x1.
        num_networks: Networks drawn, >= 2.
        generator: Source of randomness; `method` and `max_bytes` do not change what is drawn.
        ntk: Whether the tangent kernel is wanted, the dearer of the two.
        diag: Row by row instead of all pairs.
        method: As for `empirical_ntk`.
        max_bytes: As for `empirical_ntk`.
        progress: Show a progress bar when it takes longer than a few seconds.

    Returns:
        Detached estimates with their standard errors.

    Raises:
        ValueError: fewer than two networks, or shapes that do not fit.
    """
    if num_networks < 2:
        raise ValueError(f"A standard error needs num_networks >= 2, got {num_networks}.")
    _check_pair(x1, x2, flat=True, diag=diag)
    nngp_moments, ntk_moments = _Moments(), _Moments()
    networks = tqdm(
        range(num_networks), desc="networks", delay=5.0, leave=False, disable=not progress
    )
    with torch.no_grad():
        for _ in networks:
            weights = prior.draw(generator=generator)
            f1 = prior.apply_parameters(weights, x1)
            f2 = f1 if x2 is None else prior.apply_parameters(weights, x2)
            nngp_moments.add((f1 * f2).mean(-1) if diag else f1 @ f2.mT / f1.shape[-1])
            if ntk:
                function, point = _whitened(prior, weights, x1)
                tangent = _Tangent(
                    function,
                    point,
                    x1.reshape(-1, x1.shape[-1]),
                    output="mean",
                    method=method,
                    max_bytes=max_bytes,
                )
                ntk_moments.add(tangent.batched(x1, x2, diag=diag, progress=False))
    return MonteCarloKernels(
        nngp=nngp_moments.mean,
        nngp_error=nngp_moments.standard_error(),
        ntk=ntk_moments.mean if ntk else None,
        ntk_error=ntk_moments.standard_error() if ntk else None,
    )


# The tangent kernel of one function at one point -------------------------------------------------


class _Cost(TorchDispatchMode):
    """Counts the numbers that a computation produces.

    Views count as well: derivatives copy some of what the forward pass only views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


class _Tangent:
    """A function and its parameters, with what its derivatives cost.

    Args:
        function: f(parameters, x) of a batch.
        parameters: The point.
        x: Examples `[n, *input_shape]`, n >= 1; the first is tried.
        output: As for `empirical_ntk`.
        method: As for `empirical_ntk`.
        max_bytes: As for `empirical_ntk`.
    """

    def __init__(
        self,
        function: ParametricFunction,
        parameters: Mapping[str, Tensor],
        x: Tensor,
        *,
        output: str | int,
        method: str,
        max_bytes: int,
    ) -> None:
        self.parameters = _checked(parameters)
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
        if len(x) == 0:
            raise ValueError("x1 has no rows; the kernel needs one at least.")
        self.function, self.method, self.max_bytes = function, method, max_bytes
        self.trial = x[:1].detach()
        counter, numbers = FlopCounterMode(display=False), _Cost()
        with torch.no_grad(), counter, numbers:
            value = function(self.parameters, self.trial)
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                "The function must return a tensor [n, ...] with a row for each of n inputs; one "
                f"input gave {came}."
            )
        self.num_outputs = value.numel()
        self.only: slice = slice(None)
        if isinstance(output, int):
            if not -self.num_outputs <= output < self.num_outputs:
                raise ValueError(
                    f"output {output} does not exist; the network has {self.num_outputs}."
                )
            output %= self.num_outputs
            self.only, self.num_outputs = slice(output, output + 1), 1
        elif output not in ("all", "mean"):
            raise ValueError(f'output must be "all", "mean" or an index, got {output!r}.')
        self.traced = output != "all"
        self.num_parameters = sum(p.numel() for p in self.parameters.values())
        self.dtype, self.item = value.dtype, value.element_size()
        # get_total_flops counts a multiply-add as two
        self.forward = max(counter.get_total_flops() / 2, self.num_parameters)
        self.intermediate = max(1, numbers.numbers)

    def outputs(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The wanted outputs at a batch, `[n, m]`."""
        return self.function(parameters, x).reshape(len(x), -1)[:, self.only]

    def outputs_of_one(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The wanted outputs at one example, `[m]`."""
        return self.outputs(parameters, x[None])[0]

    def jacobians(self, x: Tensor) -> dict[str, Tensor]:
        """Derivatives of the outputs of each example by parameter, `[n, m, p]`."""
        blocks = vmap(jacrev(self.outputs_of_one), in_dims=(None, 0))(self.parameters, x)
        return {name: J.flatten(2) if J.dim() > 2 else J[..., None] for name, J in blocks.items()}

    @property
    def examples(self) -> int:
        """Examples whose Jacobians and intermediate values fit the memory."""
        per_example = self.num_outputs * (self.num_parameters + self.intermediate)
        return int(self.max_bytes // (self.item * per_example))

    def contracts(self, n1: int, n2: int | None, diag: bool) -> bool:
        """Whether Jacobians are contracted, for n1 rows and n2 others, None for the same rows."""
        if self.method == "ntk_vector_products":
            return False
        needed = 1 if n2 is None and (diag or n1 == 1) else 2
        if self.examples < needed:
            if self.method == "auto":
                return False
            unit = self.item * self.num_outputs * (self.num_parameters + self.intermediate)
            raise ValueError(
                f"max_bytes is {self.max_bytes}, but the Jacobians of {needed} examples take "
                f'{needed * unit}; raise it or use method="ntk_vector_products".'
            )
        if self.method == "jacobian_contraction":
            return True
        m, P, FP = self.num_outputs, self.num_parameters, self.forward
        columns = n1 if n2 is None else n2
        pairs = n1 if diag else n1 * columns
        examples: float = n1 if n2 is None else n1 + n2
        if not diag and examples > self.examples:  # the second side once for each block of rows
            repeats = math.ceil(n1 / self.block(n1, n2))
            examples = n1 + columns * (repeats - 1) / 2 if n2 is None else n1 + columns * repeats
        contraction = 2 * examples * m * FP + pairs * m * P * (1 if self.traced else m)
        products = 2 * columns * m * FP + 2 * pairs * m * FP
        return contraction <= products or not self._has_forward_derivative()

    def _has_forward_derivative(self) -> bool:
        still = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        try:
            with torch.no_grad():
                _along(lambda p: self.function(p, self.trial), self.parameters, still)
        except NotImplementedError:
            return False
        return True

    def block(self, n1: int, n2: int | None) -> int:
        """Rows of either side whose Jacobians are held together."""
        if n1 + (n2 or 0) <= self.examples:
            return max(n1, n2 or 0)
        return self.examples // 2

    def matrix(self, x1: Tensor, x2: Tensor | None, *, progress: bool) -> Tensor:
        """`[n1, n2, m, m]`, or `[n1, n2]` where the outputs are traced."""
        n2 = None if x2 is None else len(x2)
        if self.contracts(len(x1), n2, diag=False):
            return self._contracted(x1, x2, progress)
        return self._by_columns(x1, x1 if x2 is None else x2, progress)

    def diagonal(self, x1: Tensor, x2: Tensor | None, *, progress: bool) -> Tensor:
        """`[n, m, m]`, or `[n]` where the outputs are traced."""
        if self.contracts(len(x1), None if x2 is None else len(x2), diag=True):
            return self._contracted_diagonal(x1, x2, progress)
        return self._diagonal_by_columns(x1, x1 if x2 is None else x2, progress)

    def batched(self, x1: Tensor, x2: Tensor | None, *, diag: bool, progress: bool) -> Tensor:
        """The same of rows `[..., n, d]` whose batch dimensions broadcast, traced outputs."""
        inputs = [x1] if x2 is None else [x1, x2]
        shape = torch.broadcast_shapes(*(x.shape[:-2] for x in inputs))
        if not shape:
            return (self.diagonal if diag else self.matrix)(x1, x2, progress=progress)
        rows = [x.expand(*shape, *x.shape[-2:]) for x in inputs]
        if diag:
            flat = [x.reshape(-1, x.shape[-1]) for x in rows]
            kernel = self.diagonal(flat[0], flat[1] if x2 is not None else None, progress=progress)
            return kernel.reshape(rows[0].shape[:-1])
        total = sum(x.shape[:-1].numel() for x in inputs)
        n2 = None if x2 is None else x2.shape[-2]
        if total <= self.examples and self.contracts(x1.shape[-2], n2, diag=False):
            sides = [
                {
                    name: J.flatten(1).reshape(*x.shape[:-1], -1)
                    for name, J in self.jacobians(x.reshape(-1, x.shape[-1])).items()
                }
                for x in inputs
            ]
            products = (sides[0][name] @ sides[-1][name].mT for name in self.parameters)
            return _sum(products) / self.num_outputs
        flat = [x.reshape(-1, *x.shape[-2:]) for x in rows]
        pairs = zip(*flat, strict=True) if x2 is not None else ((x, None) for x in flat[0])
        kernels = [self.matrix(a, b, progress=progress) for a, b in pairs]
        return torch.stack(kernels).reshape(*shape, *kernels[0].shape)

    def _contracted(self, x1: Tensor, x2: Tensor | None, progress: bool) -> Tensor:
        block = self.block(len(x1), None if x2 is None else len(x2))
        rows = x1.split(block)
        columns = rows if x2 is None else x2.split(block)
        grid: list[list[Tensor]] = []
        for i, a in enumerate(_bar(rows, progress)):
            left = self.jacobians(a)
            grid.append([])
            for j, b in enumerate(columns):
                if x2 is None and j < i:
                    mirrored = grid[j][i].transpose(0, 1)
                    grid[i].append(mirrored if self.traced else mirrored.mT)
                    continue
                right = left if x2 is None and j == i else self.jacobians(b)
                grid[i].append(self._contract(left, right))
        return torch.cat([torch.cat(blocks, dim=1) for blocks in grid])

    def _contract(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
        if self.traced:
            products = (left[name].flatten(1) @ right[name].flatten(1).mT for name in left)
            return _sum(products) / self.num_outputs
        m = self.num_outputs
        products = (left[name].flatten(0, 1) @ right[name].flatten(0, 1).mT for name in left)
        return _sum(products).unflatten(0, (-1, m)).unflatten(-1, (-1, m)).transpose(1, 2)

    def _contracted_diagonal(self, x1: Tensor, x2: Tensor | None, progress: bool) -> Tensor:
        block = self.examples if x2 is None else self.examples // 2
        blocks = []
        starts = range(0, len(x1), block)
        for start in _bar(starts, progress):
            left = self.jacobians(x1[start : start + block])
            right = left if x2 is None else self.jacobians(x2[start : start + block])
            products = (left[name] @ right[name].mT for name in left)
            if self.traced:
                products = ((left[name] * right[name]).sum((1, 2)) for name in left)
            blocks.append(_sum(products) / (self.num_outputs if self.traced else 1))
        return torch.cat(blocks)

    def pullback(self, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        """The parameter gradient of `cotangent` `[m]` times the outputs at one example."""
        return vjp(lambda p: self.outputs_of_one(p, x), self.parameters)[1](cotangent)[0]

    def _by_columns(self, x1: Tensor, x2: Tensor, progress: bool) -> Tensor:
        n1, n2, m = len(x1), len(x2), self.num_outputs
        numbers = self.max_bytes // self.item
        one = self.num_parameters + self.intermediate
        # As many rows as keep the tangents of their values no larger than those of parameters.
        rows = min(n1, 1 + self.num_parameters // self.intermediate)
        columns = min(n2 * m, max(1, numbers // (one + rows * self.intermediate)))
        if columns == n2 * m:
            rows = max(rows, (numbers // columns - one) // self.intermediate)
        basis = torch.eye(m, dtype=self.dtype, device=x1.device)

        def push(tangents: dict[str, Tensor], x: Tensor) -> Tensor:
            return _along(lambda p: self.outputs(p, x), self.parameters, tangents)[1]

        parts = []
        pairs = torch.arange(n2 * m, device=x1.device)
        for chosen in _bar(pairs.split(columns), progress):
            example, unit = chosen // m, chosen % m
            tangents = vmap(self.pullback)(x2[example], basis[unit])
            part = torch.cat(
                [vmap(push, in_dims=(0, None))(tangents, a) for a in x1.split(rows)], dim=1
            )
            # traced: of the outputs at x1 the one that the column belongs to
            parts.append((part * basis[unit][:, None]).sum(-1) if self.traced else part)
        kernel = torch.cat(parts).unflatten(0, (n2, m))
        if self.traced:
            return kernel.mean(1).mT
        return kernel.permute(2, 0, 3, 1)  # from [n2, m of x2, n1, m of x1]

    def _diagonal_by_columns(self, x1: Tensor, x2: Tensor, progress: bool) -> Tensor:
        n, m = len(x1), self.num_outputs
        numbers = self.max_bytes // self.item
        columns = max(1, numbers // (self.num_parameters + 2 * self.intermediate))
        basis = torch.eye(m, dtype=self.dtype, device=x1.device)

        def column(a: Tensor, b: Tensor, cotangent: Tensor) -> Tensor:
            tangents = self.pullback(b, cotangent)
            return _along(lambda p: self.outputs_of_one(p, a), self.parameters, tangents)[1]

        parts = []
        for chosen in _bar(torch.arange(n * m, device=x1.device).split(columns), progress):
            example, unit = chosen // m, chosen % m
            part = vmap(column)(x1[example], x2[example], basis[unit])
            parts.append((part * basis[unit]).sum(-1) if self.traced else part)
        kernel = torch.cat(parts).unflatten(0, (n, m))
        return kernel.mean(1) if self.traced else kernel.mT


class _Moments:
    """Running mean and squared deviation of equally shaped tensors (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), device="cpu")

    def add(self, value: Tensor) -> None:
        """Take in one tensor."""
        self.count += 1
        before = value - self.mean.to(value)
        self.mean = self.mean.to(value) + before / self.count
        self._squares = self._squares.to(value) + before * (value - self.mean)

    def standard_error(self) -> Tensor:
        """Of the mean, from independent values."""
        return (self._squares / (self.count * (self.count - 1))).sqrt()


class _ByName(nn.Module):
    """Parameters and buffers under the dotted names of another module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            key = name.replace(".", "/")  # a dot would be a submodule
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(key, tensor)
            else:
                self.register_buffer(key, tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All by dotted name."""
        held = (*self._parameters.items(), *self._buffers.items())
        return {key.replace("/", "."): tensor for key, tensor in held if tensor is not None}


def _whitened(
    prior: NetworkPrior, weights: Mapping[str, Tensor], x: Tensor
) -> tuple[ParametricFunction, dict[str, Tensor]]:
    """The prior's network in steps of prior standard deviations from `weights`, and no step.

    The gradient there is that in the standard normal W and b of the NTK parametrisation.
    """
    std = {name: s.to(x) for name, s in prior.parameter_std().items()}
    origin = {name: p.to(x) for name, p in weights.items()}
    steps = {name: torch.zeros_like(origin[name]) for name, s in std.items() if bool((s > 0).any())}

    def function(steps: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = {name: origin[name] + std[name] * step for name, step in steps.items()}
        return prior.apply_parameters({**origin, **moved}, x)

    return function, steps


def _along(
    function: Callable[[dict[str, Tensor]], Tensor],
    point: dict[str, Tensor],
    direction: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Value at `point` and derivative along `direction`.

    Raises:
        NotImplementedError: torch has no forward derivative of some operation.
    """
    try:
        value, change = jvp(function, (point,), (direction,))  # type: ignore[misc]
    except NotImplementedError as error:
        raise NotImplementedError(
            "torch has no forward derivative of an operation of this network "
            f"({str(error).splitlines()[0]}). Kernels can do without by jacobian_contraction; "
            "attention has one under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), "
            "nn.MultiheadAttention in train mode only."
        ) from error
    return value, change


def _as_function(function: nn.Module | ParametricFunction) -> ParametricFunction:
    if not isinstance(function, nn.Module):
        return function
    module = function
    return lambda parameters, x: call_module(module, parameters, x)


def _checked(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not parameters:
        raise ValueError(
            "There is no parameter to differentiate in; give those of the network by name, and "
            "for a prior a variance that is not 0."
        )
    return dict(parameters)


def _parameters_of(module: nn.Module, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    own = dict(module.named_parameters())
    if not own:
        raise ValueError(f"{type(module).__name__} has no parameters, so there is no tangent.")
    lazy = [name for name, p in own.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(f"The widths of {lazy} are open; run the module once on an input.")
    if parameters is None:
        return dict(own)
    if parameters.keys() != own.keys():
        raise ValueError(f"The module has parameters {sorted(own)}, got {sorted(parameters)}.")
    return {name: parameters[name] for name in own}


def _batch_shape(module: nn.Module, parameters: Mapping[str, Tensor]) -> torch.Size:
    """What precedes each parameter's own shape, the same for all."""
    shapes = set()
    for name, own in module.named_parameters():
        came, lead = parameters[name].shape, parameters[name].dim() - own.dim()
        if lead < 0 or came[lead:] != own.shape:
            raise ValueError(
                f"Parameter {name!r} has shape {tuple(came)}; expected {tuple(own.shape)}, after "
                "batch dimensions."
            )
        shapes.add(came[:lead])
    if len(shapes) > 1:
        raise ValueError(f"The parameters differ in their batch dimensions: {sorted(shapes)}.")
    return shapes.pop()


def _check_pair(x1: Tensor, x2: Tensor | None, *, flat: bool, diag: bool) -> None:
    """Examples in one dimension of rows, or `flat` ones `[..., n, d]`."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
        if x.dim() < (2 if flat else 1):
            raise ValueError(
                f"{name} must have shape {'[..., n, d]' if flat else '[n, *input_shape]'}, got "
                f"{tuple(x.shape)}; one input is x[None]."
            )
    if x2 is None:
        return
    row = -2 if flat else -x1.dim()
    examples = [x.shape[x.dim() + row + 1 :] for x in (x1, x2)]
    if examples[0] != examples[1] or not (flat or x1.dim() == x2.dim()):
        raise ValueError(
            f"x2 has shape {tuple(x2.shape)}, x1 {tuple(x1.shape)}; inputs must agree in all but "
            "the number of rows."
        )
    if diag and x1.shape[row] != x2.shape[row]:
        raise ValueError(
            f"diag=True pairs rows, but x1 has {x1.shape[row]} and x2 {x2.shape[row]}."
        )


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _bar(blocks: Sequence[Any], progress: bool) -> Any:
    return tqdm(
        blocks, desc="tangent kernel", unit="block", delay=5.0, leave=False, disable=not progress
    )
