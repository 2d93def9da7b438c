"""Stacking weights against a general-purpose optimiser and closed cases."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from priors import stacking_weights


def mean_log_score(w, scores):
    return float(torch.logsumexp(scores + torch.as_tensor(w).log(), 1).mean())


@pytest.mark.fast_for("5-3-1.0", "30-6-4.0")
@pytest.mark.parametrize(
    ("n", "k", "spread"), [(5, 3, 1.0), (100, 5, 2.0), (300, 8, 0.1), (30, 6, 4.0), (200, 3, 300.0)]
)
def test_the_mean_log_score_is_the_greatest(n, k, spread):
    generator = torch.Generator().manual_seed(n)
    scores = spread * torch.randn(n, k, generator=generator, dtype=torch.float64) - 1e3
    w = stacking_weights(scores)
    assert w.dtype == torch.float64
    assert bool((w >= 0).all())
    assert float(w.sum()) == pytest.approx(1)
    found = mean_log_score(w, scores)
    # the duality gap, by the definition
    p = (scores - torch.logsumexp(scores + w.log(), 1, keepdim=True)).exp()
    assert float(p.mean(0).max()) - 1 < 1e-8

    def loss(u):
        return -mean_log_score(np.exp(u - np.logaddexp.reduce(u)), scores)

    theirs = minimize(loss, np.zeros(k), options={"maxiter": 200}).fun
    assert -found <= theirs + 1e-8


def test_two_members_by_the_root_of_the_score():
    """With densities a, b on a share s of the rows and b, a on the others: closed."""
    a, b, s = 3.0, 1.0, 0.6
    scores = torch.tensor([[a, b]] * 6 + [[b, a]] * 4, dtype=torch.float64).log()
    expected = (s * a - (1 - s) * b) / (a - b)
    assert float(stacking_weights(scores)[0]) == pytest.approx(expected, abs=1e-4)


def test_members_that_add_nothing_have_no_weight():
    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, 2] = scores[:, 0] - 1e-2
    assert float(stacking_weights(scores)[2]) == 0
    scores[:, 1] = -torch.inf
    assert torch.equal(stacking_weights(scores), scores.new_tensor([1.0, 0.0, 0.0]))


def test_equal_members_share_the_weight():
    scores = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)).expand(20, 4)
    w = stacking_weights(scores)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, torch.full((4,), 0.25))


def test_rows_that_nobody_expected_tell_nothing():
    scores = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    more = torch.cat([scores, torch.full((5, 3), -torch.inf, dtype=torch.float64)])
    torch.testing.assert_close(stacking_weights(more), stacking_weights(scores))


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        (torch.zeros(3), r"\[rows, members\]"),
        (torch.zeros(0, 3), r"\[rows, members\]"),
        (torch.tensor([[0.0, torch.nan]]), "NaN"),
        (torch.tensor([[0.0, torch.inf]]), "inf"),
        (torch.full((3, 2), -torch.inf), "no member is possible"),
    ],
)
def test_what_cannot_be_weighed_is_refused(scores, match):
    with pytest.raises(ValueError, match=match):
        stacking_weights(scores)
