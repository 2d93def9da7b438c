"""What a sampler moves in: a log density over unconstrained positions, many chains at once.

Whatever is sampled (a Bayesian network, a Pyro model, the hyperparameters of a kernel, a function
of the user's) is a `LogDensity` first: positions are rows of a tensor `[chains, d]`, all of R^d,
and the densities of all rows come in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayes.inference.kronecker import KroneckerFactors

__all__ = ["HasLogDensity", "HasParts", "LogDensity", "Rows", "value_and_gradient"]


class Rows:
    """How a log density is estimated from some of the rows of its data.

    Args:
        num_rows: Rows of the data.
        function: Positions `[chains, d]` and row numbers `[b]`, the same for all chains, to
            log prior + num_rows / b times the log likelihood of those rows, `[chains]`.
    """

    def __init__(self, num_rows: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.num_rows = num_rows
        self.function = function


class LogDensity:
    """A differentiable log density over R^d, up to a constant.

    Args:
        function: Positions `[chains, d]` to log densities `[chains]`, that of each row of its own.
        dimension: d.
        batched: Whether `function` takes many positions; else one, `[d]`, and returns a scalar,
            and `torch.func.vmap` does the rest.
        initial: A generator and a number to so many positions `[number, d]` where chains may
            start; uniform on [-2, 2] without it.
        flattened: Starts `[number, d]` to ones from which an ascent sets out, where those
            are far from any mode, as networks are whose prior is wide; unchanged without it.
        constrain: Positions `[..., d]` to what they stand for, by name, `[..., *event]`; the
            position itself as "x" without it.
        rows: For methods that look at some rows at a time.
        identified: Whether chains should agree in what `constrain` returns. Weights of a network
            have symmetries by which they need not.

    Raises:
        ValueError: d is not positive.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dimension: int,
        *,
        batched: bool = True,
        initial: Callable[[torch.Generator, int], Tensor] | None = None,
        flattened: Callable[[Tensor], Tensor] | None = None,
        constrain: Callable[[Tensor], dict[str, Tensor]] | None = None,
        rows: Rows | None = None,
        identified: bool = True,
    ) -> None:
        if dimension < 1:
            raise ValueError(f"LogDensity needs dimension >= 1, got {dimension}.")
        self.function = function if batched else torch.func.vmap(function)
        self.dimension = dimension
        self.initial = initial
        self.flattened = flattened
        self.constrain = constrain or (lambda position: {"x": position})
        self.rows = rows
        self.identified = identified

    def start(
        self,
        generator: torch.Generator,
        num_chains: int,
        like: Tensor,
        *,
        of_ascent: bool = False,
    ) -> Tensor:
        """Where chains start, positions of finite density and gradient, `[chains, d]`.

        Args:
            generator: On the device of `like`.
            num_chains: How many.
            like: Gives dtype and device.
            of_ascent: Whether they climb to a mode first.

        Raises:
            ValueError: the function does not give one number for each position, or a hundred tries
                found no such start for some chain.
        """
        position = self._propose(generator, num_chains, like, of_ascent)
        for _ in range(100):
            value, gradient = value_and_gradient(self.function, position)
            if value.shape != (num_chains,):
                raise ValueError(
                    f"The function of this LogDensity gives shape {tuple(value.shape)} of "
                    f"positions {tuple(position.shape)}; one log density for each row is wanted, "
                    f"({num_chains},). LogDensity(function, dimension, batched=False) takes a "
                    "function of a single position [d]."
                )
            bad = ~(value.isfinite() & gradient.isfinite().all(-1))
            if not bool(bad.any()):
                return position
            fresh = self._propose(generator, num_chains, like, of_ascent)
            position = torch.where(bad.unsqueeze(-1), fresh, position)
        raise ValueError(
            f"No start with a finite log density and gradient was found for {int(bad.sum())} of "
            f"{num_chains} chains in 100 tries; check that the data lie in the support of the "
            "likelihood, and that its parameters are finite."
        )

    def _propose(
        self, generator: torch.Generator, number: int, like: Tensor, of_ascent: bool
    ) -> Tensor:
        if self.initial is None:
            uniform = torch.rand(
                number, self.dimension, generator=generator, dtype=like.dtype, device=like.device
            )
            position = 4 * uniform - 2
        else:
            position = self.initial(generator, number)
        return self.flattened(position) if of_ascent and self.flattened else position


class HasLogDensity:
    """A Pyro model that knows a faster form of its density than its trace.

    Methods that move in R^d ask for `log_density`; the others call it as a model.
    """

    def __call__(self) -> object:
        """Run the Pyro model."""
        raise NotImplementedError

    def log_density(self) -> LogDensity:
        """Its density, of which `constrain` gives its sites by name."""
        raise NotImplementedError


class HasParts(HasLogDensity):
    """A network's density, whose prior, functions and likelihood can be asked for one by one.

    A position is the D whitened weights, then all else that is drawn, unconstrained: variances of
    the prior, parameters of the likelihood. All methods take many positions `[..., d]` at once.
    """

    @property
    def is_gaussian(self) -> bool:
        """Whether whitened weights are standard normal and all else only multiplies them."""
        raise NotImplementedError

    @property
    def num_variances(self) -> int:
        """How many numbers after the weights are of the prior."""
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        """n, of the training data."""
        raise NotImplementedError

    @property
    def num_weights(self) -> int:
        """D."""
        raise NotImplementedError

    def last_layer(self) -> Tensor:
        """Which weights belong to the readout, in which functions are linear, `[D]` bools."""
        raise NotImplementedError

    def scales(self, position: Tensor) -> Tensor:
        """By what drawn variances multiply each whitened weight, `[..., D]`."""
        raise NotImplementedError

    def functions(self, position: Tensor, *, index: Tensor | None = None) -> Tensor:
        """Network outputs at the training rows, or at those of the numbers `[n]`, `[..., n, k]`."""
        raise NotImplementedError

    def log_prior(self, position: Tensor) -> Tensor:
        """Log prior density, `[...]`, in nats."""
        raise NotImplementedError

    def log_likelihood(self, position: Tensor) -> Tensor:
        """Log likelihood of each value of Y, `[..., n, m]`, in nats."""
        raise NotImplementedError

    def log_likelihood_of(self, functions: Tensor, position: Tensor) -> Tensor:
        """The same of given outputs `[..., n, k]`, with the likelihood parameters of `position`."""
        raise NotImplementedError

    def likelihood_curvature(self, functions: Tensor, position: Tensor) -> Tensor:
        """Of minus each row's log likelihood in its outputs, nowhere negative, `[..., n, k, k]`."""
        raise NotImplementedError

    def kronecker_factors(self, position: Tensor, roots: Tensor) -> list[KroneckerFactors]:
        """Of the curvature of each layer at a position `[d]`, given R `[n, k, k]` of each row.

        R R' is the `likelihood_curvature` of the row.
        """
        raise NotImplementedError


def value_and_gradient(
    function: Callable[..., Tensor], position: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    """Log densities `[chains]` and their gradients `[chains, d]`.

    A chain whose factorisation fails has the density 0 and no gradient; the others go on.

    Args:
        function: Positions, and `args`, to log densities of each row of its own.
        position: `[chains, d]`.
        *args: Passed on.
    """
    try:
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            value = function(position, *args)
            (gradient,) = torch.autograd.grad(value.sum(), position)
        return value.detach(), gradient
    except torch.linalg.LinAlgError:
        if len(position) == 1:
            return position.new_full((1,), -torch.inf), torch.zeros_like(position)
        halves = position.detach().tensor_split(2)
        parts = [value_and_gradient(function, half, *args) for half in halves]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])
