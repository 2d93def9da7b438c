"""Gaussian and Student-t processes against dense algebra and numerical integration."""

import math

import gpytorch
import linear_operator
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch.distributions.transforms import ExpTransform

from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.student_t import StudentTPosterior
from bayes.processes.student_t_process import StudentTProcess
from priors.kernels.network import NNGPKernel
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.testing import ModelContract

PROCESSES = [GaussianProcess, StudentTProcess]


def data(dtype=torch.float64, n=12, m=1, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    Y = 4 + 10 * Y + 0.5 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return X.to(dtype), Y.to(dtype)


def kernel(lengthscale=0.8):
    made = RBFKernel()
    made.lengthscale = lengthscale
    return made


def likelihood(noise=0.05):
    made = GaussianLikelihood()
    made.noise = noise
    return made


def dense(X, Y, Xs, lengthscale=0.8, noise=0.05):
    """Conditional mean and covariance on standardised data, by plain matrix algebra."""
    center, scale = X.mean(0), X.std(0)
    X, Xs = (X - center) / scale, (Xs - center) / scale

    def k(a, b):
        return (-0.5 * torch.cdist(a, b).square() / lengthscale**2).exp()

    K = k(X, X) + noise * torch.eye(len(X), dtype=X.dtype)
    weights = torch.linalg.solve(K, k(X, Xs)).T
    Z = (Y - Y.mean(0)) / Y.std(0)
    covariance = k(Xs, Xs) - weights @ k(X, Xs)
    return weights @ Z, covariance, Z, K


class TestGaussianProcess(ModelContract):
    def make_model(self, dtype):
        return GaussianProcess(*data(dtype, m=2), kernel())

    def make_X(self, dtype):
        return data(dtype, n=6, seed=1)[0].reshape(2, 3, 2)


class TestStudentTProcess(ModelContract):
    def make_model(self, dtype):
        return StudentTProcess(*data(dtype, m=2), kernel())

    def make_X(self, dtype):
        return data(dtype, n=6, seed=1)[0].reshape(2, 3, 2)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("noisy", [False, True])
def test_gaussian_process_against_dense_algebra(m, noisy):
    X, Y = data(m=m)
    Xs = data(n=5, seed=1)[0]
    model = GaussianProcess(X, Y, kernel(), likelihood=likelihood())
    posterior = model.posterior(Xs, observation_noise=noisy)
    assert isinstance(posterior, GaussianPosterior)
    mean, covariance, _, _ = dense(X, Y, Xs)
    if noisy:
        covariance = covariance + 0.05 * torch.eye(5, dtype=torch.float64)
    truth = [
        torch.distributions.MultivariateNormal(
            Y.mean(0)[k] + Y.std(0)[k] * mean[:, k], Y.std(0)[k] ** 2 * covariance
        )
        for k in range(m)
    ]
    assert torch.allclose(posterior.mean, torch.stack([t.mean for t in truth], -1))
    assert torch.allclose(posterior.variance, torch.stack([t.variance for t in truth], -1))
    Ys = posterior.mean + 1.0
    expected = sum(t.log_prob(Ys[:, k]) for k, t in enumerate(truth))
    if noisy:  # without noise the covariance is too ill conditioned to compare densities
        assert torch.allclose(posterior.joint_log_prob(Ys), expected, rtol=1e-6)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("noisy", [False, True])
def test_student_t_process_against_the_closed_form(m, noisy):
    a, b = 1.5, 0.7
    X, Y = data(m=m)
    Xs = data(n=5, seed=1)[0]
    model = StudentTProcess(X, Y, kernel(), concentration=a, rate=b, likelihood=likelihood())
    posterior = model.posterior(Xs, observation_noise=noisy)
    assert isinstance(posterior, StudentTPosterior)
    mean, covariance, Z, K = dense(X, Y, Xs)
    if noisy:
        covariance = covariance + 0.05 * torch.eye(5, dtype=torch.float64)
    df = 2 * a + Y.numel()
    factor = (2 * b + (Z * torch.linalg.solve(K, Z)).sum()) / df
    assert posterior.df == df
    assert torch.allclose(posterior.mean, Y.mean(0) + Y.std(0) * mean)
    variance = Y.std(0) ** 2 * factor * covariance.diag()[:, None] * df / (df - 2)
    assert torch.allclose(posterior.variance, variance)


def test_student_t_predictive_against_integration_over_the_scale():
    """p(y | data) = integral of N(y | mean, s C) p(s | data) ds, p(s | data) by quadrature too."""
    a, b = 1.5, 0.7
    X, Y = data(n=6, m=2)
    Xs = data(n=1, seed=1)[0]
    model = StudentTProcess(X, Y, kernel(), concentration=a, rate=b, likelihood=likelihood())
    posterior = model.posterior(Xs, observation_noise=True)
    mean, covariance, Z, K = dense(X, Y, Xs)
    log_s = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    s = log_s.exp()
    quadratic = (Z * torch.linalg.solve(K, Z)).sum()
    # Prior density of s, Jacobian of log s, and both columns' likelihoods, up to constants.
    log_weight = -(a + 1) * log_s - b / s + log_s
    log_weight = log_weight - 0.5 * Z.numel() * log_s - 0.5 * quadratic / s
    log_weight = log_weight - log_weight.logsumexp(0)
    y = Y.mean(0) + torch.tensor([[3.0, -25.0]], dtype=torch.float64)
    z = (y - Y.mean(0)) / Y.std(0)
    std = (s[:, None] * (covariance[0, 0] + 0.05)).sqrt()
    density = torch.distributions.Normal(mean, std).log_prob(z) - Y.std(0).log()
    marginal = (log_weight[:, None] + density).logsumexp(0)
    assert torch.allclose(posterior.log_prob(y)[0], marginal, atol=1e-8)
    # The scale is shared: the joint is no product of the marginals.
    joint = (log_weight + density.sum(-1)).logsumexp(0)
    assert torch.allclose(posterior.joint_log_prob(y), joint, atol=1e-8)
    assert abs(joint - marginal.sum()) > 1e-3
    cdf = (log_weight.exp()[:, None] * torch.special.ndtr((z - mean) / std)).sum(0)
    assert torch.allclose(posterior.cdf(y)[0], cdf, atol=1e-8)


@pytest.mark.parametrize("m", [1, 2])
def test_student_t_marginal_likelihood_against_integration_over_the_scale(m):
    a, b = 1.5, 0.7
    X, Y = data(n=7, m=m)
    model = StudentTProcess(X, Y, kernel(), concentration=a, rate=b, likelihood=likelihood())
    model.train()
    objective = model._marginal_log_likelihood()
    found = objective(model(*model.train_inputs), model.train_targets) * len(X)
    _, _, Z, K = dense(X, Y, X)
    log_s = torch.linspace(-10, 12, 20_001, dtype=torch.float64)
    prior = a * math.log(b) - math.lgamma(a) - (a + 1) * log_s - b / log_s.exp() + log_s
    zero = torch.zeros(7, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(zero, log_s.exp()[:, None, None] * K)
    likelihoods = sum(normal.log_prob(Z[:, k]) for k in range(m))
    step = log_s[1] - log_s[0]
    truth = (prior + likelihoods).logsumexp(0) + step.log()
    assert found.item() == pytest.approx(truth.item(), rel=1e-7)


def test_gaussian_objective_counts_a_shared_prior_once():
    X, Y = data(m=3)
    with_prior = RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 6.0))
    with_prior.lengthscale = 0.8
    model = GaussianProcess(X, Y, with_prior, likelihood=likelihood())
    model.train()
    objective = model._marginal_log_likelihood()
    found = objective(model(*model.train_inputs), model.train_targets) * len(X)
    _, _, Z, K = dense(X, Y, X)
    zero = torch.zeros(len(X), dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(zero, K)
    truth = sum(normal.log_prob(Z[:, k]) for k in range(3))
    truth = truth + torch.distributions.Gamma(3.0, 6.0).log_prob(torch.tensor(0.8)).double()
    assert found.item() == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_fit_raises_the_marginal_likelihood_and_leaves_the_user_s_objects_alone(process, m):
    X, Y = data(n=25, m=m)
    own = ScaleKernel(kernel())
    before = {name: value.clone() for name, value in own.state_dict().items()}
    model = process(X, Y, own)

    def objective():
        model.train()
        value = model._marginal_log_likelihood()(model(*model.train_inputs), model.train_targets)
        model.eval()
        return value.item()

    start = objective()
    state = torch.random.get_rng_state()
    assert model.fit() is model
    assert torch.equal(state, torch.random.get_rng_state())
    assert objective() > start + 0.05
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(model.covar_module.raw_outputscale, own.raw_outputscale)


@pytest.mark.parametrize("process", PROCESSES)
def test_known_noise_is_used_in_the_units_of_y(process):
    X, Y = data()
    Yvar = torch.full_like(Y, 0.05) * Y.std(0) ** 2
    known = process(X, Y, kernel(), train_Yvar=Yvar)
    given = process(X, Y, kernel(), likelihood=likelihood())
    Xs = data(n=5, seed=1)[0]
    for noisy in (False, True):
        first = known.posterior(Xs, observation_noise=noisy)
        second = given.posterior(Xs, observation_noise=noisy)
        assert torch.allclose(first.mean, second.mean)
        assert torch.allclose(first.variance, second.variance)


@pytest.mark.parametrize("process", PROCESSES)
def test_transforms_off_and_own(process):
    X, Y = data()
    Xs = data(n=5, seed=1)[0]
    by_hand = process(
        (X - X.mean(0)) / X.std(0),
        (Y - Y.mean(0)) / Y.std(0),
        kernel(),
        input_transform=None,
        outcome_transform=None,
    ).posterior((Xs - X.mean(0)) / X.std(0))
    default = process(X, Y, kernel()).posterior(Xs)
    assert torch.allclose(default.mean, Y.mean(0) + Y.std(0) * by_hand.mean)
    assert torch.allclose(default.variance, Y.std(0) ** 2 * by_hand.variance)
    logarithmic = process(X, Y.abs().log(), kernel(), outcome_transform=None).posterior(Xs)
    positive = process(X, Y.abs(), kernel(), outcome_transform=ExpTransform()).posterior(Xs)
    assert isinstance(positive, TransformedPosterior)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert torch.allclose(positive.quantile(half), logarithmic.quantile(half).exp())


@pytest.mark.parametrize("process", PROCESSES)
def test_output_indices_and_posterior_transform(process):
    from botorch.acquisition.objective import ScalarizedPosteriorTransform

    X, Y = data(m=3)
    model = process(X, Y, kernel())
    everything = model.posterior(X[:4])
    some = model.posterior(X[:4], output_indices=[2, 0])
    assert torch.allclose(some.mean, everything.mean[:, [2, 0]])
    assert torch.allclose(some.variance, everything.variance[:, [2, 0]])
    with pytest.raises(ValueError, match="has 3 outputs"):
        model.posterior(X, output_indices=[3])
    if process is GaussianProcess:
        weights = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
        scalar = model.posterior(X[:4], posterior_transform=ScalarizedPosteriorTransform(weights))
        assert torch.allclose(scalar.mean[..., 0], everything.mean @ weights)


@pytest.mark.parametrize("process", PROCESSES)
def test_conditioning_equals_training_on_all_rows(process, tmp_path):
    X, Y = data(n=14)
    fixed = {"input_transform": None, "outcome_transform": None, "likelihood": likelihood()}
    model = process(X[:10], Y[:10], kernel(), **fixed)
    model.posterior(X[:1])
    grown = model.condition_on_observations(X[10:], Y[10:])
    whole = process(X, Y, kernel(), **fixed)
    Xs = data(n=5, seed=1)[0]
    assert torch.allclose(grown.posterior(Xs).mean, whole.posterior(Xs).mean)
    assert torch.allclose(grown.posterior(Xs).variance, whole.posterior(Xs).variance)
    grown.save(tmp_path / "grown.safetensors")
    loaded = process.load(tmp_path / "grown.safetensors", kernel(), **fixed)
    assert torch.equal(grown.posterior(Xs).mean, loaded.posterior(Xs).mean)


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(process, dtype, tmp_path):
    X, Y = data(dtype, n=20, m=2)
    model = process(X, Y, ScaleKernel(MaternKernel(ard_num_dims=2))).fit()
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = process.load(path, ScaleKernel(MaternKernel(ard_num_dims=2)))
    Xs = data(dtype, n=5, seed=1)[0]
    before = model.posterior(Xs, observation_noise=True)
    after = loaded.posterior(Xs, observation_noise=True)
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.variance, after.variance)
    with pytest.raises(ValueError, match="different kernel: .* was MaternKernel; pass one that"):
        process.load(path, ScaleKernel(RBFKernel(ard_num_dims=2)))
    with pytest.raises(ValueError, match=r"is RBFKernel, was ScaleKernel \(and \d+ more\); pa"):
        process.load(path, RBFKernel(ard_num_dims=2))
    with pytest.raises(ValueError, match="other values"):
        process.load(path, ScaleKernel(MaternKernel(nu=0.5, ard_num_dims=2)))
    with pytest.raises(ValueError, match="outcome_transform"):
        process.load(path, ScaleKernel(MaternKernel(ard_num_dims=2)), outcome_transform=None)
    other = PROCESSES[1 - PROCESSES.index(process)]
    with pytest.raises(ValueError, match="expected a"):
        other.load(path, ScaleKernel(MaternKernel(ard_num_dims=2)))


