"""All data on the CPU while torch's default device is another one: run by `test_default_device`.

A tensor that the code makes without saying where is then made on the default device, here "meta",
where it has no values: the computation fails, or its result is there too. On a machine with a GPU
the same tensor would be made on the CPU amid tensors of the GPU. Modules and acquisition functions
of other packages make theirs on the default device on purpose: they are made before it changes.
"""

import sys
import traceback
import warnings

import optuna
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import nn
from torch.distributions import Gamma

import pfn
from bayes import (
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
    match_functional_prior,
    match_quality,
)
from nas import BayesianSampler, suggest
from nas.testing import SyntheticObjective
from priors import (
    AnnealedSampler,
    EmpiricalNTKKernel,
    GaussianProcessPrior,
    InfiniteDepthClassifier,
    InfiniteNetwork,
    LogExpectedImprovement,
    MixturePosterior,
    NetworkPrior,
    NTKKernel,
    QuasiMonteCarlo,
    RandomFeatureKernel,
    ScaleMixturePrior,
    TailCompression,
    TransformedPosterior,
    UniversalFeatures,
    UpperConfidenceBound,
    batch_kernel,
    empirical_ntk,
    generalisation_curve,
    monte_carlo_kernels,
    prior_summary,
    random_features,
    score,
)
from priors.networks.criticality import critical_initialisation

META = torch.device("meta")


def generator():
    return torch.Generator().manual_seed(0)


X = torch.rand(8, 3, generator=generator(), dtype=torch.float64)
Y = (3 * X[:, :1]).sin() + X[:, 1:2]
Q = X[:3] + 0.01
LEVELS = torch.tensor([0.1, 0.9], dtype=torch.float64)


