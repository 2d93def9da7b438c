"""The density of a Bayesian network's whitened weights and likelihood parameters.

A position is one vector: eps, the D whitened weights, then site by site what else is drawn of the
prior, such as layer variances, and the unconstrained parameters of the likelihood. All methods take
many positions `[..., d]` at once, one per chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayes.inference import HasParts, KroneckerFactors, LogDensity, Rows
from bayes.likelihoods import Likelihood, NormalPrior
from bayes.networks.kronecker import kronecker_factors
from bayes.networks.weight_priors import WeightPrior

if TYPE_CHECKING:
    from bayes.networks.bayesian_network import BayesianNetwork

__all__ = ["NetworkPosterior"]

_Shape = torch.Size | list[int] | tuple[int, ...]


class NetworkPosterior(HasParts):
    """What samplers draw from: a Pyro model that knows its density and its parts.

    Outcomes and network outputs are on the model's (standardised) scale.

    Args:
        model: The network and its data, as they are at the time of each call; the number of its
            weights is that of the first one.
    """

    def __init__(self, model: BayesianNetwork) -> None:
        self.model = model

    def __call__(self) -> None:
        """Run the Pyro model: sites `eps`, those of the likelihood, and `y`."""
        model = self.model
        zeros, weights = model.whitening.zeros(), model.weight_prior
        eps = pyro.sample("eps", _weights(weights, zeros))
        parameters = {}
        for name, size in weights.sites().items():
            parameters[name] = pyro.sample(name, _PriorSite(weights, name, size, zeros))
        for name, prior in self.parameter_priors().items():
            mean, std = prior.tensors(zeros)
            parameters[name] = pyro.sample(name, dist.Normal(mean, std).to_event(1))
        targets, known = model.targets()
        f = self._functions(eps, parameters, model.transformed_inputs(model.train_X))
        pyro.sample("y", _Outcomes(model.likelihood, f, parameters, known), obs=targets)

    @property
    def is_gaussian(self) -> bool:
        """Whether whitened weights are standard normal and all else only multiplies them."""
        prior = self.model.weight_prior
        return prior.is_gaussian and prior.log_lengthscale_prior() is None

    @property
    def num_variances(self) -> int:
        """How many numbers after the weights are of the prior."""
        return sum(self.model.weight_prior.sites().values())

    @property
    def num_rows(self) -> int:
        """n, of the training data."""
        return len(self.model.train_X)

    @cached_property
    def num_weights(self) -> int:
        """D, of weights that are not held at their mean."""
        return len(self.model.whitening.zeros())

    def last_layer(self) -> Tensor:
        """Which weights belong to the readout, in which functions are linear, `[D]` bools."""
        return self.model.whitening.belong_to(self.model.prior.readout_parameters())

    def scales(self, position: Tensor) -> Tensor:
        """By what drawn variances multiply each whitened weight, `[..., D]`."""
        _, parameters = self.split(position)
        weights = self.model.weight_prior
        return weights.scales({name: parameters[name] for name in weights.sites()}, position)

    def parameter_priors(self) -> dict[str, NormalPrior]:
        """Of the likelihood's unconstrained parameters by site; none where the noise is known."""
        if self.model.train_Yvar is not None:
            return {}
        return self.model.likelihood.priors(self.model.train_Y.shape[-1])

    def sites(self) -> dict[str, int]:
        """All sites but eps and how many unconstrained numbers each has, in their order."""
        return self._sites

    @cached_property
    def _sites(self) -> dict[str, int]:
        own = {name: len(prior) for name, prior in self.parameter_priors().items()}
        return {**self.model.weight_prior.sites(), **own}

    @property
    def dimension(self) -> int:
        """d, of a position."""
        return self.num_weights + sum(self.sites().values())

    def split(self, position: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The parts of positions.

        Args:
            position: `[..., d]`.

        Returns:
            Whitened weights `[..., D]`, and all else by site, `[..., p]`.
        """
        sites = self.sites()
        eps, *parts = position.split([self.num_weights, *sites.values()], dim=-1)
        return eps, dict(zip(sites, parts, strict=True))

    def functions(
        self, position: Tensor, X: Tensor | None = None, *, index: Tensor | None = None
    ) -> Tensor:
        """Network outputs f, `[..., n, k]`.

        Args:
            position: `[..., d]`.
            X: Inputs on the user's scale, `[n, inputs]`; the training rows if None.
            index: Numbers of some of these rows, `[n]`; all if None.
        """
        model = self.model
        inputs = model.transformed_inputs(model.train_X if X is None else X)
        inputs = inputs if index is None else inputs[index]
        return self._functions(*self.split(position), inputs)

    def log_prior(self, position: Tensor) -> Tensor:
        """Log prior density of positions `[..., d]`, `[...]`, in nats."""
        eps, parameters = self.split(position)
        weights = self.model.weight_prior
        total = weights.log_density(eps, {name: parameters[name] for name in weights.sites()})
        for name, prior in self.parameter_priors().items():
            total = total + prior.log_prob(parameters[name])
        return total

    def log_likelihood(self, position: Tensor, index: Tensor | None = None) -> Tensor:
        """Log likelihood of each value of Y, `[..., n, m]`, in nats.

        Args:
            position: `[..., d]`.
            index: Numbers of the training rows, `[n]`; all if None.
        """
        return self._log_likelihood(position, self._rows(), index)

    def log_likelihood_of(self, functions: Tensor, position: Tensor) -> Tensor:
        """The same of given network outputs `[..., n, k]`, with parameters from `position`."""
        targets, known = self.model.targets()
        parameters = self.split(position)[1]
        return self.model.likelihood.log_prob(targets, functions, parameters, known)

    def likelihood_curvature(self, functions: Tensor, position: Tensor) -> Tensor:
        """Of minus each row's log likelihood in its outputs, nowhere negative, `[..., n, k, k]`."""
        targets, known = self.model.targets()
        parameters = self.split(position)[1]
        return self.model.likelihood.curvature(targets, functions, parameters, known)

    def kronecker_factors(self, position: Tensor, roots: Tensor) -> list[KroneckerFactors]:
        """Of the curvature of each layer at a position `[d]`, given R `[n, k, k]` of each row."""
        model = self.model
        weights = model.whitening.weights(self.split(position)[0])
        rows = model.transformed_inputs(model.train_X)
        return kronecker_factors(model.prior, weights, rows, roots)

    def log_density(self) -> LogDensity:
        """Of positions, log prior plus log likelihood, started at draws from the prior."""
        rows, num_rows = self._rows(), len(self.model.train_X)
        like, sizes = self.model.train_X, self.dimension
        priors, weights = self.parameter_priors(), self.model.weight_prior

        def of_rows(position: Tensor, index: Tensor | None) -> Tensor:
            share = 1.0 if index is None else num_rows / len(index)
            likelihood = self._log_likelihood(position, rows, index).sum((-2, -1))
            return share * likelihood + self.log_prior(position)

        def initial(generator: torch.Generator, number: int) -> Tensor:
            drawn = torch.randn(
                number, sizes, generator=generator, dtype=like.dtype, device=like.device
            )
            eps, parameters = self.split(drawn)
            if not (weights.is_gaussian and weights.readout_scale is None):
                size = torch.Size([number])
                eps, others = weights.draw_sites(size, like, generator=generator)
                parameters.update(others)
            for name, prior in priors.items():
                mean, std = prior.tensors(like)
                parameters[name] = mean + std * parameters[name]
            return torch.cat([eps, *parameters.values()], dim=-1)

        def flattened(position: Tensor) -> Tensor:
            # Functions of a wide prior miss the data by far, and a head for the noise turns that
            # into log densities that no training recovers from. Zero functions, of hidden units
            # as drawn, are near in any prior.
            eps, parameters = self.split(position)
            eps = eps.masked_fill(self.last_layer(), 0.0)
            return torch.cat([eps, *parameters.values()], dim=-1)

        def constrain(position: Tensor) -> dict[str, Tensor]:
            eps, parameters = self.split(position)
            return {"eps": eps, **parameters}

        return LogDensity(
            lambda position: of_rows(position, None),
            self.dimension,
            initial=initial,
            flattened=flattened,
            constrain=constrain,
            rows=Rows(num_rows, of_rows),
            identified=False,
        )

    def _functions(self, eps: Tensor, drawn: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self.model.weight_prior.functions(eps, drawn, inputs)

    def _rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, outcomes and known noise variances on the model's scale."""
        model = self.model
        return model.transformed_inputs(model.train_X), *model.targets()

    def _log_likelihood(
        self,
        position: Tensor,
        rows: tuple[Tensor, Tensor, Tensor | None],
        index: Tensor | None,
    ) -> Tensor:
        x, y, known = (value if index is None or value is None else value[index] for value in rows)
        assert x is not None
        assert y is not None
        eps, parameters = self.split(position)
        return self.model.likelihood.log_prob(
            y, self._functions(eps, parameters, x), parameters, known
        )


def _weights(prior: WeightPrior, zeros: Tensor) -> TorchDistribution:
    if prior.is_gaussian:  # of which Pyro knows the divergence
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
    return _PriorSite(prior, "eps", len(zeros), zeros)


class _PriorSite(TorchDistribution):
    """A site of the weights' prior for Pyro."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, prior: WeightPrior, site: str, size: int, like: Tensor) -> None:
        self.prior, self.site, self.like = prior, site, like
        super().__init__(torch.Size(), torch.Size([size]), validate_args=False)

    def sample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        eps, others = self.prior.draw_sites(torch.Size(sample_shape), self.like)
        return {"eps": eps, **others}[self.site]

    def log_prob(self, value: Tensor) -> Tensor:
        if self.site == "eps":
            return self.prior.log_density(value, {})
        return self.prior.log_density_of(self.site, value)


class _Outcomes(TorchDistribution):
    """All outcomes given network outputs, as one event for Pyro."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(
        self,
        likelihood: Likelihood,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None,
    ) -> None:
        self.likelihood, self.f, self.parameters, self.Yvar = likelihood, f, parameters, Yvar
        shape = likelihood.noise_free(f, parameters).shape
        columns = shape[-1] if likelihood.classes is None else 1
        event = torch.Size([shape[-2], columns])
        super().__init__(shape[:-2], event, validate_args=False)

    def sample(self, sample_shape: _Shape = torch.Size()) -> Tensor:  # noqa: B008
        f = self.f.expand(*sample_shape, *self.f.shape)
        return self.likelihood.sample(f, self.parameters, self.Yvar)

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.likelihood.log_prob(value, self.f, self.parameters, self.Yvar)
        return each.sum((-2, -1))
