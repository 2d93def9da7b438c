"""The limits against wide finite networks, and `NetworkPrior`.

Monte Carlo estimates carry their standard error; a finite width n adds a bias of order 1/n to
the NTK, allowed for as `bias / width` with a constant fixed beforehand.
"""

import pytest
import torch
from torch import nn

from priors import InfiniteNetwork, NetworkPrior

WIDTH = 256
UNITS = 16  # of the output, over which products are averaged too


class Recurrent(nn.Module):
    """A recurrent network over a constant input: every step uses the same weights."""

    def __init__(self, width=WIDTH, steps=3):
        super().__init__()
        self.u, self.w = nn.Linear(3, width), nn.Linear(width, width, bias=False)
        self.readout, self.steps = nn.Linear(width, UNITS), steps

    def forward(self, x):
        h = torch.relu(self.u(x))
        for _ in range(self.steps):
            h = torch.relu(self.w(h) + self.u(x))
        return self.readout(h)


class Branches(nn.Module):
    """Correlated branches of different nonlinearities that meet again, twice."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.hidden, self.readout = (
            nn.Linear(3, width),
            nn.Linear(width, width),
            nn.Linear(width, UNITS),
        )

    def forward(self, x):
        h = self.first(x)
        a = 1.5 * h + torch.tanh(h) - 0.5 * torch.relu(h)
        b = self.hidden(a)
        return self.readout(torch.relu(b + h) + torch.erf(h - b) + b)


class TwoPaths(nn.Module):
    """x + x through two paths: the sum is 2x, not a sum of independent copies."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.readout = nn.Linear(3, width), nn.Linear(width, UNITS)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.readout(h + nn.functional.dropout(h, 0.5, training=False))


