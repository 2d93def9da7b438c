"""Length scales of inputs: the infinite, the finite and the sampled view of one prior agree."""

import copy
import math
import pickle

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import nn

from priors import (
    EmpiricalNTKKernel,
    FunctionTaskPrior,
    InfiniteNetwork,
    NetworkPrior,
    NNGPKernel,
    NTKKernel,
    random_features,
)
from priors.testing import KernelContract

WIDTH = 256
UNITS = 16  # of the output, over which products are averaged too
SCALES = torch.tensor([0.5, 1.0, 4.0])


def mlp(width=8, inputs=3, units=1):
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, units),
    )


def rows(n=5, d=3, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Branches(nn.Module):
    """Two layers read the input, and one of them meets the other behind a nonlinearity."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.skip = nn.Linear(3, width), nn.Linear(3, width)
        self.hidden, self.readout = nn.Linear(width, width), nn.Linear(width, UNITS)

    def forward(self, x):
        h = self.hidden(torch.relu(self.first(x))) + self.skip(x)
        return self.readout(torch.erf(h))


class Tokens(nn.Module):
    """A sequence of tokens, averaged."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.embed, self.readout = nn.Linear(3, width), nn.Linear(width, UNITS)

    def forward(self, x):
        return self.readout(torch.relu(self.embed(x)).mean(1))


def image(width=WIDTH):
    return nn.Sequential(
        nn.Conv2d(3, width, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, UNITS),
    )


class TestScaledNNGPKernel(KernelContract):
    def make_kernel(self):
        kernel = NNGPKernel(mlp(), ard_num_dims=3)
        kernel.lengthscale = SCALES
        return kernel


class TestScaledNTKKernel(KernelContract):
    def make_kernel(self):
        kernel = NTKKernel(mlp(), ard_num_dims=3)
        kernel.lengthscale = SCALES
        return kernel


@pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])
def test_inputs_are_divided_by_the_length_scales(kind):
    plain, scaled = kind(mlp()), kind(mlp(), ard_num_dims=3)
    scaled.lengthscale = SCALES
    assert scaled.lengthscale.shape == (1, 3)
    x, z = rows(), rows(4, seed=1)
    for a, b in ((x, x), (x, z)):
        expected = plain(a / SCALES, b / SCALES).to_dense()
        torch.testing.assert_close(scaled(a, b).to_dense(), expected)
    torch.testing.assert_close(scaled(x, diag=True), plain(x / SCALES, diag=True))


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [(Tokens, (4, 3), -1), (image, (3, 3, 3), -3)],
    ids=["token features", "channels"],
)
def test_positions_share_the_scales_of_their_features(make, shape, axis):
    plain = InfiniteNetwork(make(4), input_shape=shape)
    scaled = InfiniteNetwork(make(4), input_shape=shape, ard_num_dims=3)
    scaled.variances.input_scale.lengthscale = SCALES
    x = rows(3, math.prod(shape))
    full = SCALES.reshape(-1, *[1] * (-1 - axis)).expand(shape).reshape(-1)
    torch.testing.assert_close(scaled.nngp(x), plain.nngp(x / full))
    torch.testing.assert_close(NNGPKernel(scaled)(x).to_dense(), plain.nngp(x / full))


def test_every_entry_of_an_image_can_have_a_scale():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 1))
    kernel = NNGPKernel(network, input_shape=(3, 2, 2), ard_num_dims=12)
    kernel.lengthscale = torch.linspace(0.5, 2.0, 12)
    x = rows(4, 12)
    expected = NNGPKernel(network, input_shape=(3, 2, 2))(x / kernel.lengthscale.double())
    torch.testing.assert_close(kernel(x).to_dense(), expected.to_dense(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: mlp(WIDTH, units=UNITS), None),
        (Branches, None),
        (Tokens, (4, 3)),
        (image, (3, 3, 3)),
    ],
    ids=["mlp", "branches", "tokens", "image"],
)
def test_wide_networks_have_the_covariance_of_the_limit(make, shape):
    """Two-sided, by Monte Carlo with its standard error and a bias of order 1 / width."""
    prior = NetworkPrior(make(), ard_num_dims=3, input_shape=shape)
    prior.variances.input_scale.lengthscale = SCALES
    x = rows(4, 3 if shape is None else math.prod(shape))
    with torch.no_grad():
        exact = InfiniteNetwork(prior).nngp(x)
        f = prior.sample(x, torch.Size([250]), generator=torch.Generator().manual_seed(0))
        unscaled = InfiniteNetwork(make(), input_shape=shape).nngp(x)
    products = f @ f.mT / UNITS
    allowed = 4 * products.std(0) / 250**0.5 + 4 / WIDTH * exact.abs()
    assert ((products.mean(0) - exact).abs() < allowed).all()
    assert ((unscaled - exact).abs() > allowed).any()  # without scales it would be seen


