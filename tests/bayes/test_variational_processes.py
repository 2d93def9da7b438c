"""Variational Gaussian processes against exact ones, dense algebra and dense quadrature."""

import math
import warnings

import numpy as np
import pytest
import torch
from gpytorch import likelihoods
from gpytorch.kernels import RBFKernel, ScaleKernel
from linear_operator.operators import DiagLinearOperator
from scipy import integrate, optimize, stats
from torch import nn

import bayes
from bayes import GaussianProcess, VariationalGaussianProcess
from bayes.variational.bound import Bound
from bayes.variational.latent import Latent
from bayes.variational.nodes import gamma_nodes, normal_nodes
from bayes.variational.projection import chosen_rows
from bayes.variational.whitened_gaussian import WhitenedGaussian
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.posteriors.transformed import TransformedPosterior
from priors.testing import ModelContract


def data(n=30, m=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    Y = 4 + 10 * Y + torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X.to(dtype), Y.to(dtype)


def kernel(lengthscale=0.8, outputscale=1.3):
    made = ScaleKernel(RBFKernel()).double()
    made.base_kernel.lengthscale, made.outputscale = lengthscale, outputscale
    return made


def fitted(model, **options):
    """Fitted for a few iterations, of which `fit` warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was stopped by max_iter")
        return model.fit(progress=False, **options)


def gaussian(noise=0.05):
    made = likelihoods.GaussianLikelihood()
    made.noise = noise
    return made


class TestVariationalGaussianProcess(ModelContract):
    def make_model(self, dtype):
        return VariationalGaussianProcess(*data(m=2, dtype=dtype), kernel(), num_inducing=20)

    def make_X(self, dtype):
        return data(6, dtype=dtype, seed=1)[0].reshape(2, 3, 2)


class TestOfHeavyTails(ModelContract):
    def make_model(self, dtype):
        X, Y = data(m=2, dtype=dtype)
        return VariationalGaussianProcess(
            X, Y, kernel(), likelihood=bayes.StudentT(df=4), num_inducing=20
        )

    def make_X(self, dtype):
        return data(6, dtype=dtype, seed=1)[0].reshape(2, 3, 2)


@pytest.mark.parametrize("m", [1, 2])
def test_inducing_points_at_all_rows_give_the_exact_process(m):
    X, Y = data(m=m)
    Xs = data(5, seed=1)[0]
    exact = GaussianProcess(X, Y, kernel(), likelihood=gaussian())
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=gaussian())
    assert model.num_inducing == len(X)
    for noisy in (False, True):
        truth, found = (one.posterior(Xs, observation_noise=noisy) for one in (exact, model))
        scale = float(Y.std())
        assert torch.allclose(found.mean, truth.mean, atol=1e-5 * scale)
        covariances = (one.distribution.covariance_matrix for one in (found, truth))
        assert torch.allclose(*covariances, atol=1e-5 * scale**2)
        Ys = truth.mean + 1
        assert torch.allclose(found.joint_log_prob(Ys), truth.joint_log_prob(Ys), atol=1e-4)
    assert torch.allclose(model.evidence_lower_bound(), exact.log_marginal_likelihood(), atol=1e-4)


@pytest.mark.parametrize("make", [NNGPKernel, NTKKernel])
def test_network_kernels(make):
    X, Y = data()
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    exact = GaussianProcess(X, Y, make(network), likelihood=gaussian())
    model = VariationalGaussianProcess(X, Y, make(network), likelihood=gaussian())
    Xs = data(5, seed=1)[0]
    assert torch.allclose(model.posterior(Xs).mean, exact.posterior(Xs).mean, atol=1e-3)
    few = VariationalGaussianProcess(X, Y, make(network), likelihood=gaussian(), num_inducing=5)
    before, points = few.evidence_lower_bound(), few.inducing_points
    fitted(few, max_iter=5)
    assert few.evidence_lower_bound() > before
    assert not torch.allclose(few.inducing_points, points)


def collapsed(X, Y, Z, noise, k):
    """The bound of Titsias 2009, eq. 9, by dense algebra."""
    Kzz = k(Z).to_dense() + 1e-8 * k.outputscale * torch.eye(len(Z), dtype=Z.dtype)
    Kzx = k(Z, X).to_dense()
    Q = Kzx.mT @ torch.linalg.solve(Kzz, Kzx)
    covariance = Q + noise * torch.eye(len(X), dtype=X.dtype)
    law = torch.distributions.MultivariateNormal(X.new_zeros(len(X)), covariance)
    trace = (k(X, diag=True) - Q.diagonal()).sum()
    return law.log_prob(Y[:, 0]) - 0.5 * trace / noise


def test_few_inducing_points_give_the_collapsed_bound():
    X, Y = data()
    Z = X[::4]
    model = VariationalGaussianProcess(
        X, Y - 30, kernel(), likelihood=gaussian(), inducing_points=Z,
        input_transform=None, outcome_transform=None,
    )  # fmt: skip
    with torch.no_grad():
        truth = collapsed(X, Y - 30, Z, 0.05, kernel())
    assert torch.allclose(model.evidence_lower_bound(), truth, rtol=1e-6)
    # the optimum of q: m = K_xz Sigma^-1 K_zx y / noise (eq. 10)
    with torch.no_grad():
        Xs, k = data(5, seed=1)[0], kernel()
        Kzz, Kzx = k(Z).to_dense(), k(Z, X).to_dense()
        inner = torch.linalg.solve(0.05 * Kzz + Kzx @ Kzx.mT, Kzx @ (Y - 30))
        mean = k(Xs, Z).to_dense() @ inner
    assert torch.allclose(model.posterior(Xs).mean, mean, rtol=1e-4)


def test_the_gradient_of_the_objective_is_that_of_the_collapsed_bound():
    X, Y = data()
    model = VariationalGaussianProcess(
        X, Y / 10 - 2, kernel(), likelihood=gaussian(), inducing_points=X[::4],
        input_transform=None, outcome_transform=None,
    )  # fmt: skip
    points = model.inducing.points
    found = torch.autograd.grad(model._objective(), [points, *model.covar_module.parameters()])
    like, k = points.detach().clone().requires_grad_(), kernel()
    value = collapsed(X, Y / 10 - 2, like, 0.05, k) / len(X)
    truth = torch.autograd.grad(value, [like, *k.parameters()])
    for one, other in zip(found, truth, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_minibatches_come_near_the_optimum_of_all_rows():
    X, Y = data(100)
    options = dict(likelihood=gaussian(0.1), num_inducing=6)
    whole = VariationalGaussianProcess(X, Y, kernel(), **options)
    start = whole.evidence_lower_bound()
    best = fitted(whole, max_iter=10).evidence_lower_bound()
    parts = VariationalGaussianProcess(X, Y, kernel(), **options)
    found = fitted(parts, batch_size=25, max_iter=80).evidence_lower_bound()
    assert found > start + 0.5 * (best - start)


CASES = {
    "student_t": (bayes.StudentT(df=4.0), [1.5]),
    "poisson": (bayes.Poisson(log_base_rate=(0.5,)), [6.0]),
    "ordinal": (bayes.Ordinal(num_classes=3), [2.0]),
    "bernoulli": (likelihoods.BernoulliLikelihood(), [1.0]),
    "gpytorch_student_t": (likelihoods.StudentTLikelihood(), [1.5]),
    "laplace": (likelihoods.LaplaceLikelihood(), [1.5]),
}


def log_likelihood_of_one_row(model, f):
    """log p(y | f) of a model's only row at functions f."""
    mean = torch.from_numpy(f).unsqueeze(-1)
    Y = model.train_Y.expand(len(f), -1)
    with torch.no_grad():
        return model.law.expected_log_prob(Y, mean, torch.zeros_like(mean)).numpy()


@pytest.mark.parametrize("name", CASES)
def test_one_row_against_quadrature(name):
    """The best Gaussian and its bound by brute force, and the bound below the evidence."""
    likelihood, y = CASES[name]
    X = torch.zeros(1, 1, dtype=torch.float64)
    model = VariationalGaussianProcess(
        X, torch.tensor([y], dtype=torch.float64), kernel(), likelihood=likelihood,
        input_transform=None, outcome_transform=None,
    )  # fmt: skip
    f, prior_var = np.linspace(-12, 12, 20_001), 1.3
    log_likelihood = log_likelihood_of_one_row(model, f)

    def negative_bound(parameters):
        mean, std = parameters[0], math.exp(parameters[1])
        q = stats.norm.pdf(f, mean, std)
        expected = integrate.trapezoid(q * log_likelihood, f)
        ratio = std**2 / prior_var
        return -expected + 0.5 * (ratio - 1 - math.log(ratio) + mean**2 / prior_var)

    best = optimize.minimize(negative_bound, [0.5, 0.0], method="Nelder-Mead",
                             options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 400})  # fmt: skip
    bound = float(model.evidence_lower_bound())
    assert bound == pytest.approx(-best.fun, abs=1e-6)
    with torch.no_grad():
        latent = model.latent(X)
    assert float(latent.mean) == pytest.approx(best.x[0], abs=1e-3)
    assert float(latent.variance.sqrt()) == pytest.approx(math.exp(best.x[1]), rel=1e-3)
    prior = stats.norm.pdf(f, 0, math.sqrt(prior_var))
    evidence = math.log(integrate.trapezoid(np.exp(log_likelihood) * prior, f))
    assert evidence - 0.2 < bound < evidence


