"""The prior of an unknown variance as a module: its parameters held, moved, saved and learnt."""

from __future__ import annotations

import inspect
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Positive
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, constraints

import priors.scales
from bayes.processes.scale_quadrature import Landmarks
from priors.random_state import seeded
from priors.representation import as_distribution

__all__ = ["ScalePrior", "scale_of_description"]

_DRAWS = 128
# Where the fall of a density is read off, logs of s: e^300 is 1e130.
_FAR = (200.0, 300.0)


class ScalePrior(gpytorch.Module):
    """A `torch.distributions` distribution of s = sigma^2, of the log of which densities are asked.

    Its parameters are buffers, and Parameters where they are learnt, positive ones as logarithms;
    the distribution is made of them anew at each use. One whose parameters torch does not declare
    (`arg_constraints`) is used as it is. Numbers given in float32 are read as the decimals they
    stand for: torch makes 0.7 a float32.

    Args:
        owner: Name of the model, for messages.
        law: The distribution, of a single positive number; mixtures by `MixtureSameFamily`.
        learn: Learn all parameters, not only those that require a gradient.

    Raises:
        TypeError: not a distribution.
        ValueError: not of a single positive number, or without parameters that can be learnt.
    """

    def __init__(self, owner: str, law: Distribution, learn: bool = False) -> None:
        super().__init__()
        if not isinstance(law, Distribution):
            raise TypeError(
                f"{owner} needs scale as a torch.distributions distribution of the variance, got "
                f"{type(law).__name__}; torch.distributions.InverseGamma(2.0, 2.0) is one."
            )
        if law.event_shape or law.batch_shape:
            raise ValueError(
                f"{owner} needs a scale of a single number, got one of shape "
                f"{tuple(law.batch_shape + law.event_shape)}."
            )
        if bool(law.support.check(torch.tensor(-1.0, device="cpu"))):  # type: ignore[union-attr]
            raise ValueError(
                f"{owner} needs a scale on the positive reals, a {type(law).__name__} has negative "
                "values; torch.distributions.LogNormal is the exponential of a normal."
            )
        self._recipe = self._take(law, "", learn)
        if learn and not any(True for _ in self.parameters()):
            raise ValueError(
                f"{owner} cannot learn the parameters of {law}: torch declares none for it."
            )

    def _take(self, law: Distribution, prefix: str, learn: bool) -> Any:
        """Hold the parameters; class and names to make the distribution of."""
        if isinstance(law, MixtureSameFamily):
            parts = {
                "mixture_distribution": law.mixture_distribution,
                "component_distribution": law.component_distribution,
            }
            return type(law), {
                name: self._take(part, f"{prefix}{name.split('_')[0]}_", learn)
                for name, part in parts.items()
            }
        known = law.arg_constraints
        accepted = inspect.signature(type(law).__init__).parameters
        names = [name for name in accepted if name in known]
        if "logits" in names and "probs" in names:
            names.remove("probs")
        if not names or any(not isinstance(getattr(law, name), Tensor) for name in names):
            return law
        for name in names:
            self._hold(prefix + name, getattr(law, name), known[name], learn)
        return type(law), {name: prefix + name for name in names}

    def _hold(self, name: str, value: Tensor, constraint: Any, learn: bool) -> None:
        learnt = learn or value.requires_grad
        value = _as_written(value.detach())
        if not learnt:
            self.register_buffer(name, value)
        elif constraint in (constraints.real, constraints.real_vector):
            self.register_parameter(name, torch.nn.Parameter(value))
        elif constraint in (constraints.positive, constraints.nonnegative):
            self.register_parameter(f"raw_{name}", torch.nn.Parameter(value.log()))
            self.register_constraint(f"raw_{name}", Positive(torch.exp, torch.log))
        else:
            raise ValueError(
                f"The parameter {name} of the scale cannot be learnt: only positive numbers and "
                f"reals are, this one is constrained to {constraint}."
            )

    def law(self) -> Distribution:
        """The distribution at the present parameters, in float64, with gradients to them."""
        return self._made(self._recipe)

    def _made(self, recipe: Any) -> Any:
        if isinstance(recipe, Distribution):
            return recipe
        if isinstance(recipe, str):
            raw = f"raw_{recipe}"
            held = getattr(self, raw).exp() if raw in self._parameters else getattr(self, recipe)
            return held.double()
        kind, parts = recipe
        return kind(**{name: self._made(part) for name, part in parts.items()}, validate_args=False)

    def said(self) -> str:
        """The distribution with its present parameters, for people."""
        return as_distribution(self.law())

    def describe(self) -> Any:
        """What `scale_of_description` needs, as JSON."""
        values = {
            name: {
                "value": held.detach().tolist(),
                "learnt": name.startswith("raw_") or name in self._parameters,
            }
            for name, held in (*self.named_parameters(), *self.named_buffers())
        }
        return {"made": _described(self._recipe), "values": values}

    def log_density(self, t: Tensor) -> Tensor:
        """Log density of log s at t, float64, -inf outside the support; of the shape of t."""
        return _log_density(self.law(), t)

    def tail_index(self) -> float:
        """a, if the probability of s > x falls as x^-a; infinite where it falls faster.

        Moments of s of an order below a exist, and none above.
        """
        with torch.no_grad():
            law = self.law()
            t = torch.tensor(_FAR, dtype=torch.float64, device=self._device(law))
            first, last = _log_density(law, t).tolist()
        return (first - last) / (_FAR[1] - _FAR[0]) if last > -np.inf else np.inf

    def landmarks(self) -> Landmarks:
        """Where the density may have humps and edges: quantiles of draws, and ends of supports."""
        with torch.no_grad():
            law = self.law()
            every = law.component_distribution if isinstance(law, MixtureSameFamily) else law
            with seeded(0, self._device(law)):
                draws = every.sample(torch.Size([_DRAWS])).double().reshape(_DRAWS, -1)
            t = draws.log().clamp(-600, 600)
            low, middle, high = t.quantile(t.new_tensor([0.1, 0.5, 0.9]), dim=0)
            ends = [
                float(torch.as_tensor(value, device="cpu").max())
                for part in (law, every)
                for name in ("lower_bound", "upper_bound")
                if (value := getattr(part.support, name, None)) is not None
            ]
            edges = [np.log(end) for end in ends if 0 < end < np.inf]
        return Landmarks(
            torch.cat([low, middle, high]), middle, high - low, t.new_tensor(sorted(set(edges)))
        )

    def _device(self, law: Distribution) -> torch.device:
        for held in (*self.parameters(), *self.buffers()):
            return held.device
        return law.sample().device


