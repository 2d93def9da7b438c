"""What samplers learn during their warm-up: step sizes and scales.

States are dictionaries of floats and tensors, so that a run can be written down and taken up again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["ARRIVED", "DualAveraging", "Rescue", "RunningScale", "State", "van_der_corput"]

State = dict[str, Any]

# Share of the warm-up in which chains go where the mass is. What is met on the way says nothing of
# how it is there.
ARRIVED = 0.15


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
    def anew(cls, state: State) -> State:
        """The state from which all before is forgotten; deviations stay until there are others."""
        return {**cls.start(state["position"]), "scale": state["scale"]}

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
    """Chains that are lost are put where others are, early in the warm-up.

    Of many starts one may be far out where the density is steep: there no step that suits the
    others is ever accepted, and the mean acceptance hardly tells. A network whose noise starts at
    a hundredth of its residuals is such a place. Or a first step, downhill from such a start, ends
    far out where it is flat, from where all ways back are refused.
    """

    # Iterations in a row, the acceptance that counts as none, and the share of the warm-up after
    # which a chain that is lost is left for diagnostics to show.
    _PATIENCE, _NONE, _EARLY = 10, 1e-3, 0.5
    # How far below the median a log density is lost, by that of the best above it, d / 2 at least
    _FAR = 10.0

    @staticmethod
    def start(position: Tensor) -> State:
        """The state before the first iteration."""
        return {"refusals": position.new_zeros(len(position))}

    @classmethod
    def update(
        cls, state: State, acceptance: Tensor, done: float, generator: torch.Generator
    ) -> tuple[State, bool]:
        """The state after an iteration of these acceptance probabilities `[chains]`.

        Chains move only while most of the others do: else it is the step size that is wrong.

        Returns:
            The state, and whether chains moved: what was learnt of lost ones is to be forgotten.
        """
        refusals = torch.where(acceptance < cls._NONE, state["refusals"] + 1, 0)
        lost = refusals >= cls._PATIENCE
        if done >= ARRIVED:
            lost = lost | cls._far(state["lp"], state["position"].shape[-1])
        others = ~lost & (refusals == 0)
        rescued = done < cls._EARLY and bool(lost.any()) and 2 * int(others.sum()) > len(others)
        if rescued:
            to = torch.multinomial(
                others.to(state["position"]), len(others), replacement=True, generator=generator
            )
            for name in ("position", "lp", "gradient"):
                value = state[name]
                there = lost.unsqueeze(-1) if value.dim() == 2 else lost
                state = {**state, name: torch.where(there, value[to], value)}
            refusals = torch.where(lost, 0, refusals)
        return {**state, "refusals": refusals}, rescued

    @classmethod
    def _far(cls, lp: Tensor, dimension: int) -> Tensor:
        """Which log densities are far below those of most, as no posterior has them."""
        median = lp.median()
        return median - lp > cls._FAR * (lp.max() - median).clamp_min(0.5 * dimension)


def van_der_corput(number: int) -> float:
    """The number-th member, from 1, of the sequence in base 2: evenly spread over (0, 1)."""
    value, unit = 0.0, 0.5
    while number:
        value += unit * (number & 1)
        number >>= 1
        unit /= 2
    return value
