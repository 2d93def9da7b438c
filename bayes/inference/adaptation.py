"""What samplers learn during their warm-up: step sizes and scales.

States are dictionaries of floats and tensors, so that a run can be written down and taken up again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["DualAveraging", "Rescue", "RunningScale", "State", "van_der_corput"]

State = dict[str, Any]


class DualAveraging:
    """A step size whose acceptance rate is a given one (Hoffman & Gelman 2014, section 3.2).

    Args:
        target: Acceptance rate to reach.
    """

    # gamma, t0 and kappa of the paper
    _SHRINKAGE, _DELAY, _FORGETTING = 0.05, 10.0, 0.75

    def __init__(self, target: float) -> None:
        self.target = target

    @staticmethod
    def start(step_size: float) -> State:
        """The state at a first guess."""
        return {
            "log_step": math.log(step_size),
            "log_step_averaged": math.log(step_size),
            "step_centre": math.log(10 * step_size),
            "step_error": 0.0,
            "step_count": 0.0,
        }

    def update(self, state: State, acceptance: float) -> State:
        """The state after an iteration of that acceptance rate."""
        count = state["step_count"] + 1
        weight = 1 / (count + self._DELAY)
        error = (1 - weight) * state["step_error"] + weight * (self.target - acceptance)
        log_step = state["step_centre"] - math.sqrt(count) / self._SHRINKAGE * error
        share = count**-self._FORGETTING
        averaged = share * log_step + (1 - share) * state["log_step_averaged"]
        return {
            **state,
            "log_step": log_step,
            "log_step_averaged": averaged,
            "step_error": error,
            "step_count": count,
        }


class RunningScale:
    """Standard deviations of the coordinates, of all chains and recent iterations.

    Iteration t has weight ~ t^k: the beginning, away from where the mass is, is forgotten.
    """

    _MEMORY = 3.0

    @classmethod
    def start(cls, position: Tensor) -> State:
        """The state before the first iteration; deviations are 1."""
        return {
            "scale_mean": position.mean(0),
            "scale_square": torch.zeros_like(position[0]),
            "scale_count": 0.0,
            "scale": torch.ones_like(position[0]),
        }

    @classmethod
    def update(cls, state: State, position: Tensor) -> State:
        """The state after an iteration that ended at `[chains, d]`."""
        count = state["scale_count"] + 1
        share = min(1.0, cls._MEMORY / (count + cls._MEMORY - 1))
        mean = torch.lerp(state["scale_mean"], position.mean(0), share)
        square = torch.lerp(
            state["scale_square"],
            ((position - mean) * (position - state["scale_mean"])).mean(0),
            share,
        )
        # Shrunk as in Stan, until there are enough positions to tell
        seen = len(position) * count / cls._MEMORY
        variance = (seen * square + 5 * 1e-3) / (seen + 5)
        scale = variance.sqrt() if seen > 10 else state["scale"]
        return {
            **state,
            "scale_mean": mean,
            "scale_square": square,
            "scale_count": count,
            "scale": torch.where(scale.isfinite() & (scale > 0), scale, 1.0),
        }


class Rescue:
    """Chains that never move are put where others are, early in the warm-up.

    Of many starts one may be far out where the density is steep: there no step that suits the
    others is ever accepted, and the mean acceptance hardly tells. A network whose noise starts at
    a hundredth of its residuals is such a place.
    """

    # Iterations in a row, the acceptance that counts as none, and the share of the warm-up after
    # which a chain that sticks is left for diagnostics to show.
    _PATIENCE, _NONE, _EARLY = 10, 1e-3, 0.5

    @staticmethod
    def start(position: Tensor) -> State:
        """The state before the first iteration."""
        return {"refusals": position.new_zeros(len(position))}

    @classmethod
    def update(
        cls, state: State, acceptance: Tensor, done: float, generator: torch.Generator
    ) -> State:
        """The state after an iteration of these acceptance probabilities `[chains]`.

        Chains move only while most of the others do: else it is the step size that is wrong.
        """
        refusals = torch.where(acceptance < cls._NONE, state["refusals"] + 1, 0)
        stuck, moving = refusals >= cls._PATIENCE, refusals == 0
        if done < cls._EARLY and bool(stuck.any()) and 2 * int(moving.sum()) > len(moving):
            to = torch.multinomial(
                moving.to(state["position"]), len(moving), replacement=True, generator=generator
            )
            for name in ("position", "lp", "gradient"):
                value = state[name]
                there = stuck.unsqueeze(-1) if value.dim() == 2 else stuck
                state = {**state, name: torch.where(there, value[to], value)}
            refusals = torch.where(stuck, 0, refusals)
        return {**state, "refusals": refusals}


def van_der_corput(number: int) -> float:
    """The number-th member, from 1, of the sequence in base 2: evenly spread over (0, 1)."""
    value, unit = 0.0, 0.5
    while number:
        value += unit * (number & 1)
        number >>= 1
        unit /= 2
    return value
