"""The log density of a Bayesian network's whitened weights and noise, all chains in one call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayes.inference import HasLogDensity, LogDensity, Rows

if TYPE_CHECKING:
    from bayes.bayesian_network import BayesianNetwork

__all__ = ["NetworkPosterior"]


class NetworkPosterior(HasLogDensity):
    """What samplers draw from: a Pyro model that knows its density.

    Args:
        model: The network and its data, as they are at the time of each call.
    """

    def __init__(self, model: BayesianNetwork) -> None:
        self.model = model

    def __call__(self) -> None:
        """Run the Pyro model."""
        self.model.pyro_model()

    def log_density(self) -> LogDensity:
        """Over `[eps, log_noise_var]`, whose prior is a draw of standard normals for eps."""
        model = self.model
        like, num_weights = model.train_X, len(model.whitening.zeros())
        targets, known = model.targets()
        inputs = model.transformed_inputs(model.train_X)
        num_noises = 0 if known is not None else model.num_outputs
        mean, std = model.log_noise_var_prior

        def of_rows(position: Tensor, index: Tensor | None) -> Tensor:
            x = inputs if index is None else inputs[index]
            y = targets if index is None else targets[index]
            eps, log_noise = position.split([num_weights, num_noises], dim=-1)
            f = model.prior.apply_parameters(model.whitening.weights(eps), x)
            if known is None:
                log_var = log_noise.unsqueeze(-2)
            else:
                log_var = (known if index is None else known[index]).log()
            square = (y - f).square() * (-log_var).exp()
            each = -0.5 * (square + log_var + math.log(2 * math.pi))
            share = 1.0 if index is None else len(inputs) / len(index)
            total = share * each.sum((-2, -1)) - 0.5 * eps.square().sum(-1)
            return total - 0.5 * ((log_noise - mean) / std).square().sum(-1)

        def initial(generator: torch.Generator, number: int) -> Tensor:
            drawn = torch.randn(
                number,
                num_weights + num_noises,
                generator=generator,
                dtype=like.dtype,
                device=like.device,
            )
            return torch.cat([drawn[:, :num_weights], mean + std * drawn[:, num_weights:]], -1)

        def constrain(position: Tensor) -> dict[str, Tensor]:
            eps, log_noise = position.split([num_weights, num_noises], dim=-1)
            return {"eps": eps, **({"log_noise_var": log_noise} if num_noises else {})}

        return LogDensity(
            lambda position: of_rows(position, None),
            num_weights + num_noises,
            initial=initial,
            constrain=constrain,
            rows=Rows(len(inputs), of_rows),
            identified=False,
        )
