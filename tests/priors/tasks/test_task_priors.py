"""Priors over tasks: that the tasks are what they are said to be, at every size."""

import math

import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch.distributions import Gamma, Uniform
from torch.overrides import TorchFunctionMode

from priors import (
    CausalTaskPrior,
    ClassificationTaskPrior,
    FunctionTaskPrior,
    GaussianProcessPrior,
    LearningCurveSize,
    LearningCurveTaskPrior,
    LinearTaskPrior,
    MixtureTaskPrior,
    NetworkPrior,
    NetworkTaskPrior,
    OptimizationSize,
    OptimizationTaskPrior,
    RandomInputs,
    RandomKernelTaskPrior,
    RandomNoise,
    Tabular,
    TaskPrior,
    TaskSize,
    TreeTaskPrior,
)
from priors.gaussian.activations import ABReLU, Erf
from priors.randomness import RandomSource
from priors.tasks.base import relevance
from priors.tasks.gaussian_processes import _root
from priors.tasks.inputs import INPUT_KINDS
from priors.tasks.networks import ACTIVATIONS, draw_networks, network_covariance

SMALL = TaskSize(max_features=6, max_context=30, num_queries=8)
LATENT = {
    "kernel": RandomKernelTaskPrior,
    "student": lambda **options: RandomKernelTaskPrior(scale_concentration=3.0, **options),
    "network": NetworkTaskPrior,
    "causal": CausalTaskPrior,
    "measured": lambda **options: CausalTaskPrior(noise=RandomNoise(), **options),
    "tree": TreeTaskPrior,
    "linear": LinearTaskPrior,
}
ALL = {name: make(size=SMALL) for name, make in LATENT.items()}
ALL["noisy"] = LinearTaskPrior(size=SMALL, noise=RandomNoise(heteroscedastic=0.5, outliers=0.5))
ALL["mixture"] = MixtureTaskPrior([ALL["tree"], ALL["causal"]])
ALL["tabular"] = Tabular(ALL["network"], max_features=6)
ALL["classes"] = ClassificationTaskPrior(ALL["linear"])
ALL["table of classes"] = Tabular(ClassificationTaskPrior(ALL["mixture"]), max_features=6)

