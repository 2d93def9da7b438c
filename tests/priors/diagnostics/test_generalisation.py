"""Predicted risks against closed forms and simulated regressions."""

import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch import nn

from priors import NNGPKernel
from priors.diagnostics.generalisation import (
    eigenstructure,
    generalisation_curve,
    plot_generalisation_curve,
    predicted_risk,
)


def spectrum(m=200, power=1.5):
    i = torch.arange(1, m + 1, dtype=torch.float64)
    values = i**-power
    targets = i**-1.0
    return values / values.sum(), targets / targets.norm()


def simulate(values, targets, n, *, ridge, noise_var, k=None, repeats=200, seed=0):
    """Ridge regression with Gaussian eigenfunctions; mean errors and standard errors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    m, errors = len(values), []
    for _ in range(repeats):
        root = torch.diag(values.sqrt())
        if k is not None:  # k Gaussian random features of the kernel
            root = root @ normal(m, k) / k**0.5
        x = normal(n, m)
        y = x @ targets + noise_var**0.5 * normal(n)
        a = x @ root
        gram = a @ a.mT + ridge * torch.eye(n, dtype=torch.float64)
        weights = root @ (a.mT @ torch.linalg.solve(gram, y))
        test = (weights - targets).square().sum() + noise_var
        errors.append(torch.stack([test, (x @ weights - y).square().mean()]))
    stacked = torch.stack(errors)
    return stacked.mean(0), stacked.std(0) / repeats**0.5


@pytest.mark.covering
@pytest.mark.parametrize("n", [10, 40, 120])
@pytest.mark.parametrize(("ridge", "noise_var"), [(1e-3, 0.0), (0.05, 0.1)])
def test_kernel_regression_agrees_with_simulation(n, ridge, noise_var):
    values, targets = spectrum()
    risk = predicted_risk(values, targets, n, ridge=ridge, noise_var=noise_var)
    (test, train), (test_error, train_error) = simulate(
        values, targets, n, ridge=ridge, noise_var=noise_var
    )
    # the theory is asymptotic in the number of modes that are learnt
    assert abs(test - risk.test) < 5 * test_error + 0.04 * test
    assert abs(train - risk.train) < 5 * train_error + 0.06 * train


@pytest.mark.parametrize(
    ("n", "k"), [(60, 120), pytest.param(60, 1000, marks=pytest.mark.slow), (40, 60)]
)
def test_random_features_agree_with_simulation(n, k):
    values, targets = spectrum()
    options = {"ridge": 1e-2, "noise_var": 0.05}
    risk = predicted_risk(values, targets, n, num_features=k, **options)
    (test, train), (test_error, train_error) = simulate(values, targets, n, k=k, **options)
    assert abs(test - risk.test) < 5 * test_error + 0.04 * test
    assert abs(train - risk.train) < 5 * train_error + 0.06 * train


def test_the_sum_rule_holds():
    values, targets = spectrum()
    n = torch.tensor([1, 7, 50, 199, 400])
    for ridge in (1e-8, 1e-3, 1.0):
        kappa = predicted_risk(values, targets, n, ridge=ridge).kappa
        total = (values / (values + kappa[:, None])).sum(-1) + ridge / kappa
        torch.testing.assert_close(total, n.double(), rtol=1e-9, atol=0)


def test_many_features_are_the_kernel():
    values, targets = spectrum()
    n = torch.tensor([5, 50, 150])
    options = {"ridge": 1e-3, "noise_var": 0.1}
    kernel = predicted_risk(values, targets, n, **options)
    many = predicted_risk(values, targets, n, num_features=10**9, **options)
    torch.testing.assert_close(many.test, kernel.test, rtol=1e-6, atol=0)
    torch.testing.assert_close(many.train, kernel.train, rtol=1e-6, atol=1e-12)


def test_ridgeless_linear_regression_in_closed_form():
    # p equal eigenvalues: variance sigma^2 p / (n - p) for n > p, (1 - n/p) |v|^2 for n < p
    p, noise_var = 20, 0.3
    values = torch.full((p,), 0.7)
    targets = torch.ones(p) / p**0.5
    over = predicted_risk(values, targets, 50, noise_var=noise_var)
    assert over.test.item() == pytest.approx(noise_var * 50 / 30)
    assert over.train.item() == pytest.approx(noise_var * 30 / 50)
    under = predicted_risk(values, targets, 10)
    assert under.test.item() == pytest.approx(0.5)
    assert under.train.item() == pytest.approx(0.0, abs=1e-12)
    assert predicted_risk(values, targets, 20, noise_var=0.1).test.item() == float("inf")


@pytest.mark.parametrize("k", [20, 21, 1000])
def test_features_that_span_all_modes_are_linear_regression(k):
    # k >= p Gaussian features of p modes span them: without a ridge only p counts
    p, noise_var = 20, 0.3
    values, targets = torch.full((p,), 0.7), torch.ones(p) / p**0.5
    risk = predicted_risk(values, targets, [50, 100], noise_var=noise_var, num_features=k)
    assert risk.test.tolist() == pytest.approx([noise_var * 50 / 30, noise_var * 100 / 80])
    assert risk.train.tolist() == pytest.approx([noise_var * 30 / 50, noise_var * 80 / 100])


def test_infinitely_many_points_leave_the_noise():
    values, targets = spectrum()
    risk = predicted_risk(values, targets, 10**9, ridge=1e-3, noise_var=0.2)
    assert risk.test.item() == pytest.approx(0.2, rel=1e-4)
    assert risk.train.item() == pytest.approx(0.2, rel=1e-4)


def test_eigenstructure_is_that_of_the_matrix():
    X = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = X[:, 0].sin()
    kernel = RBFKernel()
    values, coefficients = eigenstructure(kernel, X, y)
    matrix = kernel(X).to_dense().detach().double()
    assert (values.diff() <= 0).all()
    assert values.sum().item() == pytest.approx(matrix.diagonal().mean().item())
    assert coefficients.square().sum().item() == pytest.approx(y.square().mean().item())


def test_learning_curve_of_a_network_kernel():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(400, 3, dtype=torch.float64, generator=generator)
    y = torch.sin(2 * X[:, 0]) + 0.3 * X[:, 1]
    y = (y - y.mean()) / y.std()
    network = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))
    curve = generalisation_curve(
        NNGPKernel(network, bias_var=0.1),
        X,
        y,
        [10, 30, 100],
        ridge=1e-2,
        repeats=12,
        generator=generator,
    )
    at = [int((curve.predicted_sizes - n).abs().argmin()) for n in (10, 30, 100)]
    predicted = curve.predicted.test[at]
    assert (curve.test.diff() < 0).all()
    assert ((predicted - curve.test).abs() < 5 * curve.test_error + 0.15 * curve.test).all()
    axes = plot_generalisation_curve(curve)
    assert axes.get_xlabel() == "training points"
    assert len(axes.get_lines()) >= 4


def test_errors():
    values, targets = spectrum(5)
    with pytest.raises(ValueError, match="vectors of one length"):
        predicted_risk(values, targets[:3], 4)
    with pytest.raises(ValueError, match="not be negative"):
        predicted_risk(-values, targets, 4)
    with pytest.raises(ValueError, match="num_features must be positive"):
        predicted_risk(values, targets, 4, num_features=0)
    X = torch.randn(5, 2)
    with pytest.raises(ValueError, match="between 1 and 4"):
        generalisation_curve(RBFKernel(), X, X[:, 0], [5])
    with pytest.raises(ValueError, match="finite"):
        eigenstructure(RBFKernel(), X * float("nan"), X[:, 0])
