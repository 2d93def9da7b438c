"""The draws of a Bayesian network for ArviZ."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes.inference import Draws
from bayes.inference.arviz_export import as_inference_data, sample_stats
from bayes.networks.density import NetworkPosterior

if TYPE_CHECKING:
    from bayes.networks.bayesian_network import BayesianNetwork

__all__ = ["inference_data"]

# Parameters of likelihoods with one number for each output.
_OF_OUTPUTS = ("noise_var", "scale", "df")
# Of the groups of the prior.
_PRIOR_DRAWS = 500


def inference_data(model: BayesianNetwork, seed: int) -> Any:
    """See `BayesianNetwork.to_arviz`."""
    groups = _groups(model, seed)
    prior = _groups(_with_draws_of_the_prior(model, seed), seed)
    groups["prior"] = prior["posterior"]
    groups["prior_predictive"] = prior["posterior_predictive"]
    groups["observed_data"] = {"y": model.train_Y.cpu().numpy()}
    groups |= sample_stats(model.fitted_draws().stats)
    of_outputs = [name for name in model.likelihood_of_draws() if name in _OF_OUTPUTS]
    dims = {"y": ["row", "output"], **dict.fromkeys(of_outputs, ["output"])}
    return as_inference_data(groups, dims)


def _with_draws_of_the_prior(model: BayesianNetwork, seed: int) -> BayesianNetwork:
    """The model, with draws of the prior in place of those of the posterior, as one chain."""
    density = NetworkPosterior(model).log_density()
    generator = torch.Generator(model.train_X.device).manual_seed(seed)
    assert density.initial is not None  # draws of the prior, where chains start
    position = density.initial(generator, _PRIOR_DRAWS)
    other = copy.copy(model)
    other._keep(Draws(density.constrain(position.unsqueeze(0)), {}))
    return other


def _groups(model: BayesianNetwork, seed: int) -> dict[str, dict[str, Any]]:
    """What is known of each draw of a model: parameters, likelihood and outcomes."""
    draws = model.fitted_draws()
    chains = draws.samples["eps"].shape[:2]
    parameters = {name: value.flatten(0, 1) for name, value in draws.samples.items()}
    with torch.no_grad():
        f = model.functions_of_draws(model.train_X)
        targets, known = model.targets()
        log_likelihood = model.likelihood.log_prob(targets, f, parameters, known)
        generator = torch.Generator(f.device).manual_seed(seed)
        y = model.likelihood.sample(f, parameters, known, generator=generator)
        if model.outcome_transform is not None:
            transform = model.outcome_transform.transform
            log_likelihood -= transform.log_abs_det_jacobian(targets, model.train_Y)
            y = transform(y)

    def by_chain(value: Tensor) -> Any:
        return value.unflatten(0, chains).cpu().numpy()

    others = {**model.variances_of_draws(), **model.likelihood_of_draws()}
    weights = {  # a module may have a parameter of the same name
        f"network.{name}" if name in others else name: value
        for name, value in model.parameters_of_draws().items()
    }
    return {
        "posterior": {name: by_chain(value) for name, value in {**weights, **others}.items()},
        "log_likelihood": {"y": by_chain(log_likelihood)},
        "posterior_predictive": {"y": by_chain(y)},
    }
