"""Predictions at many queries: dense algebra, and no covariance that nobody asked for."""

import numpy
import pytest
import torch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models import ModelListGP
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import InducingPointKernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from linear_operator.operators import DenseLinearOperator
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import GaussianProcess, StudentTProcess
from bayes.processes import prediction
from bayes.processes.deferred_covariance import DeferredCovariance
from priors import NNGPKernel
from priors.posteriors.acquisition import LogExpectedImprovement
from priors.posteriors.transforms import TailCompression

PROCESSES = [GaussianProcess, StudentTProcess]
both = pytest.mark.parametrize("process", PROCESSES)


def data(n=12, m=1, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(*batch, n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[..., 0]) + X[..., 1] for k in range(m)], dim=-1)
    return X, 4 + 10 * Y


def make(process, m=1, batch=(), kernel=None, **arguments):
    likelihood = GaussianLikelihood(batch_shape=torch.Size([*batch, m] if m > 1 else batch))
    noises = torch.linspace(0.01, 0.01 * m, m, dtype=torch.float64)[:, None]
    likelihood.noise = (noises if m > 1 else noises[0]).expand_as(likelihood.noise)
    kernel = RBFKernel() if kernel is None else kernel
    arguments.setdefault("likelihood", likelihood)
    return process(*data(m=m, batch=batch), kernel, **arguments)


@pytest.fixture
def in_blocks(monkeypatch):
    """Every query counts as many, and blocks are of a few."""
    monkeypatch.setattr(prediction, "_JOINT_QUERIES", 1)
    monkeypatch.setattr(prediction, "_BLOCK_NUMBERS", 40)


@pytest.fixture
def no_joint(in_blocks, monkeypatch):
    """The joint covariance of queries must not be computed."""

    def refuse(*args):
        raise AssertionError("the joint covariance was computed")

    monkeypatch.setattr(prediction, "_joint", refuse)


def dense(model, Xs, noisy=False):
    """Means `[q, m]` and covariances `[q, q, m]`, by plain numpy."""
    X, Y, Xs = model.train_X.numpy(), model.train_Y.numpy(), Xs.numpy()
    center, spread, scale = X.mean(0), X.std(0, ddof=1), Y.std(0, ddof=1)

    def k(a, b):
        a, b = (a - center) / spread, (b - center) / spread
        return numpy.exp(-0.5 * ((a[:, None] - b) ** 2).sum(-1) / numpy.log(2) ** 2)

    means, covariances, quadratic = [], [], 0.0
    noises = model.likelihood.noise.detach().flatten().numpy()
    for y, noise in zip(((Y - Y.mean(0)) / scale).T, noises, strict=True):
        K = k(X, X) + noise * numpy.eye(len(X))
        weights = numpy.linalg.solve(K, k(X, Xs)).T
        means.append(weights @ y)
        covariances.append(k(Xs, Xs) - weights @ k(X, Xs) + noisy * noise * numpy.eye(len(Xs)))
        quadratic += y @ numpy.linalg.solve(K, y)
    covariance = numpy.stack(covariances, -1) * scale**2
    if isinstance(model, StudentTProcess):
        df = 2 * model.concentration + Y.size
        covariance *= (2 * model.rate + quadratic) / df * df / (df - 2)
    return torch.as_tensor(Y.mean(0) + scale * numpy.stack(means, -1)), torch.as_tensor(covariance)


def variances(covariance):
    return covariance.diagonal().T


@both
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1,), (3, 1), (2, 3, 5)])
def test_marginals_against_dense_algebra(process, m, noise, shape, no_joint):
    model = make(process, m)
    Xs = data(n=torch.Size(shape).numel(), seed=1)[0]
    posterior = model.posterior(Xs.reshape(*shape, 2), observation_noise=noise)
    mean, covariance = dense(model, Xs, noise)
    assert posterior.shape == (*shape, m)
    torch.testing.assert_close(posterior.mean.reshape(-1, m), mean)
    torch.testing.assert_close(posterior.variance.reshape(-1, m), variances(covariance))
    y = posterior.quantile(torch.tensor(0.8))
    assert posterior.log_prob(y).isfinite().all()
    torch.testing.assert_close(posterior.cdf(y), torch.full_like(y, 0.8))
    assert posterior.log_excess(0.0, 1).isfinite().all()


