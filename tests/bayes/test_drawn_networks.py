"""Draws are functions: further rows by weights, sample paths, blocks to a memory budget."""

import copy

import numpy as np
import pytest
import torch
from botorch.acquisition import qKnowledgeGradient
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.pathwise import get_matheron_path_model
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import BayesianNetwork, MeanField
from bayes.inference.draws import Draws
from priors import NetworkPrior

FAST = MeanField(num_steps=10, num_draws=12, progress=False)
pytestmark = pytest.mark.usefixtures("without_graphs")  # fits are of a few steps


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(outputs=1, likelihood="gaussian", fit=True, **settings):
    X = normals(15, 2)
    Y = X[:, :1].sin() + torch.arange(outputs) + 0.1 * normals(15, outputs, seed=1)
    if likelihood == "categorical":
        Y = (X[:, :1] > 0).double()
    elif likelihood == "poisson":
        Y = Y.exp().round()
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, max(outputs, 1)))
    model = BayesianNetwork(X, Y, NetworkPrior(module), likelihood=likelihood, **settings)
    return model.fit(FAST) if fit else model


def linear(size=8_000):
    """A linear network with independent draws of its posterior, which is conjugate."""
    X, noise = normals(10, 2), 0.25
    Y = X @ torch.tensor([[1.0], [-0.5]], dtype=torch.float64) + noise**0.5 * normals(10, 1, seed=1)
    prior = NetworkPrior(nn.Linear(2, 1, bias=False), weight_var=2.0)
    model = BayesianNetwork(
        X,
        Y,
        prior,
        train_Yvar=torch.full_like(Y, noise),
        input_transform=None,
        outcome_transform=None,
    )
    eye = torch.eye(2, dtype=torch.float64)

    def posterior(X, Y):
        precision = X.T @ X / noise + eye
        covariance = torch.linalg.inv(precision)
        return covariance @ X.T @ Y[:, 0] / noise, covariance

    mean, covariance = posterior(X, Y)
    root = torch.linalg.cholesky(covariance)
    eps = mean + normals(size, 2, seed=2) @ root.T
    model._keep(Draws({"eps": eps[None]}, {}))
    return model, posterior


def test_a_further_row_gives_the_conjugate_posterior():
    model, posterior = linear()
    X, Y = normals(1, 2, seed=3), torch.tensor([[0.7]], dtype=torch.float64)
    queries = normals(4, 2, seed=4)
    conditioned = model.condition_on_observations(X, Y)
    mean, covariance = posterior(torch.cat([model.train_X, X]), torch.cat([model.train_Y, Y]))
    found = conditioned.posterior(queries)
    truth, variance = queries @ mean, (queries @ covariance * queries).sum(-1)
    size = float(conditioned.effective_draws)
    assert 1e3 < size < 8_000
    assert ((found.mean[:, 0] - truth).abs() < 4.5 * (variance / size).sqrt()).all()
    assert ((found.variance[:, 0] / variance - 1).abs() < 4.5 * (2 / size) ** 0.5).all()
    assert conditioned.pareto_shape < 0.7
    # y has the noise that is known, and another row may follow
    y = conditioned.posterior(queries, observation_noise=True)
    assert torch.allclose(y.variance, found.variance + 0.25)
    expected = model.posterior(queries).mean
    twice = model.condition_on_observations(torch.cat([X, queries]), torch.cat([Y, expected]))
    later = conditioned.condition_on_observations(queries, expected)
    assert torch.allclose(later.log_weights, twice.log_weights)
    precise = model.condition_on_observations(X, Y, noise=torch.full_like(Y, 2.5))
    assert float(precise.effective_draws) > size