@pytest.mark.parametrize("kind", ["ordinal", "categorical", "heteroscedastic"])
def test_no_other_q_has_a_higher_bound(kind):
    X, Y = data(20)
    Y = Y if kind == "heteroscedastic" else ((Y > 20).double() + (Y > 30).double())
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=kind, num_inducing=6)
    model.settle()
    bound = model._bound()
    best = float(model.evidence_lower_bound())
    generator = torch.Generator().manual_seed(0)
    plain = bound(WhitenedGaussian(model.q_linear, model.q_precision).factorised(1.0))[0]
    if kind != "heteroscedastic":
        assert plain == pytest.approx(best)
    for size in (1e-2, 1e-1):
        for _ in range(5):
            noise = size * torch.randn(
                model.q_precision.shape, generator=generator, dtype=torch.float64
            )
            other = WhitenedGaussian(
                model.q_linear + noise[..., 0], model.q_precision + noise @ noise.mT
            )
            assert bound(other.factorised(1.0))[0] < plain


def predictive_truth(density, mean, std, y):
    """E density(y | f) over f ~ N(mean, std^2), by dense integration."""
    f = np.linspace(mean - 10 * std, mean + 10 * std, 200_001)
    weights = stats.norm.pdf(f, mean, std)
    return integrate.trapezoid(weights * density(y, f), f)


