"""Some outputs of a model as a model of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from torch import Tensor

from bayes.checks import chosen_outputs

__all__ = ["OutputSubset"]


class OutputSubset(Model):
    """Some outputs of another model, which answers for them; made by `subset_output`.

    Args:
        model: Whose `posterior` takes `output_indices`.
        outputs: Which of its outputs, negative ones from the end.

    Raises:
        ValueError: an index is out of range, or there is none.
    """

    def __init__(self, model: Model, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        count = model.num_outputs
        self.outputs = [k % count for k in chosen_outputs(type(model).__name__, outputs, count)]

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self.outputs)

    @property
    def batch_shape(self) -> torch.Size:
        """That of the model."""
        return self.model.batch_shape

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """As that of the model.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Of these outputs.
            observation_noise: As of the model; a tensor is of these outputs.
            posterior_transform: Applied last.
        """
        chosen = chosen_outputs(type(self).__name__, output_indices, self.num_outputs)
        if isinstance(observation_noise, Tensor):
            noise = observation_noise.expand(*observation_noise.shape[:-1], self.num_outputs)
            every = noise.new_zeros(*noise.shape[:-1], self.model.num_outputs)
            every[..., self.outputs] = noise
            observation_noise = every
        return self.model.posterior(
            X,
            output_indices=[self.outputs[k] for k in chosen],
            observation_noise=observation_noise,
            posterior_transform=posterior_transform,
        )

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """Some of these outputs.

        Args:
            idcs: Indices of the outputs.
        """
        chosen = chosen_outputs(type(self).__name__, idcs, self.num_outputs)
        return OutputSubset(self.model, [self.outputs[k] for k in chosen])

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> OutputSubset:
        """Refused: the model needs all its outputs.

        Args:
            X: Inputs.
            Y: Outcomes.
            **kwargs: Ignored.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{self.num_outputs} outputs of a {type(self.model).__name__} cannot be conditioned "
            f"alone; condition the model on all {self.model.num_outputs}, then take the subset."
        )

    def fantasize(self, X: Tensor, *args: Any, **kwargs: Any) -> OutputSubset:
        """Fantasies of the model, of which these outputs are taken.

        Args:
            X: Where to observe, `[..., q, d]`.
            *args: As for the model.
            **kwargs: As for the model.
        """
        model: Any = self.model  # in BoTorch not every model fantasizes
        return OutputSubset(model.fantasize(X, *args, **kwargs), self.outputs)