@both
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_the_joint_is_computed_when_asked_for(process, m, shape, in_blocks):
    """Of samples, densities and, of a Gaussian, the distribution."""
    model = make(process, m)
    Xs = data(n=torch.Size(shape).numel(), seed=1)[0].reshape(*shape, 2)
    posterior = model.posterior(Xs, observation_noise=True)
    _, covariance = dense(model, Xs.reshape(-1, 2)[: shape[-1]], True)
    if process is GaussianProcess:
        found = posterior.distribution.covariance_matrix.reshape(-1, m * shape[-1], m * shape[-1])
        blocks = torch.block_diag(*covariance.unbind(-1))
        torch.testing.assert_close(found[0], blocks)
    generator = torch.Generator().manual_seed(0)
    base = posterior.base_sample_shape
    base = torch.randn(4000, *base, generator=generator, dtype=torch.float64)
    drawn = posterior.rsample_from_base_samples(torch.Size([4000]), base)
    first = drawn.reshape(4000, -1, shape[-1], m)[:, 0, :, 0]
    std = variances(covariance)[:, 0].sqrt()
    correlation = covariance[..., 0] / (std * std[:, None])
    assert (first.T.corrcoef() - correlation).abs().max() < 0.1
    y = posterior.mean + 0.1
    few = make(process, m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "_JOINT_QUERIES", 512)
        expected = few.posterior(Xs, observation_noise=True).joint_log_prob(y)
    torch.testing.assert_close(posterior.joint_log_prob(y), expected)


def test_leading_dimensions_of_values(in_blocks):
    model = make(GaussianProcess, 2)
    posterior = model.posterior(data(n=5, seed=1)[0].expand(3, 5, 2), observation_noise=True)
    y = posterior.rsample(torch.Size([2, 4])).detach()
    each = posterior.joint_log_prob(y)
    assert each.shape == (2, 4, 3)
    torch.testing.assert_close(each[1, 2], posterior.joint_log_prob(y[1, 2]))
    truth = torch.distributions.MultivariateNormal(
        posterior.distribution.loc, posterior.distribution.covariance_matrix
    )
    torch.testing.assert_close(each, truth.log_prob(y.mT.flatten(-2)))


@both
@pytest.mark.parametrize("outcome", [TailCompression, ExpTransform], ids=["tails", "exp"])
def test_other_outcome_transforms(process, outcome, no_joint):
    X, Y = data()
    transform = ExpTransform() if outcome is ExpTransform else TailCompression(Y)
    model = process(X, Y.abs(), RBFKernel(), outcome_transform=transform)
    Xs = data(n=5, seed=1)[0]
    posterior = model.posterior(Xs)
    one_by_one = model.posterior(Xs[:, None])
    for found in ("mean", "variance"):
        torch.testing.assert_close(
            getattr(posterior, found), getattr(one_by_one, found).squeeze(-2)
        )
    half = torch.tensor(0.4)
    torch.testing.assert_close(posterior.quantile(half), one_by_one.quantile(half).squeeze(-2))


@both
@pytest.mark.parametrize("m", [1, 2])
def test_batches_of_data_and_kernels(process, m, in_blocks):
    """Each data set and each output with its own hyperparameters, as in a loop."""
    shape = torch.Size([3, m] if m > 1 else [3])
    kernel = RBFKernel(batch_shape=shape)
    kernel.lengthscale = torch.linspace(0.5, 1.5, shape.numel()).double().reshape(*shape, 1, 1)
    model = make(process, m, (3,), kernel, input_transform=None)
    Xs = data(n=5, batch=(3,), seed=1)[0]
    many = model.posterior(Xs, observation_noise=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "_JOINT_QUERIES", 512)
        few = model.posterior(Xs, observation_noise=True)
    torch.testing.assert_close(many.mean, few.mean)
    torch.testing.assert_close(many.variance, few.variance)
    if m == 1:
        for k in range(3):
            one = RBFKernel()
            one.lengthscale = kernel.lengthscale[k]
            likelihood = GaussianLikelihood()
            likelihood.noise = 0.01
            given = {"likelihood": likelihood, "input_transform": None}
            alone = process(model.train_X[k], model.train_Y[k], one, **given)
            found = alone.posterior(Xs[k], observation_noise=True)
            torch.testing.assert_close(many.mean[k], found.mean)
            torch.testing.assert_close(many.variance[k], found.variance)