FUNCTIONS = {"inputs": Uniform(torch.zeros(2), torch.ones(2)), "num_points": 9, "noise_var": 0.1}
# with those of other sizes
EVERY = {
    **ALL,
    "function": FunctionTaskPrior(GaussianProcessPrior(RBFKernel()), **FUNCTIONS),
    "hyperprior": FunctionTaskPrior(
        GaussianProcessPrior(RBFKernel()), hyperprior={"lengthscale": Gamma(3.0, 3.0)}, **FUNCTIONS
    ),
    "finite network": FunctionTaskPrior(
        NetworkPrior(
            torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
        ),
        **FUNCTIONS,
    ),
    "learning curves": LearningCurveTaskPrior(size=LearningCurveSize(max_context=20)),
    "optimisation": OptimizationTaskPrior(size=OptimizationSize(max_context=20)),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(seed=0):
    return RandomSource(seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
    prior = ALL[name]
    assert isinstance(prior, TaskPrior)
    assert "\n" not in prior.description
    before = torch.get_rng_state()
    for dtype in (torch.float32, torch.float64):
        task = prior.sample(5, generator=seeded(), dtype=dtype)
        again = prior.sample(5, generator=seeded(), dtype=dtype)
        B, N, d = task.X.shape
        assert (B, N) == (5, task.num_context + SMALL.num_queries)
        assert 1 <= d <= SMALL.max_features
        assert task.y.shape == (B, N, 1)
        assert task.f is None or task.f.shape == (B, N, 1)
        assert task.row_noise_var.shape == (B, N)
        assert task.X.dtype == task.y.dtype == dtype
        assert not task.X.isinf().any()
        assert task.y.isfinite().all()
        assert all(len(value) == B for value in task.latents.values())
        assert torch.equal(task.X.nan_to_num(), again.X.nan_to_num())
        assert torch.equal(task.y, again.y)
    assert torch.equal(torch.get_rng_state(), before)
    assert prior.sample(2).y.dtype == torch.get_default_dtype()  # without a generator


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize(("d", "n"), [(1, 0), (1, 1), (2, 0), (20, 3), (5, 300)])
def test_sizes(name, d, n):
    prior = LATENT[name](size=TaskSize(num_features=d, num_context=n, num_queries=3))
    for seed in range(3):
        task = prior.sample(4, generator=seeded(seed))
        assert task.X.shape == (4, n + 3, d)
        assert task.num_context == n
        assert task.X.isfinite().all()
        assert task.y.isfinite().all()


@pytest.mark.fast_for("kernel", "network", "tree", "linear")
@pytest.mark.parametrize("name", LATENT)
def test_functions_are_standardised_under_the_prior(name):
    size = TaskSize(max_features=8, num_context=30, num_queries=10)
    prior = LATENT[name](size=size)
    generator = seeded()
    f = torch.cat(
        [prior.sample_outputs(32, 2, generator=generator)[1].flatten(1) for _ in range(20)]
    )
    means = f.mean(1)  # one number per task: rows are dependent
    assert means.mean().abs() < 4 * means.std() / math.sqrt(len(means))
    assert 0.6 < f.square().mean() < 1.7


@pytest.mark.fast_for("kernel", "network", "causal", "tree")
@pytest.mark.parametrize("name", LATENT)
def test_features_are_exchangeable(name):
    """Moments of the first feature, and of it with y, agree with those of the last."""
    prior = LATENT[name](size=TaskSize(num_features=3, num_context=15, num_queries=5))
    generator = seeded(1)
    tasks = [prior.sample(50, generator=generator) for _ in range(16)]
    X, y = torch.cat([t.X for t in tasks]).double(), torch.cat([t.y for t in tasks]).double()
    y = y - y.mean(1, keepdim=True)
    X = X - X.mean(1, keepdim=True)
    r = (X * y).mean(1) / (X.square().mean(1) * y.square().mean(1)).sqrt().clamp_min(1e-9)
    spread = X.square().mean(1).clamp(max=10)
    for statistic in (r.square(), spread, X.square().clamp(max=4).mean(1)):
        difference = statistic[:, 0] - statistic[:, 2]
        assert difference.mean().abs() < 4 * difference.std() / math.sqrt(len(difference))


def test_sizes_are_skewed_to_small_ones_and_cover_their_range():
    size, generator = TaskSize(max_features=5, max_context=40), seeded()
    drawn = torch.tensor([size.draw(generator) for _ in range(2000)])
    assert set(drawn[:, 0].tolist()) == {1, 2, 3, 4, 5}
    assert drawn[:, 1].min() == 0
    assert drawn[:, 1].max() == 40
    uniform_mean, log_mean = 20.0, (math.exp(math.log(42)) - 1) / math.log(42) - 1.5
    assert abs(drawn[:, 1].float().mean() - (uniform_mean + log_mean) / 2) < 1.5
    assert (drawn[:, 0] == 1).float().mean() > 0.27


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_inputs_are_standardised(kind):
    X = RandomInputs((kind,)).draw(double(), 3000, 4, 3)
    assert X.isfinite().all()
    tasks = X.mean((1, 2))
    assert tasks.mean().abs() < 4 * tasks.std() / math.sqrt(len(tasks))
    squares = X.clamp(-30, 30).square().mean((1, 2))
    slack = 0.1 if kind == "heavy" else 0.0  # what the clamp takes off
    assert (squares.mean() - 1).abs() < 4 * squares.std() / math.sqrt(len(squares)) + slack


def test_inputs_are_of_their_kind():
    line = RandomInputs(("line",)).draw(double(), 5, 20, 4)
    assert (torch.linalg.matrix_rank(line) == 1).all()
    grid = RandomInputs(("grid",)).draw(double(), 1, 500, 6)
    counts = [len(grid[0, :, j].unique()) for j in range(6)]
    assert max(counts) <= 10
    assert min(counts) >= 2
    mixed = RandomInputs(("grid", "normal"), mixed=1.0).draw(double(), 40, 100, 4)
    distinct = torch.tensor([[len(column.unique()) for column in task.T] for task in mixed])
    assert ((distinct <= 10).any(1) & (distinct == 100).any(1)).any()


def test_noise_has_its_variance():
    X = double(1).normal(400, 50, 3)
    noise, variance = RandomNoise().draw(double(), X)
    assert variance.shape == (400,)
    z = noise / variance.sqrt()[:, None]
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / z.numel())
    noise, variance = RandomNoise(heteroscedastic=0.5).draw(double(), X)
    assert variance.shape == noise.shape == (400, 50)
    z = noise / variance.sqrt()
    for chosen in (variance > variance.median(), variance <= variance.median()):
        part = z[chosen].square()
        assert abs(part.mean() - 1) < 4 * math.sqrt(2 / len(part))
    constant = variance.std(1) < 1e-6 * variance.mean(1)
    assert 0.4 < constant.float().mean() < 0.6
    noise, variance = RandomNoise(outliers=0.5).draw(double(), X)
    assert noise.isfinite().all()
    assert 0.4 < variance.isinf().float().mean() < 0.6


def test_relevance_never_vanishes():
    weights = relevance(double(), 500, 7)
    assert (weights >= 0).all()
    assert (weights.amax(-1) > 0).all()
    assert (weights == 0).any()


def test_kernel_covariance_is_that_of_the_draws():
    """Functions at fixed inputs and hyperparameters have the covariance that `oracle` uses."""
    prior = RandomKernelTaskPrior(
        size=TaskSize(num_features=3, num_context=4, num_queries=3), scale_concentration=3.0
    )
    m = 4000
    task, F = prior.sample_outputs(60, m, generator=seeded(), dtype=torch.float64)
    K = prior.covariance(task.X, task.latents)
    empirical = F @ F.mT / m
    diagonal = K.diagonal(dim1=-2, dim2=-1)
    error = ((diagonal[:, :, None] * diagonal[:, None, :] + K**2) / m).sqrt()
    z = (empirical - K) / error
    # 60 tasks of 28 numbers each
    assert z.abs().max() < 5
    assert (F.mean(-1).abs() < 5 * (diagonal / m).sqrt()).all()
    assert torch.linalg.eigvalsh(K).min() > -1e-9


def test_every_form_of_kernel_has_unit_variance_and_is_positive():
    X = double(1).normal(200, 12, 3)
    for index in range(4):
        weights = [0.0] * 4
        weights[index] = 1.0
        prior = RandomKernelTaskPrior(form_weights=tuple(weights), max_components=1)
        latents = prior._draw_kernels(double(), 200, 3)
        assert (latents["form"] == index).all()
        K = prior.covariance(X, latents)
        variance = K.diagonal(dim1=-2, dim2=-1)
        if index < 2:
            torch.testing.assert_close(variance, torch.ones_like(variance))
        else:
            assert abs(variance.mean() - 1) < 0.15
        assert torch.linalg.eigvalsh(K).min() > -1e-9


def test_kernels_of_the_batch_are_those_of_each_task():
    prior = RandomKernelTaskPrior()
    X, latents = double(1).normal(30, 9, 4), prior._draw_kernels(double(), 30, 4)
    K = prior.covariance(X, latents)
    for i in range(30):
        one = {name: value[i : i + 1] for name, value in latents.items()}
        torch.testing.assert_close(prior.covariance(X[i : i + 1], one)[0], K[i])


def test_kernels_are_gpytorchs():
    from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel

    prior = RandomKernelTaskPrior(form_weights=(1.0, 0.0, 0.0, 0.0), max_components=1, periodic=0.0)
    X, latents = double(1).normal(40, 7, 3), prior._draw_kernels(double(), 40, 3)
    latents["inverse_lengthscale"] = latents["inverse_lengthscale"].clamp_min(0.05)
    K = prior.covariance(X, latents)
    for i in range(40):
        kind = int(latents["smoothness"][i, 0])
        kernel = [
            MaternKernel(0.5, ard_num_dims=3),
            MaternKernel(1.5, ard_num_dims=3),
            MaternKernel(2.5, ard_num_dims=3),
            RBFKernel(ard_num_dims=3),
            RQKernel(ard_num_dims=3),
        ][kind].double()
        kernel.lengthscale = 1 / latents["inverse_lengthscale"][i]
        if kind == 4:
            kernel.alpha = latents["exponent"][i, :1]
        torch.testing.assert_close(kernel(X[i]).to_dense().detach(), K[i], rtol=1e-5, atol=1e-6)


def test_roots_of_covariances_that_rounding_made_indefinite():
    covariance = torch.ones(2, 5, 5, dtype=torch.float64)
    covariance[1] -= 1e-5 * torch.eye(5, dtype=torch.float64)
    root = _root(covariance.clone())
    torch.testing.assert_close(root @ root.mT, covariance, atol=1e-3, rtol=0)
    with pytest.raises(RuntimeError, match="not positive definite"):
        _root(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))


