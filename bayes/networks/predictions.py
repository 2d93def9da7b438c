"""What a fitted Bayesian network says of rows: posteriors of weighted draws, likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors import Posterior
from torch import Tensor

from bayes.checks import check_query, check_variances, chosen_outputs
from bayes.conditioning import check_observations
from bayes.likelihoods.base import beside_rows
from bayes.networks.density import NetworkPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.posteriors.transforms import check_range

if TYPE_CHECKING:
    from bayes.networks.bayesian_network import BayesianNetwork

__all__ = [
    "check_draws",
    "check_takes_variances",
    "judged",
    "likelihood_draws",
    "log_likelihood_of_rows",
    "predicted",
]


def check_draws(owner: str, model: BayesianNetwork, identity: object) -> None:
    """Refuse what was made for other draws than those that a model holds now.

    Args:
        owner: Name of what was made, for the message.
        model: The model.
        identity: That of the draws it was made for.

    Raises:
        RuntimeError: the model has been fitted again, or is not fitted.
    """
    if model.fitted_draws().identity is not identity:
        raise RuntimeError(
            f"This {owner} was made before the last fit() of its model, for draws that the model "
            "no longer holds; make it again."
        )


def check_takes_variances(model: BayesianNetwork, name: str, advice: str) -> None:
    """Refuse noise variances where the likelihood takes none.

    Args:
        model: The model.
        name: Of the argument, for the message.
        advice: What to do, for the message.

    Raises:
        ValueError: the likelihood takes none.
    """
    if not model.likelihood.takes_variances:
        raise ValueError(
            f"{name} as variances is for a Gaussian likelihood, this one is "
            f"{type(model.likelihood).__name__}; {advice}."
        )


# Training rows at which chains are compared, at most.
_ROWS_TO_COMPARE = 50


def judged(model: BayesianNetwork) -> tuple[range, Tensor, dict[str, Tensor]]:
    """What chains should agree in, as weights need not: functions, and all that is drawn besides.

    Returns:
        Numbers of some training rows; functions there, `[chains, draws, rows, k]`; all sites but
        the whitened weights, `[chains, draws, *event]`.
    """
    samples = model.fitted_draws().samples
    number = len(model.train_X)
    rows = range(0, number, math.ceil(number / _ROWS_TO_COMPARE))
    with torch.no_grad():
        f = model.functions_of_draws(model.train_X[:: rows.step])
    others = {site: value for site, value in samples.items() if site != "eps"}
    return rows, f.unflatten(0, samples["eps"].shape[:2]), others


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
        observation_noise: Whether of y, or the noise variances `[..., q, m]`, whose batch
            broadcasts with that of X.
        posterior_transform: Applied last.
        log_weights: Log weights of the draws, `[S, *batch]`, whose batch broadcasts with that of X;
            equal ones if None.
    """
    check_query("BayesianNetwork", X, model.train_X)
    outputs = chosen_outputs("BayesianNetwork", output_indices, model.num_outputs)
    noise, batch = None, X.shape[:-2]
    if isinstance(observation_noise, Tensor):
        check_takes_variances(model, "observation_noise", "use observation_noise=True")
        check_variances("BayesianNetwork", observation_noise, model.num_outputs)
        batch = _batch_with_noise(X, observation_noise)
        every = observation_noise.expand(*observation_noise.shape[:-1], model.num_outputs)
        noise = _on_the_models_scale(model, every)
    elif observation_noise is not False:
        noise = _known_noise(model)
    if log_weights is not None:
        batch = torch.broadcast_shapes(log_weights.shape[1:], batch)
    f, parameters = _with_batch(model.functions_of_draws(X), batch), likelihood_draws(model)
    if log_weights is not None and log_weights.dim() > 1:
        extra = len(batch) - log_weights.dim() + 1
        log_weights = log_weights[(slice(None), *(None,) * extra)].expand(len(f), *batch)
    likelihood = model.likelihood
    posterior: Posterior
    if observation_noise is False:
        posterior = likelihood.of_functions(f, parameters, outputs, log_weights)
    else:
        posterior = likelihood.of_outcomes(f, parameters, outputs, log_weights, noise)
    if model.outcome_transform is not None:
        transform = model.outcome_transform.of_outputs(outputs)
        assert isinstance(posterior, PredictivePosterior)
        posterior = TransformedPosterior(posterior, transform)
    return apply_posterior_transform(posterior_transform, posterior, X)


def _known_noise(model: BayesianNetwork) -> Tensor | None:
    """Noise variances where none are given, `[m]`, on the model's scale; None for drawn ones."""
    _, known = model.targets()
    return None if known is None else known.mean(0)


def _on_the_models_scale(model: BayesianNetwork, variances: Tensor) -> Tensor:
    if model.outcome_transform is None:
        return variances
    return model.outcome_transform.inverse_variances(variances)


def _batch_with_noise(X: Tensor, noise: Tensor) -> torch.Size:
    """The batch of queries `[..., q, d]` and of noise variances `[..., q, m]`, broadcast."""
    try:
        batch = torch.broadcast_shapes(X.shape[:-2], noise.shape[:-2])
    except RuntimeError:
        batch = None
    if batch is None or noise.shape[-2] not in (1, X.shape[-2]):
        raise ValueError(
            f"BayesianNetwork got observation_noise of shape {tuple(noise.shape)} for X of shape "
            f"{tuple(X.shape)}; expected the rows of X, [..., {X.shape[-2]}, m], and a batch that "
            "broadcasts with that of X."
        )
    return batch


def _with_batch(f: Tensor, batch: torch.Size) -> Tensor:
    """Functions `[S, ..., q, k]` of draws, expanded to `[S, *batch, q, k]`."""
    f = f[(slice(None), *(None,) * (len(batch) - f.dim() + 3))]
    return f.expand(len(f), *batch, *f.shape[-2:])


def log_likelihood_of_rows(
    model: BayesianNetwork, X: Tensor, Y: Tensor, noise: Tensor | None
) -> Tensor:
    """Log likelihood of further rows under each of the S draws, up to a constant, `[S, *batch]`.

    Args:
        model: The fitted model.
        X: Inputs, `[..., n, d]`.
        Y: Outcomes, `[..., n, m]`.
        noise: Noise variances > 0 in squared units of Y, `[..., n, m]`; those of the model if None.
            Batches of all three broadcast.
    """
    likelihood = model.likelihood
    if noise is not None:
        check_takes_variances(model, "noise", "omit it")
    if not likelihood.real_valued and isinstance(Y, Tensor):
        Y = Y.to(model.train_Y)  # class numbers and counts are often integers
    check_observations("BayesianNetwork", X, Y, noise, model.train_X, model.train_Y)
    likelihood.check_outcomes(Y, "Y")
    known = _known_noise(model) if noise is None else _on_the_models_scale(model, noise)
    if known is not None and not bool((known > 0).all()):
        raise ValueError(
            "BayesianNetwork is conditioned on rows with noise, since no drawn network is exact at "
            f"them; got variances of 0 in {'train_Yvar' if noise is None else 'noise'}. Give "
            "noise > 0."
        )
    batches = [rows.shape[:-2] for rows in (X, Y, noise) if rows is not None]
    f = _with_batch(model.functions_of_draws(X), torch.broadcast_shapes(*batches))
    own = {name: beside_rows(value, f) for name, value in likelihood_draws(model).items()}
    if model.outcome_transform is not None:
        check_range(model.outcome_transform.transform, Y)
        Y, _ = model.outcome_transform(Y)
    return likelihood.log_prob(Y, f, own, known).sum((-2, -1))
