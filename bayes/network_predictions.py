"""What a fitted Bayesian network says of rows: posteriors of weighted draws, likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors import Posterior
from torch import Tensor

from bayes.checks import check_query, check_variances, chosen_outputs
from bayes.conditioning import check_observations
from bayes.likelihoods.base import beside_rows
from bayes.network_density import NetworkPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform

if TYPE_CHECKING:
    from bayes.bayesian_network import BayesianNetwork

__all__ = ["likelihood_draws", "log_likelihood_of_rows", "predicted"]


def likelihood_draws(model: BayesianNetwork) -> dict[str, Tensor]:
    """The likelihood's unconstrained parameters by site, `[chains * draws, p]`."""
    samples = model.fitted_draws().samples
    names = NetworkPosterior(model).parameter_priors()
    return {name: samples[name].flatten(0, 1) for name in names}


def predicted(
    model: BayesianNetwork,
    X: Tensor,
    output_indices: Sequence[int] | None,
    observation_noise: bool | Tensor,
    posterior_transform: PosteriorTransform | None,
    log_weights: Tensor | None = None,
) -> PredictivePosterior | Posterior:
    """See `BayesianNetwork.posterior`.

    Args:
        model: The fitted model of S draws.
        X: Queries, `[..., q, d]`.
        output_indices: Outputs to return; all if None.
        observation_noise: Whether of y, or the noise variances.
        posterior_transform: Applied last.
        log_weights: Log weights of the draws, `[S, *batch]`, whose batch broadcasts with that of X;
            equal ones if None.
    """
    check_query("BayesianNetwork", X, model.train_X)
    outputs = chosen_outputs("BayesianNetwork", output_indices, model.num_outputs)
    f, parameters = model.functions_of_draws(X), likelihood_draws(model)
    if log_weights is not None and log_weights.dim() > 1:
        batch = torch.broadcast_shapes(log_weights.shape[1:], X.shape[:-2])
        extra = len(batch) - len(X.shape[:-2])
        f = f[(slice(None), *(None,) * extra)].expand(len(f), *batch, *f.shape[-2:])
        extra = len(batch) - log_weights.dim() + 1
        log_weights = log_weights[(slice(None), *(None,) * extra)].expand(len(f), *batch)
    likelihood = model.likelihood
    posterior: Posterior
    if observation_noise is False:
        posterior = likelihood.of_functions(f, parameters, outputs, log_weights)
    else:
        noise = _noise(model, observation_noise)
        posterior = likelihood.of_outcomes(f, parameters, outputs, log_weights, noise)
    if model.outcome_transform is not None:
        transform = model.outcome_transform.of_outputs(outputs)
        assert isinstance(posterior, PredictivePosterior)
        posterior = TransformedPosterior(posterior, transform)
    return apply_posterior_transform(posterior_transform, posterior, X)


def _noise(model: BayesianNetwork, observation_noise: bool | Tensor) -> Tensor | None:
    """Known noise variances at queries, on the model's scale; None for the drawn ones."""
    if not isinstance(observation_noise, Tensor):
        _, known = model.targets()
        return None if known is None else known.mean(0)
    if not model.likelihood.takes_variances:
        raise ValueError(
            "observation_noise as variances is for a Gaussian likelihood, this one is "
            f"{type(model.likelihood).__name__}; use observation_noise=True."
        )
    check_variances("BayesianNetwork", observation_noise, model.num_outputs)
    variances = observation_noise.expand(*observation_noise.shape[:-1], model.num_outputs)
    if model.outcome_transform is None:
        return variances
    return model.outcome_transform.inverse_variances(variances)


def log_likelihood_of_rows(
    model: BayesianNetwork, X: Tensor, Y: Tensor, noise: Tensor | None
) -> Tensor:
    """Log likelihood of further rows under each of the S draws, up to a constant, `[S, *batch]`.

    Args:
        model: The fitted model.
        X: Inputs, `[..., n, d]`.
        Y: Outcomes, `[..., n, m]`; batches of X and Y broadcast.
        noise: Noise variances in squared units of Y, `[..., n, m]`; those of the model if None.
    """
    check_observations("BayesianNetwork", X, Y, noise, model.train_X, model.train_Y)
    batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
    f = model.functions_of_draws(X)
    f = f[(slice(None), *(None,) * (len(batch) - X.dim() + 2))]
    f = f.expand(len(f), *batch, *f.shape[-2:])
    own = {name: beside_rows(value, f) for name, value in likelihood_draws(model).items()}
    if model.outcome_transform is not None:
        Y, _ = model.outcome_transform(Y)
    known = _noise(model, True if noise is None else noise)
    return model.likelihood.log_prob(Y, f, own, known).sum((-2, -1))
