"""Factors of the training rows that a model keeps, and states loaded onto other rows.

The truth is a dense solve by NumPy at what the model says that its hyperparameters are.
"""

import copy

import gpytorch
import numpy as np
import pytest
import torch
from botorch.models.transforms.input import Normalize
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from linear_operator.operators import LinearOperator

from bayes import GaussianProcess, StudentTProcess
from bayes.caching import Snapshot
from priors import NNGPKernel
from priors.posteriors.transforms import TailCompression

PROCESSES = [GaussianProcess, StudentTProcess]


def rows(n=10, m=1, seed=0, stretch=1.0):
    generator = torch.Generator().manual_seed(seed)
    X = stretch * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin(3 * (k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    return X, 4 + stretch * Y + 0.1 * torch.randn(n, m, generator=generator, dtype=torch.float64)


Xs = rows(n=5, seed=7)[0]


def dense(model, queries=Xs):
    """Means `[q, m]` by NumPy, of the model's kernel between rows in its present units."""

    def array(value):
        return value.detach().double().numpy()

    X, Y = array(model.train_X), array(model.train_Y)
    transform, outcome = model.input_transform, model.outcome_transform
    offset, coefficient = array(transform.offset), array(transform.coefficient)
    loc, scale = array(outcome.loc), array(outcome.scale)
    X, queries = (X - offset) / coefficient, (array(queries) - offset) / coefficient
    Z = (Y - loc) / scale
    base = model.covar_module.base_kernel
    size, width = model.covar_module.outputscale.item(), base.lengthscale.item()

    def k(a, b):
        distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)) / width
        if isinstance(base, RBFKernel):
            return size * np.exp(-(distance**2) / 2)
        assert base.nu == 0.5
        return size * np.exp(-distance)

    noise = np.broadcast_to(array(model.likelihood.noise).reshape(-1), Z.shape[-1:])
    means = [
        k(queries, X) @ np.linalg.solve(k(X, X) + noise[j] * np.eye(len(X)), Z[:, j])
        for j in range(Z.shape[-1])
    ]
    return loc + scale * np.stack(means, -1)


def agrees(model, rtol=1e-6):
    np.testing.assert_allclose(model.posterior(Xs).mean.detach().numpy(), dense(model), rtol=rtol)


def make(process=GaussianProcess, m=1, **given):
    return process(*rows(m=m, **given), ScaleKernel(RBFKernel()))


def in_place(model):
    with torch.no_grad():
        model.covar_module.base_kernel.raw_lengthscale.add_(0.7)


def by_data(model):
    model.covar_module.base_kernel.raw_lengthscale.data = torch.full((1, 1), 0.9).double()


