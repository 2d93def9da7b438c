import numpy as np
import pytest
import torch
from scipy import stats

from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.poisson_mixture import PoissonMixturePosterior
from priors.posteriors.student_t_mixture import StudentTMixturePosterior
from priors.testing import PosteriorContract

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def t_parts(dtype=torch.float64):
    locations = 2 * normals(3, 2, 3, 2, dtype=dtype)
    scales = (0.3 * normals(3, 1, 1, 2, seed=1, dtype=dtype)).exp()
    df = 2.5 + normals(3, 1, 1, 2, seed=2, dtype=dtype).exp()
    return locations, scales, df, WEIGHTS.log().to(dtype)


class TestStudentTMixture(PosteriorContract):
    def make_posterior(self, dtype):
        return StudentTMixturePosterior(*t_parts(dtype))


def test_t_mixture_against_scipy():
    locations, scales, df, log_weights = t_parts()
    posterior = StudentTMixturePosterior(locations, scales, df, log_weights)
    Y = normals(2, 3, 2, seed=3)
    laws = stats.t(df.numpy(), locations.numpy(), scales.numpy())
    weights = WEIGHTS.numpy()
    assert np.allclose(posterior.log_prob(Y).exp(), np.tensordot(weights, laws.pdf(Y), 1))
    assert np.allclose(posterior.cdf(Y), np.tensordot(weights, laws.cdf(Y), 1))
    mean = np.tensordot(weights, laws.mean(), 1)
    second = np.tensordot(weights, laws.var() + laws.mean() ** 2, 1)
    assert np.allclose(posterior.mean, mean)
    assert np.allclose(posterior.variance, second - mean**2)
    heavy = StudentTMixturePosterior(locations, scales, torch.full_like(df, 1.5))
    assert (heavy.variance == torch.inf).all()
    with pytest.raises(ValueError, match="needs df > 1"):
        StudentTMixturePosterior(locations, scales, torch.full_like(df, 0.5))


def counts(dtype=torch.float64):
    return PoissonMixturePosterior(normals(3, 4, 2, dtype=dtype), WEIGHTS.log().to(dtype))


def test_poisson_mixture_against_scipy():
    posterior = counts()
    rates, weights = posterior.log_rates.exp().numpy(), WEIGHTS.numpy()
    Y = torch.arange(12.0).double().reshape(12, 1, 1).expand(12, 4, 2)
    law = stats.poisson(rates)
    values = Y[:, None].numpy()
    truth = (weights[:, None, None] * law.pmf(values)).sum(1)
    assert np.allclose(posterior.log_prob(Y).exp(), truth)
    truth = (weights[:, None, None] * law.cdf(values)).sum(1)
    assert np.allclose(posterior.cdf(Y), truth)
    assert torch.equal(posterior.cdf(Y + 0.5), posterior.cdf(Y))
    assert (posterior.log_prob(Y + 0.5) == -torch.inf).all()
    assert (posterior.log_prob(-1 - Y) == -torch.inf).all()
    assert (posterior.cdf(-1 - Y) == 0).all()
    mean = np.tensordot(weights, rates, 1)
    assert np.allclose(posterior.mean, mean)
    assert np.allclose(posterior.variance, mean + np.tensordot(weights, rates**2, 1) - mean**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_of_counts_are_the_smallest_that_reach_a_probability(dtype):
    posterior = counts(dtype)
    p = torch.tensor([[0.001, 0.3], [0.5, 0.9999]], dtype=dtype)
    found = posterior.quantile(p)
    assert found.shape == (2, 2, 4, 2)
    assert found.dtype == dtype
    target = p[..., None, None]
    assert (posterior.cdf(found) >= target - 1e-5).all()
    assert (posterior.cdf(found - 1) < target).all()
    assert (posterior.quantile(posterior.cdf(found[0])[0, 0, 0])[0, 0] == found[0, 0, 0, 0]).all()
    assert (posterior.quantile(torch.tensor(1.0, dtype=dtype)) == torch.inf).all()
    large = PoissonMixturePosterior(torch.full((1, 1, 1), np.log(1e4), dtype=dtype))
    truth = stats.poisson(1e4).ppf(0.5)
    assert float(large.quantile(torch.tensor(0.5))) == pytest.approx(truth, abs=2)


def test_samples_of_counts_follow_their_probabilities():
    posterior, size = counts(), 4000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = posterior.rsample(torch.Size([size]))
    assert drawn.shape == (size, 4, 2)
    for value in (0.0, 1.0, 3.0):
        p = posterior.log_prob(torch.full((4, 2), value, dtype=torch.float64)).exp()
        error = (p * (1 - p) / size).sqrt()
        assert (((drawn == value).double().mean(0) - p).abs() < 5 * error).all()
    shape = torch.Size([3])
    base = normals(*shape, *posterior.base_sample_shape)
    first = posterior.rsample_from_base_samples(shape, base)
    assert torch.equal(first, posterior.rsample_from_base_samples(shape, base))


def test_class_probabilities_of_draws():
    draws = normals(5, 2, 4, 3).softmax(-1)
    posterior = ClassProbabilityPosterior(draws)
    assert torch.allclose(posterior.mean, draws.mean(0))
    Y = torch.tensor([[0.0], [1.0], [2.0], [0.0]]).expand(2, 4, 1)
    truth = draws.mean(0).gather(-1, Y.long()).log()
    assert torch.allclose(posterior.log_prob(Y), truth)
    assert torch.allclose(CategoricalPosterior(draws.mean(0).log()).log_prob(Y), truth)
