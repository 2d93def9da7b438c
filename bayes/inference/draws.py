"""What every inference method returns and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import pyro
from torch import Tensor

from bayes.inference.arviz_export import as_inference_data, sample_stats
from priors.random_state import seeded
from priors.representation import count

__all__ = ["SMALLER_STEPS", "Draws", "InferenceMethod", "checked_method", "isolated"]

# Where the setting that makes them is not known.
SMALLER_STEPS = "take smaller steps"


@dataclass(frozen=True)
class Draws:
    """Draws from the posterior of a Pyro model.

    Attributes:
        samples: By site, `[chains, draws, *event]`.
        stats: By ArviZ name, one number per draw, `[chains, draws]`; empty for independent draws.
        history: Objective at every step of an optimisation, `[steps]`, or None.
        num_gradients: Gradients per chain, of "warmup" and of "sampling", or None.
        center: By site, `[*event]`: where functions are linearised, so that a draw stands for
            f(center) + J (draw - center) rather than for f(draw); None: they are not.
        log_evidence: Estimate of the log marginal likelihood in nats, or None; of a fitted
            `BayesianNetwork` in units of its Y.
        smaller_steps: How the method takes smaller steps, as advice where draws diverge.
        members_apart: Whether each chain is a member that stays at a mode of its own, so that it is
            judged for itself and not by what the others draw.
        identity: The same object in copies of other dtype or device, and in no other draws.
    """

    samples: dict[str, Tensor]
    stats: dict[str, Tensor]
    history: Tensor | None = None
    num_gradients: dict[str, int] | None = None
    center: dict[str, Tensor] | None = None
    log_evidence: float | None = None
    smaller_steps: str = SMALLER_STEPS
    members_apart: bool = False
    identity: object = field(default_factory=object, repr=False, compare=False)

    def to_arviz(self) -> Any:
        """The draws as an `arviz.InferenceData`: groups posterior and, of chains, sample_stats."""
        posterior = {name: value.cpu().numpy() for name, value in self.samples.items()}
        return as_inference_data({"posterior": posterior, **sample_stats(self.stats)}, {})

    def __repr__(self) -> str:
        some = next(iter((*self.samples.values(), *self.stats.values())), None)
        if some is None:
            return "Draws()"
        chains, draws = some.shape[:2]
        sites = ", ".join(f"{name} {list(v.shape[2:])}" for name, v in self.samples.items())
        stats = f"; statistics {', '.join(self.stats)}" if self.stats else ""
        each = f"{count(chains, 'chain')} of {count(draws, 'draw')}"
        return f"Draws({each}: {sites}{stats})"


class InferenceMethod(Protocol):
    """A way to draw from the posterior of a Pyro model whose latent sites are real-valued."""

    def run(self, model: Callable[[], object], like: Tensor) -> Draws:
        """Draw from the posterior of `model`, in the dtype and on the device of `like`."""


def checked_method(owner: str, method: object) -> InferenceMethod:
    """An inference method, or a TypeError for its class, its name or something else.

    Args:
        owner: Of `fit`, for the message.
        method: What a user gave.
    """
    if isinstance(method, type) and callable(getattr(method, "run", None)):
        raise TypeError(
            f"{owner}.fit needs {method.__name__}(...) with its settings, got the class itself."
        )
    if not callable(getattr(method, "run", None)):
        raise TypeError(
            f"{owner}.fit needs an inference method such as bayes.ChEES(), got {method!r}."
        )
    return cast(InferenceMethod, method)


@contextmanager
def isolated(seed: int, like: Tensor) -> Iterator[None]:
    """Run Pyro with its own random numbers and parameters; leave the global ones untouched.

    Args:
        seed: Of the random numbers inside.
        like: A tensor of any shape; its device's generator is seeded and restored too.
    """
    with (
        seeded(seed, like.device),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):
        yield
