"""Tasks made of other tasks: columns of tables, mixtures, classes."""

import math

import pytest
import torch

from priors import (
    ClassificationTaskPrior,
    LinearTaskPrior,
    MixtureTaskPrior,
    RandomInputs,
    RandomNoise,
    Tabular,
    TaskSize,
    TreeTaskPrior,
)
from priors.randomness import RandomSource
from priors.tasks.tables import _warp

SIZE = TaskSize(num_features=5, num_context=80, num_queries=20)
LINEAR = LinearTaskPrior(size=SIZE)
CLEAN = {"categorical": 0.0, "missing": 0.0, "irrelevant": 0.0, "warp": 0.0, "warp_target": 0.0}


def table(**changes):
    return Tabular(LINEAR, **{**CLEAN, **changes})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def within(values, expected, errors=4.0):
    """The mean of independent values agrees with its expectation."""
    values = values.double().flatten()
    return abs(values.mean() - expected) < errors * values.std() / math.sqrt(len(values))


def test_nothing_changed_is_the_underlying_task():
    task, plain = (p.sample(4, generator=seeded()) for p in (table(), LINEAR))
    assert torch.equal(task.X, plain.X)
    assert torch.equal(task.y, plain.y)
    assert not task.categorical.any()
    assert (task.latents["column"] == torch.arange(5)).all()


def test_categorical_columns():
    task = table(categorical=0.3).sample(800, generator=seeded())
    assert within(task.categorical.float().mean(1), 0.3)
    plain = LINEAR.sample(800, generator=seeded())
    rising = []
    for b, j in task.categorical.nonzero()[:200].tolist():
        column, old = task.X[b, :, j], plain.X[b, :, j]
        assert torch.equal(column, column.round())
        assert column.min() >= 0
        assert column.max() <= 9
        # every category is an interval of the old values
        ordered = column[old.argsort(stable=True)]
        assert (ordered.diff() != 0).sum() == len(column.unique()) - 1
        if len(column.unique()) > 2:
            rising.append(bool((ordered.diff() >= 0).all()))
    kept = ~task.categorical[:, None].expand_as(task.X)
    assert torch.equal(task.X[kept], plain.X[kept])
    # numbered at random: most columns of several categories are out of order
    assert sum(rising) / len(rising) < 0.5
    assert torch.equal(task.y, plain.y)


@pytest.mark.parametrize("mean", [0.05, 0.25, 0.7])
def test_missing_values_have_their_share_and_depend_on_the_value(mean):
    task = table(missing=mean).sample(600, generator=seeded())
    plain = LINEAR.sample(600, generator=seeded())
    gone = task.X.isnan()
    assert within(gone.double().mean((1, 2)), mean)
    assert torch.equal(task.X[~gone], plain.X[~gone])
    assert task.y.isfinite().all()
    # where the largest go, the mean of what is left falls: a spread that chance does not have
    shift = (plain.X * gone).sum(1) / gone.sum(1).clamp_min(1)
    assert shift[gone.sum(1) > 5].abs().std() > 0.3


def test_many_tasks_miss_nothing():
    task = table(missing=0.2).sample(400, generator=seeded())
    assert 0.4 < (task.X.isnan().sum((1, 2)) == 0).float().mean() < 0.65


def test_irrelevant_columns_come_at_random_positions():
    counts, places = [], []
    generator = seeded()
    for _ in range(200):
        task = table(irrelevant=0.4).sample(6, generator=generator)
        column = task.latents["column"]
        assert column.shape == (6, task.X.shape[-1])
        assert (column.sort(-1).values[:, -5:] == torch.arange(5)).all()
        counts.append(task.X.shape[-1] - 5)
        if counts[-1]:
            places.append((column[:, 0] == -1).double() - counts[-1] / task.X.shape[-1])
        order = column.argsort(-1)[:, counts[-1] :]
        X = task.X.gather(-1, order[:, None].expand(6, 100, 5))
        w = torch.linalg.lstsq(torch.cat([X, torch.ones(6, 100, 1)], -1).double(), task.f.double())
        fitted = torch.cat([X, torch.ones(6, 100, 1)], -1).double() @ w.solution
        if not (torch.linalg.matrix_rank(X) < 5).any():
            torch.testing.assert_close(fitted.float(), task.f, atol=1e-3, rtol=1e-3)
    assert within(torch.tensor(counts), 0.4 * 5)
    assert max(counts) == 4
    assert within(torch.cat(places), 0.0)
    few = Tabular(LINEAR, **{**CLEAN, "irrelevant": 1.0}, max_features=6)
    assert max(few.sample(1, generator=generator).X.shape[-1] for _ in range(30)) == 6
    none = Tabular(LINEAR, irrelevant=1.0, max_features=5)
    assert none.sample(1, generator=generator).X.shape[-1] == 5


