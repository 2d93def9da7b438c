"""Deep kernel machines against exact processes, dense formulas and brute-force optimisation."""

import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel
from scipy.optimize import minimize
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import DeepKernelMachine, GaussianProcess
from bayes.deep_kernel_machine.gram_kernels import GramKernel
from priors import NNGPKernel
from priors.random_state import seeded
from priors.testing import ModelContract

LAYERS = ["relu", nn.GELU(), "squared exponential"]


def data(n=9, m=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([4 + 3 * torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    Y = Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X.to(dtype), Y.to(dtype)


def machine(X, Y, layers=2, **options):
    """With variances of its own."""
    model = DeepKernelMachine(X, Y, layers=layers, **options).double()
    for k, kernel in enumerate(model.layers.kernels()):
        kernel.set("weight_var", 1.5 + 0.2 * k)
        kernel.set("bias_var", 0.2)
    return model


def perturbed(model, size=0.3):
    """As some fit might leave it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in model._factors():
            entries = factor.entries
            entries += size * torch.randn(entries.shape, generator=generator, dtype=entries.dtype)
    return model


class TestDeepKernelMachine(ModelContract):
    def make_model(self, dtype):
        X, Y = data(m=2, dtype=dtype)
        return perturbed(DeepKernelMachine(X, Y, layers=LAYERS, num_inducing=6))

    def make_X(self, dtype):
        return data(6, dtype=dtype, seed=1)[0].reshape(2, 3, 2)


def process(X, Y, layers):
    """The Gaussian process of the infinitely wide network of `machine`."""
    hidden = []
    for _ in range(layers):
        hidden += [nn.Linear(8, 8), nn.ReLU()]
    with seeded(0):
        module = nn.Sequential(nn.Linear(2, 8), *hidden[1:], nn.Linear(8, 1))
    model = GaussianProcess(X, Y, NNGPKernel(module)).double()
    variances = model.covar_module.variances
    variances.set("weight", "0", 1.0)
    variances.set("bias", "0", 0.1)
    for k in range(layers):
        variances.set("weight", str(2 * k + 2), 1.5 + 0.2 * k)
        variances.set("bias", str(2 * k + 2), 0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("layers", "regularisation"), [(1, 1.0), (2, math.inf), (3, math.inf)])
def test_wide_machines_and_those_of_one_layer_are_exact_processes(layers, regularisation):
    (X, Y), (Xs, _) = data(m=2), data(4, seed=1)
    model = machine(X, Y, layers, regularisation=regularisation)
    truth = process(X, Y, layers)
    ours, theirs = (part.posterior(Xs, observation_noise=True) for part in (model, truth))
    assert torch.allclose(ours.mean, theirs.mean, rtol=1e-5)
    assert torch.allclose(ours.variance, theirs.variance, rtol=1e-5)
    assert torch.allclose(ours.joint_log_prob(Y[:4]), theirs.joint_log_prob(Y[:4]), rtol=1e-5)
    assert torch.allclose(model.objective(), truth.log_marginal_likelihood(), rtol=1e-5)


@torch.no_grad()
def test_a_squared_exponential_layer_is_the_kernel_of_that_name():
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    model = DeepKernelMachine(X, Y, layers=["squared exponential"], ard_num_dims=2).double()
    scales = torch.tensor([0.7, 2.0], dtype=X.dtype)
    model.layers.inputs.set("lengthscale", scales / 2**0.5)  # there inputs are divided by sqrt(d)
    model.layers.kernels()[0].set("bias_var", 1e-12)
    kernel = RBFKernel(ard_num_dims=2).double()
    kernel.lengthscale = scales
    truth = GaussianProcess(X, Y, kernel)
    assert torch.allclose(model.posterior(Xs).mean, truth.posterior(Xs).mean, rtol=1e-5)
    assert torch.allclose(model.objective(), truth.log_marginal_likelihood(), rtol=1e-5)


def relu_kernel(G, weight_var, bias_var):
    """The arc-cosine kernel of Cho & Saul 2009 of a Gram matrix, in numpy."""
    scale = np.sqrt(np.outer(G.diagonal(), G.diagonal()))
    angle = np.arccos(np.clip(G / scale, -1, 1))
    dual = scale * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / (2 * math.pi)
    return weight_var * dual + bias_var


def divergence(G, K):
    """KL(N(0, G) || N(0, K))."""
    ratio = np.linalg.solve(K, G)
    return 0.5 * (np.trace(ratio) - np.linalg.slogdet(ratio)[1] - len(G))


def evidence(y, covariance):
    """Sum over columns of log N(y; 0, covariance)."""
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, y)
    half = np.log(root.diagonal()).sum() + 0.5 * len(y) * math.log(2 * math.pi)
    return -0.5 * (z**2).sum() - half * y.shape[1]


def formula(model, G, y, nu):
    """The objective of Yang et al. for two layers and the Gram matrix G between them."""
    X = model.inducing.points.detach().numpy()
    K = relu_kernel(X @ X.T / X.shape[1] + 0.1, 1.5, 0.2)
    top = relu_kernel(G, 1.7, 0.2) + 0.1 * np.eye(len(G))
    return evidence(y, top) - nu * divergence(G, K)


def outcomes(model):
    """On the model's scale, in the order of the inducing points."""
    order = torch.cdist(
        model.inducing.points, model.transformed_inputs(model.train_X)
    ).argmin(-1)  # fmt: skip
    return model.targets().mT[order].detach().numpy()


@torch.no_grad()
def test_the_objective_is_the_formula():
    model = perturbed(machine(*data(m=2), num_inducing=9, regularisation=0.7))
    G = model._present().grams[1].numpy()
    found = float(model._objective())
    assert found == pytest.approx(formula(model, G, outcomes(model), 0.7), rel=1e-6)


def held(model):
    """Only Gram matrices are learnt."""
    for part in (model.layers, model.likelihood, model.inducing):
        part.requires_grad_(False)
    return model


def test_fit_finds_the_maximum_that_brute_force_finds():
    X, Y = data(5)
    model = held(machine(X, Y, num_inducing=5, regularisation=0.5)).fit(
        max_iter=500, progress=False
    )
    y, n = outcomes(model), len(X)
    rows, columns = np.tril_indices(n)

    def loss(entries):
        C = np.zeros((n, n))
        C[rows, columns] = entries
        return -formula(model, C @ C.T + 1e-10 * np.eye(n), y, 0.5)

    with torch.no_grad():
        start = np.linalg.cholesky(model._present().roots[0] @ model._present().roots[0].mT)
    best = minimize(loss, start[rows, columns], options={"maxiter": 500})
    with torch.no_grad():
        assert float(model._objective()) == pytest.approx(-best.fun, abs=1e-4)
        C = np.zeros((n, n))
        C[rows, columns] = best.x
        np.testing.assert_allclose(model._present().grams[1], C @ C.T, rtol=0.02, atol=0.01)
        assert float(model._objective()) > float(-loss(start[rows, columns])) + 0.1


@torch.no_grad()
def test_other_points_see_the_matrices_as_conditionals_do():
    """Dense formulas of the sparse machine, at a layer and of the prediction."""
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    model = perturbed(machine(X, Y, num_inducing=6))
    Z, T = model.inducing.points, model.transformed_inputs(Xs)
    both = torch.cat([Z, T]).numpy()
    K = relu_kernel(both @ both.T / 2 + 0.1, 1.5, 0.2)
    K_ii, K_ti, K_tt = K[:6, :6], K[6:, :6], K[6:, 6:]
    G_ii = model._present().grams[1].numpy()
    weights = np.linalg.solve(K_ii, K_ti.T).T
    G_ti, G_tt = weights @ G_ii, K_tt - weights @ K_ti.T + weights @ G_ii @ weights.T
    np.testing.assert_allclose(model.grams(Xs)[1], G_tt, rtol=1e-5, atol=1e-6)
    top = relu_kernel(np.block([[G_ii, G_ti.T], [G_ti, G_tt]]), 1.7, 0.2)
    f = model.transformed_inputs(X)
    at_rows = np.concatenate([Z.numpy(), f.numpy()])
    K = relu_kernel(at_rows @ at_rows.T / 2 + 0.1, 1.5, 0.2)
    weights = np.linalg.solve(K[:6, :6], K[:6, 6:]).T
    G_fi = weights @ G_ii
    G_ff = K[6:, 6:] - weights @ K[:6, 6:] + weights @ G_ii @ weights.T
    cross = relu_kernel(np.block([[G_ii, G_fi.T], [G_fi, G_ff]]), 1.7, 0.2)[:6, 6:]
    precision = np.linalg.inv(top[:6, :6] + cross @ cross.T / 0.1)
    mean = top[6:, :6] @ precision @ cross @ model.targets().mT.numpy() / 0.1
    covariance = top[6:, 6:] - top[6:, :6] @ np.linalg.solve(top[:6, :6], top[:6, 6:])
    covariance = covariance + top[6:, :6] @ precision @ top[:6, 6:]
    found = model._moments(T, joint=True)
    np.testing.assert_allclose(found[0][0], mean[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1][0], covariance, rtol=1e-5, atol=1e-5)
    alone = model._moments(T, joint=False)
    np.testing.assert_allclose(alone[1][0], covariance.diagonal(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fewer_points_have_a_lower_bound():
    X, Y = data(12, m=2)
    whole = machine(X, Y, regularisation=math.inf).objective()
    few = [
        machine(X, Y, regularisation=math.inf, num_inducing=k).objective() for k in (3, 6, 9, 11)
    ]
    assert all(a <= b + 1e-6 for a, b in zip(few, [*few[1:], whole], strict=True))


@pytest.mark.filterwarnings("ignore:The fit of")
def test_more_regularisation_keeps_the_matrices_nearer():
    X, Y = data(8)
    sizes = []
    for nu in (0.1, 1.0, 10.0):
        model = held(machine(X, Y, regularisation=nu)).fit(max_iter=30, progress=False)
        sizes.append(float(model._factors()[0].divergence().detach()))
    assert sizes[0] > 3 * sizes[1] > 9 * sizes[2] > 0


@pytest.mark.filterwarnings("ignore:The fit of")
def test_fit_learns_all_there_is():
    X, Y = data(12, m=2)
    model = DeepKernelMachine(X, Y, layers=LAYERS, num_inducing=5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    start = model.objective()
    model.fit(max_iter=5, progress=False)
    assert model.objective() > start
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    wide = DeepKernelMachine(X, Y, layers=3, regularisation=[1.0, math.inf])
    wide.fit(max_iter=3, progress=False)
    assert [bool((f.entries != 0).any()) for f in wide._factors()] == [True, False]


@torch.no_grad()
def test_further_rows_are_those_of_a_machine_that_had_them():
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    one = perturbed(machine(X[:6], Y[:6], input_transform=None, outcome_transform=None))
    whole = one._of_rows(X, Y)
    more = one.condition_on_observations(X[6:], Y[6:])
    assert torch.allclose(more.posterior(Xs).mean, whole.posterior(Xs).mean)
    assert not torch.allclose(more.posterior(Xs).mean, one.posterior(Xs).mean)
    with pytest.raises(NotImplementedError, match="one set of rows"):
        one.condition_on_observations(X[None], Y[None])


@torch.no_grad()
def test_what_is_kept_follows_what_it_was_made_of():
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    model = machine(X, Y)
    before = model.posterior(Xs).mean
    assert model._present() is model._present()
    perturbed(model)
    assert not torch.allclose(model.posterior(Xs).mean, before)


@pytest.mark.filterwarnings("ignore:The fit of")
@pytest.mark.parametrize("outcome_transform", ["default", ExpTransform()])
def test_models_are_stored(tmp_path, outcome_transform):
    given = {} if outcome_transform == "default" else {"outcome_transform": outcome_transform}
    (X, Y), (Xs, _) = data(), data(4, seed=1)
    Y, path = Y.abs() + 1, tmp_path / "machine.safetensors"
    options = {"num_inducing": 6, "regularisation": [0.5, math.inf], "ard_num_dims": 2}
    model = DeepKernelMachine(X, Y, layers=LAYERS, **options, **given)
    model.fit(max_iter=2, progress=False)
    model.save(path)
    again = DeepKernelMachine.load(path, LAYERS, **given)
    ours, theirs = (m.posterior(Xs, observation_noise=True) for m in (model, again))
    assert torch.allclose(ours.log_prob(Y[:4]), theirs.log_prob(Y[:4]))
    assert repr(again) == repr(model)
    assert again.regularisation == [0.5, math.inf]
    with pytest.raises(TypeError, match="needs the layers as well"):
        DeepKernelMachine.load(path)
    with pytest.raises(ValueError, match="saved with 3 layers"):
        DeepKernelMachine.load(path, 2, **given)
    with pytest.raises(ValueError, match="different list of layers"):
        DeepKernelMachine.load(path, 3, **given)


@pytest.mark.filterwarnings("ignore:The fit of")
def test_noise_is_not_learnt_as_features():
    """Gram matrices of all rows that cost little hold the noise of a single outcome."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    model = DeepKernelMachine(X, torch.sin(X[:, :1]) + 0.3 * noise, layers=2)
    assert model.num_inducing == 14
    model.fit(max_iter=60, progress=False)
    share = 0.09 / model.train_Y.var().item()
    assert 0.4 * share < model.noise.item() < 2.5 * share


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The fit of")
def test_features_are_learnt_where_the_wide_network_has_none():
    """A ridge function of eight inputs: its direction is for the representation to find."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(550, 8, generator=generator, dtype=torch.float64)
    direction = torch.randn(8, 5, generator=generator, dtype=torch.float64)[:, :1] / 8**0.5
    f = torch.sin(3 * X @ direction)
    Y = f + 0.1 * torch.randn(f.shape, generator=generator, dtype=torch.float64)
    scores = {}
    for nu in (10.0, math.inf):
        model = DeepKernelMachine(X[:150], Y[:150], layers=2, regularisation=nu)
        model.fit(progress=False)
        with torch.no_grad():
            posterior = model.posterior(X[150:], observation_noise=True)
        rmse = (posterior.mean - Y[150:]).square().mean().sqrt()
        scores[nu] = float(rmse), float(-posterior.log_prob(Y[150:]).mean())
    assert scores[10.0][0] < 0.8 * scores[math.inf][0]
    assert scores[10.0][1] < scores[math.inf][1] - 0.1


class Shifted(GramKernel):
    """A layer of one's own."""

    def __init__(self):
        super().__init__(1.0)

    def unscaled(self, q1, q2, c):
        return c + 1


def test_layers_of_ones_own():
    X, Y = data()
    model = DeepKernelMachine(X, Y, layers=[Shifted(), nn.Tanh()])
    assert model.posterior(X).mean.isfinite().all()
    assert "regularisation: 1" in repr(model)
    assert "lengthscale" in repr(model)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layers": 0}, ValueError, "at least one layer"),
        ({"layers": "relu"}, TypeError, "a number or a list"),
        ({"layers": ["rleu"]}, ValueError, "knows the layers"),
        ({"layers": [nn.Linear(2, 2)]}, TypeError, "elementwise"),
        ({"layers": 3, "regularisation": [1.0]}, ValueError, "one for all or 2"),
        ({"layers": 2, "regularisation": 0.0}, ValueError, "positive regularisation"),
        ({"layers": 2, "num_inducing": 0}, ValueError, "num_inducing >= 1"),
        ({"layers": 2, "ard_num_dims": 3}, ValueError, "2 input columns"),
    ],
)
def test_errors_say_what_to_do(options, error, match):
    with pytest.raises(error, match=match):
        DeepKernelMachine(*data(), **options)
    X, Y = data()
    with pytest.raises(ValueError, match="one data set"):
        DeepKernelMachine(X[None], Y[None], layers=1)
