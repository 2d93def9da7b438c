"""The weight and bias variances of a network: the hyperparameters of its prior, one per layer.

NTK parametrisation, z = sqrt(weight_var / fan_in) W x + sqrt(bias_var) b with standard normal W
and b; the variances are positive and learnable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor, nn

from priors.limits.tangents import readouts
from priors.programs.program import Program

__all__ = ["LayerMapping", "LayerVariances", "VarianceSpec"]

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
