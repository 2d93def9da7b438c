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
module's own, and a bias's is 1 (Sohl-Dickstein et al. 2020, 2001.07301).

This rests on gradient independence, which fails when the readout matrix is used elsewhere:
refused.
"""

from __future__ import annotations

import functools

from torch import Tensor

from priors.limits.expectations import expectation, stein
from priors.limits.moments import Moments
from priors.limits.pairs import Pairs
from priors.limits.weights import through_weight
from priors.programs.nodes import Attention, Embedding, Features, Linear, Nonlinear
from priors.programs.program import Program

__all__ = ["Tangents", "check_gradient_independence", "readouts"]


def check_gradient_independence(program: Program) -> None:
    """Refuse a program whose readout is used elsewhere.

    Raises:
        NotImplementedError: a readout's matrix or result also serves inside the network.
    """
    last = readouts(program, program.output)
    names = {
        node.weight
        for node in (program.nodes[i] for i in last)
        if isinstance(node, Linear | Embedding)
    }
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


def readouts(program: Program, *indices: int) -> set[int]:
    """The `Linear` and `Embedding` nodes that nodes are made of by linear maps."""
    found = set()
    for index in indices:
        node = program.nodes[index]
        if isinstance(node, Linear | Embedding):
            found.add(index)
        elif not isinstance(node, Nonlinear | Features) and not program.finite(index):
            found |= readouts(program, *program.sources(index))
    return found


class Tangents:
    """Tangent moments over the pairs of `moments`.

    Args:
        moments: Made with `derivatives=True`.
        standard: The standard parametrisation instead of the NTK's.
    """

    def __init__(self, moments: Moments, *, standard: bool = False) -> None:
        check_gradient_independence(moments.program)
        if standard and any(n is None for n in moments.program.fan_in.values()):
            raise ValueError(
                "The standard parametrisation needs the module's widths; use nn.Linear instead of "
                "nn.LazyLinear."
            )
        self.moments = moments
        self.program = moments.program
        self._standard = standard
        self._own: Tangents | None = None
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
        full = full or self.program.positions(a) is None or self.program.positions(b) is None
        if (a, b, full) not in self._cache:
            if m.same and (b, a, full) in self._cache:
                value = self._cache[b, a, full]
                return None if value is None else m.transposed(value, b, a, full)
            if not full and (a, b, True) in self._cache:
                value = self._cache[a, b, True]
                return None if value is None else value.diagonal(dim1=-2, dim2=-1)
            value = self._tangent(a, b, full)
            if value is not None:
                value = m.symmetrised(value, a, b, full)
            self._cache[a, b, full] = value
            self._forget_below(a, b)
        return self._cache[a, b, full]

    def _forget_below(self, a: int, b: int) -> None:
        """As `Moments` does; tangents are asked for last."""
        node = self.program.nodes[a]
        if a == b and isinstance(node, Linear) and node.source is not None:
            self.moments.drop_intermediate(a, b)
            for index in (node.source, *self.program.sources(node.source)):
                if self.program.consumers[index] == 1:
                    for full in (True, False):
                        self._cache.pop((index, index, full), None)

    def _tangent(self, a: int, b: int, full: bool) -> Tensor | None:
        first, second = self.program.nodes[a], self.program.nodes[b]
        match first, second:
            case Features(), _:
                return None
            case Linear(), Linear():
                return self._linear(a, b, full)
            case Embedding(), Embedding():
                return self._embedding(a, b, full)
            case Nonlinear(), Nonlinear():
                return self._elementwise(a, b, full)
            case (Nonlinear(), Linear() | Embedding()) | (Linear() | Embedding(), Nonlinear()):
                return stein(self.moments, a, b, full, self.tangent)
            case Linear() | Embedding(), Linear() | Embedding():
                return None
        value = self.moments.mapped(a, b, full, self.tangent)
        if isinstance(first, Attention) and isinstance(second, Attention):
            return self._through_logits(a, b, full, value)
        return value

    def _linear(self, a: int, b: int, full: bool) -> Tensor | None:
        m = self.moments
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Linear)
        assert isinstance(second, Linear)
        trailing = m.trailing(a, b, full)
        own = self._own_gradient(first, second, a, b, full)
        if first.weight != second.weight:
            return own
        below = through_weight(m, a, b, full, self.tangent)
        if below is None:
            return own
        variance = m.variance("weight", first.layer, trailing)
        if own is None:
            return variance * below
        if variance.dim() == 0 and not variance.requires_grad:
            return own.add(below, alpha=float(variance))
        return own + variance * below

    def _own_gradient(
        self, first: Linear, second: Linear, a: int, b: int, full: bool
    ) -> Tensor | None:
        """What the layer's own weight and bias contribute."""
        m = self.moments
        if not self._standard:
            return m.moment(a, b, full)
        total: Tensor | None = None
        if first.weight == second.weight:
            total = through_weight(m, a, b, full, m.moment)
            if total is not None:
                assert first.fan_in is not None
                total = total * float(first.fan_in)
        if first.bias is not None and first.bias == second.bias:
            total = m.zeros(a, b, full) + 1.0 if total is None else total + 1.0
        return total

    def _embedding(self, a: int, b: int, full: bool) -> Tensor | None:
        m = self.moments
        own = m.moment(a, b, full)
        if own is None or not self._standard:
            return own
        node = self.program.nodes[a]
        assert isinstance(node, Embedding)
        return own / m.variance("weight", node.layer, m.trailing(a, b, full))

    def _elementwise(self, a: int, b: int, full: bool) -> Tensor | None:
        m = self.moments
        if m.is_plain(a) and m.is_plain(b):
            (_, u), (_, v) = m.activation(a), m.activation(b)
            inner = self.tangent(u, v, full)
            if inner is None:
                return None
            derivative = self._derivative(a, b, full)
            return None if derivative is None else derivative * inner
        total: Tensor | None = None
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Nonlinear)
        assert isinstance(second, Nonlinear)
        for j, f in enumerate(first.factors):
            for s, u in enumerate(f.sources):
                for k, g in enumerate(second.factors):
                    for t, v in enumerate(g.sources):
                        inner = self.tangent(u, v, full)
                        if inner is None:
                            continue
                        slope = expectation(m, a, b, full, (j, s), (k, t))
                        exact = functools.partial(_slope, a, b, (j, s), (k, t))
                        slope = m.with_exact_diagonal(slope, a, b, full, exact)
                        total = slope * inner if total is None else total + slope * inner
        return total

    def _derivative(self, a: int, b: int, full: bool) -> Tensor | None:
        m = self.moments
        derivative = m.duals(a, b, full)[1]
        if derivative is None:
            return None

        def exact(own: Pairs) -> Tensor:
            phi, u = own.activation(a)
            psi, v = own.activation(b)
            q = own.variance_of(u, 0)
            if a == b:
                return phi.second_moment_derivative(q)
            c = own.moment(u, v, False)
            assert c is not None
            return phi.dual_derivative(psi, q, own.variance_of(v, 0), c)

        return m.with_exact_diagonal(derivative, a, b, full, exact)

    def _through_logits(self, a: int, b: int, full: bool, value: Tensor | None) -> Tensor | None:
        """The gradient with respect to queries and keys, where the logits are random."""
        first, second = self.program.nodes[a], self.program.nodes[b]
        assert isinstance(first, Attention)
        assert isinstance(second, Attention)
        if first.mean_field or second.mean_field:
            return value
        inner = self.moments.moment(first.value, second.value, True)
        if inner is None:
            return value
        tangents = (
            self.tangent(first.query, second.query, True),
            self.tangent(first.key, second.key, True),
        )
        term = self.moments.heads(a, b).logit_gradient(inner, *tangents)
        if term is None:
            return value
        if value is not None:
            whole = value if full else self.moments.mapped(a, b, True, self.tangent)
            assert whole is not None
            term = term + whole
        if self.moments.same and not self.moments.paired:
            term = self.moments.with_exact_blocks(term, self._own_tangent(a, b))
        return term if full else term.diagonal(dim1=-2, dim2=-1)

    def _own_tangent(self, a: int, b: int) -> Tensor | None:
        """The tangent of each left point with itself."""
        if self._own is None:
            self._own = Tangents(self.moments.of_points(0), standard=self._standard)
        return self._own.tangent(a, b, True)


def _slope(a: int, b: int, da: tuple[int, int], db: tuple[int, int], single: Pairs) -> Tensor:
    return expectation(single, a, b, False, da, db)
