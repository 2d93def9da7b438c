"""The shipped networks: they load, say how good they are, and infer."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

import pfn
from pfn.checkpoints.recipes import RECIPES
from priors import score

mpl.use("Agg")
FOLDER = Path(pfn.__file__).parent / "checkpoints"
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.safetensors"))


@pytest.fixture(scope="module")
def regression():
    return pfn.load("regression")


def test_regression_is_shipped_and_every_network_has_a_recipe():
    assert "regression" in SHIPPED
    assert set(SHIPPED) <= set(RECIPES)


def test_sizes_of_the_files():
    sizes = [file.stat().st_size for file in FOLDER.glob("*.safetensors")]
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 40 * 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_metadata(name):
    network, recipe = pfn.load(name), RECIPES[name]()
    assert network.architecture == recipe.config.architecture
    assert (network.inputs, network.targets) == (recipe.config.inputs, recipe.config.targets)
    assert network.metadata["command"].startswith(f"python -m pfn train {name}")
    assert network.metadata["training"]["prior"] == recipe.prior.description
    assert network.tasks_seen > 10_000
    measured = network.certificate
    assert measured.reference == ("none" if recipe.reference is None else recipe.reference_is)
    assert list(measured.by_context) == list(recipe.certified["context_sizes"])
    if recipe.lower_reference is not None:
        for row in measured.by_context.values():
            assert math.isnan(row.lower) or row.lower < row.gap + 3 * row.lower_error
        assert math.isfinite(measured.by_context[5].lower)
    if not network.architecture.classes:
        columns = {"columns"} if network.coverage.exchangeable else set()
        assert measured.coherence.keys() == {"martingale", "order"} | columns
        assert not measured.ece
    else:
        assert list(measured.ece) == list(measured.ece_error) == list(measured.by_context)
        for n, error in measured.ece_error.items():
            assert measured.ece[n] > measured.ece_expected[n] - 4 * error
    assert network.coverage.max_context >= max(measured.by_context)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learning-curve", {"num_tasks": 32, "context_sizes": (5, 80)}),
        *(pytest.param(name, {"num_tasks": 64}, marks=pytest.mark.slow) for name in SHIPPED),
    ],
    ids=["two sizes", *SHIPPED],
)
def test_certificates_are_reproducible(name, options):
    """A fresh, smaller measurement agrees with the stored one within its standard errors."""
    network, recipe = pfn.load(name), RECIPES[name]()
    measured = recipe.certificate(network, seed=7, lower_reference=None, progress=False, **options)
    assert measured.by_context
    for size, row in measured.by_context.items():
        stored = network.certificate.by_context[size]
        if math.isfinite(row.gap):
            assert abs(row.gap - stored.gap) < 4.5 * math.hypot(row.gap_error, stored.gap_error)
        if math.isfinite(row.coverage90):
            error = (0.9 * 0.1 / row.tasks) ** 0.5  # if the queries of a task share their fate
            assert abs(row.coverage90 - stored.coverage90) < 4 * error


def test_diabetes_beats_the_training_mean_by_a_wide_margin(regression):
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, y = torch.tensor(X), torch.tensor(y)[:, None]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:256], order[256:]
    posterior = regression.condition(X[train], y[train]).posterior(X[test], observation_noise=True)
    scores = score(posterior, y[test])
    mean = torch.distributions.Normal(y[train].mean(), y[train].std())
    baseline = -mean.log_prob(y[test]).mean()
    assert scores.nlpd < baseline - 0.2
    assert scores.rmse < 0.8 * (y[test] - y[train].mean()).square().mean().sqrt()
    assert 0.8 < scores.coverage < 0.97


@pytest.mark.parametrize("d", [1, 4])
def test_a_smooth_function_is_learnt_and_uncertainty_grows_away_from_data(regression, d):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(100, d, generator=generator)
    y = torch.sin(2 * X[:, :1]) + 0.1 * torch.randn(100, 1, generator=generator)
    model = regression.condition(X, y)
    Q = torch.randn(200, d, generator=generator)
    f = model.posterior(Q)
    truth = torch.sin(2 * Q[:, :1])
    explained = 1 - (f.mean - truth).square().mean() / truth.var()
    assert explained > 0.7  # a linear model explains less than a third
    far = model.posterior(6 + torch.rand(20, d, generator=generator))
    assert far.variance.mean() > 3 * f.variance.mean()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_gaps_by_context_rows(name):
    measured = pfn.load(name).certificate
    assert measured.gaps == {n: row.gap for n, row in measured.by_context.items()}
    assert all(math.isfinite(gap) for gap in measured.gaps.values())
    size = max(measured.by_context)
    unknown = replace(measured.by_context[size], gap=math.nan)
    fewer = replace(measured, by_context={**measured.by_context, size: unknown})
    assert fewer.gaps == {n: gap for n, gap in measured.gaps.items() if n != size}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_certificate_is_drawn(name):
    measured = pfn.load(name).certificate
    figure = measured.plot()
    losses, shares = figure.axes
    sizes = sorted(measured.by_context)
    gaps = next(line for line in losses.lines if len(line.get_xdata()) == len(sizes))
    assert list(gaps.get_ydata()) == [measured.gaps[size] for size in sizes]
    (bars,) = losses.containers[0].lines[2]
    height = [part[1, 1] - part[0, 1] for part in bars.get_segments()]
    np.testing.assert_allclose(height, [4 * measured.by_context[n].gap_error for n in sizes])
    bracket = any(math.isfinite(row.lower) for row in measured.by_context.values())
    assert len(losses.containers) == 1 + bracket
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert (labels[0] == "at most") == (measured.reference == "upper bound")
    drawn = [line for line in shares.lines if line.get_linestyle() != ":"]
    assert len(drawn) == (1 if pfn.load(name).architecture.classes else 4)
    row = measured.by_context[sizes[-1]]
    assert drawn[0].get_ydata()[-1] in (row.accuracy, row.coverage50)
    assert [tick.get_text() for tick in shares.get_xticklabels()] == [str(n) for n in sizes]
    plt.close(figure)


def test_a_certificate_without_a_reference_shows_the_loss():
    measured = pfn.load("regression").certificate
    unknown = {n: replace(row, gap=math.nan) for n, row in measured.by_context.items()}
    figure = replace(measured, reference="none", by_context=unknown).plot()
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == [unknown[n].nll for n in sorted(unknown)]
    plt.close(figure)
    with pytest.raises(ValueError, match="no measurements by number of context rows"):
        replace(measured, by_context={}).plot()
