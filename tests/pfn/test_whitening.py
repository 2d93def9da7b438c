"""Columns that are alike: their components, which columns they are of, and who sees them."""

import numpy as np
import pytest
import torch

from pfn import PFNRegressor, load
from pfn.estimators.whitening import Whitening


def alike(n=200, d=2, share=0.05, seed=0):
    random = np.random.RandomState(seed)
    return 3 + 7 * (random.randn(n, 1) + share * random.randn(n, d)) * (1 + np.arange(d))


def every(X):
    return np.ones(X.shape[1], dtype=bool)


def test_two_columns_become_their_sum_and_difference():
    X = alike()
    found = Whitening.fit(X, every(X)).apply(X)
    z = (X - X.mean(0)) / X.std(0, ddof=1)
    r = np.corrcoef(X.T)[0, 1]
    unit = np.sqrt((len(X) - 1) / len(X))  # deviations with n and with n - 1 rows
    for i, (combined, variance) in enumerate(
        [(z[:, 0] + z[:, 1], 2 * (1 + r)), (z[:, 0] - z[:, 1], 2 * (1 - r))]
    ):
        wanted = combined / np.sqrt(variance) / unit
        sign = np.sign(wanted @ found[:, i])
        np.testing.assert_allclose(sign * found[:, i], wanted, rtol=1e-8, atol=1e-10)


def test_only_columns_that_are_alike_are_changed():
    random = np.random.RandomState(1)
    X = np.concatenate([random.randn(200, 2), alike(d=3), random.randint(3, size=(200, 1))], 1)
    X[5, 0] = np.nan
    numeric = np.array([True] * 5 + [False])
    whitening = Whitening.fit(X, numeric)
    found = whitening.apply(X)
    wanted = (X[:, :2] - np.nanmean(X[:, :2], 0)) / np.nanstd(X[:, :2], 0, ddof=1)
    np.testing.assert_allclose(found[:, :2], np.nan_to_num(wanted), atol=1e-12)
    np.testing.assert_array_equal(found[:, 5], X[:, 5])
    np.testing.assert_allclose(found[:, 2:5].T @ found[:, 2:5] / 200, np.eye(3), atol=1e-9)
    new = X[:7] + 0.1
    np.testing.assert_allclose(
        whitening.apply(new)[:, 2:5],
        ((new[:, 2:5] - whitening.location[2:]) / whitening.scale[2:])
        @ whitening.components[2:, 2:],
    )


def test_chains_of_columns_are_one_group():
    random = np.random.RandomState(2)
    steps = np.cumsum(random.randn(400, 4) * [1.0, 0.4, 0.4, 0.4], axis=1)
    correlations = np.corrcoef(steps.T)
    assert (np.diag(correlations, 1) > 0.9).all()
    assert correlations[0, 3] < 0.9
    found = Whitening.fit(steps, every(steps)).apply(steps)
    np.testing.assert_allclose(found.T @ found / 400, np.eye(4), atol=1e-9)


def test_equal_columns_become_one():
    X = alike()[:, [0, 0, 1]]
    found = Whitening.fit(X, every(X)).apply(X)
    np.testing.assert_allclose(found.T @ found / 200, np.diag([1, 1, 0]), atol=1e-8)


@pytest.mark.parametrize(
    "X",
    [
        np.random.RandomState(0).randn(100, 6),
        alike(n=12),
        alike(n=30, d=10),
        alike(d=1),
        np.ones((40, 3)),
        np.full((40, 2), np.nan),
    ],
    ids=["independent", "few rows", "few rows for so many", "single", "constant", "missing"],
)
def test_nothing_is_alike(X):
    assert Whitening.fit(X, every(X)) is None


def test_differences_of_columns_are_seen():
    """The target is a function of a difference of a hundredth of what the columns vary."""
    random = np.random.RandomState(0)
    z = random.randn(120, 2)
    X = random.randn(120, 1) + 0.01 * z
    y = np.sin(2 * (z[:, 0] - z[:, 1]))
    network, scores = load("regression"), []
    for whitening in (False, True):
        made = PFNRegressor(network, whitening=whitening, check=False).fit(X[:60], y[:60])
        whitened = [i for i, member in enumerate(made._members) if member.whitening is not None]
        assert whitened == ([3, 4, 7] if whitening else [])
        scores.append(made.log_likelihood(X[60:], y[60:]).mean())
    assert scores[1] > scores[0] + 0.3


def test_without_such_columns_nothing_changes():
    random = np.random.RandomState(0)
    X, y = random.randn(30, 3), random.randn(30)
    network = load("regression")
    found = [
        PFNRegressor(network, whitening=w, check=False, num_ensemble=4).fit(X, y).predict(X[:3])
        for w in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)
