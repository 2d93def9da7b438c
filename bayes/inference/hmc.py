"""Hamiltonian Monte Carlo with many chains at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes.inference.chains import ChainMethod
from bayes.inference.evaluation import Evaluation
from bayes.inference.hamiltonian import HamiltonianKernel

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC(ChainMethod):
    """Hamiltonian Monte Carlo: step size and scales are learnt over all chains.

    Trajectories are of a given length; `ChEES` learns that too.

    Attributes:
        target_accept_prob: Larger makes smaller steps; raise it when there are divergences.
        trajectory_length: The longest one, in posterior standard deviations; they vary below it.
        max_steps: Leapfrog steps, each a gradient, of a trajectory at most.
    """

    target_accept_prob: float = 0.8
    trajectory_length: float = math.pi
    max_steps: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hamiltonian(self._name, self.target_accept_prob, self.max_steps)
        if not 0 < self.trajectory_length < math.inf:
            raise ValueError(
                f"HMC needs 0 < trajectory_length < inf, got {self.trajectory_length}."
            )

    @property
    def _smaller_steps(self) -> str:
        return f"raise target_accept_prob above {self.target_accept_prob:g}"

    def _kernel(self, evaluation: Evaluation) -> HamiltonianKernel:
        return HamiltonianKernel(
            evaluation, self.target_accept_prob, self.trajectory_length, self.max_steps
        )


def check_hamiltonian(owner: str, target_accept_prob: float, max_steps: int) -> None:
    """Refuse settings that no trajectory can have."""
    if not 0 < target_accept_prob < 1:
        raise ValueError(f"{owner} needs 0 < target_accept_prob < 1, got {target_accept_prob}.")
    if max_steps < 1:
        raise ValueError(f"{owner} needs max_steps >= 1, got {max_steps}.")