@pytest.mark.parametrize("process", PROCESSES)
def test_save_and_load_with_a_network_s_kernel(process, tmp_path):
    def network(activation):
        return torch.nn.Sequential(torch.nn.Linear(2, 8), activation, torch.nn.Linear(8, 1))

    X, Y = data()
    model = process(X, Y, NNGPKernel(network(torch.nn.ReLU()), weight_var=1.5, bias_var=0.1))
    model.fit().save(tmp_path / "model.safetensors")
    fresh = NNGPKernel(network(torch.nn.ReLU()), bias_var=1.0)
    loaded = process.load(tmp_path / "model.safetensors", fresh)
    assert torch.equal(model.posterior(X).mean, loaded.posterior(X).mean)
    other = NNGPKernel(network(torch.nn.GELU()), bias_var=1.0)
    with pytest.raises(ValueError, match="other values"):
        process.load(tmp_path / "model.safetensors", other)


def test_student_t_parameters_survive_saving(tmp_path):
    X, Y = data()
    model = StudentTProcess(X, Y, kernel(), concentration=3.0, rate=0.5)
    model.save(tmp_path / "model.safetensors")
    loaded = StudentTProcess.load(tmp_path / "model.safetensors", RBFKernel())
    assert (loaded.concentration, loaded.rate) == (3.0, 0.5)
    assert torch.equal(model.posterior(X).variance, loaded.posterior(X).variance)


