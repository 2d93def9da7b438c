"""Multilayer perceptrons: depth, widths, activation, residual, layer norm, hourglass blocks.

Hidden layer l computes h_l = phi(norm(W_l h_{l-1} + b_l)), plus h_{l-1} from the second layer on
when residual, through a bias-free projection where the widths differ. The first hidden layer
maps the inputs to the stream and has no shortcut, so "residual" says nothing about a network of
one hidden layer and is dropped there. In an hourglass W_l = V_l U_l has a waist of a quarter of the
layer's width, with the activation behind U_l too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Tensor

from nas.architectures.architecture import Architecture, Node
from nas.architectures.operations import ACTIVATIONS
from nas.checks import check_choices, check_whole
from nas.spaces.space import FlatSpace

__all__ = ["MLPSpace"]


class MLPSpace(FlatSpace):
    """Multilayer perceptrons from flat inputs to flat outputs.

    Args:
        in_features: Length of an input.
        out_features: Length of an output.
        depth: Least and largest number of hidden layers.
        widths: Choices for the width of each hidden layer.
        activations: Choices, names in `nas.architectures.operations.ACTIVATIONS`.
        residual: Choices, or one fixed value.
        layer_norm: Choices, or one fixed value.
        hourglass: Choices, or one fixed value: whether each hidden layer has a narrow waist. A
            parameter of the space only where it can be True.

    Raises:
        ValueError: an empty or impossible set of choices.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: tuple[int, int] = (1, 4),
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        activations: Sequence[str] = ("relu", "gelu", "tanh"),
        residual: bool | Sequence[bool] = (False, True),
        layer_norm: bool | Sequence[bool] = False,
        hourglass: bool | Sequence[bool] = False,
    ) -> None:
        check_whole(in_features=in_features, out_features=out_features)
        check_choices(1, depth=depth, widths=widths)
        check_choices(activations=activations)
        if len(depth) != 2 or depth[0] > depth[1]:
            raise ValueError(f"depth must be (least, largest) with 1 <= least, got {depth}.")
        unknown = set(activations) - set(ACTIVATIONS)
        if unknown:
            raise ValueError(
                f"activations must be one or more of {sorted(ACTIVATIONS)}, got "
                f"{tuple(activations)}."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.depth = (int(depth[0]), int(depth[1]))
        self.widths = tuple(sorted({int(width) for width in widths}))
        self.activations = tuple(dict.fromkeys(activations))
        self.residual = _choices("residual", residual)
        self.layer_norm = _choices("layer_norm", layer_norm)
        self.hourglass = _choices("hourglass", hourglass)
        choices: dict[str, tuple[Any, ...]] = {
            "depth": tuple(range(self.depth[0], self.depth[1] + 1)),
            **{f"width_{layer}": self.widths for layer in range(1, self.depth[1] + 1)},
            "activation": self.activations,
            "residual": self.residual,
            "layer_norm": self.layer_norm,
            **({"hourglass": self.hourglass} if True in self.hourglass else {}),
        }
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in choices.items()
        }

    def __repr__(self) -> str:
        return (
            f"MLPSpace({self.in_features}, {self.out_features}, depth={self.depth}, "
            f"widths={self.widths}, activations={self.activations}, residual={self.residual}, "
            f"layer_norm={self.layer_norm}, hourglass={self.hourglass})"
        )

    def parameters(self) -> dict[str, BaseDistribution]:
        """`depth`, `width_1` to the largest depth, and the styles of all layers."""
        return dict(self._distributions)

    def from_parameters(self, values: Mapping[str, Any]) -> Architecture:
        """The network of these parameters; widths beyond its depth are ignored.

        Raises:
            ValueError: a parameter is missing or outside its choices.
        """
        chosen = self.checked_parameters(values)
        return self.network(
            [chosen[f"width_{layer}"] for layer in range(1, chosen["depth"] + 1)],
            chosen["activation"],
            residual=chosen["residual"],
            layer_norm=chosen["layer_norm"],
            hourglass=chosen.get("hourglass", False),
        )

    def network(
        self,
        widths: Sequence[int],
        activation: str,
        *,
        residual: bool = False,
        layer_norm: bool = False,
        hourglass: bool = False,
    ) -> Architecture:
        """The multilayer perceptron with these hidden widths.

        Args:
            widths: Widths of the hidden layers, first to last.
            activation: Name in `nas.architectures.operations.ACTIVATIONS`.
            residual: Whether hidden layers after the first add their input.
            layer_norm: Whether a layer norm comes before each activation.
            hourglass: Whether each layer goes through a waist.
        """
        nodes = [Architecture.input((self.in_features,))]
        for layer, width in enumerate(widths):
            stream = len(nodes) - 1
            if hourglass:
                nodes.append(Node.of("linear", stream, out_features=_waist(width)))
                nodes.append(Node.of(activation, len(nodes) - 1))
            nodes.append(Node.of("linear", len(nodes) - 1, out_features=int(width)))
            if layer_norm:
                nodes.append(Node.of("layer_norm", len(nodes) - 1))
            nodes.append(Node.of(activation, len(nodes) - 1))
            if residual and layer:
                branch = len(nodes) - 1
                if width != widths[layer - 1]:
                    nodes.append(Node.of("projection", stream, out_features=int(width)))
                    stream = len(nodes) - 1
                nodes.append(Node.of("sum", stream, branch))
        nodes.append(Node.of("linear", len(nodes) - 1, out_features=self.out_features))
        return Architecture(tuple(nodes))

    def to_parameters(self, architecture: Architecture) -> dict[str, Any]:
        """Its parameters; absent layers take the middle width.

        Raises:
            ValueError: the architecture is not in this space.
        """
        operations = [node.operation for node in architecture.nodes]
        linear = [dict(n.arguments) for n in architecture.nodes if n.operation == "linear"]
        every = [int(arguments.get("out_features", 0)) for arguments in linear[:-1]]
        activation = next((name for name in operations if name in ACTIVATIONS), "")
        residual, layer_norm = "sum" in operations, "layer_norm" in operations
        # A plain network of every second width narrow is an hourglass of half the depth: both
        # readings are the same network, and the plain one goes first.
        for hourglass in sorted(self.hourglass):
            widths = every[1::2] if hourglass else every
            styles = {"residual": residual, "layer_norm": layer_norm, "hourglass": hourglass}
            if (
                self.depth[0] <= len(widths) <= self.depth[1]
                and set(widths) <= set(self.widths)
                and self.network(widths, activation, **styles) == architecture
            ):
                break
        else:
            raise ValueError(
                "The architecture is not a multilayer perceptron of this space "
                f"({self.in_features} inputs, {self.out_features} outputs):\n{architecture}"
            )
        if len(widths) == 1:
            residual = self.residual[0]  # means nothing here
        middle = self.widths[len(self.widths) // 2]
        padded = widths + [middle] * (self.depth[1] - len(widths))
        return self.checked_parameters(
            {
                "depth": len(widths),
                **{f"width_{layer}": width for layer, width in enumerate(padded, start=1)},
                "activation": activation,
                "residual": residual,
                "layer_norm": layer_norm,
                "hourglass": hourglass,
            }
        )

    def encode(self, architecture: Architecture) -> Tensor:
        """Depth, log widths, residual, layer norm and one-hot activation, `[d]`.

        Each ordered quantity fills [0, 1]; an absent width is at 0.5, and so is
        "residual" in a network of one hidden layer.
        """
        values = self.to_parameters(architecture)
        least, largest = self.depth
        depth = values["depth"]
        row = [_unit(depth, least, largest)]
        for layer in range(1, largest + 1):
            present = layer <= depth
            width = math.log(values[f"width_{layer}"])
            bounds = math.log(self.widths[0]), math.log(self.widths[-1])
            row.append(_unit(width, *bounds) if present else 0.5)
        row.append(float(values["residual"]) if depth > 1 else 0.5)
        row.append(float(values["layer_norm"]))
        if True in self.hourglass:
            row.append(float(values["hourglass"]))
        row += [float(values["activation"] == name) for name in self.activations]
        return torch.tensor(row, dtype=torch.float64, device="cpu")


def _choices(name: str, value: bool | Sequence[bool]) -> tuple[bool, ...]:
    choices = (value,) if isinstance(value, bool) else tuple(dict.fromkeys(value))
    if not choices or not all(isinstance(choice, bool) for choice in choices):
        raise ValueError(f"{name} must be True, False or a sequence of them, got {value!r}.")
    return choices


def _waist(width: int) -> int:
    return max(1, int(width) // 4)


def _unit(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)