@torch.no_grad()
def test_predictions_of_heavy_tails_are_exact():
    X, Y = data()
    model = VariationalGaussianProcess(
        X, Y, kernel(), likelihood=bayes.StudentT(df=3.0), outcome_transform=None
    )
    model.law.log_scale.fill_(math.log(0.02))  # far narrower than the functions
    Xs = X[:2] + 40.0
    latent = model.latent(Xs)
    posterior = model.posterior(Xs, observation_noise=True)
    means, stds = latent.mean[:, 0].tolist(), latent.variance.sqrt()[:, 0].tolist()

    def density(y, f):
        return stats.t.pdf((y - f) / 0.02, 3.0) / 0.02

    for y in (0.0, 0.7, 5.0, 40.0):
        found = posterior.log_prob(torch.full((2, 1), y, dtype=torch.float64))
        for k in range(2):
            if abs(y) < 8 * stds[k]:
                truth = predictive_truth(density, means[k], stds[k], y)
            else:  # the functions are narrow against the distance
                f = means[k] + stds[k] * np.linspace(-9, 9, 4001)
                w = stats.norm.pdf(f, means[k], stds[k])
                truth = integrate.trapezoid(w * density(y, f), f)
            assert float(found[k]) == pytest.approx(math.log(truth), abs=1e-5)
    variance = latent.variance + 0.02**2 * 3.0
    assert torch.allclose(posterior.variance, variance)
    median = posterior.quantile(torch.tensor(0.5, dtype=torch.float64))
    assert torch.allclose(median, latent.mean, atol=1e-6)
    p = torch.tensor([0.01, 0.9], dtype=torch.float64)
    reached = posterior.cdf(posterior.quantile(p))
    assert torch.allclose(reached, p[:, None, None].expand_as(reached))


