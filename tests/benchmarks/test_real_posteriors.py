"""The benchmark of posteriors on real tables: CRPS of its competitors, splits, tables."""

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.bayes import posteriors, real_posteriors
from benchmarks.pfn import tabular_models
from priors import StudentTMixturePosterior


def test_crps_of_a_forest_is_that_of_its_mixture():
    random = np.random.default_rng(0)
    y, at = random.normal(size=12), random.normal(size=5)
    weights = random.dirichlet(np.ones(12), size=5)
    kernel = scipy.stats.t(4.0, y, 0.3)
    found = tabular_models._crps_on_a_grid(kernel, weights, y, at)
    for i in range(5):
        mixture = StudentTMixturePosterior(
            torch.as_tensor(y)[:, None, None],
            torch.tensor(0.3, dtype=torch.float64),
            torch.tensor(4.0, dtype=torch.float64),
            torch.as_tensor(weights[i]).log(),
        )
        expected = mixture.crps(torch.as_tensor(at[i : i + 1])[:, None])
        assert found[i] == pytest.approx(float(expected), abs=2e-4)


def test_crps_of_a_residual_density():
    y = np.array([0.3, 2.0])
    normal = scipy.stats.norm([0.0, 1.0], 2.0)
    nearly = scipy.stats.t(1e6, [0.0, 1.0], 2.0)
    np.testing.assert_allclose(
        tabular_models._crps(normal, y), tabular_models._crps(nearly, y), rtol=1e-5
    )


def test_splits_are_disjoint_and_standardised():
    made = real_posteriors.split(None, "diabetes", 3)
    assert made.train_X.shape == (398, 10)
    assert made.test_X.shape == (44, 10)
    np.testing.assert_allclose(made.train_X.mean(0), 0, atol=1e-12)
    other = real_posteriors.split(None, "diabetes", 4)
    assert not np.array_equal(made.test_y, other.test_y)


def test_the_table_ranks_and_pairs():
    def scores(nlpd):
        return {"rmse": 1.0, "nlpd": nlpd, "crps": nlpd, "seconds": 2.0}

    found = [
        {
            "set": "yacht",
            "split": k,
            "scores": {
                "A": scores(1.0 + k),
                "stack": scores(0.5 + k),
                "forest density": scores(3.0),
                "boosting": scores(4.0),
            },
            "weights": {"A": 1.0},
        }
        for k in range(2)
    ]
    text = real_posteriors.table(found)
    assert "yacht: 2 splits" in text
    assert "-0.5 ± 0 against A; the stack takes 2 s, the sum of its parts 2 s" in text
    assert real_posteriors.table([]) == "nothing is there"


def test_parts_are_chosen_by_flag(capsys):
    assert posteriors.main([]) == 2
    assert "--real" in capsys.readouterr().err
