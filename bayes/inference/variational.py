"""Variational inference over the unconstrained numbers of a model: what all guides share.

A guide q is a reparametrised density over R^d, z = location + something of standard normals. Its
parameters maximise

    kappa E_q[log p(y | z)] + E_q[log p(z)] + entropy of q,

the evidence lower bound for kappa = 1. Gradients are those of the path alone (Roeder, Wu &
Duvenaud 2017, 1703.09194): they have no variance where q is the posterior, and all particles of
a step are one call of the density's graph.

kappa > 1 is the data-emphasised bound of Harvey, Petrov & Hughes (2502.01861): with many more
numbers than rows the bound prefers to explain nothing, since every number that leaves its prior
costs, and an isotropic or independent guide pays for what the posterior would not. Their kappa is
d / n, which weighs both terms alike per number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayes.inference.draws import Draws, isolated
from bayes.inference.evaluation import Evaluation
from bayes.inference.log_density import HasParts, LogDensity
from bayes.inference.pyro_density import density_of
from bayes.inference.settings import check_settings

__all__ = ["Guide", "Variational"]


class Guide(ABC):
    """A reparametrised density over R^d.

    Attributes:
        parameters: Tensors to be learnt.
    """

    parameters: list[Tensor]

    @abstractmethod
    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        """Particles `[number, d]`, and the standard normals that they were made of."""

    @abstractmethod
    def score(self, position: Tensor) -> Tensor:
        """The gradient of log q at particles, `[number, d]`."""

    @abstractmethod
    def pull(self, gradient: Tensor, normals: list[Tensor]) -> list[Tensor]:
        """What gradients at the particles `[number, d]` mean for the parameters, on average."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """In nats."""


@dataclass(frozen=True)
class Variational(ABC):
    """A guide fitted by stochastic gradients.

    Attributes:
        num_steps: Gradient steps.
        learning_rate: Of Adam at the start; it falls to a hundredth of it.
        num_particles: Monte Carlo samples per step.
        num_draws: Draws from the fitted guide that make the posterior.
        init_std: Initial deviation of the guide, of every unconstrained number. From wide ones
            fits end at lower bounds: the gradients of their samples tell little.
        likelihood_weight: kappa, by which the log likelihood counts more than it should; "data"
            is d / n, the data-emphasised bound, or 1 where rows outnumber weights. Only for models
            that tell prior and likelihood apart, such as `BayesianNetwork`; what is fitted is then
            no bound of the evidence.
        seed: Of all random numbers.
        progress: Whether to show a bar.
    """

    num_steps: int = 2000
    learning_rate: float = 0.03
    num_particles: int = 8
    num_draws: int = 256
    init_std: float = 0.03
    likelihood_weight: float | str = 1.0
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_settings(
            self,
            at_least_one=("num_steps", "num_particles", "num_draws"),
            positive=("learning_rate", "init_std"),
        )
        weight = self.likelihood_weight
        if weight != "data" and (isinstance(weight, str) or not weight > 0):
            raise ValueError(
                f'{type(self).__name__} needs likelihood_weight > 0 or "data", got {weight!r}.'
            )

    @abstractmethod
    def _guide(self, start: Tensor, generator: torch.Generator) -> Guide:
        """The guide at the beginning, about `start` `[d]`."""

    @property
    @abstractmethod
    def _name(self) -> str:
        """Of the bar."""

    def run(self, model: Callable[[], object] | LogDensity, like: Tensor) -> Draws:
        """Fit the guide and draw from it.

        Args:
            model: A Pyro model without arguments, a `LogDensity`, or what has one.
            like: Gives dtype and device.

        Returns:
            One "chain" of independent draws, and the bound in nats at every step as history.

        Raises:
            NotImplementedError: a `likelihood_weight` for a model without parts.
            RuntimeError: the bound is not finite at the end.
        """
        with isolated(self.seed, like):
            density = density_of(model, like)
            evaluation = Evaluation(self._weighted(model, density), compile=False)
            generator = torch.Generator(like.device)
            generator.manual_seed(self.seed)
            with torch.no_grad():
                guide = self._guide(density.start(generator, 1, like, of_ascent=True)[0], generator)
                history = self._fit(guide, evaluation, generator)
                position, _ = guide.sample(self.num_draws, generator)
                samples = density.constrain(position.unsqueeze(0))
        return Draws(samples, {}, history)

    def _weighted(
        self, model: Callable[[], object] | LogDensity, density: LogDensity
    ) -> LogDensity:
        if self.likelihood_weight == 1:
            return density
        if not isinstance(model, HasParts):
            raise NotImplementedError(
                f"{type(self).__name__}(likelihood_weight=) needs a model that tells its "
                "likelihood from its prior, as a BayesianNetwork does; omit it for others."
            )
        weight = self.likelihood_weight
        share = max(1.0, density.dimension / model.num_rows)
        kappa = share if isinstance(weight, str) else weight

        def function(position: Tensor) -> Tensor:
            likelihood = model.log_likelihood(position).sum((-2, -1))
            return kappa * likelihood + model.log_prior(position)

        return LogDensity(function, density.dimension)

    def _fit(self, guide: Guide, evaluation: Evaluation, generator: torch.Generator) -> Tensor:
        """Fit in place; returns the objective at every step."""
        optimiser = torch.optim.Adam(guide.parameters, lr=self.learning_rate)
        decay = 0.01 ** (1 / self.num_steps)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
        history = guide.parameters[0].new_empty(self.num_steps)
        steps = tqdm(range(self.num_steps), desc=self._name, disable=not self.progress)
        for step in steps:
            position, normals = guide.sample(self.num_particles, generator)
            value, gradient = evaluation(position)
            history[step] = value.mean() + guide.entropy()
            path = torch.nan_to_num(gradient - guide.score(position), 0.0, 0.0, 0.0)
            for parameter, slope in zip(guide.parameters, guide.pull(path, normals), strict=True):
                parameter.grad = -slope
            optimiser.step()
            schedule.step()
            if self.progress and step % 50 == 0:
                steps.set_postfix_str(f"bound {float(history[step]):.1f} nats", refresh=False)
        if not bool(history[-1].isfinite()):
            raise RuntimeError(
                f"{type(self).__name__} diverged: its parameters are no longer finite; use a "
                "smaller learning_rate."
            )
        return history
