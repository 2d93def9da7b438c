"""The base class of activations: expectations by interpolation or quadrature.

`Smooth` and `Numerical` make an activation of any function and add nothing to that.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import torch
from torch import Tensor

from priors.gaussian.activations.powers import Terms, rectified_dual, slopes
from priors.gaussian.interpolation import Tables, expectations, mean, tables_of
from priors.gaussian.pairs import are_extreme, inverse_sqrt
from priors.gaussian.quadrature import Function, derivative_of, jumps

if TYPE_CHECKING:
    from priors.shapes import Part, Whole

__all__ = ["Activation", "FunctionOfOne", "Numerical", "Smooth"]


class Activation(ABC):
    """An elementwise nonlinearity with its Gaussian expectations.

    A subclass gives the function and where it is not smooth; every expectation has a default by
    quadrature or, for smooth functions, by tables made from it, to be overridden where there is
    a closed form. Closed forms of pairs hold within a family: the class that defines
    `closed_duals`, or `closed_dual` and `closed_dual_derivative`, and its subclasses.
    """

    _family: ClassVar[Any] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = vars(cls).keys()
        if "closed_duals" in own or {"closed_dual", "closed_dual_derivative"} <= own:
            cls._family = cls

    def _akin(self, other: Activation) -> TypeGuard[Self]:
        """Whether there is a closed form for the pair."""
        return isinstance(other, self._family)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The function itself, elementwise."""

    def derivative(self, x: Tensor) -> Tensor:
        """phi', elementwise; at a kink the value of either side."""
        return derivative_of(self)(x)

    def derivative_function(self, order: int) -> Function:
        """phi^(order) as a function; equal to that of the same activation, asked for again."""
        if order == 0:
            return self
        function: Function = self.derivative
        for _ in range(order - 1):
            function = derivative_of(function)
        return function

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where phi or phi' jumps, or a higher derivative does."""
        return ()

    @property
    def homogeneous(self) -> bool:
        """Whether phi(s x) = s phi(x) for every s > 0."""
        return False

    @property
    def terms(self) -> Terms | None:
        """(a, n, s) of each term, where phi is a sum of a max(s x, 0)^n with s = +-1, or None."""
        return None

    @property
    def closed(self) -> bool:
        """Whether its expectations with itself have closed forms."""
        return self._akin(self) or self.terms is not None

    @functools.cached_property
    def tables(self) -> Tables:
        """What is interpolated of this activation, as far as it was needed."""
        return tables_of(self)

    def shifted(self, offset: float) -> Activation:
        """The activation x -> phi(x + offset)."""
        return _Shifted(self, offset) if offset else self

    def dual(self, other: Activation, q1: Part, q2: Part, c: Part) -> Whole:
        """E[phi(u) psi(v)] with psi = `other`."""
        if self._akin(other):
            return _in_range(self.closed_dual, other, q1, q2, c)
        if self.terms is not None and other.terms is not None:
            return _in_range(rectified_dual, self.terms, other.terms, q1, q2, c)
        return expectations(self, other, ((0, 0),), q1, q2, c)[0]

    def dual_derivative(self, other: Activation, q1: Part, q2: Part, c: Part) -> Whole:
        """E[phi'(u) psi'(v)] with psi = `other`."""
        if self._akin(other):
            return _in_range(self.closed_dual_derivative, other, q1, q2, c)
        if self.terms is not None and other.terms is not None:
            return _in_range(rectified_dual, slopes(self.terms), slopes(other.terms), q1, q2, c)
        return expectations(self, other, ((1, 1),), q1, q2, c)[0]

    def duals(self, other: Activation, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        """`dual` and `dual_derivative`, sharing the work where that saves some."""
        if self._akin(other):
            return _in_range(self.closed_duals, other, q1, q2, c)
        return self.dual(other, q1, q2, c), self.dual_derivative(other, q1, q2, c)

    def closed_dual(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        """`dual` of two activations of one family, in closed form."""
        return self.closed_duals(other, q1, q2, c)[0]

    def closed_dual_derivative(self, other: Self, q1: Part, q2: Part, c: Part) -> Whole:
        """`dual_derivative` of two activations of one family, in closed form."""
        return self.closed_duals(other, q1, q2, c)[1]

    def closed_duals(self, other: Self, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        """`duals` of two activations of one family, in closed form."""
        value = self.closed_dual(other, q1, q2, c)
        return value, self.closed_dual_derivative(other, q1, q2, c)

    def mean(self, q: Whole) -> Whole:
        """E[phi(u)] for u of variance `q`."""
        return mean(self, (0,), q)

    def mean_derivative(self, q: Whole) -> Whole:
        """E[phi'(u)] for u of variance `q`, without the deltas of phi' at jumps."""
        return mean(self, (1,), q)

    def stein(self, q: Whole) -> Whole:
        """E[u phi(u)] / q: `mean_derivative` and the deltas of phi' at jumps.

        Stein's lemma: E[phi(u) w] = stein(q) E[u w] for jointly Gaussian u and w.
        """
        value = self.mean_derivative(q)
        inverse = inverse_sqrt(q, torch.finfo(q.dtype).tiny)
        for kink, jump in zip(self.kinks, jumps(self, self.kinks), strict=True):
            if jump:
                density = torch.exp(-((kink * inverse) ** 2) / 2) * inverse
                value = value + jump / math.sqrt(2 * math.pi) * density
        return value

    def second_moment(self, q: Whole) -> Whole:
        """E[phi(u)^2] for u of variance `q`."""
        return mean(self, (0, 0), q)

    def second_moment_derivative(self, q: Whole) -> Whole:
        """E[phi'(u)^2] for u of variance `q`."""
        return mean(self, (1, 1), q)


def _in_range(closed: Callable[..., Any], *arguments: Any) -> Any:
    """A closed form of a pair, whose gradients have cubes of variances in them: in float64 where
    those of a shorter dtype would leave its range, as far as that can be asked (see `pairs`)."""
    *rest, q1, q2, c = arguments
    if c.dtype == torch.float64 or not are_extreme(q1, q2):
        return closed(*arguments)
    result = closed(*rest, q1.double(), q2.double(), c.double())
    if isinstance(result, tuple):
        return tuple(x.to(c.dtype) for x in result)
    return result.to(c.dtype)


class FunctionOfOne(Activation):
    """A function without closed forms."""

    def duals(self, other: Activation, q1: Part, q2: Part, c: Part) -> tuple[Whole, Whole]:
        value, slope = expectations(self, other, ((0, 0), (1, 1)), q1, q2, c)
        return value, slope


@dataclass(frozen=True)
class Smooth(FunctionOfOne):
    """Any function smooth on the real line, by quadrature.

    Args:
        function: Elementwise and differentiable by autograd, growing at most polynomially.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Numerical(FunctionOfOne):
    """Any piecewise smooth function, by quadrature.

    Args:
        function: Elementwise and differentiable by autograd, growing at most polynomially.
        positions: Where it, or one of its derivatives, jumps; `quadrature.detect_kinks` finds
            them.
    """

    function: Callable[[Tensor], Tensor]
    positions: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    @property
    def kinks(self) -> tuple[float, ...]:
        return self.positions


@dataclass(frozen=True)
class _Shifted(Activation):
    """x -> phi(x + offset)."""

    activation: Activation
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x + self.offset)

    def derivative(self, x: Tensor) -> Tensor:
        return self.activation.derivative(x + self.offset)

    @property
    def kinks(self) -> tuple[float, ...]:
        return tuple(kink - self.offset for kink in self.activation.kinks)

    def shifted(self, offset: float) -> Activation:
        return _Shifted(self.activation, self.offset + offset)
