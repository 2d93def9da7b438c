"""A small deep ensemble with a heteroscedastic head, which reads paths of operations.

Each member predicts a mean and a noise variance and is trained by the Gaussian likelihood
(Lakshminarayanan et al. 2017, 1612.01474, section 2), from weights of its own. Their means are the
draws of f: its posterior is the Gaussian of their mean and covariance over points, and the average
of their noise is that of y, the two uncertainties that BOSHNAS tells apart (Tuli et al. 2022,
2205.11656, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from botorch.models.model import Model
from gpytorch.distributions import MultivariateNormal
from torch import Tensor, nn
from torch.nn import functional

from nas.encoding.candidates import Candidate, Encoder, PathEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.spaces import Space
from nas.surrogates.surrogate import Surrogate
from priors.posteriors.gaussian import GaussianPosterior

__all__ = ["EnsembleModel", "PathEnsemble"]


class PathEnsemble(Surrogate):
    """The ensemble as a surrogate.

    Args:
        num_members: Networks.
        width: Of their two hidden layers.
        num_steps: Of Adam, on all rows.
        learning_rate: Of Adam.
        weight_decay: Of Adam, decoupled.
    """

    def __init__(
        self,
        *,
        num_members: int = 8,
        width: int = 64,
        num_steps: int = 200,
        learning_rate: float = 0.01,
        weight_decay: float = 0.1,
    ) -> None:
        self.num_members = num_members
        self.width = width
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def __repr__(self) -> str:
        return f"ensemble of {self.num_members}"

    def encoder(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> Encoder:
        """Paths beside the space's codes."""
        return PathEncoder(space, cube, observed)

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> EnsembleModel:
        """The ensemble trained; its weights start from torch's random state."""
        model = EnsembleModel(X, self.num_members, self.width)
        decayed = {"params": model.weights.parameters(), "weight_decay": self.weight_decay}
        others = {"params": model.biases.parameters(), "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([decayed, others], lr=self.learning_rate)
        for _ in range(self.num_steps):
            optimizer.zero_grad()
            mean, noise = model.heads(X)
            loss = (noise.log() + (Y[:, 0] - mean).square() / noise).mean(1).sum() / 2
            loss.backward()
            optimizer.step()
        return model.requires_grad_(False).eval()


class EnsembleModel(Model):
    """Networks of two hidden layers as one BoTorch model.

    Args:
        X: Training rows `[n, d]`, which centre and scale the inputs.
        num_members: Networks.
        width: Of the hidden layers.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, X: Tensor, num_members: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", X.mean(0))
        spread = X.std(0, correction=0)
        self.register_buffer("spread", torch.where(spread > 1e-9, spread, 1.0))
        sizes = (X.shape[-1], width, width, 2)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in zip(sizes, sizes[1:], strict=False):
            weight = X.new_empty(num_members, before, after).normal_() * (2 / before) ** 0.5
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(X.new_zeros(num_members, 1, after)))

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    def heads(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means and noise variances of all members at `[..., q, d]`, each `[..., members, q]`."""
        value = ((X - self.centre) / self.spread).unsqueeze(-3)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = value @ weight + bias
            value = functional.relu(value) if index < len(self.weights) - 1 else value
        return value[..., 0], functional.softplus(value[..., 1]) + 1e-3

    def posterior(
        self,
        X: Tensor,
        output_indices: Any = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Any:
        """Gaussian over the `q` points jointly.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Not used, there is one output.
            observation_noise: Whether of y rather than of f.
            posterior_transform: Applied last.

        Returns:
            A `GaussianPosterior` `[..., q, 1]`.
        """
        means, noise = self.heads(X)
        mean = means.mean(-2)
        about = (means - mean.unsqueeze(-2)) / (means.shape[-2] - 1) ** 0.5
        covariance = about.mT @ about
        # The rank is that of the members; a little noise of each point keeps it positive.
        extra = noise.mean(-2) if observation_noise else 1e-4 * torch.ones_like(mean)
        covariance = covariance + torch.diag_embed(extra)
        posterior = GaussianPosterior(MultivariateNormal(mean, covariance))
        return posterior if posterior_transform is None else posterior_transform(posterior)
