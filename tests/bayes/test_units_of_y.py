"""Whatever is asked is equivariant in the unit of Y: dense algebra on the standardised scale."""

import math

import numpy
import pytest
import torch
from botorch.acquisition.objective import (
    ExpectationPosteriorTransform,
    ScalarizedPosteriorTransform,
)
from gpytorch.distributions import MultitaskMultivariateNormal
from gpytorch.kernels import RBFKernel
from gpytorch.likelihoods import GaussianLikelihood
from scipy import stats
from torch import nn
from torch.distributions.transforms import AffineTransform

from bayes import BayesianNetwork, GaussianProcess, MeanField, StudentTProcess
from priors import GaussianPosterior, NetworkPrior
from priors.posteriors.acquisition import ExpectedImprovement, LogExpectedImprovement
from priors.posteriors.transforms import TailCompression

PROCESSES = [GaussianProcess, StudentTProcess]
NOISE, LENGTHSCALE, A, B = 1e-2, 0.8, 2.0, 2.0
UNITS = [
    (torch.float64, 1e-30),
    (torch.float64, 1e-8),
    (torch.float64, 1e30),
    (torch.float32, 1e-15),
    (torch.float32, 1e15),
]
units = pytest.mark.parametrize(("dtype", "unit"), UNITS)


def data(m=1):
    """Rows and outcomes of order one, and queries; the first query is a row."""
    generator = torch.Generator().manual_seed(0)
    X = 3 * torch.rand(12, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] - 7 * k for k in range(m)], dim=-1)
    Xs = 3 * torch.rand(4, 2, generator=generator, dtype=torch.float64)
    return X, Y, torch.cat([X[:1], Xs])


def model(process, X, Y, dtype, unit, **arguments):
    kernel, likelihood = RBFKernel(), GaussianLikelihood()
    kernel.lengthscale, likelihood.noise = LENGTHSCALE, NOISE
    arguments.setdefault("likelihood", likelihood)
    Y = (Y * unit).to(dtype)
    return process(X.to(dtype), Y, kernel, **arguments)


def truth(process, X, Y, Xs, *, noise=0.0):
    """Location and scale matrix on Y's own scale, degrees of freedom, by plain numpy."""
    X, Y, Xs = (part.numpy() for part in (X, Y, Xs))
    center, spread = X.mean(0), X.std(0, ddof=1)
    loc, scale = Y.mean(0), Y.std(0, ddof=1)

    def k(a, b):
        a, b = (a - center) / spread, (b - center) / spread
        return numpy.exp(-0.5 * ((a[:, None] - b) ** 2).sum(-1) / LENGTHSCALE**2)

    K = k(X, X) + NOISE * numpy.eye(len(X))
    weights = numpy.linalg.solve(K, k(X, Xs)).T
    z = (Y - loc) / scale
    covariance = k(Xs, Xs) - weights @ k(X, Xs) + noise * numpy.eye(len(Xs))
    df = math.inf
    if process is StudentTProcess:
        df = 2 * A + z.size
        covariance = covariance * (2 * B + (z * numpy.linalg.solve(K, z)).sum()) / df
    return loc + scale * (weights @ z), scale**2 * covariance[..., None], df


def tolerance(dtype):
    return {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 5e-3, "atol": 5e-3}


def close(found, expected, dtype, unit=1.0):
    """Of values in a unit."""
    found = found.double() / unit
    torch.testing.assert_close(found, torch.as_tensor(expected).double(), **tolerance(dtype))


def marginal(process, *args, **kwargs):
    """The marginal distributions as scipy's, `[q, m]`."""
    location, covariance, df = truth(process, *args, **kwargs)
    scale = numpy.sqrt(numpy.diagonal(covariance).T)
    return stats.norm(location, scale) if df == math.inf else stats.t(df, location, scale)


def improvement(law, threshold):
    """E[max(y - threshold, 0)], the integral of the survival function above the threshold."""
    grid = numpy.concatenate([[0.0], numpy.geomspace(1e-6, 1e3, 30_001)])
    above = threshold + law.std() * grid[:, None, None]
    return numpy.trapezoid(law.sf(above), above, axis=0)


