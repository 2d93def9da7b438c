"""Microcanonical Langevin Monte Carlo, with and without a Metropolis step.

Unadjusted (Robnik & Seljak 2023, 2303.18221): the velocity turns with the gradient and is partly
refreshed at every step, so that its direction is forgotten over a length L. Its error is that of
the integrator, which the variance of the energy error per step and dimension measures; the step
size is adapted to a given one. Adjusted (Robnik, Cohn-Gordon & Seljak 2025, 2503.01707):
trajectories of mean length L from fresh velocities are accepted or not, exact in the limit.

Warm-up, as published, in three phases: step size and scales of the coordinates, with L = sqrt(d) in
scaled coordinates; the step size alone; then, at a step size that stays, L from the autocorrelation
of what was drawn, 0.4 times the way that is walked per independent draw. With adjustment the second
phase gives L, 0.3 times that way, and the third the step size for it. The factors, and the
acceptance rate of 0.9, are those of the authors' experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes.inference.adaptation import DualAveraging, Rescue, RunningScale, State, van_der_corput
from bayes.inference.chains import ChainMethod, Kernel
from bayes.inference.evaluation import Evaluation
from bayes.inference.graphs import captured, compiled
from bayes.inference.isokinetic import (
    autocorrelation_time,
    isokinetic_step,
    refreshed,
    unit_velocity,
)
from bayes.inference.settings import check_settings

__all__ = ["MCLMC", "LangevinKernel"]

# Shares of the warm-up at which its second and third phase begin.
_SECOND, _THIRD = 0.5, 0.75
# Ways walked per independent draw that make L.
_UNADJUSTED, _ADJUSTED = 0.4, 0.3
_DIVERGENT = 1000.0
# By which a step may exceed the last one: where it is flat, at a mode say, errors tell of steps far
# larger than those near by can bear.
_GROWTH = 1.1


@dataclass(frozen=True)
class MCLMC(ChainMethod):
    """Microcanonical Langevin Monte Carlo, for many dimensions and gradients that are costly.

    Attributes:
        adjusted: Whether trajectories are accepted or not, which makes it exact. Without that it
            has a bias that `energy_var` bounds, and takes larger steps in many dimensions.
        energy_var: Variance of the energy error per step and dimension, without adjustment.
        target_accept_prob: With adjustment.
        num_steps: Steps, of two gradients each, from one draw to the next; without adjustment.
        max_steps: Of a trajectory; with adjustment.
    """

    adjusted: bool = False
    energy_var: float = 5e-4
    target_accept_prob: float = 0.9
    num_steps: int = 8
    max_steps: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, at_least_one=("num_steps", "max_steps"), positive=("energy_var",))
        if not 0 < self.target_accept_prob < 1:
            raise ValueError(
                f"MCLMC needs 0 < target_accept_prob < 1, got {self.target_accept_prob}."
            )

    @property
    def _smaller_steps(self) -> str:
        if self.adjusted:
            return f"raise target_accept_prob above {self.target_accept_prob:g}"
        return f"lower energy_var below {self.energy_var:g}"

    def _kernel(self, evaluation: Evaluation) -> Kernel:
        if self.adjusted:
            return _AdjustedKernel(self._name, evaluation, self.target_accept_prob, self.max_steps)
        return LangevinKernel(self._name, evaluation, self.num_steps, self.energy_var)


class _TurningKernel(Kernel):
    """Of a velocity of length 1, which a single dimension leaves no way to turn.

    Args:
        owner: Name of the method, for the message.
        evaluation: Of the density.
    """

    def __init__(self, owner: str, evaluation: Evaluation) -> None:
        if evaluation.density.dimension < 2:
            raise ValueError(
                f"{owner} turns a velocity and needs at least two dimensions; take HMC or ChEES "
                "for a single number."
            )
        super().__init__(evaluation)


class LangevinKernel(_TurningKernel):
    """The unadjusted one.

    Args:
        owner: Name of the method, for messages.
        evaluation: Of the density.
        num_steps: From one draw to the next.
        energy_var: Aimed at.
        phases: Shares of the warm-up at which its second and third phase begin.
        first_step: Step size at the beginning; sqrt(d) / 4 without it.
        memory: Steps over which the step size is averaged.
        together: Whether chains share a step size, a length and scales, as they should if they
            are in one mode; else each has its own, and coordinates are not scaled.
    """

    # How far the error of one step tells of other steps' (2303.18221).
    _TRUST = 1.5

    def __init__(
        self,
        owner: str,
        evaluation: Evaluation,
        num_steps: int,
        energy_var: float,
        *,
        phases: tuple[float, float] = (_SECOND, _THIRD),
        first_step: float | None = None,
        memory: float = 150.0,
        together: bool = True,
    ) -> None:
        super().__init__(owner, evaluation)
        self.num_steps, self.together = num_steps, together
        self.energy_var = energy_var
        self.phases, self.first_step, self.memory = phases, first_step, memory
        self._step: Callable[..., Any] | None = None

    def start(self, position: Tensor, generator: torch.Generator) -> State:
        lp, gradient = self.evaluation(position)
        root = math.sqrt(position.shape[-1])
        each = torch.ones_like(position[:, :1])
        return {
            "position": position,
            "velocity": unit_velocity(position, generator),
            "lp": lp,
            "gradient": gradient,
            "num_gradients": 1.0,
            "step": each * (self.first_step or root / 4),
            "largest": each * torch.inf,
            "length": each * root,
            "predicted": each * 0,
            "weight": each * 0,
            **RunningScale.start(position),
        }

    def warm_up(self, state: State, done: float, generator: torch.Generator) -> State:
        second, third = self.phases
        if done >= second and "scaled" not in state:
            # The step size anew, for scales that stay: what shorter steps told, its sixth power,
            # would take a thousand to be forgotten.
            none = torch.zeros_like(state["step"])
            state = {**state, "predicted": none, "weight": none, "scaled": 1.0}
        if done >= third and "settled" not in state:
            state = {**self._at_spread(state), "settled": 1.0}
        for _ in range(self.num_steps):
            state, error = self._move(state, generator)
            if done < third:
                state = {**state, **self._adapted(state, error)}
        if done < second:
            scaled = RunningScale.update(state, state["position"]) if self.together else {}
            return {**state, **scaled}
        return _recorded(state)

    def _at_spread(self, state: State) -> State:
        """With L from the positions of the second phase, which are forgotten.

        Of scaled coordinates it is the sqrt(d) that it was; of others, the root of the sum of
        their variances (2502.06335).
        """
        state, positions = _taken(state)
        if not self.together and positions is not None and positions.shape[1] >= 8:
            spread = positions.var(1).sum(-1, keepdim=True).sqrt()
            state["length"] = torch.where(spread > 0, spread, state["length"])
        return state

    def settle(self, state: State) -> State:
        state, positions = _taken(state)
        if positions is not None and positions.shape[1] >= 8:
            groups = [positions] if self.together else positions.split(1)
            times = torch.tensor([autocorrelation_time(group) for group in groups])
            times = times.to(state["length"]).unsqueeze(-1)
            state["length"] = _UNADJUSTED * state["step"] * self.num_steps * times
        return state

    def sample(
        self, state: State, generator: torch.Generator
    ) -> tuple[State, dict[str, Tensor | float]]:
        error, diverging = torch.zeros_like(state["lp"]), torch.zeros_like(state["lp"])
        for _ in range(self.num_steps):
            state, one = self._move(state, generator)
            diverging = torch.maximum(diverging, (~one.isfinite()).to(diverging))
            error = error + torch.where(one.isfinite(), one, 0)
        return state, {
            "lp": state["lp"],
            "energy_error": error,
            "diverging": diverging,
            "n_steps": self.num_steps,
            "step_size": state["step"].squeeze(-1),
        }

    def _adapted(self, state: State, error: Tensor) -> State:
        """Step sizes at which the energy error per dimension has the variance aimed at.

        Errors grow as the cube of the step, so each step tells of others' and is weighed by how
        far from its own.
        """
        dimension = state["position"].shape[-1]
        step = state["step"]
        finite = error.isfinite().unsqueeze(-1)
        square = (
            torch.where(finite, error.unsqueeze(-1), 0).square() / (dimension * self.energy_var)
            + 1e-8
        )
        largest = torch.where(finite, state["largest"], torch.minimum(state["largest"], 0.8 * step))
        if self.together:
            share = finite.to(square).mean().clamp_min(1e-3)
            square = ((square * finite).mean() / share).expand_as(square)
            largest = largest.amin().expand_as(largest)
        weight = (-0.5 * (square.log() / (6 * self._TRUST)).square()).exp()
        forgetting = (self.memory - 1) / (self.memory + 1)
        predicted = forgetting * state["predicted"] + weight * square / step**6
        total = forgetting * state["weight"] + weight
        step = torch.minimum((predicted / total) ** (-1 / 6), _GROWTH * step).minimum(largest)
        return {"step": step, "largest": largest, "predicted": predicted, "weight": total}

    def _move(self, state: State, generator: torch.Generator) -> tuple[State, Tensor]:
        """One step with half a refreshment before and after it, and its energy error `[chains]`.

        Where that is not finite the chain stays and sets off in another direction.
        """
        x, u = state["position"], state["velocity"]
        noise = torch.randn(
            3, *x.shape, generator=generator, dtype=x.dtype, device=x.device
        ).unbind(0)
        inputs = (
            x,
            u,
            state["lp"],
            state["gradient"],
            state["step"],
            state["length"],
            state["scale"],
            *noise,
        )
        if self._step is None:
            self._step = self._captured(*inputs)
        try:
            found = self._step(*inputs)
        except torch.linalg.LinAlgError:
            found = self._plain_step(*inputs)
        position, velocity, lp, gradient, error = found
        moved = {"position": position, "velocity": velocity, "lp": lp, "gradient": gradient}
        return {**state, **moved, "num_gradients": state["num_gradients"] + 2}, error

    def _captured(self, *inputs: Tensor) -> Callable[..., Any]:
        graph = captured(self._plain_step, *inputs)
        return compiled(graph) if self.evaluation.compile else graph

    def _plain_step(
        self,
        x: Tensor,
        u: Tensor,
        lp: Tensor,
        gradient: Tensor,
        step: Tensor,
        length: Tensor,
        scale: Tensor,
        *noise: Tensor,
    ) -> tuple[Tensor, ...]:
        start = refreshed(u, noise[0], 0.5 * step, length)
        new_x, new_u, new_lp, new_gradient, kinetic = isokinetic_step(
            self.evaluation, x, start, gradient, step, scale
        )
        new_u = refreshed(new_u, noise[1], 0.5 * step, length)
        error = kinetic - (new_lp - lp)
        fine = error.isfinite() & new_x.isfinite().all(-1) & new_gradient.isfinite().all(-1)
        moved = fine.unsqueeze(-1)
        other = noise[2] / noise[2].norm(dim=-1, keepdim=True)
        return (
            torch.where(moved, new_x, x),
            torch.where(moved, new_u, other),
            torch.where(fine, new_lp, lp),
            torch.where(moved, new_gradient, gradient),
            torch.where(fine, error, torch.inf),
        )


class _AdjustedKernel(_TurningKernel):
    """Trajectories from fresh velocities, accepted or not."""

    def __init__(
        self, owner: str, evaluation: Evaluation, target_accept_prob: float, max_steps: int
    ) -> None:
        super().__init__(owner, evaluation)
        self.step_size = DualAveraging(target_accept_prob)
        self.max_steps = max_steps
        self._step: Callable[..., Any] | None = None

    def start(self, position: Tensor, generator: torch.Generator) -> State:
        lp, gradient = self.evaluation(position)
        root = math.sqrt(position.shape[-1])
        return {
            "position": position,
            "lp": lp,
            "gradient": gradient,
            "iteration": 0.0,
            "num_gradients": 1.0,
            "log_length": math.log(root),
            **RunningScale.start(position),
            **Rescue.start(position),
            **DualAveraging.start(root / 10),
        }

    def warm_up(self, state: State, done: float, generator: torch.Generator) -> State:
        state, stats = self.sample(state, generator)
        acceptance = torch.as_tensor(stats["acceptance_rate"])
        state = {**state, **self.step_size.update(state, float(acceptance.mean()))}
        state, rescued = Rescue.update(state, acceptance, done, generator)
        if rescued:
            state = {**state, **RunningScale.anew(state)}
        if done < _SECOND:
            return {**state, **RunningScale.update(state, state["position"])}
        if "scaled" not in state:  # the step size anew, for scales that stay
            state = {**state, **DualAveraging.start(math.exp(state["log_step"])), "scaled": 1.0}
        if done < _THIRD:
            return _recorded(state)
        if "settled" not in state:  # and for a length that stays
            state = {**self._at_length(state), "settled": 1.0}
            return {**state, **DualAveraging.start(math.exp(state["log_step"]))}
        return state

    def _at_length(self, state: State) -> State:
        """With L from the positions of the second phase, which are forgotten."""
        state, positions = _taken(state)
        if positions is not None and positions.shape[1] >= 8:
            state["log_length"] += math.log(_ADJUSTED * autocorrelation_time(positions))
        return state

    def settle(self, state: State) -> State:
        return {**state, "log_step": state["log_step_averaged"]}

    def sample(
        self, state: State, generator: torch.Generator
    ) -> tuple[State, dict[str, Tensor | float]]:
        iteration = int(state["iteration"]) + 1
        step = math.exp(state["log_step"])
        # 2 v in (0, 2) of the mean
        steps = math.ceil(2 * van_der_corput(iteration) * math.exp(state["log_length"]) / step)
        steps = min(max(1, steps), self.max_steps)
        x, lp, gradient = state["position"], state["lp"], state["gradient"]
        y, value, slope = x, lp, gradient
        u, size = unit_velocity(x, generator), x.new_tensor(step)
        kinetic = torch.zeros_like(lp)
        if self._step is None:
            self._step = self._captured(y, u, slope, size, state["scale"])
        for _ in range(steps):
            try:
                y, u, value, slope, change = self._step(y, u, slope, size, state["scale"])
            except torch.linalg.LinAlgError:
                y, u, value, slope, change = self._plain_step(y, u, slope, size, state["scale"])
            kinetic = kinetic + change
        error = torch.nan_to_num(kinetic - (value - lp), nan=torch.inf, posinf=torch.inf)
        acceptance = (-error).exp().clamp_max(1)
        uniform = torch.rand(lp.shape, generator=generator, dtype=x.dtype, device=x.device)
        accepted = uniform < acceptance
        moved = accepted.unsqueeze(-1)
        state = {
            **state,
            "position": torch.where(moved, y, x),
            "lp": torch.where(accepted, value, lp),
            "gradient": torch.where(moved, slope, gradient),
            "iteration": float(iteration),
            "num_gradients": state["num_gradients"] + 2 * steps,
        }
        return state, {
            "lp": state["lp"],
            "energy_error": torch.where(accepted, error, 0),
            "diverging": error > _DIVERGENT,
            "acceptance_rate": acceptance,
            "n_steps": steps,
            "step_size": step,
        }

    def _captured(self, *inputs: Tensor) -> Callable[..., Any]:
        graph = captured(self._plain_step, *inputs)
        return compiled(graph) if self.evaluation.compile else graph

    def _plain_step(
        self, x: Tensor, u: Tensor, gradient: Tensor, step: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        return isokinetic_step(self.evaluation, x, u, gradient, step, scale)


def _recorded(state: State) -> State:
    """With the position among those that tell how fast chains forget."""
    position = state["position"].unsqueeze(1)
    before = state.get("recorded", position[:, :0])
    return {**state, "recorded": torch.cat([before, position], 1)}


def _taken(state: State) -> tuple[State, Tensor | None]:
    """Without the positions that were recorded, and they, `[chains, iterations, d]`."""
    state = dict(state)
    return state, state.pop("recorded", None)
