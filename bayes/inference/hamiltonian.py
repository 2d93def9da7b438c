"""Hamiltonian trajectories of many chains, of one step size and one number of steps.

With deviations s of the coordinates, y = x / s moves by H(y, p) = -log density + p'p / 2: leapfrog
steps of size e in y. All chains take the same number of steps, so no chain waits for another. How
long trajectories are varies from iteration to iteration over (0, 1) times the longest, along a
sequence that is spread evenly (Hoffman, Radul & Sountsov 2021, section 3.1): no period of the
target is met again and again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.adaptation import (
    ARRIVED,
    DualAveraging,
    Rescue,
    RunningScale,
    State,
    van_der_corput,
)
from bayes.inference.chains import Kernel
from bayes.inference.evaluation import Evaluation

__all__ = ["HamiltonianKernel", "Trajectory"]

# Error of the energy, in nats, of a step that has lost the trajectory; as in Stan.
_DIVERGENT = 1000.0
# Share of the warm-up after which scales and lengths stay, while the step size still adapts.
_FROZEN = 0.8
# Leapfrog steps of a trajectory on the way to where the mass is: downhill, where it is steep and
# steps are short, a few go as far as many.
_ON_THE_WAY = 32


@dataclass(frozen=True)
class Trajectory:
    """What one iteration proposed and did.

    Attributes:
        start: Positions before, `[chains, d]`.
        end: Proposed positions, `[chains, d]`.
        momentum: At their end, `[chains, d]`.
        acceptance: Probabilities, `[chains]`, 0 where the end is not finite.
        diverging: Whether the energy went wrong beyond use, `[chains]`.
        energy: Of the states that were kept, `[chains]`.
        num_steps: Leapfrog steps.
    """

    start: Tensor
    end: Tensor
    momentum: Tensor
    acceptance: Tensor
    diverging: Tensor
    energy: Tensor
    num_steps: int


class HamiltonianKernel(Kernel):
    """Hamiltonian Monte Carlo with step size and scales learnt over all chains.

    Args:
        evaluation: Of the density.
        target_accept_prob: Of the step size.
        length: The longest trajectory, in units of the scaled coordinates.
        max_steps: Leapfrog steps at most.
    """

    def __init__(
        self, evaluation: Evaluation, target_accept_prob: float, length: float, max_steps: int
    ) -> None:
        super().__init__(evaluation)
        self.length, self.max_steps = length, max_steps
        self.step_size = DualAveraging(target_accept_prob)

    def start(self, position: Tensor, generator: torch.Generator) -> State:
        lp, gradient = self.evaluation(position)
        state: State = {
            "position": position,
            "lp": lp,
            "gradient": gradient,
            "iteration": 0.0,
            "num_gradients": 1.0,
            "log_length": math.log(self.length),
            **RunningScale.start(position),
            **Rescue.start(position),
        }
        return {**state, **DualAveraging.start(self._first_step(state, generator))}

    def _first_step(self, state: State, generator: torch.Generator) -> float:
        """A power of two at which one step is accepted about as often as not."""
        step, direction = 0.5, 0
        for _ in range(40):
            _, trajectory = self._move({**state, "log_step": math.log(step)}, 1, generator)
            towards = 1 if float(trajectory.acceptance.mean()) > 0.6 else -1
            if direction and towards != direction:
                break
            direction = towards
            step *= 2.0**direction
        return step

    def warm_up(self, state: State, done: float, generator: torch.Generator) -> State:
        most = self.max_steps if "arrived" in state else min(_ON_THE_WAY, self.max_steps)
        state, trajectory = self._iterate(state, generator, most)
        acceptance = float(trajectory.acceptance.mean())
        state = {**state, **self.step_size.update(state, acceptance)}
        state, rescued = Rescue.update(state, trajectory.acceptance, done, generator)
        arrives = done >= ARRIVED and "arrived" not in state
        if arrives:
            state = {**state, "arrived": 1.0}
        if arrives or rescued:
            state = {**state, **RunningScale.anew(state)}
        if done < _FROZEN:
            return self.adapt(state, trajectory, done)
        if not state.get("frozen"):  # the step size anew, for scales that stay
            return {**state, **DualAveraging.start(math.exp(state["log_step"])), "frozen": 1.0}
        return state

    def adapt(self, state: State, trajectory: Trajectory, done: float) -> State:
        """The state with what else is learnt from an iteration of the warm-up."""
        return {**state, **RunningScale.update(state, state["position"])}

    def settle(self, state: State) -> State:
        return {**state, "log_step": state["log_step_averaged"]}

    def sample(
        self, state: State, generator: torch.Generator
    ) -> tuple[State, dict[str, Tensor | float]]:
        state, trajectory = self._iterate(state, generator, self.max_steps)
        return state, {
            "lp": state["lp"],
            "energy": trajectory.energy,
            "diverging": trajectory.diverging,
            "acceptance_rate": trajectory.acceptance,
            "n_steps": trajectory.num_steps,
            "step_size": math.exp(state["log_step"]),
        }

    def _iterate(
        self, state: State, generator: torch.Generator, most: int
    ) -> tuple[State, Trajectory]:
        iteration = int(state["iteration"]) + 1
        length = van_der_corput(iteration) * math.exp(state["log_length"])
        steps = math.ceil(length / math.exp(state["log_step"]))
        steps = min(max(1, steps), most)
        state, trajectory = self._move(state, steps, generator)
        return {**state, "iteration": float(iteration)}, trajectory

    def _move(
        self, state: State, steps: int, generator: torch.Generator
    ) -> tuple[State, Trajectory]:
        """A trajectory from fresh momenta, accepted or not."""
        x, lp, gradient = state["position"], state["lp"], state["gradient"]
        momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        size = math.exp(state["log_step"]) * state["scale"]
        energy = 0.5 * momentum.square().sum(-1) - lp
        end, p, new_lp, new_gradient = self.evaluation.steps(
            x, torch.addcmul(momentum, size, gradient, value=0.5), size, steps
        )
        p = torch.addcmul(p, size, new_gradient, value=-0.5)  # the last step kicked twice
        new_energy = 0.5 * p.square().sum(-1) - new_lp
        error = torch.nan_to_num(new_energy - energy, nan=torch.inf, posinf=torch.inf)
        acceptance = (-error).exp().clamp_max(1)
        uniform = torch.rand(lp.shape, generator=generator, dtype=x.dtype, device=x.device)
        accepted = uniform < acceptance
        trajectory = Trajectory(
            x,
            end,
            p,
            acceptance,
            error > _DIVERGENT,
            torch.where(accepted, new_energy, energy),
            steps,
        )
        moved = accepted.unsqueeze(-1)
        return {
            **state,
            "position": torch.where(moved, end, x),
            "lp": torch.where(accepted, new_lp, lp),
            "gradient": torch.where(moved, new_gradient, gradient),
            "num_gradients": state["num_gradients"] + steps,
        }, trajectory