@units
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_marginals(process, dtype, unit, m):
    X, Y, Xs = data(m)
    posterior = model(process, X, Y, dtype, unit).posterior(Xs.to(dtype), observation_noise=True)
    law = marginal(process, X, Y, Xs, noise=NOISE)
    y = law.mean() + law.std() * numpy.linspace(-2, 3, len(Xs))[:, None]
    Ys = torch.as_tensor(y * unit).to(dtype)
    close(posterior.mean, law.mean(), dtype, unit)
    close(posterior.variance.double().sqrt(), law.std(), dtype, unit)
    close(posterior.log_prob(Ys) + math.log(unit), law.logpdf(y), dtype)
    close(posterior.cdf(Ys), law.cdf(y), dtype)
    for p in (1e-3, 0.5, 0.9):
        close(posterior.quantile(torch.tensor(p)), law.ppf(p), dtype, unit)
    close(posterior.log_excess(Ys, 0), law.logsf(y), dtype)
    close(posterior.log_excess(Ys, 1) - math.log(unit), numpy.log(improvement(law, y)), dtype)


@units
@pytest.mark.parametrize("process", PROCESSES)
def test_joint_density_and_that_of_one_point(process, dtype, unit):
    X, Y, Xs = data()
    posterior = model(process, X, Y, dtype, unit).posterior(Xs.to(dtype), observation_noise=True)
    location, covariance, df = truth(process, X, Y, Xs, noise=NOISE)
    location, covariance = location[:, 0], covariance[..., 0]
    if df == math.inf:
        law = stats.multivariate_normal(location, covariance)
    else:
        law = stats.multivariate_t(location, covariance, df)
    y = location + 0.3 * numpy.sqrt(numpy.diagonal(covariance)) * numpy.array([1, -1, 2, 0, 1])
    Ys = torch.as_tensor(y * unit).to(dtype)[:, None]
    units_of_density = len(y) * math.log(unit)
    close(posterior.joint_log_prob(Ys) + units_of_density, law.logpdf(y), dtype)


@pytest.mark.filterwarnings("ignore:Very small noise", "ignore:Negative variance")
@units
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("m", [1, 2])
def test_one_point_s_log_prob_is_its_joint_log_prob(process, dtype, unit, noise, m):
    """Also where the variance is smaller than the floor: at a row without noise."""
    X, Y, Xs = data(m)
    Yvar = (torch.full_like(Y, 1e-12) * unit**2).to(dtype)
    exact = model(process, X, Y, dtype, unit, train_Yvar=Yvar, likelihood=None)
    for point in Xs[:2]:
        X1 = point[None].to(dtype)
        posterior = exact.posterior(X1, observation_noise=noise)
        y = posterior.quantile(torch.tensor(0.8))
        together = posterior.joint_log_prob(y)
        if process is GaussianProcess:
            close(posterior.log_prob(y).sum(), together.double(), dtype)
        elif m == 1:
            close(posterior.log_prob(y)[0, 0], together.double(), dtype)


@units
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_samples(process, dtype, unit, m):
    """The same base samples give the same functions in another unit."""
    X, Y, Xs = data(m)
    here = model(process, X, Y, dtype, unit).posterior(Xs.to(dtype))
    there = model(process, X, Y, dtype, 1.0).posterior(Xs.to(dtype))
    shape = torch.Size([6])
    base = torch.randn(shape + here.base_sample_shape, dtype=dtype)
    expected = there.rsample_from_base_samples(shape, base).double()
    close(here.rsample_from_base_samples(shape, base), expected, dtype, unit)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = there.rsample(shape)
        torch.manual_seed(0)
        close(here.rsample(shape), expected.double(), dtype, unit)
    assert (here.rsample(torch.Size([50])).double().std(0) > 0.1 * unit * Y.std(0) * 0.01).all()


@units
@pytest.mark.parametrize("process", PROCESSES)
def test_expected_improvement(process, dtype, unit):
    X, Y, Xs = data()
    made = model(process, X, Y, dtype, unit)
    best = float(Y.max())
    law = marginal(process, X, Y, Xs)
    expected = improvement(law, best)[:, 0]
    candidates = Xs.to(dtype)[:, None].requires_grad_()
    found = LogExpectedImprovement(made, best * unit)(candidates)
    slack = {"rtol": 2e-2, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-5, "atol": 0}
    exact = torch.as_tensor(numpy.log(expected))
    torch.testing.assert_close(found.double() - math.log(unit), exact, **slack)
    (slope,) = torch.autograd.grad(found.sum(), candidates)
    assert slope.isfinite().all()
    plain = ExpectedImprovement(made, best * unit)(candidates)
    likely = expected > 1e-6
    assert likely.sum() > 1
    torch.testing.assert_close(plain.double()[likely] / unit, exact.exp()[likely], **slack)


