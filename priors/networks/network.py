"""One architecture as a prior over functions: infinitely wide, or at the widths it has.

NTK parametrisation, z = sqrt(weight_var / fan_in) W x + sqrt(bias_var) b with standard normal W
and b: the variances are the hyperparameters, one per layer, positive and learnable.
`InfiniteNetwork` has the limit's kernels, `NetworkPrior` draws finite networks; made from each
other they share their variances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor, nn

from priors.gaussian.activations import Activation
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo
from priors.limits.evaluation import Evaluation
from priors.limits.moments import Points, Settings
from priors.limits.tangents import readouts
from priors.networks.criticality import critical_initialisation, susceptibilities
from priors.networks.functional_call import call_module
from priors.programs.nodes import Embedding, Linear, Nonlinear
from priors.programs.program import Program
from priors.programs.tracer import trace
from priors.randomness import RandomSource

__all__ = ["InfiniteNetwork", "LayerCriticality", "LayerVariances", "NetworkPrior"]

VarianceSpec = float | Mapping[str, float]


class LayerVariances(gpytorch.Module):
    """The weight and bias variances of a network, one of each per layer.

    Parameters are called `raw_weight_var_<layer>` and `raw_bias_var_<layer>` (dots of the layer's
    name as `_`), the logarithm of the ratio to the initial value, so that GPyTorch's
    constraints, priors and fitting apply.
    A variance of 0 is a constant, not a parameter. In a chain of positively homogeneous layers
    without biases only the product of the weight variances is identified; there the last layer's
    is learnable and the others are constants.

    Args:
        program: The network whose layers have variances.
        weight_var: One value for all, or a value by layer name (others 1).
        bias_var: One value for all biases, or a value by layer name (others 0).
        batch_shape: Batch of independent variances.

    Raises:
        ValueError: a negative or non-finite variance, or a name that is no layer.
    """

    def __init__(
        self,
        program: Program,
        *,
        weight_var: VarianceSpec = 1.0,
        bias_var: VarianceSpec = 0.0,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.batch_shape = torch.Size(batch_shape)
        self._slots: dict[tuple[str, str], str] = {}
        weights = _per_layer("weight_var", weight_var, list(program.weights), default=1.0)
        biases = _per_layer("bias_var", bias_var, list(program.biases), default=0.0)
        last = {program.nodes[i].layer for i in readouts(program, program.output)}  # type: ignore[union-attr]
        only_product = program.is_homogeneous_chain and not any(biases.values())
        for layer, value in weights.items():
            learnable = value > 0 and (not only_product or layer in last)
            self._register("weight", layer, value, learnable)
        for layer, value in biases.items():
            self._register("bias", layer, value, learnable=value > 0)

    def _register(self, kind: str, layer: str, value: float, learnable: bool) -> None:
        slot = f"{kind}_var_{layer.replace('.', '_')}"
        if slot in self._slots.values():
            raise ValueError(f"Two layers would both be called {slot!r}; rename {layer!r}.")
        self._slots[kind, layer] = slot
        full = torch.full(self.batch_shape, float(value), dtype=torch.float64)
        if learnable:
            self.register_parameter(f"raw_{slot}", nn.Parameter(torch.zeros(self.batch_shape)))
            self.register_constraint(f"raw_{slot}", _LogRatio(full))
        else:
            self.register_buffer(slot, full)

    def value(self, kind: str, layer: str, like: Tensor | None = None) -> Tensor:
        """Variance of kind "weight" or "bias" of a layer, `[*batch_shape]`.

        In the dtype and on the device of `like`, computed there, else in those of the parameter.
        """
        slot = self._slots[kind, layer]
        if slot in self._buffers:
            constant: Tensor = getattr(self, slot)
            return constant.to(torch.get_default_dtype()) if like is None else constant.to(like)
        raw = getattr(self, f"raw_{slot}")
        return getattr(self, f"raw_{slot}_constraint").transform(
            raw if like is None else raw.to(like)
        )

    def set(self, kind: str, layer: str, value: float | Tensor) -> None:
        """Set a variance in place.

        Raises:
            ValueError: no such layer, a value that is not positive for a learnable variance, or
                a value other than 0 for one that was made as the constant 0.
        """
        if (kind, layer) not in self._slots:
            names = [name for k, name in self._slots if k == kind]
            raise ValueError(f"No layer {layer!r} has a {kind}_var; those that have are {names}.")
        slot = self._slots[kind, layer]
        device = value.device if isinstance(value, Tensor) else "cpu"
        new = torch.as_tensor(value, dtype=torch.float64, device=device)
        if slot in self._buffers:
            buffer = getattr(self, slot)
            if bool((buffer == 0).all()) and bool((new != 0).any()):
                raise ValueError(
                    f"{kind}_var of layer {layer!r} was made as 0, which is fixed; make the "
                    "network with a positive one to change it."
                )
            _check_positive(new, f"{kind}_var of layer {layer!r}", or_zero=True)
            buffer.copy_(new.to(buffer).expand_as(buffer))
            return
        _check_positive(new, f"{kind}_var of layer {layer!r}")
        raw = getattr(self, f"raw_{slot}")
        constraint = getattr(self, f"raw_{slot}_constraint")
        with torch.no_grad():
            if isinstance(constraint, _LogRatio):
                constraint.unit = new.to(raw.device).expand(self.batch_shape).clone()
                raw.zero_()
            else:
                raw.copy_(constraint.inverse_transform(new.to(raw)).expand_as(raw))

    def with_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply an indexing or an expansion to every variance, in place."""
        for slot in self._slots.values():
            if slot in self._buffers:
                self._buffers[slot] = change(getattr(self, slot))
                continue
            raw = getattr(self, f"raw_{slot}")
            self._parameters[f"raw_{slot}"] = nn.Parameter(
                change(raw.detach()).clone(), requires_grad=raw.requires_grad
            )
            constraint = getattr(self, f"raw_{slot}_constraint")
            if isinstance(constraint, _LogRatio):
                constraint.unit = change(constraint.unit)
        self.batch_shape = self.value(*next(iter(self._slots))).shape

    @property
    def weight_var(self) -> LayerMapping:
        """Weight variances by layer name; assignment sets them."""
        return LayerMapping(self, "weight")

    @property
    def bias_var(self) -> LayerMapping:
        """Bias variances by layer name, of layers that have a bias; assignment sets them."""
        return LayerMapping(self, "bias")


