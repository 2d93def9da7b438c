"""Recurrent layers as tensor programs: unrolled over the time steps, one matrix for all of them.

A cell is what `nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell` compute; weights of the gates are
rows of the layer's matrices. A simple recurrent network stays in closed form. The gates of an
LSTM or GRU multiply units that are Gaussian given all earlier steps, so the expectation at step t
runs over a number of variables that grows with t (`priors.gaussian.hermite`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from priors.programs.nodes import Join
from priors.programs.registry import register_layer
from priors.programs.rules.attention import batch_back, batch_to_front
from priors.programs.tracer import Tracer
from priors.programs.values import Value

__all__ = ["States"]

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class States(tuple):
    """Last states, one per layer and direction, as `nn.RNN` returns them (layers first)."""

    def squeeze(self, dim: int = 0) -> Value:
        """The only state."""
        if len(self) != 1:
            raise ValueError(f"There are {len(self)} final states; pick one, for example h[-1].")
        return self[0]


@register_layer(nn.RNNCellBase)
def _cell(tracer: Tracer, layer: nn.RNNCellBase, input: Value, hx: Any = None) -> Any:
    """One step of a recurrent cell."""
    weights = layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh
    kind = {nn.RNNCell: "RNN", nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}[type(layer)]
    nonlinearity = getattr(layer, "nonlinearity", "tanh")
    return _step(tracer, kind, nonlinearity, weights, layer.hidden_size, input, hx)


@register_layer(nn.RNNBase)
def _network(tracer: Tracer, layer: nn.RNNBase, input: Value, hx: Any = None) -> tuple[Value, Any]:
    """`nn.RNN`, `nn.LSTM` or `nn.GRU` over `[batch, time, features]`."""
    input = batch_to_front(tracer, layer, input)
    if hx is not None:
        raise tracer.unsupported("an initial state", "only the default, 0, is supported")
    if layer.proj_size:
        raise tracer.unsupported("proj_size")
    if layer.training and layer.dropout:
        raise tracer.unsupported("dropout between recurrent layers", "call eval()")
    if len(tracer.shape(input)) != 2:
        raise ValueError(
            f"{type(layer).__name__} at {tracer.where} expects inputs [time, features] but gets "
            f"{tracer.shape(input)}; give input_shape."
        )
    kind = "RNN" if isinstance(layer, nn.RNN) else layer.mode
    nonlinearity = getattr(layer, "nonlinearity", "tanh")
    steps = tracer.shape(input)[0]
    assert steps is not None
    sequence = [_at(tracer, input, t) for t in range(steps)]
    hidden: list[Value] = []
    memory: list[Value] = []
    for k in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if layer.bidirectional else ("",):
            weights = _weights(layer, f"_l{k}{suffix}")
            order = range(steps - 1, -1, -1) if suffix else range(steps)
            state: Any = None
            passed: dict[int, Value] = {}
            for t in order:
                state = _step(
                    tracer,
                    kind,
                    nonlinearity,
                    weights,
                    layer.hidden_size,
                    sequence[t],
                    state,
                )
                passed[t] = state[0] if kind == "LSTM" else state
            hidden.append(passed[order[-1]])
            if kind == "LSTM":
                memory.append(state[1])
            outputs.append(passed)
        sequence = [_both(tracer, [passed[t] for passed in outputs]) for t in range(steps)]
    index = tracer.add(Join(tuple(v.index for v in sequence), (steps,)))
    output = batch_back(tracer, layer, Value(index, sequence[0].width, 1))
    last = States(hidden)
    return output, (last, States(memory)) if kind == "LSTM" else last


def _weights(layer: nn.RNNBase, ending: str) -> Weights:
    """The weights of one layer and direction; biases are None if it has none."""
    return (
        getattr(layer, "weight_ih" + ending),
        getattr(layer, "weight_hh" + ending),
        getattr(layer, "bias_ih" + ending, None),
        getattr(layer, "bias_hh" + ending, None),
    )


def _at(tracer: Tracer, x: Value, t: int) -> Value:
    result = tracer.structural(torch.select, (x, 1, t), {})
    assert isinstance(result, Value)
    return result


def _both(tracer: Tracer, values: list[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    result = tracer.structural(torch.cat, (values, 1), {})
    assert isinstance(result, Value)
    return result


def _step(
    tracer: Tracer,
    kind: str,
    nonlinearity: str,
    weights: Weights,
    size: int,
    x: Value,
    state: Any,
) -> Any:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h, c = state if kind == "LSTM" and state is not None else (state, None)

    def recurrent(gate: int) -> Value | None:
        """The gate's part of W_hh h + b_hh; h starts at 0."""
        rows = (gate * size, (gate + 1) * size)
        if h is not None:
            return tracer.dense(h, weight_hh, bias_hh, rows=rows)
        if bias_hh is None:
            return None
        index = tracer.linear(None, weight_hh, bias_hh, width=weight_hh.shape[0], rows=rows)
        return Value(index, size, 0)

    def inward(gate: int) -> Value:
        rows = (gate * size, (gate + 1) * size)
        return tracer.dense(x, weight_ih, bias_ih, rows=rows)

    def total(gate: int) -> Value:
        other = recurrent(gate)
        parts = [(1.0, inward(gate))] + ([] if other is None else [(1.0, other)])
        return tracer.combine(parts)

    def apply(name: str, value: Value) -> Value:
        return tracer.call(getattr(torch, name), value)

    if kind == "RNN":
        return apply(nonlinearity, total(0))
    if kind == "LSTM":
        gate_in, gate_forget, gate_out = (apply("sigmoid", total(k)) for k in (0, 1, 3))
        new = tracer.multiply(gate_in, apply("tanh", total(2)))
        if c is not None:
            kept = tracer.multiply(gate_forget, c)
            new = tracer.combine([(1.0, kept), (1.0, new)])
        return tracer.multiply(gate_out, apply("tanh", new)), new
    reset, update = (apply("sigmoid", total(k)) for k in (0, 1))
    candidate = inward(2)
    other = recurrent(2)
    if other is not None:
        gated = tracer.multiply(reset, other)
        candidate = tracer.combine([(1.0, candidate), (1.0, gated)])
    candidate = apply("tanh", candidate)
    parts = [(1.0, candidate), (-1.0, tracer.multiply(update, candidate))]
    if h is not None:
        parts.append((1.0, tracer.multiply(update, h)))
    return tracer.combine(parts)
