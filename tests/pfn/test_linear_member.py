"""The linear member of a classifier's ensemble: its fit, its weight, and what it is worth."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import multivariate_normal

import pfn
from pfn.estimators import PFNClassifier, classifier, linear
from pfn.estimators.linear import LinearMember, folds_of, pool, pool_weight
from priors.tables import Columns, Features, read_columns


def linear_data(n=120, d=6, seed=0, slope=6.0):
    """Two classes by a logistic regression, and its own log probabilities."""
    random = np.random.RandomState(seed)
    X = random.randn(n, d)
    score = slope * X @ np.linspace(-1, 1, d)
    y = (random.rand(n) < 1 / (1 + np.exp(-score))).astype(int)
    return X, y, log_softmax(np.stack([np.zeros(n), score], axis=1), axis=1)


def features_of(X):
    columns = Columns.fit(read_columns(X), "auto")
    return Features.fit(X, columns)


def log_loss(probabilities, y):
    return float(-np.log(probabilities[np.arange(len(y)), y]).mean())


def test_folds_spread_every_class():
    y = np.random.RandomState(0).permutation(np.repeat([0, 1, 2], [50, 7, 3]))
    folds = folds_of(y)
    for number, count in enumerate((50, 7, 3)):
        sizes = np.bincount(folds[y == number], minlength=linear.FOLDS)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == count


def test_the_weight_is_that_of_the_largest_score():
    _, y, truth = linear_data(4000)
    ignorant = np.full_like(truth, np.log(0.5))
    assert pool_weight(ignorant, truth, y) > 0.9
    assert pool_weight(truth, ignorant, y) < 0.1
    timid = log_softmax(0.3 * truth, axis=1)
    found = pool_weight(timid, 1.7 * truth - 0.7, y)
    scores = [
        pool(timid, 1.7 * truth - 0.7, w)[np.arange(4000), y].sum() - 2 * w
        for w in np.linspace(0, 1, 1001)
    ]
    assert found == pytest.approx(np.argmax(scores) / 1000, abs=0.011)


def test_equal_models_are_no_reason_for_a_linear_member():
    _, y, truth = linear_data(30)
    assert pool_weight(truth, truth, y) == 0


def test_a_geometric_pool_is_a_distribution():
    """Of two Gaussian classifiers it is the one of the weighted mean of their scores."""
    x = np.linspace(-2, 2, 9)
    a, b = (
        log_softmax(np.stack([multivariate_normal(m, 1).logpdf(x) for m in (0, mean)], 1), axis=1)
        for mean in (1.0, 3.0)
    )
    found = pool(a, b, 0.25)
    np.testing.assert_allclose(np.exp(found).sum(1), 1)
    scores = 0.75 * (x - 0.5) + 0.25 * (3 * x - 4.5)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], scores, atol=1e-12)


def test_logistic_regression_is_found():
    X, y, _ = linear_data(2000, slope=1.0)
    member, left_out = LinearMember.fit(X, y, features_of(X), 2)
    Q, target, truth = linear_data(2000, seed=1, slope=1.0)
    found = member.log_probabilities(Q)
    np.testing.assert_allclose(np.exp(found).sum(1), 1)
    lost = truth[np.arange(2000), target] - found[np.arange(2000), target]
    assert lost.mean() < 6 / 2 / 2000 * 4  # half a nat for each slope over the rows, in theory
    held = -left_out[np.arange(2000), y]
    assert held.mean() == pytest.approx(log_loss(np.exp(found), target), abs=4 * held.std() / 44)


def test_rows_are_left_out(monkeypatch):
    monkeypatch.setattr(linear, "_STRENGTHS", (1.0,))
    own = np.arange(40) % linear.FOLDS == 2
    monkeypatch.setattr(linear, "folds_of", lambda y: np.arange(40) % linear.FOLDS)
    monkeypatch.setattr(classifier, "folds_of", lambda y: np.arange(40) % linear.FOLDS)
    X, y, _ = linear_data(40)
    changed = np.where(own, 1 - y, y)
    left_out = [LinearMember.fit(X, z, features_of(X), 2)[1] for z in (y, changed)]
    np.testing.assert_allclose(left_out[0][own], left_out[1][own])
    assert np.abs(left_out[0] - left_out[1])[~own].max() > 0.01
    made = [PFNClassifier(check=False).fit(X, z) for z in (y, changed)]
    left_out = [one._left_out(z) for one, z in zip(made, (y, changed), strict=True)]
    np.testing.assert_allclose(left_out[0][own], left_out[1][own], atol=1e-5)
    assert np.abs(left_out[0] - left_out[1])[~own].max() > 0.01


def test_a_class_of_one_row_and_missing_values():
    X, y, _ = linear_data(30)
    y[0], X[3, 1], X[:, 5] = 2, np.nan, np.nan
    member, left_out = LinearMember.fit(X, y, features_of(X), 3)
    assert np.isfinite(left_out).all()  # also for the fold whose rows lack the class
    np.testing.assert_allclose(np.exp(member.log_probabilities(X)).sum(1), 1)


def test_linear_truth_gains_and_another_is_left_to_the_network():
    X, y, _ = linear_data(150)
    Q, target, truth = linear_data(400, seed=1)
    losses = {}
    for wanted in (True, False):
        made = PFNClassifier(num_ensemble=2, linear=wanted, check=False).fit(X, y)
        losses[wanted] = -made.predict_log_proba(Q)[np.arange(400), target]
        if wanted:
            assert made.linear_weight_ > 0.5
            again = pickle.loads(pickle.dumps(made))
            np.testing.assert_array_equal(made.predict_proba(Q), again.predict_proba(Q))
        else:
            assert made.linear_weight_ == 0
    gain = losses[False] - losses[True]
    assert gain.mean() > 2 * gain.std() / 20
    random = np.random.RandomState(0)
    X = random.rand(200, 2) * 2 - 1
    ring = (np.square(X).sum(1) < 0.6).astype(int)
    assert PFNClassifier(num_ensemble=2, check=False).fit(X, ring).linear_weight_ < 0.1


def test_when_there_is_a_linear_member():
    X, y, _ = linear_data(40)
    network = pfn.load("classification")

    def weight(X, y, **options):
        made = PFNClassifier(network, check=False, **options).fit(X, y)
        assert (made._linear_member is None) == (made.linear_weight_ == 0)
        return made.linear_weight_

    assert weight(X, y, num_ensemble=1) == 0
    assert weight(X, y, num_ensemble=1, linear=True) > 0
    assert weight(X, y, num_ensemble=2, linear=False) == 0
    assert weight(X[:9], y[:9], num_ensemble=2, linear=True) == 0
    with pytest.raises(ValueError, match="linear must be True, False or 'auto', got 'yes'"):
        PFNClassifier(network, linear="yes").fit(X, y)


def test_contexts_of_a_part_of_the_rows():
    X, y, _ = linear_data(60)
    with pytest.warns(UserWarning, match="contexts of up to 25 rows"):
        made = PFNClassifier(num_ensemble=2, max_context=25, check=False).fit(X, y)
    left_out = made._left_out(y)
    assert np.isfinite(left_out).all()
    torch.testing.assert_close(torch.tensor(left_out).exp().sum(1), torch.ones(60).double())