@units
def test_weighted_sums_of_outputs_and_averages_of_points(dtype, unit):
    X, Y, Xs = data(2)
    made = model(GaussianProcess, X, Y, dtype, unit)
    location, covariance, _ = truth(GaussianProcess, X, Y, Xs[1:])
    weights = torch.tensor([0.5, -2.0], dtype=dtype)
    scalar = ScalarizedPosteriorTransform(weights, offset=3 * unit)
    posterior = made.posterior(Xs[1:].to(dtype), posterior_transform=scalar)
    w = weights.numpy()
    close(posterior.mean[:, 0], 3 + location @ w, dtype, unit)
    std = numpy.sqrt(numpy.diagonal(covariance @ w**2))
    close(posterior.variance[:, 0].double().sqrt(), std, dtype, unit)
    law = stats.multivariate_normal(3 + location @ w, covariance @ w**2)
    y = law.mean + 0.1 * std
    if dtype == torch.float64:
        found = posterior.joint_log_prob(torch.as_tensor(y * unit).to(dtype)[:, None])
        close(found + len(y) * math.log(unit), law.logpdf(y), dtype)
    pairs = ExpectationPosteriorTransform(2)
    posterior = made.posterior(Xs[1:].to(dtype), posterior_transform=pairs)
    average = numpy.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    close(posterior.mean, average @ location, dtype, unit)
    std = numpy.sqrt(numpy.einsum("ai,ijm,aj->am", average, covariance, average))
    close(posterior.variance.double().sqrt(), std, dtype, unit)
    with pytest.raises(ValueError, match="2 outputs needs one weight for each"):
        made.posterior(X.to(dtype), posterior_transform=ScalarizedPosteriorTransform(torch.ones(3)))


@units
@pytest.mark.parametrize("process", PROCESSES)
def test_fits_known_noise_and_evidence(process, dtype, unit):
    X, Y, Xs = data()
    here = model(process, X, Y, dtype, unit)
    there = model(process, X, Y, dtype, 1.0)
    shift = len(Y) * math.log(unit)
    close(here.log_marginal_likelihood() + shift, there.log_marginal_likelihood().double(), dtype)
    if dtype == torch.float64:  # the end of a search is as exact as its numbers
        here.fit(), there.fit()
        close(here.covar_module.lengthscale, there.covar_module.lengthscale, torch.float32)
    variance = NOISE * Y.var(0).expand(Y.shape)
    known = model(
        process, X, Y, dtype, unit, likelihood=None, train_Yvar=(variance * unit**2).to(dtype)
    )
    law = marginal(process, X, Y, Xs, noise=NOISE)
    posterior = known.posterior(Xs.to(dtype), observation_noise=True)
    close(posterior.mean, law.mean(), dtype, unit)
    close(posterior.variance.double().sqrt(), law.std(), dtype, unit)


@units
@pytest.mark.parametrize("process", PROCESSES)
def test_compressed_tails(process, dtype, unit):
    X, Y, Xs = data()

    def posterior(scale):
        transform = TailCompression((Y * scale).to(dtype))
        made = model(process, X, Y, dtype, scale, outcome_transform=transform)
        return made.posterior(Xs.to(dtype))

    here, there = posterior(unit), posterior(1.0)
    half = torch.tensor(0.3)
    close(here.mean, there.mean.double(), dtype, unit)
    close(here.variance.double().sqrt(), there.variance.double().sqrt(), dtype, unit)
    close(here.quantile(half), there.quantile(half).double(), dtype, unit)
    y = there.quantile(torch.tensor(0.6))
    found = here.log_prob((y.double() * unit).to(dtype)) + math.log(unit)
    close(found, there.log_prob(y).double(), dtype)
    best = float(Y.max())
    found = here.log_excess(best * unit, 1) - math.log(unit)
    close(found, there.log_excess(best, 1).double(), dtype)


@units
@pytest.mark.filterwarnings("ignore:A not p.d.")
def test_what_botorch_reads_off_the_distribution(dtype, unit):
    """Also its root, with a candidate on a row and twice: the jitter is that of the model."""
    X, Y, Xs = data()
    Xs = torch.cat([Xs, Xs[:1]]).to(dtype)
    here = model(GaussianProcess, X, Y, dtype, unit).posterior(Xs).distribution
    there = model(GaussianProcess, X, Y, dtype, 1.0).posterior(Xs).distribution
    close(here.mean, there.mean.double(), dtype, unit)
    close(here.covariance_matrix.double() / unit**2, there.covariance_matrix.double(), dtype)
    root = here.lazy_covariance_matrix.root_decomposition().root.to_dense().double() / unit
    close(root @ root.mT, there.covariance_matrix.double(), dtype)


