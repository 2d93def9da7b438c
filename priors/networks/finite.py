"""An architecture at the widths it has, as a prior over functions.

NTK parametrisation, or maximal updates; `NetworkPrior` draws finite networks. Made from an
`InfiniteNetwork`, it shares its variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from priors.limits.tangents import readouts
from priors.networks.functional_call import call_module, over_networks
from priors.networks.network import Network
from priors.networks.variances import VarianceSpec
from priors.programs.nodes import Embedding, Linear
from priors.randomness import RandomSource
from priors.representation import count

if TYPE_CHECKING:
    from priors.networks.infinite import InfiniteNetwork

__all__ = ["NetworkPrior"]


class NetworkPrior(Network):
    """Finite random networks as a prior over functions, with the limit's variances.

    The module's own weights are W * sqrt(weight_var / fan_in) and its biases b *
    sqrt(bias_var), W and b standard normal. With length scales the function is x -> network(x /
    lengthscale).

    Args:
        module: A `torch.nn.Module` whose widths are all known, or an `InfiniteNetwork`, whose
            variances are then shared.
        weight_var: See `InfiniteNetwork`.
        bias_var: See `InfiniteNetwork`.
        ard_num_dims: See `InfiniteNetwork`.
        input_shape: See `InfiniteNetwork`.
        parameterization: "ntk", or "mup" for maximal updates (Yang & Hu 2021, 2011.14522; Yang et
            al. 2022, 2203.03466, table 3): readout weights of variance weight_var * base_width /
            fan_in^2, so that features move at any width; see `learning_rates`.
        base_width: Width at which "mup" and "ntk" agree.

    Raises:
        ValueError: a width is open (`nn.LazyLinear`), or a parameter of the module is no weight
            or bias of a traced layer.

    Methods:
        sample: Functions at given inputs.
        sample_by: The same with networks drawn in another way.
        draw: Random weights by name.
        apply_parameters: The network's outputs with such weights.
        apply_each: The same where each network has inputs of its own.
        parameter_std: Prior standard deviation of every weight.
        readout_parameters: Names of those of the last layer.
        learning_rates: Factors of each parameter with which "mup" trains alike at any width.

    `variances` holds the layers' variances and prints as a table. All else is inherited from
    `gpytorch.Module`.
    """

    def __init__(
        self,
        module: nn.Module | InfiniteNetwork,
        *,
        weight_var: VarianceSpec | None = None,
        bias_var: VarianceSpec | None = None,
        ard_num_dims: int | None = None,
        input_shape: Sequence[int] | None = None,
        parameterization: str = "ntk",
        base_width: int = 1,
    ) -> None:
        super().__init__(module, weight_var, bias_var, ard_num_dims, input_shape, torch.Size())
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
                    f"Parameter {name!r} does not belong to any layer that the forward uses; "
                    "remove it."
                )

    @property
    def _facts(self) -> Sequence[str]:
        weights = count(sum(p.numel() for p in self.module.parameters()), "weight")
        scaling = [] if self.parameterization == "ntk" else ["maximal updates"]
        return [weights, *scaling]

    def parameter_std(self) -> dict[str, Tensor]:
        """Prior standard deviation of every parameter of the module by name, 0-dim tensors.

        Differentiable in the variances; 0 where the variance is 0.
        """
        std: dict[str, Tensor] = {}
        for layer, name in self.program.weights.items():
            fan_in = self.program.fan_in[layer]
            assert fan_in is not None
            std[name] = (self.variances.value("weight", layer) / fan_in).sqrt()
            if self.parameterization == "mup" and layer in self.readouts:
                std[name] = std[name] * math.sqrt(self.base_width / fan_in)
        for layer, name in self.program.biases.items():
            variance = self.variances.value("bias", layer)
            std[name] = variance.sqrt() if variance.requires_grad else variance.detach().sqrt()
        for name in self.program.constants:
            std[name] = torch.zeros_like(next(iter(std.values())).detach())
        return std

    def readout_parameters(self) -> set[str]:
        """Names of the parameters of the last layer, in which the functions are linear."""
        program, layers = self.program, self.readouts
        every = [*program.weights.items(), *program.biases.items()]
        return {name for layer, name in every if layer in layers}

    @property
    def readouts(self) -> set[str]:
        """Names of the layers that give the output."""
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
                'learning_rates needs parameterization="mup" and optimizer "adam" or "sgd", '
                f"got {self.parameterization!r} and {optimizer!r}."
            )
        program, base = self.program, self.base_width
        embedded = {n.layer for n in program.nodes if isinstance(n, Embedding)}
        from_input = embedded | {
            n.layer
            for n in program.nodes
            if isinstance(n, Linear) and n.source is not None and program.from_input(n.source)
        }
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        rates = dict.fromkeys(program.constants, 0.0)
        for layer, name in program.weights.items():
            fan_in = program.fan_in[layer]
            assert fan_in is not None
            if layer in self.readouts:
                rates[name] = base / fan_in
            elif layer in from_input:
                # rows of an embedding are units, whatever order a matrix product has its own in
                fan_out = shapes[name][-1] if layer in embedded else shapes[name].numel() // fan_in
                rates[name] = 1.0 if optimizer == "adam" else fan_out / base
            else:
                rates[name] = base / fan_in if optimizer == "adam" else 1.0
        for layer, name in program.biases.items():
            last = layer in self.readouts
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
        X = self._scaled(X)
        own = {name: p.shape for name, p in self.module.named_parameters()}
        first = next(iter(parameters))
        size = parameters[first].shape[: parameters[first].dim() - len(own[first])]
        values = {name: p.to(X) for name, p in parameters.items()}
        if not size:
            return self._call(values, X)
        stacked = {k: v.reshape(-1, *own[k]) for k, v in values.items()}
        out = over_networks(self.module, lambda values: self._call(values, X))(stacked)
        return out.reshape(*size, *out.shape[1:])

    def apply_each(self, parameters: Mapping[str, Tensor], X: Tensor) -> Tensor:
        """Evaluate networks, each at inputs of its own.

        Args:
            parameters: By name, each `[S, *its shape]`.
            X: Inputs `[S, ..., n, d]`.

        Returns:
            `[S, ..., n, m]`.
        """
        self._check_rows(X, "X")
        values = {name: p.to(X) for name, p in parameters.items()}
        return over_networks(self.module, self._call)(values, self._scaled(X))

    def _call(self, values: dict[str, Tensor], X: Tensor) -> Tensor:
        """One network at scaled inputs `[..., n, d]`, `[..., n, m]`."""
        shape = [s or X.shape[-1] for s in self.program.input_shape]
        # buffers, such as a mask, lie where the module does
        buffers = {name: buffer.to(X.device) for name, buffer in self.module.named_buffers()}
        rows = X.reshape(X.shape[:-1].numel(), *shape).clone()  # the forward may overwrite it
        out = call_module(self.module, {**buffers, **values}, rows)
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
        return self.sample_by(
            lambda rows: self.apply_each(
                self.draw(torch.Size([len(rows)]), generator=generator), rows
            ),
            X,
            sample_shape,
        )

    def sample_by(
        self,
        functions: Callable[[Tensor], Tensor],
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> Tensor:
        """As `sample`, with networks of another distribution.

        Args:
            functions: Inputs `[S, n, d]` to the outputs there of S networks, `[S, n, m]`.
            X: Inputs, `[*batch, n, d]`.
            sample_shape: Of functions for each batch element.
        """
        self._check_rows(X, "X")
        per_network = sum(p.numel() for p in self.module.parameters())
        rows = X.expand(*sample_shape, *X.shape).reshape(-1, *X.shape[-2:])  # [networks, n, d]
        blocks = rows.split(max(1, 2**25 // max(1, per_network)))
        out = torch.cat([functions(some) for some in blocks])
        return out.reshape(*sample_shape, *X.shape[:-1], out.shape[-1])
