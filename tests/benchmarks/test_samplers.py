"""The benchmark of samplers: densities in both languages name the same numbers; its table."""

import pytest
import torch

from bayes.processes.hyperparameters import Hyperparameters
from benchmarks.bayes import samplers, sampling_problems


def test_hyperparameters_have_the_order_of_the_jax_density():
    _, _, model = sampling_problems.saas()
    names = [(slot.name.split("raw_")[-1], slot.part.stop) for slot in Hyperparameters(model).slots]
    assert names == [("outputscale", 1), ("lengthscale", 9), ("tau", 10), ("noise", 11)]


@pytest.mark.parametrize("problem", ["network 1x10", "network 2x16"])
def test_what_others_are_told_of_a_network_determines_its_density(problem):
    told = samplers.told_of(problem)
    target, _, model = sampling_problems.network(problem)
    X, Y = (torch.tensor(told[name], dtype=torch.float64) for name in ("X", "Y"))
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(2, target.dimension, generator=generator, dtype=torch.float64)
    eps, sites = target.split(position)
    drawn = model.whitening.weights(eps)
    normal = torch.distributions.Normal
    expected = []
    for k in range(2):
        parts = [drawn[name][k] for name, _ in model.prior.module.named_parameters()]
        assert [list(part.shape) for part in parts] == told["shapes"]
        stds = zip(told["stds"], parts, strict=True)
        prior = sum(normal(0, std).log_prob(part).sum() for std, part in stds)
        f = X
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            f = torch.tanh(f @ weight.T + bias)
        f = f @ parts[-2].T + parts[-1]
        log_var = sites["log_noise_var"][k]
        likelihood = normal(f, (log_var / 2).exp()).log_prob(Y).sum()
        expected.append(likelihood + prior + normal(-2.0, 1.5).log_prob(log_var).sum())
    ours = target.log_prior(position) + target.log_likelihood(position).sum((-2, -1))
    assert float(ours[1] - ours[0]) == pytest.approx(
        float(expected[1] - expected[0]), rel=1e-6
    )  # deviations are single


def test_moments_have_their_errors():
    generator = torch.Generator().manual_seed(0)
    values = 3 + 2 * torch.randn(40, 100, 3, generator=generator, dtype=torch.float64)
    found = samplers.moments(values)
    assert len(found["means"]) == 2  # the log density is left out
    for mean, error in zip(found["means"], found["errors"], strict=True):
        assert error == pytest.approx(2 / 4000**0.5, rel=0.15)
        assert abs(mean - 3) < 5 * error


def record(method, seed, means, **other):
    numbers = {"effective": 100.0, "gradients": 1000.0, "all": 2000.0, "seconds": 4.0}
    found = {"problem": "SAAS", "method": method, "seed": seed, **numbers}
    found |= {"chains": 16, "draws": 500}
    return {**found, "means": means, "errors": [0.3, 0.4], **other}


def test_the_table_compares_means_with_those_of_the_reference():
    found = [record(samplers.REFERENCE, 0, [1.0, 2.0])]
    found += [record("ChEES", seed, [1.0, 2.0 + 1.0 + seed]) for seed in (0, 1)]
    lines = samplers.table(found).splitlines()
    ours = next(line for line in lines if "ChEES" in line)
    # 1.5 over sqrt(0.4^2 + 2 0.4^2 / 4)
    assert ours.split()[-1] == f"{1.5 / (0.4 * 1.5**0.5):.1f}"
    assert "0.1000" in ours
    reference = next(line for line in lines if samplers.REFERENCE in line)
    assert reference.split()[-1] == "-"


def test_runs_of_other_lengths_are_not_taken_together():
    found = [record("ChEES", 0, [1.0, 2.0]), record("ChEES", 0, [1.0, 2.0], draws=200)]
    assert len(samplers.table(found).splitlines()) == 3
