"""Posteriors on which samplers are compared, written for torch and for JAX alike.

Each is told by its data, as lists: an environment with another library reads them from JSON.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes import BayesianNetwork
from bayes.network_density import NetworkPosterior
from priors import NetworkPrior

__all__ = ["PROBLEMS", "eight_schools", "network", "quantities"]

PROBLEMS = ("eight schools", "network 1x10", "network 1x50")
_WIDTHS = {"network 1x10": 10, "network 1x50": 50}
_Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
_S = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def eight_schools() -> tuple[Any, Tensor]:
    """The Pyro model, not centred, and a tensor of its dtype."""
    y, s = torch.tensor(_Y, dtype=torch.float64), torch.tensor(_S, dtype=torch.float64)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(y.new_tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    return model, y


def network(name: str) -> tuple[Any, Tensor, Any]:
    """A regression of 60 rows on 4 inputs: what is sampled, its rows, and the model."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    Y = torch.sin(2 * X[:, :1]) + X[:, 1:2] * X[:, 2:3]
    Y = Y + 0.2 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
    width = _WIDTHS[name]
    module = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
    prior = NetworkPrior(module, weight_var=2.0, bias_var=0.5)
    model = BayesianNetwork(X, Y, prior)
    return NetworkPosterior(model), X, model


def quantities(name: str, samples: dict[str, Tensor], lp: Tensor, model: Any) -> Tensor:
    """What is asked for: log density and hyperparameters, and functions at ten rows.

    Args:
        name: Of the problem.
        samples: By site, `[chains, draws, ...]`.
        lp: `[chains, draws]`.
        model: Of a network.

    Returns:
        `[chains, draws, k]`.
    """
    if name == "eight schools":
        parts = [samples["mu"], samples["tau"], *samples["theta"].unbind(-1), lp]
        return torch.stack(parts, -1)
    with torch.no_grad():
        weights = model.whitening.weights(samples["eps"])
        f = model.prior.apply_parameters(weights, model.transformed_inputs(model.train_X[:10]))
    return torch.cat([f.squeeze(-1), samples["log_noise_var"], lp.unsqueeze(-1)], -1)
