"""The benchmarks of matched priors: splits, what is skipped, tables; no fit."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks import records
from benchmarks.bayes import matched_priors, matching, samplers


def record(name, rows, split, prior, nll, **other):
    scores = {"rmse": 1.0, "r_hat": 1.01, "seconds": 2.0, "draws": 100}
    return {
        "set": name,
        "rows": rows,
        "split": split,
        "prior": prior,
        "nll": nll,
        **scores,
        **other,
    }


def test_differences_are_paired_by_split():
    found = []
    for number, (fixed, matched) in enumerate([(3.0, 2.0), (5.0, 4.1), (7.0, 5.9)]):
        found += [record("yacht", 100, number, "fixed", fixed)]
        found += [record("yacht", 100, number, "matched", matched)]
    found += [record("yacht", 100, 3, "fixed", 1000.0)]  # its other half is not there yet
    text = matched_priors.table(found)
    assert " -1.000 [-1.248, -0.752]" in text
    assert "100 rows, 100 draws: below zero with 95% on 1, yacht" in text
    shorter = [{**one, "draws": 50, "nll": -one["nll"]} for one in found]  # chains of their own
    both = matched_priors.table([*found, *shorter])
    assert " +1.000 [+0.752, +1.248]" in both
    assert "100 rows, 50 draws" not in both


def test_the_interval_is_that_of_a_t_test():
    values = np.array([0.3, -0.1, 0.8, 0.2])
    truth = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert matched_priors.interval(values) == pytest.approx((truth.low, truth.high))
    assert matched_priors.interval(values[:1]) == (-math.inf, math.inf)


def test_digits_are_indicators_and_splits_are_nested():
    train_X, train_Y, test_X, test_Y = matched_priors.digits(30, 0)
    assert train_X.shape == (30, 64)
    assert train_Y.shape == (30, 10)
    assert (train_Y.sum(-1) == 1).all()
    assert float(train_X.max()) == 1.0
    assert len(test_X) == len(test_Y) == 1000
    more = matched_priors.digits(100, 0)
    assert torch.equal(more[0][:30], train_X)
    assert not torch.equal(matched_priors.digits(30, 1)[0], train_X)


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.jsonl"
    asked = []

    def measure(name, prior, *data, seed, draws):
        asked.append((name, prior, len(data[0]), seed, draws))
        return {"nll": 1.0, "rmse": 1.0, "r_hat": 1.0, "seconds": 1.0}

    monkeypatch.setattr(matched_priors, "measure", measure)
    told = ["--priors", "--sets", "digits", "--rows", "30", "--splits", "2", "--out", str(path)]
    assert samplers.main(told) == 0
    assert asked == [("digits", p, 30, s, 300) for s in (0, 1) for p in ("fixed", "matched")]
    assert samplers.main(told) == 0
    assert len(asked) == len(records.read(path)) == 4
    assert samplers.main([*told, "--draws", "50"]) == 0
    assert len(asked) == len(records.read(path)) == 8
    assert asked[-1] == ("digits", "matched", 30, 1, 50)
    assert "digits" in capsys.readouterr().out
    monkeypatch.delenv("WIDEPRIOR_DATA", raising=False)
    options = ["--sets", "yacht", "--out", str(path)]
    assert matched_priors.main(options) == 2
    assert "--data" in capsys.readouterr().err


def test_the_table_of_methods_says_how_much_faster_moments_are():
    base = {"quick": False, "covariance_error": 0.1, "distance": 0.06, "floor": 0.05}
    found = [
        {**base, "method": name, "seed": seed, "seconds": seconds + seed}
        for name, seconds in (("moments", 2.0), ("published", 100.0))
        for seed in range(3)
    ]
    assert "moments are 34 times as fast as published" in matching.table(found)


def test_the_published_setting():
    prior, target, box, held_out = matching.problem(0)
    assert prior.module[0].weight.shape == (100, 8)
    assert target.kernel.lengthscale.item() == pytest.approx(4.0)
    assert box(torch.Generator()).shape == held_out.shape == (100, 8)
    every = matching.methods(False)
    assert every["published"].num_iterations == 200
    assert every["published"].critic_pool == every["published"].num_functions == 128