@torch.no_grad()
def test_predictions_of_counts_are_exact():
    X, _ = data()
    Y = torch.arange(30.0, dtype=torch.float64).unsqueeze(-1) * 10
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood="poisson")
    Xs = torch.cat([X[:1] + 30.0, X[:1]])
    latent = model.latent(Xs)
    base = model.law.likelihood.log_base_rate[0]
    posterior = model.posterior(Xs, observation_noise=True)
    for k in range(2):
        mean, std = float(latent.mean[k]) + base, float(latent.variance[k].sqrt())

        def mass(y, f):
            return stats.poisson.pmf(y, np.exp(f))

        for y in (0.0, 3.0, 150.0):
            truth = predictive_truth(mass, mean, std, y)
            if truth > 1e-12:
                found = posterior.log_prob(torch.full((2, 1), y, dtype=torch.float64))[k]
                assert float(found) == pytest.approx(math.log(truth), abs=1e-4)
        rate = math.exp(mean + std**2 / 2)
        assert float(posterior.mean[k]) == pytest.approx(rate, rel=1e-5)
        found = float(model.posterior(Xs).mean[k])
        assert found == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("df", [None, 3.0])
@torch.no_grad()
def test_heavy_tails_of_a_scale_that_is_a_function_against_quadrature(df):
    """Expected log densities and predictions, by dense integration over both functions."""
    X, Y = data()
    likelihood = bayes.HeteroscedasticStudentT(df=df, log_square_scale=-3.0)
    model = VariationalGaussianProcess(
        X, torch.cat([Y, -2 * Y], -1), kernel(), likelihood=likelihood, outcome_transform=None
    )
    assert model.law.num_functions == 4
    if df is None:
        model.law.log_excess_df.copy_(torch.tensor([1.0, 0.2]))
    dfs = [1 + math.e, 1 + math.exp(0.2)] if df is None else [df, df]
    generator = torch.Generator().manual_seed(0)
    y, mean = (torch.randn(3, k, generator=generator, dtype=torch.float64) for k in (2, 4))
    std = torch.tensor([[0.1, 0.5, 0.3, 1.0]] * 3, dtype=torch.float64)
    grid = np.linspace(-9, 9, 1201)
    weight = stats.norm.pdf(grid) / stats.norm.pdf(grid).sum()

    def log_density(y, row, column):
        f = mean[row, column].item() + std[row, column].item() * grid[:, None]
        h = mean[row, 2 + column].item() + std[row, 2 + column].item() * grid
        scale = np.exp(0.5 * (h - 3.0))
        return stats.t.logpdf((y - f) / scale, dfs[column]) - np.log(scale)

    found = model.law.expected_log_prob(y, mean, std.square())
    latent = Latent(mean, std.square(), DiagLinearOperator(std.square().mT))
    posterior = model.law.outcomes(latent, [0, 1])
    density = posterior.log_prob(y)
    for row in range(3):
        each = [log_density(y[row, k].item(), row, k) for k in range(2)]
        truth = sum(weight @ log_p @ weight for log_p in each)
        assert float(found[row]) == pytest.approx(truth, abs=1e-4)
        for k, log_p in enumerate(each):
            truth = math.log(weight @ np.exp(log_p) @ weight)
            assert float(density[row, k]) == pytest.approx(truth, abs=1e-5)
    square = (mean[:, 2:] - 3.0 + 0.5 * std[:, 2:].square()).exp()
    df = torch.tensor(dfs).double()
    variance = std[:, :2].square() + square * df / (df - 2)
    torch.testing.assert_close(posterior.variance, variance, rtol=1e-5, atol=1e-6)


