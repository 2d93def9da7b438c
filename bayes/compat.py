"""Borrowed names: what inference uses of Pyro and of torch's tracing that is not public there.

`tests/bayes/test_compat.py` says of each what is relied on, and of the methods of BoTorch's models
that `ExactProcess` calls or overrides.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pyro.infer
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "ComparesNow",
    "RecordingNUTS",
    "mean_acceptance",
    "one_fake_mode",
    "potential_energy",
    "rows_of_plate",
]


class RecordingNUTS(pyro.infer.NUTS):
    """Pyro's sampler, which also tells how it came to its last draw.

    Attributes:
        num_leapfrog_steps: Leapfrog steps of the last draw.
        energy: Hamiltonian at the last draw: potential energy and kinetic energy of the momentum
            with which it was reached, or with which the trajectory began if the draw stayed.
    """

    num_leapfrog_steps: int
    energy: float

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """The next draw."""
        self._leaves: list[tuple[Tensor, Tensor]] = []
        drawn = super().sample(params)
        chosen = self._potential_energy_last
        found = [energy for potential, energy in self._leaves if potential is chosen]
        self.num_leapfrog_steps = len(self._leaves)
        self.energy = float(found[0] if found else self._energy_at_start)
        return drawn

    def _build_basetree(
        self,
        z: Any,
        r: Any,
        z_grads: Any,
        log_slice: Any,
        direction: int,
        energy_current: Tensor,
    ) -> Any:
        leaf = super()._build_basetree(z, r, z_grads, log_slice, direction, energy_current)
        energy = leaf.z_proposal_pe + self._kinetic_energy(leaf.r_left_unscaled)
        self._leaves.append((leaf.z_proposal_pe, energy))
        self._energy_at_start = energy_current
        return leaf


def potential_energy(kernel: Any) -> float:
    """Potential energy of the last draw of a Pyro HMC kernel, minus the log joint density."""
    return float(kernel._potential_energy_last)


def mean_acceptance(kernel: Any) -> float:
    """Mean acceptance probability of a Pyro HMC kernel, of all draws since the warm-up."""
    return kernel._mean_accept_prob


def rows_of_plate(distribution: Any) -> tuple[int, int] | None:
    """Rows of a plate and how many of them a run takes, if it is the site that chooses them."""
    if not isinstance(distribution, _Subsample):
        return None
    taken = distribution.subsample_size
    return distribution.size, distribution.size if taken is None else taken


class ComparesNow(TorchFunctionMode):
    """While it traces, `torch.equal` answers for the values at hand instead of refusing.

    Kernels ask whether their two inputs are the same points.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.equal:
            with _disable_current_modes():
                return func(*args)
        return func(*args, **(kwargs or {}))


def one_fake_mode() -> AbstractContextManager[Any]:
    """While it lasts, `make_fx` describes all values in one mode.

    It would make one for each, with the traceback of the moment, which is half of its time.
    """
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