@pytest.mark.parametrize("process", PROCESSES)
def test_solver_settings_do_not_depend_on_global_ones(process):
    X, Y = data(n=30)
    expected = process(X, Y, kernel()).fit().posterior(X[:4]).variance
    size = linear_operator.settings.max_cholesky_size.value()
    with (
        linear_operator.settings.max_cholesky_size(3),
        linear_operator.settings.fast_computations(True, True, True),
        gpytorch.settings.max_eager_kernel_size(2),
    ):
        found = process(X, Y, kernel()).fit().posterior(X[:4]).variance
    assert torch.allclose(found, expected, rtol=1e-8)
    assert linear_operator.settings.max_cholesky_size.value() == size


@pytest.mark.parametrize("process", PROCESSES)
def test_constant_columns_and_single_rows(process):
    X, Y = data()
    X = torch.cat([X, torch.full((12, 1), 0.3, dtype=torch.float64)], dim=-1)
    Y = torch.cat([Y, torch.full_like(Y, 7.0)], dim=-1)
    posterior = process(X, Y, kernel()).fit().posterior(X[:3], observation_noise=True)
    assert posterior.variance.isfinite().all()
    assert torch.allclose(posterior.mean[:, 1], torch.full((3,), 7.0).double(), atol=1e-6)
    one = process(X[:1], Y[:1], kernel()).posterior(X[:3])
    assert one.mean.isfinite().all()


