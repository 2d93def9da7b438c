"""The log density of a Pyro model over unconstrained numbers.

Sites are laid one after another in a vector; those with a constrained support go through
`biject_to` and the density gains the logarithm of the Jacobian.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint
from torch.distributions.transforms import Transform

from bayes.compat import rows_of_plate
from bayes.inference.draws import isolated
from bayes.inference.log_density import HasLogDensity, LogDensity

__all__ = ["check_arguments", "density_of"]


def density_of(model: Callable[[], object] | LogDensity, like: Tensor) -> LogDensity:
    """What a sampler is given, as a log density over R^d.

    Args:
        model: A `LogDensity`, a Pyro model without arguments, or one that knows its density.
        like: Gives dtype and device of positions.

    Raises:
        TypeError: none of them, or a Pyro model with arguments.
        NotImplementedError: the Pyro model has discrete sites, minibatches, or a support that
            depends on other sites; names the site.
        ValueError: it has no latent sites.
    """
    if isinstance(model, LogDensity):
        return model
    if isinstance(model, HasLogDensity):
        return model.log_density()
    if not callable(model):
        raise TypeError(
            f"A sampler needs a Pyro model or a LogDensity, got {type(model).__name__}; a function "
            "of positions is LogDensity(function, dimension)."
        )
    check_arguments(model)
    return _of_pyro(model, like)


def check_arguments(model: Callable[..., object]) -> None:
    """Refuse a Pyro model that has to be called with something.

    Raises:
        TypeError: names what it takes.
    """
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):  # of what is not written in Python
        return
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        named = ", ".join(needed)
        raise TypeError(
            f"A sampler calls its Pyro model without arguments, and this one takes {named}; pass "
            f"functools.partial(model, {named})."
        )


class _Site:
    """A latent site: its place in the vector, and its way there."""

    def __init__(self, name: str, node: dict[str, Any], start: int) -> None:
        value = node["value"].detach()
        self.name, self.dtype = name, value.dtype
        self.transform = _way_to(name, node["fn"].support)
        with torch.no_grad():
            self.free_shape = self.transform.inv(value).shape
        self.part = slice(start, start + self.free_shape.numel())

    def free(self, position: Tensor) -> Tensor:
        """`[..., d]` to the unconstrained value `[..., *shape]`."""
        return position[..., self.part].reshape(position.shape[:-1] + self.free_shape)

    def log_jacobian(self, free: Tensor, value: Tensor) -> Tensor:
        """Of one position, a scalar."""
        return self.transform.log_abs_det_jacobian(free, value).sum()


def _way_to(name: str, support: Any) -> Transform:
    """From unconstrained numbers to a support; that of a mixture is that of its components."""
    if isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    try:
        found: Transform = biject_to(support)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"The site {name!r} of the Pyro model has the support {support}, to which there is no "
            "way from unconstrained numbers; draw it on another one and transform it in the model."
        ) from error
    return found


def _of_pyro(model: Callable[[], object], like: Tensor) -> LogDensity:
    with isolated(0, like):
        nodes = _latent(pyro.poutine.trace(model).get_trace())
        others = _latent(pyro.poutine.trace(model).get_trace())
    sites: list[_Site] = []
    start = 0
    for name, node in nodes.items():
        site = _Site(name, node, start)
        _check_fixed(site, others.get(name))
        start = site.part.stop
        sites.append(site)
    if not sites:
        raise ValueError("The Pyro model has no latent sites: there is nothing to sample.")

    def log_prob(position: Tensor) -> Tensor:
        values, total = {}, position.new_zeros(())
        for site in sites:
            free = site.free(position).to(site.dtype)
            values[site.name] = site.transform(free)
            total = total + site.log_jacobian(free, values[site.name])
        conditioned = pyro.poutine.condition(model, data=values)
        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            trace = pyro.poutine.trace(conditioned).get_trace()
            return total + trace.log_prob_sum()

    def constrain(position: Tensor) -> dict[str, Tensor]:
        return {site.name: site.transform(site.free(position)) for site in sites}

    return LogDensity(
        _of_many(log_prob, torch.zeros(2, start, dtype=like.dtype, device=like.device)),
        start,
        constrain=constrain,
    )


def _of_many(log_prob: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Positions at once, or one after another where the model's course depends on values."""

    def one_by_one(position: Tensor) -> Tensor:
        return torch.stack([log_prob(row) for row in position])

    batched = torch.func.vmap(log_prob)
    try:
        batched(example)
    except RuntimeError:  # a value is asked for, or an operation cannot be batched
        return one_by_one
    return batched


def _latent(trace: Any) -> dict[str, dict[str, Any]]:
    """Latent sites by name; refuses what has no density over R^d."""
    found = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        rows = rows_of_plate(node["fn"])
        if rows is not None and rows[0] != rows[1]:
            raise NotImplementedError(
                f"The plate {name!r} of the Pyro model takes {rows[1]} of its {rows[0]} rows at "
                "random, of which there is no one density; leave subsample_size out, and use SGHMC "
                "for minibatches."
            )
        if rows is not None or node["is_observed"]:
            continue
        if node["fn"].support.is_discrete:
            raise NotImplementedError(
                f"The site {name!r} of the Pyro model is discrete ({type(node['fn']).__name__}); "
                "these samplers follow gradients. Sum over it (an observed mixture distribution), "
                "or use Pyro's NUTS, which enumerates."
            )
        found[name] = node
    return found


def _check_fixed(site: _Site, other: dict[str, Any] | None) -> None:
    """Refuse sites that come and go or whose support moves from one draw to the next."""
    fixed = other is not None
    if other is not None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved = _way_to(site.name, other["fn"].support)
            zero = other["value"].new_zeros(site.free_shape)
            fixed = moved.inv(other["value"]).shape == site.free_shape and torch.equal(
                site.transform(zero), moved(zero)
            )
    if not fixed:
        raise NotImplementedError(
            f"The site {site.name!r} of the Pyro model, or its support, depends on other sites; "
            "these samplers need the same numbers with the same limits in every run of the model. "
            "Draw it on a fixed support and transform it in the model."
        )
