"""Calling a module with given tensors in place of its own.

`torch.func.functional_call` (torch 2.13) leaves a layer that a module holds under two names with
the tensors that it was called with. Here every name of a tensor is passed, and all are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["call_module", "over_networks"]


def call_module(module: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`torch.func.functional_call` with ties resolved here.

    Args:
        module: The module.
        tensors: Parameters and buffers by name, those that are to differ.
        x: Its input.

    Returns:
        The module's output.

    Raises:
        ValueError: the module has no parameter of a name.
    """
    places: dict[int, list[str]] = {}
    for path, layer in module.named_modules():  # each layer once
        for name, own in (
            *layer.named_parameters(recurse=False, remove_duplicate=False),
            *layer.named_buffers(recurse=False, remove_duplicate=False),
        ):
            places.setdefault(id(own), []).append(f"{path}.{name}" if path else name)
    known: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    known.update(module.named_parameters(remove_duplicate=False))
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise ValueError(f"The module has no {unknown}; its parameters are {sorted(known)}.")
    everywhere = {
        place: tensor for name, tensor in tensors.items() for place in places[id(known[name])]
    }
    return torch.func.functional_call(module, everywhere, (x,), tie_weights=False)


def over_networks(
    module: nn.Module, function: Callable[..., Tensor], *, chunk_size: int | None = None
) -> Callable[..., Tensor]:
    """`torch.vmap` of a function of a network's parameters, or a loop where it cannot be.

    torch has no batched form of `nn.RNN`, `nn.LSTM`, `nn.GRU` and `nn.LSTMCell`.

    Args:
        module: The network.
        function: Of parameters by name, and of further tensors, all with a first dimension that
            counts networks.
        chunk_size: Networks at a time; None is all.

    Returns:
        A function whose result has that dimension too.
    """
    if not any(isinstance(m, nn.RNNBase | nn.LSTMCell) for m in module.modules()):
        return torch.vmap(function, chunk_size=chunk_size)

    def loop(parameters: Mapping[str, Tensor], *others: Tensor) -> Tensor:
        count = len(next(iter(parameters.values())))
        return torch.stack(
            [
                function({name: p[i] for name, p in parameters.items()}, *(t[i] for t in others))
                for i in range(count)
            ]
        )

    return loop
