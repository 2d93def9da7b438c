"""Every kernel, prior and posterior on the GPU against the CPU.

What is random is drawn from a generator of the CPU, whose numbers are the same for all devices.
"""

import math

import gpytorch
import pytest
import torch
from torch import nn
from torch.distributions import ExpTransform, Gamma, InverseGamma, LogNormal

from priors import (
    AnnealedSampler,
    EmpiricalNTKKernel,
    GaussianPosterior,
    GaussianProcessPrior,
    InfiniteDepthClassifier,
    InfiniteNetwork,
    MixturePosterior,
    NetworkPrior,
    NNGPKernel,
    NTKKernel,
    QuasiMonteCarlo,
    RandomFeatureKernel,
    ScaleMixturePrior,
    TailCompression,
    TransformedPosterior,
    UniversalFeatures,
    batch_kernel,
    empirical_ntk,
    generalisation_curve,
    linearize,
    monte_carlo_kernels,
    plot_generalisation_curve,
    plot_prior,
    prior_summary,
    random_features,
    score,
)
from priors.functions import draw
from priors.gaussian.activations import Erf
from priors.kernels.linearisation import LinearizedModule
from priors.kernels.random_features import feature_error
from priors.networks.criticality import susceptibilities
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.transforms import DEFAULT, make_input_transform, make_outcome_transform
from priors.random_state import seeded


def generator():
    return torch.Generator().manual_seed(0)


def randn(*shape, device, dtype=torch.float64, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(device, dtype)


def mlp(activation=None, outputs=1, dtype=torch.float64):
    with seeded(0):
        module = nn.Sequential(
            nn.Linear(3, 8),
            activation or nn.Tanh(),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, outputs),
        )
    return module.to(dtype)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.RNN(3, 8, batch_first=True, nonlinearity="relu")
        self.readout = nn.Linear(8, 1)

    def forward(self, x):
        return self.readout(self.cells(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(2, 8)
        self.positions = nn.Parameter(torch.zeros(3, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.readout = nn.Linear(8, 1)

    def forward(self, x):
        return self.readout(self.block(self.embedding(x) + self.positions).mean(1))


NETWORKS = {
    "tanh": (mlp, (3,)),
    "gelu, elu": (
        lambda: nn.Sequential(
            nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 1)
        ),
        (3,),
    ),
    "normalisation": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)),
        (3,),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 1),
        ),
        (1, 4, 4),
    ),
    "recurrent": (Recurrent, (2, 3)),
    "transformer": (Transformer, (3, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_kernels_and_their_gradients(agrees, name):
    make, shape = NETWORKS[name]

    def compute(device, dtype):
        with seeded(0):
            module = make().to(dtype).eval()
        network = InfiniteNetwork(
            module, bias_var=0.1, input_shape=shape, quadrature=QuasiMonteCarlo(64)
        ).to(device)
        x = randn(4, math.prod(shape), device=device, dtype=dtype)
        kernels = network.kernels(x)
        parameters = [p for p in network.parameters() if p.requires_grad]
        yield from kernels
        yield from network.kernels(x[:2], x[2:])
        yield network.ntk(x, diag=True)
        yield from torch.autograd.grad(sum(k.sum() for k in kernels), parameters)

    agrees(compute, *([torch.float64] if name == "transformer" else []))


@pytest.mark.parametrize("kernel", [NNGPKernel, NTKKernel])
def test_gpytorch_kernels(agrees, kernel):
    def compute(device, dtype):
        made = kernel(mlp(nn.ReLU()), bias_var=0.1, batch_shape=torch.Size([2]))
        made.to(device, dtype)
        x = randn(5, 3, device=device, dtype=dtype)
        yield made(x).to_dense()
        yield made(x, x[:2]).to_dense()
        yield made(x, diag=True)
        yield made[0](x).to_dense()

    agrees(compute)


def test_kernel_in_blocks(agrees, monkeypatch):
    monkeypatch.setattr("priors.limits.evaluation._CACHE_BLOCK", 4)
    monkeypatch.setattr("priors.limits.evaluation._GPU_BLOCK", 4)

    def compute(device, dtype):
        network = InfiniteNetwork(mlp(), bias_var=0.1).to(device)
        x = randn(7, 3, device=device, dtype=dtype)
        with torch.no_grad():
            yield from network.kernels(x)
        yield network.nngp(x)

    agrees(compute)


def test_kernel_spread_over_devices(device):
    """Blocks made on other devices than the inputs' come back to these."""
    x = randn(700, 3, device=torch.device("cpu"))
    network = InfiniteNetwork(mlp(), bias_var=0.1)
    spread = InfiniteNetwork(mlp(), bias_var=0.1, devices=[device, "cpu"])
    with torch.no_grad():
        torch.testing.assert_close(spread.nngp(x), network.nngp(x))


def test_kernel_of_a_batch(agrees):
    def compute(device, dtype):
        module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        x = randn(4, 3, device=device, dtype=dtype)
        yield batch_kernel(module, x, bias_var=0.1, quadrature=QuasiMonteCarlo(64))

    agrees(compute)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_random_features(agrees, kind):
    def compute(device, dtype):
        network = InfiniteNetwork(
            nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), bias_var=0.1
        ).to(device)
        features = random_features(network, 16, kind=kind, generator=generator())
        x = randn(5, 3, device=device, dtype=dtype)
        yield features(x)  # although the map is still on the CPU
        kernel = RandomFeatureKernel(features).to(device)
        yield kernel(x).to_dense()
        yield kernel(x, x[:2]).to_dense()

    agrees(compute)


def test_universal_features(agrees):
    def compute(device, dtype):
        made = UniversalFeatures(3, 24, max_norm=6.0, bias_var=0.1, generator=generator())
        x, weight = randn(5, 3, device=device, dtype=dtype), randn(4, 3, device=device, dtype=dtype)
        bias = randn(4, device=device, dtype=dtype, seed=1) / 10
        for features in (made, made.to(device)):
            yield features(x)
            yield features.layer(x, weight, bias)

    agrees(compute)


def test_features_take_a_generator_of_the_device(device):
    network = InfiniteNetwork(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
    source = torch.Generator(device).manual_seed(0)
    for kind in ("nngp", "ntk"):
        features = random_features(network, 16, kind=kind, generator=source)
        assert {b.device.type for b in features.buffers()} == {"cpu"}
    features = UniversalFeatures(3, 24, max_norm=6.0, generator=source)
    assert {b.device.type for b in features.buffers()} == {"cpu"}


def test_feature_error(device):
    kernel = NNGPKernel(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))).to(device)

    def make(size, source):
        return random_features(kernel.network, size, generator=source)

    found = feature_error(make, kernel, randn(5, 3, device=device), [8, 16], repeats=2)
    assert found.error.isfinite().all()