def test_one_covariance_that_needs_jitter_leaves_the_others_alone():
    good = torch.eye(4, dtype=torch.float64) + 0.5
    bad = torch.ones(4, 4, dtype=torch.float64) - 1e-5 * torch.eye(4, dtype=torch.float64)
    root = _root(torch.stack([good, bad]))
    torch.testing.assert_close(root[0] @ root[0].mT, good, atol=1e-6, rtol=0)
    torch.testing.assert_close(root[1] @ root[1].mT, bad, atol=1e-3, rtol=0)


def test_single_precision_draws_the_same_kernels():
    X = double(1).normal(60, 40, 3)
    single = RandomKernelTaskPrior(precision="single")
    latents = single._draw_kernels(double(), 60, 3)
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in latents.items()}
    exact = single.covariance(X, latents)
    found = single.covariance(X.float(), rounded)
    assert found.dtype == torch.float32
    assert ((found - exact).abs().amax((1, 2)) < 3e-6 * exact.abs().amax((1, 2))).all()
    root = _root(found.tril()).double()
    assert ((root @ root.mT - exact).abs().amax((1, 2)) < 2e-4 * exact.abs().amax((1, 2))).all()


def test_functions_of_one_kernel_are_independent_draws_of_it():
    """Given inputs and kernel, second moments are the covariance, within and not across tasks."""
    size = TaskSize(num_features=2, num_context=3, num_queries=1)
    prior = RandomKernelTaskPrior(size=size, functions=4000)
    task = prior.sample(4000, generator=seeded(), dtype=torch.float64)
    assert (task.X == task.X[:1]).all()
    assert all((value == value[:1]).all() for value in task.latents.values())
    f = task.f[..., 0]
    K = prior.covariance(task.X[:1], {k: v[:1] for k, v in task.latents.items()})[0]
    found = f.mT @ f / 4000
    spread = (K.diagonal()[:, None] * K.diagonal() + K**2).sqrt() / 4000**0.5
    assert ((found - K).abs() < 4.5 * spread).all()
    across = (f[:-1] * f[1:]).mean(0)
    assert (across.abs() < 4.5 * K.diagonal() / 4000**0.5).all()


