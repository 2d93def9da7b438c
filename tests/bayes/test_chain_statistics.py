"""R-hat, effective sample sizes and E-BFMI against ArviZ, and where their truth is known."""

import math

import numpy as np
import pytest
import torch

from bayes.inference import chain_statistics
from bayes.inference.arviz_export import import_arviz, many_chains


def autoregressive(coefficient, chains=4, draws=200, k=3, seed=0):
    """Stationary chains of variance 1 whose correlation at lag t is coefficient^t."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, k, generator=generator, dtype=torch.float64)
    values = [noise[:, 0]]
    for t in range(1, draws):
        step = math.sqrt(1 - coefficient**2) * noise[:, t]
        values.append(coefficient * values[-1] + step)
    return torch.stack(values, 1)


CASES = {
    "independent": autoregressive(0.0),
    "slow": autoregressive(0.95),
    "antithetic": autoregressive(-0.6),
    "odd number of draws": autoregressive(0.5, draws=101),
    "apart": autoregressive(0.3) + torch.arange(4.0).double()[:, None, None],
    "ties": autoregressive(0.3).mul(2).round(),
    "one chain": autoregressive(0.5, chains=1),
    "many short": autoregressive(0.3, chains=40, draws=8),
    "four draws": autoregressive(0.0, draws=4),
    "heavy tails": autoregressive(0.5).mul(1.5).sinh(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_as_arviz(name):
    values, arviz = CASES[name], import_arviz()
    with many_chains():
        data = arviz.convert_to_dataset({"f": values.numpy()})
    cases = {
        "r_hat": arviz.rhat(data),
        "bulk_ess": arviz.ess(data),
        "tail_ess": arviz.ess(data, method="tail"),
    }
    for which, truth in cases.items():
        if which == "r_hat" and len(values) == 1:
            continue  # ArviZ has none of one chain, whose halves can be compared
        found = getattr(chain_statistics, which)(values).numpy()
        assert np.allclose(found, truth["f"].to_numpy(), rtol=1e-8, equal_nan=True), which


def test_halves_of_members_are_compared_as_those_of_one_chain():
    one = CASES["one chain"]
    found = chain_statistics.member_r_hat(one)
    assert torch.allclose(found, chain_statistics.r_hat(one))
    # rounding exchanges ranks
    assert torch.allclose(chain_statistics.member_r_hat(3 * one - 7), found, rtol=1e-3)
    # the variance between halves of independent draws is what chance gives: R-hat about 1
    members = autoregressive(0.0, chains=200, draws=50, k=20) * 5 + 100 * torch.randn(200, 1, 1)
    found = chain_statistics.member_r_hat(members)
    assert float((found - 1).abs().max()) < 0.01
    assert float(chain_statistics.r_hat(members).min()) > 1.5


def test_bfmi_as_arviz():
    energy = CASES["slow"][..., 0]
    data = import_arviz().from_dict(sample_stats={"energy": energy.numpy()})
    assert np.allclose(chain_statistics.e_bfmi(energy).numpy(), import_arviz().bfmi(data))


def test_effective_draws_of_an_autoregressive_chain():
    """(1 - a) / (1 + a) of the draws."""
    values = autoregressive(0.6, chains=8, draws=4000, k=4)
    found = chain_statistics.bulk_ess(values).mean()
    assert float(found) == pytest.approx(8 * 4000 * 0.4 / 1.6, rel=0.1)


def test_nested_r_hat_by_hand():
    values = autoregressive(0.2, chains=9, draws=5, k=1)
    groups = values[:8, :, 0].numpy().reshape(2, 4, 5)
    means = groups.mean(-1)
    between = means.mean(-1).var(ddof=1)
    within = np.mean([means[g].var(ddof=1) + groups[g].var(-1, ddof=1).mean() for g in range(2)])
    truth = math.sqrt(1 + between / within)
    assert float(chain_statistics.nested_r_hat(values, 4)) == pytest.approx(truth)
    single = chain_statistics.nested_r_hat(values[:8, :1], 4)
    assert float(single) == pytest.approx(
        math.sqrt(1 + groups[..., 0].mean(-1).var(ddof=1) / groups[..., 0].var(-1, ddof=1).mean())
    )
    with pytest.raises(ValueError, match="two groups"):
        chain_statistics.nested_r_hat(values, 5)


def test_nested_r_hat_sees_groups_that_differ():
    values = autoregressive(0.0, chains=32, draws=5, k=2)
    assert (chain_statistics.nested_r_hat(values, 4) < 1.1).all()
    apart = values + torch.arange(8.0).double().repeat_interleave(4)[:, None, None]
    assert (chain_statistics.nested_r_hat(apart, 4) > 2).all()


def test_constants_and_too_few_draws():
    few = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    for which in ("r_hat", "bulk_ess", "tail_ess"):
        assert getattr(chain_statistics, which)(few).isnan().all()
    assert (chain_statistics.bulk_ess(torch.ones(2, 10, 1)) == 20).all()