def test_warps_are_increasing_and_keep_the_scale():
    z = RandomSource(seeded(), dtype=torch.float64).normal(500, 2000, 1).sort(1).values
    warped = _warp(RandomSource(seeded(1), dtype=torch.float64), z, 500, 1, 1)
    assert (warped.diff(dim=1) >= 0).all()
    assert warped.mean().abs() < 0.02
    assert 0.8 < warped.var(1).mean() < 1.5
    task = table(warp=0.5).sample(300, generator=seeded())
    plain = LINEAR.sample(300, generator=seeded())
    changed = (task.X != plain.X).any(1)
    assert within(changed.double().mean(1), 0.5)


def test_warped_targets_warp_the_function_alike():
    task = table(warp_target=0.5).sample(400, generator=seeded())
    plain = LINEAR.sample(400, generator=seeded())
    changed = task.noise_var.isinf()
    assert 0.4 < changed.float().mean() < 0.6
    assert torch.equal(task.y[~changed], plain.y[~changed])
    assert torch.equal(task.noise_var[~changed], plain.noise_var[~changed])
    for i in changed.nonzero()[:20, 0].tolist():
        old = torch.cat([plain.y[i, :, 0], plain.f[i, :, 0]])
        new = torch.cat([task.y[i, :, 0], task.f[i, :, 0]])
        assert (new[old.argsort()].diff() >= 0).all()
    rows = Tabular(
        LinearTaskPrior(size=SIZE, noise=RandomNoise(heteroscedastic=1.0)),
        **{**CLEAN, "warp_target": 1.0},
    )
    noise_var = rows.sample(3, generator=seeded()).noise_var
    assert noise_var.shape == (3, 100)
    assert noise_var.isinf().all()


def test_tables_of_tables_and_of_classes():
    inner = Tabular(LINEAR, categorical=0.6, missing=0.0, irrelevant=1.0)
    task = Tabular(inner, categorical=0.6, irrelevant=1.0).sample(20, generator=seeded())
    numbers = task.X.transpose(1, 2)[task.categorical]
    numbers = numbers[~numbers.isnan()]
    assert torch.equal(numbers, numbers.round())
    assert numbers.min() >= 0
    classes = Tabular(ClassificationTaskPrior(LINEAR), warp_target=1.0)
    task = classes.sample(20, generator=seeded())
    assert torch.equal(task.y, task.y.round())


def test_mixtures_draw_components_by_weight():
    other = LinearTaskPrior(size=TaskSize(num_features=2, num_context=3, num_queries=1))
    mixture = MixtureTaskPrior([LINEAR, other, LINEAR], [1.0, 3.0, 0.0])
    generator = seeded()
    drawn = [mixture.sample(2, generator=generator) for _ in range(1000)]
    component = torch.stack([task.latents["component"] for task in drawn])
    assert (component[:, 0] == component[:, 1]).all()
    assert all((t.X.shape[-1] == 2) == bool(t.latents["component"][0]) for t in drawn)
    assert within(component[:, 0], 0.75)
    assert "0.75 linear" in mixture.description
    assert MixtureTaskPrior([LINEAR]).weights == (1.0,)


