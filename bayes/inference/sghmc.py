"""Stochastic gradient Hamiltonian Monte Carlo with scales learnt during the warm-up.

Chen, Fox & Guestrin 2014 (1402.4102) in the form of Springenberg et al. 2016 ("Bayesian
optimization with robust Bayesian neural networks", section 4.1): with the mean square v of each
coordinate's gradient, M = v^-1/2, step e and friction a per step,

    p <- (1 - a) p + e^2 M grad + noise,    x <- x + p.

The noise has variance 2 a e^2 M, less what the gradient's own noise brings, e^4 M^2 times its
variance, which the warm-up measures. Without minibatches the variances of a Gaussian are then too
large by the factor 1 / (1 - h / (4 - 2 a)), h = e^2 M times the curvature: the error of the density
is O(e^2), whatever the friction. (Noise that replaces exactly what friction takes from the
momentum, e^2 M (1 - (1 - a)^2), would leave positions with a share 1 - a / 2 of their variance,
since momentum and position are half a step apart.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayes.inference.adaptation import State
from bayes.inference.chains import ChainMethod, Kernel
from bayes.inference.evaluation import Evaluation
from bayes.inference.graphs import captured
from bayes.inference.log_density import value_and_gradient

__all__ = ["SGHMC"]


@dataclass(frozen=True)
class SGHMC(ChainMethod):
    """Stochastic gradient Hamiltonian Monte Carlo, for data too large for full gradients.

    Biased by its steps, which nothing rejects: halve `step_size` to see whether it matters. With
    `batch_size` draws come without their log density, which takes all rows.

    Attributes:
        batch_size: Rows of each gradient; all without it. Needs a density with `rows`.
        step_size: e, by which a coordinate whose gradient is of size 1 moves in a step.
        friction: a, the share of the momentum that is lost in a step.
        num_steps: From one draw to the next; each costs a gradient.
    """

    num_samples: int = 200
    num_warmup: int = 200
    num_chains: int = 4
    batch_size: int | None = None
    step_size: float = 0.05
    friction: float = 0.05
    num_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError(
                f"SGHMC needs num_steps >= 1 and batch_size >= 1, got {self.num_steps} and "
                f"{self.batch_size}."
            )
        if not self.step_size > 0 or not 0 < self.friction < 1:
            raise ValueError(
                f"SGHMC needs step_size > 0 and 0 < friction < 1, got {self.step_size} and "
                f"{self.friction}."
            )

    @property
    def _smaller_steps(self) -> str:
        return f"lower step_size below {self.step_size:g}"

    def _kernel(self, evaluation: Evaluation) -> Kernel:
        rows = evaluation.density.rows
        if self.batch_size is not None and rows is None:
            raise ValueError(
                "SGHMC(batch_size=) needs to know the rows of the data: sample a BayesianNetwork, "
                "or a LogDensity(..., rows=Rows(num_rows, function)); without batch_size it takes "
                "full gradients."
            )
        return _StochasticKernel(self, evaluation)


class _StochasticKernel(Kernel):
    def __init__(self, method: SGHMC, evaluation: Evaluation) -> None:
        super().__init__(evaluation)
        self.method, self.batches = method, method.batch_size is not None
        self._graph: Callable[..., Any] | None = None

    def start(self, position: Tensor, generator: torch.Generator) -> State:
        state: State = {
            "position": position,
            "momentum": torch.zeros_like(position),
            "num_gradients": 0.0,
            # gradient, its square and its memory, as of Springenberg et al.
            "mean": torch.zeros_like(position[0]),
            "square": torch.ones_like(position[0]),
            "noise": torch.zeros_like(position[0]),
            "memory": torch.ones_like(position[0]),
        }
        return state if self.batches else self._evaluated(state)

    def warm_up(self, state: State, done: float, generator: torch.Generator) -> State:
        for _ in range(self.method.num_steps):
            state = self._move(state, generator, adapt=True)
        return state

    def sample(
        self, state: State, generator: torch.Generator
    ) -> tuple[State, dict[str, Tensor | float]]:
        for _ in range(self.method.num_steps):
            state = self._move(state, generator, adapt=False)
        lp = {} if self.batches else {"lp": state["lp"]}
        return state, {
            **lp,
            "diverging": ~state["position"].isfinite().all(-1),
            "n_steps": self.method.num_steps,
            "step_size": self.method.step_size,
        }

    def _evaluated(self, state: State) -> State:
        """With the log density at its position, of all rows, and the gradient there."""
        lp, gradient = self.evaluation(state["position"])
        one_more = {"num_gradients": state["num_gradients"] + 1}
        return {**state, **one_more, "lp": lp, "gradient": gradient}

    def _of_a_batch(self, position: Tensor, generator: torch.Generator) -> Tensor:
        rows, size = self.evaluation.density.rows, self.method.batch_size
        assert rows is not None
        assert size is not None
        index = torch.randint(rows.num_rows, (size,), generator=generator, device=position.device)
        if self._graph is None:
            self._graph = captured(partial(value_and_gradient, rows.function), position, index)
        gradient: Tensor = self._graph(position, index)[1]
        return gradient

    def _move(self, state: State, generator: torch.Generator, *, adapt: bool) -> State:
        x, method = state["position"], self.method
        gradient = self._of_a_batch(x, generator) if self.batches else state["gradient"]
        if adapt:
            state = {**state, **self._adapted(state, gradient)}
            if self.batches:
                state = self._measured(state, gradient, generator)
        step = method.step_size**2 / state["square"].sqrt()
        own = step.square() * state["noise"]
        variance = (2 * method.friction * step - own).clamp_min(0)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        momentum = (1 - method.friction) * state["momentum"] + step * gradient
        momentum = momentum + variance.sqrt() * noise
        state = {**state, "position": x + momentum, "momentum": momentum}
        if self.batches:
            return {**state, "num_gradients": state["num_gradients"] + 1}
        return self._evaluated(state)

    @staticmethod
    def _adapted(state: State, gradient: Tensor) -> State:
        """Moments of the gradient, remembered the longer the noisier it is."""
        memory, mean, square = state["memory"], state["mean"], state["square"]
        share = 1 / (memory + 1)
        mean = mean + share * (gradient.mean(0) - mean)
        square = square + share * (gradient.square().mean(0) - square)
        memory = (1 + memory * (1 - mean.square() / square)).clamp(1.0, 1e4)
        return {"mean": mean, "square": square.clamp_min(1e-16), "memory": memory}

    def _measured(self, state: State, gradient: Tensor, generator: torch.Generator) -> State:
        """Variance of the gradient over minibatches, from another one at the same positions."""
        other = self._of_a_batch(state["position"], generator)
        variance = 0.5 * (other - gradient).square().mean(0)
        noise = state["noise"] + 0.02 * (variance - state["noise"])
        return {**state, "noise": noise, "num_gradients": state["num_gradients"] + 1}
