"""Benchmarks of many runs go on where they were, whatever stopped them."""

import importlib
import json

import numpy as np
import pytest
import scipy.stats

from benchmarks.nas.runs import carry_out, half_width, parser_of

WANTED = [{"method": m, "seed": s} for s in range(2) for m in ("one", "two")]


def test_a_stopped_benchmark_goes_on_with_what_is_missing(tmp_path, capsys):
    """Stopped in its third run, after which the last line was cut short."""
    out = tmp_path / "made" / "results.jsonl"
    options = parser_of("lookups", __doc__).parse_args(["--out", str(out)])
    ran = []

    def measure(method, seed):
        ran.append((method, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return {"value": seed + 0.5}

    with pytest.raises(KeyboardInterrupt):
        carry_out(options, WANTED, measure, len)
    out.write_text(out.read_text()[:-5])
    assert carry_out(options, WANTED, measure, lambda found: f"{len(found)} runs") == 0
    assert capsys.readouterr().out == "4 runs\n"
    assert ran == [("one", 0), ("two", 0), ("one", 1), ("two", 0), ("one", 1), ("two", 1)]
    lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    assert sorted((r["method"], r["seed"], r["value"]) for r in lines) == sorted(
        (r["method"], r["seed"], r["seed"] + 0.5) for r in WANTED
    )


def test_the_same_command_in_two_processes_shares_the_runs(tmp_path):
    out = tmp_path / "results.jsonl"
    options = parser_of("lookups", __doc__).parse_args(["--out", str(out)])
    ran = []

    def second(method, seed):
        ran.append(("second", method, seed))
        return {"value": 0}

    def first(method, seed):
        ran.append(("first", method, seed))
        carry_out(options, WANTED, second, len)
        return {"value": 0}

    carry_out(options, WANTED, first, len)
    assert ran[0] == ("first", "one", 0)
    assert [run[0] for run in ran[1:]] == ["second"] * 3
    assert sorted(run[1:] for run in ran) == sorted((r["method"], r["seed"]) for r in WANTED)
    assert len(out.read_text().splitlines()) == 4


def test_tables_alone_run_nothing(tmp_path, capsys):
    out = str(tmp_path / "none.jsonl")
    options = parser_of("lookups", __doc__).parse_args(["--table", "--out", out])
    assert carry_out(options, WANTED, pytest.fail, lambda found: f"{len(found)} runs") == 0
    assert capsys.readouterr().out == "0 runs\n"


@pytest.mark.parametrize("name", ["lookups", "oracle", "pareto"])
def test_missing_tables_are_told(name, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WIDEPRIOR_DATA", raising=False)
    main = importlib.import_module(f"benchmarks.nas.{name}").main
    for data in ([], ["--data", str(tmp_path)]):
        assert main([*data, "--out", str(tmp_path / "none.jsonl")]) == 2
        assert "--data" in capsys.readouterr().err


def test_half_width_is_that_of_the_t_test():
    values = np.random.default_rng(0).normal(size=(7, 2))
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(half_width(values), (interval.high - interval.low) / 2)
    assert np.isnan(half_width(values[:1])).all()
