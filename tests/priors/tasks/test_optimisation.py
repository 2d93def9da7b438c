"""Tasks of an optimisation: the process is the one stated, wherever the points lie."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel

from priors import OptimizationSize, OptimizationTaskPrior, TaskPrior
from priors.randomness import RandomSource
from priors.tasks.optimisation import KERNELS, _kumaraswamy, _place, _skewed, _trend


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(seed=0):
    return RandomSource(seeded(seed), dtype=torch.float64)


def within(values, expected):
    """Mean over independent rows is `expected`, to five standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() < 5 * error).all())


def fixed_latents(batch, kernel="matern52", **changes):
    rows = {
        "kernel": torch.tensor(KERNELS.index(kernel)),
        "lengthscale": torch.tensor([0.4, 0.9]).double(),
        "warp_a": torch.tensor([0.6, 1.7]).double(),
        "warp_b": torch.tensor([1.4, 0.8]).double(),
        "trend_share": torch.tensor(0.3).double(),
        "linear_var": torch.tensor([0.5, 0.1]).double(),
        "quadratic_var": torch.tensor([0.0, 0.4]).double(),
        "skew": torch.tensor(0.0).double(),
        "adaptive": torch.tensor(True),
        **changes,
    }
    return {name: value.expand(batch, *value.shape) for name, value in rows.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_ranges_and_protocol(dtype):
    prior = OptimizationTaskPrior()
    assert isinstance(prior, TaskPrior)
    assert "maximise" in prior.description
    generator = seeded()
    features, contexts = set(), set()
    for _ in range(60):
        task = prior.sample(3, generator=generator, dtype=dtype)
        n, d = task.num_context, task.X.shape[-1]
        features.add(d)
        contexts.add(n)
        assert task.X.shape == (3, n + 64, d)
        assert task.y.shape == task.f.shape == (3, n + 64, 1)
        assert task.noise_var.shape == (3,)
        assert {task.X.dtype, task.y.dtype, task.f.dtype, task.noise_var.dtype} == {dtype}
        assert ((task.X >= 0) & (task.X <= 1)).all()
        assert task.y.isfinite().all()
        assert ((task.noise_var >= 0.99e-6) & (task.noise_var <= 1)).all()
    assert features == set(range(1, 11))
    assert min(contexts) <= 3
    assert 100 < max(contexts) <= 128


def test_the_generator_determines_the_tasks_and_the_global_one_is_not_used():
    prior = OptimizationTaskPrior()
    before = torch.get_rng_state()
    one, two, other = (prior.sample(4, generator=seeded(s)) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.X, two.X)
    assert torch.equal(one.y, two.y)
    assert one.y.shape != other.y.shape or not torch.equal(one.y, other.y)


@pytest.mark.parametrize("num_context", [0, 1, 4])
def test_few_rows(num_context):
    task = OptimizationTaskPrior(
        size=OptimizationSize(num_context=num_context, num_queries=1)
    ).sample(3)
    assert task.y.shape == (3, num_context + 1, 1)
    assert task.y.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_is_that_of_gpytorch_and_the_trend(kernel):
    X = torch.rand(1, 7, 2, generator=seeded(), dtype=torch.float64)
    latents = fixed_latents(1, kernel)
    u = 1 - (1 - X ** latents["warp_a"]) ** latents["warp_b"]
    if kernel == "rbf":
        known = RBFKernel(ard_num_dims=2)
    else:
        known = MaternKernel(nu={"matern32": 1.5, "matern52": 2.5}[kernel], ard_num_dims=2)
    known = known.double()
    known.lengthscale = latents["lengthscale"]
    with torch.no_grad(), gpytorch.settings.lazily_evaluate_kernels(False):
        expected = 0.7 * known(u, u).to_dense()
    for k, (linear, quadratic) in enumerate([(0.5, 0.0), (0.1, 0.4)]):
        c = u[..., k, None] - 0.5
        expected = expected + 0.3 * linear * 12 * c * c.mT
        expected = expected + 0.3 * quadratic * 180 * (c**2 - 1 / 12) * (c.mT**2 - 1 / 12)
    actual = OptimizationTaskPrior().covariance(X, X, latents)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)
    part = OptimizationTaskPrior().covariance(X[:, :3], X[:, 2:], latents)
    torch.testing.assert_close(part, actual[:, :3, 2:])


def test_trend_features_are_orthonormal():
    u = ((torch.arange(20000) + 0.5) / 20000).double()[None, :, None]
    features = _trend(u)[0]
    torch.testing.assert_close(features.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-6)
    gram = features.T @ features / 20000
    torch.testing.assert_close(gram, torch.eye(2).double(), rtol=0, atol=1e-6)


def test_values_have_the_covariance_given_the_latents_at_adaptive_points():
    # the points depend on the values before them: whiten each task with its own covariance
    batch = 4000
    prior = OptimizationTaskPrior(size=OptimizationSize(num_queries=3))
    latents = fixed_latents(batch)
    noise_var = torch.full((batch,), 0.1).double()
    X, f, y, rows = prior._draw_run(double(), latents, noise_var, (3, 2, 2))
    assert X.shape == (batch, 10, 2)
    assert 0.5 < rows["near"][:, 3:7].double().mean() < 0.9
    assert torch.equal(f, rows["z"])
    K = prior.covariance(X, X, latents) + 1e-8 * torch.eye(10)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(K), f[..., None], upper=False)
    products = (white @ white.mT).flatten(1)
    assert within(products, torch.eye(10).flatten())
    assert within((y - f) ** 2, 0.1)


