"""Every engine on the GPU against the CPU."""

import math

import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import nn

from bayes import (
    NUTS,
    BayesianNetwork,
    DeepKernelMachine,
    GaussianProcess,
    GaussianProcessClassifier,
    GradientDescentEnsemble,
    HeteroscedasticGaussianProcess,
    MeanField,
    ScaleMixtureClassifier,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
    WeightSpaceProcess,
    calibration,
    compare,
    match_functional_prior,
    match_quality,
    plot_posterior,
    plot_predictions,
    stack,
)
from priors import (
    ExpectedImprovement,
    GaussianApproximation,
    GaussianProcessPrior,
    HalfCauchyVariance,
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    NetworkPrior,
    NNGPKernel,
    TailCompression,
    UpperConfidenceBound,
)
from priors.random_state import seeded

SHORT = MeanField(num_steps=20, num_draws=16, progress=False)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("without_graphs")  # fits are of a few steps


def data(device, dtype=torch.float64, outputs=1, n=8, d=2):
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = torch.stack([(3 * X[:, 0] + k).sin() + X[:, -1] for k in range(outputs)], -1)
    return X.to(device, dtype), Y.to(device, dtype)


def module(dtype=torch.float64, width=3):
    with seeded(0):
        made = nn.Sequential(
            nn.Linear(2, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1)
        )
    return made.to(dtype)


KERNELS = {
    "matern": lambda: ScaleKernel(MaternKernel(ard_num_dims=2)),
    "nngp": lambda: NNGPKernel(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), bias_var=0.2
    ),
}
PROCESSES = [GaussianProcess, StudentTProcess]


def answers(posterior, Y):
    yield from (posterior.mean, posterior.variance, posterior.log_prob(Y), posterior.cdf(Y))
    yield posterior.quantile(torch.tensor([0.1, 0.7], dtype=Y.dtype, device=Y.device))
    base = torch.linspace(-1, 1, math.prod(posterior.base_sample_shape), dtype=Y.dtype)
    base = base.reshape(1, *posterior.base_sample_shape).to(Y.device)
    yield posterior.rsample_from_base_samples(torch.Size([1]), base)


def acquisition_values(model, X):
    best = 0.6
    for acquisition in (
        LogExpectedImprovement(model, best),
        ExpectedImprovement(model, X.new_tensor(best)),
        LogProbabilityOfImprovement(model, best, maximize=False),
        UpperConfidenceBound(model, beta=2.0),
        qLogExpectedImprovement(model, best, SobolQMCNormalSampler(torch.Size([16]), seed=0)),
    ):
        yield acquisition(X[:, None])


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_processes(agrees, device, process, kernel):
    def compute(device, dtype):
        for outputs in (1, 2):
            X, Y = data(device, dtype, outputs)
            model = process(X, Y, KERNELS[kernel]())
            noisy = model.posterior(X[:3] + 0.1, observation_noise=True)
            yield from answers(noisy, Y[:3])
            yield noisy.joint_log_prob(Y[:3])
            # Without noise the covariance is nearly singular.
            if dtype == torch.float64:
                yield model.posterior(X[:3] + 0.1).joint_log_prob(Y[:3])
        tails = TailCompression(Y[:, :1])
        model = process(X, Y[:, :1], KERNELS[kernel](), outcome_transform=tails)
        yield from (model.posterior(X[:2]).mean, model.posterior(X[:2]).variance)

    agrees(compute)
    posterior = process(*data(device), KERNELS[kernel]()).posterior(data(device)[0])
    assert posterior.rsample(torch.Size([3])).device == device


@pytest.mark.parametrize("process", PROCESSES)
def test_acquisition(agrees, process):
    def compute(device, dtype):
        X, Y = data(device, dtype)
        model = process(X, Y, KERNELS["matern"]())
        yield from acquisition_values(model, X[:3] + 0.1)
        yield LogExpectedImprovement(GaussianApproximation(model), 0.6)(X[:3, None] + 0.1)
        yield qLogNoisyExpectedImprovement(
            model, X, SobolQMCNormalSampler(torch.Size([16]), seed=0), prune_baseline=False
        )(X[:3, None] + 0.1)

    agrees(compute, torch.float64)


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
def test_fit_and_optimisation_stay_on_the_device(device, process):
    X, Y = data(device)
    with seeded(1, device):
        expected = torch.rand(2, device=device)
    with seeded(1, device):
        model = process(X, Y, KERNELS["matern"]()).fit()
        assert torch.equal(torch.rand(2, device=device), expected)
    assert {p.device for p in model.parameters()} == {device}
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=X.dtype, device=device)
    candidate, value = optimize_acqf(
        LogExpectedImprovement(model, Y.max()), bounds, 1, 2, 16, options={"maxiter": 10}
    )
    assert candidate.device == value.device == device
    grown = model.condition_on_observations(candidate, Y[:1])
    assert grown.posterior(candidate).mean.device == device


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
def test_processes_move_and_are_stored(device, process, tmp_path):
    X, Y = data(CPU)
    made = process(X, Y, KERNELS["nngp"]())
    expected = made.posterior(X, observation_noise=True)
    moved = process(X, Y, KERNELS["nngp"]()).to(device)
    moved.save(tmp_path / "there")
    made.save(tmp_path / "here")
    models = [
        moved,
        process.load(tmp_path / "here", KERNELS["nngp"]()).to(device),
        process.load(tmp_path / "there", KERNELS["nngp"]()),
    ]
    for model in models:
        where = model.train_X.device
        found = model.posterior(X.to(where), observation_noise=True)
        assert found.device == where
        torch.testing.assert_close(found.mean.cpu(), expected.mean)
        torch.testing.assert_close(found.log_prob(Y.to(where)).cpu(), expected.log_prob(Y))