def test_as_many_tasks_as_asked_for_share_kernels():
    prior = RandomKernelTaskPrior(size=SMALL, functions=4)
    task, functions = prior.sample_outputs(10, 3, generator=seeded())
    assert len(task.X) == len(task.y) == len(functions) == len(task.latents["form"]) == 10
    assert functions.shape[-1] == 3
    same = (task.X[:, None] == task.X[None]).flatten(2).all(-1)
    assert torch.equal(same, torch.arange(10)[:, None] // 4 == torch.arange(10) // 4)
    assert not torch.equal(functions[0], functions[1])
    with pytest.raises(ValueError, match="functions must be at least 1"):
        RandomKernelTaskPrior(functions=0)
    with pytest.raises(ValueError, match="'double' or 'single'"):
        RandomKernelTaskPrior(precision="half")


def test_periodic_features_repeat():
    prior = RandomKernelTaskPrior(form_weights=(1.0, 1.0, 0.0, 0.0), max_components=1, periodic=1.0)
    latents = prior._draw_kernels(double(), 20, 1)
    latents["frequency"] = latents["frequency"].clamp_min(0.5)
    x = double(1).normal(20, 1, 1)
    X = torch.cat([x, x + 2 * math.pi / latents["frequency"]], 1)
    K = prior.covariance(X, latents)
    torch.testing.assert_close(K[:, 0, 1], torch.ones(20, dtype=torch.float64), atol=1e-6, rtol=0)


def test_oracle_is_the_posterior_and_knows_noise_by_row():
    size = TaskSize(num_features=2, num_context=6, num_queries=3)
    prior = RandomKernelTaskPrior(size=size, noise=RandomNoise(heteroscedastic=1.0))
    task = prior.sample(8, generator=seeded(), dtype=torch.float64)
    posterior = prior.oracle(task)
    K = prior.covariance(task.X, task.latents) + torch.diag_embed(task.noise_var)
    mean = K[:, 6:, :6] @ torch.linalg.solve(K[:, :6, :6], task.y[:, :6])
    torch.testing.assert_close(posterior.mean, mean)
    schur = K[:, 6:, 6:] - K[:, 6:, :6] @ torch.linalg.solve(K[:, :6, :6], K[:, :6, 6:])
    torch.testing.assert_close(posterior.variance[..., 0], schur.diagonal(dim1=-2, dim2=-1))
    none = RandomKernelTaskPrior(size=TaskSize(num_context=0)).sample(2, generator=seeded())
    assert RandomKernelTaskPrior().oracle(none).mean.abs().max() == 0
    wild = RandomKernelTaskPrior(size=size, noise=RandomNoise(outliers=1.0))
    with pytest.raises(ValueError, match="Gaussian noise"):
        wild.oracle(wild.sample(2, generator=seeded()))


def test_oracle_covers_as_it_says():
    prior = RandomKernelTaskPrior(
        size=TaskSize(num_features=3, num_context=25, num_queries=10), scale_concentration=3.0
    )
    task = prior.sample(300, generator=seeded(), dtype=torch.float64)
    posterior = prior.oracle(task)
    z = ((task.y[:, 25:] - posterior.mean) / posterior.variance.sqrt())[..., 0]
    per_task = z.square().mean(1)
    assert abs(per_task.mean() - 1) < 4 * per_task.std() / math.sqrt(300)


@pytest.mark.fast_for("0", "2", "4")
@pytest.mark.parametrize("index", range(len(ACTIVATIONS)))
def test_infinite_networks_are_limits_of_finite_ones(index):
    """Finite networks of the module's definition, wide, have the stated covariance."""
    latents = {
        "activation": torch.tensor([index]),
        "depth": torch.tensor([2]),
        "weight_var": torch.tensor([2.0], dtype=torch.float64),
        "bias_var": torch.tensor([0.3], dtype=torch.float64),
    }
    draws, width, m = double(), 100, 1500
    X = draws.normal(4, 3)
    products = X @ X.T / 3
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(1)
    K = network_covariance(products.reshape(1, 16), pairs, products.diagonal()[None], latents)
    K = K.reshape(4, 4)
    phi = ACTIVATIONS[index]
    scale = phi.second_moment(torch.tensor(2.3, dtype=torch.float64)).sqrt()
    z = (2 / 3) ** 0.5 * X @ draws.normal(m, 3, width) + 0.3**0.5 * draws.normal(m, 1, width)
    h = phi(z) / scale
    z = (2 / width) ** 0.5 * h @ draws.normal(m, width, width)
    h = phi(z + 0.3**0.5 * draws.normal(m, 1, width)) / scale
    products = h @ h.mT / width
    error = products.std(0) / math.sqrt(m)
    assert ((products.mean(0) - K).abs() < 5 * error + 3 / width).all()  # + finite width


def test_network_kernel_of_every_depth_stays_standardised():
    latents = draw_networks(double(), 300)
    assert latents["depth"].unique().tolist() == [1, 2, 3, 4, 5]
    one = torch.ones(300, 1, dtype=torch.float64)
    row = torch.zeros(1, dtype=torch.long)
    torch.testing.assert_close(network_covariance(one, (row, row), one, latents), one)
    assert isinstance(ACTIVATIONS[0], ABReLU)
    assert any(isinstance(phi, Erf) for phi in ACTIVATIONS)


def test_linear_oracle_is_ridge_regression():
    size = TaskSize(num_features=4, num_context=9, num_queries=3)
    prior = LinearTaskPrior(size=size, sparse=0.5)
    task = prior.sample(20, generator=seeded(), dtype=torch.float64)
    posterior = prior.oracle(task)
    ones = torch.ones(20, 12, 1, dtype=torch.float64)
    features = torch.cat([task.X, ones], -1)
    variance = torch.cat([task.latents["weight_var"], task.latents["bias_var"][:, None]], -1)
    scaled = features * variance.sqrt()[:, None]  # coefficients of unit variance
    old, new, noise = scaled[:, :9], scaled[:, 9:], task.noise_var[:, None, None]
    precision = old.mT @ old / noise + torch.eye(5, dtype=torch.float64)
    ridge = torch.linalg.solve(precision, old.mT @ task.y[:, :9] / noise)
    torch.testing.assert_close(posterior.mean, new @ ridge)
    spread = (new * torch.linalg.solve(precision, new.mT).mT).sum(-1, keepdim=True) + noise
    torch.testing.assert_close(posterior.variance, spread)


def test_linear_functions_are_linear_and_have_their_variances():
    size = TaskSize(num_features=3, num_context=6, num_queries=2)
    prior = LinearTaskPrior(size=size, inputs=RandomInputs(("normal",), mixed=0.0), intercept=0.0)
    task = prior.sample(4000, generator=seeded(), dtype=torch.float64)
    w = torch.linalg.lstsq(task.X, task.f).solution[..., 0]
    torch.testing.assert_close(task.X @ w[..., None], task.f)
    variance = task.latents["weight_var"]
    torch.testing.assert_close(variance.sum(-1), torch.ones_like(variance[:, 0]))
    z = w[variance > 1e-3] / variance[variance > 1e-3].sqrt()
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / len(z))
    assert w[variance == 0].abs().max() < 1e-6
    dense = LinearTaskPrior(size=size, sparse=0.0).sample(5, generator=seeded())
    assert (dense.latents["weight_var"].std(-1) < 1e-6).all()