def test_empirical_tangent_kernels(agrees):
    def compute(device, dtype):
        module = mlp(outputs=2, dtype=dtype).to(device)
        parameters = dict(module.named_parameters())
        x, z = (
            randn(4, 3, device=device, dtype=dtype),
            randn(3, 3, device=device, dtype=dtype, seed=1),
        )
        for method in ("jacobian_contraction", "ntk_vector_products"):
            yield empirical_ntk(module, parameters, x, z, method=method)
            yield empirical_ntk(module, parameters, x, output="mean", diag=True, method=method)
        yield EmpiricalNTKKernel(module, bias_var=0.1).to(device)(x).to_dense()
        yield (
            EmpiricalNTKKernel(mlp(dtype=dtype), parameterization="standard")
            .to(device)(x, z)
            .to_dense()
        )
        drawn = NetworkPrior(mlp(dtype=dtype), bias_var=0.1)
        weights = drawn.draw(torch.Size([2]), generator=generator())
        batch = EmpiricalNTKKernel(drawn, parameters=weights).to(device, dtype)
        yield batch(x).to_dense()
        yield batch[1](x).to_dense()
        moved = {name: p + 0.1 for name, p in parameters.items()}
        yield linearize(module, parameters)(moved, x)
        yield LinearizedModule(module).to(device)(x)

    agrees(compute)


def test_monte_carlo_kernels(agrees):
    def compute(device, dtype):
        prior = NetworkPrior(mlp(), bias_var=0.1).to(device)
        x = randn(4, 3, device=device, dtype=dtype)
        found = monte_carlo_kernels(prior, x, num_networks=3, generator=generator())
        yield from (found.nngp, found.nngp_error, found.ntk, found.ntk_error)

    agrees(compute)