def test_the_empirical_tangent_kernel_sees_scaled_inputs():
    module = mlp(16)
    prior = NetworkPrior(module, ard_num_dims=3)
    prior.variances.input_scale.lengthscale = SCALES
    weights = prior.draw(generator=torch.Generator().manual_seed(0))
    x = rows()
    scaled = EmpiricalNTKKernel(prior, parameters=weights)(x).to_dense()
    plain = EmpiricalNTKKernel(NetworkPrior(module), parameters=weights)(x / SCALES).to_dense()
    torch.testing.assert_close(scaled, plain)


def test_random_features_see_scaled_inputs():
    chain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    network = InfiniteNetwork(chain, ard_num_dims=3)
    network.variances.input_scale.lengthscale = SCALES
    plain = InfiniteNetwork(chain)
    x = rows()
    made = [
        random_features(n, 64, generator=torch.Generator().manual_seed(0)) for n in (network, plain)
    ]
    torch.testing.assert_close(made[0](x), made[1](x / SCALES))


def test_tasks_draw_length_scales():
    prior = FunctionTaskPrior(
        _process(NNGPKernel(mlp(), ard_num_dims=3)),
        inputs=torch.distributions.Normal(torch.zeros(3), torch.ones(3)),
        num_points=6,
        noise_var=0.01,
        hyperprior={
            "lengthscale": torch.distributions.Independent(
                torch.distributions.LogNormal(torch.zeros(1, 3), torch.ones(1, 3)), 2
            )
        },
    )
    task = prior.sample(4, generator=torch.Generator().manual_seed(0))
    drawn = task.latents["lengthscale"]
    assert drawn.shape == (4, 1, 3)
    assert len(drawn.unique()) == 12


def _process(kernel):
    from priors import GaussianProcessPrior

    return GaussianProcessPrior(kernel)


