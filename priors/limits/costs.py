"""The expensive parts of a program's kernels, in words, and cheaper alternatives."""

from __future__ import annotations

from priors.gaussian.activations import Activation
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
    if any(isinstance(n, Nonlinear) and n.is_joint for n in program.nodes):
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
    slow = [a for a in activations if a is not None and not a.closed]
    for names, how in (
        (
            {_name(a) for a in slow if a.kinks},
            "with kinks and without a closed form ({}): numerical integration.",
        ),
        (
            {_name(a) for a in slow if not a.kinks},
            "without a closed form ({}): interpolated in tables, two to five times as slow as "
            "ReLU, which the first call makes in seconds; integrated numerically where few pairs "
            "of inputs are asked for, variances leave 1e-3 to 100, or no table is accurate.",
        ),
    ):
        if names:
            found.append(
                f"activations {how.format(', '.join(sorted(names)))} "
                "Cheaper: ReLU, GELU, erf, sine, or polynomials."
            )
    return found


def _name(activation: Activation) -> str:
    """That of a user's function, else of the class."""
    function = getattr(activation, "function", None)
    name: str = getattr(function, "__name__", type(activation).__name__)
    return name


def _positions(node: object) -> int | None:
    return node.num_positions if isinstance(node, Linear | Nonlinear | Attention) else None