class _LogRatio(Positive):
    """variance = unit * exp(raw), so that the initial value is exact in every dtype."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__(transform=torch.exp, inv_transform=torch.log)
        self.register_buffer("unit", unit)

    def transform(self, tensor: Tensor) -> Tensor:
        return self.unit.to(tensor) * tensor.exp()

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        return (transformed_tensor / self.unit.to(transformed_tensor)).log()


class LayerMapping(Mapping[str, Tensor]):
    """Variances of one kind by layer name."""

    def __init__(self, variances: LayerVariances, kind: str) -> None:
        self._variances, self._kind = variances, kind

    def __getitem__(self, layer: str) -> Tensor:
        if (self._kind, layer) not in self._variances._slots:
            raise KeyError(layer)
        return self._variances.value(self._kind, layer)

    def __setitem__(self, layer: str, value: float | Tensor) -> None:
        self._variances.set(self._kind, layer, value)

    def __iter__(self) -> Iterator[str]:
        return (layer for kind, layer in self._variances._slots if kind == self._kind)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Network(gpytorch.Module):
    """What the infinite and the finite view of an architecture share."""

    program: Program
    variances: LayerVariances
    _template: tuple[nn.Module]

    def __init__(
        self,
        module: nn.Module | _Network,
        weight_var: VarianceSpec | None,
        bias_var: VarianceSpec | None,
        input_shape: Sequence[int] | None,
        batch_shape: torch.Size,
    ) -> None:
        super().__init__()
        if isinstance(module, _Network):
            if not (weight_var is None and bias_var is None and input_shape is None):
                raise ValueError(
                    f"{type(self).__name__} made from another network shares its variances and "
                    "input_shape; set them there."
                )
            self._template = module._template
            self.program = module.program
            self.variances = module.variances
            return
        # In a tuple, so that the finite weights are no parameters of this prior.
        self._template = (module,)
        self.program = trace(module, input_shape)
        self.variances = LayerVariances(
            self.program,
            weight_var=1.0 if weight_var is None else weight_var,
            bias_var=0.0 if bias_var is None else bias_var,
            batch_shape=batch_shape,
        )

    @property
    def module(self) -> nn.Module:
        """The module that this network was made from."""
        return self._template[0]

    def _check_rows(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
        if x.dim() < 2:
            raise ValueError(
                f"{name} must have shape [..., n, d], got {tuple(x.shape)}; one point is "
                "x[None, :], one feature is x[:, None]."
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}.")
        shape = self.program.input_shape
        if None not in shape and x.shape[-1] != math.prod(s or 1 for s in shape):
            raise ValueError(
                f"{name} has {x.shape[-1]} features in its last dimension; the network expects "
                f"{math.prod(s or 1 for s in shape)} (input shape {shape})."
            )


@dataclass(frozen=True)
class LayerCriticality:
    """How a layer passes signals on (Roberts, Yaida & Hanin 2021, chapter 5).

    Attributes:
        layer: The layer whose weights follow the nonlinearity.
        variance: Of the nonlinearity's input.
        chi_parallel: Factor on a small change of the input's norm; 1 at criticality.
        chi_perp: Factor on a small change of its direction; 1 at criticality.
    """

    layer: str
    variance: float
    chi_parallel: float
    chi_perp: float


class InfiniteNetwork(_Network):
    """The limit of a network as all hidden widths go to infinity.

    Args:
        module: A `torch.nn.Module` (see `priors.programs.tracer.trace` for what it may contain),
            or a `NetworkPrior`, whose variances are then shared. Widths and weights do not matter.
        weight_var: Variance of the weights: one value for all layers or a dict by layer name.
        bias_var: Variance of the biases, likewise.
        input_shape: Shape of one input, e.g. `(1, 8, 8)`; rows are reshaped to it.
        batch_shape: Batch of independent variances.
        parameterization: "ntk", or "standard" with the module's own widths: the same NNGP
            kernel, and the tangent kernel of gradient descent on weights W ~ N(0, weight_var /
            fan_in) themselves (Sohl-Dickstein et al. 2020, 2001.07301).
        quadrature: Rule for expectations over many variables (gates, attention over heads).
        max_variables: Most variables of such an expectation; beyond, it is refused.
        max_bytes: Memory for what is held besides the kernels.
        devices: Where the blocks of a large kernel are computed, in turn, when no gradient is
            needed, e.g. `["cuda:0", "cuda:1"]`; empty means where the inputs are.

    Raises:
        UnsupportedOperationError: the module contains something without a limit here.
        ValueError: bad variances or shapes.
    """

    def __init__(
        self,
        module: nn.Module | NetworkPrior,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        input_shape: Sequence[int] | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        parameterization: str = "ntk",
        quadrature: QuasiMonteCarlo | None = None,
        max_variables: int = 64,
        max_bytes: int = 2**30,
        devices: Sequence[torch.device | str] = (),
    ) -> None:
        super().__init__(module, weight_var, bias_var, input_shape, batch_shape)
        if parameterization not in ("ntk", "standard"):
            raise ValueError(
                f'parameterization must be "ntk" or "standard", got {parameterization!r}.'
            )
        self.parameterization = parameterization
        self.quadrature = QuasiMonteCarlo() if quadrature is None else quadrature
        self.max_variables = max_variables
        self.max_bytes = max_bytes
        self.devices = tuple(torch.device(d) for d in devices)

    def nngp(self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False) -> Tensor:
        """Covariance of one output unit under the prior (neural network Gaussian process).

        Args:
            x1: Inputs `[..., n1, d]`.
            x2: Inputs `[..., n2, d]`; None means x1.
            diag: Row by row instead of all pairs.

        Returns:
            `[..., n1, n2]`, or `[..., n]` with `diag`.

        Raises:
            ValueError: shapes do not fit the network or each other.
        """
        kernel, _ = self._kernels(x1, x2, diag, nngp=True, ntk=False)
        assert kernel is not None
        return kernel

    def ntk(self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False) -> Tensor:
        """Neural tangent kernel of one output unit; arguments and shapes as for `nngp`."""
        _, kernel = self._kernels(x1, x2, diag, nngp=False, ntk=True)
        assert kernel is not None
        return kernel

    def kernels(
        self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both kernels, `(nngp, ntk)`, from one pass; arguments as for `nngp`."""
        nngp, ntk = self._kernels(x1, x2, diag, nngp=True, ntk=True)
        assert nngp is not None
        assert ntk is not None
        return nngp, ntk

    def criticality(self, *, input_variance: float = 1.0) -> list[LayerCriticality]:
        """How each hidden layer passes signals on, at a typical input.

        Args:
            input_variance: Mean square of the input's features.

        Returns:
            One entry for each plain nonlinearity and each layer that it feeds, in order.
        """
        program = self.program
        size = math.prod(1 if s is None else s for s in program.input_shape)
        raw = next(iter(self.variances.state_dict().values()))
        x = torch.full((1, size), math.sqrt(input_variance), dtype=torch.float64, device=raw.device)
        found = []
        with torch.no_grad():
            own = Points(program, self._settings(), x).own
            for index, target in program.edges():
                phi, source = own.activation(index)
                variance = float(own.variance_of(source, 0).mean())
                weight_var = float(self.variances.value("weight", target.layer, x))
                parallel, perpendicular = susceptibilities(phi, variance, weight_var)
                found.append(
                    LayerCriticality(target.layer, variance, float(parallel), float(perpendicular))
                )
        return found

    def tune_to_criticality(self, *, input_variance: float = 1.0) -> InfiniteNetwork:
        """Set the variances so that signals neither grow nor vanish with the depth, in place.

        Every layer that a plain nonlinearity feeds gets the critical weight and bias variance of
        that nonlinearity, the first layers what brings the input to the critical variance where
        there is one. Readouts are left alone.

        Args:
            input_variance: Mean square of the input's features.

        Returns:
            This network.

        Raises:
            ValueError: a nonlinearity has no critical point, or needs a bias where the network
                has none (or one fixed at 0).
        """
        program = self.program
        last = {program.nodes[i].layer for i in readouts(program, program.output)}  # type: ignore[union-attr]
        values: dict[str, tuple[float, float]] = {}
        start = (1.0, 0.0, 0.0)
        for index, target in reversed(program.edges()):
            node = program.nodes[index]
            assert isinstance(node, Nonlinear)
            phi = node.factors[0].function
            assert isinstance(phi, Activation)
            start = critical_initialisation(phi)
            if target.layer not in last:
                values[target.layer] = start[:2]
        weight_var, bias_var, variance = start
        for layer in program.weights:
            if layer not in values and layer not in last:
                first = (variance - bias_var) / input_variance if variance > 0 else weight_var
                values[layer] = (first, bias_var)
        for layer, (weight, bias) in values.items():
            self.variances.set("weight", layer, weight)
            if bias > 0 or layer in self.variances.bias_var:
                try:
                    self.variances.set("bias", layer, bias)
                except ValueError as error:
                    raise ValueError(
                        f"Layer {layer!r} needs a bias of variance {bias:.4g} to be critical: "
                        "give its module a bias and make the network with a positive bias_var."
                    ) from error
        return self

    def quadrature_error(
        self, x1: Tensor, x2: Tensor | None = None, *, diag: bool = False, replicates: int = 8
    ) -> tuple[Tensor, Tensor]:
        """Standard errors of both kernels from quasi-Monte Carlo, `(nngp, ntk)`.

        The spread of the kernels over independent scramblings of the points, which includes what
        an error in one layer does to the next. 0 where no such expectation is needed.

        Args:
            x1: As for `nngp`.
            x2: As for `nngp`.
            diag: As for `nngp`.
            replicates: Number of scramblings.

        Returns:
            Each of the shape of the kernel.
        """
        rule = self.quadrature
        results: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            try:
                for k in range(1, replicates + 1):
                    self.quadrature = dataclasses.replace(rule, seed=rule.seed + k)
                    results.append(self.kernels(x1, x2, diag=diag))
            finally:
                self.quadrature = rule
        nngp, ntk = (torch.stack(values).std(0) for values in zip(*results, strict=True))
        return nngp, ntk

    def _settings(self) -> Settings:
        return Settings(self.variances.value, self.quadrature, self.max_variables)

    def _kernels(
        self, x1: Tensor, x2: Tensor | None, diag: bool, *, nngp: bool, ntk: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        self._check_rows(x1, "x1")
        if x2 is None:
            x2 = x1
        if x2 is not x1:
            self._check_rows(x2, "x2")
            if x2.shape[-1] != x1.shape[-1]:
                raise ValueError(
                    f"x2 has {x2.shape[-1]} features, x1 has {x1.shape[-1]}; the last dimensions "
                    "must agree."
                )
            if diag and x1.shape[-2] != x2.shape[-2]:
                raise ValueError(
                    f"diag=True pairs rows, but x1 has {x1.shape[-2]} and x2 {x2.shape[-2]}."
                )
        evaluation = Evaluation(
            self.program,
            self._settings(),
            standard=self.parameterization == "standard",
            max_bytes=self.max_bytes,
            devices=self.devices,
        )
        return evaluation.kernels(x1, x2, diag=diag, nngp=nngp, ntk=ntk)


class NetworkPrior(_Network):
    """Finite random networks as a prior over functions, with the limit's variances.

    The module's own weights are W * sqrt(weight_var / fan_in) and its biases b *
    sqrt(bias_var), W and b standard normal.

    Args:
        module: A `torch.nn.Module` whose widths are all known, or an `InfiniteNetwork`, whose
            variances are then shared.
        weight_var: As for `InfiniteNetwork`.
        bias_var: As for `InfiniteNetwork`.
        input_shape: As for `InfiniteNetwork`.
        parameterization: "ntk", or "mup" for maximal updates (Yang & Hu 2021, 2011.14522; Yang et
            al. 2022, 2203.03466, table 3): readout weights of variance weight_var * base_width /
            fan_in^2, so that features move at any width; see `learning_rates`.
        base_width: Width at which "mup" and "ntk" agree.

    Raises:
        ValueError: a width is open (`nn.LazyLinear`), or a parameter of the module is no weight
            or bias of a traced layer.
    """

    def __init__(
        self,
        module: nn.Module | InfiniteNetwork,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        input_shape: Sequence[int] | None = None,
        parameterization: str = "ntk",
        base_width: int = 1,
    ) -> None:
        super().__init__(module, weight_var, bias_var, input_shape, torch.Size())
        if parameterization not in ("ntk", "mup"):
            raise ValueError(f'parameterization must be "ntk" or "mup", got {parameterization!r}.')
        self.parameterization = parameterization
        self.base_width = base_width
        program = self.program
        known = {*program.weights.values(), *program.biases.values(), *program.constants}
        for name, parameter in self.module.named_parameters():
            if nn.parameter.is_lazy(parameter):
                raise ValueError(
                    f"NetworkPrior needs finite widths, but {name!r} is lazy; use nn.Linear, or "
                    "run the module once on an input."
                )
            if name not in known:
                raise ValueError(
                    f"Parameter {name!r} belongs to no layer that the forward uses; remove it."
                )

    def parameter_std(self) -> dict[str, Tensor]:
        """Prior standard deviation of every parameter of the module by name, 0-dim tensors.

        Differentiable in the variances; 0 where the variance is 0.
        """
        std: dict[str, Tensor] = {}
        for layer, name in self.program.weights.items():
            fan_in = self.program.fan_in[layer]
            assert fan_in is not None
            std[name] = (self.variances.value("weight", layer) / fan_in).sqrt()
            if self.parameterization == "mup" and layer in self._readouts:
                std[name] = std[name] * math.sqrt(self.base_width / fan_in)
        for layer, name in self.program.biases.items():
            variance = self.variances.value("bias", layer)
            std[name] = variance.sqrt() if variance.requires_grad else variance.detach().sqrt()
        for name in self.program.constants:
            std[name] = torch.zeros_like(next(iter(std.values())).detach())
        return std

    @property
    def _readouts(self) -> set[str]:
        program = self.program
        return {program.nodes[i].layer for i in readouts(program, program.output)}  # type: ignore[union-attr]

    def learning_rates(self, optimizer: str = "adam") -> dict[str, float]:
        """Factor on the base width's learning rate of every parameter by name, for "mup".

        With them the best learning rate does not depend on the width (2203.03466, table 3).

        Args:
            optimizer: "adam" or "sgd".

        Raises:
            ValueError: another parametrisation or optimiser.
        """
        if self.parameterization != "mup" or optimizer not in ("adam", "sgd"):
            raise ValueError(
                'learning_rates are those of parameterization="mup" with optimizer "adam" or '
                f'"sgd", got {self.parameterization!r} and {optimizer!r}.'
            )
        program, base = self.program, self.base_width
        from_input = {
            n.layer
            for n in program.nodes
            if isinstance(n, Embedding)
            or (isinstance(n, Linear) and n.source is not None and program.from_input(n.source))
        }
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        rates = dict.fromkeys(program.constants, 0.0)
        for layer, name in program.weights.items():
            fan_in = program.fan_in[layer]
            assert fan_in is not None
            if layer in self._readouts:
                rates[name] = base / fan_in
            elif layer in from_input:
                rates[name] = 1.0 if optimizer == "adam" else shapes[name][0] / base
            else:
                rates[name] = base / fan_in if optimizer == "adam" else 1.0
        for layer, name in program.biases.items():
            last = layer in self._readouts
            rates[name] = 1.0 if optimizer == "adam" or last else shapes[name][0] / base
        return rates

    def parameter_mean(self) -> dict[str, float]:
        """Prior mean of every parameter by name: 0, but 1 for the gains of normalisations."""
        return {
            name: self.program.constants.get(name, 0.0)
            for name, _ in self.module.named_parameters()
        }

    def draw(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw the module's parameters, each `[*sample_shape, *its shape]`."""
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        mean = self.parameter_mean()
        return {
            name: mean[name]
            + std
            * RandomSource(generator, std.device, std.dtype).normal(*sample_shape, *shapes[name])
            for name, std in self.parameter_std().items()
        }

    def apply_parameters(self, parameters: Mapping[str, Tensor], X: Tensor) -> Tensor:
        """Evaluate the module with given parameters.

        Args:
            parameters: By name, each `[*sample_shape, *its shape]` with the same `sample_shape`.
            X: Inputs `[..., n, d]`.

        Returns:
            `[*sample_shape, ..., n, m]`.
        """
        self._check_rows(X, "X")
        own = {name: p.shape for name, p in self.module.named_parameters()}
        first = next(iter(parameters))
        size = parameters[first].shape[: parameters[first].dim() - len(own[first])]
        values = {name: p.to(X) for name, p in parameters.items()}
        if not size:
            return self._call(values, X)
        stacked = {k: v.reshape(-1, *own[k]) for k, v in values.items()}
        out = torch.func.vmap(self._call, in_dims=(0, None))(stacked, X)
        return out.reshape(*size, *out.shape[1:])

    def _call(self, values: dict[str, Tensor], X: Tensor) -> Tensor:
        """One network at inputs `[..., n, d]`, `[..., n, m]`."""
        shape = [s or X.shape[-1] for s in self.program.input_shape]
        # buffers, such as a mask, lie where the module does
        buffers = {name: buffer.to(X.device) for name, buffer in self.module.named_buffers()}
        out = call_module(self.module, {**buffers, **values}, X.reshape(-1, *shape))
        return out.reshape(*X.shape[:-1], out.shape[-1])

    def sample(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise-free functions at `X` `[*batch, n, d]`, `[*sample_shape, *batch, n, m]`.

        Every batch element has a network of its own. They are drawn a few at a time, so that
        memory holds at most 2^25 weights or one network.
        """
        self._check_rows(X, "X")
        per_network = sum(p.numel() for p in self.module.parameters())
        rows = X.expand(*sample_shape, *X.shape).reshape(-1, *X.shape[-2:])  # [networks, n, d]
        parts = []
        for some in rows.split(max(1, 2**25 // max(1, per_network))):
            drawn = self.draw(torch.Size([len(some)]), generator=generator)
            values = {name: p.to(X) for name, p in drawn.items()}
            parts.append(torch.func.vmap(self._call)(values, some))
        out = torch.cat(parts)
        return out.reshape(*sample_shape, *X.shape[:-1], out.shape[-1])


def _per_layer(
    name: str, spec: VarianceSpec, layers: Sequence[str], default: float
) -> dict[str, float]:
    if isinstance(spec, Mapping):
        unknown = [key for key in spec if key not in layers]
        if unknown:
            raise ValueError(f"{name} names {unknown}, the layers are {list(layers)}.")
        values = {layer: float(spec.get(layer, default)) for layer in layers}
    else:
        values = dict.fromkeys(layers, float(spec))
    for layer, value in values.items():
        number = torch.tensor(value, device="cpu")
        _check_positive(number, f"{name} of layer {layer!r}", or_zero=True)
    return values


def _check_positive(value: Tensor, what: str, or_zero: bool = False) -> None:
    fine = value.isfinite() & ((value >= 0) if or_zero else (value > 0))
    if not bool(fine.all()):
        bound = "non-negative" if or_zero else "positive"
        raise ValueError(f"{what} must be {bound} and finite, got {value.tolist()}.")
