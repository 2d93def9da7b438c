"""The No-U-Turn sampler of Pyro (Hoffman & Gelman 2014), chain after chain in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from bayes.compat import RecordingNUTS, mean_acceptance, potential_energy
from bayes.inference.convergence import warn_of_draws
from bayes.inference.draws import Draws, isolated
from bayes.inference.log_density import HasLogDensity
from bayes.inference.pyro_density import check_arguments
from bayes.inference.settings import check_settings

__all__ = ["NUTS"]


@dataclass(frozen=True)
class NUTS:
    """Markov chain Monte Carlo: exact in the limit, for small networks.

    Attributes:
        num_samples: Draws kept per chain.
        num_warmup: Draws before them that adapt step size and mass matrix.
        num_chains: Chains, each with its own start.
        target_accept_prob: Larger makes smaller steps; raise it when there are divergences.
        max_tree_depth: At most 2^depth gradients per draw.
        seed: Of all random numbers; chain c uses seed + c.
        progress: Whether to show a bar.
    """

    num_samples: int = 500
    num_warmup: int = 500
    num_chains: int = 2
    target_accept_prob: float = 0.8
    max_tree_depth: int = 8
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_settings(
            self, at_least_one=("num_samples", "num_warmup", "num_chains", "max_tree_depth")
        )
        if not 0 < self.target_accept_prob < 1:
            raise ValueError(
                f"NUTS needs 0 < target_accept_prob < 1, got {self.target_accept_prob}."
            )

    def run(self, model: Callable[[], object], like: Tensor) -> Draws:
        """Draw from the posterior of a Pyro model.

        Args:
            model: The Pyro model, without arguments.
            like: Gives dtype and device.

        Returns:
            Draws with ArviZ's statistics: lp (log joint density), energy (Hamiltonian at the
            draw, kinetic energy minus lp), diverging, tree_depth (doublings of the trajectory),
            n_steps (leapfrog steps, 2^(tree_depth - 1) to 2^tree_depth - 1), acceptance_rate
            and step_size.

        Raises:
            TypeError: the model takes arguments.

        Warns:
            Of divergences, chains that disagree and few effective draws; not of weights of a
            network, in which chains need not agree.
        """
        check_arguments(model)
        chains = [self._chain(model, like, number) for number in range(self.num_chains)]
        draws = Draws(
            samples={
                name: torch.stack([chain.samples[name] for chain in chains])
                for name in chains[0].samples
            },
            stats={
                name: torch.stack([chain.stats[name] for chain in chains])
                for name in chains[0].stats
            },
            smaller_steps=f"raise target_accept_prob above {self.target_accept_prob:g}",
        )
        if not isinstance(model, HasLogDensity):
            warn_of_draws("NUTS", draws)
        return draws

    def _chain(self, model: Callable[[], object], like: Tensor, number: int) -> Draws:
        stats: dict[str, list[float]] = {
            name: []
            for name in (
                "lp",
                "energy",
                "diverging",
                "tree_depth",
                "n_steps",
                "acceptance_rate",
                "step_size",
            )
        }
        accepted = [0.0]  # running sums of acceptance probabilities

        def record(kernel: Any, samples: Any, stage: str, step: int) -> None:
            if not stage.startswith("Sample"):
                return
            stats["lp"].append(-potential_energy(kernel))
            stats["energy"].append(kernel.energy)
            stats["diverging"].append(step in kernel.diagnostics()["divergences"])
            # Each doubling adds as many steps as there were states, the last one perhaps fewer.
            stats["tree_depth"].append(kernel.num_leapfrog_steps.bit_length())
            stats["n_steps"].append(kernel.num_leapfrog_steps)
            accepted.append(mean_acceptance(kernel) * (step + 1))
            stats["acceptance_rate"].append(accepted[-1] - accepted[-2])
            stats["step_size"].append(float(kernel.step_size))

        with isolated(self.seed + number, like):
            kernel = RecordingNUTS(
                model,
                target_accept_prob=self.target_accept_prob,
                max_tree_depth=self.max_tree_depth,
            )
            sampler = pyro.infer.MCMC(
                kernel,
                num_samples=self.num_samples,
                warmup_steps=self.num_warmup,
                hook_fn=record,
                disable_progbar=not self.progress,
            )
            sampler.run()
            samples = {name: value.detach() for name, value in sampler.get_samples().items()}
        return Draws(samples, {name: like.new_tensor(value) for name, value in stats.items()})