@both
@pytest.mark.parametrize("noise", [False, True])
def test_some_outputs(process, noise, no_joint):
    model = make(process, 3)
    Xs = data(n=5, seed=1)[0]
    whole = model.posterior(Xs, observation_noise=noise)
    for chosen in ([1], [2, 0], [-1]):
        some = model.posterior(Xs, output_indices=chosen, observation_noise=noise)
        torch.testing.assert_close(some.mean, whole.mean[:, chosen])
        torch.testing.assert_close(some.variance, whole.variance[:, chosen])
    twice = make(process).posterior(Xs, output_indices=[0, 0], observation_noise=noise)
    torch.testing.assert_close(twice.variance[:, 0], twice.variance[:, 1])


@both
def test_gradients_to_queries(process, in_blocks):
    model = make(process)
    Xs = data(n=5, seed=1)[0]

    def moments(X):
        posterior = model.posterior(X)
        return posterior.mean, posterior.variance, posterior.log_excess(12.0, 1)

    assert torch.autograd.gradcheck(moments, Xs.clone().requires_grad_())
    assert torch.autograd.gradcheck(moments, Xs[:, None].clone().requires_grad_())
    base = torch.randn(2, *model.posterior(Xs).base_sample_shape, dtype=torch.float64)

    def samples(X):
        return model.posterior(X).rsample_from_base_samples(torch.Size([2]), base)

    assert torch.autograd.gradcheck(samples, Xs.clone().requires_grad_())


def test_few_queries_have_the_same_gradients_with_common_rows():
    model = make(GaussianProcess, 2)
    Xs = data(n=6, seed=1)[0].reshape(2, 3, 2)
    assert torch.autograd.gradcheck(
        lambda X: model.posterior(X).distribution.covariance_matrix, Xs.clone().requires_grad_()
    )


@both
def test_fantasies(process, in_blocks):
    """Fantasised observations are rows like others."""
    model = make(process, input_transform=None, outcome_transform=None)
    X, Xs = data(n=4, seed=1)[0].split([2, 2])
    model.posterior(X)
    fantasies = model.fantasize(X.expand(5, 2, 2), SobolQMCNormalSampler(torch.Size([3]), seed=0))
    found = fantasies.posterior(Xs)
    assert found.mean.shape == (3, 5, 2, 1)
    outcomes = fantasies.train_targets[1, 2, :, None]
    rows = fantasies.train_inputs[0][1, 2]
    likelihood = GaussianLikelihood()
    likelihood.noise = 0.01
    plain = {"input_transform": None, "outcome_transform": None, "likelihood": likelihood}
    whole = process(rows, outcomes, RBFKernel(), **plain).posterior(Xs)
    torch.testing.assert_close(found.mean[1, 2], whole.mean)
    torch.testing.assert_close(found.variance[1, 2], whole.variance, rtol=1e-5, atol=1e-8)


def test_models_in_a_list_and_weighted_sums_stay_lazy(no_joint):
    first, second = make(GaussianProcess), make(GaussianProcess)
    Xs = data(n=5, seed=1)[0]
    listed = ModelListGP(first, second).posterior(Xs)
    torch.testing.assert_close(listed.variance[:, :1], first.posterior(Xs).variance)
    both_outputs = make(GaussianProcess, 2)
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    transform = ScalarizedPosteriorTransform(weights)
    found = both_outputs.posterior(Xs, posterior_transform=transform, observation_noise=True)
    mean, covariance = dense(both_outputs, Xs, True)
    torch.testing.assert_close(found.mean[:, 0], mean @ weights)
    torch.testing.assert_close(found.variance[:, 0], variances(covariance) @ weights.square())


