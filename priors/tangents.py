"""The backward pass of a tensor program: gradient second moments of pairs of nodes (NTK).

For Linear nodes a, b write G(a, b)[i, j] for the limit of <df/da(x_i), df/db(x_j)>, f one output
unit. Since df/dW = df/dz h^T for z = W h, the tangent kernel is a sum over pairs of uses,

    NTK = sum_{a, b} G(a, b) * moment(a, b),

where moment(a, b) of `moments` already vanishes unless the two share their weight or bias
(Yang 2020, 2006.14548, with all uses of a shared weight). G follows backwards. From a Linear node
gradients come along paths to the next Linear nodes z, each with a coefficient from combinations
and at most one derivative phi'(u) (the input of a nonlinearity is Gaussian, so two
nonlinearities never follow one another without a matrix between them):

    df/da = sum over paths of  coefficient * phi'(u) * W_z^T df/dz,
    G(a, b) = sum over pairs of paths to z, z' with the same weight of
              coefficient * coefficient' * E[phi'(u) psi'(v)] * weight_var * G(z, z').

Gradient independence, which this rests on, fails when the readout matrix is used elsewhere:
refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from priors.moments import Moments
from priors.program import ActivationNode, Linear, Program

__all__ = ["check_gradient_independence", "tangent_kernel"]


@dataclass(frozen=True)
class _Path:
    """From a Linear node through combinations and at most one activation to the next Linear."""

    coefficient: float
    activation: int | None
    target: int


def check_gradient_independence(program: Program) -> None:
    """Refuse a program whose readout is used elsewhere.

    Raises:
        NotImplementedError: a readout's matrix or result also serves inside the network.
    """
    readouts = {index for _, index in program.terms(program.output)}
    names = {_linear(program, index).weight for index in readouts}
    for index, node in enumerate(program.nodes):
        if isinstance(node, Linear) and node.weight in names and index not in readouts:
            raise NotImplementedError(
                f"The NTK needs a readout of its own: the matrix of layer {node.weight!r} is the "
                "readout and is also used inside the network, so gradients depend on it. Give "
                "the readout its own layer; the NNGP kernel is unaffected."
            )
        if isinstance(node, Linear | ActivationNode) and any(
            i in readouts for _, i in program.terms(node.source)
        ):
            raise NotImplementedError(
                "The NTK needs a readout that nothing else consumes; give the readout its own "
                "layer. The NNGP kernel is unaffected."
            )


def tangent_kernel(moments: Moments) -> Tensor:
    """Neural tangent kernel of one output unit over the pairs of `moments`.

    Returns:
        `[..., n1, n2]`, or `[..., n]` for paired data points.

    Raises:
        NotImplementedError: see `check_gradient_independence`.
    """
    program = moments.program
    check_gradient_independence(program)
    paths = _paths(program)
    outputs: dict[int, float] = {index: c for c, index in program.terms(program.output)}
    cache: dict[tuple[int, int], Tensor | float] = {}

    def gradient(a: int, b: int) -> Tensor | float:
        if (a, b) in cache:
            return cache[a, b]
        if moments.same and (b, a) in cache:
            value = cache[b, a]
            return value if moments.paired or not isinstance(value, Tensor) else value.mT
        total: Tensor | float = outputs.get(a, 0.0) * outputs.get(b, 0.0)
        for p in paths[a]:
            for r in paths[b]:
                weight = _linear(program, p.target).weight
                if weight != _linear(program, r.target).weight:
                    continue
                onward = gradient(p.target, r.target)
                if not isinstance(onward, Tensor) and onward == 0.0:
                    continue
                scale = p.coefficient * r.coefficient * moments.variance("weight", weight)
                total = total + scale * moments.dual_derivative(p.activation, r.activation) * onward
        cache[a, b] = total
        return total

    linear = [i for i, node in enumerate(program.nodes) if isinstance(node, Linear)]
    # From the output backwards, so that no recursion is deeper than one layer.
    kernel: Tensor | None = None
    for a in reversed(linear):
        for b in reversed(linear):
            first, second = _linear(program, a), _linear(program, b)
            shares_bias = first.bias is not None and first.bias == second.bias
            if first.weight != second.weight and not shares_bias:
                continue
            factor = gradient(a, b)
            if not isinstance(factor, Tensor) and factor == 0.0:
                continue
            term = factor * moments.moment(a, b)
            kernel = term if kernel is None else kernel + term
    assert kernel is not None
    return kernel


def _linear(program: Program, index: int) -> Linear:
    node = program.nodes[index]
    assert isinstance(node, Linear)
    return node


def _paths(program: Program) -> dict[int, list[_Path]]:
    """For each Linear node the paths on which its result reaches the next Linear nodes."""
    paths: dict[int, list[_Path]] = {
        i: [] for i, node in enumerate(program.nodes) if isinstance(node, Linear)
    }
    for target, node in enumerate(program.nodes):
        if not isinstance(node, Linear):
            continue
        for outer, index in program.terms(node.source):
            reached = program.nodes[index]
            if isinstance(reached, Linear):
                paths[index].append(_Path(outer, None, target))
            elif isinstance(reached, ActivationNode) and not reached.finite:
                for inner, start in program.terms(reached.source):
                    paths[start].append(_Path(outer * inner, index, target))
            else:
                assert reached.finite
    return paths