class TestGPyTorchConventions:
    def test_the_first_layer_s_weight_variance_is_held(self):
        kernel = NNGPKernel(mlp(), ard_num_dims=3)
        names = {name.rsplit(".", 1)[-1] for name, _ in kernel.named_parameters()}
        assert "raw_lengthscale" in names
        assert "raw_weight_var_0" not in names
        assert "raw_weight_var_2" in names
        several = InfiniteNetwork(Branches(4), ard_num_dims=3).variances
        assert not several.is_learnt("weight", "first")
        assert several.is_learnt("weight", "skip")  # its ratio to the first is identified

    def test_batches(self):
        kernel = NTKKernel(mlp(), ard_num_dims=3, batch_shape=torch.Size([2]))
        kernel.lengthscale = torch.stack([SCALES, SCALES.flip(0)])[:, None]
        assert kernel.lengthscale.shape == (2, 1, 3)
        x = rows()
        together = kernel(x).to_dense()
        for k, scales in enumerate((SCALES, SCALES.flip(0))):
            expected = NTKKernel(mlp())(x / scales).to_dense()
            torch.testing.assert_close(together[k], expected)
            torch.testing.assert_close(kernel[k](x).to_dense(), expected)
        assert kernel[1].lengthscale.shape == (1, 3)
        grown = NNGPKernel(mlp(), ard_num_dims=3).expand_batch(torch.Size([4, 2]))
        assert grown.lengthscale.shape == (4, 2, 1, 3)
        assert grown(x).shape == (4, 2, 5, 5)

    def test_prior_and_constraint_are_exchangeable(self):
        kernel = NNGPKernel(mlp(), ard_num_dims=3)
        assert isinstance(kernel.lengthscale_prior, LogNormalPrior)
        kernel.register_prior("lengthscale_prior", GammaPrior(3.0, 6.0), "lengthscale")
        found = [p for n, _, p, _, _ in kernel.named_priors() if n.endswith("lengthscale_prior")]
        assert len(found) == 1
        assert isinstance(found[0], GammaPrior)
        kernel.register_constraint("raw_lengthscale", GreaterThan(0.1))
        kernel.lengthscale = 2.0
        torch.testing.assert_close(kernel.lengthscale, torch.full((1, 3), 2.0))
        kernel.initialize(lengthscale=0.7)
        torch.testing.assert_close(kernel.lengthscale, torch.full((1, 3), 0.7))

    def test_copies_pickles_and_state(self):
        kernel = NNGPKernel(mlp(), ard_num_dims=3)
        kernel.lengthscale = SCALES
        fresh = NNGPKernel(mlp(), ard_num_dims=3)
        fresh.load_state_dict(kernel.state_dict())
        for same in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel)), fresh):
            torch.testing.assert_close(same.lengthscale, kernel.lengthscale)

    def test_active_dims_and_scale_kernels(self):
        kernel = ScaleKernel(NNGPKernel(mlp(), ard_num_dims=3, active_dims=(4, 0, 2)))
        kernel.base_kernel.lengthscale = SCALES
        kernel.outputscale = 2.0
        x = rows(4, 5)
        expected = 2 * NNGPKernel(mlp())(x[:, [4, 0, 2]] / SCALES).to_dense()
        torch.testing.assert_close(kernel(x).to_dense(), expected)

    def test_gradients(self):
        kernel = NNGPKernel(mlp(), ard_num_dims=3).double()
        x = rows(3)

        def total(raw):
            scale = kernel.variances.input_scale
            return (
                torch.func.functional_call(
                    kernel.network, {"variances.input_scale.raw_lengthscale": raw}, (x,)
                ).sum()
                + 0 * scale.raw_lengthscale.sum()
            )

        class Nngp(InfiniteNetwork):
            def forward(self, x):
                return self.nngp(x)

        kernel.network.__class__ = Nngp
        raw = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(total, (raw,))

    def test_sharing_with_finite_networks(self):
        prior = NetworkPrior(mlp(), ard_num_dims=3)
        kernel = NNGPKernel(prior)
        kernel.lengthscale = SCALES
        torch.testing.assert_close(prior.variances.input_scale.lengthscale[0], SCALES)


class TestErrors:
    def test_a_wrong_number_of_features(self):
        with pytest.raises(ValueError, match=r"ard_num_dims is 4.*3 features; give 3"):
            NNGPKernel(mlp(), ard_num_dims=4)
        with pytest.raises(ValueError, match="or 27 for each entry"):
            NNGPKernel(image(4), input_shape=(3, 3, 3), ard_num_dims=5)
        lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1))
        with pytest.raises(ValueError, match="ard_num_dims must be the number of features"):
            InfiniteNetwork(lazy, ard_num_dims=4).nngp(rows())
        with pytest.raises(ValueError, match="positive number of features"):
            NNGPKernel(mlp(), ard_num_dims=0)

    def test_tokens_have_no_scale(self):
        class Words(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.readout = nn.Embedding(5, 4), nn.Linear(4, 1)

            def forward(self, x):
                return self.readout(torch.relu(self.embed(x)).mean(1))

        with pytest.raises(ValueError, match="tokens have no scale"):
            NNGPKernel(Words(), input_shape=(3,), ard_num_dims=3)

    def test_a_kernel_without_scales(self):
        kernel = NNGPKernel(mlp())
        assert kernel.lengthscale is None
        with pytest.raises(AttributeError, match="ard_num_dims"):
            kernel.lengthscale = 1.0
        with pytest.raises(ValueError, match="shares its variances"):
            NNGPKernel(InfiniteNetwork(mlp()), ard_num_dims=3)
        scaled = NNGPKernel(mlp(), ard_num_dims=3)
        with pytest.raises(ValueError, match="positive and finite"):
            scaled.lengthscale = -1.0
