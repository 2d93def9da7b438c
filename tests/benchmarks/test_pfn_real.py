"""Real data: loading, splits, scores, ranks; and the benchmark from end to end."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from pfn import PFN, ArchitectureConfig

pytest.importorskip("sklearn")
from benchmarks.pfn import datasets, jobs, real, scores, tabular_models
from benchmarks.pfn.datasets import Table, load_tables, split


@pytest.fixture(scope="module")
def tables():
    return {table.name: table for table in load_tables()}


def small_network(classes=0):
    """Untrained."""
    architecture = ArchitectureConfig(
        max_features=20, embedding=16, layers=2, heads=2, hidden=24, classes=classes, bars=21
    )
    borders = None if classes else torch.linspace(-2.5, 2.5, 21)
    targets = "raw" if classes else "standardised"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PFN(architecture, borders, inputs="standardised", targets=targets)


def test_without_a_folder_there_are_the_bundled_sets(tables):
    assert tuple(tables) == datasets.BUNDLED
    assert tables["diabetes"].classes is None
    assert {n: t.classes for n, t in tables.items() if t.classes} == {
        "breast_cancer": 2,
        "wine": 3,
        "iris": 3,
        "digits": 10,
    }


def test_a_folder_adds_its_sets_and_a_missing_file_is_named(tmp_path):
    for name in datasets.UCI:
        np.savez(tmp_path / f"{name}.npz", X=np.ones((9, 2)), y=np.ones((9, 1)))
    found = load_tables(tmp_path)
    assert [t.name for t in found] == [*datasets.BUNDLED, *datasets.UCI]
    assert found[-1].y.shape == (9,)
    (tmp_path / "yacht.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"yacht\.npz is missing.*yaringal"):
        load_tables(tmp_path)


def test_splits_are_disjoint_capped_and_standardised_by_training_rows():
    X = np.arange(4000.0)[:, None] * np.ones(3)
    made = split(Table("counts", X, X[:, 0]), seed=1)
    assert made.train_X.shape == (512, 3)
    assert made.test_X.shape == (1000, 3)
    assert not set(made.train_y) & set(made.test_y)
    np.testing.assert_allclose(made.train_X.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(made.train_X.std(0), 1)
    expected = (made.test_y - made.train_y.mean()) / made.train_y.std()
    np.testing.assert_allclose(made.test_X[:, 0], expected)
    again, other = split(Table("counts", X, X[:, 0]), 1), split(Table("counts", X, X[:, 0]), 2)
    np.testing.assert_array_equal(made.test_y, again.test_y)
    assert (made.test_y != other.test_y).any()


def test_classes_keep_their_shares_and_20_features_remain(tables):
    made = split(tables["iris"], 0)
    assert np.bincount(made.train_y).tolist() == [40, 40, 40]
    digits = split(tables["digits"], 0)
    assert digits.train_X.shape == (512, 20)
    assert digits.test_X.shape == (1000, 20)


def test_the_informative_of_many_features_are_kept():
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 30))
    X[:, 3] = 7.0
    y = (X[:, 20:] @ np.arange(1, 11)) + 0.1 * random.normal(size=200)
    made = split(Table("wide", X, y), 0)
    assert made.train_X.shape == (160, 20)
    # Feature 29 matters most: one of the columns is it.
    correlation = np.abs([np.corrcoef(c, made.train_y)[0, 1] for c in made.train_X.T])
    assert correlation.max() > 0.3


def test_density_scores_by_hand():
    y = np.array([1.0, 4.0])
    normal = scipy.stats.norm([0.0, 0.0], 2.0)
    found = scores.density_scores(
        scores.Prediction(normal.mean(), normal.logpdf(y), normal.cdf(y), 0 * y), y
    )
    # -log N(y; 0, 4) = log 2 + log(2 pi)/2 + y^2/8; 4 lies 2 deviations out, beyond 1.645
    assert found["nll"] == pytest.approx(math.log(2) + math.log(2 * math.pi) / 2 + 17 / 16)
    assert found["rmse"] == pytest.approx(math.sqrt(8.5))
    assert found["coverage"] == 0.5


def test_class_scores_by_hand():
    p = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    found = scores.class_scores(p, np.array([1, 2]))
    e = scores.UNIFORM_SHARE
    first, second = (1 - e) / 2 + e / 3, e / 3
    assert found["nll"] == pytest.approx(-(math.log(first) + math.log(second)) / 2)
    assert found["accuracy"] == 0.0
    assert found["overconfidence"] == pytest.approx((first + 1 - 2 * e / 3) / 2)


def test_ranks_average_ties_and_sets():
    found = scores.ranks(
        {"one": {"a": 1.0, "b": 2.0, "c": 2.0}, "two": {"a": 0.5, "b": 0.1, "c": 0.9}}
    )
    assert found["a"] == {"one": 1.0, "two": 2.0, "mean": 1.5}
    assert found["b"] == {"one": 2.5, "two": 1.0, "mean": 1.75}
    assert found["c"] == {"one": 2.5, "two": 3.0, "mean": 2.75}


def test_paired_difference_by_hand():
    found = scores.paired(np.array([1.0, 3.0]))
    assert found == {"mean": 2.0, "standard_error": pytest.approx(1.0)}
    assert scores.paired(np.array([1.0]))["standard_error"] is None


@pytest.mark.parametrize("degrees", [3.0, np.inf])
def test_the_density_of_residuals_is_found(degrees):
    family = scipy.stats.norm(0, 2.0) if degrees == np.inf else scipy.stats.t(degrees, 0, 2.0)
    residuals = family.rvs(4000, random_state=0)
    found, scale = tabular_models.residual_density(residuals)
    assert (found <= 5) if degrees == 3 else (found >= 30)
    assert scale == pytest.approx(2.0, rel=0.06)


def test_the_forests_density_integrates_to_one_and_follows_the_noise(monkeypatch):
    monkeypatch.setattr(tabular_models, "TREES", 30)
    random = np.random.default_rng(0)
    X = random.uniform(-1, 1, (300, 1))
    y = np.where(X[:, 0] > 0, 1.0, 0.05) * random.normal(size=300)
    grid = np.linspace(-8, 8, 801)
    widths = []
    for at in (-0.5, 0.5):
        queries = datasets.Split(X, y, np.full((len(grid), 1), at), grid)
        predicted = tabular_models.REGRESSORS["forest density"](queries, 0, "")
        density = np.exp(predicted.log_density)
        assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=0.02)
        mean = (density * grid).sum() * (grid[1] - grid[0])
        np.testing.assert_allclose(predicted.mean, mean, atol=0.02)
        low, high = np.interp([0.25, 0.75], predicted.probability_below, grid)
        widths.append(high - low)
    assert 5 * widths[0] < widths[1] < 2.5


def double(x, version):
    double.calls += 1
    return {"value": 2 * x}


def test_finished_jobs_are_not_run_again(tmp_path):
    cache, double.calls = tmp_path / "runs" / "cache.jsonl", 0
    assert jobs.run(double, [(1, "a"), (2, "a")], cache) == {
        (1, "a"): {"value": 2},
        (2, "a"): {"value": 4},
    }
    with cache.open("a") as file:  # a run that was killed while it wrote
        file.write('{"task": [3, "a"], "resu')
    found = jobs.run(double, [(1, "a"), (2, "a"), (3, "a"), (1, "b")], cache)
    assert [r["value"] for r in found.values()] == [2, 4, 6, 2]
    assert double.calls == 4
    assert jobs.run(double, [(3, "a")], cache) == {(3, "a"): {"value": 6}}
    assert double.calls == 4


def test_other_code_or_libraries_start_anew(tmp_path, monkeypatch):
    for package in ("pfn", "priors"):
        shutil.copytree(
            Path(getattr(jobs, package).__file__).parent,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "checkpoints"),
        )
        monkeypatch.setattr(getattr(jobs, package), "__file__", f"{tmp_path}/{package}/__init__.py")
    benchmark = tmp_path / "benchmark.py"
    benchmark.write_text("")
    found = [jobs.cache_file("real", str(benchmark))]
    assert found[0] == jobs.cache_file("real", str(benchmark))
    for name in ("benchmark", "pfn/model", "pfn/estimators/base", "priors/posteriors/linear_pool"):
        (tmp_path / f"{name}.py").write_text("# changed")
        found.append(jobs.cache_file("real", str(benchmark)))
    monkeypatch.setattr(jobs, "version", lambda library: "0")
    found.append(jobs.cache_file("real", str(benchmark)))
    assert len(set(found)) == len(found)


def test_an_unknown_set_or_folder_is_an_error(capsys, tmp_path):
    with pytest.raises(SystemExit):
        real.main(["--sets", "boston"])
    assert "no set 'boston'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        real.main(["--data", str(tmp_path)])
    assert "concrete.npz is missing" in capsys.readouterr().err


def test_the_network_is_scored_in_units_of_y(tables):
    network = small_network().double()
    made = split(tables["diabetes"], 0)
    predicted = tabular_models._single_pass(made, network)
    model = network.condition(torch.tensor(made.train_X), torch.tensor(made.train_y)[:, None])
    posterior = model.posterior(torch.tensor(made.test_X), observation_noise=True)
    np.testing.assert_allclose(predicted.mean, posterior.mean[:, 0].numpy())
    step = 1e-3
    y = torch.tensor(made.test_y)[:, None]
    slope = (posterior.cdf(y + step) - posterior.cdf(y - step)) / (2 * step)
    np.testing.assert_allclose(np.exp(predicted.log_density), slope[:, 0].numpy(), rtol=1e-2)


def test_the_units_of_inputs_do_not_matter_to_botorchs_model():
    """Its prior of the length-scales is for the unit cube; a constant column does no harm."""
    random = np.random.default_rng(0)
    X, Q = random.normal(size=(30, 3)), random.normal(size=(10, 3))
    X[:, 2] = Q[:, 2] = 0.0
    y, targets = (np.sin(2 * rows[:, 0]) + rows[:, 1] for rows in (X, Q))
    scale, shift = np.array([20.0, 0.01, 1.0]), np.array([5.0, -5.0, 0.0])
    found, expected = (
        tabular_models.REGRESSORS["SingleTaskGP"](datasets.Split(*rows), 0, "cpu")
        for rows in ((X * scale + shift, y, Q * scale + shift, targets), (X, y, Q, targets))
    )
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-3, atol=1e-3)
    assert scores.density_scores(expected, targets)["nll"] < 0.5


def test_the_best_competitor_is_no_network():
    nll = {"network": 0.1, "network, one pass": 0.2, "forest": 0.5, "linear": 0.4}
    assert real.best_competitor({model: {"nll": value} for model, value in nll.items()}) == "linear"


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    small_network().save(tmp_path / "r.safetensors")
    small_network(classes=10).save(tmp_path / "c.safetensors")
    arguments = ["--quick", "--out", str(tmp_path), "--network", str(tmp_path / "r.safetensors")]
    arguments += ["--classifier", str(tmp_path / "c.safetensors"), "--splits", "1"]
    assert real.main([*arguments, "--sets", "iris", "diabetes"]) == 0
    record = json.loads((tmp_path / "pfn_real_quick.json").read_text())
    assert set(record["sets"]) == {"iris", "diabetes"}
    assert set(record["sets"]["diabetes"]) == {*tabular_models.NETWORKS, *tabular_models.REGRESSORS}
    assert set(record["ranks"]["classification"]) == {
        *tabular_models.NETWORKS,
        *tabular_models.CLASSIFIERS,
    }
    best = record["network_minus_best"]["diabetes"]
    assert best["mean"] == record["network_minus"]["diabetes"][best["model"]]["mean"]
    nll = {model: row["nll"] for model, row in record["sets"]["diabetes"].items()}
    competitors = [nll[model] for model in tabular_models.REGRESSORS]
    assert best["mean"] == pytest.approx(nll["network"] - min(competitors))
    # Models that work at all; diabetes and iris are known.
    assert 50 < record["sets"]["diabetes"]["linear"]["rmse"] < 65
    assert record["sets"]["iris"]["sklearn GP"]["accuracy"] > 0.9
    printed = capsys.readouterr().out
    assert "rank in NLL" in printed
    assert f"the best, {best['model']} {best['mean']:+.3f}" in printed
