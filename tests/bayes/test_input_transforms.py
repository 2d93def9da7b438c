"""Input transforms of BoTorch that learn from rows, in every engine."""

import copy

import pytest
import torch
from botorch.models.transforms.input import InputStandardize, Normalize
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import nn

from bayes import (
    BayesianNetwork,
    DeepEnsemble,
    DeepKernelMachine,
    GaussianProcess,
    GaussianProcessClassifier,
    GradientDescentEnsemble,
    HeteroscedasticGaussianProcess,
    ScaleMixtureClassifier,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
    WeightSpaceProcess,
)
from priors import HalfCauchyVariance, NetworkPrior, NNGPKernel


def rows():
    generator = torch.Generator().manual_seed(0)
    X = 1e4 + 500 * torch.rand(40, 2, dtype=torch.float64, generator=generator)
    return X, (X - 1e4).sum(-1, keepdim=True)


def network():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


def kernel():
    return ScaleKernel(RBFKernel())


def labels(Y):
    return (Y > Y.mean()).long()


# Each with what `load` takes besides the file.
ENGINES = {
    "GaussianProcess": (lambda X, Y, t: GaussianProcess(X, Y, kernel(), **t), kernel, {}),
    "StudentTProcess": (lambda X, Y, t: StudentTProcess(X, Y, kernel(), **t), kernel, {}),
    "ScaleMixtureProcess": (
        lambda X, Y, t: ScaleMixtureProcess(X, Y, kernel(), scale=HalfCauchyVariance(1.0), **t),
        kernel,
        {"scale": HalfCauchyVariance(1.0)},
    ),
    "HeteroscedasticGaussianProcess": (
        lambda X, Y, t: HeteroscedasticGaussianProcess(X, Y, kernel(), num_noise_points=5, **t),
        kernel,
        {},
    ),
    "VariationalGaussianProcess": (
        lambda X, Y, t: VariationalGaussianProcess(X, Y, kernel(), num_inducing=5, **t),
        kernel,
        {},
    ),
    "GaussianProcessClassifier": (
        lambda X, Y, t: GaussianProcessClassifier(X, labels(Y), kernel(), num_inducing=5, **t),
        kernel,
        {},
    ),
    "GaussianProcessClassifier dirichlet": (
        lambda X, Y, t: GaussianProcessClassifier(
            X, labels(Y), kernel(), likelihood="dirichlet", **t
        ),
        kernel,
        {},
    ),
    "ScaleMixtureClassifier": (
        lambda X, Y, t: ScaleMixtureClassifier(X, labels(Y), kernel(), num_inducing=5, **t),
        kernel,
        {},
    ),
    "WeightSpaceProcess": (
        lambda X, Y, t: WeightSpaceProcess(X, Y, NNGPKernel(network()), num_features=20, **t),
        lambda: NNGPKernel(network()),
        {},
    ),
    "GradientDescentEnsemble": (
        lambda X, Y, t: GradientDescentEnsemble(X, Y, network(), **t),
        network,
        {},
    ),
    "DeepKernelMachine": (
        lambda X, Y, t: DeepKernelMachine(X, Y, layers=1, num_inducing=5, **t),
        None,
        {"layers": 1},
    ),
    "BayesianNetwork": (
        lambda X, Y, t: BayesianNetwork(X, Y, NetworkPrior(network()), **t),
        lambda: NetworkPrior(network()),
        {},
    ),
}


def scaled(model, X):
    """Inputs as a model sees them."""
    return getattr(model, "process", model).input_transform(X)


@pytest.mark.parametrize("engine", ENGINES)
def test_transforms_learn_from_the_rows_before_any_fit(engine):
    X, Y = rows()
    make, _, _ = ENGINES[engine]
    model = make(X, Y, {"input_transform": InputStandardize(2)})
    assert torch.allclose(scaled(model, X), (X - X.mean(0)) / X.std(0))
    model = make(X, Y, {"input_transform": Normalize(2)})
    low, high = X.amin(0), X.amax(0)
    assert torch.allclose(scaled(model, X), (X - low) / (high - low))


@pytest.mark.parametrize("engine", ENGINES)
def test_models_leave_the_transform_they_are_given_to_others(engine):
    X, Y = rows()
    transform = InputStandardize(2)
    before = copy.deepcopy(transform.state_dict())
    first = ENGINES[engine][0](X, Y, {"input_transform": transform})
    ENGINES[engine][0](3 * X, Y, {"input_transform": transform})
    assert transform.training
    assert all(torch.equal(value, before[name]) for name, value in transform.state_dict().items())
    assert torch.allclose(scaled(first, X), (X - X.mean(0)) / X.std(0))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_transform_has_learnt_before_is_kept(engine):
    X, Y = rows()
    transform = InputStandardize(2).double()
    transform(2 * X)
    model = ENGINES[engine][0](X, Y, {"input_transform": transform.eval()})
    assert torch.allclose(scaled(model, X), (X - 2 * X.mean(0)) / (2 * X.std(0)))


@pytest.mark.parametrize("engine", ENGINES)
def test_files_bring_back_what_a_transform_has_learnt(engine, tmp_path):
    X, Y = rows()
    make, given, further = ENGINES[engine]
    transform = InputStandardize(2).double()
    transform(2 * X)
    model = make(X, Y, {"input_transform": transform.eval()})
    if engine == "BayesianNetwork":
        model.fit(DeepEnsemble(2, 5, progress=False))
    model.save(tmp_path / "model.safetensors")
    arguments = [] if given is None else [given()]
    loaded = type(model).load(
        tmp_path / "model.safetensors",
        *arguments,
        input_transform=InputStandardize(2),
        **further,
    )
    assert torch.allclose(scaled(loaded, X), (X - 2 * X.mean(0)) / (2 * X.std(0)))


@pytest.mark.parametrize(
    "engine", ["VariationalGaussianProcess", "DeepKernelMachine", "HeteroscedasticGaussianProcess"]
)
def test_points_are_chosen_among_the_transformed_rows(engine):
    X, Y = rows()
    model = ENGINES[engine][0](X, Y, {"input_transform": InputStandardize(2)})
    if engine == "HeteroscedasticGaussianProcess":
        points = model.likelihood.noise_covar.points
    else:
        points = model.inducing.points
    assert points.abs().max() < 3
    assert torch.cdist(points, (X - X.mean(0)) / X.std(0)).amin(-1).max() < 1e-6