class SharedReadout(nn.Module):
    """One readout applied to two depths and averaged."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.hidden, self.readout = (
            nn.Linear(3, width),
            nn.Linear(width, width),
            nn.Linear(width, UNITS),
        )

    def forward(self, x):
        h1 = torch.tanh(self.first(x))
        h2 = torch.tanh(self.hidden(h1))
        return (self.readout(h1) + self.readout(h2)) / 2


def plain():
    layers = [
        nn.Linear(3, WIDTH),
        nn.GELU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, UNITS),
    ]
    return nn.Sequential(*layers)


NETWORKS = [Recurrent, Branches, TwoPaths, SharedReadout, plain]


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("make", NETWORKS)
def test_nngp_is_the_covariance_of_wide_networks(make, x):
    prior = NetworkPrior(make(), weight_var=1.5, bias_var=0.1)
    with torch.no_grad():
        exact = InfiniteNetwork(prior).nngp(x)
        f = prior.sample(x, torch.Size([300]), generator=torch.Generator().manual_seed(0))
        assert f.shape == (300, 4, UNITS)
        products = f @ f.mT / UNITS
    error = products.std(0) / 300**0.5
    assert ((products.mean(0) - exact).abs() < 4 * error + 4 / WIDTH * exact.abs()).all()
    # what a system that takes the branches for independent would give is far outside
    assert (4 * error + 4 / WIDTH * exact.abs() < 0.3 * exact.diagonal().max()).all()


@pytest.mark.fast_for("Recurrent", "TwoPaths", "SharedReadout")
@pytest.mark.parametrize("make", NETWORKS)
def test_ntk_is_the_gradient_kernel_of_wide_networks(make, x):
    prior = NetworkPrior(make(), weight_var=1.5, bias_var=0.1)
    generator = torch.Generator().manual_seed(1)
    std = {name: s.detach().to(x) for name, s in prior.parameter_std().items()}
    estimates = []
    for _ in range(80):
        draw = {name: p.detach().to(x) for name, p in prior.draw(generator=generator).items()}
        jacobian = torch.func.jacrev(lambda p: prior.apply_parameters(p, x)[:, 0])(draw)
        # with respect to the standard normal weights of the NTK parametrisation
        rows = torch.cat([(jacobian[n] * std[n]).flatten(1) for n in jacobian], dim=1)
        estimates.append(rows @ rows.mT)
    estimate = torch.stack(estimates)
    exact = InfiniteNetwork(prior).ntk(x).detach()
    error = estimate.std(0) / len(estimates) ** 0.5
    assert ((estimate.mean(0) - exact).abs() < 4 * error + 8 / WIDTH * exact.abs()).all()
    assert (4 * error < 0.15 * exact.diagonal().max()).all()


def test_two_paths_give_four_times_the_kernel(x):
    single = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1, bias=False))
    doubled = InfiniteNetwork(TwoPaths(), weight_var=1.5, bias_var={"first": 0.1, "readout": 0.0})
    once = InfiniteNetwork(single, weight_var=1.5, bias_var={"0": 0.1})
    for a, b in zip(doubled.kernels(x), once.kernels(x), strict=True):
        torch.testing.assert_close(a, 4 * b)


def test_tying_matters_where_several_steps_are_read(x):
    class Steps(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.u, self.w = nn.Linear(3, 8), nn.Linear(8, 8)
            self.v = self.w if tied else nn.Linear(8, 8)
            self.readout = nn.Linear(8, 1)

        def forward(self, x):
            h = torch.relu(self.u(x))
            first = torch.relu(self.w(h))
            return self.readout(first) + self.readout(torch.relu(self.v(first)))

    tied = InfiniteNetwork(Steps(True), weight_var=1.5, bias_var=0.1)
    untied = InfiniteNetwork(Steps(False), weight_var=1.5, bias_var=0.1)
    for a, b in zip(tied.kernels(x), untied.kernels(x), strict=True):
        assert ((a - b).abs() > 0.02 * b.abs()).all()


class TestNetworkPrior:
    def test_shapes_and_reproducibility(self):
        prior = NetworkPrior(
            nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), bias_var=0.1
        )
        X = torch.randn(5, 4, 3)
        first = prior.sample(X, torch.Size([6, 7]), generator=torch.Generator().manual_seed(0))
        again = prior.sample(X, torch.Size([6, 7]), generator=torch.Generator().manual_seed(0))
        assert first.shape == (6, 7, 5, 4, 2)
        assert first.dtype == X.dtype
        assert torch.equal(first, again)
        assert prior.sample(X).shape == (5, 4, 2)

    def test_every_batch_element_is_a_drawn_network_at_its_own_rows(self):
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        prior = NetworkPrior(module, bias_var=0.1)
        X = torch.randn(2, 5, 4, 3)
        f = prior.sample(X, torch.Size([6]), generator=torch.Generator().manual_seed(0))
        draws = prior.draw(torch.Size([6, 2, 5]), generator=torch.Generator().manual_seed(0))
        for index in [(0, 0, 0), (0, 1, 2), (5, 1, 4)]:
            own = {name: value[index] for name, value in draws.items()}
            torch.testing.assert_close(f[index], prior.apply_parameters(own, X[index[1:]]))

    def test_apply_parameters_equals_the_module(self):
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        prior = NetworkPrior(module)
        X = torch.randn(4, 3)
        torch.testing.assert_close(
            prior.apply_parameters(dict(module.named_parameters()), X), module(X)
        )

    def test_standard_deviations_follow_the_variances(self):
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        prior = NetworkPrior(
            module, weight_var={"0": 3.0, "2": 2.0}, bias_var={"0": 0.0, "2": 0.25}
        )
        std = {name: s.item() for name, s in prior.parameter_std().items()}
        assert std == pytest.approx(
            {"0.weight": 1.0, "2.weight": 0.5, "0.bias": 0.0, "2.bias": 0.5}
        )
        std = prior.parameter_std()["0.weight"]
        std.backward()
        assert prior.variances.raw_weight_var_0.grad.item() == pytest.approx(0.5)

    def test_open_widths_and_unused_parameters_are_refused(self):
        with pytest.raises(ValueError, match="lazy"):
            NetworkPrior(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 1)))
        module = nn.Sequential(nn.Linear(3, 1))
        module.extra = nn.Parameter(torch.zeros(2))
        with pytest.raises(ValueError, match="'extra' does not belong to any layer"):
            NetworkPrior(module)


def deep(activation, depth=4, width=16):
    layers = [nn.Linear(3, width), activation]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation]
    return nn.Sequential(*layers, nn.Linear(width, 1))


@pytest.mark.parametrize(
    ("activation", "bias_var", "variance"),
    [
        (nn.ReLU(), 0.0, 1.0),
        (nn.GELU(), 0.1, 3.56155),
        pytest.param(nn.SiLU(), 0.1, 14.3202, marks=pytest.mark.slow),
    ],
)
def test_tuning_to_criticality(activation, bias_var, variance):
    network = InfiniteNetwork(deep(activation), weight_var=1.0, bias_var=bias_var)
    before = network.criticality()
    assert [layer.layer for layer in before] == ["2", "4", "6", "8"]
    assert max(layer.chi_perp for layer in before) < 0.9
    after = network.tune_to_criticality().criticality()
    for layer in after[:-1]:  # the readout is left alone
        assert layer.variance == pytest.approx(variance, rel=1e-4)
        assert layer.chi_parallel == pytest.approx(1.0, abs=1e-5)
        assert layer.chi_perp == pytest.approx(1.0, abs=1e-5)


def test_criticality_is_the_slope_of_the_kernel():
    network = InfiniteNetwork(deep(nn.Tanh(), depth=2), weight_var=1.7, bias_var=0.2)
    first, _ = network.criticality(input_variance=0.8)
    # chi_parallel = dK'/dK of the next layer's variance in this one's
    step = 1e-4
    variances = []
    for q in (0.8 - step, 0.8 + step):
        hidden = InfiniteNetwork(
            nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), weight_var=1.7, bias_var=0.2
        )
        x = torch.full((1, 3), q**0.5, dtype=torch.float64)
        variances.append(hidden.nngp(x, diag=True).item())
    slope = (variances[1] - variances[0]) / (2 * step * 1.7)
    assert first.chi_parallel == pytest.approx(slope, rel=1e-5)


def test_criticality_without_a_critical_point_or_bias():
    with pytest.raises(ValueError, match="positive bias_var"):
        InfiniteNetwork(deep(nn.GELU()), bias_var=0.0).tune_to_criticality()
    with pytest.raises(ValueError, match="critical"):
        InfiniteNetwork(deep(nn.Sigmoid()), bias_var=0.1).tune_to_criticality()


def test_maximal_update_scaling():
    def prior(width):
        module = nn.Sequential(
            nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        return NetworkPrior(module, weight_var=2.0, parameterization="mup", base_width=32)

    ntk = NetworkPrior(prior(32).module, weight_var=2.0)
    assert prior(32).parameter_std() == ntk.parameter_std()
    std = prior(128).parameter_std()
    assert std["4.weight"].item() == pytest.approx((2.0 * 32) ** 0.5 / 128)
    assert std["2.weight"].item() == pytest.approx((2.0 / 128) ** 0.5)
    adam, sgd = prior(128).learning_rates(), prior(128).learning_rates("sgd")
    assert [adam[f"{k}.weight"] for k in (0, 2, 4)] == [1.0, 0.25, 0.25]
    assert [sgd[f"{k}.weight"] for k in (0, 2, 4)] == [4.0, 1.0, 0.25]
    with pytest.raises(ValueError, match="mup"):
        ntk.learning_rates()


class Products(nn.Module):
    """The linear layers of another module written as x @ w, after an embedding of a class."""

    def __init__(self, width):
        super().__init__()
        self.v, self.w = nn.Parameter(torch.randn(3, width)), nn.Parameter(torch.randn(width, 1))
        self.token = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return torch.relu(x @ self.v + self.token) @ self.w


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_maximal_update_learning_rates_of_matrix_products_are_those_of_linear_layers(optimizer):
    linear = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 1, bias=False))
    options = {"parameterization": "mup", "base_width": 32}
    found = NetworkPrior(Products(128), **options).learning_rates(optimizer)
    expected = NetworkPrior(linear, **options).learning_rates(optimizer)
    assert found["v"] == expected["0.weight"] == (1.0 if optimizer == "adam" else 4.0)
    assert found["w"] == expected["2.weight"] == 0.25
    assert found["token"] == expected["0.bias"] == (1.0 if optimizer == "adam" else 4.0)


def test_maximal_update_learning_rates_of_embeddings():
    """Of an embedding's row as of a bias: 5 tokens have nothing to do with the width."""
    module = nn.Sequential(nn.Embedding(5, 128), nn.Flatten(), nn.Linear(2 * 128, 1))
    prior = NetworkPrior(module, parameterization="mup", base_width=32, input_shape=(2,))
    assert prior.learning_rates("sgd")["0.weight"] == 4.0
    assert prior.learning_rates()["0.weight"] == 1.0