def by_optimiser(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    model.posterior(Xs).mean.sum().backward()
    optimiser.step()


def by_training(model):
    model.train()
    model.covar_module.outputscale = 2.5
    model.eval()


def by_part(model):
    state = ScaleKernel(RBFKernel()).double().state_dict()
    model.covar_module.load_state_dict({name: value + 0.4 for name, value in state.items()})


def another_kernel(model):
    made = ScaleKernel(MaternKernel(nu=0.5)).double()
    made.load_state_dict(model.covar_module.state_dict())
    model.covar_module = made


def another_outcome(model):
    model.outcome_transform.loc.add_(3.0)


def another_input(model):
    model.input_transform.load_state_dict(
        {name: 1.5 * value for name, value in model.input_transform.state_dict().items()}
    )


CHANGES = {
    "a property": lambda model: setattr(model.covar_module.base_kernel, "lengthscale", 0.3),
    "the scale": lambda model: setattr(model.covar_module, "outputscale", 3.0),
    "the noise": lambda model: setattr(model.likelihood, "noise", 0.4),
    "initialize": lambda model: model.initialize(**{"covar_module.base_kernel.lengthscale": 0.4}),
    "in place": in_place,
    "by data": by_data,
    "by an optimiser": by_optimiser,
    "in training mode": by_training,
    "a part's state": by_part,
    "another kernel": another_kernel,
    "a transform of outcomes": another_outcome,
    "a transform of inputs": another_input,
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_no_factor_outlives_what_it_was_made_of(process, m, change):
    model = make(process, m)
    before = model.posterior(Xs).mean
    CHANGES[change](model)
    agrees(model)
    assert not torch.allclose(model.posterior(Xs).mean, before)
    grown = model.condition_on_observations(*rows(n=3, m=m, seed=1))
    CHANGES[change](grown)
    agrees(grown)


def test_a_constant_of_a_kernel():
    model = GaussianProcess(*rows(), ScaleKernel(MaternKernel(nu=2.5)))
    model.posterior(Xs)
    model.covar_module.base_kernel.nu = 0.5
    agrees(model)


def test_variances_of_a_network():
    """Set in place, held, and by the prior's own constraint."""

    def kernel(variance, bias):
        network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        return NNGPKernel(network, weight_var={"0": variance, "2": 2.0}, bias_var=bias)

    X, Y = rows()
    model = GaussianProcess(X, Y, kernel(1.0, 0.1))
    for change, like in (
        (lambda v: v.weight_var.__setitem__("0", 3.0), (3.0, 0.1)),
        (lambda v: v.set("bias", "0", 0.7), None),
        (lambda v: v.hold("weight", "0", 0.5), None),
    ):
        before = model.posterior(Xs).mean
        change(model.covar_module.variances)
        found = model.posterior(Xs).mean
        assert not torch.allclose(found, before)
        fresh = GaussianProcess(X, Y, copy.deepcopy(model.covar_module))
        assert torch.allclose(found, fresh.posterior(Xs).mean)
        if like is not None:
            made = GaussianProcess(X, Y, kernel(*like)).posterior(Xs).mean
            assert torch.allclose(found, made)


def test_known_noise_set_on_the_likelihood():
    """Such as BoTorch sets; further rows and a warm start know of it."""
    X, Y = rows()
    model = GaussianProcess(X, Y, RBFKernel(), train_Yvar=torch.full_like(Y, 0.1))
    model.posterior(Xs)
    model.likelihood.noise_covar.noise = torch.full((10,), 0.8).double()

    whole = GaussianProcess(X, Y, RBFKernel(), train_Yvar=torch.full_like(Y, 0.8) * Y.var())
    assert torch.allclose(model.posterior(Xs).mean, whole.posterior(Xs).mean)
    more_X, more_Y = rows(n=3, seed=1)
    noise = torch.ones_like(more_Y)
    found, expected = (
        some.condition_on_observations(more_X, more_Y, noise=noise) for some in (model, whole)
    )
    assert torch.allclose(found.posterior(Xs).mean, expected.posterior(Xs).mean)
    assert torch.allclose(model.double().posterior(Xs).mean, whole.posterior(Xs).mean)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_factor_is_kept_as_long_as_nothing_changes(process):
    """Also from a network's kernel, of fantasies, and after a change of mode."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    for kernel in (ScaleKernel(RBFKernel()), NNGPKernel(network)):
        model = process(*rows(m=2), kernel)
        for some in (model, model.condition_on_observations(*rows(n=2, m=2, seed=1))):
            some.posterior(Xs)
            kept = some.prediction_strategy
            some.posterior(Xs[:1], observation_noise=True)
            with torch.no_grad():
                some.posterior(Xs.expand(3, 5, 2))
            some.eval()
            some.posterior(Xs.clone().requires_grad_()).mean.sum().backward()
            assert some.prediction_strategy is kept


def test_gradients_in_hyperparameters_when_asked_for():
    """A factor kept without a graph does not serve where the caller wants gradients through it."""
    model = make()
    model.posterior(Xs)
    raw = model.covar_module.base_kernel.raw_lengthscale

    def slope():
        with gpytorch.settings.detach_test_caches(False):
            model.eval()
            mean = model(model.transform_inputs(Xs)).mean
        return torch.autograd.grad(mean.sum(), raw)[0].item()

    found, again = slope(), slope()
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            raw.add_(step)
            values.append((dense(model) - model.outcome_transform.loc.numpy()).sum())
            raw.sub_(step)
    truth = (values[0] - values[1]) / 2e-5 / model.outcome_transform.scale.item()
    assert found == pytest.approx(truth, rel=1e-5)
    assert again == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("predicted", [True, False])
def test_a_warm_start(process, m, keep, predicted):
    """The loop of BoTorch's tutorials: a state onto more rows, of another size and place."""
    old = make(process, m)
    in_place(old)
    old.likelihood.noise = 0.02
    new = make(process, m, n=14, seed=1, stretch=5.0)
    own = copy.deepcopy(new)
    if predicted:
        new.posterior(Xs)
    new.load_state_dict(old.state_dict(), keep_transforms=keep)
    units = old if keep else own
    for transform in ("input_transform", "outcome_transform"):
        for name, value in getattr(units, transform).state_dict().items():
            assert torch.equal(getattr(new, transform).state_dict()[name], value)
    for name, value in old.covar_module.state_dict().items():
        assert torch.equal(new.covar_module.state_dict()[name], value)
    agrees(new)
    new.train()
    new.eval()
    agrees(new)


def test_a_loop_of_warm_starts_ends_where_a_fresh_fit_does():
    X, Y = rows(n=20, stretch=3.0)
    state = None
    for size in (10, 15, 20):
        model = GaussianProcess(X[:size], Y[:size], ScaleKernel(RBFKernel()))
        if state is not None:
            model.load_state_dict(state, keep_transforms=False)
        state = model.fit().state_dict()
    fresh = GaussianProcess(X, Y, ScaleKernel(RBFKernel())).fit()
    assert torch.allclose(model.posterior(Xs).mean, fresh.posterior(Xs).mean, rtol=1e-3)


def test_a_warm_start_with_other_transforms():
    """Those of a user are loaded like ours; one that is in no state stays."""
    X, Y = rows()
    more_X, more_Y = rows(n=14, seed=1, stretch=5.0)
    given = {"input_transform": Normalize(2)}
    old = GaussianProcess(X, Y, RBFKernel(), **given)
    new = GaussianProcess(
        more_X,
        more_Y,
        RBFKernel(),
        input_transform=Normalize(2),
        outcome_transform=TailCompression(more_Y),
    )
    with pytest.raises(RuntimeError, match="outcome_transform"):
        new.load_state_dict(old.state_dict())
    old = GaussianProcess(
        X,
        Y,
        RBFKernel(),
        input_transform=Normalize(2),
        outcome_transform=TailCompression(Y),
    )
    new.load_state_dict(old.state_dict())
    by_hand = GaussianProcess(
        old.input_transform(more_X),
        TailCompression(more_Y).inv(more_Y),
        RBFKernel(),
        input_transform=None,
        outcome_transform=None,
    )
    by_hand.likelihood.load_state_dict(old.likelihood.state_dict())
    half = torch.tensor(0.5, dtype=torch.float64)
    expected = TailCompression(more_Y)(by_hand.posterior(old.input_transform(Xs)).quantile(half))
    assert torch.allclose(new.posterior(Xs).quantile(half), expected)


def test_known_noise_follows_a_warm_start():
    X, Y = rows()
    more_X, more_Y = rows(n=14, seed=1, stretch=5.0)
    Yvar = 0.1 + torch.rand_like(more_Y)
    old = GaussianProcess(X, Y, RBFKernel(), train_Yvar=torch.full_like(Y, 0.3))
    new = GaussianProcess(more_X, more_Y, RBFKernel(), train_Yvar=Yvar)
    new.load_state_dict(old.state_dict())
    assert torch.allclose(new.likelihood.noise, Yvar[:, 0] / Y.var())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_other_rows_set(process, m):
    """In the units of the rows at construction."""
    model = make(process, m)
    model.posterior(Xs)
    X, Y = rows(m=m, seed=1)
    model.set_train_data(X, Y)
    agrees(model)
    more_X, more_Y = rows(n=13, m=m, seed=2)
    with pytest.raises(ValueError, match="strict=False"):
        model.set_train_data(more_X, more_Y)
    model.set_train_data((more_X,), more_Y, strict=False)
    agrees(model)
    model.set_train_data(targets=2 * more_Y)
    agrees(model)
    with pytest.raises(ValueError, match="NaN"):
        model.set_train_data(targets=torch.nan * more_Y)
    if m == 1:
        model.set_train_data(targets=3 * more_Y[:, 0])
        agrees(model)
    noisy = GaussianProcess(*rows(), RBFKernel(), train_Yvar=torch.ones(10, 1).double())
    with pytest.raises(ValueError, match="known noise for 10 rows"):
        noisy.set_train_data(*rows(n=12), strict=False)


@pytest.mark.parametrize("process", PROCESSES)
def test_moves_and_copies(process):
    """After a prediction: another dtype and back, a deep copy, and one of fantasies."""
    model = make(process, 2)
    model.posterior(Xs)
    narrow = copy.deepcopy(model).float()
    found = narrow.posterior(Xs.float()).mean
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), dense(model), rtol=1e-3)
    agrees(model)
    agrees(narrow.double(), rtol=1e-4)
    twin = copy.deepcopy(model)
    twin.covar_module.outputscale = 7.0
    agrees(twin)
    agrees(model)