@pytest.mark.parametrize("intervals", [0.0, 1.0])
def test_classes(intervals):
    prior = ClassificationTaskPrior(LINEAR, max_classes=6, intervals=intervals, max_label_noise=0.0)
    task = prior.sample(600, generator=seeded())
    label, count = task.y[..., 0], task.num_classes
    assert count.min() == 2
    assert count.max() == 6
    assert set(count.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(label, label.round())
    assert label.min() == 0
    assert (label < count[:, None]).all()
    assert task.f is None
    assert task.noise_var.isinf().all()
    present = torch.stack([(label == k).any(1) for k in range(6)], 1)
    assert (present.sum(1) / count).mean() > 0.8
    # numbered at random: no number is more common than another
    for number in range(2):
        assert within((label == number).double().mean(1) - 1 / count, 0.0)
    share = (label == 0).double().mean(1)
    assert share[count == 2].std() > 0.1  # imbalance


def test_interval_classes_are_intervals_of_the_target():
    prior = ClassificationTaskPrior(LINEAR, intervals=1.0, max_label_noise=0.0)
    generator = seeded()
    torch.rand((), generator=generator, dtype=torch.float64)  # what chooses the rule
    y = LINEAR.sample(50, generator=generator).y[..., 0]
    task = prior.sample(50, generator=seeded())
    for target, label in zip(y, task.y[..., 0], strict=True):
        assert (label[target.argsort()].diff() != 0).sum() == len(label.unique()) - 1


def test_label_noise_has_its_share():
    clean, noisy = (
        ClassificationTaskPrior(LINEAR, max_label_noise=m).sample(1500, generator=seeded())
        for m in (0.0, 0.6)
    )
    share, count = noisy.latents["label_noise"], noisy.num_classes
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share.max() <= 0.6
    changed = (clean.y != noisy.y).float().mean((1, 2))
    assert within(changed - share * (1 - 1 / count), 0.0)
    assert (changed[share == 0] == 0).all()


def test_what_is_known_of_labels_before_their_noise():
    inner = ClassificationTaskPrior(LINEAR, max_classes=5, max_label_noise=0.6)
    prior = Tabular(MixtureTaskPrior([inner, inner]), max_features=6)
    task = prior.sample(2000, generator=seeded(), dtype=torch.float64)
    known = ClassificationTaskPrior.oracle(task)
    y = task.y[:, task.num_context :]
    probs = known.probs
    assert probs.shape == (2000, 20, 1, 5)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2000, 20, 1, dtype=torch.float64))
    impossible = torch.arange(5) >= task.num_classes[:, None]
    assert (probs[:, :, 0].transpose(1, 2)[impossible] == 0).all()
    assert ((y == probs.argmax(-1)) | (task.latents["label_noise"] > 0)[:, None, None]).all()
    # A probability forecast that is right: its scores have the expected mean, in every class.
    surprise = (known.log_prob(y) + known.entropy()).mean((1, 2))
    assert within(surprise, 0.0)
    for k in range(5):
        assert within(((y == k).double() - probs[..., k]).mean((1, 2)), 0.0)


def test_classes_of_other_priors():
    trees = TreeTaskPrior(size=SIZE, noise=None)
    task = ClassificationTaskPrior(trees, intervals=0.0).sample(8, generator=seeded())
    assert (task.y[..., 0] < task.num_classes[:, None]).all()
    mixture = ClassificationTaskPrior(MixtureTaskPrior([trees, LINEAR]), intervals=0.0)
    assert mixture.sample(8, generator=seeded()).num_classes.max() <= 10
    with pytest.raises(ValueError, match="needs a prior over regression"):
        ClassificationTaskPrior(ClassificationTaskPrior(LINEAR)).sample(2)


@pytest.mark.parametrize(("d", "n"), [(1, 0), (1, 1), (20, 2), (7, 200)])
def test_sizes(d, n):
    inner = LinearTaskPrior(size=TaskSize(num_features=d, num_context=n, num_queries=2))
    for prior in (Tabular(inner, missing=0.9), ClassificationTaskPrior(inner)):
        for seed in range(4):
            task = prior.sample(3, generator=seeded(seed))
            assert task.X.shape[:2] == (3, n + 2)
            assert task.X.shape[2] >= d
            assert not task.X.isinf().any()
            assert task.y.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tabular(LINEAR, missing=1.5), "missing must lie in"),
        (lambda: Tabular(LINEAR, max_features=0), "max_features must be at least 1"),
        (lambda: MixtureTaskPrior([]), "at least one prior"),
        (lambda: MixtureTaskPrior([LINEAR], [1.0, 2.0]), "got 2 weights for 1 priors"),
        (lambda: MixtureTaskPrior([LINEAR], [0.0]), "not all 0"),
        (lambda: ClassificationTaskPrior(LINEAR, max_classes=1), "max_classes must be at least 2"),
        (lambda: ClassificationTaskPrior(LINEAR, intervals=2.0), "intervals must lie in"),
        (lambda: RandomInputs(("line", "cube")), "kinds of inputs"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