@pytest.mark.usefixtures("without_graphs")
@units
def test_bayesian_network(dtype, unit):
    X, Y, Xs = data()

    def fitted(scale):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        prior = NetworkPrior(module, weight_var=1.0, bias_var=1.0)
        made = BayesianNetwork(X.to(dtype), (Y * scale).to(dtype), prior)
        return made.fit(MeanField(num_steps=20, num_draws=50, seed=0, progress=False))

    models = fitted(unit), fitted(1.0)
    for noise in (False, True):
        here, there = (m.posterior(Xs.to(dtype), observation_noise=noise) for m in models)
        close(here.mean, there.mean.double(), torch.float32, unit)
        close(here.variance.double().sqrt(), there.variance.double().sqrt(), torch.float32, unit)
        best = float(there.mean.max())
        found = here.log_excess(best * unit, 1) - math.log(unit)
        close(found, there.log_excess(best, 1).double(), torch.float32)
    y = there.mean + 0.2
    found = here.log_prob((y.double() * unit).to(dtype)) + math.log(unit)
    close(found, there.log_prob(y).double(), torch.float32)
    close(
        here.quantile(torch.tensor(0.3)),
        there.quantile(torch.tensor(0.3)).double(),
        torch.float32,
        unit,
    )


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (torch.float64, 1e-160),
        (torch.float64, 1e160),
        (torch.float32, 1e-25),
        (torch.float32, 1e25),
    ],
)
def test_units_beyond_the_dtype_are_refused(dtype, unit):
    X, Y, _ = data()
    for process in PROCESSES:
        with pytest.raises(ValueError, match=r"vary by .* Give Y in another unit"):
            model(process, X, Y, dtype, unit)
    own = AffineTransform(0.0, unit)
    with pytest.raises(ValueError, match="Give Y in another unit"):
        model(GaussianProcess, X, Y, dtype, 1.0, outcome_transform=own)
    prior = NetworkPrior(nn.Linear(2, 1), weight_var=1.0, bias_var=1.0)
    with pytest.raises(ValueError, match=r"BayesianNetwork got outcomes"):
        BayesianNetwork(X.to(dtype), (Y * unit).to(dtype), prior)


def test_a_decreasing_transform_keeps_the_signs_of_deviations():
    """Sampling from the distribution's own root is what BoTorch does with cached roots."""
    X, Y, Xs = data(2)
    scale = torch.tensor([[-2.0, 3.0]], dtype=torch.float64)
    made = model(
        GaussianProcess,
        X,
        Y,
        torch.float64,
        1.0,
        outcome_transform=AffineTransform(torch.zeros(1, 2).double(), scale),
    )
    posterior = made.posterior(Xs)
    base = torch.randn(3, len(Xs), 2, dtype=torch.float64)
    found = posterior.rsample_from_base_samples(torch.Size([3]), base)
    L = torch.linalg.cholesky(posterior.distribution.covariance_matrix)
    flat = (L @ base.mT.flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, (2, len(Xs))).mT
    torch.testing.assert_close(found, posterior.mean + flat, rtol=1e-6, atol=1e-6)
    y = posterior.quantile(torch.tensor(0.9))
    torch.testing.assert_close(posterior.cdf(y), torch.full_like(y, 0.9))
    assert (y > posterior.mean).all()


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_weighted_sum_of_outputs_that_depend_on_each_other(interleaved):
    n, m = 3, 2
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(n * m, n * m, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT
    mean = torch.randn(n, m, generator=generator, dtype=torch.float64)
    joint = MultitaskMultivariateNormal(mean, covariance, interleaved=interleaved)
    weights = torch.tensor([0.7, -2.0], dtype=torch.float64)
    found = GaussianPosterior(joint).scalarised(weights, offset=0.3)
    shape = (n, m, n, m) if interleaved else (m, n, m, n)
    subscripts = "iajb,a,b->ij" if interleaved else "aibj,a,b->ij"
    parts = covariance.numpy().reshape(shape)
    expected = numpy.einsum(subscripts, parts, weights.numpy(), weights.numpy())
    torch.testing.assert_close(found.mean[:, 0], mean @ weights + 0.3)
    torch.testing.assert_close(
        found.distribution.covariance_matrix, torch.from_numpy(expected), rtol=1e-12, atol=1e-12
    )
