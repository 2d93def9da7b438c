"""The network and the models it makes: invariances, units, files, BoTorch."""

import copy

import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.optim import optimize_acqf
from torch import nn

import pfn
from pfn import ArchitectureConfig, BarPosterior
from pfn.inference import PFN
from priors import LogExpectedImprovement
from priors.testing import ModelContract, PosteriorContract

SMALL = ArchitectureConfig(
    max_features=4, embedding=16, layers=3, heads=2, hidden=24, thinking_rows=3, bars=20
)


def random_network():
    """A random network in which every part matters: no output projection is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PFN(SMALL, torch.linspace(-2.5, 2.5, 21), tail_scale=0.7)
        for parameter in made.network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


@pytest.fixture
def network():
    return random_network()


def data(n, d=3, batch=(), dtype=torch.float64, seed=0, m=1):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(*batch, n, d, generator=generator, dtype=dtype)
    y = 3 + 2 * torch.randn(*batch, n, m, generator=generator, dtype=dtype)
    return X, y


class TestBarPosteriorContract(PosteriorContract):
    def make_posterior(self, dtype):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(3, 2, 1, 12, generator=generator, dtype=torch.float64).to(dtype)
        borders = torch.tensor([-3, -2, -1.2, -0.5, -0.1, 0, 0.3, 0.8, 1.5, 2, 4], dtype=dtype)
        return BarPosterior(pfn.BarDistribution(borders, tail_scale=0.6), logits)

    def test_density_integrates_to_one_and_is_the_derivative_of_the_cdf(self):
        # Trapezia are no good for a density that jumps; its cdf has an exact derivative.
        posterior = self.make_posterior(torch.float64)
        points = torch.cat([torch.linspace(-9.97, 9.97, 301), torch.tensor([-1e8, 1e8])])
        for y in points.double():
            values = y.expand(3, 2, 1).clone().requires_grad_()
            total = posterior.cdf(values)
            (slope,) = torch.autograd.grad(total.sum(), values)
            torch.testing.assert_close(slope, posterior.log_prob(values).exp())
        torch.testing.assert_close(total, torch.ones_like(total))  # at 1e8
        assert (posterior.cdf(torch.full((3, 2, 1), -1e8).double()) < 1e-12).all()


def answers(model, X):
    posterior = model.posterior(X, observation_noise=True)
    return torch.stack([posterior.mean, posterior.variance, posterior.quantile(torch.tensor(0.9))])


class TestModelContract(ModelContract):
    def make_model(self, dtype):
        return random_network().condition(*data(12, dtype=dtype))

    def make_X(self, dtype):
        return data(4, batch=(3,), dtype=dtype, seed=1)[0]

    def test_noise_widens(self):
        pytest.skip("two separate heads: in a random network neither is wider by construction")


def test_order_of_the_context_does_not_matter(network):
    X, y = data(20)
    Q, _ = data(7, seed=1)
    order = torch.randperm(20)
    torch.testing.assert_close(
        answers(network.condition(X[order], y[order]), Q), answers(network.condition(X, y), Q)
    )
    # and the context does matter
    assert (
        answers(network.condition(X, -y), Q) - answers(network.condition(X, y), Q)
    ).abs().max() > 0.1


def test_queries_do_not_see_each_other(network):
    X, y = data(9)
    Q, _ = data(6, seed=1)
    model = network.condition(X, y)
    torch.testing.assert_close(answers(model, Q)[:, :1], answers(model, Q[:1]))


def test_a_padded_context_equals_the_unpadded(network):
    X, y = data(5, batch=(2,))
    Q, _ = data(4, batch=(2,), seed=1)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 5:] = False
    padding_X, padding_y = data(3, batch=(2,), seed=2)
    full = network.encode(
        torch.cat([X, 9 * padding_X], 1), torch.cat([y, padding_y], 1)[..., 0], mask
    )
    own = network.encode(X, y[..., 0])
    torch.testing.assert_close(full.location, own.location)
    torch.testing.assert_close(full.scale, own.scale)
    for a, b in zip(
        network.network.decode(full.context, Q), network.network.decode(own.context, Q), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_zero_features_slots_equal_missing_ones_only_with_the_same_count(network):
    X, y = data(6, d=2)
    wide = torch.cat([X, torch.zeros_like(X)], dim=-1)
    Q, _ = data(3, d=2, seed=1)
    a = network.condition(X, y, input_transform=None)
    b = network.condition(wide, y, input_transform=None)
    difference = answers(a, Q) - answers(b, torch.cat([Q, torch.zeros_like(Q)], -1))
    assert difference.abs().max() > 1e-3  # the network is told how many features there are


@pytest.mark.parametrize("observation_noise", [True, False])
def test_affine_equivariance_under_the_default_transforms(network, observation_noise):
    X, y = data(12)
    Q, _ = data(5, seed=1)
    one = network.condition(X, y).posterior(Q, observation_noise=observation_noise)
    two = network.condition(100 + 7 * X, 5 - 0.01 + 30 * y).posterior(
        100 + 7 * Q, observation_noise=observation_noise
    )
    torch.testing.assert_close(two.mean, 5 - 0.01 + 30 * one.mean)
    torch.testing.assert_close(two.variance, 900 * one.variance)
    y_test = one.mean + 0.3
    log_jacobian = torch.tensor(30.0, dtype=torch.float64).log()
    torch.testing.assert_close(
        two.log_prob(5 - 0.01 + 30 * y_test), one.log_prob(y_test) - log_jacobian
    )


def test_density_in_units_of_y_integrates_to_one_and_has_the_stated_mean(network):
    X, y = data(15)
    Q, _ = data(2, seed=1)
    posterior = network.condition(X, y).posterior(Q, observation_noise=True)
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    density = posterior.log_prob(grid[:, None, None]).exp()
    step = grid[1] - grid[0]
    torch.testing.assert_close(density.sum(0) * step, torch.ones(2, 1).double(), rtol=1e-3, atol=0)
    mean = (density * grid[:, None, None]).sum(0) * step
    torch.testing.assert_close(mean, posterior.mean, rtol=2e-3, atol=2e-3)


def test_batches_of_data_sets_and_of_queries_equal_loops(network):
    X, y = data(8, batch=(2, 3))
    Q, _ = data(5, batch=(4, 1, 3), seed=1)
    together = answers(network.condition(X, y), Q)
    assert together.shape == (3, 4, 2, 3, 5, 1)
    for i in range(2):
        for j in range(3):
            one = answers(network.condition(X[i, j], y[i, j]), Q[:, 0, j])
            torch.testing.assert_close(together[:, :, i, j], one)


def test_several_outputs_equal_one_by_one(network):
    X, y = data(8, m=3)
    Q, _ = data(5, seed=1)
    model = network.condition(X, y)
    together = answers(model, Q)
    for k in range(3):
        torch.testing.assert_close(
            together[..., k : k + 1], answers(network.condition(X, y[:, k]), Q)
        )
    chosen = model.posterior(Q, output_indices=[2, 0], observation_noise=True)
    torch.testing.assert_close(chosen.mean, together[0][..., [2, 0]])


def test_query_chunks_do_not_change_anything(network):
    X, y = data(8)
    Q, _ = data(50, seed=1)
    model = network.condition(X, y)
    expected = answers(model, Q)
    model._rows_at_once = 7
    torch.testing.assert_close(answers(model, Q), expected)


def test_an_empty_context_gives_the_prior(network):
    X, y = data(0)
    Q, _ = data(5, seed=1)
    posterior = network.condition(X, y).posterior(Q)
    assert posterior.mean.shape == (5, 1)
    assert posterior.variance.isfinite().all()
    torch.testing.assert_close(
        network.units(y[None, :, 0])[0], torch.full((1, 1), network.prior_location).double()
    )


def test_appending_equals_conditioning_on_all_under_the_same_transforms(network):
    X, y = data(10)
    Q, _ = data(4, seed=1)
    model = network.condition(X[:7], y[:7], input_transform=None, outcome_transform=None)
    whole = network.condition(X, y, input_transform=None, outcome_transform=None)
    torch.testing.assert_close(
        answers(model.condition_on_observations(X[7:], y[7:]), Q), answers(whole, Q)
    )
    batched = model.condition_on_observations(X[7:].expand(2, 3, 3), y[7:].expand(2, 3, 1))
    assert batched.batch_shape == (2,)
    torch.testing.assert_close(answers(batched, Q)[:, 1], answers(whole, Q))


def test_gradients_in_queries(network):
    X, y = data(6)
    Q = data(2, seed=1)[0].requires_grad_()
    model = network.condition(X, y)

    def moments(x):
        posterior = model.posterior(x)
        return posterior.mean, posterior.variance

    torch.autograd.gradcheck(moments, Q)
    assert not any(p.requires_grad for p in model.parameters())


def test_dtype_follows_the_data(network):
    X, y = data(6, dtype=torch.float32)
    single = network.condition(X, y)
    assert single.posterior(X).mean.dtype == torch.float32
    double = network.condition(X.double(), y.double())
    torch.testing.assert_close(
        answers(single, X).double(), answers(double, X.double()), rtol=1e-3, atol=1e-3
    )
    assert next(network.parameters()).dtype == torch.float64
    with pytest.raises(TypeError, match="convert"):
        single.posterior(X.double())


@pytest.mark.parametrize("maximize", [True, False])
def test_expected_improvement_in_optimize_acqf(network, maximize):
    X, y = data(12)
    model = network.condition(X, y)
    best = y.max() if maximize else y.min()
    acquisition = LogExpectedImprovement(model, best_f=best, maximize=maximize)
    bounds = torch.tensor([[-2.0] * 3, [2.0] * 3], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidate, value = optimize_acqf(acquisition, bounds, q=1, num_restarts=3, raw_samples=32)
    grid = 4 * torch.rand(500, 1, 3, dtype=torch.float64) - 2
    assert value >= acquisition(grid).max() - 0.05
    assert candidate.shape == (1, 3)


def test_monte_carlo_acquisition_agrees_with_the_closed_form(network):
    X, y = data(12)
    model = network.condition(X, y)
    grid = data(20, seed=3)[0][:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from botorch.sampling.get_sampler import get_sampler

        sampler = get_sampler(model.posterior(grid), torch.Size([4096]), seed=0)
        sampled = qLogExpectedImprovement(model, best_f=y.mean(), sampler=sampler)(grid)
    exact = LogExpectedImprovement(model, best_f=y.mean())(grid)
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0)


class TestFiles:
    def test_round_trip(self, network, tmp_path):
        network.metadata["note"] = {"a": [1, 2.5]}
        network.save(tmp_path / "net.safetensors")
        loaded = pfn.load(tmp_path / "net.safetensors")
        assert loaded.metadata == network.metadata
        X, y = data(6)
        Q, _ = data(3, seed=1)
        assert torch.equal(answers(loaded.condition(X, y), Q), answers(network.condition(X, y), Q))

    def test_unknown_name(self):
        with pytest.raises(FileNotFoundError, match="neither a file nor a shipped network"):
            pfn.load("no-such-network")

    def test_truncated_and_foreign_files(self, network, tmp_path):
        path = tmp_path / "net.safetensors"
        network.save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            pfn.load(path)
        path.write_bytes(b"PK\x03\x04 a pickle in a zip")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            pfn.load(path)

    def test_a_file_that_lies_about_its_sizes(self, network, tmp_path):
        wrong = copy.deepcopy(network)
        wrong.architecture = ArchitectureConfig(max_features=7)
        wrong.save(tmp_path / "net.safetensors")
        with pytest.raises(ValueError, match="does not hold the network it describes"):
            pfn.load(tmp_path / "net.safetensors")

    def test_unwritable_folder_leaves_nothing(self, network, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            network.save(tmp_path / "nowhere" / "net.safetensors")
        assert list(tmp_path.iterdir()) == []


class TestBadInput:
    def test_messages(self, network):
        X, y = data(5)
        with pytest.raises(ValueError, match="NaN"):
            network.condition(X, y * float("nan"))
        with pytest.raises(ValueError, match="same rows"):
            network.condition(X, y[:3])
        with pytest.raises(ValueError, match="this network takes 1 to 4"):
            network.condition(torch.cat([X, X], -1), y)
        with pytest.raises(TypeError, match="must agree"):
            network.condition(X, y.float())
        with pytest.raises(ValueError, match=r"\[..., q, 3\]"):
            network.condition(X, y).posterior(X[:, :2])

    def test_a_context_beyond_training_warns(self, network):
        X, y = data(5)
        network.metadata["max_context"] = 4
        with pytest.warns(UserWarning, match="up to 4 context rows and got 5"):
            network.condition(X, y)

    def test_appending_is_checked_like_conditioning(self, network):
        X, y = data(5)
        model = network.condition(X, y)
        with pytest.raises(TypeError, match="got X in torch.float32"):
            model.condition_on_observations(X.float(), y.float())
        with pytest.raises(ValueError, match="3 columns of X and got 2"):
            model.condition_on_observations(X[:, :2], y)
        with pytest.raises(ValueError, match="1 columns of Y and got 2"):
            model.condition_on_observations(X, torch.cat([y, y], -1))
        model.pfn.metadata["max_context"] = 9
        with pytest.warns(UserWarning, match="up to 9 context rows and got 10"):
            model.condition_on_observations(X, y)

    def test_architecture(self):
        with pytest.raises(ValueError, match="divide"):
            ArchitectureConfig(embedding=10, heads=3)
        with pytest.raises(ValueError, match="thinking_rows"):
            ArchitectureConfig(thinking_rows=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(network):
    X, y = data(6)
    Q, _ = data(3, seed=1)
    expected = answers(network.condition(X, y), Q)
    torch.testing.assert_close(
        answers(network.condition(X.cuda(), y.cuda()), Q.cuda()).cpu(), expected
    )
