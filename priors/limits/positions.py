"""The action of fixed linear maps on a tensor's positions: the arithmetic under `maps`.

Positions are flattened: of a pair's tensor the last one or two dimensions. `axis` counts the
mapped side's dimension from the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.programs.nodes import Array, Mix, Select, Window
from priors.programs.program import Program

__all__ = ["averaged", "convolved", "gathered", "mixed", "needs_graph", "selected"]


def gathered(value: Tensor, members: Array, axis: int) -> Tensor:
    """`[.., P, ..]` -> `[.., (new,) members, ..]`, the members last of the mapped side's dims.

    With no new positions the axis holds the members alone.
    """
    if _all_once(members, value.shape[axis]):
        return value
    index = members.tensor(value)
    flat = value.index_select(axis, index.flatten())
    if index.dim() == 1:
        return flat
    # counted from the end, the members take the place of the positions
    return flat.unflatten(axis, (index.shape[:-1].numel(), index.shape[-1]))


@functools.lru_cache(maxsize=256)
def _all_once(members: Array, positions: int) -> bool:
    """Whether one list of members has every position once, in whatever order."""
    if len(members.shape) != 1 or members.shape[0] != positions:
        return False
    found = members.tensor(torch.empty(0, device="cpu")).sort().values
    return torch.equal(found, torch.arange(positions, device="cpu"))


def selected(value: Tensor, node: Select, axis: int, program: Program) -> Tensor:
    """Positions picked, repeated or reordered on one side."""
    picks = node.picks.tensor(value).flatten()
    if program.positions(node.source) is None:  # a single vector, repeated
        value = value.unsqueeze(axis)
    if bool(picks.numel() == value.shape[axis]) and bool(
        (picks == torch.arange(picks.numel(), device=picks.device)).all()
    ):
        result = value
    else:
        result = value.index_select(axis, picks)
    return result if node.positions else result.squeeze(axis)


def mixed(value: Tensor, node: Mix, axis: int, program: Program) -> Tensor:
    """Matrices along the positions of one side."""
    value = value.movedim(axis, -1)
    shape = value.shape
    if node.flat is not None:
        value = value @ node.flat.tensor(value).mT
    else:
        source = program.hidden(node.source).positions
        value = value.unflatten(-1, source)
        for k, matrix in enumerate(node.matrices):
            if matrix is None:
                continue
            place = k - len(source)
            rows = matrix.tensor(value)
            if rows.shape[0] == 1 and bool((rows == rows[0, 0]).all()):
                value = value.mean(place, keepdim=True) * (rows[0, 0] * rows.shape[1])
            else:
                value = (value.movedim(place, -1) @ rows.mT).movedim(-1, place)
        value = value.reshape(*shape[:-1], -1)
    return value.movedim(-1, axis)


def averaged(value: Tensor, weights: Tensor, axis: int) -> Tensor:
    """sum_b weights[.., a, b] value[.., b, ..] on the mapped side.

    `weights` `[.., (pairs), queries, keys]` broadcasts with the pairs of `value`.
    """
    if axis == -1 and value.dim() == weights.dim() - 1:
        return (weights @ value.unsqueeze(-1)).squeeze(-1)
    if axis == -1:  # [.., P, keys]
        return value @ weights.mT
    return weights @ value


def convolved(
    value: Tensor,
    windows: tuple[Window, Window],
    left: tuple[int, ...],
    right: tuple[int, ...],
    full: bool,
) -> Tensor:
    """Average over a window of pairs of positions, each at the same place of its side's window.

    The window is a box, so its dimensions are summed one after the other. Without `full` both
    sides' windows are the same.
    """
    lead = value.shape[: value.dim() - (2 if full else 1)]
    value = value.reshape(*lead, *left, *(right if full else ()))
    dims = len(left)
    start = len(lead)
    for k in range(dims):
        axes = [start + k] + ([start + dims + k] if full else [])
        value = _window_sum(value, axes, [_Line.of(w, k) for w in windows[: len(axes)]])
    scale = 1.0 / math.prod(windows[0].size)
    value = value * scale if needs_graph(value) else value.mul_(scale)
    return value.reshape(*lead, *([-1, math.prod(value.shape[start + dims :])] if full else [-1]))


@dataclass(frozen=True)
class _Line:
    """One dimension of a window."""

    size: int
    stride: int
    padding: tuple[int, int]
    dilation: int
    circular: bool

    @staticmethod
    def of(window: Window, k: int) -> _Line:
        """Dimension k of a window."""
        size, stride, padding = window.size[k], window.stride[k], window.padding[k]
        return _Line(size, stride, padding, window.dilation[k], window.circular)


def _window_sum(value: Tensor, axes: Sequence[int], lines: Sequence[_Line]) -> Tensor:
    """out[h, h'] = sum_b value[s h + d b - pad, s' h' + d' b - pad'] along `axes`."""
    before = []
    for axis, line in zip(axes, lines, strict=True):
        before.append(line.padding)
        if line.circular:
            n = value.shape[axis]
            index = torch.arange(-line.padding[0], n + line.padding[1], device=value.device) % n
            value = value.index_select(axis, index)
            before[-1] = (0, 0)
    size = lines[0].size
    sizes = [value.shape[axis] for axis in axes]
    outs = [
        (n + sum(pad) - line.dilation * (size - 1) - 1) // line.stride + 1
        for n, pad, line in zip(sizes, before, lines, strict=True)
    ]
    shape = list(value.shape)
    for axis, out in zip(axes, outs, strict=True):
        shape[axis] = out
    total: Tensor | None = None
    # the middle of the window first: it often covers all, and then nothing need be set to 0
    for b in sorted(range(size), key=lambda b: abs(2 * b - size + 1)):
        shifts = [line.dilation * b - pad[0] for line, pad in zip(lines, before, strict=True)]
        spans = []
        for n, out, shift, line in zip(sizes, outs, shifts, lines, strict=True):
            low = max(0, -(shift // line.stride))  # first h with stride h + shift >= 0
            spans.append((low, min(out, (n - 1 - shift) // line.stride + 1)))
        if any(high <= low for low, high in spans):
            continue
        part = value
        for axis, (low, high), shift, line in zip(axes, spans, shifts, lines, strict=True):
            stride = line.stride
            part = part.narrow(axis, stride * low + shift, stride * (high - 1 - low) + 1)
            if stride > 1:
                part = part[(slice(None),) * axis + (slice(None, None, stride),)]
        if total is None and all(s == (0, n) for s, n in zip(spans, outs, strict=True)):
            total = part.clone(memory_format=torch.contiguous_format)
            continue
        total = value.new_zeros(shape) if total is None else total
        target = total
        for axis, (low, high) in zip(axes, spans, strict=True):
            target = target.narrow(axis, low, high - low)
        target += part
    return value.new_zeros(shape) if total is None else total


def needs_graph(*tensors: Tensor) -> bool:
    """Whether autograd follows what becomes of the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