@pytest.mark.fast_for("gaussian", "categorical")
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t", "poisson", "categorical"])
def test_batches_of_rows_are_a_loop(likelihood):
    model = network(2, likelihood)
    X = normals(3, 1, 2, seed=5)
    m = model.train_Y.shape[-1]
    Y = normals(4, 3, 1, m, seed=6)
    if likelihood != "gaussian":
        Y = (Y > 0).double()
    with _quietly():
        batch = model.condition_on_observations(X, Y)
        queries = normals(3, 5, 2, seed=7)
        assert batch.batch_shape == (4, 3)
        assert batch.effective_draws.shape == (4, 3)
        y = batch.posterior(queries, observation_noise=True)
        f = batch.posterior(queries)
        for i in range(4):
            for j in range(3):
                one = model.condition_on_observations(X[j], Y[i, j])
                assert torch.allclose(one.log_weights, batch.log_weights[:, i, j])
                own = one.posterior(queries[j], observation_noise=True)
                assert torch.allclose(own.mean, y.mean[i, j])
                assert torch.allclose(own.variance, y.variance[i, j])
                at = own.log_prob(torch.ones(5, m, dtype=torch.float64))
                every = y.log_prob(torch.ones(4, 3, 5, m, dtype=torch.float64))
                assert torch.allclose(at, every[i, j])
                functions = one.posterior(queries[j])
                assert torch.allclose(functions.variance, f.variance[i, j])
                if likelihood != "categorical":
                    p = torch.tensor([0.2, 0.9]).double()
                    assert torch.allclose(own.quantile(p), y.quantile(p)[:, i, j])
                    assert torch.equal(functions.quantile(p), f.quantile(p)[:, i, j])
        assert f.rsample(torch.Size([6])).shape == (6, 4, 3, 5, model.num_outputs)


class _quietly:
    """Twelve draws are few: warnings of that are not the matter here."""

    def __enter__(self):
        import warnings

        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.filterwarnings("ignore", "Further rows leave")

    def __exit__(self, *args):
        self.caught.__exit__(*args)


def test_samples_of_weighted_draws_follow_their_weights():
    model, _ = linear(50)
    batch = model.condition_on_observations(
        normals(2, 1, 2, seed=3), torch.tensor([[[0.5]], [[1.0]]], dtype=torch.float64)
    )
    f = batch.posterior(normals(3, 2, seed=4))
    assert f.mean.shape == (2, 3, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = f.rsample(torch.Size([20_000]))
    assert ((drawn.mean(0) - f.mean).abs() < 5 * (f.variance / 20_000).sqrt()).all()
    path = model.condition_on_observations(
        normals(1, 2, seed=3), torch.tensor([[0.5]], dtype=torch.float64)
    ).sample_path(torch.Size([20_000]), generator=torch.Generator().manual_seed(0))
    weights = batch.log_weights[:, 0].exp()
    share = path.index.bincount(minlength=50) / 20_000
    assert ((share - weights).abs() < 5 * (weights / 20_000).sqrt()).all()
    with pytest.raises(NotImplementedError, match="not of a batch"):
        batch.sample_path()
    with pytest.raises(ValueError, match="of one set of weights"):
        _ = batch.pareto_shape


def test_the_knowledge_gradient_has_gradients():
    model, _ = linear(300)
    acquisition = qKnowledgeGradient(model, num_fantasies=3)
    X = normals(2, 4, 2, seed=5).requires_grad_()
    value = acquisition(X)
    assert value.shape == (2,)
    (gradient,) = torch.autograd.grad(value.sum(), X)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] != 0).any()
    one = gradient[0, 0, 0]
    with torch.no_grad():
        step = torch.zeros_like(X)
        step[0, 0, 0] = 1e-6
        difference = (acquisition(X + step) - acquisition(X - step))[0] / 2e-6
    assert torch.allclose(one, difference, rtol=1e-4)


def test_fantasies_are_of_the_predictive_distribution():
    model, _ = linear(3000)
    X = normals(1, 2, seed=3)
    sampler = SobolQMCNormalSampler(torch.Size([64]), seed=0)
    fantasies = model.fantasize(X, sampler)
    assert fantasies.batch_shape == (64,)
    # Averaged over outcomes that it expects, a posterior is what it was.
    queries = normals(3, 2, seed=4)
    before, after = model.posterior(queries).mean, fantasies.posterior(queries).mean
    spread = after.std(0)
    assert ((after.mean(0) - before).abs() < 4 * spread / 8).all()
    assert (spread > 0).all()
    more = fantasies.fantasize(queries[:1], SobolQMCNormalSampler(torch.Size([2]), seed=1))
    assert more.batch_shape == (2, 64)
    assert more.subset_output([0]).posterior(queries).mean.shape == (2, 64, 3, 1)
    with pytest.raises(NotImplementedError, match="Fantasies are of values"):
        network(2, "categorical").fantasize(X, sampler)