def test_trees_are_piecewise_constant():
    """On a line of many points one tree takes few values, and only steps between them."""
    size = TaskSize(num_features=1, num_context=300, num_queries=100)
    prior = TreeTaskPrior(size=size, max_trees=1, max_depth=4, oblique=0.0)
    task = prior.sample(50, generator=seeded(), dtype=torch.float64)
    for i in range(50):
        f = task.f[i, task.X[i, :, 0].argsort(), 0]
        depth = int(task.latents["depth"][i])
        jumps = int((f.diff().abs() > 1e-9).sum())
        assert jumps <= 2**depth - 1
    # points with the same inputs have the same value
    grid = RandomInputs(("grid",), mixed=0.0)
    size = TaskSize(num_features=2, num_context=300, num_queries=100)
    task = TreeTaskPrior(size=size, inputs=grid).sample(10, generator=seeded())
    for X, f in zip(task.X, task.f, strict=True):
        _, cell = X.unique(dim=0, return_inverse=True)
        first = torch.zeros(int(cell.max()) + 1).scatter(0, cell, f[:, 0])
        torch.testing.assert_close(first[cell], f[:, 0])


def test_trees_have_unit_variance_given_their_inputs():
    prior = TreeTaskPrior(size=TaskSize(num_features=3, num_context=5, num_queries=5))
    _, F = prior.sample_outputs(200, 300, generator=seeded(), dtype=torch.float64)
    variance = F.square().mean(-1)
    assert (variance.mean() - 1).abs() < 0.02
    assert variance.min() > 0.6
    assert variance.max() < 1.6


