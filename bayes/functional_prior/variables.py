"""What a match may change: the learnable variances and length scales, as one vector."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from priors.networks.finite import NetworkPrior

__all__ = ["Variables"]

# Beyond these hidden functions are steps or constants.
_VARIANCES = (1e-4, 30.0)
_LENGTHSCALES = (0.1, 1e3)


class Variables:
    """The learnable numbers of a prior, unconstrained, between bounds.

    Variances lie between 1e-4 and 30, those of readouts in units of the target's variance; length
    scales between 0.1 and 1,000.

    Args:
        prior: Changed in place.
        target_variance: Typical variance of a value of a target function.

    Raises:
        ValueError: nothing is learnable.
    """

    def __init__(self, prior: NetworkPrior, target_variance: float = 1.0) -> None:
        self.parameters: list[torch.nn.Parameter] = []
        lows: list[Tensor] = []
        highs: list[Tensor] = []
        last = _readout_slots(prior)
        for name, parameter, constraint in prior.variances.named_parameters_and_constraints():
            if not parameter.requires_grad:
                continue
            bounds = torch.tensor(
                _LENGTHSCALES if "lengthscale" in name else _VARIANCES, device="cpu"
            ).to(parameter)
            if name in last:
                bounds = bounds * target_variance
            for limits, bound in ((lows, bounds[0]), (highs, bounds[1])):
                raw = bound if constraint is None else constraint.inverse_transform(bound)
                limits.append(raw.expand(parameter.shape).detach().double().cpu().flatten())
            self.parameters.append(parameter)
        if not self.parameters:
            raise ValueError(
                "network_prior has no learnable variance: all are 0, or a homogeneous network's "
                "readout is. Start with positive variances."
            )
        inf = math.inf
        self.low = torch.cat(lows).nan_to_num(nan=-inf, neginf=-inf)
        self.high = torch.cat(highs).nan_to_num(nan=inf, posinf=inf)
        # A start outside stays possible.
        self.low = torch.minimum(self.low, self.get())
        self.high = torch.maximum(self.high, self.get())

    def get(self) -> Tensor:
        """The present numbers, `[k]`, in float64 on the CPU."""
        return torch.cat([p.detach().double().cpu().flatten() for p in self.parameters])

    def set(self, values: Tensor) -> None:
        """Set them, within their bounds."""
        values = values.clamp(self.low, self.high)
        parts = values.split([p.numel() for p in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.copy_(part.reshape(parameter.shape))

    def gradient(self, value: Tensor) -> Tensor:
        """Of a number, `[k]`, in float64 on the CPU."""
        found = torch.autograd.grad(value, self.parameters)
        return torch.cat([g.double().cpu().flatten() for g in found])

    def minimise(
        self,
        objective: Callable[[], Tensor],
        *,
        radius: float = math.inf,
        max_iter: int = 100,
        tolerance: float = 1e-10,
        after: Callable[[], None] = lambda: None,
    ) -> float:
        """Minimise from where the numbers are, by L-BFGS-B; they are then those of the minimum.

        Args:
            objective: Of the numbers as they are, differentiable.
            radius: How far a number may move.
            max_iter: Iterations at most.
            tolerance: Relative change of the objective that ends them.
            after: Called after every evaluation.

        Returns:
            The objective there, infinity where it is not finite.
        """
        from scipy.optimize import minimize  # slow to load

        start = self.get()
        low, high = self.low.clamp_min(start - radius), self.high.clamp_max(start + radius)

        def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
            self.set(torch.from_numpy(values))
            value = objective()
            gradient = self.gradient(value)
            after()
            return value.item(), gradient.numpy()

        found = minimize(
            evaluate,
            start.numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
            options={"maxiter": max_iter, "ftol": tolerance, "gtol": 1e-7},
        )
        self.set(torch.from_numpy(found.x))
        return float(found.fun) if math.isfinite(found.fun) else math.inf

    def restarts(
        self, minimise: Callable[[], float], number: int, generator: torch.Generator
    ) -> float:
        """The best of several minimisations, all but the first from perturbed numbers."""
        start = self.get()
        best_value, best = math.inf, start
        for restart in range(number):
            noise = torch.randn(len(start), generator=generator, dtype=start.dtype, device="cpu")
            self.set(start + (noise if restart else 0))
            value = minimise()
            if value < best_value:
                best_value, best = value, self.get()
        self.set(best)
        return best_value


def _readout_slots(prior: NetworkPrior) -> set[str]:
    return {
        f"raw_{kind}_var_{layer.replace('.', '_')}"
        for layer in prior.readouts
        for kind in ("weight", "bias")
    }
