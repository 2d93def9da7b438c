"""The comparison on digits: what its table says of runs, and that all methods can be asked."""

import pytest

from benchmarks.nas import digits


def run(method, seed, validation, test):
    return {"method": method, "seed": seed, "validation": validation, "test": test, "seconds": 3.0}


def test_the_table_by_hand():
    found = [
        run("random", 0, [0.5, 0.3, 0.4], 0.6),
        run("random", 1, [0.2, 0.9, 0.9], 0.8),
        run("random", 2, [0.1, 0.9, 0.9], 0.7),  # no run of gp with its seed
        run("gp", 0, [0.2, 0.1, 0.3], 0.5),
        run("gp", 1, [0.2, 0.3, 0.3], 0.6),
    ]
    first, random, gp = digits.report(found).splitlines()
    assert first == "log loss of the best by validation: validation, test"
    # Half widths: t quantiles 4.3027 and 12.7062 of 2 and 1 degrees times the standard error.
    assert random.split("  gp less it")[0].split() == [
        "random",
        "3",
        "runs",
        *"0.2000±0.2484 0.7000±0.2484".split(),
    ]
    assert random.split("gp less it, 2 seeds")[1].split() == [
        "-0.1000±1.2706",
        "-0.1500±0.6353",
        "3",
        "s",
    ]
    assert gp.split()[3:5] == ["0.1500±0.6353", "0.5500±0.6353"]


def test_runs_of_other_lengths_are_apart(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(method, seed, trials):
        asked.append((method, seed, trials))
        return {"validation": [0.1 * trials], "test": 0.2, "best": {}, "seconds": 1.0}

    monkeypatch.setattr(digits, "_run", measure)
    options = ["--out", str(tmp_path / "digits.jsonl"), "--methods", "gp", "--seeds", "2"]
    assert digits.main([*options, "--trials", "3"]) == 0
    assert digits.main([*options, "--trials", "5"]) == 0
    assert digits.main([*options, "--trials", "5"]) == 0
    assert asked == [("gp", seed, trials) for trials in (3, 5) for seed in (0, 1)]
    assert capsys.readouterr().out.splitlines()[-1].split()[3] == "0.5000±0.0000"


@pytest.mark.slow
@pytest.mark.parametrize("method", digits.SAMPLERS)
def test_every_method_runs(method, monkeypatch):
    study = digits.load_study()
    monkeypatch.setattr(study, "NUM_EPOCHS", 1)
    monkeypatch.setattr(study, "NUM_REPEATS", 1)
    found = digits._run(method=method, seed=0, trials=2)
    assert len(found["validation"]) == 2
    assert set(study.HYPERPARAMETERS) < set(found["best"])