def test_heavy_tails_of_a_scale_that_is_a_function_are_learnt_and_kept(tmp_path):
    X, Y = data()
    options = dict(likelihood="heteroscedastic_student_t", num_inducing=6)
    model = VariationalGaussianProcess(X, Y, kernel(), **options)
    start = float(model.evidence_lower_bound())
    assert float(fitted(model, max_iter=5).evidence_lower_bound()) > start
    model.save(tmp_path / "model.safetensors")
    loaded = VariationalGaussianProcess.load(tmp_path / "model.safetensors", kernel())
    for noisy in (False, True):
        one, other = (m.posterior(X, observation_noise=noisy) for m in (model, loaded))
        torch.testing.assert_close(one.log_prob(Y), other.log_prob(Y))


@pytest.mark.parametrize(
    "likelihood",
    [
        "student_t",
        "poisson",
        "heteroscedastic",
        pytest.param("heteroscedastic_student_t", marks=pytest.mark.slow),
    ],
)
def test_samples_have_the_marginals_and_the_correlation_of_the_functions(likelihood):
    X, Y = data()
    Y = (Y / 20).round() if likelihood == "poisson" else Y
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=likelihood)
    Xs = torch.cat([X[:1] + 0.9, X[:1] + 0.95])
    posterior = model.posterior(Xs, observation_noise=True)
    torch.manual_seed(0)
    with torch.no_grad():
        samples = posterior.rsample(torch.Size([20_000]))[..., 0]
        functions = model.posterior(Xs).rsample(torch.Size([20_000]))[..., 0]
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - posterior.mean[:, 0]).abs() < 4 * error).all()
    p = posterior.cdf(samples[:, 0, None, None].expand(-1, 2, 1))[:, 0, 0]
    if likelihood != "poisson":
        assert stats.kstest(p.detach().numpy(), "uniform").pvalue > 1e-3

    # noise is independent given the functions: their covariance is that of the functions
    def covariance(values):
        values = values - values.mean(0)
        product = values[:, 0] * values[:, 1]
        return product.mean(), product.std() / math.sqrt(len(product))

    (one, first), (other, second) = covariance(samples), covariance(functions)
    assert abs(one - other) < 4 * math.hypot(first, second)


def test_likelihoods_of_gpytorch_agree_with_our_own():
    X, Y = data()
    Xs = data(5, seed=1)[0]
    theirs = likelihoods.StudentTLikelihood()
    theirs.deg_free, theirs.noise = 4.0, 0.09
    ours = VariationalGaussianProcess(X, Y, kernel(), likelihood=bayes.StudentT(df=4.0))
    with torch.no_grad():
        ours.law.log_scale.fill_(math.log(0.3))
    other = VariationalGaussianProcess(X, Y, kernel(), likelihood=theirs)
    one, two = (m.posterior(Xs, observation_noise=True) for m in (ours, other))
    assert torch.allclose(one.log_prob(one.mean), two.log_prob(one.mean), atol=1e-6)
    classes = (Y > 20).double() + (Y > 30).double()
    softmax = likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False)
    ours = VariationalGaussianProcess(X[:3], classes[:3], kernel(), likelihood=bayes.Categorical(3))
    other = VariationalGaussianProcess(X[:3], classes[:3], kernel(), likelihood=softmax)
    assert torch.allclose(ours.evidence_lower_bound(), other.evidence_lower_bound())
    probabilities = (m.posterior(Xs, observation_noise=True).mean for m in (ours, other))
    assert torch.allclose(*probabilities, atol=1e-12)


@pytest.mark.parametrize("kind", [likelihoods.GaussianLikelihood, likelihoods.StudentTLikelihood])
def test_noise_of_gpytorch_is_learnt_by_factors(kind):
    """There is none here; steps of minibatches on what is no logarithm take it to 0.1."""
    X = torch.linspace(0, 1, 80, dtype=torch.float64)[:, None]
    likelihood = kind()
    likelihood.noise = 1e-3
    model = VariationalGaussianProcess(
        X, torch.sin(6 * X), ScaleKernel(RBFKernel()), likelihood=likelihood, num_inducing=8
    )
    model.fit(batch_size=40, max_iter=60, progress=False)
    assert 0 < model.law.likelihood.noise.item() < 0.01
    assert likelihood.noise.item() == pytest.approx(1e-3), "the user's is copied"


