import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean

from bayes.functional_prior import match_functional_prior, match_quality
from priors.functions import GaussianProcessPrior
from priors.kernels.network import NNGPKernel
from priors.networks.finite import NetworkPrior


def shallow(activation, width=20, inputs=3):
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width), activation, torch.nn.Linear(width, 1)
    )


def inputs(n=40, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def rbf(lengthscale=3.0):
    kernel = ScaleKernel(RBFKernel())
    kernel.base_kernel.lengthscale = lengthscale
    kernel.outputscale = 1.0
    return GaussianProcessPrior(kernel)


@pytest.mark.parametrize("activation", [torch.nn.GELU(), torch.nn.LeakyReLU(0.3)])
def test_known_variances_are_recovered(activation):
    true = NetworkPrior(
        shallow(activation), weight_var={"0": 2.0, "2": 0.7}, bias_var={"0": 0.5, "2": 0.2}
    )
    target = GaussianProcessPrior(
        NNGPKernel(
            shallow(activation, width=3),
            weight_var={"0": 2.0, "2": 0.7},
            bias_var={"0": 0.5, "2": 0.2},
        )
    )
    start = NetworkPrior(shallow(activation), weight_var=1.0, bias_var=1.0)
    matched = match_functional_prior(start, target, inputs())
    quality = match_quality(matched, target, inputs(30, seed=1))
    assert quality.covariance_error < 1e-4
    assert quality.wasserstein < 1e-2
    if isinstance(activation, torch.nn.GELU):  # leaky ReLUs identify only products
        for kind in ("weight_var", "bias_var"):
            found, truth = getattr(matched.variances, kind), getattr(true.variances, kind)
            for layer in ("0", "2"):
                assert found[layer].item() == pytest.approx(truth[layer].item(), rel=1e-2)
    assert all(value == 1 for value in start.variances.weight_var.values())


def test_matching_an_rbf_process_improves_held_out_moments_of_the_finite_network():
    start = NetworkPrior(shallow(torch.nn.GELU(), width=4), weight_var=1.0, bias_var=1.0)
    target = rbf()
    matched = match_functional_prior(
        start, target, lambda generator: torch.randn(40, 3, generator=generator), num_sets=2
    )
    X = inputs(12, seed=1)
    before, after = match_quality(start, target, X), match_quality(matched, target, X)
    assert after.covariance_error < 0.25 * before.covariance_error
    # The claim is about the network at its own, small width: check it by drawing networks.
    generator = torch.Generator().manual_seed(0)
    size = 40_000
    f = matched.sample(X, torch.Size([size]), generator=generator)[..., 0].double()
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    error = products.std(0) / size**0.5
    limit = NNGPKernel(shallow(torch.nn.GELU()), bias_var=1.0)
    for kind in ("weight_var", "bias_var"):
        for layer, value in getattr(matched.variances, kind).items():
            getattr(limit.network.variances, kind)[layer] = value.detach()
    with torch.no_grad():
        kernel = limit.double()(X).to_dense()
    assert ((products.mean(0) - kernel).abs() < 5 * error).all()


def test_result_repeats_and_global_generator_is_left_alone():
    start = NetworkPrior(shallow(torch.nn.ReLU()), weight_var=1.0, bias_var=1.0)
    state = torch.random.get_rng_state()
    first = match_functional_prior(start, rbf(), inputs(20), seed=3)
    second = match_functional_prior(start, rbf(), inputs(20), seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_quality_of_a_perfect_and_a_scaled_match():
    module = shallow(torch.nn.ReLU())
    prior = NetworkPrior(module, weight_var=1.0, bias_var=0.5)
    X = inputs()
    same = GaussianProcessPrior(NNGPKernel(module, weight_var=1.0, bias_var=0.5))
    perfect = match_quality(prior, same, X)
    assert perfect.covariance_error < 1e-12
    # Square roots of rounding errors near zero eigenvalues remain.
    assert perfect.wasserstein < 1e-3
    fourfold = ScaleKernel(NNGPKernel(module, weight_var=1.0, bias_var=0.5))
    fourfold.outputscale = 4.0
    quality = match_quality(prior, GaussianProcessPrior(fourfold), X)
    assert quality.covariance_error == pytest.approx(0.75, rel=1e-5)
    assert quality.variance_error == pytest.approx(0.75, rel=1e-5)
    assert quality.wasserstein == pytest.approx(0.5, rel=1e-3)


def test_what_has_no_closed_form_is_refused():
    prior = NetworkPrior(shallow(torch.nn.ReLU()), weight_var=1.0, bias_var=1.0)
    deep = torch.nn.Sequential(*shallow(torch.nn.ReLU()), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    with pytest.raises(NotImplementedError, match="3 layers of weights"):
        match_functional_prior(NetworkPrior(deep, bias_var=1.0), rbf(), inputs())
    with pytest.raises(NotImplementedError, match="3 layers of weights"):
        match_quality(NetworkPrior(deep, bias_var=1.0), rbf(), inputs())
    with pytest.raises(NotImplementedError, match="wasserstein"):
        match_functional_prior(prior, rbf(), inputs(), method="wasserstein")
    mean = ConstantMean()
    mean.constant = 1.0
    with pytest.raises(NotImplementedError, match="has a mean"):
        match_functional_prior(prior, GaussianProcessPrior(RBFKernel(), mean), inputs())
    with pytest.raises(NotImplementedError, match="GaussianProcessPrior"):
        match_functional_prior(prior, RBFKernel(), inputs())
    with pytest.raises(ValueError, match="float matrix"):
        match_functional_prior(prior, rbf(), inputs()[None])