def test_rows_that_say_too_much_are_told():
    model, _ = linear(1000)
    far = torch.full((1, 1), 30.0, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"leave \S+ effective of 1000 draws.* fit a"):
        conditioned = model.condition_on_observations(normals(1, 2, seed=3), far)
    assert "1,000 draws worth" in repr(conditioned)
    with pytest.raises(ValueError, match="Y of shape"):
        model.condition_on_observations(normals(1, 2), normals(1, 2))
    with pytest.raises(RuntimeError, match=r"call fit\(\)"):
        network(fit=False).condition_on_observations(normals(1, 2), normals(1, 1))


def test_weights_and_paths_are_of_the_draws_they_were_made_for():
    model = network()
    X, Y = normals(1, 2, seed=3), normals(1, 1, seed=4)
    with _quietly():
        conditioned, path = model.condition_on_observations(X, Y), model.sample_path()
        subset, copied = conditioned.subset_output([0]), copy.deepcopy(conditioned)
    before, at = conditioned.posterior(X).mean, path(X)
    model.float().double()  # moved, the draws are what they were
    assert torch.allclose(conditioned.posterior(X).mean, before, atol=1e-5)
    assert torch.allclose(path(X), at, atol=1e-5)
    model.fit(MeanField(num_steps=10, num_draws=12, progress=False, seed=5))
    for use in (
        lambda: conditioned.posterior(X),
        lambda: subset.posterior(X),
        lambda: conditioned.condition_on_observations(X, Y),
        lambda: conditioned.fantasize(X, SobolQMCNormalSampler(torch.Size([2]))),
        conditioned.sample_path,
        lambda: path(X),
    ):
        with pytest.raises(RuntimeError, match=r"made before the last fit\(\).* make it again"):
            use()
    assert torch.equal(copied.posterior(X).mean, before)  # has a model of its own
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"call fit\(\)"):
        path(X)


