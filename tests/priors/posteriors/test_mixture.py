import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.testing import PosteriorContract


def parts(dtype, S=7):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(S, 2, 3, 2, generator=generator).to(dtype)
    variances = (0.3 + torch.rand(S, 1, 1, 2, generator=generator)).to(dtype)
    return means, variances, torch.randn(S, generator=generator).to(dtype)


class TestGaussianMixture(PosteriorContract):
    def make_posterior(self, dtype):
        return GaussianMixturePosterior(*parts(dtype))


def reference():
    means, variances, log_weights = parts(torch.float64)
    components = Normal(means.movedim(0, -1), variances.expand_as(means).movedim(0, -1).sqrt())
    return MixtureSameFamily(Categorical(logits=log_weights), components)


def test_mixture_against_torch():
    posterior = GaussianMixturePosterior(*parts(torch.float64))
    truth = reference()
    Y = torch.randn(2, 3, 2, dtype=torch.float64)
    assert torch.allclose(posterior.mean, truth.mean)
    assert torch.allclose(posterior.variance, truth.variance)
    assert torch.allclose(posterior.log_prob(Y), truth.log_prob(Y))
    assert torch.allclose(posterior.cdf(Y), truth.cdf(Y))


@pytest.mark.parametrize("maximize", [True, False])
def test_mixture_expected_improvement_against_integration(maximize):
    posterior = GaussianMixturePosterior(*parts(torch.float64))
    y = torch.linspace(-25, 25, 100_001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    gain = (y - 0.7 if maximize else 0.7 - y).clamp_min(0)
    truth = torch.trapezoid(gain * reference().log_prob(y).exp(), y, dim=0)
    found = posterior.log_excess(0.7, 1, maximize).exp()
    assert torch.allclose(found, truth, rtol=1e-6)


def test_mixture_joint_density_shares_the_component():
    means, variances, log_weights = parts(torch.float64)
    posterior = GaussianMixturePosterior(means, variances, log_weights)
    Y = torch.randn(2, 3, 2, dtype=torch.float64)
    each = Normal(means, variances.sqrt()).log_prob(Y).sum((-2, -1))
    truth = (log_weights.softmax(0)[:, None] * each.exp()).sum(0).log()
    assert torch.allclose(posterior.joint_log_prob(Y), truth)
    assert not torch.allclose(truth, posterior.log_prob(Y).sum((-2, -1)))


def test_mixture_quantile_gradient_by_finite_differences():
    means, variances, log_weights = parts(torch.float64)
    p = torch.tensor([0.2, 0.9], dtype=torch.float64)

    def quantile(means, variances):
        return GaussianMixturePosterior(means, variances, log_weights).quantile(p)

    inputs = (means.requires_grad_(), variances.requires_grad_())
    assert torch.autograd.gradcheck(quantile, inputs, atol=1e-5)


def test_samples_of_one_network_are_joint_over_points():
    draws = torch.arange(5.0).reshape(5, 1, 1).expand(5, 4, 2).contiguous()
    samples = EmpiricalPosterior(draws).rsample(torch.Size([50]))
    assert (samples == samples[:, :1, :1]).all()
    assert len(samples.unique()) > 1


def test_empirical_moments_cdf_and_quantiles_with_weights():
    draws = torch.tensor([3.0, 1.0, 2.0, 10.0]).double().reshape(4, 1, 1)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    posterior = EmpiricalPosterior(draws, weights.log())
    mean = 0.3 + 0.2 + 0.6 + 4.0
    assert posterior.mean.item() == pytest.approx(mean)
    assert posterior.variance.item() == pytest.approx(0.9 + 0.2 + 1.2 + 40 - mean**2)
    for y, p in [(0.5, 0.0), (1.0, 0.2), (2.5, 0.5), (3.0, 0.6), (11.0, 1.0)]:
        assert posterior.cdf(torch.full((1, 1), y).double()).item() == pytest.approx(p)
    p = torch.tensor([0.05, 0.2, 0.21, 0.5, 0.6, 0.61, 0.99], dtype=torch.float64)
    assert posterior.quantile(p).flatten().tolist() == [1, 1, 2, 2, 3, 10, 10]
    found = posterior.log_excess(2.5, 1).exp().item()
    assert found == pytest.approx(0.1 * 0.5 + 0.4 * 7.5, abs=1e-5)
    found = posterior.log_excess(2.5, 1, above=False).exp().item()
    assert found == pytest.approx(0.2 * 1.5 + 0.3 * 0.5, abs=1e-5)


def test_empirical_expected_improvement_has_a_gradient_where_no_draw_improves():
    draws = torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1).requires_grad_()
    value = EmpiricalPosterior(draws).log_excess(5.0, 1)
    assert value.item() < math.log(1e-6)
    value.sum().backward()
    assert (draws.grad > 0).all()


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1e6])
@pytest.mark.parametrize("maximize", [True, False])
def test_empirical_improvement_is_in_units_of_the_draws(unit, maximize):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(200, 4, 1, generator=generator, dtype=torch.float64)
    best = 1.0 if maximize else -1.0
    gain = ((draws - best) * (1 if maximize else -1)).clamp(min=0)
    posterior = EmpiricalPosterior(unit * draws)
    found = posterior.log_excess(unit * best, 1, maximize).exp() / unit
    torch.testing.assert_close(found, gain.mean(0), rtol=1e-4, atol=1e-6)
    found = posterior.log_excess(unit * best, 0, maximize).exp()
    torch.testing.assert_close(found, (gain > 0).double().mean(0), rtol=1e-4, atol=1e-4)


def test_what_is_undefined_or_wrong_is_refused():
    draws = torch.zeros(4, 3, 1)
    with pytest.raises(NotImplementedError, match="observation_noise=True"):
        EmpiricalPosterior(draws).log_prob(draws[0])
    with pytest.raises(ValueError, match="one per draw"):
        EmpiricalPosterior(draws, torch.zeros(3))
    with pytest.raises(ValueError, match="S >= 1"):
        EmpiricalPosterior(draws[0])
