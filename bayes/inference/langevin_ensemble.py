"""An ensemble whose members are trained first and then move: MILE (Sommer et al. 2025, 2502.06335).

Posteriors of networks have many modes, and no chain passes from one to the next. Members begin in
different ones: each is trained from a draw of its own, whose readout is set to zero, with the whole
data, to a mode of its posterior, and then drawn from the surroundings by microcanonical Langevin
steps. Every member has a step size and a length of its own, tuned in the paper's three phases of
80%, 10% and 10% of the warm-up: the step size, for a variance of the energy error; L from the
spread of the positions; L from their autocorrelation. The paper's aim for that variance falls from
0.5 per dimension to 0.1. Here it is a hundredth of that throughout, which makes steps half as long:
with theirs, where noise is small, members leave the mode to which they were trained and stay
hundreds of nats below what is typical of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.ascent import trained
from bayes.inference.chains import ChainMethod, Kernel
from bayes.inference.evaluation import Evaluation
from bayes.inference.log_density import LogDensity
from bayes.inference.mclmc import LangevinKernel
from bayes.inference.settings import check_settings

__all__ = ["LangevinEnsemble"]

# Shares of the warm-up at which its phases begin, and steps that the step size remembers.
_PHASES = (0.8, 0.9)
_MEMORY = 100.0
# Small, so that the first steps leave members where their training took them.
_FIRST_STEP = 0.005


@dataclass(frozen=True)
class LangevinEnsemble(ChainMethod):
    """Members trained to modes of the posterior, then unadjusted microcanonical Langevin from each.

    For networks too large or too multimodal for exact samplers; `num_chains` members, each of which
    is judged for itself: that they differ from each other is what they are for.

    Attributes:
        num_training_steps: Gradient steps of the training, over all rows.
        learning_rate: Of Adam at the beginning; it falls to a hundredth, along a cosine.
        num_steps: Langevin steps, of two gradients each, from one draw to the next.
        energy_var: Variance of the energy error per step and dimension; smaller is less biased and
            slower.
    """

    num_samples: int = 100
    num_warmup: int = 200
    num_chains: int = 8
    num_training_steps: int = 1000
    learning_rate: float = 0.05
    num_steps: int = 10
    energy_var: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(
            self,
            at_least_one=("num_training_steps", "num_steps"),
            positive=("learning_rate", "energy_var"),
        )

    @property
    def _initial_gradients(self) -> int:
        return self.num_training_steps

    @property
    def _smaller_steps(self) -> str:
        return f"lower energy_var below {self.energy_var:g}"

    @property
    def _members_apart(self) -> bool:
        return True

    def _kernel(self, evaluation: Evaluation) -> Kernel:
        return LangevinKernel(
            self._name,
            evaluation,
            self.num_steps,
            self.energy_var,
            phases=_PHASES,
            first_step=_FIRST_STEP,
            memory=_MEMORY,
            together=False,
        )

    def _initial(self, density: LogDensity, generator: torch.Generator, like: Tensor) -> Tensor:
        position, _ = trained(
            Evaluation(density, compile=False),
            density.start(generator, self.num_chains, like, of_ascent=True),
            self.num_training_steps,
            self.learning_rate,
            name="training",
            progress=self.progress,
        )
        return position