def test_further_outcomes_are_those_of_the_likelihood():
    X = normals(1, 2, seed=3)
    classes, counts = network(2, "categorical"), network(1, "poisson")
    for model, y, message in (
        (classes, 0.7, r"Categorical needs Y of class numbers 0, 1, ..., 1 .* got 0\.7"),
        (classes, 2.0, "Categorical needs Y of class numbers .* got 2 in 1 of 1"),
        (counts, 2.5, r"Poisson needs Y of counts .* got 2\.5"),
        (counts, -1.0, "Poisson needs Y of counts .* got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.condition_on_observations(X, torch.full((1, 1), y, dtype=torch.float64))
    with _quietly():
        for model in (classes, counts):
            found = model.condition_on_observations(X, torch.ones(1, 1, dtype=torch.long))
            truth = model.condition_on_observations(X, torch.ones(1, 1, dtype=torch.float64))
            assert torch.equal(found.log_weights, truth.log_weights)
    train_X = normals(15, 2)
    prior = NetworkPrior(nn.Linear(2, 1))
    positive = BayesianNetwork(
        train_X, train_X[:, :1].exp(), prior, outcome_transform=ExpTransform()
    ).fit(FAST)
    with pytest.raises(ValueError, match="outside the range of outcome_transform"):
        positive.condition_on_observations(X, -torch.ones(1, 1, dtype=torch.float64))


def test_further_rows_need_noise():
    model, X, Y = network(), normals(1, 2, seed=3), normals(1, 1, seed=4)
    with pytest.raises(ValueError, match=r"variances of 0 in noise\. Give noise > 0"):
        model.condition_on_observations(X, Y, noise=torch.zeros_like(Y))
    with pytest.raises(ValueError, match="No draw gives the further rows a likelihood above 0"):
        model.condition_on_observations(X, Y + 1e200)
    robust = network(1, "student_t")
    with pytest.raises(ValueError, match="^noise as variances .* is StudentT; omit it"):
        robust.condition_on_observations(X, Y, noise=torch.ones_like(Y))
    sampler = SobolQMCNormalSampler(torch.Size([2]), seed=0)
    with pytest.raises(ValueError, match="^observation_noise as variances .* omit it"):
        robust.fantasize(X, sampler, observation_noise=torch.ones_like(Y))
    with pytest.raises(ValueError, match="^observation_noise as .* use observation_noise=True"):
        robust.posterior(X, observation_noise=torch.ones_like(Y))


@pytest.mark.parametrize("batch", [3, 12])
def test_noise_may_have_a_batch(batch):
    model = network()  # of 12 draws, which a batch of 12 must not be taken for
    X = normals(8, 2, seed=3)
    noise = normals(batch, 8, 1, seed=4).exp()
    y, f = model.posterior(X, observation_noise=noise), model.posterior(X)
    assert torch.allclose(y.mean, f.mean.expand(batch, 8, 1))
    assert torch.allclose(y.variance, f.variance + noise)
    with _quietly():
        Y = model.train_Y[:1]
        several = model.condition_on_observations(X[:1], Y, noise=noise[:, :1])
        assert several.batch_shape == (batch,)
        for k in range(batch):
            one = model.condition_on_observations(X[:1], Y, noise=noise[k, :1])
            assert torch.allclose(several.log_weights[:, k], one.log_weights)
            y = one.posterior(X, observation_noise=noise)
            assert torch.allclose(y.variance, one.posterior(X).variance + noise)
        both = several.posterior(X, observation_noise=noise)
        assert torch.allclose(both.variance, several.posterior(X).variance + noise)
    for shape in ((2, 1), (4, 8, 1)):
        with pytest.raises(ValueError, match="observation_noise of shape .* the rows of X"):
            model.posterior(X.expand(3, 8, 2), observation_noise=torch.ones(shape))


@pytest.mark.parametrize("size", [10, 20, 30])
def test_few_draws_with_even_weights_give_no_warning(size):
    """Warnings are errors: below 26 draws, and with weights that tie, no Pareto shape is judged."""
    model, _ = linear(size)
    X = normals(1, 2, seed=3)
    noise = torch.full((1, 1), 1e3 if size < 26 else 1e200, dtype=torch.float64)
    found = model.condition_on_observations(X, torch.ones_like(noise), noise=noise)
    assert float(found.effective_draws) == pytest.approx(size, rel=1e-2)


def test_warnings_point_at_the_call():
    model, _ = linear(1000)
    X, far = normals(1, 2, seed=3), torch.full((1, 1), 30.0, dtype=torch.float64)
    mild = model.condition_on_observations(X, far / 30)
    draw = SobolQMCNormalSampler(torch.Size([1]), seed=0)
    small = torch.full((1, 1), 1e-9, dtype=torch.float64)
    for use in (
        lambda: model.condition_on_observations(X, far),
        lambda: mild.condition_on_observations(X, far),
        lambda: model.fantasize(X, draw, small),
        lambda: mild.fantasize(X, draw, small),
    ):
        with pytest.warns(UserWarning, match="Further rows leave") as told:
            use()
        assert told[0].filename == __file__


@pytest.mark.covering
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "categorical"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_paths_are_drawn_networks_in_units_of_y(outputs, likelihood):
    if likelihood == "categorical" and outputs == 1:
        pytest.skip("a classifier has an output for each class")
    model = network(outputs, likelihood)
    generator = torch.Generator().manual_seed(0)
    path = model.sample_path(torch.Size([5]), generator=generator)
    X = normals(3, 2, seed=5)
    draws = model.posterior(X).atoms[0]
    assert torch.allclose(path(X), draws[path.index])
    assert path(X).shape == (5, 3, model.num_outputs)
    # each at inputs of its own, and many batches of them
    own = normals(4, 5, 3, 2, seed=6)
    found = path(own)
    for k, index in enumerate(path.index):
        truth = model.posterior(own[:, k]).atoms[0][index]
        assert torch.allclose(found[:, k], truth)
    one = model.sample_path(generator=generator)
    assert one(X).shape == (3, model.num_outputs)
    assert torch.allclose(one.posterior(X).mean, one(X))
    again = model.sample_path(torch.Size([5]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.index, path.index)


@pytest.mark.parametrize(
    ("drawn", "batch"), [((1,), (5,)), ((3, 1), (4,)), ((3, 1), (2, 1, 4)), ((1, 2), (3, 1))]
)
def test_dimensions_of_size_one_broadcast(drawn, batch):
    model = network()
    path = model.sample_path(torch.Size(drawn), generator=torch.Generator().manual_seed(0))
    X = normals(*batch, 1, 2, seed=5)
    found = path(X)
    every = torch.broadcast_shapes(drawn, batch)
    assert found.shape == (*every, 1, 1)
    index, rows = path.index.expand(every), X.expand(*every, 1, 2)
    for where in np.ndindex(*every):
        truth = model.posterior(rows[where]).atoms[0][index[where]]
        assert torch.allclose(found[where], truth)


def test_paths_of_botorch():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, X = network(1), normals(3, 2, seed=5)
        path = get_matheron_path_model(model)
        draws = model.posterior(X).atoms[0]
        assert path(X).shape == (3, 1)
        assert (path(X) - draws).abs().amax((1, 2)).min() < 1e-9
        both = network(2)
        several = get_matheron_path_model(both, torch.Size([4]))
        assert several(X).shape == (4, 3, 2)
        draws = both.posterior(X).atoms[0]
        gaps = (several(X)[:, None] - draws).abs().amax((2, 3)).min(1).values
        assert (gaps < 1e-9).all()
        thompson = PathwiseThompsonSampling(model)
        candidates = normals(6, 2, 2, seed=7).requires_grad_()
        value = thompson(candidates)
        assert value.shape == (6,)
        assert torch.autograd.grad(value.sum(), candidates)[0].isfinite().all()


def test_paths_go_through_the_outcome_transform():
    X = normals(15, 2)
    prior = NetworkPrior(nn.Linear(2, 1))
    model = BayesianNetwork(X, X[:, :1].exp(), prior, outcome_transform=ExpTransform()).fit(FAST)
    path = model.sample_path(torch.Size([3]))
    assert (path(X) > 0).all()
    assert torch.allclose(path(X), model.posterior(X).atoms[0][path.index])


@pytest.mark.parametrize("max_bytes", [1, 2000, 5000, 20_000])
def test_blocks_are_the_whole_within_the_budget(max_bytes, monkeypatch):
    model = network(2)
    X = normals(3, 7, 2, seed=5)
    truth = model.functions_of_draws(X)
    model.max_bytes = max_bytes
    slopes = []
    for budget in (2**30, max_bytes):
        model.max_bytes = budget
        at = X.clone().requires_grad_()
        slopes += torch.autograd.grad(model.functions_of_draws(at).square().sum(), at)
    assert torch.allclose(*slopes)
    sizes = []
    plain = type(model.prior).apply_parameters

    def recorded(self, parameters, X):
        if parameters["0.weight"].dim() == 3:
            sizes.append((len(parameters["0.weight"]), X.shape[:-1].numel()))
        return plain(self, parameters, X)

    monkeypatch.setattr(type(model.prior), "apply_parameters", recorded)
    found = model.functions_of_draws(X)
    assert found.shape == (12, 3, 7, 2)
    assert torch.allclose(found, truth)
    per_pair = 8 * 2 * (2 + 4 + 4 + 2)  # twice the input and the outputs of three layers
    for networks, rows in sizes:
        assert networks * rows * per_pair <= max_bytes or networks * rows == 1
        assert networks * 22 * 8 <= max_bytes or networks == 1
    assert sum(networks * rows for networks, rows in sizes) == 12 * 21
    with pytest.raises(ValueError, match="max_bytes >= 1"):
        network(fit=False, max_bytes=0)


def test_draws_of_a_recurrent_network_in_blocks():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.RNN(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.last(self.cell(x)[0][:, -1])

    X = normals(6, 4)
    prior = NetworkPrior(Recurrent(), input_shape=(4, 1))
    model = BayesianNetwork(X, X[:, :1], prior).fit(FAST)
    truth = model.functions_of_draws(X)
    model.max_bytes = 3000
    assert np.allclose(model.functions_of_draws(X), truth)