def test_a_batch_of_hyperparameters_loaded():
    """GPyTorch's `load_strict_shapes(False)` would leave one data set for three kernels."""
    model = GaussianProcess(*rows(), RBFKernel())
    state = model.state_dict()
    state["covar_module.raw_lengthscale"] = torch.zeros(3, 1, 1, dtype=torch.float64)
    for strict in (True, False):
        model.load_strict_shapes(strict)
        with pytest.raises(ValueError, match=r"raw_lengthscale of shape \(3, 1, 1\)"):
            model.load_state_dict(state)
    X, Y = rows()
    batch = GaussianProcess(
        X.expand(3, 10, 2), Y.expand(3, 10, 1), RBFKernel(batch_shape=torch.Size([3]))
    )
    widths = torch.tensor([0.3, 0.9, 1.4], dtype=torch.float64)
    batch.posterior(Xs)
    batch.covar_module.lengthscale = widths.reshape(3, 1, 1)
    for k in range(3):
        one = GaussianProcess(X, Y, RBFKernel())
        one.covar_module.lengthscale = widths[k]
        assert torch.allclose(batch.posterior(Xs).mean[k], one.posterior(Xs).mean)
        assert torch.allclose(batch.posterior(Xs).variance[k], one.posterior(Xs).variance)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("queries", [1, 4])
