"""Other people's priors of learning curves: LC-PFN's model, its sampler, and the tasks read."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.pfn import curve_priors, domhan
from priors.tasks.training_curves import log_time


def numbers(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, domhan.NUMBERS, generator=generator, dtype=torch.float64)


def test_the_unknowns_have_the_distributions_of_the_model():
    found = domhan.latents_of(numbers(4000))
    wanted = {
        "pow3_c": stats.uniform(0, 1.25),
        "pow3_a": stats.uniform(-0.6, 1.2),
        "pow3_alpha": stats.lognorm(2),
        "ilog2_c": stats.uniform(0, 1),
        "ilog2_a": stats.uniform(-0.5, 1),
        "janoschek_a": stats.uniform(0, 1),
        "janoschek_beta": stats.uniform(0, 2),
        "janoschek_k": stats.lognorm(1, scale=math.exp(-2)),
        "janoschek_delta": stats.lognorm(0.5),
        "noise_std": stats.lognorm(1, scale=math.exp(-4)),
    }
    assert found.keys() == wanted.keys() | {"weights"}
    for name, law in wanted.items():
        assert stats.kstest(found[name].numpy(), law.cdf).pvalue > 1e-4, name
    for weights in found["weights"].T:
        assert stats.kstest(weights.numpy(), stats.uniform.cdf).pvalue > 1e-4
    drawn = np.column_stack([*(found[name].numpy() for name in wanted), found["weights"].numpy()])
    ranks = stats.spearmanr(drawn).statistic
    assert np.abs(ranks - np.eye(len(ranks))).max() < 4.5 / 4000**0.5


def test_curves_are_sums_of_the_three_families():
    latents = domhan.latents_of(numbers(5))
    curves = domhan.values(latents, torch.arange(1, 6).double())
    for i in range(5):
        p = {name: value[i].tolist() for name, value in latents.items()}
        for t in range(1, 6):
            pow3 = p["pow3_c"] - p["pow3_a"] * t ** -p["pow3_alpha"]
            ilog2 = p["ilog2_c"] - p["ilog2_a"] / math.log(t + 1)
            left = math.exp(-p["janoschek_k"] * t ** p["janoschek_delta"])
            janoschek = p["janoschek_a"] - (p["janoschek_a"] - p["janoschek_beta"]) * left
            parts = zip(p["weights"], (pow3, ilog2, janoschek), strict=True)
            assert float(curves[i, t - 1]) == pytest.approx(sum(w * f for w, f in parts))
    some = torch.tensor([[0.1, 0.2], [0.2, 0.2], [0.1, 1.01], [-0.01, 0.2], [0.0, 1.0]])
    assert domhan.is_allowed(some).tolist() == [True, False, False, False, True]


def test_the_sampler_finds_a_known_posterior():
    """z_1 + z_2 measured as 3 with variance 0.01, z_3 measured as 0.5 with variance 1, z_4 > 0."""

    def log_likelihood(z):
        found = -0.5 * ((z[:, 0] + z[:, 1] - 3).square() / 0.01 + (z[:, 2] - 0.5).square())
        return torch.where(z[:, 3] > 0, found, -torch.inf)

    length = domhan.Length(particles=400, moves=2, final_moves=10)
    z = torch.stack([domhan._sample(log_likelihood, length, seed) for seed in range(4)])
    means, together = z.mean(1), z.flatten(0, 1)
    wanted = {0: 3 / 2.01, 1: 3 / 2.01, 2: 0.25, 3: math.sqrt(2 / math.pi), 5: 0.0}
    for i, mean in wanted.items():
        spread = float(means[:, i].std()) / 2  # between independent ensembles
        assert float(means[:, i].mean()) == pytest.approx(mean, abs=5 * spread + 1e-3), i
    apart = (together[:, 0] - together[:, 1]).square().mean()
    assert float(apart) == pytest.approx(2.0, rel=0.25)
    assert float((together[:, 0] + together[:, 1]).var()) == pytest.approx(0.02 / 2.01, rel=0.25)
    assert float(together[:, 2].var()) == pytest.approx(0.5, rel=0.25)
    assert bool((together[:, 3] > 0).all())


def test_without_data_the_posterior_is_the_prior():
    length = domhan.Length(particles=1000, moves=1, final_moves=4)
    found = domhan.posterior(torch.zeros(0), length)
    z = numbers(20_000, seed=1)
    curves = domhan.values(domhan.latents_of(z), torch.arange(1, 101).double())
    curves = curves[domhan.is_allowed(curves)]
    error = curves.std(0) * (1 / 1000 + 1 / len(curves)) ** 0.5
    assert ((found.mean[:, 0] - curves.mean(0)).abs() < 5 * error).all()


@pytest.mark.slow
def test_the_posterior_is_calibrated():
    """Half a minute: where the true smooth value is among those of the ensemble."""
    z = numbers(1000, seed=2)
    latents = domhan.latents_of(z)
    curves = domhan.values(latents, torch.arange(1, 101).double())
    some = domhan.is_allowed(curves).nonzero()[:60, 0]
    noise = latents["noise_std"][:, None] * torch.randn(
        curves.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    y = curves + noise
    length = domhan.Length(particles=250, moves=2, final_moves=10)
    last = torch.stack(
        [domhan.posterior(y[i, :40], length).cdf(y[i, 40:, None])[-1, 0] for i in some]
    )
    assert stats.kstest(last.numpy(), stats.uniform.cdf).pvalue > 1e-3


def test_tasks_of_many_curves(tmp_path, monkeypatch):
    """Rows are number of the curve, share of the training, hyperparameters."""
    shares = np.array([1, 2, 1, 7, 4, 10]) / 10
    rows = np.column_stack([[1, 1, 2, 1, 2, 0], shares, np.linspace(0, 1, 6)])
    y = np.array([0.2, 0.0, 0.3, 0.9, 1.0, 0.5])
    file = tmp_path / "tasks.npz"
    np.savez(file, x_3_0=rows.astype("float32"), y_3_0=y.astype("float32"))
    monkeypatch.setattr(curve_priors.common, "ROOT", tmp_path)
    X, found = curve_priors.task_of("tasks.npz", "ft-pfn", 3, 0)
    assert found.tolist() == pytest.approx([0.2, 0.0, 0.3, 0.9, 0.5])  # 1.0 is a query
    wanted = log_time(torch.tensor([1.0, 2, 1, 7, 10]), 10.0).double()
    torch.testing.assert_close(X[:, 0], wanted)
    assert X[:, 1].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 1.0])


def test_differences_are_paired():
    runs = {
        "network": [{"nll": n, "coverage50": 0.5, "coverage90": 1.0, "seconds": 0.1, "queries": 9}
                    for n in (1.0, 5.0)],
        "GP": [{"nll": n, "coverage50": 0.5, "coverage90": 1.0, "seconds": 0.1, "queries": 9}
               for n in (2.0, 6.0)],
    }  # fmt: skip
    found = curve_priors.summarise(runs)
    assert found["queries"] == 18
    assert found["models"]["GP"]["network_minus"] == {"mean": -1.0, "standard_error": 0.0}
    assert "network_minus" not in found["models"]["network"]
