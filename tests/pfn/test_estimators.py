"""The estimators: scikit-learn's own checks, tables, ensembles, contexts, messages."""

import dataclasses
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from pfn import (
    PFN,
    ArchitectureConfig,
    Certificate,
    PFNClassifier,
    PFNRegressor,
    TrainingConfig,
    load,
    train,
)
from pfn.estimators.power_transforms import TargetTransform, YeoJohnson
from pfn.experts import Experts
from pfn.familiarity import context_score
from priors import Task
from priors.posteriors.linear_pool import MixturePosterior
from priors.random_state import seeded

SIZES = ArchitectureConfig(
    max_features=2, embedding=24, layers=2, heads=2, hidden=48, thinking_rows=4, bars=40
)
CELLS = {"cell_layers": 2, "cell_embedding": 16, "inducing": 4, "summaries": 2}


@dataclasses.dataclass(frozen=True)
class SimpleTasks:
    """Linear functions, or blobs of classes, of one or two features."""

    classes: int = 0
    exchangeable = True  # in their columns

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

        def randint(low, high, size=()):
            return torch.randint(low, high, size, generator=generator, device=device)

        d, n = int(randint(1, 3)), 48
        num_context = int(randint(4, 44))
        noise_var = (randn(batch) - 2.5).exp()
        if not self.classes:
            X = randn(batch, n, d)
            f = X @ randn(batch, d, 1)
            y = f + noise_var.sqrt()[:, None, None] * randn(batch, n, 1)
            return Task(X=X, y=y, f=f, noise_var=noise_var, num_context=num_context)
        number = randint(2, self.classes + 1, (batch,))
        uniform = torch.rand(batch, n, generator=generator, device=device)
        y = (uniform * number[:, None]).long()[..., None]
        centres = 1.5 * randn(batch, self.classes, d)
        X = centres.gather(1, y.expand(-1, -1, d)) + 0.4 * randn(batch, n, d)
        y = y.to(X)
        return Task(
            X=X, y=y, f=None, noise_var=noise_var, num_context=num_context, num_classes=number
        )


def trained(classes, steps=200):
    config = TrainingConfig(
        architecture=dataclasses.replace(SIZES, classes=classes),
        inputs="standardised",
        targets="standardised",
        steps=steps,
        batch=16,
        learning_rate=4e-3,
        matrix_learning_rate=2e-2,
        warmup=20,
        appended=0.0,
        known_noise=0.0,
        border_tasks=200,
        held_out_tasks=32,
        average_decay=0.97,
    )
    network = train(SimpleTasks(classes), config=config, device="cpu", progress=False)
    network.metadata["max_context"] = 1_000
    return network


@pytest.fixture(scope="session")
def trained_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    files = {kind: folder / f"{kind}.safetensors" for kind in ("regression", "classification")}
    trained(0).save(files["regression"])
    trained(4).save(files["classification"])
    return files


