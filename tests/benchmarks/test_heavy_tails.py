"""The benchmark of shifted rows and wrong outcomes: rows, what is run, and the table; no fit."""

import sklearn.datasets
import torch

from benchmarks import records
from benchmarks.bayes import heavy_tails


def test_training_outcomes_alone_are_wrong():
    X, Y, Q, T = heavy_tails.rows(None, "diabetes", "in distribution", 0)
    for condition, share in (("outliers", 0.1), ("shuffled", 0.3)):
        same_X, wrong, same_Q, same_T = heavy_tails.rows(None, "diabetes", condition, 0)
        for one, other in ((X, same_X), (Q, same_Q), (T, same_T)):
            assert torch.equal(one, other)
        assert 0 < int((wrong != Y).sum()) <= share * len(Y)
    assert bool(((wrong.sort(0).values - Y.sort(0).values).abs() < 1e-12).all())  # permuted


def test_shifted_rows_are_beyond_those_of_training():
    X, _ = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    X = torch.as_tensor((X - X.mean(0)) / X.std(0))
    axis = torch.linalg.svd(X, full_matrices=False)[2][0]
    gaps = []
    for seed in (0, 1):
        seen, _, new, _ = heavy_tails.rows(None, "diabetes", "shift", seed)
        seen, new = seen @ axis, new @ axis
        assert float(seen.max()) < float(new.min()) or float(new.max()) < float(seen.min())
        gaps.append(float(new.mean() - seen.mean()))
    assert gaps[0] * gaps[1] < 0  # upwards and downwards


def test_models_that_are_there_are_not_run_again(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(X, Y, Q, T, models):
        asked.append(list(models))
        at = {"rmse": 1.0, "crps": 0.5, "coverage": 0.9, "seconds": 0.0}
        return {name: {**at, "nlpd": 1.0 + (name != "GP")} for name in models}

    monkeypatch.setattr(heavy_tails, "measure", measure)
    path = tmp_path / "found.jsonl"
    some = ["--sets", "diabetes", "--seeds", "2", "--out", str(path)]
    assert heavy_tails.main([*some, "--models", "GP", "t process"]) == 0
    assert asked == [["GP", "t process"]] * 8
    assert heavy_tails.main([*some[:2], "--seeds", "1", *some[4:], "--models", "t process",
                             "relevance pursuit"]) == 0  # fmt: skip
    assert asked[8:] == [["relevance pursuit"]] * 4
    assert len(records.read(path)) == 12
    lines = capsys.readouterr().out.splitlines()
    last = [line.split() for line in lines if "relevance pursuit" in line]
    assert [line[2] for line in last] == ["1"] * 4
    paired = next(line.split() for line in reversed(lines) if "t process" in line)
    assert paired[2] == "2"
    assert "1.000" in paired


def test_the_data_are_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("WIDEPRIOR_DATA", raising=False)
    assert heavy_tails.main(["--sets", "yacht"]) == 2
    assert "--data FOLDER" in capsys.readouterr().err


def test_nothing_is_there():
    assert heavy_tails.table([]) == "nothing is there"
