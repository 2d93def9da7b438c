"""Tasks of learning curves: what the prior states about them holds."""

import math

import pytest
import torch

from priors import LearningCurveSize, LearningCurveTaskPrior, TaskPrior, log_time
from priors.randomness import RandomSource
from priors.tasks.training_curves import FAMILIES, _growth, _related


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def within(values, expected, axis=0):
    """Mean over independent tasks is `expected`, to five standard errors."""
    error = values.std(axis) / math.sqrt(values.shape[axis])
    return bool(((values.mean(axis) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_ranges_and_protocol(dtype):
    prior = LearningCurveTaskPrior()
    assert isinstance(prior, TaskPrior)
    assert "learning curves" in prior.description
    generator = seeded()
    sizes = set()
    for _ in range(60):
        task = prior.sample(3, generator=generator, dtype=dtype)
        B, N, d = task.X.shape
        sizes.add((task.num_context, d))
        assert (B, N) == (3, task.num_context + 64)
        assert 1 <= d <= 5
        assert 0 <= task.num_context <= 256
        assert task.y.shape == task.f.shape == (B, N, 1)
        assert task.noise_var.shape == (B, N)
        assert {task.X.dtype, task.y.dtype, task.f.dtype, task.noise_var.dtype} == {dtype}
        for value in (task.X, task.y, task.f):
            assert (value >= 0).all()
            assert (value <= 1).all()
        assert (task.X[..., 0] > 0).all()
        assert (task.noise_var > 0).all()
    assert {d for _, d in sizes} == {1, 2, 3, 4, 5}
    assert len({n for n, _ in sizes}) > 20


def test_default_dtype_and_fixed_sizes():
    prior = LearningCurveTaskPrior(
        size=LearningCurveSize(num_hyperparameters=2, num_curves=5, num_context=30)
    )
    task = prior.sample(2, generator=seeded())
    assert task.y.dtype == torch.get_default_dtype()
    assert task.X.shape == (2, 94, 3)
    assert task.latents["diverged"].shape == (2, 5)
    several = LearningCurveTaskPrior(size=LearningCurveSize(num_curves=3, num_context=0))
    assert {several.sample(1, generator=seeded(i)).X.shape[-1] for i in range(40)} == {2, 3, 4, 5}


def test_the_generator_determines_the_tasks_and_the_global_one_is_not_used():
    prior = LearningCurveTaskPrior()
    before = torch.get_rng_state()
    one, two, other = (prior.sample(4, generator=seeded(s)) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.X, two.X)
    assert torch.equal(one.y, two.y)
    assert one.y.shape != other.y.shape or not torch.equal(one.y, other.y)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_shares_of_failures_are_as_stated(share):
    prior = LearningCurveTaskPrior(
        size=LearningCurveSize(num_curves=6, num_context=0),
        failure=share,
        divergence=share,
        overfitting=share,
    )
    latents = prior.sample(3000, generator=seeded()).latents
    for name in ("failed", "diverged", "overfits"):
        shares = latents[name].double().mean(-1)
        if share in (0.0, 1.0):
            assert (shares == share).all()
        else:
            assert within(shares, share)


def test_diverged_curves_fall_and_others_rise():
    prior = LearningCurveTaskPrior(
        size=LearningCurveSize(num_curves=6, num_context=0),
        failure=0,
        overfitting=0,
        divergence=0.3,
    )
    task = prior.sample(200, generator=seeded(), dtype=torch.float64)
    f = prior.curves(task, torch.linspace(1e-3, 1, 500))
    assert f.shape == (200, 6, 500)
    fallen = (f.diff().amin(-1) < -1e-9) & task.latents["diverged"]
    assert not ((f.diff().amin(-1) < -1e-9) & ~task.latents["diverged"]).any()
    # one that falls before it has risen changes nothing
    assert fallen.sum() > 0.9 * task.latents["diverged"].sum()


def test_each_family_rises_from_0_to_1():
    u = torch.cat([torch.zeros(1), torch.logspace(-6, 12, 400)]).double()
    shape = torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64)[:, None, None]
    growth = _growth(
        u[None, :, None].expand(3, -1, len(FAMILIES)), shape.expand(3, len(u), len(FAMILIES))
    )
    assert (growth[:, 0] == 0).all()
    assert (growth.diff(dim=1) >= -1e-15).all()
    assert (growth <= 1).all()
    fast = [FAMILIES.index(name) for name in FAMILIES if name != "ilog2"]
    assert (growth[:, -1, fast] > 0.999).all()
    # pow4, exp, ilog2, Weibull and MMF at one point, by hand
    at_3 = _growth(torch.full((5,), 3.0).double(), torch.full((5,), 2.0).double())
    expected = [
        1 - 1 / 16,
        1 - math.exp(-3),
        1 - 1 / math.log2(5),
        1 - math.exp(-9),
        0.9,
    ]
    torch.testing.assert_close(at_3, torch.tensor(expected, dtype=torch.float64))


def test_curves_are_monotone_without_failures():
    prior = LearningCurveTaskPrior(failure=0, divergence=0, overfitting=0)
    generator = seeded()
    for _ in range(20):
        task = prior.sample(30, generator=generator, dtype=torch.float64)
        assert (prior.curves(task, torch.linspace(1e-4, 1, 300)).diff() >= -1e-12).all()


def test_rows_are_points_of_the_curves():
    prior = LearningCurveTaskPrior(size=LearningCurveSize(num_curves=4, num_context=20))
    task = prior.sample(5, generator=seeded(), dtype=torch.float64)
    curve, steps = task.row_latents["curve"], task.latents["steps"]
    step = torch.expm1(task.X[..., 0] * torch.log1p(steps)[:, None])
    for b in range(5):
        for i in (0, 7, 19, 20, 50, 83):
            f = prior.curves(task, (step[b, i] / steps[b])[None])[b, curve[b, i], 0]
            torch.testing.assert_close(f, task.f[b, i, 0], rtol=1e-9, atol=1e-12)
            h = task.latents["hyperparameters"][b, curve[b, i]]
            assert torch.equal(h, task.X[b, i, 1:])


def test_context_of_each_curve_precedes_its_queries():
    prior = LearningCurveTaskPrior()
    generator = seeded(1)
    finals = cut = unseen = ended = 0
    for _ in range(80):
        task = prior.sample(4, generator=generator, dtype=torch.float64)
        n, curve, time = task.num_context, task.row_latents["curve"], task.X[..., 0]
        same = curve[:, :n, None] == curve[:, None, n:]
        later = time[:, None, n:] > time[:, :n, None] + 1e-9
        assert (later | ~same).all()
        finals += int((time[:, n:] == 1).any(-1).sum())
        unseen += int((~same).all(1).any(-1).sum())
        cut += int(same.any())
        assert (task.latents["steps"] >= 5).all()
        ended += int((time[:, :n] == 1).any(-1).sum())
    assert finals > 250
    assert unseen > 50
    assert 5 < ended < 100
    assert cut > 60


def test_context_is_a_prefix_of_every_step_in_most_tasks():
    prior = LearningCurveTaskPrior(size=LearningCurveSize(num_curves=5, num_context=60))
    task = prior.sample(300, generator=seeded(), dtype=torch.float64)
    steps = task.latents["steps"][:, None]
    step = torch.expm1(task.X[:, :60, 0] * torch.log1p(steps))
    whole = (step - step.round()).abs().amax(-1) < 1e-6
    assert 0.6 < whole.double().mean() < 0.8
    for b in whole.nonzero()[:50, 0]:
        for c in range(5):
            mine = step[b, task.row_latents["curve"][b, :60] == c].round()
            assert torch.equal(mine, torch.arange(1.0, len(mine) + 1).double())


def test_noise_has_its_variance_and_is_larger_early():
    prior = LearningCurveTaskPrior(size=LearningCurveSize(num_context=256, num_curves=8))
    task = prior.sample(400, generator=seeded(2), dtype=torch.float64)
    ratio = ((task.y - task.f)[..., 0] ** 2 / task.noise_var).mean(-1)
    assert within(ratio, 1.0)
    bias = ((task.y - task.f)[..., 0] / task.noise_var.sqrt()).mean(-1)
    assert within(bias, 0.0)
    relative = (task.noise_var / (task.f * (1 - task.f))[..., 0]).log()
    early = task.X[..., 0] < 0.5
    assert relative[early].mean() > relative[~early].mean() + 0.3


def test_quantities_are_standard_normal_and_alike_for_similar_settings():
    h = torch.rand(4000, 1, 3, generator=seeded(), dtype=torch.float64)
    h = torch.cat([h, h + 0.02, 1 - h], 1)
    z = _related(h, 2, RandomSource(seeded(1), dtype=torch.float64))
    assert within(z, 0.0)
    assert within(z**2, 1.0)
    assert within(z**4, 3.0)
    near, far = (z[:, 0] * z[:, 1]).mean(), (z[:, 0] * z[:, 2]).mean()
    assert near > 0.8 > far + 0.2


def test_the_oracle_is_the_distribution_of_the_queries():
    task = LearningCurveTaskPrior(size=LearningCurveSize(num_context=20)).sample(
        500, generator=seeded(), dtype=torch.float64
    )
    known = LearningCurveTaskPrior().oracle(task)
    torch.testing.assert_close(known.mean, task.f[:, 20:])
    torch.testing.assert_close(known.variance[..., 0], task.noise_var[:, 20:])
    # Beta(a, b) has log density of mean -entropy; values next to 0 and 1 are moved
    inner = (known.concentration0 > 1) & (known.concentration1 > 1)
    surprise = (known.log_prob(task.y[:, 20:]) + known.entropy())[inner]
    assert abs(surprise.mean()) < 4 * surprise.std() / len(surprise) ** 0.5


def test_some_curves_cross():
    prior = LearningCurveTaskPrior(
        size=LearningCurveSize(num_curves=2, num_context=0), failure=0, divergence=0, overfitting=0
    )
    task = prior.sample(500, generator=seeded(), dtype=torch.float64)
    difference = prior.curves(task, torch.tensor([0.1, 1.0])).diff(dim=1)[:, 0]
    crossed = (difference[:, 0] * difference[:, 1] < 0) & (difference.abs().amin(-1) > 0.01)
    assert 0.03 < crossed.double().mean() < 0.5


def test_log_time():
    assert float(log_time(7, 7)) == 1
    assert float(log_time(1.0, 3.0)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearningCurveTaskPrior(divergence=1.2), "probability"),
        (lambda: LearningCurveSize(max_curves=0), "max_curves must be at least 1"),
        (lambda: LearningCurveSize(num_context=-1), "num_context must be at least 0"),
        (lambda: LearningCurveSize(num_curves=3, num_hyperparameters=0), "distinguished"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
