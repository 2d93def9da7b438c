"""Sliced Wasserstein distances against closed forms, and matches that need more than moments."""

import math

import pytest
import torch
from gpytorch.kernels import LinearKernel, RBFKernel
from torch.distributions import InverseGamma

from bayes.functional_prior import (
    MomentMatching,
    SlicedMatching,
    match_functional_prior,
    match_report,
)
from bayes.functional_prior.sliced import directions_like, sliced_wasserstein
from priors.functions import GaussianProcessPrior, ScaleMixturePrior
from priors.networks.finite import NetworkPrior


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2])
def test_normals_in_one_dimension(order):
    """W_p of N(0, 1) and N(m, s^2) with m = 0 is |s - 1| (E|Z|^p)^(1/p)."""
    size = 40_000
    one = torch.ones(1, 1, dtype=torch.float64)
    found = sliced_wasserstein(normals(size, 1), 3 * normals(2 * size, 1, seed=1), one, order=order)
    truth = 2 * (math.sqrt(2 / math.pi) if order == 1 else 1)
    # deviations of the sample standard deviations
    assert float(found) == pytest.approx(truth, abs=5 * 3 / math.sqrt(size))


def test_shifts_and_quantiles_are_exact():
    """The optimal coupling of equally many numbers pairs them in order."""
    f = torch.tensor([[3.0], [1.0], [2.0]])
    one = torch.ones(1, 1)
    assert float(sliced_wasserstein(f, f.flip(0) + 5, one)) == pytest.approx(5)
    assert float(sliced_wasserstein(f, f.repeat(4, 1), one)) == 0
    with pytest.raises(ValueError, match="multiple"):
        sliced_wasserstein(f, f[:2], one)


def test_gaussians_in_many_dimensions():
    """Along theta N(0, S) is N(0, theta' S theta): each has a closed form."""
    n, size = 3, 5000
    root = torch.tensor([[2.0, 0, 0], [1.0, 0.5, 0], [0, 0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    theta = directions_like(torch.zeros(n, 1, dtype=torch.float64), 50, generator)
    assert torch.allclose(theta.norm(dim=0), torch.ones(50, dtype=torch.float64))
    f, g = normals(size, n), normals(size, n, seed=1) @ root.mT
    truth = ((root.mT @ theta).norm(dim=0) - 1).square().mean().sqrt()
    assert float(sliced_wasserstein(f, g, theta)) == pytest.approx(float(truth), abs=0.06)


def test_the_variance_of_a_linear_network_is_found():
    kernel = LinearKernel()
    kernel.variance = 4.0
    start = NetworkPrior(torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False)), weight_var=0.5)
    X = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    method = SlicedMatching(num_functions=2000)
    matched = match_functional_prior(
        start, GaussianProcessPrior(kernel), X, method=method, num_restarts=1
    )
    # the deviation of a sample deviation is sd / sqrt(2 N)
    assert matched.variances.weight_var["0"].item() == pytest.approx(
        4.0, rel=5 * math.sqrt(2 / 2000)
    )
    assert start.variances.weight_var["0"].item() == 0.5


@pytest.mark.slow
def test_heavy_tails_are_matched_better_than_by_moments():
    """Constants with the law of a t of 4 degrees: their moments are those of a Gaussian bias."""
    kernel = RBFKernel()
    kernel.lengthscale = 100.0
    target = ScaleMixturePrior(kernel, InverseGamma(torch.tensor(2.0), torch.tensor(1.0)))
    module = torch.nn.Sequential(
        torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU(),
        torch.nn.Linear(4, 1),
    )  # fmt: skip
    start = NetworkPrior(module, weight_var=0.3, bias_var=1.0)
    X = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    methods = (MomentMatching(100, 2), SlicedMatching(num_functions=1000))
    matched = [
        match_functional_prior(start, target, X, method=method, num_restarts=1)
        for method in methods
    ]
    moments, sliced = (match_report(prior, target, X, num_functions=4000) for prior in matched)
    assert moments.tail_ratio < 0.75
    assert 1.15 * moments.tail_ratio < sliced.tail_ratio < 1
    assert sliced.distance < 0.7 * moments.distance


def test_targets_without_a_variance_have_a_distance_of_order_one():
    target = ScaleMixturePrior(RBFKernel(), InverseGamma(torch.tensor(0.8), torch.tensor(1.0)))
    start = NetworkPrior(torch.nn.Sequential(torch.nn.Linear(2, 1)), weight_var=1.0, bias_var=1.0)
    method = SlicedMatching(order=1, num_functions=500)
    matched = match_functional_prior(start, target, normals(5, 2), method=method, num_restarts=1)
    assert all(value.isfinite() for value in matched.variances.bias_var.values())
    with pytest.raises(ValueError, match="order 1 or 2"):
        SlicedMatching(order=3)


def test_it_repeats():
    start = NetworkPrior(torch.nn.Sequential(torch.nn.Linear(2, 1)), weight_var=1.0, bias_var=1.0)
    target = GaussianProcessPrior(RBFKernel())
    state = torch.random.get_rng_state()
    twice = [
        match_functional_prior(start, target, normals(4, 2).float(), method="sliced", seed=3)
        for _ in range(2)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    assert twice[0].variances.bias_var["0"] == twice[1].variances.bias_var["0"]
