"""The hyperparameters of a network's prior: variances of its layers, length scales of its inputs.

NTK parametrisation, z = sqrt(weight_var / fan_in) W x + sqrt(bias_var) b with standard normal W
and b; the variances are positive and learnable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.priors import NormalPrior
from torch import Tensor, nn

from priors.gaussian.activations import Activation
from priors.limits.tangents import readouts
from priors.networks.input_scale import InputScale
from priors.programs.nodes import Linear, Nonlinear
from priors.programs.program import Program
from priors.representation import shortened

__all__ = ["LayerMapping", "LayerVariances", "VarianceSpec"]

VarianceSpec = float | Mapping[str, float]

_BIAS_VAR = 0.1  # where biases start
_LOG_VAR_STD = 1.0  # of the logarithm of a variance under its prior


class LayerVariances(gpytorch.Module):
    """Hyperparameters of a network: a weight and a bias variance per layer, and length scales.

    Printed, it is a table of the present values. Parameters are called `raw_weight_var_<layer>`
    and `raw_bias_var_<layer>` (dots of the layer's name as `_`), the logarithm of the ratio to the
    initial value, so that GPyTorch's constraints, priors and fitting apply.
    Each has a weak log-normal prior, called `weight_var_<layer>_prior`: the logarithm is normal
    around its start with deviation 1. The data often do not identify all variances, and without a
    prior the marginal likelihood then grows without end along some direction.

    Some variances are constants: those of 0; in a chain of positively homogeneous layers without
    biases, where only the product of the weight variances is identified, all but the last layer's;
    and with length scales the first layer's, as only their quotient is identified.

    Args:
        program: The network whose layers have variances.
        weight_var: Starting value of all, or of each by layer name. Those not given start at
            2 behind a rectifier (ReLU, GELU, SiLU, ...), which passes on half the mean square, and
            at 1 otherwise.
        bias_var: The same for biases.
        ard_num_dims: Number of features of an input whose length scales are learnt; None for none.
        batch_shape: Batch of independent variances and length scales.

    Attributes:
        input_scale: The length scales, or None.

    Raises:
        ValueError: a negative or non-finite variance, a name that is not a layer, or inputs with
            another number of features.
    """

    input_scale: InputScale | None

    def __init__(
        self,
        program: Program,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.batch_shape = torch.Size(batch_shape)
        self._slots: dict[tuple[str, str], str] = {}
        rectified = _behind_rectifiers(program)
        weights = _per_layer(
            "weight_var",
            weight_var,
            {layer: 2.0 if layer in rectified else 1.0 for layer in program.weights},
        )
        biases = _per_layer("bias_var", bias_var, dict.fromkeys(program.biases, _BIAS_VAR))
        held = {layer for layer, value in weights.items() if value == 0}
        if program.is_homogeneous_chain and not any(biases.values()):
            held |= weights.keys() - _readout_layers(program)
        self.input_scale = None
        if ard_num_dims is not None:
            self.input_scale = InputScale(program, ard_num_dims, self.batch_shape)
            held |= set(_first_layers(program)[:1])
        for layer, value in weights.items():
            self._register("weight", layer, value, learnable=layer not in held)
        for layer, value in biases.items():
            self._register("bias", layer, value, learnable=value > 0)

    def _register(self, kind: str, layer: str, value: float, learnable: bool) -> None:
        slot = f"{kind}_var_{layer.replace('.', '_')}"
        if slot in self._slots.values():
            raise ValueError(f"Two layers would both be called {slot!r}; rename {layer!r}.")
        self._slots[kind, layer] = slot
        full = torch.full(self.batch_shape, float(value), dtype=torch.float64)
        if not learnable:
            self.register_buffer(slot, full)
            return
        self.register_parameter(f"raw_{slot}", nn.Parameter(torch.zeros(self.batch_shape)))
        self.register_constraint(f"raw_{slot}", _LogRatio(full))
        log = _Logarithm(kind, layer)
        self.register_prior(
            f"{slot}_prior", NormalPrior(math.log(value), _LOG_VAR_STD), log, log.assign
        )

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

    def is_learnt(self, kind: str, layer: str) -> bool:
        """Whether a variance is a parameter, not a constant."""
        return f"raw_{self._slots[kind, layer]}" in self._parameters

    def log_priors(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Mean and deviation of the normal prior of the logarithm of each learnable variance.

        Returns:
            By kind, "weight" or "bias", and layer.

        Raises:
            NotImplementedError: a variance has another prior, or none.
        """
        found = {}
        for (kind, layer), slot in self._slots.items():
            if not self.is_learnt(kind, layer):
                continue
            prior = self._modules.get(f"{slot}_prior")
            if type(prior) is not NormalPrior or prior.loc.numel() != 1:
                raise NotImplementedError(
                    f"{kind}_var of layer {layer!r} needs its log-normal prior, found {prior}; "
                    "register a NormalPrior of its logarithm, or hold the variance."
                )
            found[kind, layer] = float(prior.loc), float(prior.scale)
        return found

    def set(self, kind: str, layer: str, value: float | Tensor) -> None:
        """Set a variance in place; its prior stays.

        Raises:
            ValueError: no such layer, a value that is not positive for a learnable variance, or
                a value other than 0 for one that was made as the constant 0.
        """
        self._check_layer(kind, layer)
        slot = self._slots[kind, layer]
        device = value.device if isinstance(value, Tensor) else "cpu"
        new = torch.as_tensor(value, dtype=torch.float64, device=device)
        if slot in self._buffers:
            buffer = getattr(self, slot)
            if bool((buffer == 0).all()) and bool((new != 0).any()):
                raise ValueError(
                    f"{kind}_var of layer {layer!r} was 0 at construction and is therefore "
                    "fixed; make the network with a positive value to change it."
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

    def hold(self, kind: str, layer: str, value: float | Tensor | None = None) -> None:
        """Make a variance a constant that is not learnt, in place.

        Args:
            kind: "weight" or "bias".
            layer: The layer's name.
            value: Value to hold it at, >= 0; its present one if None.

        Raises:
            ValueError: no such layer, or a bad value.
        """
        self._check_layer(kind, layer)
        slot = self._slots[kind, layer]
        if f"raw_{slot}" in self._parameters:
            present = self.value(kind, layer).detach().double().clone()
            del self._parameters[f"raw_{slot}"]
            for registry in (self._constraints, self._priors):
                for name in (f"raw_{slot}_constraint", f"{slot}_prior"):
                    if registry.pop(name, None) is not None:
                        del self._modules[name]
            self.register_buffer(slot, present)
        if value is not None:
            new = torch.as_tensor(value, dtype=torch.float64)
            _check_positive(new, f"{kind}_var of layer {layer!r}", or_zero=True)
            buffer = getattr(self, slot)
            buffer.copy_(new.to(buffer).expand_as(buffer))

    def _check_layer(self, kind: str, layer: str) -> None:
        if (kind, layer) not in self._slots:
            names = [name for k, name in self._slots if k == kind]
            raise ValueError(
                f"Layer {layer!r} does not have a {kind}_var; those that do are {names}."
            )

    def with_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply an indexing or an expansion to the batch of every hyperparameter, in place."""
        depth, count = len(self.batch_shape), self.batch_shape.numel()
        chosen = change(torch.arange(count, device="cpu").reshape(self.batch_shape))

        def pick(value: Tensor) -> Tensor:
            return value.reshape(-1, *value.shape[depth:])[chosen.to(value.device)]

        for slot in self._slots.values():
            if slot in self._buffers:
                self._buffers[slot] = pick(getattr(self, slot))
                continue
            _replace_parameter(self, f"raw_{slot}", pick)
            constraint = getattr(self, f"raw_{slot}_constraint")
            if isinstance(constraint, _LogRatio):
                constraint.unit = pick(constraint.unit)
        if self.input_scale is not None:
            _replace_parameter(self.input_scale, "raw_lengthscale", pick)
        self.batch_shape = chosen.shape

    @property
    def weight_var(self) -> LayerMapping:
        """Weight variances by layer name; assignment sets them."""
        return LayerMapping(self, "weight")

    @property
    def bias_var(self) -> LayerMapping:
        """Bias variances by layer name, of layers that have a bias; assignment sets them."""
        return LayerMapping(self, "bias")

    def __repr__(self) -> str:
        rows = "\n  ".join(str(self).splitlines())
        return f"{type(self).__name__}(\n  {rows}\n)"

    def __str__(self) -> str:
        return self.table()

    def table(self, most_lines: int | None = None) -> str:
        """The variances by layer as text.

        Args:
            most_lines: Of layers; those in the middle are left out where there are more.
        """
        layers = list(dict.fromkeys(layer for _, layer in self._slots))
        rows = [("layer", "weight_var", "bias_var")]
        rows += [(name, self._cell("weight", name), self._cell("bias", name)) for name in layers]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        if most_lines is not None:
            lines = [lines[0], *shortened(lines[1:], most_lines)]
        if self.input_scale is not None:
            scales = self.input_scale.lengthscale.detach().squeeze(-2)
            lines.append(f"lengthscale by feature: {_numbers(scales, most=most_lines)}")
        return "\n".join(lines)

    def _cell(self, kind: str, layer: str) -> str:
        if (kind, layer) not in self._slots:
            return "-"
        numbers = _numbers(self.value(kind, layer).detach())
        return numbers if self.is_learnt(kind, layer) else f"{numbers} (held)"


@dataclass(frozen=True)
class _Logarithm:
    """The logarithm of a variance as GPyTorch's priors get it and set it."""

    kind: str
    layer: str

    def __call__(self, variances: LayerVariances) -> Tensor:
        return variances.value(self.kind, self.layer).log()

    def assign(self, variances: LayerVariances, value: Tensor) -> None:
        """Set the variance from its logarithm, in place."""
        raw = getattr(variances, f"raw_{variances._slots[self.kind, self.layer]}")
        change = value.to(raw) - self(variances)
        with torch.no_grad():
            raw.add_(change)


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


def _replace_parameter(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    old = module._parameters[name]
    assert old is not None
    module._parameters[name] = nn.Parameter(
        change(old.detach()).clone(), requires_grad=old.requires_grad
    )


def _readout_layers(program: Program) -> set[str]:
    nodes = (program.nodes[i] for i in readouts(program, program.output))
    return {node.layer for node in nodes}  # type: ignore[union-attr]


def _first_layers(program: Program) -> list[str]:
    """Layers that read the input, in order."""
    return [
        node.layer
        for node in program.nodes
        if isinstance(node, Linear) and node.source is not None and program.from_input(node.source)
    ]


def _behind_rectifiers(program: Program) -> set[str]:
    """Layers all of whose inputs are rectified units, as they are or pooled."""
    found: dict[str, bool] = {}
    for node in program.nodes:
        if isinstance(node, Linear) and node.source is not None:
            rectified = _is_rectified(program, node.source)
            found[node.layer] = rectified and found.get(node.layer, True)
    return {layer for layer, rectified in found.items() if rectified}


def _is_rectified(program: Program, index: int) -> bool:
    node, sources = program.nodes[index], program.sources(index)
    if isinstance(node, Nonlinear):
        return node.activation is not None and _is_rectifier(node.activation)
    if isinstance(node, Linear) or len(sources) != 1:
        return False
    return _is_rectified(program, sources[0])


def _is_rectifier(activation: Activation) -> bool:
    """Whether far from 0 about half the mean square passes, as through a ReLU."""
    far = torch.tensor([-1e3, 1e3], dtype=torch.float64, device="cpu")
    share = float(activation(far).square().mean()) / 1e6
    return 1 / 3 < share < 3 / 4


def _per_layer(
    name: str, spec: VarianceSpec | None, defaults: Mapping[str, float]
) -> dict[str, float]:
    if spec is None:
        return dict(defaults)
    if isinstance(spec, Mapping):
        unknown = [key for key in spec if key not in defaults]
        if unknown:
            raise ValueError(
                f"{name} has entries for unknown layers {unknown}; the layers are {list(defaults)}."
            )
        values = {layer: float(spec.get(layer, start)) for layer, start in defaults.items()}
    else:
        values = dict.fromkeys(defaults, float(spec))
    for layer, value in values.items():
        number = torch.tensor(value, device="cpu")
        _check_positive(number, f"{name} of layer {layer!r}", or_zero=True)
    return values


def _numbers(value: Tensor, most: int | None = 4) -> str:
    """The first numbers of a tensor, or all, to three digits."""
    flat = value.flatten().tolist()
    shown = ", ".join(f"{number:.3g}" for number in flat[:most])
    return shown if most is None or len(flat) <= most else f"{shown}, ..."


def _check_positive(value: Tensor, what: str, or_zero: bool = False) -> None:
    fine = value.isfinite() & ((value >= 0) if or_zero else (value > 0))
    if not bool(fine.all()):
        bound = "non-negative" if or_zero else "positive"
        raise ValueError(f"{what} must be {bound} and finite, got {value.tolist()}.")