def test_kernels_that_predict_in_their_own_way(in_blocks):
    """GPyTorch's inducing points do not condition on rows."""
    X, Y = data(40)
    points = InducingPointKernel(RBFKernel(), X[:8], GaussianLikelihood())
    model = GaussianProcess(X, Y, points, input_transform=None)
    Xs = data(n=5, seed=1)[0]
    together, alone = model.posterior(Xs), model.posterior(Xs[:1])
    torch.testing.assert_close(together.mean[:1], alone.mean)
    torch.testing.assert_close(together.variance[:1], alone.variance)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda: NNGPKernel(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))),
        lambda: ScaleKernel(MaternKernel(ard_num_dims=2)) + RBFKernel(active_dims=[1]),
    ],
    ids=["network", "sum"],
)
def test_kernels(kernel, in_blocks):
    model = make(GaussianProcess, kernel=kernel())
    Xs = data(n=9, seed=1)[0]
    many = model.posterior(Xs)
    torch.testing.assert_close(many.variance[:, 0], many.distribution.covariance_matrix.diagonal())


@both
@pytest.mark.parametrize("change", ["hyperparameter", "data"])
def test_a_model_that_changed_is_not_asked_for_the_old_joint(process, change, in_blocks):
    model = make(process)
    X = data(n=5, seed=1)[0]
    posterior, kept = model.posterior(X), model.posterior(X)
    kept.rsample()
    before = posterior.mean.clone()
    if change == "hyperparameter":
        model.fit()
    else:
        model.set_train_data(targets=model.train_targets + 1, strict=False)
    assert torch.equal(posterior.mean, before)
    kept.rsample()
    with pytest.raises(ValueError, match=r"5 queries .* has changed since: call posterior"):
        posterior.rsample()


def test_candidates_of_acquisition_functions():
    """One query in each of many batches is what a loop over them gives."""
    model = make(GaussianProcess)
    X = data(n=6, seed=1)[0]
    acquisition = LogExpectedImprovement(model, 12.0)
    each = torch.stack([acquisition(x[None, None])[0] for x in X])
    torch.testing.assert_close(acquisition(X[:, None]), each)


def test_deferred_covariance():
    calls = []
    root = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    whole = root @ root.mT + torch.eye(4, dtype=torch.float64)

    def covariance():
        calls.append(1)
        return DenseLinearOperator(whole)

    deferred = DeferredCovariance(whole.diagonal(dim1=-1, dim2=-2), covariance=covariance)
    for found, expected in (
        (deferred[1], whole[1]),
        (deferred[:, 2], whole[:, 2]),
        (deferred[..., [2, 0], :, :], whole[:, [2, 0]]),
        (deferred.unsqueeze(0), whole[None]),
        (deferred.expand(5, 2, 3, 4, 4), whole.expand(5, 2, 3, 4, 4)),
        (deferred.permute(1, 0, 2, 3), whole.permute(1, 0, 2, 3)),
        (deferred * 2.0, 2 * whole),
        (deferred.mT, whole),
    ):
        diagonal = found.diagonal(dim1=-1, dim2=-2)
        torch.testing.assert_close(diagonal, expected.diagonal(dim1=-1, dim2=-2))
    assert not calls
    for found, expected in (
        (deferred[1].to_dense(), whole[1]),
        (deferred[..., [2, 0], :, :].to_dense(), whole[:, [2, 0]]),
        (deferred.unsqueeze(0).to_dense(), whole[None]),
        (deferred.expand(5, 2, 3, 4, 4).to_dense(), whole.expand(5, 2, 3, 4, 4)),
        (deferred.permute(1, 0, 2, 3).to_dense(), whole.permute(1, 0, 2, 3)),
        (deferred[..., 1:, :2].to_dense(), whole[..., 1:, :2]),
        (deferred @ whole, whole @ whole),
        ((deferred * 2.0).cholesky().to_dense(), torch.linalg.cholesky(2 * whole)),
        (deferred[1, 2, [0, 3], [1, 3]], whole[1, 2, [0, 3], [1, 3]]),
    ):
        torch.testing.assert_close(found, expected)
    assert len(calls) == 1
    deferred.logdet().sum().backward()
    torch.testing.assert_close(
        root.grad, torch.autograd.grad(torch.logdet(root @ root.mT + torch.eye(4)).sum(), root)[0]
    )
