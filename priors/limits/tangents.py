"""Tangent moments of a tensor program: inner products of gradients of pairs of nodes (NTK).

For nodes a, b the tangent is the limit of <d a_k(x_i)/dw, d b_k(x_j)/dw> over all weights w, the
same for every unit k. It follows forward, along with the moments (Jacot et al. 2018, 1806.07572;
Yang 2020, 2006.14548, with all uses of a shared weight):

    Linear, Linear            the weight's own gradient, weight_var * moment(sources), plus
                              weight_var * tangent(sources), if the weight is the same; plus
                              bias_var if the bias is the same
    Nonlinear, Nonlinear      sum_kl E[d_k f d_l g] tangent(u_k, v_l)
    Nonlinear, Gaussian       sum_k E[d_k f] tangent(u_k, v)
    linear maps               applied on their side, with the statistics of normalisations and
                              the weights of mean-field attention held fixed: their gradients
                              are averages over the width and vanish
    attention over heads      the same, plus the gradient through the logits

With the standard parametrisation a weight's own gradient is fan_in * moment(sources), fan_in the
module's own, and a bias's is 1 (Sohl-Dickstein et al. 2020, 2001.07301). A parameter with
`requires_grad` False contributes nothing of its own.

This rests on gradient independence, which fails when the readout matrix is used elsewhere:
refused.
"""

from __future__ import annotations

from torch import Tensor

from priors.limits.kinds import LinearMap, kind_of, mapped
from priors.limits.moments import Moments
from priors.programs.nodes import Attention, Linear, Nonlinear, Weighted
from priors.programs.program import Program

__all__ = ["Tangents", "check_gradient_independence", "readouts"]


def check_gradient_independence(program: Program) -> None:
    """Refuse a program whose readout is used elsewhere.

    Raises:
        NotImplementedError: a readout's matrix or result also serves inside the network.
    """
    last = readouts(program, program.output)
    names = {node.weight for node in (program.nodes[i] for i in last) if isinstance(node, Weighted)}
    inside = {
        s
        for i, node in enumerate(program.nodes)
        if isinstance(node, Linear | Nonlinear | Attention)
        for s in readouts(program, *program.sources(i))
    }
    for index, node in enumerate(program.nodes):
        if isinstance(node, Linear) and node.weight in names and index not in last:
            raise NotImplementedError(
                f"The NTK needs a readout of its own: the matrix of layer {node.layer!r} is the "
                "readout and is also used inside the network, so gradients depend on it. Give "
                "the readout its own layer; the NNGP kernel is unaffected."
            )
    if last & inside:
        raise NotImplementedError(
            "The NTK needs a readout that nothing else consumes; give the readout its own "
            "layer. The NNGP kernel is unaffected."
        )


def _check_gradients_flow(program: Program) -> None:
    if program.gradient_stop is not None:
        what, where = program.gradient_stop
        raise NotImplementedError(
            f"The tangent kernel of a network in which {what} at {where} stops gradients is not "
            "supported. Take it out of the forward; the NNGP kernel is unaffected."
        )
    if program.frozen >= {*program.weights.values(), *program.biases.values()}:
        raise NotImplementedError(
            "The tangent kernel is 0: every parameter of the module has requires_grad=False. Set "
            "it to True for those that are trained; the NNGP kernel is unaffected."
        )


def readouts(program: Program, *indices: int) -> set[int]:
    """The nodes with weights that nodes are made of by linear maps."""
    found = set()
    for index in indices:
        node = program.nodes[index]
        if isinstance(node, Weighted):
            found.add(index)
        elif isinstance(kind_of(node), LinearMap):
            found |= readouts(program, *program.sources(index))
    return found


class Tangents:
    """Tangent moments over the pairs of `moments`.

    Args:
        moments: Made with `derivatives=True`.
        standard: The standard parametrisation instead of the NTK's.
    """

    def __init__(self, moments: Moments, *, standard: bool = False) -> None:
        _check_gradients_flow(moments.program)
        check_gradient_independence(moments.program)
        if standard and any(n is None for n in moments.program.fan_in.values()):
            raise ValueError(
                "The standard parametrisation needs the module's widths; use nn.Linear instead of "
                "nn.LazyLinear."
            )
        self.moments = moments
        self.program = moments.program
        self.standard = standard
        self._of_points: Tangents | None = None
        self._cache: dict[tuple[int, int, bool], Tensor | None] = {}
        if len(self.program.nodes) > 100:
            self._warm_up()

    def _warm_up(self) -> None:
        """Fill the cache from the input on, as `Moments` does."""
        chain = [i for i, n in enumerate(self.program.nodes) if isinstance(n, Linear)]
        if all(self.program.positions(i) is None for i in chain):
            for index in chain:
                self.tangent(index, index)

    def tangent(self, a: int, b: int, full: bool = True) -> Tensor | None:
        """Tangent of nodes `a` on the left and `b` on the right; None if it vanishes."""
        m = self.moments
        if not m.related(a, b):
            return None
        full = full or not m.alike(a, b)
        if (a, b, full) not in self._cache:
            if m.same and (b, a, full) in self._cache:
                value = self._cache[b, a, full]
                return None if value is None else m.transposed(value, b, a, full)
            if not full and (a, b, True) in self._cache:
                value = self._cache[a, b, True]
                return None if value is None else value.diagonal(dim1=-2, dim2=-1)
            self._cache[a, b, full] = self._tangent(a, b, full)
            self._drop_intermediate(a, b)
        return self._cache[a, b, full]

    def _drop_intermediate(self, a: int, b: int) -> None:
        """As `Moments` does; tangents are asked for last."""
        node = self.program.nodes[a]
        if a == b and isinstance(node, Linear) and node.source is not None:
            self.moments.drop_intermediate(a, b)
            for index in (node.source, *self.program.sources(node.source)):
                if self.program.consumers[index] == 1:
                    for full in (True, False):
                        self._cache.pop((index, index, full), None)

    def _tangent(self, a: int, b: int, full: bool) -> Tensor | None:
        kind = kind_of(self.program.nodes[a])
        if kind is kind_of(self.program.nodes[b]):
            return kind.tangent(self, a, b, full)
        return mapped(self.moments, a, b, full, self.tangent)

    def of_points(self) -> Tangents:
        """The left points, each with itself."""
        if self._of_points is None:
            self._of_points = Tangents(self.moments.of_points(0), standard=self.standard)
        return self._of_points