def test_criticality(agrees, device):
    def compute(device, dtype):
        variance = torch.tensor([0.5, 1.0], device=device, dtype=dtype)
        yield from susceptibilities(torch.tanh, variance, 1.5)

    agrees(compute)
    here, there = (InfiniteNetwork(mlp(), bias_var=0.1).to(where) for where in ("cpu", device))
    for a, b in zip(here.criticality(), there.criticality(), strict=True):
        assert b.chi_perp == pytest.approx(a.chi_perp, rel=1e-6)
    rectifier = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 1))
    tuned = InfiniteNetwork(rectifier).to(device).tune_to_criticality()
    assert all(v.device == device for v in tuned.variances.state_dict().values())


@pytest.mark.parametrize(
    "activation",
    [pytest.param(torch.tanh, marks=pytest.mark.slow), Erf(), torch.relu, lambda x: x**2 - 1],
)
def test_infinite_depth(agrees, activation, monkeypatch):
    monkeypatch.setattr("priors.networks.infinite_depth._InterpolatedKernel._NODES", 31)
    classifier = InfiniteDepthClassifier(activation)

    def compute(device, dtype):
        X, new = (
            randn(8, 3, device=device, dtype=dtype),
            randn(4, 3, device=device, dtype=dtype, seed=1),
        )
        classifier.fit(X, (X[:, 0] > 0).long())
        yield classifier.decision(new)
        yield classifier.predict(new)

    agrees(compute)


def test_learning_curve(agrees, device):
    def curve(device, dtype):
        X = randn(10, 3, device=device, dtype=dtype)
        kernel = NNGPKernel(mlp(nn.ReLU()), bias_var=0.1).to(device)
        return generalisation_curve(
            kernel, X, X[:, :1].sin(), [2, 5], ridge=0.1, repeats=2, generator=generator()
        )

    def compute(device, dtype):
        found = curve(device, dtype)
        yield from (found.test, found.test_error, found.train, found.sizes)
        yield from (found.predicted.test, found.predicted.train)

    agrees(compute)
    plot_generalisation_curve(curve(device, torch.float64))


def test_prior_summary(agrees, device):
    kernel = gpytorch.kernels.RBFKernel()
    made = [
        InfiniteNetwork(mlp(nn.ReLU()), bias_var=0.1),
        kernel,
        NetworkPrior(mlp(), bias_var=0.1),
    ]
    for prior in made:

        def compute(device, dtype, prior=prior):
            found = prior_summary(
                prior.to(device), num_functions=3, domain=(0.5, 3.0), generator=generator()
            )
            yield from (found.position, found.correlation, found.frequency)
            assert found.functions.device == device

        agrees(compute, torch.float64)
    plot_prior(made[0].to(device), num_functions=3, generator=generator())
    inputs = torch.ones(3, dtype=torch.float64)  # wherever the prior lies
    assert prior_summary(made[0].to(device), num_functions=2, direction=inputs).functions.is_cpu


def test_function_priors(agrees, device):
    def compute(device, dtype):
        X = randn(2, 4, 3, device=device, dtype=dtype)
        kernel = NNGPKernel(mlp(nn.ReLU()), bias_var=0.1)
        moved = NNGPKernel(mlp(nn.ReLU()), bias_var=0.1).to(device)
        size = torch.Size([3])
        for k in (kernel, moved):
            yield GaussianProcessPrior(k).sample(X, size, generator=generator())
        prior = ScaleMixturePrior(kernel, LogNormal(torch.tensor(0.0), torch.tensor(1.0)))
        yield prior.sample(X, size, generator=generator())
        for network in (
            NetworkPrior(mlp(), bias_var=0.1),
            NetworkPrior(mlp(), bias_var=0.1).to(device),
        ):
            yield network.sample(X, size, generator=generator())

    agrees(compute)
    X, source = randn(4, 3, device=device), torch.Generator(device)
    priors = [
        GaussianProcessPrior(NNGPKernel(mlp(), bias_var=0.1)),
        ScaleMixturePrior(NNGPKernel(mlp(), bias_var=0.1), gamma(device)),
        NetworkPrior(mlp(), bias_var=0.1),
    ]
    for prior in priors:
        first, second = (prior.sample(X, generator=source.manual_seed(1)) for _ in range(2))
        assert first.device == device
        assert torch.equal(first, second)


def gamma(device):
    return Gamma(torch.tensor(2.0, device=device), torch.tensor(1.0, device=device))