def scale_mixture(X, Y, kernel, **options):
    scale = HalfCauchyVariance(X.new_ones(()))
    return ScaleMixtureProcess(X, Y, kernel, scale=scale, **options)


FURTHER = {
    "scale mixture": scale_mixture,
    "scaled noise": lambda X, Y, kernel: scale_mixture(X, Y, kernel, scale_noise=True),
    "noise of inputs": lambda X, Y, kernel: HeteroscedasticGaussianProcess(
        X, Y, kernel, num_noise_points=4
    ),
    "weights of rows": lambda X, Y, kernel: GaussianProcess(
        X, Y, kernel, train_weights=1 + X[:, 0]
    ),
    "inducing points": lambda X, Y, kernel: VariationalGaussianProcess(
        X, Y, kernel, num_inducing=5
    ),
    "Student-t noise": lambda X, Y, kernel: VariationalGaussianProcess(
        X, Y, kernel, likelihood="student_t", num_inducing=5
    ),
    "features": lambda X, Y, kernel: WeightSpaceProcess(X, Y, KERNELS["nngp"](), num_features=20),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_processes(agrees, name):
    def compute(device, dtype):
        X, Y = data(device, dtype)
        model = FURTHER[name](X, Y, KERNELS["matern"]())
        posterior = model.posterior(X[:3] + 0.1, observation_noise=True)
        yield from (posterior.mean, posterior.variance)
        yield from (posterior.log_prob(Y[:3]), posterior.cdf(Y[:3]))
        grown = model.condition_on_observations(X[:2] + 0.3, Y[:2])
        yield grown.posterior(X[:2]).mean

    agrees(compute, torch.float64)


@pytest.mark.parametrize("kind", ["softmax", "probit", "dirichlet", "mixture"])
def test_classifiers(agrees, kind):
    def compute(device, dtype):
        X, Y = data(device, dtype)
        labels, kernel = (Y > Y.median()).to(dtype), KERNELS["matern"]()
        if kind == "mixture":
            model = ScaleMixtureClassifier(X, labels, kernel, num_inducing=4)
        else:
            model = GaussianProcessClassifier(
                X, labels, kernel, likelihood=kind, num_inducing=4, train_weights=1 + X[:, 0]
            )
        yield model.posterior(X[:3] + 0.1).mean
        yield model.posterior(X[:3] + 0.1, observation_noise=True).log_prob(labels[:3])

    agrees(compute, torch.float64)


def relu_network():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


LIMITS = {
    "trained": lambda X, Y: GradientDescentEnsemble(X, Y, relu_network()),
    "stopped": lambda X, Y: GradientDescentEnsemble(X, Y, relu_network(), time=2.0, ridge=0.1),
    "machine": lambda X, Y: DeepKernelMachine(
        X, Y, layers=["relu", "squared exponential"], num_inducing=5
    ),
}


@pytest.mark.covering
@pytest.mark.filterwarnings("ignore:The fit of")
@pytest.mark.parametrize("kind", LIMITS)
def test_limits_of_networks(agrees, device, kind):
    def compute(device, dtype):
        for outputs in (1, 2):
            X, Y = data(device, dtype, outputs)
            model = LIMITS[kind](X, Y)
            noisy = model.posterior(X[:3] + 0.1, observation_noise=True)
            yield from answers(noisy, Y[:3])
            yield noisy.joint_log_prob(Y[:3])
        if kind == "machine":
            yield from (model.objective(), *model.grams(X))
        else:
            yield from (model.log_score(), model.leave_one_out().variance)

    agrees(compute)
    X, Y = data(device)
    model = LIMITS[kind](X, Y).fit(max_iter=2, progress=False)
    assert {p.device for p in model.parameters()} == {device}
    assert model.condition_on_observations(X + 0.1, Y).posterior(X).mean.device == device
    moved = LIMITS[kind](*data(CPU)).to(device)
    torch.testing.assert_close(
        moved.posterior(X).mean, LIMITS[kind](X, Y).posterior(X).mean, rtol=1e-6, atol=1e-6
    )


def with_draws(device, dtype, method=SHORT):
    """A model whose draws, made on the CPU, are the same on every device."""
    X, Y = data(CPU, dtype)
    return BayesianNetwork(X, Y, NetworkPrior(module(dtype), bias_var=1.0)).fit(method).to(device)


def test_bayesian_network(agrees):
    def compute(device, dtype):
        model = with_draws(device, dtype)
        X, Y = data(device, dtype)
        yield from answers(model.posterior(X[:3] + 0.1, observation_noise=True), Y[:3])
        functions = model.posterior(X[:3] + 0.1)
        yield from (functions.mean, functions.variance, functions.cdf(Y[:3]))
        yield from acquisition_values(model, X[:3] + 0.1)
        yield model.draws.history

    agrees(compute)


@pytest.mark.covering
@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
@pytest.mark.parametrize(
    "method",
    [SHORT, NUTS(num_samples=4, num_warmup=4, num_chains=2, max_tree_depth=3, progress=False)],
    ids=["mean field", "nuts"],
)
def test_inference_stays_on_the_device(device, method):
    X, Y = data(device)
    with seeded(1, device):
        expected = torch.rand(2, device=device)
    with seeded(1, device):
        model = BayesianNetwork(X, Y, NetworkPrior(module(), bias_var=1.0)).fit(method)
        assert torch.equal(torch.rand(2, device=device), expected)
    draws = model.draws
    tensors = [*draws.samples.values(), *draws.stats.values()]
    assert all(t.device == device and bool(t.isfinite().all()) for t in tensors)
    assert model.posterior(X).rsample(torch.Size([2])).device == device
    again = BayesianNetwork(X, Y, NetworkPrior(module(), bias_var=1.0)).fit(method).draws
    torch.testing.assert_close(again.samples["eps"], draws.samples["eps"])


def test_a_network_is_stored_and_exported(device, tmp_path):
    prior = NetworkPrior(module(), bias_var=1.0)
    model = with_draws(device, torch.float64)
    groups = model.to_arviz()
    assert groups.posterior_predictive["y"].shape[-2:] == (8, 1)
    model.save(tmp_path / "network")
    here = BayesianNetwork.load(tmp_path / "network", prior)
    X, _ = data(CPU)
    expected = here.posterior(X, observation_noise=True).mean
    for found in (model, here.to(device)):
        mean = found.posterior(X.to(device), observation_noise=True).mean
        assert mean.device == device
        torch.testing.assert_close(mean.cpu(), expected)


def test_matching_a_functional_prior(device):
    plain = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    prior, target = NetworkPrior(plain, bias_var=1.0), GaussianProcessPrior(RBFKernel())

    def error(where, inputs):
        X, _ = data(inputs)
        target.kernel.to(where)
        matched = match_functional_prior(prior.to(where), target, X, num_restarts=1)
        assert all(p.device == where for p in matched.parameters())
        return match_quality(matched, target, X).covariance_error

    expected = error(CPU, CPU)
    for where in (CPU, device):  # the priors' device
        assert error(where, device) == pytest.approx(expected, rel=1e-3)


def test_scores_and_plots(device):
    X, Y = data(device)
    model = GaussianProcess(X, Y, KERNELS["matern"]())
    posterior = model.posterior(X, observation_noise=True)
    assert calibration(posterior, Y).error < 1
    calibration(posterior, Y).plot()
    plot_predictions(posterior, Y)
    plot_predictions(posterior, Y, against="target")
    plot_posterior(GaussianProcess(X[:, :1], Y, RBFKernel()), num_samples=2)

    def factory(X, Y):
        return GaussianProcess(X, Y, KERNELS["matern"]())

    found = compare({"a": factory, "b": factory}, [(X[:5], Y[:5], X[5:], Y[5:])])
    assert found.scores["a"]["nlpd"].isfinite().all()


def test_leave_one_out_and_stacks(agrees):
    """Scores of rows left out, their weights, and the pool's score."""

    def compute(device, dtype):
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(20, 2, generator=generator, dtype=torch.float64).to(device, dtype)
        Y = torch.sin(X.sum(-1, keepdim=True))
        engines = {
            "smooth": lambda X, Y: GaussianProcess(X, Y, RBFKernel().to(X)).requires_grad_(False),
            "rough": lambda X, Y: StudentTProcess(X, Y, MaternKernel(0.5).to(X)),
        }
        made = stack(engines, X, Y, progress=False).requires_grad_(False)
        yield made.log_scores
        posterior = made.posterior(X[:5], observation_noise=True)
        yield posterior.log_prob(Y[:5])
        yield posterior.crps(Y[:5])

    agrees(compute)
