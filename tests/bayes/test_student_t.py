import math

import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from scipy import stats

from bayes.processes.student_t import StudentTPosterior
from priors.posteriors.student_t import log_expected_excess, t_cdf, t_log_density, t_quantile
from priors.testing import PosteriorContract


def gaussian(dtype, batch=(2,), n=3, seed=0):
    root = torch.randn(*batch, n, n, generator=torch.Generator().manual_seed(seed)).to(dtype)
    covariance = root @ root.mT + 0.5 * torch.eye(n, dtype=dtype)
    mean = torch.linspace(-1, 2, n, dtype=dtype).expand(*batch, n)
    return MultivariateNormal(mean, covariance)


def several(dtype):
    return MultitaskMultivariateNormal.from_independent_mvns(
        [gaussian(dtype), gaussian(dtype, seed=1)]
    )


class TestStudentT(PosteriorContract):
    def make_posterior(self, dtype):
        return StudentTPosterior(gaussian(dtype), 3.5)


class TestSeveralOutputs(PosteriorContract):
    def make_posterior(self, dtype):
        return StudentTPosterior(several(dtype), 5.0)


@pytest.mark.parametrize("df", [0.7, 2.0, 5.5, 446.0])
def test_density_cdf_and_quantile_against_scipy(df):
    t = torch.tensor([-40.0, -3.0, -0.2, 0.0, 1.3, 8.0], dtype=torch.float64)
    law = stats.t(df)
    assert torch.allclose(t_log_density(t, df), torch.as_tensor(law.logpdf(t.numpy())))
    assert torch.allclose(t_cdf(t, df), torch.as_tensor(law.cdf(t.numpy())), rtol=1e-10)
    p = torch.tensor([1e-9, 0.2, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    assert torch.allclose(t_quantile(p, df), torch.as_tensor(law.ppf(p.numpy())), rtol=1e-7)


@pytest.mark.parametrize("df", [1.5, 4.0, 446.0])
def test_gradients(df):
    t = torch.tensor([-9.0, -3.5, -0.2, 0.0, 2.3], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.01, 0.5, 0.97], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: t_cdf(t, df), t)
    assert torch.autograd.gradgradcheck(lambda t: t_cdf(t, df), t)
    assert torch.autograd.gradcheck(lambda p: t_quantile(p, df), p)
    assert torch.autograd.gradcheck(lambda t: log_expected_excess(t, df), t)


@pytest.mark.parametrize("df", [1.2, 3.0, 30.0, 446.0])
@pytest.mark.parametrize("u", [-12.0, -3.001, -2.999, 0.0, 4.0])
def test_expected_excess_against_integration(df, u):
    # E[max(T + u, 0)] = integral of P(T > s) over s > -u, in log s where tails are heavy.
    from scipy.integrate import quad

    head, _ = quad(lambda s: stats.t.sf(s, df), -u, -u + 5, epsabs=0, epsrel=1e-12)
    tail, _ = quad(
        lambda r: stats.t.sf(-u + math.exp(r), df) * math.exp(r),
        math.log(5),
        150 if df < 2 else 40,
        epsabs=0,
        epsrel=1e-12,
        limit=500,
    )
    found = log_expected_excess(torch.tensor(u, dtype=torch.float64), df)
    assert found.item() == pytest.approx(math.log(head + tail), abs=1e-8)


def test_expected_excess_far_in_the_tail():
    # Values of f(u) 2F1((df-1)/2, 1; df/2+1; z) / ((df-1) z) with 40 digits (mpmath 1.3).
    expected = {
        (446.0, -7.0): -27.955098986255398816,
        (3.0, -7.0): -4.5230796074932638535,
        (1.5, -7.0): -1.2583377730819821298,
    }
    for (df, u), value in expected.items():
        found = log_expected_excess(torch.tensor(u, dtype=torch.float64), df)
        assert found.item() == pytest.approx(value, rel=1e-12)
    # Far below float64's smallest number it stays finite, with a finite gradient.
    u = torch.tensor([-1e4, -1e8], dtype=torch.float64, requires_grad=True)
    value = log_expected_excess(u, 446.0)
    assert value.isfinite().all()
    assert value[0] < -2000
    value.sum().backward()
    assert u.grad.isfinite().all()
    assert (u.grad > 0).all()


def test_expected_improvement_approaches_the_gaussian_one():
    from priors.posteriors.gaussian import gaussian_log_excess

    u = torch.linspace(-30, 5, 71, dtype=torch.float64)
    limit = gaussian_log_excess(u, torch.ones_like(u), 1)
    assert torch.allclose(log_expected_excess(u, 1e9), limit, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("make", [gaussian, several])
def test_joint_density_against_scipy(make):
    distribution = make(torch.float64)
    posterior = StudentTPosterior(distribution, 4.5)
    Y = posterior.location + torch.randn(posterior.location.shape, dtype=torch.float64)
    covariance = distribution.covariance_matrix
    for b in range(2):
        flat = Y[b].T.flatten()  # independent outputs are stored output by output
        truth = stats.multivariate_t(
            posterior.location[b].T.flatten().numpy(), covariance[b].numpy(), df=4.5
        )
        assert posterior.joint_log_prob(Y)[b].item() == pytest.approx(truth.logpdf(flat.numpy()))


def test_samples_share_one_chi_square_and_have_the_joint_covariance():
    scale = torch.eye(2, dtype=torch.float64)
    posterior = StudentTPosterior(MultivariateNormal(torch.zeros(2).double(), scale), 9.0)
    size = 200_000
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(size, 3, dtype=torch.float64, generator=generator)
    y = posterior.rsample_from_base_samples(torch.Size([size]), base)[..., 0]
    # Uncorrelated but dependent: E y1^2 y2^2 = df^2 / ((df - 2)(df - 4)).
    product = y[:, 0].square() * y[:, 1].square()
    error = product.std() / math.sqrt(size)
    assert abs(product.mean() - 81 / (7 * 5)) < 4 * error
    assert abs((y[:, 0] * y[:, 1]).mean()) < 4 * (y[:, 0] * y[:, 1]).std() / math.sqrt(size)


def test_what_is_infinite_and_what_is_undefined():
    distribution = gaussian(torch.float64)
    assert torch.isinf(StudentTPosterior(distribution, 2.0).variance).all()
    assert StudentTPosterior(distribution, 2.0).mean.isfinite().all()
    cauchy = StudentTPosterior(distribution, 1.0)
    for ask in (
        lambda: cauchy.mean,
        lambda: cauchy.variance,
        lambda: cauchy.log_excess(0.0, 1),
    ):
        with pytest.raises(ValueError, match="no "):
            ask()
    assert cauchy.rsample(torch.Size([3])).shape == (3, 2, 3, 1)
    assert torch.allclose(cauchy.quantile(torch.tensor(0.5)), cauchy.location)
    with pytest.raises(ValueError, match="0 < df"):
        StudentTPosterior(distribution, 0.0)