def test_draws_from_distributions_leave_global_randomness_alone(device):
    inverse = InverseGamma(torch.tensor(2.0, device=device), torch.tensor(1.0, device=device))
    for distribution in (gamma(device), inverse, gpytorch.priors.GammaPrior(2.0, 1.0).to(device)):
        with seeded(3, device):
            expected = torch.rand(2, device=device), torch.rand(2)
        with seeded(3, device):
            first, second = (
                draw(distribution, torch.Size([4]), generator=generator()) for _ in "ab"
            )
            assert torch.equal(torch.rand(2, device=device), expected[0])
            assert torch.equal(torch.rand(2), expected[1])
        assert first.device == device
        assert torch.equal(first, second)


def test_transforms(agrees):
    def compute(device, dtype):
        X, Y = (
            randn(9, 3, device=device, dtype=dtype),
            randn(9, 1, device=device, dtype=dtype, seed=1),
        )
        for transform in (make_outcome_transform(DEFAULT, Y), TailCompression(Y)):
            z = transform.inv(Y)
            yield from (z, transform(z), transform.log_abs_det_jacobian(z, Y))
        yield make_input_transform(DEFAULT, X)(X)

    agrees(compute)


def posteriors(device, dtype):
    mean, root = (
        randn(4, device=device, dtype=dtype),
        randn(4, 4, device=device, dtype=dtype, seed=1),
    )
    eye = torch.eye(4, device=device, dtype=dtype)
    gaussian = gpytorch.distributions.MultivariateNormal(mean, root @ root.mT + eye)
    means, variances = (randn(5, 4, 1, device=device, dtype=dtype, seed=k) for k in (2, 3))
    mixture = GaussianMixturePosterior(means, variances.exp())
    return {
        "gaussian": GaussianPosterior(gaussian),
        "mixture of gaussians": mixture,
        "draws": EmpiricalPosterior(means),
        "pool": MixturePosterior([GaussianPosterior(gaussian), GaussianPosterior(gaussian)]),
        "exponential": TransformedPosterior(GaussianPosterior(gaussian), ExpTransform()),
        "tails": TransformedPosterior(GaussianPosterior(gaussian), TailCompression(means[0])),
    }


@pytest.mark.parametrize("name", posteriors(torch.device("cpu"), torch.float64))
def test_posteriors(agrees, device, name):
    def compute(device, dtype):
        posterior = posteriors(device, dtype)[name]
        y = randn(4, 1, device=device, dtype=dtype, seed=4).abs() + 0.1
        yield from (posterior.mean, posterior.variance, posterior.cdf(y))
        yield posterior.quantile(torch.tensor([0.2, 0.9], device=device, dtype=dtype))
        yield posterior.quantile(torch.tensor(0.4))
        base = randn(3, *posterior.base_sample_shape, device=device, dtype=dtype, seed=5)
        yield posterior.rsample_from_base_samples(torch.Size([3]), base)
        if name != "draws":
            yield posterior.log_prob(y)
        for best in (0.4, y.new_tensor(0.4)):
            yield posterior.log_excess(best, 0)
            if name != "exponential":
                yield posterior.log_excess(best, 1)

    agrees(compute)
    posterior = posteriors(device, torch.float64)[name]
    assert posterior.rsample(torch.Size([2])).device == device
    if name != "draws":
        assert math.isfinite(score(posterior, posterior.mean).nlpd)


def test_annealed_sampler(device):
    """Of a standard normal with a normal likelihood: a mean of 1/2 and a known evidence."""

    def program(draws, rows):
        return {"level": draws.normal(rows)}

    def log_likelihood(latents):
        return -0.5 * (latents["level"] - 1).square()

    sampler = AnnealedSampler(particles=128, moves=2, final_moves=5)
    latents, evidence = sampler.run(program, log_likelihood, 2, device=device)
    assert latents["level"].device == evidence.device == device
    assert latents["level"].mean().item() == pytest.approx(0.5, abs=0.25)
    assert evidence.mean().item() == pytest.approx(-0.25 - math.log(2) / 2, abs=0.25)


def test_seeding_of_a_device(device):
    with seeded(0, device):
        first = torch.rand(2, device=device), torch.rand(2)
        with seeded(1, device):
            torch.rand(2, device=device)
        rest = torch.rand(2, device=device)
    with seeded(0, device):
        again = torch.rand(2, device=device), torch.rand(2)
        assert torch.equal(torch.rand(2, device=device), rest)
    assert all(map(torch.equal, first, again))
