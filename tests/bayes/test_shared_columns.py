"""Columns that a network gives the same weights are standardised together, in every engine."""

import pytest
import torch
from torch import nn

from bayes import (
    BayesianNetwork,
    GaussianProcess,
    GaussianProcessClassifier,
    GradientDescentEnsemble,
    HeteroscedasticGaussianProcess,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
)
from priors import HalfCauchyVariance, NetworkPrior, NNGPKernel


def pooled():
    """A network for which the order of the four pixels is nothing."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    )


def images():
    """The last pixel is hardly ever lit."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(20, 4, dtype=torch.float64, generator=generator)
    X[:, -1] *= 0.01
    return X, X.square().sum(-1, keepdim=True)


def kernel():
    return NNGPKernel(pooled(), input_shape=(1, 2, 2))


ENGINES = {
    "GaussianProcess": lambda X, Y: GaussianProcess(X, Y, kernel()),
    "StudentTProcess": lambda X, Y: StudentTProcess(X, Y, kernel()),
    "ScaleMixtureProcess": lambda X, Y: ScaleMixtureProcess(
        X, Y, kernel(), scale=HalfCauchyVariance(1.0)
    ),
    "VariationalGaussianProcess": lambda X, Y: VariationalGaussianProcess(
        X, Y, kernel(), num_inducing=5
    ),
    "GaussianProcessClassifier": lambda X, Y: GaussianProcessClassifier(
        X, (Y > Y.mean()).long(), kernel(), num_inducing=5
    ),
    "GradientDescentEnsemble": lambda X, Y: GradientDescentEnsemble(X, Y, kernel().network),
    "BayesianNetwork": lambda X, Y: BayesianNetwork(
        X, Y, NetworkPrior(pooled(), input_shape=(1, 2, 2))
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_pixels_share_a_mean_and_a_deviation(engine):
    X, Y = images()
    model = ENGINES[engine](X, Y)
    transform = getattr(model, "process", model).input_transform
    assert torch.allclose(transform(X), (X - X.mean()) / X.std())


def test_the_order_of_pixels_is_nothing_to_a_model_whose_network_pools_them():
    X, Y = images()
    model = GaussianProcess(X, Y, kernel())
    queries = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    straight, turned = (model.posterior(Q) for Q in (queries, queries[:, [3, 0, 2, 1]]))
    assert torch.allclose(straight.mean, turned.mean)
    assert torch.allclose(straight.variance, turned.variance)


def test_points_of_a_noise_function_are_on_the_scale_of_the_rows():
    X, Y = images()
    model = HeteroscedasticGaussianProcess(X, Y, kernel(), num_noise_points=5)
    points = model.likelihood.noise_covar.points
    assert torch.cdist(points, (X - X.mean()) / X.std()).amin(-1).max() < 1e-6