def test_a_prediction_compares_the_model_once_and_asks_no_kernel_of_the_rows(
    process, queries, monkeypatch
):
    X, Y = rows()
    model = process(X, Y, ScaleKernel(MaternKernel(nu=0.5)))
    expected = model.posterior(Xs[:queries]).mean
    compared, asked = [], []
    holds, forward = Snapshot.holds, MaternKernel.forward

    def counted(self, modules):
        compared.append(modules)
        return holds(self, modules)

    def watched(self, x1, x2, **keywords):
        asked.append((x1.shape[-2], x2.shape[-2]))
        return forward(self, x1, x2, **keywords)

    monkeypatch.setattr(Snapshot, "holds", counted)
    monkeypatch.setattr(MaternKernel, "forward", watched)
    posterior = model.posterior(Xs[:queries])
    torch.testing.assert_close(posterior.mean, expected)
    assert posterior.variance.shape == (queries, 1)
    assert len(compared) == 1
    assert (len(X), len(X)) not in asked
    model.covar_module.outputscale = 5.0  # and what has changed counts, the jitter's unit too
    np.testing.assert_allclose(model.posterior(Xs).mean.detach().numpy(), dense(model))
    assert model._row_variance == pytest.approx(5.0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_no_matrix_but_the_root_is_kept(outputs):
    X, Y = rows(n=30, m=outputs)
    model = GaussianProcess(X, Y, ScaleKernel(RBFKernel()))
    with torch.no_grad():
        assert model.posterior(Xs).variance.shape == (5, outputs)
    kept, seen = [], set()
    left = [vars(model.prediction_strategy)]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            kept += [value] * (value.shape[-2:] == (30, 30))
        elif isinstance(value, dict | list | tuple):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, LinearOperator | MultivariateNormal):
            left.append(vars(value))
    assert len(kept) == 1