@pytest.mark.parametrize("process", PROCESSES)
def test_inputs_are_checked(process):
    X, Y = data()
    with pytest.raises(TypeError, match="gpytorch kernel"):
        process(X, Y, torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match="train_X as a float32 or float64"):
        process(X.long(), Y, kernel())
    with pytest.raises(ValueError, match=r"unsqueeze\(-1\)"):
        process(X, Y[:, 0], kernel())
    with pytest.raises(ValueError, match="all but the last dimension"):
        process(X, Y[:-1], kernel())
    with pytest.raises(ValueError, match="train_Y with 1 NaN"):
        process(X, torch.where(Y == Y[3], torch.nan, Y), kernel())
    with pytest.raises(ValueError, match=r"torch\.float32"):
        process(X, Y.float(), kernel())
    with pytest.raises(ValueError, match="negative variances"):
        process(X, Y, kernel(), train_Yvar=-torch.ones_like(Y))
    with pytest.raises(ValueError, match="not both"):
        process(X, Y, kernel(), train_Yvar=torch.ones_like(Y), likelihood=likelihood())
    with pytest.raises(ValueError, match="no meaning under the outcome transform"):
        process(
            X, Y.abs(), kernel(), train_Yvar=torch.ones_like(Y), outcome_transform=ExpTransform()
        )
    model = process(X, Y, kernel())
    with pytest.raises(ValueError, match="2 input columns"):
        model.posterior(X[:, :1])
    with pytest.raises(TypeError, match=r"X\.to"):
        model.posterior(X.float())


def test_scale_prior_is_checked():
    X, Y = data()
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="concentration"):
            StudentTProcess(X, Y, kernel(), concentration=bad)
        with pytest.raises(ValueError, match="rate"):
            StudentTProcess(X, Y, kernel(), rate=bad)