def mlp(activation=None):
    return nn.Sequential(nn.Linear(3, 6), activation or nn.ReLU(), nn.Linear(6, 1)).double()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.readout = nn.RNN(1, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x):
        return self.readout(self.cells(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.readout = nn.Linear(1, 6), nn.Linear(6, 1)
        self.positions = nn.Parameter(torch.zeros(3, 6))
        self.block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x):
        return self.readout(self.block(self.embedding(x) + self.positions).mean(1))


def network_kernels():
    convolution = nn.Sequential(
        nn.Conv1d(1, 4, 2, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8, 1)
    )
    modules = [
        (mlp(activation), (3,)) for activation in (nn.ReLU(), nn.Tanh(), nn.GELU(), nn.ELU())
    ]
    modules += [(convolution, (1, 3)), (Recurrent(), (3, 1)), (Attention(), (3, 1))]
    for module, shape in modules:
        network = InfiniteNetwork(
            module.double().eval(),
            bias_var=0.1,
            input_shape=shape,
            quadrature=QuasiMonteCarlo(64),
        )
        with META:
            kernels = network.kernels(X[:3])
            yield from (*kernels, network.ntk(X[:3], diag=True))
            parameters = [p for p in network.parameters() if p.requires_grad]
            yield from torch.autograd.grad(sum(k.sum() for k in kernels), parameters)


def other_kernels():
    module = mlp()
    prior = NetworkPrior(module, bias_var=0.1)
    infinite, tangent = InfiniteNetwork(module, bias_var=0.1), EmpiricalNTKKernel(prior)
    batch = EmpiricalNTKKernel(prior, parameters=prior.draw(torch.Size([2])))
    normalised = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
    kernels = [RandomFeatureKernel(random_features(infinite, 8, kind=k)) for k in ("nngp", "ntk")]
    with META:
        yield batch_kernel(normalised, X[:4], quadrature=QuasiMonteCarlo(64))
        yield empirical_ntk(module, dict(module.named_parameters()), X, Q)
        yield from (tangent(X).to_dense(), batch[1](X).to_dense())
        yield from (kernel(X).to_dense() for kernel in kernels)
        yield random_features(infinite, 8, kind="ntk", generator=generator())(X)
        yield UniversalFeatures(3, 12, max_norm=3.0, bias_var=0.1, generator=generator())(X)
        found = monte_carlo_kernels(prior, X, num_networks=2, generator=generator())
        yield from (found.nngp, found.ntk, found.ntk_error)
        critical_initialisation(torch.tanh)


def studies_of_priors():
    labels = (X[:, 0] > 0.5).long()
    kernel, shown = NTKKernel(mlp(), bias_var=0.1), GaussianProcessPrior(RBFKernel().double())
    with META:
        yield InfiniteDepthClassifier(torch.relu).fit(X, labels).decision(Q)
        curve = generalisation_curve(kernel, X, Y, [2, 4], repeats=2, generator=generator())
        yield from (curve.test, curve.train, curve.predicted.test, curve.sizes)
        yield prior_summary(shown, num_functions=2, generator=generator()).correlation


def function_priors():
    kernel = NTKKernel(mlp(), bias_var=0.1)
    scale = Gamma(torch.tensor(2.0), torch.tensor(1.0))
    priors = [GaussianProcessPrior(kernel), ScaleMixturePrior(kernel, scale), NetworkPrior(mlp())]
    with META:
        for prior in priors:
            yield prior.sample(Q, torch.Size([2]), generator=generator())
            yield prior.sample(Q)


def sampling():
    def program(draws, rows):
        return {"level": draws.normal(rows)}

    with META:
        sampler = AnnealedSampler(particles=8, moves=1, final_moves=1)
        latents, evidence = sampler.run(program, lambda z: -z["level"].square(), 2)
        yield from (latents["level"], evidence)


def of_posterior(posterior, y):
    yield from (posterior.mean, posterior.variance, posterior.cdf(y), posterior.log_prob(y))
    yield from (posterior.quantile(LEVELS), posterior.rsample(torch.Size([2])))
    score(posterior, y)


def engines():
    models = [
        process(X, Y, ScaleKernel(MaternKernel())) for process in (GaussianProcess, StudentTProcess)
    ]
    network = BayesianNetwork(X, Y, NetworkPrior(mlp(nn.Tanh()), bias_var=1.0))
    with META:
        network.fit(MeanField(num_steps=2, num_draws=4, progress=False))
        network.to_arviz()
    for model in [*models, network]:
        sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
        sampled = qLogExpectedImprovement(model, Y.max(), sampler)
        with META:
            posterior = model.posterior(Q, observation_noise=True)
            yield from of_posterior(posterior, Y[:3])
            yield model.posterior(Q).rsample(torch.Size([2]))
            yield LogExpectedImprovement(model, 0.6)(Q[:, None])
            yield UpperConfidenceBound(model, beta=2.0)(Q[:, None])
            yield sampled(Q[:, None])
            yield calibration(posterior, Y[:3]).empirical
    for model in models:
        with META:
            yield model.fit().posterior(Q).mean
    pool = MixturePosterior([models[0].posterior(Q), models[0].posterior(Q + 0.1)])
    with META:
        yield from of_posterior(pool, Y[:3])
        curved = TransformedPosterior(models[0].posterior(Q), TailCompression(Y))
        yield from of_posterior(curved, Y[:3])


def further_engines():
    kernel, labels = ScaleKernel(MaternKernel()), (X[:, :1] > 0.5).double()
    infinite = NTKKernel(mlp(), bias_var=0.1)
    scale = Gamma(*torch.tensor([2.0, 1.0], dtype=torch.float64))
    exact = [
        HeteroscedasticGaussianProcess(X, Y, kernel, num_noise_points=4),
        ScaleMixtureProcess(X, Y, MaternKernel(), scale=scale),
        ScaleMixtureProcess(X, Y, MaternKernel(), scale=scale, scale_noise=True),
    ]
    variational = [
        VariationalGaussianProcess(X, Y, kernel, likelihood=name, num_inducing=4)
        for name in ("gaussian", "student_t", "heteroscedastic")
    ]
    limits = [
        DeepKernelMachine(X, Y, layers=["relu", "squared exponential"], num_inducing=4),
        GradientDescentEnsemble(X, Y, mlp()),
        GradientDescentEnsemble(X, Y, mlp(), time=2.0, ridge=0.1),
    ]
    classifiers = [
        ScaleMixtureClassifier(X, labels, kernel, num_inducing=4),
        *(
            GaussianProcessClassifier(X, labels, kernel, likelihood=name, num_inducing=4)
            for name in ("softmax", "probit", "dirichlet")
        ),
    ]
    with META:
        for model in (*exact, *variational, *limits):
            model.fit(max_iter=2, progress=False)
            yield from of_posterior(model.posterior(Q, observation_noise=True), Y[:3])
            yield model.condition_on_observations(Q, Y[:3]).posterior(Q).mean
        for model in exact:
            yield from (model.leave_one_out().mean, model.log_marginal_likelihood())
        yield exact[0].noise_variance(Q)
        features = WeightSpaceProcess(X, Y, infinite, num_features=20).fit()
        yield from of_posterior(features.posterior(Q, observation_noise=True), Y[:3])
        yield features.condition_on_observations(Q, Y[:3]).log_marginal_likelihood()
        yield from (limits[2].leave_one_out().mean, limits[2].log_score(), *limits[0].grams(Q))
        for model in classifiers:
            model.fit(max_iter=2, progress=False)
            yield from (model.posterior(Q).mean, model.posterior(Q).rsample())
            yield model.posterior(Q, observation_noise=True).log_prob(labels[:3])


def matching():
    prior, target = NetworkPrior(mlp(), bias_var=1.0), GaussianProcessPrior(RBFKernel())
    with META:
        matched = match_functional_prior(prior, target, X, num_restarts=2)
        match_quality(matched, target, Q)
        yield from matched.parameters()


def networks():
    network = pfn.load("regression")
    sampler = SobolQMCNormalSampler(torch.Size([2]), seed=0)
    with META:
        for seed in (0, 1):
            model = network.condition(X, Y, num_orders=2, column_seed=seed)
            yield from of_posterior(model.posterior(Q, observation_noise=True), Y[:3])
            yield model.posterior(Q).joint_log_prob(Y[:3])
        yield LogExpectedImprovement(model, 0.6)(Q[:, None])
        yield model.condition_on_observations(Q, Y[:3]).posterior(Q).mean
        yield model.fantasize(Q[:2], sampler).posterior(Q).mean
        classes = pfn.load("classification").condition(X, (X[:, 0] > 0.5).long())
        yield from (classes.posterior(Q).mean, classes.posterior(Q).rsample())


def proposals():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objective = SyntheticObjective()

    def value(trial):
        suggest(trial, objective.space)
        return trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)

    for acquisition in ("logei", "lognei"):
        sampler = BayesianSampler(
            objective.space,
            hyperparameters=objective.hyperparameters,
            acquisition=acquisition,
            num_initial=2,
            seed=0,
        )
        with META:
            study = optuna.create_study(sampler=sampler)
            study.optimize(value, n_trials=3)
            study.ask()
            study.optimize(value, n_trials=1)
    yield X


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed = False
    cases = (network_kernels, other_kernels, studies_of_priors, function_priors, sampling)
    for case in (*cases, engines, further_engines, matching, networks, proposals):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number, found in enumerate(case()):
                    assert found.is_cpu, f"result {number} is on {found.device}"
        except Exception:
            failed = True
            sys.stdout.write(f"{case.__name__}:\n{traceback.format_exc()}\n")
    sys.exit(failed)
