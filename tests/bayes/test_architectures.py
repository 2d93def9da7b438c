"""Bayesian networks of any module: each against the module itself, called with drawn weights."""

import pytest
import torch
from torch import nn

from bayes import BayesianNetwork, MeanField
from bayes.inference.graphs import Graph, captured
from bayes.inference.log_density import value_and_gradient
from bayes.networks.density import NetworkPosterior
from priors import NetworkPrior, UnsupportedOperationError


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), norm
        self.body, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.first(x)
        h = h + self.body(torch.tanh(self.norm(h)))
        return self.last(torch.tanh(h))


def convolution():
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )


MODULES = {
    "residual with LayerNorm": lambda: Residual(nn.LayerNorm(6)),
    "residual with RMSNorm": lambda: Residual(nn.RMSNorm(6)),
    "residual": lambda: Residual(nn.Identity()),
    "convolution": convolution,
}
SHAPES = {"convolution": (1, 2, 2)}


def made(name, **settings):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    Y = (X[:, :1] > 0).double()
    prior = NetworkPrior(MODULES[name](), input_shape=SHAPES.get(name))
    return BayesianNetwork(X, Y, prior, likelihood="categorical", **settings)


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_those_of_the_module(name):
    model = made(name)
    target = NetworkPosterior(model)
    x = torch.randn(3, target.dimension, dtype=torch.float64)
    found = target.functions(x)
    values = model.whitening.weights(x)
    rows = model.transformed_inputs(model.train_X).reshape(8, *SHAPES.get(name, (4,)))
    for k in range(3):
        own = {parameter: value[k] for parameter, value in values.items()}
        truth = torch.func.functional_call(model.prior.module, own, (rows,))
        assert torch.allclose(found[k], truth)
    assert {"norm.weight"} & set(values) == ({"norm.weight"} if "Norm" in name else set())
    if "Norm" in name:
        assert (values["norm.weight"] == 1).all()  # gains are fixed


@pytest.mark.parametrize(
    "name", ["residual with RMSNorm", pytest.param("convolution", marks=pytest.mark.slow)]
)
def test_samplers_get_the_density_as_a_graph(name):
    density = NetworkPosterior(made(name, learn_variances=True)).log_density()
    x = 0.5 * torch.randn(2, density.dimension, dtype=torch.float64)
    graph = captured(lambda position: value_and_gradient(density.function, position), x)
    assert isinstance(graph, Graph)
    x = 0.5 * torch.randn(2, density.dimension, dtype=torch.float64)
    value, gradient = graph(x)
    truth, slope = value_and_gradient(density.function, x)
    assert torch.allclose(value, truth)
    assert torch.allclose(gradient, slope)


@pytest.mark.parametrize("name", ["residual with RMSNorm", "convolution"])
def test_classification_end_to_end(name):
    model = made(name).fit(MeanField(num_steps=5, num_draws=4, progress=False))
    X = torch.randn(2, 3, 4, dtype=torch.float64)
    probabilities = model.posterior(X).mean
    assert probabilities.shape == (2, 3, 2)
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert model.num_outputs == 2


def test_batch_normalisation_is_refused_with_the_reason():
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(UnsupportedOperationError, match="depends on the whole batch"):
        NetworkPrior(module)
