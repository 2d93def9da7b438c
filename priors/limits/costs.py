"""What makes the kernels of a program expensive, in words, and what would be cheaper."""

from __future__ import annotations

from priors.programs.nodes import Attention, Linear, Mix, Nonlinear
from priors.programs.program import Program

__all__ = ["costs"]


def costs(program: Program) -> list[str]:
    """Reasons why a program is slow beyond a chain of closed forms, the dearest first."""
    found = []
    most = max((p for p in map(_positions, program.nodes) if p), default=1)
    if program.has_random_heads:
        found.append(
            f"attention with scaling 1/sqrt(d) (nn.MultiheadAttention) over {most} tokens: its "
            "heads stay random in the limit, an expectation by quasi-Monte Carlo for every pair "
            "of inputs. Cheaper: fewer tokens, a QuasiMonteCarlo with fewer points as quadrature, "
            "or attention with scaling 1/d and tied queries and keys, which has a closed form."
        )
    if any(isinstance(n, Nonlinear) and _is_joint(n) for n in program.nodes):
        found.append(
            "a nonlinearity of several branches (gates, products, residual sums inside a "
            "function): expansions by quasi-Monte Carlo over all of them, for every input. "
            "Cheaper: nonlinearities of one layer each, or fewer branches that meet without a "
            "layer or a normalisation in between."
        )
    if any(isinstance(n, Mix | Attention) for n in program.nodes):
        found.append(
            f"positions that meet (pooling or attention): all {most} x {most} pairs of positions "
            "for every pair of inputs. Cheaper: Flatten in place of pooling, larger strides, or "
            "smaller images."
        )
    elif most > 1:
        found.append(f"{most} positions of every input. Cheaper: larger strides, smaller images.")
    activations = [n.activation for n in program.nodes if isinstance(n, Nonlinear)]
    slow = sorted({type(a).__name__ for a in activations if a is not None and not a.closed})
    if slow:
        found.append(
            f"activations without a closed form ({', '.join(slow)}): numerical integration. "
            "Cheaper: ReLU, GELU, erf, sine, or polynomials."
        )
    return found


def _positions(node: object) -> int | None:
    return node.num_positions if isinstance(node, Linear | Nonlinear | Attention) else None


def _is_joint(node: Nonlinear) -> bool:
    return node.activation is None and any(len(f.sources) > 1 for f in node.factors)
