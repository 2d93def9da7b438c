"""Parts of `benchmarks pfn rows`: which models see how many rows of which set."""

import numpy as np

from benchmarks.pfn.datasets import Table
from benchmarks.pfn.rows import AS_IT_COMES, LARGE, MODELS, ROWS, TUNED, _runs


def table(name, rows):
    return Table(name, np.zeros((rows, 2)), np.zeros(rows))


def test_small_sets_are_only_tuned():
    assert _runs(table("yacht", 308), ROWS, None) == [(AS_IT_COMES, 512), (TUNED, 512)]


def test_large_sets_are_cut_to_their_training_rows():
    runs = _runs(table(LARGE[0], 9_568), ROWS, None)
    assert {rows for _, rows in runs} == {512, 1_000, 2_000, 5_000, int(0.8 * 9_568)}
    assert {model for model, rows in runs if rows > 2_000} == set(MODELS) - {"SingleTaskGP"}
    assert len(runs) == len(set(runs))


def test_parts_are_parts_of_the_whole():
    whole = _runs(table(LARGE[0], 9_568), ROWS, None)
    for sizes, models in (((2_000,), None), (ROWS, ["network", TUNED])):
        part = _runs(table(LARGE[0], 9_568), sizes, models)
        assert part == [
            (model, rows)
            for model, rows in whole
            if (models is None or model in models)
            and (rows in sizes or model in (AS_IT_COMES, TUNED) or sizes == ROWS)
        ]