def test_values_have_the_covariance_at_fixed_points(monkeypatch):
    batch = 4000
    points = torch.rand(5, 2, generator=seeded(3), dtype=torch.float64)

    def fixed(draws, X, y, size, *_):
        n = X.shape[1]
        return points[n : n + size].expand(batch, -1, -1), torch.zeros(batch, size).bool()

    monkeypatch.setattr("priors.tasks.optimisation._place", fixed)
    prior = OptimizationTaskPrior(size=OptimizationSize(num_queries=2))
    latents = fixed_latents(batch, "rbf")
    _, f, _, _ = prior._draw_run(double(), latents, torch.zeros(batch).double(), (2, 0, 1))
    expected = prior.covariance(points[None], points[None], latents_of_one(latents))[0]
    assert within(f[:, :, None] * f[:, None], expected)


def latents_of_one(latents):
    return {name: value[:1] for name, value in latents.items()}


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.3, 2.5), (3.0, 0.4)])
def test_input_warping_is_a_bijection(a, b):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    a, b = torch.tensor(a).double(), torch.tensor(b).double()
    u = _kumaraswamy(x, a, b)
    assert u[0] == 0
    assert u[-1] == 1
    assert (u.diff() > 0).all()
    torch.testing.assert_close(u, 1 - (1 - x**a) ** b)
    inverse = (1 - (1 - u) ** (1 / b)) ** (1 / a)
    torch.testing.assert_close(inverse[:-1], x[:-1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("skew", [0.0, 0.4, -1.0])
def test_output_warping_is_standardised_and_increasing(skew):
    z = torch.distributions.Normal(0, 1).icdf((torch.arange(400000).double() + 0.5) / 400000)
    f = _skewed(z[None], torch.tensor([skew]).double())[0]
    assert (f.diff() > 0).all()
    assert float(f.mean()) == pytest.approx(0, abs=2e-3)
    assert float(f.var()) == pytest.approx(1, abs=0.02)
    third = float((f**3).mean())
    assert (third > 0.5) - (third < -0.5) == (skew > 0) - (skew < 0)


def test_share_of_warped_tasks_and_values():
    prior = OptimizationTaskPrior(
        size=OptimizationSize(num_context=2, num_queries=2, num_features=2)
    )
    task = prior.sample(4000, generator=seeded(), dtype=torch.float64)
    latents = task.latents
    assert within((latents["skew"] != 0).double(), 0.3)
    assert within((latents["warp_a"] != 1).all(-1).double(), 0.5)
    plain = latents["skew"] == 0
    z = task.row_latents["z"]
    assert torch.equal(task.f[plain][..., 0], z[plain])
    assert not torch.isclose(task.f[~plain][..., 0], z[~plain]).all()
    ratio = ((task.y - task.f)[..., 0] ** 2).mean(-1) / task.noise_var
    assert within(ratio, 1.0)


def test_a_round_lies_near_good_points_and_queries_near_the_best():
    X = torch.rand(500, 40, 3, generator=seeded(), dtype=torch.float64)
    y = -(X - 0.5).abs().sum(-1)
    best = X.gather(1, y.argmax(-1)[:, None, None].expand(-1, 1, 3))
    yes = torch.ones(500, dtype=torch.bool)
    new, near = _place(double(1), X, y, 20, False, yes)
    distance = (new - 0.5).abs().sum(-1)
    assert within(near.double().mean(-1), 0.8)
    assert distance[near].mean() < distance[~near].mean() - 0.15
    queries, near = _place(double(1), X, y, 20, True, yes)
    assert (near.sum(-1) == 10).all()
    assert within(near.double(), 0.5)  # in every place
    assert within((near[:, :10].sum(-1) - 5.0).square(), 10 / 4 * 10 / 19)  # of random halves
    distance = (queries - best).norm(dim=-1)
    assert distance[near].median() < 0.2 < distance[~near].median()
    assert not _place(double(1), X, y, 20, False, ~yes)[1].any()


def test_oracle_is_calibrated_and_exact_on_three_points():
    prior = OptimizationTaskPrior(
        size=OptimizationSize(num_context=20, num_features=2), output_warping=0
    )
    task = prior.sample(600, generator=seeded(5), dtype=torch.float64)
    posterior = prior.oracle(task)
    error = (task.y[:, 20:, 0] - posterior.mean[..., 0]) ** 2 / posterior.variance[..., 0]
    assert within(error.mean(-1), 1.0)

    small = OptimizationTaskPrior(
        size=OptimizationSize(num_context=2, num_queries=1), output_warping=0
    )
    task = small.sample(1, generator=seeded(6), dtype=torch.float64)
    K = small.covariance(task.X, task.X, task.latents)[0] + 1e-8 * torch.eye(3)
    K = K + task.noise_var * torch.eye(3)
    weights = torch.linalg.solve(K[:2, :2], K[:2, 2])
    posterior = small.oracle(task)
    assert float(posterior.mean) == pytest.approx(float(weights @ task.y[0, :2, 0]))
    assert float(posterior.variance) == pytest.approx(float(K[2, 2] - weights @ K[:2, 2]))


def test_oracle_of_no_context_is_the_prior():
    prior = OptimizationTaskPrior(
        size=OptimizationSize(num_context=0, num_queries=4), output_warping=0
    )
    task = prior.sample(3, generator=seeded())
    posterior = prior.oracle(task)
    assert posterior.mean.dtype == torch.get_default_dtype()
    assert (posterior.mean == 0).all()


def test_oracle_refuses_warped_outputs():
    prior = OptimizationTaskPrior(size=OptimizationSize(num_context=3), output_warping=1)
    with pytest.raises(ValueError, match="output_warping=0"):
        prior.oracle(prior.sample(2, generator=seeded()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizationTaskPrior(adaptive=-0.1), "adaptive is a probability"),
        (lambda: OptimizationSize(max_features=0), "max_features must be at least 1"),
        (lambda: OptimizationSize(num_context=-1), "num_context must be at least 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
