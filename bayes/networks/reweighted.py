"""A Bayesian network conditioned on further rows without a fit: its draws get weights.

Draw s of the posterior given the training rows has the density p(Y | X, draw s) of the further rows
as importance weight. The draws stay where they are, so that this holds for rows that change little;
the effective sample size and the Pareto shape of the weights (Vehtari et al. 2024, 1507.02646) say
when it does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from torch import Tensor

from bayes.inference.arviz_export import import_arviz
from bayes.networks.drawn_networks import DrawnNetworks, drawn_networks, register_paths
from bayes.networks.predictions import (
    check_draws,
    check_takes_variances,
    log_likelihood_of_rows,
    predicted,
)
from bayes.outputs import OutputSubset
from priors.representation import count

if TYPE_CHECKING:
    from bayes.networks.bayesian_network import BayesianNetwork

__all__ = ["ReweightedNetwork"]

# Effective draws below which a user is told.
_FEW = 10
# Draws that leave at most five in the tail, a fifth of them, to which the Pareto law is fitted.
_FEW_FOR_A_SHAPE = 25


class ReweightedNetwork(Model):
    """A fitted network whose draws have weights; made by `condition_on_observations`.

    Args:
        model: The fitted model of S draws.
        log_weights: Log weights of the draws that it holds now, `[S, *batch]`, up to a constant.

    Raises:
        ValueError: a set of weights is 0 throughout, or NaN.

    Predictions raise a RuntimeError once the model has been fitted again.
    """

    log_weights: Tensor

    def __init__(self, model: BayesianNetwork, log_weights: Tensor) -> None:
        super().__init__()
        if not bool(log_weights.detach().amax(0).isfinite().all()):
            raise ValueError(
                "No draw gives the further rows a likelihood above 0, so that none has a weight; "
                "check Y and noise, or fit a BayesianNetwork to all rows."
            )
        self.model = model
        self._made_for = model.fitted_draws().identity
        self.register_buffer("log_weights", log_weights.log_softmax(0), persistent=False)

    def __repr__(self) -> str:
        size = self.effective_draws
        worth = f"{float(size.min()):.4g}" + (
            f" to {float(size.max()):.4g}" if size.numel() > 1 else ""
        )
        draws = count(len(self.log_weights), "draw")
        batch = f", batch {list(self.batch_shape)}" if self.batch_shape else ""
        return f"{type(self).__name__}({draws} worth {worth}{batch})\n  {self.model!r}"

    @property
    def num_outputs(self) -> int:
        """That of the model."""
        return self.model.num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of conditioned models."""
        return self.log_weights.shape[1:]

    @property
    def effective_draws(self) -> Tensor:
        """Kish's effective sample size 1 / sum w^2 of the weights, `[*batch]`."""
        return 1 / self.log_weights.detach().exp().square().sum(0)

    def _current(self) -> BayesianNetwork:
        """The model, whose draws are still those that the weights are of."""
        check_draws(type(self).__name__, self.model, self._made_for)
        return self.model

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """As that of the model, with weighted draws.

        Args:
            X: Queries `[..., q, d]`, whose batch broadcasts with that of the model.
            output_indices: Outputs to return; all if None.
            observation_noise: As of `BayesianNetwork.posterior`.
            posterior_transform: Applied last.
        """
        return predicted(
            self._current(),
            X,
            output_indices,
            observation_noise,
            posterior_transform,
            self.log_weights,
        )

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> ReweightedNetwork:
        """Weights of further rows on top of these.

        Args:
            X: Inputs, `[..., n, d]`.
            Y: Outcomes, `[..., n, m]`.
            noise: Noise variances in squared units of Y, `[..., n, m]`; those of the model if None.
            **kwargs: Ignored.
        """
        return self.with_rows(X, Y, noise).checked()

    def with_rows(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> ReweightedNetwork:
        """`condition_on_observations` without its warning."""
        more = log_likelihood_of_rows(self._current(), X, Y, noise)
        extra = more.dim() - self.log_weights.dim()
        own = self.log_weights[(slice(None), *(None,) * max(extra, 0))]
        more = more[(slice(None), *(None,) * max(-extra, 0))]
        return ReweightedNetwork(self.model, own + more)

    def fantasize(
        self,
        X: Tensor,
        sampler: MCSampler,
        observation_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> ReweightedNetwork:
        """Models of rows drawn from the predictive distribution.

        Args:
            X: Where to observe, `[..., n, d]`.
            sampler: Draws the outcomes.
            observation_noise: Noise variances in squared units of Y; those of the model if None.
            **kwargs: Ignored.

        Raises:
            NotImplementedError: a classifier.
        """
        return self.with_fantasies(X, sampler, observation_noise).checked()

    def with_fantasies(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None
    ) -> ReweightedNetwork:
        """`fantasize` without its warning."""
        if self.model.likelihood.classes is not None:
            raise NotImplementedError(
                "Fantasies are of values; give class numbers to condition_on_observations."
            )
        if observation_noise is not None:
            check_takes_variances(self.model, "observation_noise", "omit it")
        noise = True if observation_noise is None else observation_noise
        Y = sampler(self.posterior(X, observation_noise=noise))
        return self.with_rows(X, Y, observation_noise)

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.
        """
        return OutputSubset(self, idcs)

    def sample_path(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> DrawnNetworks:
        """Networks drawn by their weights; see `BayesianNetwork.sample_path`.

        Args:
            sample_shape: How many.
            generator: Source of randomness.

        Raises:
            NotImplementedError: a batch of conditioned models.
        """
        if self.batch_shape:
            raise NotImplementedError("Sample paths are of one conditioned model, not of a batch.")
        return drawn_networks(self._current(), self.log_weights, sample_shape, generator)

    def checked(self) -> ReweightedNetwork:
        """Itself, with a warning to the caller's caller where the weights leave too few draws."""
        size = float(self.effective_draws.median())
        number = len(self.log_weights)
        shape = largest = 0.0
        if number > _FEW_FOR_A_SHAPE and not self.batch_shape:
            found = self.pareto_shape
            # infinite where under five draws have more weight than others: that says nothing
            shape = found if math.isfinite(found) else 0.0
            largest = min(1 - 1 / math.log10(number), 0.7)  # Vehtari et al. 2024, section 3.2.4
        if size < min(_FEW, number / 2) or shape > largest:
            warnings.warn(
                f"Further rows leave {size:.3g} effective of {number} draws"
                + (f", with a Pareto shape of {shape:.2f}" if shape > largest else "")
                + ": they say too much for the draws to be reweighted. Draw more, or fit a "
                "BayesianNetwork to all rows.",
                stacklevel=3,
            )
        return self

    @property
    def pareto_shape(self) -> float:
        """Shape k of the Pareto law of the largest weights; estimates are reliable below 0.7.

        Raises:
            ValueError: a batch of conditioned models.
        """
        if self.batch_shape:
            raise ValueError(
                f"The Pareto shape is of one set of weights, got a batch {list(self.batch_shape)}."
            )
        weights = self.log_weights.detach().double().cpu().numpy()
        with np.errstate(over="ignore"):  # of candidates of a fit, which then have no weight
            return float(import_arviz().psislw(weights, normalize=True)[1])


register_paths(ReweightedNetwork)