def random_network(classes=0, cells=False, **metadata):
    """A random network in which every part matters."""
    sizes = dataclasses.replace(SIZES, max_features=8, classes=classes, **(CELLS if cells else {}))
    known = {"missing": True, "categorical": True, "max_context": 1_000, **metadata}
    units = {"inputs": "standardised", "targets": "standardised"}
    borders = None if classes else torch.linspace(-2.5, 2.5, sizes.bars + 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PFN(sizes, borders, tail_scale=0.7, metadata=known, **units)
        for parameter in made.network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


both_tokens = pytest.mark.parametrize("cells", [False, True], ids=["slots", "cells"])


def data(n=30, d=4, seed=0):
    random = np.random.RandomState(seed)
    X = random.randn(n, d)
    return X, 3 + 2 * X[:, 0] + np.exp(X[:, 1]) + 0.1 * random.randn(n)


def table(n=40, seed=0):
    """A DataFrame with every kind of column, and the numbers that it should become."""
    random = np.random.RandomState(seed)
    number, whole = random.randn(n), random.randint(5, size=n)
    colour, truth = random.randint(3, size=n), random.randint(2, size=n)
    size, text = random.randint(3, size=n), random.randint(2, size=n)
    frame = pd.DataFrame(
        {
            "number": number,
            "whole": whole,
            "colour": np.array(["blue", "green", "red"], dtype=object)[colour],
            "truth": truth.astype(bool),
            "size": pd.Categorical.from_codes(size, ["small", "medium", "large"], ordered=True),
            "text": pd.array(np.array(["no", "yes"])[text], dtype="string"),
        }
    )
    encoded = np.stack([number, whole, colour, truth, size, text], axis=1).astype(float)
    return frame, encoded, 3 + number + colour + 0.1 * random.randn(n)


CATEGORIES = [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("kind", "ensemble"),
    [
        ("regression", False),
        ("classification", False),
        ("regression", True),
        ("classification", True),
    ],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This network was trained on up to 2 features")
def test_scikit_learn_checks(kind, ensemble, trained_files):
    made = (PFNRegressor if kind == "regression" else PFNClassifier)(trained_files[kind])
    made.set_params(num_ensemble=4 if ensemble else 1)
    results = check_estimator(made, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed
    assert len(results) > 45


EXPECTED = {
    "check_estimators_overwrite_params": "joblib hashes equal networks differently",
    "check_regressors_train": "random weights predict nothing",
    "check_classifiers_train": "random weights predict nothing",
    "check_classifiers_classes": "random weights predict nothing",
}


@pytest.mark.parametrize(
    ("classes", "cells"),
    [
        (0, True),
        pytest.param(4, False, marks=pytest.mark.slow),
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(4, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:This network was trained on up to 8 features")
def test_scikit_learn_checks_of_network_objects(classes, cells):
    """More features in use, cells, and a network that does not come from a file."""
    kind = PFNClassifier if classes else PFNRegressor
    made = kind(random_network(classes, cells), num_ensemble=1)
    results = check_estimator(made, on_fail=None, on_skip=None, expected_failed_checks=EXPECTED)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed


@pytest.mark.slow
@pytest.mark.parametrize("made", [PFNRegressor(), PFNClassifier()], ids=["regression", "classes"])
@pytest.mark.filterwarnings("ignore:This network was trained on up to")
@pytest.mark.filterwarnings("ignore:This data set is unlike")
def test_scikit_learn_checks_of_the_defaults(made):
    results = check_estimator(made, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed
    assert len(results) > 45


@both_tokens
def test_a_single_member_is_the_network(cells):
    network = random_network(cells=cells)
    X, y = data()
    Q, targets = data(9, seed=1)
    made = PFNRegressor(network, dtype="float64", num_ensemble=1).fit(X, y)
    posterior = (
        network.condition(torch.tensor(X), torch.tensor(y)[:, None])
        .posterior(torch.tensor(Q), observation_noise=True)
    )  # fmt: skip
    mean, std = made.predict(Q, return_std=True)
    np.testing.assert_allclose(mean, posterior.mean[:, 0], rtol=1e-10)
    np.testing.assert_allclose(std, posterior.variance[:, 0].sqrt(), rtol=1e-10)
    p = [0.05, 0.5, 0.95]
    expected = posterior.quantile(torch.tensor(p, dtype=torch.float64))[..., 0].T
    np.testing.assert_allclose(made.predict_quantiles(Q, p), expected, rtol=1e-10)
    expected = posterior.log_prob(torch.tensor(targets)[:, None])[:, 0]
    np.testing.assert_allclose(made.log_likelihood(Q, targets), expected, rtol=1e-9)


@both_tokens
def test_a_single_classifier_is_the_network(cells):
    network = random_network(4, cells)
    X, y = data()
    y = np.digitize(y, [2.0, 4.0])
    made = PFNClassifier(network, dtype="float64", num_ensemble=1).fit(
        X, np.array(["a", "b", "c"])[y]
    )
    model = network.condition(torch.tensor(X), torch.tensor(y, dtype=torch.float64)[:, None])
    expected = model.posterior(torch.tensor(X)).mean
    assert expected.shape == (30, 4)
    assert (expected[:, 3] == 0).all()
    np.testing.assert_allclose(made.predict_proba(X), expected[:, :3], rtol=1e-10)
    np.testing.assert_allclose(made.predict_log_proba(X), expected[:, :3].log(), rtol=1e-9)
    assert (made.predict(X) == made.classes_[expected[:, :3].argmax(1)]).all()


@both_tokens
def test_an_ensemble_is_the_mixture_of_its_members(cells):
    network = random_network(cells=cells)
    X, y = data()
    Q, targets = data(5, seed=1)
    made = PFNRegressor(network, dtype="float64", num_ensemble=3, power_transforms=False).fit(X, y)
    densities, means = [], []
    for member in made._members:
        model = network.condition(
            torch.tensor(X[:, member.columns]), torch.tensor(y), column_seed=member.column_seed
        )
        query = torch.tensor(Q[:, member.columns])
        posterior = model.posterior(query, observation_noise=True)
        densities.append(posterior.log_prob(torch.tensor(targets)[:, None])[:, 0].exp())
        means.append(posterior.mean[:, 0])
    assert np.ptp(np.stack(means), axis=0).min() > 1e-6  # they do differ
    np.testing.assert_allclose(made.predict(Q), torch.stack(means).mean(0), rtol=1e-9)
    expected = torch.stack(densities).mean(0).log()
    np.testing.assert_allclose(made.log_likelihood(Q, targets), expected, rtol=1e-8)


@pytest.mark.parametrize("num_ensemble", [6, 20])
def test_members_that_differ_by_the_order_of_columns_share_experts(num_ensemble, monkeypatch):
    """And predict what each of them does on data that were permuted before."""
    sizes = dataclasses.replace(SIZES, max_features=4, experts=2)
    with seeded(0):
        network = PFN(
            sizes, torch.linspace(-4, 4, 41), inputs="standardised", targets="standardised"
        )
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    encoded = []
    of = Experts.of.__func__
    monkeypatch.setattr(
        Experts,
        "of",
        classmethod(lambda cls, rows, *rest: encoded.append(rows) or of(cls, rows, *rest)),
    )
    random = np.random.RandomState(0)
    X, Q = random.randn(24, 3) ** 3, random.randn(5, 3)
    y = np.exp(X[:, 0] / 4 + X[:, 1])
    made = PFNRegressor(network, num_ensemble=num_ensemble, dtype="float64", check=False)
    made.fit(X, y)
    views = 4 if num_ensemble <= 16 else 8  # data as they are or transformed; two passes of 20
    assert sum(len(rows) for rows in encoded) == views
    logits = made._logits(made._prepare(Q))
    assert len(logits) == num_ensemble
    for member, found in zip(made._members, logits, strict=True):
        rows = torch.as_tensor(member.inputs_of(made._X))[None]
        targets = torch.as_tensor(member.targets_of(made._y))[None]
        encoding = made.network_.encode(rows, targets)
        queries = torch.as_tensor(member.inputs_of(made._prepare(Q)))[None]
        wanted = made.network_.decode_one(encoding, queries, noisy=True)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    assert float((logits[0] - logits[4]).abs().max()) > 1e-3  # orders do matter


def test_an_ensemble_of_classifiers_averages_probabilities():
    network = random_network(4)
    X, y = data()
    y = np.digitize(y, [2.0, 4.0])
    options = {"dtype": "float64", "power_transforms": False, "linear": False}
    made = PFNClassifier(network, num_ensemble=3, **options).fit(X, y)
    expected = []
    for member in made._members:
        numbers = torch.tensor(member.classes[y], dtype=torch.float64)
        rows = torch.tensor(X[:, member.columns])
        probabilities = network.condition(rows, numbers).posterior(rows).mean
        expected.append(probabilities[:, torch.tensor(member.classes)])
    assert any((member.classes != np.arange(3)).any() for member in made._members)
    np.testing.assert_allclose(made.predict_proba(X), torch.stack(expected).mean(0), rtol=1e-9)


def test_the_pooled_density_is_one_distribution():
    X, y = data()
    made = PFNRegressor(random_network(), num_ensemble=4, power_transforms=True).fit(X, y)
    assert [m.inputs is not None for m in made._members] == [False, True, True, False]
    assert [m.target is not None for m in made._members] == [False, True, False, True]
    posterior = made.predict_distribution(X[:3])
    assert isinstance(posterior, MixturePosterior)
    p = torch.tensor([1e-4, 0.02, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
    quantiles = posterior.quantile(p)
    for value, at in zip(quantiles, p, strict=True):
        torch.testing.assert_close(posterior.cdf(value), at.expand(3, 1), rtol=1e-9, atol=1e-12)
        value = value.requires_grad_()
        (slope,) = torch.autograd.grad(posterior.cdf(value).sum(), value)
        torch.testing.assert_close(slope, posterior.log_prob(value).exp())
    # From the quantile of 1e-4 to that of 0.999; steps are small against the bars.
    grid = (
        quantiles[0] + (quantiles[-1] - quantiles[0]) * torch.linspace(0, 1, 2_001)[:, None, None]
    )
    densities = posterior.log_prob(grid.double()).exp()
    area = torch.trapezoid(densities, grid, dim=0)
    torch.testing.assert_close(area, torch.full_like(area, 0.9989), rtol=2e-3, atol=0)
    # Moments of members whose targets are transformed are quadratures.
    u = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    torch.testing.assert_close(posterior.quantile(u).mean(0), posterior.mean, rtol=5e-3, atol=0)
    assert posterior.rsample(torch.Size([7])).shape == (7, 3, 1)


@pytest.mark.parametrize("power", [0.5, 0.8, 1.0, 1.5])
def test_yeo_johnson(power):
    from scipy.stats import yeojohnson

    x = torch.linspace(-30, 50, 41, dtype=torch.float64).requires_grad_()
    transform = YeoJohnson(power)
    y = transform(x)
    np.testing.assert_allclose(y.detach(), yeojohnson(x.detach().numpy(), power), rtol=1e-12)
    torch.testing.assert_close(transform.inv(y), x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), slope.log())


def test_transforms_of_targets_straighten_them_and_come_back():
    skewed = np.exp(2 * np.random.RandomState(0).randn(200)) * 1e6
    fitted = TargetTransform.fit(skewed)
    assert fitted.power == 0.5  # as far as it may go
    z = torch.tensor(fitted.apply(skewed))
    for transform in fitted.undo(z):
        z = transform(z)
    np.testing.assert_allclose(z, skewed, rtol=1e-9)
    assert TargetTransform.fit(np.full(5, 7.0)).apply(np.full(5, 7.0)).tolist() == [0.0] * 5


def test_transformed_members_survive_hard_columns():
    X, y = data(12, d=6)
    X[:, 0], X[:, 1], X[:, 2], X[::2, 3] = 7.0, np.nan, 1e200 * X[:, 2], np.nan
    made = PFNRegressor(random_network(), num_ensemble=4, power_transforms=True).fit(X, y)
    far = 1e3 * X
    assert np.isfinite(made.predict(np.concatenate([X, far]))).all()


@both_tokens
def test_a_dataframe_equals_its_numbers(cells):
    frame, encoded, y = table()
    network = random_network(cells=cells)
    expected = PFNRegressor(network, categorical_features=CATEGORIES, num_ensemble=1).fit(
        encoded, y
    )
    made = PFNRegressor(network, num_ensemble=1).fit(frame, y)
    np.testing.assert_array_equal(made.predict(frame), expected.predict(encoded))
    assert list(made.feature_names_in_) == list(frame.columns)
    names = list(frame.columns[CATEGORIES])
    mask = [False, False, True, True, True, True]
    lists = frame.astype(object).to_numpy().tolist()
    for chosen, X in ((names, frame), (mask, frame), (mask, encoded), ("auto", lists)):
        if X is lists:  # an order of categories is known to pandas only
            X = [[*row[:4], {"small": 0, "medium": 1, "large": 2}[row[4]], row[5]] for row in X]
            chosen = mask
        again = PFNRegressor(network, categorical_features=chosen, num_ensemble=1).fit(X, y)
        np.testing.assert_array_equal(again.predict(X), expected.predict(encoded))
    # the network is told which are categories
    numbers = PFNRegressor(network, num_ensemble=1).fit(encoded, y)
    assert not np.allclose(numbers.predict(encoded), expected.predict(encoded))
    untold = PFNRegressor(random_network(cells=cells, categorical=False), num_ensemble=1).fit(
        frame, y
    )
    np.testing.assert_array_equal(untold.predict(frame), numbers.predict(encoded))


def test_columns_keep_their_places_where_the_network_knows_them():
    X, y = data(d=3)
    Q, _ = data(6, d=3, seed=1)
    first = PFNRegressor(random_network(exchangeable=True), num_ensemble=1).fit(X, y).predict(Q)
    for known in (True, False):
        network = random_network(exchangeable=known)
        made = PFNRegressor(network, num_ensemble=6, power_transforms=False).fit(X, y)
        assert len(made._members) == (6 if known else 1)
        assert np.allclose(made.predict(Q), first) != known
        made = PFNRegressor(network, num_ensemble=6).fit(X, y)
        assert len(made._members) == (6 if known else 4)
    network = random_network()  # not recorded
    network.inputs = "raw"
    made = PFNRegressor(network, num_ensemble=6, power_transforms=False).fit(X, y)
    assert len(made._members) == 1
    network = random_network(classes=3, exchangeable=False)
    made = PFNClassifier(network, num_ensemble=5).fit(X, np.arange(30) % 3)
    assert len(made._members) == 5  # which number classes anew
    assert all((member.columns == np.arange(3)).all() for member in made._members)


def test_inputs_outside_those_of_the_training_warn():
    X, y = data()
    network = random_network(input_range=[-1.0, 1.0])
    network.inputs = "raw"
    X = np.tanh(X)
    made = PFNRegressor(network).fit(X, y)
    with pytest.warns(UserWarning, match="between -1 and 1"):
        made.predict(3 * np.sign(X))
    with pytest.warns(UserWarning, match="between -1 and 1"):
        made.fit(3 * np.sign(X), y)


def test_object_columns_of_numbers_are_numbers():
    X, y = data()
    expected = PFNRegressor(random_network(), num_ensemble=1).fit(X, y)
    objects = X.astype(object)
    objects[0, 0] = None
    X = X.copy()
    X[0, 0] = np.nan
    made = PFNRegressor(random_network(), num_ensemble=1).fit(objects, y)
    assert not made._columns.categorical.any()
    np.testing.assert_array_equal(made.predict(objects), expected.fit(X, y).predict(X))


def test_missing_and_unknown_values():
    frame, encoded, y = table()
    frame = frame.astype({"whole": "Int64", "truth": "boolean"})
    for i, name in enumerate(frame.columns):
        frame.loc[i, name] = None if name in ("colour", "size") else pd.NA
        encoded[i, i] = np.nan
    network = random_network()
    expected = PFNRegressor(network, categorical_features=CATEGORIES, num_ensemble=1).fit(
        encoded, y
    )
    made = PFNRegressor(network, num_ensemble=1).fit(frame, y)
    np.testing.assert_array_equal(made.predict(frame), expected.predict(encoded))

    unknown, absent = frame.copy(), frame.copy()
    unknown["colour"], absent["colour"] = "ultraviolet", None
    unknown["size"], absent["size"] = "gigantic", None
    np.testing.assert_array_equal(made.predict(unknown), made.predict(absent))
    assert not np.allclose(made.predict(unknown), made.predict(frame))


def test_networks_without_missing_values_get_imputed_ones():
    frame, encoded, y = table()
    encoded[3, 0] = encoded[4, 2] = np.nan
    encoded[:, 1] = np.nan
    filled = encoded.copy()
    filled[3, 0] = np.nanmean(encoded[:, 0])
    filled[4, 2] = np.bincount(encoded[np.arange(40) != 4, 2].astype(int)).argmax()
    filled[:, 1] = 0
    network = random_network(missing=False)
    made = PFNRegressor(
        network, categorical_features=CATEGORIES, dtype="float64", num_ensemble=1
    ).fit(encoded, y)
    expected = PFNRegressor(
        network, categorical_features=CATEGORIES, dtype="float64", num_ensemble=1
    ).fit(filled, y)
    np.testing.assert_allclose(made.predict(encoded), expected.predict(filled), rtol=1e-12)
    told = PFNRegressor(random_network(), categorical_features=CATEGORIES, num_ensemble=1).fit(
        encoded, y
    )
    assert not np.allclose(told.predict(encoded), made.predict(encoded))


def test_too_many_rows_are_subsampled_with_a_warning():
    X, y = data(50)
    network = random_network(max_context=20)
    with pytest.warns(UserWarning, match="up to 20 rows and got 50: each member .* sees 20"):
        made = PFNRegressor(network, num_ensemble=3, power_transforms=False).fit(X, y)
    rows = [member.rows for member in made._members]
    assert [len(np.unique(r)) for r in rows] == [20] * 3
    assert len(np.unique(np.concatenate(rows))) > 20
    with pytest.warns(UserWarning, match="trained on up to 20 context rows"):
        made.set_params(max_context=None).fit(X, y)
    assert len(made._members[0].rows) == 50
    with pytest.warns(UserWarning, match="up to 5 rows"):
        made.set_params(max_context=5).fit(X, y)


def test_chunks_are_disjoint_and_their_predictions_are_pooled():
    X, y = data(50)
    network = random_network(max_context=20)
    with pytest.warns(UserWarning, match="the predictions of 3 parts are averaged"):
        made = PFNRegressor(network, context_strategy="chunk", num_ensemble=1).fit(X, y)
    rows = [member.rows for member in made._members]
    assert sorted(np.concatenate(rows)) == list(range(50))
    assert max(map(len, rows)) <= 20
    parts = [PFNRegressor(network, num_ensemble=1).fit(X[r], y[r]) for r in rows]
    np.testing.assert_allclose(made.predict(X), np.mean([p.predict(X) for p in parts], axis=0))


@pytest.mark.parametrize("strategy", ["subsample", "chunk"])
def test_parts_of_a_classification_have_all_classes(strategy):
    X, _ = data(60)
    y = np.array(["common"] * 42 + ["rare"] * 6 + ["other"] * 12)
    with pytest.warns(UserWarning, match="up to 20 rows and got 60"):
        made = PFNClassifier(
            random_network(4, max_context=20), context_strategy=strategy, num_ensemble=1
        ).fit(X, y)
    for member in made._members:
        assert len(member.rows) == 20
        assert np.bincount(made._y[member.rows]).tolist() == [14, 4, 2]


def test_features_beyond_the_slots_are_selected():
    random = np.random.RandomState(0)
    X = random.randn(60, 12)
    X[:, 5] = random.randint(40, size=60)  # categories that fit anything
    X[:, 6] = random.randint(4, size=60)
    y = 2 * X[:, 3] + np.exp(X[:, 10]) + np.array([5.0, -5.0, 0.0, 8.0])[X[:, 6].astype(int)]
    network = random_network()
    network.architecture = dataclasses.replace(network.architecture, max_features=8)
    with pytest.warns(
        UserWarning,
        match="up to 8 features and got 12; the 8 that are individually most informative",
    ):
        made = PFNRegressor(network, categorical_features=[5, 6], num_ensemble=1).fit(X, y)
    assert {3, 6, 10} <= set(made.selected_features_)
    kinds = made._columns.categorical[made.selected_features_]
    expected = PFNRegressor(network, categorical_features=kinds, num_ensemble=1)
    expected.fit(X[:, made.selected_features_], y)
    np.testing.assert_allclose(
        made.predict(X), expected.predict(X[:, made.selected_features_]), rtol=1e-12
    )
    with pytest.warns(UserWarning, match="beyond that its predictions are extrapolation"):
        made = PFNRegressor(random_network(cells=True), num_ensemble=1).fit(X, y)
    assert len(made.selected_features_) == 12
    labels = np.where(X[:, 3] > 0, "a", "b")
    with pytest.warns(UserWarning, match="the 8 that are individually most informative"):
        chosen = PFNClassifier(random_network(4), num_ensemble=1).fit(X, labels).selected_features_
    assert 3 in chosen


def test_members_see_groups_and_components_of_many_columns():
    random = np.random.RandomState(0)
    X = random.randn(60, 20) @ random.randn(20, 20)
    X[:, 5] = random.randint(3, size=60)
    labels = random.randint(4, size=60)
    labels[:50] = np.digitize(X[:50, 3], [-4, 0, 4])
    X[4, 2] = np.nan
    options = {"categorical_features": [5], "dtype": "float64", "linear": False}
    made = PFNClassifier(random_network(4), num_ensemble=8, **options)
    with pytest.warns(UserWarning, match="each member of the ensemble sees a part"):
        made.fit(X, labels)
    alone = PFNClassifier(random_network(4), num_ensemble=1, **options)
    with pytest.warns(UserWarning, match="individually most informative"):
        alone.fit(X, labels)
    first, *others = made._members
    np.testing.assert_array_equal(first.columns, alone.selected_features_)
    groups = [member.columns for i, member in enumerate(others, 1) if i % 4 != 2]
    assert all(len(group) <= 8 for group in groups)
    assert len(set(np.concatenate([member.columns for member in others[:3]]))) == 20
    numeric = np.delete(made._X, 5, axis=1)
    numeric = np.where(np.isnan(numeric), np.nanmean(numeric, 0), numeric)
    for member, number in ((made._members[2], 8), (made._members[6], 6)):
        wanted = PCA(number).fit_transform(numeric)
        found = member.inputs_of(made._X)
        signs = np.sign((wanted * found).sum(0))
        np.testing.assert_allclose(found * signs, wanted, atol=1e-8)
        assert not member.kinds_of(made._columns.categorical).any()
    each = [
        logits.softmax(-1).numpy()[:, member.classes]
        for member, logits in zip(made._members, made._logits(made._X), strict=True)
    ]
    product = np.prod(each, axis=0) ** (1 / 8)
    product /= product.sum(1, keepdims=True)
    np.testing.assert_allclose(made.predict_proba(X), product, rtol=1e-8)


@pytest.mark.slow
def test_trained_networks_predict(trained_files):
    random = np.random.RandomState(0)
    X = random.randn(60, 2)
    y = 100 * X[:, 0] - 50 * X[:, 1] + 5 * random.randn(60)
    made = PFNRegressor(trained_files["regression"], num_ensemble=2).fit(X[:40], y[:40])
    assert made.score(X[40:], y[40:]) > 0.7
    inside = made.predict_quantiles(X[40:], [0.05, 0.95])
    assert np.mean((inside[:, 0] < y[40:]) & (y[40:] < inside[:, 1])) > 0.7
    # in the units of y
    scaled = clone(made).fit(X[:40], 1e-3 * y[:40] + 7)
    np.testing.assert_allclose(scaled.predict(X), 1e-3 * made.predict(X) + 7, rtol=1e-9)
    shift = made.log_likelihood(X, y) - scaled.log_likelihood(X, 1e-3 * y + 7)
    np.testing.assert_allclose(shift, np.log(1e-3), rtol=1e-6)

    X, labels = make_blobs(90, centers=[[0, 0], [4, 4], [-4, 4]], random_state=0)
    labels = np.array(["x", "y", "z"])[labels]
    made = PFNClassifier(trained_files["classification"], num_ensemble=2).fit(X[:60], labels[:60])
    assert made.score(X[60:], labels[60:]) > 0.8
    np.testing.assert_allclose(made.predict_proba(X).sum(1), 1, rtol=1e-12)


def test_targets_that_do_not_differ():
    """They say nothing of how much targets vary, or of other classes."""
    X, y = data()
    with pytest.raises(ValueError, match="at least two classes, got one class, only"):
        PFNClassifier(random_network(4)).fit(X, ["only"] * len(X))
    made = PFNRegressor(random_network(), num_ensemble=1)
    with pytest.raises(ValueError, match="one row"):
        made.fit(X[:1], [1e8])
    with pytest.warns(UserWarning, match="All 2 targets are 5: .* intervals mean nothing"):
        made.fit(X[:2], [5.0, 5.0])
    made.fit(X[:2], [5.0, 6.0])
    with pytest.raises(ValueError, match="needs numbers as y, got the text .* with PFNClassifier"):
        made.fit(X, y.astype(str))


def test_tables_of_another_shape_or_kind_are_not_printed():
    X, y = data()
    for wrong, message in (
        (X[:, 0], r"got 1D array instead: X has shape \(\d+,\)\. Reshape your data"),
        (X + 1j, "Complex data not supported: X has dtype complex128"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            PFNRegressor(random_network()).fit(wrong, y)
        assert len(str(raised.value)) < 200


def test_batches_and_dtypes_do_not_matter():
    X, y = data()
    network = random_network()
    expected = PFNRegressor(network, dtype="float64", num_ensemble=2).fit(X, y)
    batched = PFNRegressor(network, dtype="float64", num_ensemble=2, batch_size=7).fit(X, y)
    for method in ("predict", "predict_quantiles"):
        np.testing.assert_allclose(
            getattr(batched, method)(X), getattr(expected, method)(X), rtol=1e-9
        )
    np.testing.assert_allclose(batched.log_likelihood(X, y), expected.log_likelihood(X, y))
    single = PFNRegressor(network, num_ensemble=2, dtype="float32").fit(X, y)
    np.testing.assert_allclose(single.predict(X), expected.predict(X), rtol=1e-3)
    assert single.predict_distribution(X).dtype == torch.float64  # units of y may need it
    assert next(network.parameters()).dtype == torch.float32  # the given one stays as it was


@both_tokens
def test_random_state_decides_and_global_generators_are_left_alone(cells):
    X, y = data()
    network = random_network(cells=cells)
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()

    def predict(seed):
        made = PFNRegressor(network, num_ensemble=3, power_transforms=True, random_state=seed)
        return made.fit(X, y).predict(X)

    np.testing.assert_array_equal(predict(1), predict(1))
    np.testing.assert_array_equal(predict(1), predict(np.random.RandomState(1)))
    assert not np.array_equal(predict(1), predict(2))
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.random.get_rng_state())


def test_pickle_clone_and_parameters():
    X, y = data()
    made = PFNRegressor(random_network(), num_ensemble=2).fit(X, y)
    stored = pickle.dumps(made)
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.predict(X), made.predict(X))
    keys = sum(key.numel() for key in made._groups[0].encoding.context.keys)
    assert "_groups" not in made.__getstate__()
    assert keys > 0
    assert clone(made).get_params().keys() == made.get_params().keys()
    assert not hasattr(clone(made), "network_")
    with pytest.raises(NotFittedError):
        clone(made).predict(X)


def test_grid_search_and_pipelines(tmp_path):
    X, y = data(24)
    random_network().save(tmp_path / "network")
    pipeline = make_pipeline(StandardScaler(), PFNRegressor(tmp_path / "network"))
    search = GridSearchCV(pipeline, {"pfnregressor__num_ensemble": [1, 2]}, cv=2)
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()

    def log_likelihood(made, X, y):
        return made.log_likelihood(X, y).mean()

    search = GridSearchCV(
        PFNRegressor(random_network()), {"num_ensemble": [1, 2]}, cv=2, scoring=log_likelihood
    )
    assert np.isfinite(search.fit(X, y).best_score_)
    search = GridSearchCV(
        PFNClassifier(random_network(4)), {"num_ensemble": [1, 2]}, cv=2, scoring="neg_log_loss"
    )
    assert np.isfinite(search.fit(X, y > 3).best_score_)


@pytest.mark.covering
@both_tokens
@pytest.mark.parametrize("classes", [0, 4])
def test_data_unlike_the_prior_warn(classes, cells):
    """As the network itself says, of what the first member sees."""
    frame, encoded, y = table()
    y = np.digitize(y, [3.0, 4.0]) if classes else y
    encoded[3, 1] = np.nan
    usual = Certificate("prior", "none", 0, {}, {}, scores={8: [90.0, 100.0], 64: [90.0, 100.0]})
    network = random_network(classes, cells, certificate=usual.to_json())
    mask = np.isin(np.arange(6), CATEGORIES)
    model = network.condition(
        torch.tensor(encoded), torch.tensor(y).double(), categorical=torch.tensor(mask), check=False
    )
    expected = model.unlike_the_prior()
    kind = PFNClassifier if classes else PFNRegressor
    made = kind(network, num_ensemble=2, categorical_features=mask)
    with pytest.warns(UserWarning, match="This data set is unlike .*check=False silences") as told:
        made.fit(encoded, y)
    assert told[0].filename == __file__
    assert made.unlike_the_prior_ == expected
    score = float(re.search("log score of (\\S+) per row", expected)[1])
    assert made.set_params(check=False).fit(encoded, y).unlike_the_prior_ is None
    usual = Certificate("prior", "none", 0, {}, {}, scores={40: [score - 1, score + 1]})
    network.certificate = usual
    assert made.set_params(check=True).fit(encoded, y).unlike_the_prior_ is None
    assert made.fit(encoded[:30], y[:30]).unlike_the_prior_ is None  # not measured


def test_the_shipped_network_knows_its_prior():
    X, _ = data(64)
    assert PFNRegressor().fit(X, X[:, 0] + 0.3 * X[:, 1]).unlike_the_prior_ is None
    with pytest.warns(UserWarning, match="This data set is unlike the prior"):
        PFNRegressor().fit(X, np.where(np.arange(64) == 7, 1e6, 1.0))


@pytest.mark.parametrize("rows", [4, 20])
def test_a_line_without_noise_is_no_cause_for_a_warning(rows):
    """Its halves tell each other better than the prior's usually do, and by their inputs."""
    network = load("regression")
    x = torch.linspace(0, 1, rows)[:, None]
    y = 3 * x + 1
    low, high = network.certificate.usual_scores(rows)
    assert context_score(network, x[None], y[None, :, 0]).item() > high
    assert network.condition(x, y).unlike_the_prior() is None
    one = PFNRegressor(network, num_ensemble=1)
    assert one.fit(x.numpy(), y[:, 0].numpy()).unlike_the_prior_ is None


def test_one_that_is_told_well_does_not_hide_another():
    """Of a batch, a line and a constant with one value far off."""
    network = load("regression")
    x = torch.linspace(0, 1, 64)[:, None]
    far = torch.where(torch.arange(64) == 7, 1e6, 1.0)[:, None]
    both = torch.stack([3 * x + 1, far])
    model = network.condition(x.expand(2, -1, -1), both, check=False)
    assert "(in 50% of its parts) unlike" in model.unlike_the_prior()


def test_a_failed_fit_leaves_the_estimator_as_it_was(monkeypatch):
    X, y = data()
    network, classifier = random_network(), random_network(4)
    made = PFNRegressor(classifier)
    with pytest.raises(ValueError, match="needs a network for regression"):
        made.fit(X, y)
    with pytest.raises(NotFittedError):
        made.predict(X)
    assert not hasattr(made, "n_features_in_")
    made = PFNClassifier(classifier, num_ensemble=1).fit(X, np.arange(30) % 3)
    before = made.predict_proba(X)
    with pytest.raises(ValueError, match="y has 5 classes"):
        made.fit(X[:, :2], np.arange(30) % 5)
    assert made.n_features_in_ == 4
    np.testing.assert_array_equal(made.predict_proba(X), before)
    # later, while the network encodes
    made, frame = (
        PFNRegressor(network, num_ensemble=1).fit(X, y),
        pd.DataFrame(X[:, :2], columns=["a", "b"]),
    )
    before = made.predict(X)

    def encode(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PFNRegressor, "_encoded", encode)
    with pytest.raises(RuntimeError, match="out of memory"):
        made.fit(frame, y)
    np.testing.assert_array_equal(made.predict(X), before)


@pytest.mark.parametrize(
    "missing",
    [
        ["a", None, "b", None],
        np.array(["a", np.nan, "b", None], dtype=object),
        pd.Series(["a", pd.NA, "b", pd.NA], dtype="string"),
        pd.Series(pd.Categorical(["a", None, "b", None])),
        pd.Series([1, pd.NA, 0, pd.NA], dtype="Int64"),
        np.array([0.0, np.nan, 1.0, np.nan]),
    ],
    ids=["list", "objects", "string", "category", "integer", "float"],
)
def test_missing_labels_are_counted(missing):
    X, _ = data(4)
    with pytest.raises(ValueError, match="y lacks 2 of 4 values; drop those rows"):
        PFNClassifier(random_network(4), num_ensemble=1).fit(X, missing)


def test_missing_targets_are_counted():
    X, y = data()
    made = PFNRegressor(random_network(), num_ensemble=1).fit(X, y)
    missing = pd.Series(y, dtype="Float64")
    missing[3] = pd.NA
    for use in (made.fit, made.log_likelihood):
        with pytest.raises(ValueError, match="y lacks 1 of 30 values"):
            use(X, missing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ensemble": 0}, "num_ensemble must be a positive integer, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
        ({"context_strategy": "all"}, "context_strategy must be 'subsample' or 'chunk'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64'"),
        ({"max_context": "none"}, "max_context must be 'network', None or a positive integer"),
        ({"power_transforms": True, "num_ensemble": 1}, "num_ensemble must be at least 2"),
        ({"power_transforms": "maybe"}, "power_transforms must be True, False or 'auto'"),
        ({"categorical_features": "all"}, "categorical_features must be 'auto'"),
        ({"categorical_features": [True, False]}, "a mask of 2 for 4 columns"),
        ({"categorical_features": ["colour"]}, "has 'colour', which is not a column"),
        ({"categorical_features": [4]}, "has 4, which is not a column"),
        ({"network": random_network(4)}, "PFNRegressor needs a network for regression, got one"),
    ],
)
def test_unusable_parameters_are_refused(changes, message):
    made = PFNRegressor(random_network()).set_params(**changes)
    with pytest.raises(ValueError, match=message):
        made.fit(*data())


def test_unusable_data_are_refused():
    X, y = data()
    with pytest.raises(ValueError, match="y has 5 classes and this network supports at most 4"):
        PFNClassifier(random_network(4), num_ensemble=1).fit(X, np.arange(30) % 5)
    with pytest.raises(ValueError, match="PFNClassifier needs a network for classification"):
        PFNClassifier(random_network(), num_ensemble=1).fit(X, y > 3)
    with pytest.raises(TypeError, match="network must be a shipped name, a path or a PFN, got int"):
        PFNRegressor(3, num_ensemble=1).fit(X, y)
    with pytest.raises(FileNotFoundError, match="neither a file nor a shipped network"):
        PFNRegressor("nonsense", num_ensemble=1).fit(X, y)
    made = PFNRegressor(random_network(), num_ensemble=1).fit(X, y)
    with pytest.raises(ValueError, match="quantiles must be probabilities"):
        made.predict_quantiles(X, [0.0, 0.5])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        made.log_likelihood(X, y[:-1])
    with pytest.raises(ValueError, match="infinity"):
        made.predict(np.where(X > 1, np.inf, X))
    raw = random_network()
    raw.inputs, raw.targets = "raw", "given"
    with pytest.raises(ValueError, match="trained on standardised inputs or targets"):
        PFNRegressor(raw, num_ensemble=2, power_transforms=True).fit(X, y)


def test_unusable_columns_are_refused():
    frame, _, y = table()
    made = PFNRegressor(random_network(), categorical_features=None)
    with pytest.raises(
        ValueError,
        match="column 'colour' is numeric in the training data and got '(blue|red|green)",
    ):
        made.fit(frame, y)
    made = PFNRegressor(random_network(), num_ensemble=1).fit(frame, y)
    with pytest.raises(
        ValueError, match="column 'number' is numeric in the training data and got 'seven'"
    ):
        made.predict(frame.assign(number="seven"))
    with pytest.raises(TypeError, match="column 'when' has dtype datetime64"):
        made.fit(frame.assign(when=pd.Timestamp("2020-01-01")), y)
    with pytest.raises(TypeError, match="X has dtype datetime64"):
        made.fit(np.full((40, 2), np.datetime64("2020-01-01")), y)
    with pytest.raises(TypeError, match="argument must be a string or a number"):
        made.fit(frame.assign(colour=[{"red": 1}] * 40), y)
    with pytest.raises(ValueError, match="feature names should match"):
        made.fit(frame, y).predict(frame.rename(columns={"number": "count"}))


def test_importing_without_scikit_learn():
    code = """
        import sys
        sys.modules["sklearn"] = None  # as if it were not installed
        import pfn
        try:
            pfn.PFNRegressor
        except ImportError as error:
            assert "wideprior[sklearn]" in str(error), error
        else:
            raise AssertionError("no error")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


SHIFTED = {
    "constant": lambda n: (np.zeros(n), 1.0),
    "constant and large": lambda n: (np.full(n, 1e6), 5e6),
    "missing": lambda n: (np.full(n, np.nan), 3.0),
}


@pytest.mark.covering
@pytest.mark.parametrize("column", SHIFTED)
@pytest.mark.parametrize("num_ensemble", [1, 4])
@pytest.mark.parametrize("estimator", [PFNRegressor, PFNClassifier])
def test_a_column_that_tells_nothing_is_ignored(column, num_ensemble, estimator):
    """Whatever queries have there; predictions are those for the value of the training rows."""
    X, y = data()
    network = random_network(4 if estimator is PFNClassifier else 0)
    if estimator is PFNClassifier:
        y = (y > y.mean()).astype(int)
    known, other = SHIFTED[column](len(X))
    made = estimator(network, num_ensemble=num_ensemble, check=False)
    made.fit(np.column_stack([X, known]), y)
    method = made.predict if estimator is PFNRegressor else made.predict_proba
    expected = method(np.column_stack([X, known]))
    assert np.ptp(expected) > 0
    for wild in (other, -other, 0.5):
        found = method(np.column_stack([X, np.full(len(X), wild)]))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_column_without_values_may_hold_anything_later():
    pandas = pytest.importorskip("pandas")
    X, y = data()
    for nothing in (None, np.nan):
        table = pandas.DataFrame(X, columns=list("abcdefgh"[: X.shape[1]])).assign(
            empty=[nothing] * len(X)
        )
        made = PFNRegressor(random_network(), num_ensemble=1, check=False).fit(table, y)
        expected = made.predict(table)
        for value in ("text", 3.0, True):
            np.testing.assert_array_equal(made.predict(table.assign(empty=value)), expected)


@pytest.mark.fast_for("1700000000.0-1.0-float32", "0.0-1e-150-float32", "0.0-1e+150-float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shift", "scale"), [(1.7e9, 1.0), (0.0, 1e150), (0.0, 1e-150), (-1e12, 1e3)]
)
def test_units_do_not_matter(dtype, shift, scale):
    """Seconds since 1970 in single precision, and numbers whose squares overflow."""
    X, y = data()
    made = PFNRegressor(random_network(), num_ensemble=4, dtype=dtype, check=False)
    mean, std = made.fit(X, y).predict(X, return_std=True)
    density = made.log_likelihood(X, y)
    # The powers of members are fitted by search; shifted numbers are rounded themselves.
    tolerance = max(1e-5 if dtype == "float32" else 1e-7, 1e-6 if shift else 0.0)
    moved = made.fit(shift + scale * X, y)
    np.testing.assert_allclose(moved.predict(shift + scale * X), mean, rtol=0, atol=tolerance)
    in_units = shift + scale * y
    found, spread = made.fit(X, in_units).predict(X, return_std=True)
    np.testing.assert_allclose((found - shift) / scale, mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(spread / scale, std, rtol=max(tolerance, 1e-9))
    np.testing.assert_allclose(
        made.log_likelihood(X, in_units) + np.log(scale), density, atol=20 * tolerance
    )