def _log_density(law: Distribution, t: Tensor) -> Tensor:
    s = t.exp()
    inside = law.support.check(s)  # type: ignore[union-attr]
    if not bool(inside.any()):
        return torch.full_like(t, -torch.inf)
    valid = torch.where(inside, s, s[inside].flatten()[0])
    return torch.where(inside, law.log_prob(valid) + t, -torch.inf)


def _as_written(value: Tensor) -> Tensor:
    """In float64, numbers of float32 by their shortest decimal."""
    if value.dtype != torch.float32:
        return value.double()
    numbers = [float(str(number)) for number in value.cpu().numpy().reshape(-1)]
    return torch.tensor(numbers, dtype=torch.float64, device=value.device).reshape(value.shape)


def scale_of_description(path: Any, saved: Any, given: Distribution | None) -> Distribution:
    """The scale prior of a file, of the values it was saved with.

    Args:
        path: The file, for messages.
        saved: By `ScalePrior.describe`.
        given: One of the same make, or None.

    Raises:
        TypeError: none was given, and the file's is neither torch's nor ours.
        ValueError: another one was given.
    """
    made, values = saved["made"], saved["values"]
    if made is None:
        if given is None:
            raise TypeError(
                f"{path} was saved with a scale of a class of your own; pass load one of the same "
                "make as scale=."
            )
        return given
    if given is not None and ScalePrior("load", given).describe()["made"] != made:
        raise ValueError(f"{path} was saved with another scale than {as_distribution(given)}.")

    def of(made: Any) -> Any:
        if isinstance(made, str):
            raw = f"raw_{made}"
            held = values[raw if raw in values else made]
            value = torch.tensor(held["value"], dtype=torch.float64, device="cpu")
            value = value.exp() if raw in values else value
            return value.requires_grad_(held["learnt"])
        name, parts = made
        return getattr(_home(name), name)(**{key: of(part) for key, part in parts.items()})

    law: Distribution = of(made)
    return law


def _described(recipe: Any) -> Any:
    """Classes and names; None where a class is neither torch's nor ours."""
    if isinstance(recipe, str):
        return recipe
    if isinstance(recipe, Distribution):
        return None
    kind, parts = recipe
    name: str = kind.__name__
    if getattr(_home(name), name, None) is not kind:
        return None
    told = {name: _described(part) for name, part in parts.items()}
    return None if None in told.values() else [name, told]


def _home(name: str) -> Any:
    return priors.scales if name in priors.scales.__all__ else torch.distributions
