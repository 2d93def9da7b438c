"""Deep ensembles: networks trained from independent starts, whose mixture is the prediction.

Lakshminarayanan, Pritzel & Blundell 2017 (1612.01474), with the weight prior as regulariser: each
member is a maximum a posteriori. It is the baseline that Bayesian networks are compared with;
its spread comes from the starts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.ascent import Objective, trained
from bayes.inference.draws import Draws, isolated
from bayes.inference.evaluation import Evaluation
from bayes.inference.log_density import LogDensity, value_and_gradient
from bayes.inference.pyro_density import density_of
from bayes.inference.settings import check_settings

__all__ = ["DeepEnsemble"]


@dataclass(frozen=True)
class DeepEnsemble:
    """Members trained to maxima of the posterior, all at once.

    They begin as draws of the prior whose readout is set to zero: of functions as far from the data
    as those of a wide prior, a head for the noise makes densities that no training recovers from.

    Attributes:
        num_members: Networks.
        num_training_steps: Gradient steps of each.
        learning_rate: Of Adam at the beginning; it falls to a hundredth, along a cosine.
        batch_size: Rows of each step, the same for all members; all rows without it.
        seed: Of all random numbers.
        progress: Whether to show a bar.
    """

    num_members: int = 10
    num_training_steps: int = 2000
    learning_rate: float = 0.05
    batch_size: int | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        batches = () if self.batch_size is None else ("batch_size",)
        check_settings(
            self,
            at_least_one=("num_members", "num_training_steps", *batches),
            positive=("learning_rate",),
        )

    def run(self, model: Callable[[], object] | LogDensity, like: Tensor) -> Draws:
        """Train the members.

        Args:
            model: A Pyro model without arguments, a `LogDensity`, or what has one.
            like: Gives dtype and device.

        Returns:
            One "chain" with a draw for each member, and the mean log density of the members at
            every step as history.

        Raises:
            RuntimeError: a member diverged.
            ValueError: a `batch_size` for a density that does not know its rows.
        """
        with isolated(self.seed, like):
            density = density_of(model, like)
            generator = torch.Generator(like.device)
            generator.manual_seed(self.seed)
            position, history = trained(
                self._objective(density, generator),
                density.start(generator, self.num_members, like, of_ascent=True),
                self.num_training_steps,
                self.learning_rate,
                name="deep ensemble",
                progress=self.progress,
                noisy=self.batch_size is not None,
            )
            if not bool(position.isfinite().all()):
                raise RuntimeError(
                    "A member of the DeepEnsemble diverged: its parameters are no longer finite; "
                    "use a smaller learning_rate."
                )
            with torch.no_grad():
                samples = density.constrain(position.unsqueeze(0))
        return Draws(samples, {}, history)

    def _objective(self, density: LogDensity, generator: torch.Generator) -> Objective:
        if self.batch_size is None:
            return Evaluation(density, compile=False)
        rows, size = density.rows, self.batch_size
        if rows is None:
            raise ValueError(
                "DeepEnsemble(batch_size=) needs to know the rows of the data: fit a "
                "BayesianNetwork, or a LogDensity(..., rows=Rows(num_rows, function))."
            )

        def of_some(position: Tensor) -> tuple[Tensor, Tensor]:
            index = torch.randint(
                rows.num_rows, (size,), generator=generator, device=position.device
            )
            return value_and_gradient(rows.function, position, index)

        return of_some
