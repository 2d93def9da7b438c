"""Whole kernels of a program: in blocks to a memory budget, symmetric ones once per pair.

A block of pairs of data points goes through the whole program before the next one starts, so
that what is held at a time is a block, not n^2 numbers per layer, and stays in the processor's
cache. What concerns each point alone (variances, means) is computed once for all blocks. With
gradients, blocks that together exceed the budget are recomputed in the backward pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from priors.limits.costs import costs
from priors.limits.moments import Moments, Points, Settings
from priors.limits.progress import BlockProgress
from priors.limits.tangents import Tangents
from priors.programs.nodes import Attention, Linear, Nonlinear
from priors.programs.program import Program

__all__ = ["Evaluation"]

# Numbers of one block's moment: small enough for the second-level cache, large enough that the
# overhead of a call does not matter.
_CACHE_BLOCK = 2**16
_GPU_BLOCK = 2**24


@dataclass(frozen=True)
class Evaluation:
    """Evaluates the kernels of a program.

    Attributes:
        program: The network.
        settings: Variances, quadrature and memory.
        standard: The standard parametrisation in the tangent kernel.
        progress: Show a progress bar where more than ten seconds are expected.
        devices: Where blocks are computed when no gradient is needed; empty means where the
            data points are.
    """

    program: Program
    settings: Settings
    standard: bool = False
    progress: bool = True
    devices: tuple[torch.device, ...] = ()

    def kernels(
        self,
        x1: Tensor,
        x2: Tensor,
        *,
        diag: bool,
        nngp: bool,
        ntk: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Kernels of the output; those not asked for are None.

        Args:
            x1: `[..., n1, d]`.
            x2: `[..., n2, d]`; the same tensor object means the same points.
            diag: Row by row.
            nngp: Whether the NNGP kernel is asked for.
            ntk: Whether the tangent kernel is asked for.

        Returns:
            Each `[..., n1, n2]`, or `[..., n]` with `diag`.
        """
        if 0 in (x1.shape[-2], x2.shape[-2]):
            return self._empty(x1, x2, diag=diag, nngp=nngp, ntk=ntk)
        # tangents of a point with itself: for the diagonal, and where attention heads are random
        keep = ntk and (diag or self.program.has_random_heads)
        left = Points(self.program, self.settings, x1, derivatives=keep)
        right = left if x1 is x2 else Points(self.program, self.settings, x2)
        if diag:
            paired = left.single if x1 is x2 else Moments(left, right, paired=True, derivatives=ntk)
            return self._outputs(paired, nngp, ntk)
        side = self._block(x1)
        n1, n2 = x1.shape[-2], x2.shape[-2]
        if max(n1, n2) <= side:
            return self._outputs(Moments(left, right, derivatives=ntk), nngp, ntk)
        return self._blocks(left, right, side, nngp, ntk)

    def _empty(
        self, x1: Tensor, x2: Tensor, *, diag: bool, nngp: bool, ntk: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Kernels without entries, of the shape and dtype that those of one point have."""
        point = x1.new_zeros(*x1.shape[:-2], 1, x1.shape[-1])
        other = x2.new_zeros(*x2.shape[:-2], 1, x2.shape[-1])
        sizes = (x1.shape[-2],) if diag else (x1.shape[-2], x2.shape[-2])
        with torch.no_grad():
            found = self.kernels(point, other, diag=diag, nngp=nngp, ntk=ntk)
        nngp_kernel, ntk_kernel = (
            None if k is None else k.new_zeros(*k.shape[: -len(sizes)], *sizes) for k in found
        )
        return nngp_kernel, ntk_kernel

    def _outputs(
        self, moments: Moments, nngp: bool, ntk: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        index = self.program.output
        tangent = None
        if ntk:
            tangents = Tangents(moments, standard=self.standard)
            tangent = self._single(tangents.tangent(index, index), moments, index)
        moment = self._single(moments.moment(index, index), moments, index) if nngp else None
        return moment, tangent

    def _single(self, value: Tensor | None, moments: Moments, index: int) -> Tensor:
        """Drop the positions of an output with one position."""
        if value is None:  # no trained parameter reaches it
            value = moments.zeros(index, index, True)
        if self.program.positions(index) is None:
            return value
        return value[..., 0, 0]

    def _blocks(
        self, left: Points, right: Points, side: int, nngp: bool, ntk: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Blocks of rows and columns; of a symmetric kernel those on and above the diagonal."""
        symmetric = left is right
        threads = torch.get_num_threads()
        n1, n2 = left.x.shape[-2], right.x.shape[-2]
        rows = [slice(i, min(i + side, n1)) for i in range(0, n1, side)]
        columns = [slice(j, min(j + side, n2)) for j in range(0, n2, side)]
        pairs = [(r, c) for r in rows for c in columns if not symmetric or c.start >= r.start]

        def block(r: slice, c: slice) -> tuple[Tensor, ...]:
            moments = Moments(left, right, rows=r, columns=c, derivatives=ntk)
            return tuple(k for k in self._outputs(moments, nngp, ntk) if k is not None)

        grad = torch.is_grad_enabled() and self._requires_grad(left, right)
        if grad:  # what concerns single points must not become part of a recomputed block
            block(slice(0, 1), slice(0, 1))
        wanted = int(nngp) + int(ntk)
        results: list[Tensor] = []
        progress = BlockProgress(
            len(pairs),
            device=next(iter(self.devices), left.x.device),
            shown=self.progress,
            reasons=lambda: costs(self.program),
        )
        if not grad:
            with _single_threaded_operations():
                for (r, c), values in self._computed(left, right, pairs, block, nngp, ntk, threads):
                    progress.update()
                    if not results:
                        batch = values[0].shape[:-2]
                        results = [left.x.new_empty(*batch, n1, n2) for _ in range(wanted)]
                    for result, value in zip(results, values, strict=True):
                        result[..., r, c] = value
                        if symmetric and r != c:
                            result[..., c, r] = value.mT
        else:
            recompute = len(pairs) * self._graph_bytes(left.x, side) > self.settings.max_bytes
            parts: dict[tuple[int, int], tuple[Tensor, ...]] = {}
            for r, c in pairs:
                values = checkpoint(block, r, c, use_reentrant=False) if recompute else block(r, c)
                progress.update()
                parts[r.start, c.start] = values
                if symmetric and r != c:
                    parts[c.start, r.start] = tuple(v.mT for v in values)
            results = [
                torch.cat(
                    [torch.cat([parts[r.start, c.start][k] for c in columns], -1) for r in rows], -2
                )
                for k in range(wanted)
            ]
        progress.close()
        found = iter(results)
        return next(found) if nngp else None, next(found) if ntk else None

    def _computed(
        self,
        left: Points,
        right: Points,
        pairs: list[tuple[slice, slice]],
        block: Callable[[slice, slice], tuple[Tensor, ...]],
        nngp: bool,
        ntk: bool,
        threads: int,
    ) -> Iterator[tuple[tuple[slice, slice], tuple[Tensor, ...]]]:
        """Blocks without gradients, on all devices at once, in any order."""
        ends: list[tuple[Points, Points]] = []
        for device in self.devices:
            there = Points(self.program, self.settings, left.x.to(device))
            other = (
                there if left is right else Points(self.program, self.settings, right.x.to(device))
            )
            ends.append((there, other))
        workers = len(ends)
        if not ends:
            # the first block also computes what concerns single points, for all that follow
            yield pairs[0], block(*pairs[0])
            pairs = pairs[1:]
            workers = self._workers(left.x, len(pairs), threads)
            ends = [(left, right)] * workers
        if workers == 1:
            for pair in pairs:
                yield pair, block(*pair)
            return

        done: Queue[Any] = Queue()

        def work(side: tuple[Points, Points], share: list[tuple[slice, slice]]) -> None:
            try:
                with torch.no_grad():
                    for r, c in share:
                        moments = Moments(*side, rows=r, columns=c, derivatives=ntk)
                        values = [k for k in self._outputs(moments, nngp, ntk) if k is not None]
                        done.put(((r, c), tuple(v.to(left.x.device) for v in values)))
            except BaseException as error:  # raised again where it is waited for
                done.put(error)

        crew = [
            Thread(target=work, args=(side, pairs[k :: len(ends)]), daemon=True)
            for k, side in enumerate(ends)
        ]
        for thread in crew:
            thread.start()
        for _ in pairs:
            item = done.get()
            if isinstance(item, BaseException):
                raise item
            yield item
        for thread in crew:
            thread.join()

    def _workers(self, x: Tensor, blocks: int, threads: int) -> int:
        """Threads that each take whole blocks, on a CPU.

        As many as torch would use within each operation, whose tensors are too small for that;
        with positions half as many, since allocation then bounds more than arithmetic does.
        """
        if x.device.type != "cpu":
            return 1
        count = threads if self._numbers_per_pair() == 1 else threads // 2
        return max(1, min(count, blocks))

    def _requires_grad(self, left: Points, right: Points) -> bool:
        layers = [("weight", layer) for layer in self.program.weights]
        layers += [("bias", layer) for layer in self.program.biases]
        variances = (self.settings.variances(kind, layer, left.x) for kind, layer in layers)
        return any(t.requires_grad for t in (left.x, right.x, *variances))

    def _numbers_per_pair(self) -> int:
        """Numbers of the largest moment per pair of data points."""
        largest = 1
        for index, node in enumerate(self.program.nodes):
            if isinstance(node, Linear | Nonlinear | Attention):
                size = self.program.positions(index) or 1
                largest = max(largest, size**2 if self.program.mixes else size)
        return largest

    def _block(self, x: Tensor) -> int:
        """Points on a side of a block."""
        numbers = _CACHE_BLOCK if x.device.type == "cpu" else _GPU_BLOCK
        if self._numbers_per_pair() > 1:  # more operations for each layer, so fewer blocks
            numbers *= 2
        batch = x.shape[:-2].numel()
        # about 16 such tensors are alive at a time, and the powers that expansions need
        joint = any(isinstance(n, Nonlinear) and n.is_joint for n in self.program.nodes)
        alive = 64 if joint else 16
        budget = min(numbers, self.settings.max_bytes // (alive * x.element_size()))
        return max(1, math.isqrt(max(1, budget // (self._numbers_per_pair() * batch))))

    def _graph_bytes(self, x: Tensor, side: int) -> int:
        """Memory that the graph of one block holds: about eight tensors per nonlinearity.

        Forty where it is expanded in several variables, for the powers of their correlations.
        The joint moments of random heads' queries and of their keys are four times as large,
        and so are their roots.
        """
        units = [n for n in self.program.nodes if isinstance(n, Nonlinear)]
        tensors = sum(40 if n.is_joint else 8 for n in units)
        if self.program.has_random_heads:
            tensors += sum(40 * isinstance(n, Attention) for n in self.program.nodes)
        return tensors * side**2 * self._numbers_per_pair() * x.element_size()


@contextlib.contextmanager
def _single_threaded_operations() -> Iterator[None]:
    """Inside, operations use one thread each: blocks are spread over threads instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
