"""Hamiltonian Monte Carlo that learns how long its trajectories should be.

Hoffman, Radul & Sountsov 2021 ("An adaptive-MCMC scheme for setting trajectory lengths in
Hamiltonian Monte Carlo", AISTATS). The change in the estimator of the expected square,

    ChEES = 1/4 E[ (|x' - E x|^2 - |x - E x|^2)^2 ]    (x' proposed from x),

is largest for trajectories that decorrelate the squared distance from the mean, the slowest
moment of a target that is roughly Gaussian. All chains give one estimate of its derivative in the
logarithm of the longest length T (their equation 6, with length t = u T of this iteration):

    E[ t a (|x' - E x'|^2 - |x - E x|^2) (x' - E x')'p' ] / E[a],    a the acceptance probability,

and Adam goes up it. Positions are in units of the learnt deviations, so that no coordinate counts
for its unit. The step size is adapted to the mean acceptance of the chains, as Stan's is; the
paper's harmonic mean follows the worst chain, and halved it in the necks of hierarchical models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bayes.inference.adaptation import ARRIVED, RunningScale, State, van_der_corput
from bayes.inference.chains import ChainMethod
from bayes.inference.evaluation import Evaluation
from bayes.inference.hamiltonian import HamiltonianKernel, Trajectory
from bayes.inference.hmc import check_hamiltonian

__all__ = ["ChEES"]

# Of Adam on log T: a step, and how long squares of derivatives are remembered.
_RATE, _MEMORY = 0.025, 0.95
# How far log T moves in one iteration at most.
_FURTHEST = 0.35


@dataclass(frozen=True)
class ChEES(ChainMethod):
    """Hamiltonian Monte Carlo whose trajectory length, step size and scales are learnt.

    The default for continuous models: as good as NUTS per gradient, and all chains move as one
    tensor. The length is learnt from the differences between chains, so take at least 16.

    Attributes:
        target_accept_prob: Larger makes smaller steps; raise it when there are divergences.
        max_steps: Leapfrog steps, each a gradient, of a trajectory at most.
    """

    num_chains: int = 32
    target_accept_prob: float = 0.8
    max_steps: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hamiltonian(self._name, self.target_accept_prob, self.max_steps)
        if self.num_chains < 2:
            raise ValueError(
                f"ChEES learns from differences between chains and needs num_chains >= 2, got "
                f"{self.num_chains}; HMC runs a single one."
            )

    @property
    def _smaller_steps(self) -> str:
        return f"raise target_accept_prob above {self.target_accept_prob:g}"

    def _kernel(self, evaluation: Evaluation) -> HamiltonianKernel:
        return _ChEESKernel(evaluation, self.target_accept_prob, 1.0, self.max_steps)


class _ChEESKernel(HamiltonianKernel):
    """The trajectories' length goes up its criterion."""

    def start(self, position: torch.Tensor, generator: torch.Generator) -> State:
        state = super().start(position, generator)
        extra = {"length_square": 0.0, "length_count": 0.0}
        return {**state, **extra, "log_length_averaged": state["log_length"]}

    def adapt(self, state: State, trajectory: Trajectory, done: float) -> State:
        share = van_der_corput(int(state["iteration"]))
        length = share * math.exp(state["log_length"])
        derivative = float(self._derivative(state, trajectory)) * length
        state = {**state, **RunningScale.update(state, state["position"])}
        # on the way to where the mass is, longer is better: T would grow past its first optimum
        if done < ARRIVED or not math.isfinite(derivative):
            return state
        count = state["length_count"] + 1
        square = _MEMORY * state["length_square"] + (1 - _MEMORY) * derivative**2
        spread = math.sqrt(square / (1 - _MEMORY**count))
        move = _RATE * derivative / spread if spread > 0 else 0.0
        log_length = state["log_length"] + min(max(move, -_FURTHEST), _FURTHEST)
        # within what can be walked
        step = state["log_step"]
        log_length = min(max(log_length, step), step + math.log(self.max_steps))
        # over the iterations of the second half of adaptation, about
        weight = min(1.0, 4 / (count + 3))
        averaged = (1 - weight) * state["log_length_averaged"] + weight * log_length
        return {
            **state,
            "log_length": log_length,
            "length_square": square,
            "length_count": count,
            "log_length_averaged": averaged,
        }

    def _derivative(self, state: State, trajectory: Trajectory) -> torch.Tensor:
        scale, weight = state["scale"], trajectory.acceptance
        finite = trajectory.end.isfinite().all(-1) & trajectory.momentum.isfinite().all(-1)
        weight = torch.where(finite, weight, 0)
        end = torch.where(finite.unsqueeze(-1), trajectory.end, trajectory.start) / scale
        start = trajectory.start / scale
        momentum = torch.where(finite.unsqueeze(-1), trajectory.momentum, 0)
        total = weight.sum()
        mean = (weight.unsqueeze(-1) * end).sum(0) / total
        end, start = end - mean, start - start.mean(0)
        change = end.square().sum(-1) - start.square().sum(-1)
        return (weight * change * (end * momentum).sum(-1)).sum() / total

    def settle(self, state: State) -> State:
        return {**super().settle(state), "log_length": state["log_length_averaged"]}
