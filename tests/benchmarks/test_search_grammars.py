"""Searches of grammars that are killed and go on."""

import json
import sqlite3

import pytest

from benchmarks.nas import grammars


def run(method, seed, validation, test, **changes):
    told = {"space": "resnet", "method": method, "seed": seed, "trials": 2, "killed": True}
    kill = {"failed": 1, "lost": 0, "doubled": 0}
    return {**told, **kill, "validation": validation, "test": test, **changes}


def test_report():
    calm = run("gp", 0, [0.5, 0.1], 0.2, killed=False, failed=0)
    found = [
        run("gp", 0, [0.5, 0.25], 0.2),
        run("gp", 1, [0.2, 0.3], 0.3, lost=1),
        run("random", 0, [0.5, 0.5], 0.5),
        run("random", 1, [0.7, 0.4], 0.5, doubled=2),
        calm,
    ]
    lines = grammars.report(found).splitlines()
    # differences -0.25 and -0.2, -0.3 and -0.2: t(1) quantile 12.706, standard errors 0.025, 0.05
    assert "-0.2250±0.3177  -0.2500±0.6353" in lines[3]
    assert lines[4] == (
        "of 4 searches that were killed: 4 trials failed, 1 trials lost, 2 trials doubled"
    )
    assert "1 of 2 trials are those of a search that was not" in lines[5]


def test_complete_trials_are_counted_from_outside(tmp_path):
    file = tmp_path / "study.db"
    assert grammars._complete(file) == 0
    with sqlite3.connect(file) as connection:
        assert grammars._complete(file) == 0
        connection.execute("CREATE TABLE trials (state TEXT)")
        connection.executemany(
            "INSERT INTO trials VALUES (?)", [("COMPLETE",), ("RUNNING",), ("COMPLETE",)]
        )
    assert grammars._complete(file) == 2


@pytest.mark.slow
def test_a_killed_search_has_the_trials_of_one_that_was_not(tmp_path):
    out = tmp_path / "results.jsonl"
    options = ["--spaces", "resnet", "--methods", "gp", "--seeds", "1", "--trials", "4"]
    assert grammars.main([*options, "--out", str(out)]) == 0
    killed, calm = (json.loads(line) for line in out.read_text().splitlines())
    assert killed["validation"] == calm["validation"]
    assert killed["failed"] == 1
    assert killed["lost"] == killed["doubled"] == 0
