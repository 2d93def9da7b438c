"""The tables of an activation, made when enough pairs are asked for, and kept on the activation."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from priors.gaussian.interpolation.construction import MeanTable, best_bend, mean_table, table
from priors.gaussian.interpolation.tables import Factors, Stack, Table
from priors.gaussian.quadrature.functions import Function

if TYPE_CHECKING:
    from priors.gaussian.activations.base import Activation

__all__ = ["HIGHEST", "LOWEST", "Tables", "exponents", "tables_of"]

# Binary logarithms of the variances that tables may cover, about 1e-3 and 4000, and of those that
# the first one does at least: variances move during a fit.
LOWEST, HIGHEST = -10, 12
_USUAL = -4, 6

# Quadrature of fewer pairs, or points, in all costs less than a table.
MIN_PAIRS, MIN_POINTS = 2**12, 2**9

_KEPT = 32  # activations whose tables are kept when nobody uses them

Made = TypeVar("Made")

_PROBES = (-2.7, -1.1, -0.35, 0.0, 0.6, 1.7, 4.1)


class Tables:
    """Interpolants of E[phi^(m)(u) psi^(n)(v)] and of means, of one activation phi.

    They are dropped when the function has changed since they were made, as one that reads a
    parameter may, and are not copied or pickled with the activation.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._asked: dict[Hashable, int] = {}
        self._tables: dict[Hashable, list[Table]] = {}
        self._refused: dict[Hashable, list[tuple[int, int]]] = {}
        self._factors: dict[Hashable, Factors] = {}
        self._stacks: dict[Hashable, Stack] = {}
        self._bends: dict[Hashable, float | None] = {}
        self._means: dict[Hashable, dict[tuple[int, int], MeanTable | None]] = {}
        self._probes: dict[Hashable, Tensor] = {}

    def __reduce__(self) -> tuple[type[Tables], tuple[()]]:
        return Tables, ()

    def worth_it(self, what: Hashable, number: int, *, single: bool = False) -> bool:
        """Whether, with `number` more, enough was asked for to make tables."""
        with self._lock:
            self._asked[what] = self._asked.get(what, 0) + number
            return self._asked[what] >= (MIN_POINTS if single else MIN_PAIRS)

    def check(self, phi: Activation, device: torch.device) -> None:
        """Drop everything if `phi` is another function than before."""
        values = _untransformed(lambda: _values(phi, device))
        with self._lock:
            key = (phi, device)
            before = self._probes.get(key)
            if before is not None and not torch.equal(values, before):
                made = (self._tables, self._refused, self._factors, self._stacks, self._bends)
                for kept in (*made, self._means):
                    kept.clear()
            self._probes[key] = values

    def stack(
        self,
        phi: Activation,
        psi: Activation,
        orders: Sequence[tuple[int, int]],
        low: int,
        high: int,
        device: torch.device,
    ) -> Stack | None:
        """Of E[phi^(m)(u) psi^(n)(v)] for each (m, n) and variances from 2^low to 2^high.

        None where one of them is not accurate.
        """
        key = (psi, tuple(orders), device, low, high)
        if key in self._stacks:
            return self._stacks[key]

        def make() -> Stack | None:
            with self._lock:
                found = [self._factors_of(phi, psi, o, low, high, device) for o in orders]
                known = [f for f in found if f is not None]
                return Stack.of(known) if len(known) == len(found) else None

        made = _untransformed(make)
        if made is not None:
            self._stacks[key] = made
        return made

    def _factors_of(
        self,
        phi: Activation,
        psi: Activation,
        orders: tuple[int, int],
        low: int,
        high: int,
        device: torch.device,
    ) -> Factors | None:
        key = (psi, orders, device, low, high)
        if key not in self._factors:
            made = self._table(phi, psi, orders, low, high, device)
            if made is None:
                return None
            self._factors[key] = made.factors(low, high)
        return self._factors[key]

    def _table(
        self,
        phi: Activation,
        psi: Activation,
        orders: tuple[int, int],
        low: int,
        high: int,
        device: torch.device,
    ) -> Table | None:
        key = (psi, orders, device)
        tables = self._tables.setdefault(key, [])
        for known in tables:
            if known.covers(low, high):
                return known
        refused = self._refused.setdefault(key, [])
        if any(low <= a and b <= high for a, b in refused):
            return None
        if phi == psi and orders[0] > orders[1]:
            mirrored = self._table(phi, psi, (orders[1], orders[0]), low, high, device)
            if mirrored is not None:
                tables.append(mirrored.swapped())
                return tables[-1]
            refused.append((low, high))
            return None
        # room on both sides, and one table for all there were
        wide = max(LOWEST, min([low - 1, *(int(t.low) for t in tables)]))
        widest = min(HIGHEST, max([high + 1, *(int(t.high) for t in tables)]))
        usual = min(wide, _USUAL[0]), max(widest, _USUAL[1])
        f, g = phi.derivative_function(orders[0]), psi.derivative_function(orders[1])
        for a, b in dict.fromkeys((usual, (wide, widest), (low, high))):
            if any(a <= c and d <= b for c, d in refused):
                continue
            made = self._made(phi, psi, (f, g), a, b, device)
            if made is not None:
                tables.append(made)
                return made
            refused.append((a, b))
        return None

    def _made(
        self,
        phi: Activation,
        psi: Activation,
        functions: tuple[Function, Function],
        low: int,
        high: int,
        device: torch.device,
    ) -> Table | None:
        # one bend for all orders, so that it is computed once for a value and its slopes: that
        # of the slope, which needs more terms than the value
        key = (psi, device, low, high)
        if key not in self._bends:
            self._bends[key] = best_bend(
                phi.derivative_function(1), psi.derivative_function(1), low, high, device
            )
        bend = self._bends[key]
        return None if bend is None else table(*functions, low, high, bend, device)

    def mean(
        self,
        phi: Activation,
        orders: tuple[int, ...],
        low: int,
        high: int,
        device: torch.device,
    ) -> MeanTable | None:
        """Of E[phi^(m)(u)] or E[phi^(m)(u) phi^(n)(u)] for variances from 2^low to 2^high.

        None where that is not accurate.
        """
        tables = self._means.setdefault((orders, device), {})
        functions = [phi.derivative_function(m) for m in orders]
        usual = min(low, _USUAL[0]), max(high, _USUAL[1])
        for a, b in dict.fromkeys(((LOWEST, HIGHEST), usual, (low, high))):
            if (a, b) not in tables:
                tables[a, b] = _untransformed(
                    functools.partial(mean_table, functions, a, b, device)
                )
            made = tables[a, b]
            if made is not None:
                return made
        return None


def tables_of(phi: Activation) -> Tables:
    """The tables that equal activations share, whichever networks they are in."""
    try:
        return _shared(phi)
    except TypeError:  # not hashable
        return Tables()


@functools.lru_cache(maxsize=_KEPT)
def _shared(phi: Activation) -> Tables:
    return Tables()


def _untransformed(make: Callable[[], Made]) -> Made:
    """What `make` gives outside the transforms of `torch.func`, for what outlives them."""
    try:
        torch.zeros((), device="cpu").requires_grad_()
    except RuntimeError:  # they are in this thread only
        with ThreadPoolExecutor(1) as other:
            return other.submit(make).result()
    return make()


def _values(phi: Activation, device: torch.device) -> Any:
    with torch.no_grad():
        return phi(torch.tensor(_PROBES, dtype=torch.float64, device=device))


def exponents(low: float, high: float) -> tuple[int, int] | None:
    """Powers of two around variances from `low` to `high`; None if out of reach of the tables."""
    if not 2.0**LOWEST <= low <= high <= 2.0**HIGHEST:
        return None
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    if first == last:
        first, last = (first, last + 1) if last < HIGHEST else (first - 1, last)
    return first, last
