"""Averages over attention heads: against quadrature for two keys, Monte Carlo for more."""

import itertools
import math

import numpy as np
import pytest
import torch

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, jackknife
from priors.limits import heads
from priors.limits.heads import Heads
from priors.limits.points import Settings
from priors.programs.nodes import Array, Attention

SCALE = 1.3
MASK = torch.tensor([[0.0, -torch.inf, -torch.inf, 0.0], [0.0, 0.0, -1.0, 0.0], [0.5, 0, 0, 0]])


def moments(n, m, size, seed, scale=1.0):
    """Moments of n left and m right data points at `size` positions: own, own and of both."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, size, 5, dtype=torch.float64, generator=generator)
    rows = shared + torch.randn(n + m, size, 5, dtype=torch.float64, generator=generator)
    whole = scale * torch.einsum("iaf,jbf->ijab", rows, rows) / 10
    own = torch.stack([whole[i, i] for i in range(n + m)])
    return own[:n, None], own[None, n:], whole[:n, n:]


def attention(mask=None):
    array = None if mask is None else Array.of(mask)
    return Attention(0, 0, 0, SCALE, False, True, array, (1,))


def make(queries, keys, rule, *, mask=None, max_bytes=2**30):
    settings = Settings(lambda *_: torch.ones(()), rule, max_bytes=max_bytes)
    node = attention(mask)
    return Heads(node, node, queries, keys, None, settings, paired=False, symmetric=False)


def case(keys, seed, scale=1.0, queries=3):
    """Moments of queries and keys of 2 and 3 data points, values, and two tangents."""
    q, k = moments(2, 3, queries, seed, scale), moments(2, 3, keys, seed + 100)
    generator = torch.Generator().manual_seed(seed)
    value, dq, dk = (
        torch.randn(2, 3, a, a, dtype=torch.float64, generator=generator)
        for a in (keys, queries, keys)
    )
    return q, k, value, dq, dk


def quadrature(q, k, function):
    """E f(d, d') over the differences of the two logits of every query, by a product rule."""
    x, w = np.polynomial.hermite_e.hermegauss(70)
    w = torch.from_numpy(np.outer(w, w) / (2 * math.pi))
    x = torch.from_numpy(x)
    own, other, both = (
        SCALE**2 * (a[..., 0, 0] + a[..., 1, 1] - a[..., 0, 1] - a[..., 1, 0]) for a in k
    )
    one = (q[0].diagonal(dim1=-2, dim2=-1) * own[..., None]).sqrt()[..., :, None]
    two = (q[1].diagonal(dim1=-2, dim2=-1) * other[..., None]).sqrt()[..., None, :]
    r = (q[2] * both[..., None, None] / (one * two))[..., None, None]
    d = one[..., None, None] * x[:, None]
    e = two[..., None, None] * (r * x[:, None] + (1 - r**2).sqrt() * x)
    return (w * function(d, e)).sum((-1, -2))


def weights(d):
    return torch.stack([torch.sigmoid(d), torch.sigmoid(-d)])


def exact(q, k, value, power=1):
    """E (A B A'^T)^power for two keys."""
    terms = lambda d, e: sum(  # noqa: E731
        value[..., i, j, None, None, None, None] * weights(d)[i] * weights(e)[j]
        for i, j in itertools.product(range(2), repeat=2)
    )
    return quadrature(q, k, lambda d, e: terms(d, e) ** power)


def exact_gradient(q, k, value, dq, dk):
    """sum_bb' E[H_bb'] (...) for two keys, where J = s (1, -1)^T (1, -1), s = A_1 A_2."""

    def bumps(d, e):
        return torch.sigmoid(d) * torch.sigmoid(-d) * torch.sigmoid(e) * torch.sigmoid(-e)

    def ends(x):
        return (x[..., 0, 0] + x[..., 1, 1] - x[..., 0, 1] - x[..., 1, 0])[..., None, None]

    inner = ends(value) * (dq * ends(k[2]) + q[2] * ends(dk))
    return SCALE**2 * inner * quadrature(q, k, bumps)


def stated(evaluate, rule):
    """Half the width of the 99% interval of what depends on a rule."""
    return jackknife([evaluate(variant) for variant in rule.variants(8)[0]])


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_two_keys_by_quadrature(scale):
    wrong, count, ratios = 0, 0, []
    for seed in range(2):
        q, k, value, dq, dk = case(2, seed, scale)
        for evaluate, truth in (
            (lambda r: make(q, k, r).average(value), exact(q, k, value)),  # noqa: B023
            (
                lambda r: make(q, k, r).logit_gradient(value, dq, dk),  # noqa: B023
                exact_gradient(q, k, value, dq, dk),
            ),
        ):
            rule = QuasiMonteCarlo(256, seed=seed)
            ratio = (evaluate(rule) - truth).abs() / stated(evaluate, rule)
            wrong, count = wrong + int((ratio > 1).sum()), count + ratio.numel()
            ratios.append(ratio.flatten())
            assert (ratio < 2).all()
    assert wrong <= 0.03 * count
    assert torch.cat(ratios).median() < 1


def test_the_closed_part_leaves_little_to_draw():
    """A third of the error of ten times as many plain draws."""
    q, k, value, _, _ = case(2, 0, 0.5)
    truth = exact(q, k, value)
    plain = ((exact(q, k, value, 2) - truth**2) / 10_000).sqrt()
    error = make(q, k, QuasiMonteCarlo(1024)).average(value) - truth
    assert error.square().mean().sqrt() < plain.square().mean().sqrt() / 3


def test_masked_heads_by_monte_carlo():
    q, k, value, dq, dk = case(4, 7)
    made = make(q, k, QuasiMonteCarlo(2048), mask=MASK)
    i, j, draws = 1, 2, 20_000
    roots = [
        torch.linalg.cholesky(
            torch.cat(
                [torch.cat([a[0][i, 0], a[2][i, j]], 1), torch.cat([a[2][i, j].T, a[1][0, j]], 1)]
            )
            + 1e-9 * torch.eye(2 * a[2].shape[-1])
        )
        for a in (q, k)
    ]
    z = torch.randn(draws, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = SCALE * roots[0] @ z @ roots[1].T
    one, two = ((g + MASK).softmax(-1) for g in (logits[:, :3, :4], logits[:, 3:, 4:]))

    def close(found, products):
        error = products.std(0) / math.sqrt(draws)
        assert ((found[i, j] - products.mean(0)).abs() < 4.5 * error + 1e-3).all()

    close(made.average(value), one @ value[i, j] @ two.mT)
    first, second = (torch.diag_embed(a) - a.unsqueeze(-1) * a.unsqueeze(-2) for a in (one, two))
    x = [dq[i, j], k[2][i, j], q[2][i, j], dk[i, j]]
    products = torch.stack(
        [
            torch.stack([first[:, a] @ value[i, j] @ second[:, b].mT for b in range(3)], 1)
            for a in range(3)
        ],
        1,
    )
    whole = x[0] * (products * x[1]).sum((-1, -2)) + x[2] * (products * x[3]).sum((-1, -2))
    close(made.logit_gradient(value, dq, dk), SCALE**2 * whole)
    mean = made.mean_weights()[i, 0]
    error = one.std(0) / math.sqrt(draws)
    assert ((mean - one.mean(0)).abs() < 4.5 * error + 1e-3).all()
    assert (mean[MASK == -torch.inf] == 0).all()


def test_independent_heads_are_those_of_the_means():
    q, k, value, dq, dk = case(4, 3)
    made = make((q[0], q[1], None), k, QuasiMonteCarlo(64))
    left, right = (
        made.mean_weights(),
        make((q[1], q[1], None), k[1:2] * 2 + (None,), QuasiMonteCarlo(64)).mean_weights(),
    )
    torch.testing.assert_close(made.average(value), left @ value @ right.mT)
    assert made.logit_gradient(value, dq, dk) is None


def test_blocks_of_pairs_and_draws_do_not_matter(monkeypatch):
    q, k, value, dq, dk = case(4, 5)
    whole = make(q, k, QuasiMonteCarlo(256))
    found = whole.average(value), whole.logit_gradient(value, dq, dk)
    monkeypatch.setattr(heads, "_CHUNK", 500)
    monkeypatch.setattr(heads, "_DRAWS", 2)
    parts = make(q, k, QuasiMonteCarlo(256))
    torch.testing.assert_close(parts.average(value), found[0])
    torch.testing.assert_close(parts.logit_gradient(value, dq, dk), found[1])


def test_gradients():
    q, k, value, dq, dk = case(3, 2, queries=2)
    rows = torch.randn(
        5, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()

    def of_keys(rows):
        whole = torch.einsum("iaf,jbf->ijab", rows, rows) + torch.eye(3) / 4
        own = torch.stack([whole[i, i] for i in range(5)])
        made = make(
            q, (own[:2, None], own[None, 2:], whole[:2, 2:] - torch.eye(3) / 4), QuasiMonteCarlo(16)
        )
        return made.average(value).sum() + made.logit_gradient(value, dq, dk).sum()

    torch.autograd.gradcheck(of_keys, rows, rtol=1e-4)