def test_causal_features_tell_of_the_target():
    """Some feature is correlated with the target in many tasks, and none is it."""
    size = TaskSize(num_features=6, num_context=200, num_queries=8)
    prior = CausalTaskPrior(size=size)
    generator = seeded()
    strongest = []
    for _ in range(10):
        task = prior.sample(30, generator=generator)
        assert task.f is None
        assert task.noise_var.isinf().all()
        assert all(len(nodes.unique()) == 7 for nodes in task.latents["nodes"])
        X, y = (values - values.mean(1, keepdim=True) for values in (task.X, task.y))
        r = (X * y).sum(1) / (X.square().sum(1) * y.square().sum(1)).sqrt()
        strongest.append(r.nan_to_num().abs().amax(-1))
    strongest = torch.cat(strongest)
    assert (strongest > 0.5).float().mean() > 0.3
    assert (strongest < 0.3).float().mean() > 0.02


def test_causal_nodes_are_standardised_without_looking_at_the_rows():
    size = TaskSize(num_features=3, num_context=0, num_queries=40)
    prior = CausalTaskPrior(size=size, inputs=RandomInputs(("normal",), mixed=0.0))
    y = torch.cat([prior.sample(40, generator=seeded(s)).y[..., 0] for s in range(10)])
    means = y.mean(1)
    assert means.mean().abs() < 4 * means.std() / math.sqrt(len(means))
    assert 0.8 < y.square().mean() < 1.3
    assert means.abs().mean() > 0.05  # not centred by their own rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskSize(max_features=0), "max_features must be at least 1, got 0"),
        (lambda: TaskSize(num_context=-1), "num_context must be at least 0"),
        (lambda: TaskSize(num_queries=0), "num_queries must be at least 1"),
        (lambda: RandomInputs(("triangle",)), "kinds of inputs must be among .*triangle"),
        (lambda: RandomInputs(()), "kinds of inputs"),
        (lambda: RandomInputs(mixed=2.0), "mixed is a probability"),
        (lambda: RandomNoise(low=0.0), "low, the smallest noise variance"),
        (lambda: RandomNoise(outliers=-0.1), "outliers is a probability"),
        (lambda: RandomKernelTaskPrior(form_weights=(1.0,)), "form_weights must have one weight"),
        (lambda: RandomKernelTaskPrior(form_weights=(0.0,) * 4), "a positive weight"),
        (lambda: RandomKernelTaskPrior(periodic=1.5), "periodic is a probability"),
        (lambda: RandomKernelTaskPrior(max_components=4), "max_components must be 1, 2 or 3"),
        (lambda: RandomKernelTaskPrior(scale_concentration=1.0), "multiple of 1/2 above 1"),
        (lambda: CausalTaskPrior(max_layers=0), "max_layers and max_width"),
        (lambda: TreeTaskPrior(max_trees=0), "max_trees must be at least 1"),
        (lambda: TreeTaskPrior(max_depth=13), "max_depth in 1 .. 12"),
        (lambda: TreeTaskPrior(oblique=-1.0), "oblique is a probability"),
        (lambda: LinearTaskPrior(sparse=1.5), "sparse is a probability"),
        (lambda: LinearTaskPrior(intercept=1.0), "intercept must be a share"),
        (lambda: NetworkTaskPrior(min_width=9, max_width=8), "min_width must be at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class OwnDevice(TorchFunctionMode):
    """A generator serves its own device only, as a GPU's does; "cpu:0" counts as another one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            assert torch.device(kwargs.get("device") or "cpu") == generator.device
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", EVERY)
def test_generator_of_another_device(name):
    with OwnDevice():
        EVERY[name].sample(4, generator=seeded(), device="cpu:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_on_the_gpu(name):
    generator = torch.Generator("cuda").manual_seed(0)
    task = EVERY[name].sample(4, generator=generator, device="cuda")
    assert task.y.is_cuda
    assert task.y.isfinite().all()
    assert EVERY[name].sample(4, generator=seeded(), device="cuda").y.is_cuda
    assert EVERY[name].sample(4, generator=generator).y.is_cuda
    assert EVERY[name].sample(4, device="cuda").y.is_cuda