@pytest.mark.parametrize(
    "likelihood", [likelihoods.BetaLikelihood(), likelihoods.LaplaceLikelihood()]
)
def test_other_likelihoods_of_gpytorch(likelihood):
    X, Y = data(10)
    beta = isinstance(likelihood, likelihoods.BetaLikelihood)
    Y = torch.sigmoid(Y / 10 - 2) if beta else Y
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=likelihood)
    posterior = model.posterior(X[:2], observation_noise=True)
    y = (
        torch.linspace(1e-6, 1 - 1e-6, 401, dtype=torch.float64)
        if beta
        else (torch.linspace(-120, 120, 1501, dtype=torch.float64))
    )
    with torch.no_grad():
        density = posterior.log_prob(y[:, None, None].expand(-1, 2, 1)).exp()[..., 0]
    assert torch.trapezoid(density.T, y).sub(1).abs().max() < 1e-3
    mean = torch.trapezoid((density * y[:, None]).T, y)
    assert torch.allclose(mean, posterior.mean[:, 0], rtol=1e-3)
    if not beta:
        assert torch.allclose(
            posterior.cdf(posterior.quantile(torch.tensor(0.3))), torch.tensor(0.3).double()
        )
        assert isinstance(posterior, TransformedPosterior)


def test_changed_hyperparameters_are_noticed():
    X, Y = data()
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=gaussian())
    first = model.posterior(X[:2]).mean
    model.covar_module.base_kernel.lengthscale = 2.0
    other = VariationalGaussianProcess(X, Y, kernel(2.0), likelihood=gaussian())
    assert torch.allclose(model.posterior(X[:2]).mean, other.posterior(X[:2]).mean)
    assert not torch.allclose(model.posterior(X[:2]).mean, first)
    late = model.posterior(X.repeat(20, 1))
    model.covar_module.outputscale = 9.0
    with pytest.raises(ValueError, match="has changed since"):
        late.rsample()


def test_conditioning_is_a_model_of_all_rows():
    X, Y = data()
    options = dict(likelihood="student_t", inducing_points=X[:10],
                   input_transform=None, outcome_transform=None)  # fmt: skip
    one = VariationalGaussianProcess(X[:20], Y[:20] / 40, kernel(), **options)
    more = one.condition_on_observations(X[20:], Y[20:] / 40)
    whole = VariationalGaussianProcess(X, Y / 40, kernel(), **options)
    assert torch.allclose(more.posterior(X).mean, whole.posterior(X).mean, atol=1e-5)
    assert len(one.train_X) == 20


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "categorical", likelihoods.StudentTLikelihood()]
)
def test_save_and_load(tmp_path, likelihood):
    X, Y = data()
    Y = (Y > 25).double() if likelihood == "categorical" else Y
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood=likelihood, num_inducing=5)
    fitted(model, max_iter=2)
    model.save(tmp_path / "m.safetensors")
    given = {} if isinstance(likelihood, str) else {"likelihood": likelihood}
    again = VariationalGaussianProcess.load(tmp_path / "m.safetensors", kernel(), **given)
    for noisy in (False, True):
        one, two = (m.posterior(X[:3], observation_noise=noisy).mean for m in (model, again))
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="different kernel"):
        VariationalGaussianProcess.load(tmp_path / "m.safetensors", RBFKernel(), **given)
    with pytest.raises(TypeError, match="needs the kernel as well"):
        VariationalGaussianProcess.load(tmp_path / "m.safetensors")


def test_float32_agrees_with_float64():
    X, Y = data()
    found = []
    for dtype in (torch.float32, torch.float64):
        model = VariationalGaussianProcess(
            X.to(dtype), Y.to(dtype), kernel().to(dtype), likelihood="student_t", num_inducing=10
        )
        found.append(model.posterior(X[:4].to(dtype) + 0.1, observation_noise=True))
        assert found[-1].mean.dtype == dtype
    assert torch.allclose(found[0].mean.double(), found[1].mean, rtol=1e-3)
    assert torch.allclose(found[0].variance.double(), found[1].variance, rtol=1e-2)


