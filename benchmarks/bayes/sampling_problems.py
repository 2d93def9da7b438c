"""Posteriors on which samplers are compared, written for torch and for JAX alike.

Each is told by its data, as lists: an environment with another library reads them from JSON.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from torch import Tensor, nn

from bayes import BayesianNetwork, GaussianProcess, SaasPrior
from bayes.networks.density import NetworkPosterior
from bayes.processes.hyperparameters import HyperparameterPosterior
from priors import NetworkPrior

__all__ = ["PROBLEMS", "eight_schools", "network", "quantities", "saas"]

_WIDTHS = {"network 1x10": [10], "network 1x50": [50], "network 2x16": [16, 16]}
PROBLEMS = ("eight schools", *_WIDTHS, "SAAS")
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
    layers: list[nn.Module] = []
    before = 4
    for width in _WIDTHS[name]:
        layers += [nn.Linear(before, width), nn.Tanh()]
        before = width
    module = nn.Sequential(*layers, nn.Linear(before, 1))
    prior = NetworkPrior(module, weight_var=2.0, bias_var=0.5)
    model = BayesianNetwork(X, Y, prior)
    return NetworkPosterior(model), X, model


def saas() -> tuple[Any, Tensor, Any]:
    """Hyperparameters of a process of 40 rows at 8 inputs, two of which matter."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(40, 8, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + 2 * X[:, 3:4].square()
    Y = Y + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    kernel = ScaleKernel(
        MaternKernel(ard_num_dims=8, lengthscale_prior=SaasPrior()),
        outputscale_prior=GammaPrior(2.0, 0.15),
    ).double()
    model = GaussianProcess(X, Y, kernel)
    return HyperparameterPosterior(model), X, model


def quantities(name: str, samples: dict[str, Tensor], lp: Tensor, model: Any) -> Tensor:
    """What is asked for: log density and (log) hyperparameters, and functions at ten rows.

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
    if name == "SAAS":
        return torch.cat([samples["position"], lp.unsqueeze(-1)], -1)
    with torch.no_grad():
        weights = model.whitening.weights(samples["eps"])
        f = model.prior.apply_parameters(weights, model.transformed_inputs(model.train_X[:10]))
    return torch.cat([f.squeeze(-1), samples["log_noise_var"], lp.unsqueeze(-1)], -1)