def test_one_adam_step_moves_maximal_update_features_alike_at_all_widths():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    changes = {}
    for width in (64, 1024):
        module = nn.Sequential(
            nn.Linear(3, width, bias=False),
            nn.Tanh(),
            nn.Linear(width, width, bias=False),
            nn.Tanh(),
            nn.Linear(width, 1, bias=False),
        )
        prior = NetworkPrior(module, parameterization="mup", base_width=64)
        draw = prior.draw(generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(draw[name])
        rates = prior.learning_rates()
        groups = [
            {"params": [p], "lr": 0.01 * rates[name]} for name, p in module.named_parameters()
        ]
        before = module[:3](x).detach()
        optimizer = torch.optim.Adam(groups)
        (module(x) - 1.0).square().mean().backward()
        optimizer.step()
        changes[width] = (module[:3](x).detach() - before).square().mean().sqrt().item()
    assert 0.4 < changes[1024] / changes[64] < 2.5
    # without the factors the wider network would move about 16 times as much


def test_a_layer_under_two_names_keeps_its_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.r = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
            self.again = self.b

        def forward(self, x):
            return self.r(torch.tanh(self.again(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    module = Twice()
    before = module.b.weight
    NetworkPrior(module).sample(torch.randn(2, 3), torch.Size([2]))
    assert module.b.weight is before
    assert module.again.weight is before


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, nn.LSTMCell])
def test_recurrent_networks_that_torch_cannot_batch(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            options = {} if kind is nn.LSTMCell else {"batch_first": True}
            self.cells, self.readout = kind(2, 5, **options), nn.Linear(5, 1)

        def forward(self, x):
            if kind is nn.LSTMCell:
                return self.readout(self.cells(x[:, 0])[0])
            return self.readout(self.cells(x)[0][:, -1])

    prior = NetworkPrior(Recurrent(), input_shape=(3, 2))
    X = torch.randn(2, 4, 6)
    assert prior.sample(X, torch.Size([3])).shape == (3, 2, 4, 1)
    drawn = prior.draw(torch.Size([3]))
    found = prior.apply_parameters(drawn, X)
    for i in range(3):
        one = prior.apply_parameters({name: p[i] for name, p in drawn.items()}, X)
        torch.testing.assert_close(found[i], one)
