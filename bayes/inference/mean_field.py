"""Mean-field variational inference: the closest independent Gaussians.

Every latent number of the model gets its own Gaussian; their means and deviations maximise the
evidence lower bound with Pyro's SVI, all Monte Carlo particles in one vectorised pass and the
divergence from the prior in closed form.

Fast, and wrong in two ways, since correlations between weights are lost. A Gaussian posterior of
precision matrix P gets the deviations P_ii^-1/2, those of each weight when the others are known:
every single weight is overconfident. Predictions are too *wide*, though, where many weights share
a task, as in a wide layer or with few rows: of k weights that do the same, in n rows that tell
their sum with precision S, each learns its k-th part alone, and the sum keeps the variance
1 / (1 + S / k) of the prior's 1 where 1 / (1 + S) is right. The bound then explains the data by
noise rather than by the network: 20 tanh units on 12 rows of a sine are left at their prior from
every start (also from weights that fit), with a noise of the data's own size. Take `NUTS` there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

from bayes.inference.draws import Draws, isolated

__all__ = ["MeanField"]


@dataclass(frozen=True)
class MeanField:
    """A mean-field Gaussian guide.

    Single weights come out too narrow and predictions from few rows too wide; see the module.

    Attributes:
        num_steps: Gradient steps.
        learning_rate: Of Adam at the start; it falls to a hundredth of it.
        num_particles: Monte Carlo samples per step.
        num_draws: Draws from the fitted guide that make the posterior.
        init_std: Initial deviation of the guide, in units of the prior's.
        seed: Of all random numbers.
        progress: Whether to show a bar.
    """

    num_steps: int = 2000
    learning_rate: float = 0.03
    num_particles: int = 8
    num_draws: int = 256
    init_std: float = 0.1
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_particles", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"MeanField needs {name} >= 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"MeanField needs {name} > 0, got {getattr(self, name)}.")

    def run(self, model: Callable[[], object], like: Tensor) -> Draws:
        """Fit the guide and draw from it.

        Args:
            model: The Pyro model, without arguments; its latent sites are real-valued.
            like: Gives dtype and device.

        Returns:
            One "chain" of independent draws, and the bound in nats at every step as history.
        """
        with isolated(self.seed, like):
            guide = _guide(model, self.init_std)
            decay = 0.01 ** (1 / self.num_steps)
            optimiser = pyro.optim.ClippedAdam({"lr": self.learning_rate, "lrd": decay})
            bound = TraceMeanField_ELBO(
                num_particles=self.num_particles,
                vectorize_particles=True,
                max_plate_nesting=0,
            )
            svi = SVI(model, guide, optimiser, bound)
            history = []
            steps = tqdm(range(self.num_steps), desc="mean field", disable=not self.progress)
            for step in steps:
                history.append(-svi.step())
                if step % 50 == 0:
                    steps.set_postfix_str(f"bound {history[-1]:.1f} nats", refresh=False)
            with torch.no_grad(), pyro.plate("draws", self.num_draws, dim=-1):
                samples = {name: value.unsqueeze(0) for name, value in guide().items()}
        return Draws(samples, {}, like.new_tensor(history))


def _guide(model: Callable[[], object], init_std: float) -> Callable[[], dict[str, Tensor]]:
    """Independent Gaussians for all latent sites, starting at a draw from the prior."""
    trace = pyro.poutine.trace(model).get_trace()
    start = {
        name: site["value"].detach()
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and site["value"] is not None
    }

    def guide() -> dict[str, Tensor]:
        values = {}
        for name, value in start.items():
            loc = pyro.param(f"{name}.loc", value)
            std = pyro.param(
                f"{name}.std", torch.full_like(value, init_std), constraint=constraints.positive
            )
            values[name] = pyro.sample(name, dist.Normal(loc, std).to_event(value.dim()))
        return values

    return guide
