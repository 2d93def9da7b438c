"""The benchmark of fits: rows, limits, resumption, tables, and what competitors answer."""

import json
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch

pytest.importorskip("sklearn")
from benchmarks import records
from benchmarks.bayes import fits, queries, table
from benchmarks.bayes.competitors import BOTORCH, NETWORKS, SKLEARN, BoTorchProcess, SklearnProcess
from benchmarks.bayes.limits import NotEnded, processor_limit
from benchmarks.bayes.problems import chosen_sizes, split
from benchmarks.pfn.datasets import UCI, Table


def made_up(rows=60, features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = 5 + rng.standard_normal((rows, features)) * [1.0, 10.0, 0.1]
    return Table("made up", X, 100 + 7 * np.sin(X[:, 0]) + 0.5 * rng.standard_normal(rows))


class TestProblems:
    def test_more_training_rows_contain_fewer_and_test_rows_are_others(self):
        few, many = split(made_up(), 10, 3), split(made_up(), 20, 3)
        assert torch.equal(many.train_X[:10], few.train_X)
        assert [len(few.test_X), len(many.test_Y)] == [50, 40]
        rows = torch.cat([many.train_X, many.test_X])
        assert len(rows.unique(dim=0)) == 60

    def test_few_rows_come_first_and_names_choose(self):
        assert [rows for _, rows in chosen_sizes(None)] == [100] * 6 + [200] + [300] * 5 + [
            1000
        ] * 2
        assert chosen_sizes(["naval", "energy-300"]) == [
            *(("naval", 100), ("naval", 300), ("energy", 300), ("naval", 1000))
        ]
        with pytest.raises(ValueError, match="no set 'iris'"):
            chosen_sizes(["iris"])


class TestLimits:
    def test_what_does_not_end_is_stopped_even_where_it_catches_exceptions(self):
        def endless():
            while True:
                try:
                    sum(range(1000))
                except Exception:
                    continue

        no_end = r"no end in 0\.05 processor seconds"
        with pytest.raises(NotEnded, match=no_end), processor_limit(0.05):
            endless()

    def test_nothing_is_stopped_afterwards(self):
        with processor_limit(0.05):
            pass
        start = time.process_time()
        while time.process_time() - start < 0.1:
            sum(range(1000))


def test_a_line_cut_short_is_left_out_and_the_next_is_whole(tmp_path):
    path = tmp_path / "new" / "file.jsonl"
    assert records.read(path) == []
    records.append(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": ')
    records.append(path, {"a": 2})
    assert records.read(path) == [{"a": 1}, {"a": 2}]


class TestCompetitors:
    def test_evidence_of_botorch_is_of_the_outcomes_in_their_units(self):
        rows = split(made_up(), 30, 0)
        made = BoTorchProcess(rows)
        made.fit()
        model, y = made.model, rows.train_Y[:, 0].numpy()
        with torch.no_grad():
            Z = model.input_transform(rows.train_X)
            K = model.covar_module(Z).to_dense().numpy() + model.likelihood.noise.item() * np.eye(
                30
            )
        scale = y.std(ddof=1)
        mean = y.mean() + scale * model.mean_module.constant.item()
        exact = scipy.stats.multivariate_normal(np.full(30, mean), scale**2 * K).logpdf(y)
        assert made.evidence() == pytest.approx(exact, rel=1e-6)

    def test_evidence_of_sklearn_is_of_the_outcomes_in_their_units(self):
        rows = split(made_up(), 30, 0)
        made = SklearnProcess(rows)
        made.fit()
        y = rows.train_Y[:, 0].numpy()
        K = made.model[-1].kernel_(made.model[0].transform(rows.train_X.numpy()))
        exact = scipy.stats.multivariate_normal(np.full(30, y.mean()), y.var() * K).logpdf(y)
        assert made.evidence() == pytest.approx(exact, rel=1e-6)

    @pytest.mark.parametrize("model", [BOTORCH, SKLEARN, "NNGP ReLU ARD", "NTK erf"])
    def test_scores_are_finite_and_better_than_the_mean(self, model):
        rows = split(made_up(), 40, 1)
        result = fits.evaluate(model, rows, limit=math.inf)
        assert result["failure"] is None
        assert result["rmse"] < float(rows.test_Y.std())
        assert all(math.isfinite(result[k]) for k in ("nlpd", "coverage", "evidence", "seconds"))

    def test_a_failure_is_told(self, monkeypatch):
        def fail(problem):
            raise RuntimeError("no luck\nat all")

        monkeypatch.setitem(fits.COMPETITORS, BOTORCH, fail)
        result = fits.evaluate(BOTORCH, split(made_up(), 40, 1), limit=math.inf)
        assert result["failure"] == "RuntimeError: no luck"

    def test_what_does_not_end_is_a_failure(self, monkeypatch):
        def endless(problem):  # a real one might be stopped where it leaves something half done
            while True:
                sum(range(1000))

        monkeypatch.setitem(fits.COMPETITORS, BOTORCH, endless)
        result = fits.evaluate(BOTORCH, split(made_up(), 40, 1), limit=0.05)
        assert result["failure"] == "NotEnded: no end in 0.05 processor seconds"


def record(model, split, rmse=1.0, nlpd=0.0, evidence=-1.0, seconds=1.0, failure=None, rows=100):
    key = {"set": "energy", "rows": rows, "split": split, "model": model}
    if failure is not None:
        return key | {"seconds": seconds, "failure": failure}
    scores = {"rmse": rmse, "nlpd": nlpd, "coverage": 0.9, "evidence": evidence}
    return key | scores | {"seconds": seconds, "failure": None}


class TestTable:
    def test_ratios_are_of_means_over_splits_that_both_ended(self):
        found = table.cells(
            [
                *(record(BOTORCH, k, rmse=1.0, nlpd=0.0, seconds=2.0) for k in range(3)),
                record("NNGP ReLU ARD", 0, rmse=1.0, nlpd=0.1, seconds=4.0),
                record("NNGP ReLU ARD", 1, rmse=2.0, nlpd=0.3, seconds=8.0),
                record("NNGP ReLU ARD", 2, failure="no luck"),
            ]
        )
        cell = found["energy", 100]["NNGP ReLU ARD"]
        assert cell["rmse_ratio"] == pytest.approx(1.5)
        assert cell["time_ratio"] == pytest.approx(3.0)
        assert cell["nlpd_difference"] == pytest.approx(0.2)
        assert cell["nlpd_difference_error"] == pytest.approx(0.1)
        assert cell["failures"] == ["no luck"]

    def test_the_chosen_has_the_largest_evidence_of_its_split(self):
        names = list(NETWORKS)
        rows = [record(name, 0, evidence=-k, nlpd=k) for k, name in enumerate(names)]
        rows += [record(name, 1, evidence=k, nlpd=k) for k, name in enumerate(names)]
        rows += [record(names[0], 2), record(BOTORCH, 0, evidence=100.0)]
        rows[0] = record(names[0], 0, failure="no luck")
        chosen = {r["split"]: r for r in table.with_chosen(rows) if r["model"] == table.CHOSEN}
        assert {number: r["was"] for number, r in chosen.items()} == {0: names[1], 1: names[-1]}
        assert chosen[1]["seconds"] == len(names)

    def test_goals_name_what_misses_them(self):
        rows = [record(BOTORCH, 0), record("NNGP ReLU ARD", 0, rmse=1.2, seconds=3.0)]
        rows += [record("NTK tanh ARD", 0, nlpd=0.05, seconds=9.0)]
        rows += [record("NNGP erf", 0, failure="no luck")]
        told = table.goals(table.cells(rows))
        assert told == [
            "no failure: 1 missed",
            "  NNGP erf on energy-100: 1, no luck",
            "RMSE x 1.15 and NLPD + 0.1 of SingleTaskGP: met 1 of 2",
            "  NNGP ReLU ARD on energy-100: RMSE x 1.20, NLPD +0.00",
            "processor time of a fit, 4 times (closed forms) and 8 times (tanh): met 1 of 2",
            "  NTK tanh ARD on energy-100: 9.0 times",
            # all NLPDs but one are equal
            "mean NLPD rank of chosen by evidence before SingleTaskGP: missed, 2.0 and 2.0 of 4",
        ]

    def test_ranks_are_of_models_that_are_on_all_sets(self):
        rows = [record("NNGP ReLU", 0, nlpd=1.0), record("NTK ReLU", 0, nlpd=2.0)]
        rows += [record(BOTORCH, 0, nlpd=3.0, evidence=0.0)]
        rows += [record(model, 0, nlpd=3.0, rows=300) for model in ("NNGP ReLU", "NTK ReLU")]
        rows += [record(BOTORCH, 0, nlpd=4.0, rows=300), record(SKLEARN, 0, rows=300)]
        ranked = table.mean_ranks(table.cells(rows))
        # the chosen one is NNGP ReLU, the first of equal evidence
        assert ranked == {BOTORCH: 4.0, "NNGP ReLU": 1.75, "NTK ReLU": 2.5, table.CHOSEN: 1.75}
        assert "rank of chosen by evidence before SingleTaskGP: met, 1.8" in table.report(rows)
        assert "rank of chosen" not in table.report(rows[:-2])

    def test_relevance_compares_on_the_same_splits_and_names_sets_that_do_without(self):
        rows = [record("NNGP ReLU ARD", n, rmse=1.0, nlpd=0.0, seconds=4.0) for n in (0, 1, 2)]
        rows += [
            record("NNGP ReLU", n, rmse=r, nlpd=d) for n, r, d in ((0, 4.0, 0.3), (1, 1.0, 0.1))
        ]
        rows += [record("NNGP ReLU ARD", 0, rmse=2.0, nlpd=0.4, rows=300)]
        rows += [record("NNGP ReLU", 0, rmse=1.0, nlpd=0.0, evidence=0.0, rows=300)]
        *_, line = table.relevance(rows)
        name = rows[-1]["set"]
        # geometric means: 2 and 1/2 in RMSE, 1/4 and 1 in time; +0.2 and -0.4 nats, of which the
        # evidence chooses the second
        assert line == f"| NNGP ReLU | 1.00 | -0.10 | 0.50 | -0.200 | {name}-300 |"
        assert table.relevance([r for r in rows if "ARD" in r["model"]]) == []

    def test_of_nothing_there_is_no_table(self):
        assert table.report([{"versions": {}}]) == "no fits yet"


@pytest.mark.parametrize("question", queries.QUESTIONS)
@pytest.mark.parametrize("model", [BOTORCH, "Student-t NNGP ReLU ARD"])
def test_queries_are_measured(model, question, monkeypatch, capsys):
    monkeypatch.setattr(queries.torch, "set_num_threads", lambda count: None)
    queries.measure(model, question, 5)
    result = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert result["median_s"] > 0
    assert all(math.isfinite(value) for value in result["values"])


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    for name in UCI:
        np.savez(tmp_path / f"{name}.npz", X=np.ones((9, 2)), y=np.ones(9))
    monkeypatch.setattr(fits.torch, "set_num_threads", lambda count: None)
    out = tmp_path / "fits.jsonl"
    arguments = ["--data", str(tmp_path), "--out", str(out), "--sets", "diabetes-100"]
    arguments += ["--models", BOTORCH]
    assert fits.main([*arguments, "--splits", "1"]) == 0
    first = records.read(out)
    assert [r.get("split") for r in first] == [None, 0]
    assert "diabetes, 100 rows, 1 splits" in capsys.readouterr().out
    assert fits.main([*arguments, "--splits", "2"]) == 0
    second = records.read(out)
    assert second[:2] == first
    assert [r.get("split") for r in second] == [None, 0, 1]
    assert fits.main([*arguments, "--models", "nothing"]) == 2
    assert "no model 'nothing'" in capsys.readouterr().err
    records.append(out, {})
    out.write_text(out.read_text().replace("torch", "torch of old"))
    assert fits.main([*arguments, "--splits", "3"]) == 2
    assert "made with other versions" in capsys.readouterr().err