def test_greedy_choice_leaves_the_least_variance():
    X, _ = data()
    k = kernel()
    chosen = chosen_rows(k, X, 6).tolist()
    K = k(X).to_dense().detach()
    for size in range(1, 6):
        left = K - K[:, chosen[:size]] @ torch.linalg.solve(
            K[chosen[:size]][:, chosen[:size]], K[chosen[:size]]
        )
        assert int(left.diagonal().argmax()) == chosen[size]


def test_nodes_integrate():
    like = torch.zeros(1, dtype=torch.float64)
    for k, size, tolerance in ((1, 256, 1e-12), (2, 256, 1e-12), (4, 4096, 0.01)):
        x, log_weights = normal_nodes(k, size, like)
        weights = log_weights.exp()
        assert float(weights.sum()) == pytest.approx(1)
        assert (weights @ x).abs().max() < 1e-12
        assert ((weights @ x.square()) - 1).abs().max() < 1e-10
        found = float(weights @ (0.5 * x.sum(-1)).exp())
        assert found == pytest.approx(math.exp(k / 8), rel=tolerance)
    for a, b in ((1.5, 3.0), (2.0, 2.0), (1e6, 1e6)):
        a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b))
        x, log_weights = gamma_nodes(a, b, 48)
        mean = (log_weights.exp() * x).sum()
        slope = torch.autograd.grad(mean, (a, b))
        a, b = a.detach(), b.detach()
        assert torch.allclose(mean.detach(), a / b, rtol=1e-6)
        assert torch.allclose(slope[0], 1 / b, rtol=1e-4)
        assert torch.allclose(slope[1], -a / b**2, rtol=1e-6)


def test_errors():
    X, Y = data()
    with pytest.raises(ValueError, match="one data set"):
        VariationalGaussianProcess(X[None], Y[None], kernel())
    with pytest.raises(TypeError, match="gpytorch kernel"):
        VariationalGaussianProcess(X, Y, "rbf")
    with pytest.raises(ValueError, match="num_inducing >= 1"):
        VariationalGaussianProcess(X, Y, kernel(), num_inducing=0)
    with pytest.raises(ValueError, match="inducing_points"):
        VariationalGaussianProcess(X, Y, kernel(), inducing_points=X[:, :1])
    with pytest.raises(ValueError, match="of 0 and 1"):
        VariationalGaussianProcess(X, Y, kernel(), likelihood=likelihoods.BernoulliLikelihood())
    with pytest.raises(ValueError, match="counts"):
        VariationalGaussianProcess(X, Y, kernel(), likelihood="poisson")
    with pytest.raises(NotImplementedError, match="neither"):
        VariationalGaussianProcess(
            X, Y, kernel(), likelihood=likelihoods.MultitaskGaussianLikelihood(num_tasks=2)
        )
    model = VariationalGaussianProcess(X, Y, kernel())
    with pytest.raises(NotImplementedError, match="observation_noise=True"):
        model.posterior(X, observation_noise=torch.ones_like(Y))
    with pytest.raises(ValueError, match="batch_size"):
        model.fit(batch_size=0)
    with pytest.raises(NotImplementedError, match="one set of rows"):
        model.condition_on_observations(X[None], Y[None])


def test_bound_in_blocks_is_the_bound(monkeypatch):
    X, Y = data()
    model = VariationalGaussianProcess(X, Y, kernel(), likelihood="student_t", num_inducing=6)
    whole = float(model.evidence_lower_bound())
    monkeypatch.setattr("bayes.variational.bound.rows_at_once", lambda *sizes: 7)
    monkeypatch.setattr("bayes.variational.bound._KEPT", 0)
    assert isinstance(model._bound(), Bound)
    assert float(model.evidence_lower_bound()) == pytest.approx(whole, rel=1e-10)
