"""Fast approximations: exact where they should be, and honest about what they are."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes import (
    BayesianNetwork,
    DeepEnsemble,
    Laplace,
    LogDensity,
    LowRank,
    MeanField,
    WeightPrior,
)
from bayes.inference.precisions import Implicit
from bayes.networks.density import NetworkPosterior
from bayes.testing import InferenceMethodContract
from priors import NetworkPrior

double = torch.float64
QUIET = {"progress": False}

pytestmark = pytest.mark.usefixtures("without_graphs")  # densities are small, fits short


class TestLowRank(InferenceMethodContract):
    effective = 1.0

    def make_method(self, seed):
        return LowRank(rank=2, num_draws=1000, num_steps=400, learning_rate=0.1, **QUIET, seed=seed)


class TestLaplace(InferenceMethodContract):
    effective = 1.0

    def make_method(self, seed):
        return Laplace(num_draws=1000, num_training_steps=100, **QUIET, seed=seed)


def data(n=12, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=double)
    Y = X @ torch.randn(d, 1, generator=generator, dtype=double)
    return X, Y + 0.3 * torch.randn(n, 1, generator=generator, dtype=double)


def linear(n=12, d=3):
    """Bayesian linear regression with known noise as a network, and its posterior at queries."""
    X, Y = data(n, d)
    prior = NetworkPrior(nn.Linear(d, 1), weight_var=1.7, bias_var=0.4)
    noise = torch.full((n, 1), 0.09, dtype=double)
    model = BayesianNetwork(
        X, Y, prior, train_Yvar=noise, input_transform=None, outcome_transform=None
    )
    Z = data(5, d, seed=1)[0]
    cov = 1.7 / d * (X @ X.mT) + 0.4 + 0.09 * torch.eye(n, dtype=double)
    cross = 1.7 / d * (Z @ X.mT) + 0.4
    mean = cross @ torch.linalg.solve(cov, Y)
    var = 1.7 / d * (Z @ Z.mT) + 0.4 - cross @ torch.linalg.solve(cov, cross.mT)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=double), cov)
    return model, Z, mean, var.diagonal().unsqueeze(-1), evidence.log_prob(Y[:, 0]).item()


@pytest.mark.parametrize(("n", "d"), [(12, 3), (3, 6)], ids=["more rows", "more weights"])
def test_laplace_is_exact_for_linear_regression(n, d):
    model, Z, mean, var, evidence = linear(n, d)
    model.fit(Laplace(num_draws=8000, num_starts=1, num_training_steps=50, **QUIET))
    assert model.draws.log_evidence == pytest.approx(evidence, abs=1e-6)
    posterior = model.posterior(Z)
    torch.testing.assert_close(posterior.mean, mean, atol=1e-6, rtol=0)  # draws in pairs
    # 4,000 pairs give a variance to sqrt(2 / 4000), five times that
    torch.testing.assert_close(posterior.variance, var, atol=0, rtol=0.12)


@pytest.mark.parametrize("learn", [False, True], ids=["noise", "noise and variances"])
@pytest.mark.parametrize(("n", "d"), [(12, 3), (3, 6)], ids=["more rows", "more weights"])
def test_noise_and_variances_are_those_of_the_largest_evidence(n, d, learn):
    """Of linear regression: all in closed form but the search, at whose end the slope is zero.

    Whose mode with the weights would have another noise, 0.4 lower in its logarithm here.
    """
    X, Y = data(n, d)
    prior = NetworkPrior(nn.Linear(d, 1), weight_var=1.7, bias_var=0.4)
    plain = {"input_transform": None, "outcome_transform": None}
    model = BayesianNetwork(X, Y, prior, learn_variances=learn, **plain)
    model.fit(Laplace(num_starts=1, num_training_steps=50, num_draws=4000, **QUIET))
    drawn = {name: value[0] for name, value in model.draws.samples.items() if name != "eps"}
    found = torch.cat([value.mean(0) for value in drawn.values()])
    laws = prior.variances.log_priors().values()

    def exact(h):
        weight, bias = torch.tensor(1.7), torch.tensor(0.4)
        if learn:
            weight, bias = ((m + s * z).exp() for (m, s), z in zip(laws, h, strict=False))
        covariance = weight / d * X @ X.mT + bias + h[-1].exp() * torch.eye(n, dtype=double)
        law = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=double), covariance)
        standard = torch.cat([h[:-1], (h[-1:] + 2) / 1.5])
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(standard).sum() - math.log(1.5)
        return law.log_prob(Y[:, 0]) + normal

    assert torch.func.grad(exact)(found).abs().max() < 1e-3
    precision = -torch.func.hessian(exact)(found)
    assert (torch.linalg.eigvalsh(precision) > 0).all()
    p = len(found)
    evidence = exact(found) + p / 2 * math.log(2 * math.pi) - torch.logdet(precision) / 2
    assert model.draws.log_evidence == pytest.approx(evidence.item(), abs=1e-4)
    noise = drawn["log_noise_var"]
    # a variance of 2,000 pairs to sqrt(2 / 2000)
    assert noise.var().item() == pytest.approx(1 / precision[-1, -1].item(), rel=0.15)
    if learn:  # which stay, and with which functions are drawn
        assert (drawn["whitened_log_var"] == drawn["whitened_log_var"][0]).all()
        weight, bias = ((m + s * z).exp() for (m, s), z in zip(laws, found, strict=False))
        Z = data(5, d, seed=1)[0]
        noise_var = found[-1].exp() * torch.eye(n, dtype=double)
        cross = weight / d * Z @ X.mT + bias
        covariance = weight / d * X @ X.mT + bias + noise_var
        mean = cross @ torch.linalg.solve(covariance, Y)
        var = weight / d * Z @ Z.mT + bias - cross @ torch.linalg.solve(covariance, cross.mT)
        posterior = model.posterior(Z)
        torch.testing.assert_close(posterior.mean, mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(posterior.variance[:, 0], var.diagonal(), atol=0, rtol=0.15)


def test_the_last_layer_has_the_noise_of_all_weights():
    """That of its own evidence would be that of features which pass through the data."""
    X, Y = data(20)
    found = []
    for weights in ("all", "last_layer"):
        model = BayesianNetwork(X, Y, network(width=2))
        model.fit(Laplace(weights, num_draws=2, num_starts=1, num_training_steps=10, **QUIET))
        found.append(model.draws.samples["log_noise_var"].mean())
    torch.testing.assert_close(*found)


def test_variances_are_learnt_in_single_precision():
    X, Y = data()
    found = []
    for dtype in (torch.float32, double):
        model = BayesianNetwork(
            X.to(dtype), Y.to(dtype), NetworkPrior(nn.Linear(3, 1)), learn_variances=True
        )
        model.fit(Laplace(num_draws=2, num_starts=1, num_training_steps=50, **QUIET))
        found.append(model.draws.samples["whitened_log_var"].mean((0, 1)).double())
        assert model.posterior(X.to(dtype)).mean.dtype == dtype
    torch.testing.assert_close(*found, atol=0.01, rtol=0)


def test_a_guide_of_full_rank_is_exact_for_linear_regression():
    model, Z, mean, var, evidence = linear()
    # of log densities, whose variance is 2, the mean of so many has an error of 0.0045
    settings = {"num_draws": 8000, "num_particles": 1000, "num_steps": 500, "learning_rate": 0.2}
    model.fit(LowRank(rank=4, **settings, **QUIET))
    posterior = model.posterior(Z)
    assert ((posterior.mean - mean).abs() < 5 * (var / 8000).sqrt() + 0.01 * var.sqrt()).all()
    torch.testing.assert_close(posterior.variance, var, atol=0, rtol=0.1)
    bound = model.draws.history[-100:].mean().item()
    assert bound == pytest.approx(evidence, abs=0.02)


def test_columns_stay_narrow_where_the_posterior_is():
    """Deviations of 0.02, steps of 0.03: in units of z, the columns' noise alone made it 5.6."""
    model, Z, _, var, _ = linear(300, 40)
    model.fit(LowRank(num_steps=400, num_draws=2000, **QUIET))
    assert (model.posterior(Z).variance / var).mean() < 3


def test_independent_guides_miss_correlations_and_their_bound_says_so():
    model, _, _, _, evidence = linear()
    model.fit(MeanField(num_steps=400, learning_rate=0.2, **QUIET))
    independent = model.draws.history[-100:].mean().item()
    assert independent < evidence
    eps = model.draws.samples["eps"][0]
    assert (torch.corrcoef(eps.mT) - torch.eye(4, dtype=double)).abs().max() < 0.25


def test_the_diagonal_is_that_of_the_precision():
    model, *_ = linear()
    fitted = {
        structure: model.fit(
            Laplace(
                structure=structure, num_draws=20000, num_starts=1, num_training_steps=50, **QUIET
            )
        ).draws.samples["eps"][0]
        for structure in ("full", "diagonal")
    }
    precision = torch.cov(fitted["full"].mT).inverse()
    torch.testing.assert_close(
        fitted["diagonal"].var(0), precision.diagonal().reciprocal(), atol=0, rtol=0.1
    )


def network(likelihood="gaussian", outputs=1, width=6):
    return NetworkPrior(nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs)))


def test_the_last_layer_is_linear_regression_on_the_features_at_the_mode():
    X, Y = data(20)
    noise = torch.full((20, 1), 0.09, dtype=double)
    model = BayesianNetwork(X, Y, network(), train_Yvar=noise)
    model.fit(Laplace(weights="last_layer", num_draws=4000, num_training_steps=100, **QUIET))
    eps = model.draws.samples["eps"][0]
    free = NetworkPosterior(model).last_layer()
    assert free.sum() == 7
    assert (eps.std(0)[~free] == 0).all()

    mode = eps.mean(0)
    weights = model.whitening.weights(mode)
    Z = data(5, seed=1)[0]

    def features(x):
        inputs = model.transformed_inputs(x)
        hidden = torch.tanh(inputs @ weights["0.weight"].mT + weights["0.bias"])
        std = model.prior.parameter_std()
        return torch.cat([std["2.weight"] * hidden, std["2.bias"].expand(len(x), 1)], -1)

    targets, known = model.targets()
    design = features(X) / known.sqrt()
    precision = torch.eye(7, dtype=double) + design.mT @ design
    at = features(Z)
    mean = at @ torch.linalg.solve(precision, design.mT @ (targets / known.sqrt()))
    var = (at @ torch.linalg.solve(precision, at.mT)).diagonal().unsqueeze(-1)
    f = model.functions_of_draws(Z)
    torch.testing.assert_close(f.mean(0), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(f.var(0), var, atol=0, rtol=0.15)


def curvature_by_hand(model, position):
    """I + J^T L J of a Gaussian or categorical likelihood, all by finite differences of f."""
    posterior = NetworkPosterior(model)
    number = posterior.num_weights
    columns = []
    for i in range(number):
        step = torch.zeros_like(position)
        step[i] = 1e-5
        change = posterior.functions(position + step) - posterior.functions(position - step)
        columns.append(change / 2e-5)
    return torch.stack(columns, -1)  # [n, k, D]


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "poisson"])
def test_precision_of_a_network(likelihood):
    X, Y = data(15)
    outputs = 3 if likelihood == "categorical" else 1
    if likelihood == "categorical":
        Y = (Y - Y.min()).clamp(max=2.99).floor()
        Y[:3, 0] = torch.tensor([0.0, 1.0, 2.0])
    elif likelihood == "poisson":
        Y = (Y - Y.min()).floor()
    model = BayesianNetwork(X, Y, network(outputs=outputs), likelihood=likelihood)
    model.fit(Laplace(num_draws=30000, num_starts=1, num_training_steps=100, **QUIET))
    posterior = NetworkPosterior(model)
    center = torch.cat([value for value in model.draws.center.values()])
    J = curvature_by_hand(model, center)
    f = posterior.functions(center)
    if likelihood == "categorical":
        p = f.softmax(-1)
        L = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    elif likelihood == "poisson":
        L = model.likelihood.noise_free(f, {}).unsqueeze(-1)
    else:
        L = (-center[-1]).exp().expand(15, 1, 1)
    precision = torch.eye(posterior.num_weights, dtype=double)
    precision = precision + torch.einsum("nia,nij,njb->ab", J, L, J)
    exact = precision.inverse()
    found = torch.cov(model.draws.samples["eps"][0].mT)
    # 15,000 pairs: an entry to sqrt(2 / 15000) of its variances
    scale = (exact.diagonal()[:, None] * exact.diagonal()).sqrt()
    assert ((found - exact).abs() < 0.06 * scale).all()
    # the evidence is that of the whole formula
    total = posterior.log_prior(center) + posterior.log_likelihood(center).sum()
    log_det = torch.logdet(precision)
    if likelihood == "gaussian":
        # the noise has the curvature of the evidence given it
        number, y = posterior.num_weights, model.targets()[0]
        eye, inner = torch.eye(number, dtype=double), torch.einsum("nia,nib->ab", J, J)

        def given(log_var):
            here = torch.cat([center[:-1], log_var.unsqueeze(0)])
            inverse = (-log_var).exp()
            slope = torch.einsum("nia,ni->a", J, (y - f)) * inverse - center[:-1]
            P = eye + inner * inverse
            gain = slope @ torch.linalg.solve(P, slope) - torch.logdet(P)
            likelihood = -0.5 * ((y - f).square() * inverse + log_var).sum()
            return likelihood + posterior.log_prior(here) + 0.5 * gain

        step = 1e-3
        low, middle, high = (given(center[-1] + c * step) for c in (-1, 0, 1))
        log_det = log_det + (-(high - 2 * middle + low) / step**2).log()
        total = total - 15 * Y.std().log()  # in units of Y
    evidence = total + len(center) / 2 * math.log(2 * math.pi) - log_det / 2
    assert model.draws.log_evidence == pytest.approx(evidence.item(), abs=1e-4)


def test_functions_are_those_of_the_linearised_network():
    X, Y = data(10)
    model = BayesianNetwork(X, Y, network(), train_Yvar=torch.full_like(Y, 0.09))
    model.fit(Laplace(num_draws=6, num_starts=1, num_training_steps=50, **QUIET))
    Z = data(4, seed=3)[0]
    posterior = NetworkPosterior(model)
    center = torch.cat(list(model.draws.center.values()))
    full = torch.cat(list(model.draws.samples.values()), -1)[0]
    J = torch.func.jacrev(lambda p: posterior.functions(p, Z))(center)
    expected = posterior.functions(center, Z) + torch.einsum("qkd,sd->sqk", J, full - center)
    torch.testing.assert_close(model.functions_of_draws(Z), expected)
    model.fit(Laplace(num_draws=6, num_starts=1, num_training_steps=5, linearised=False, **QUIET))
    full = torch.cat(list(model.draws.samples.values()), -1)[0]
    torch.testing.assert_close(model.functions_of_draws(Z), posterior.functions(full, Z))


def test_linearised_draws_are_saved(tmp_path):
    X, Y = data(10)
    model = BayesianNetwork(X, Y, network(), train_Yvar=torch.full_like(Y, 0.09))
    model.fit(Laplace(num_draws=6, num_starts=1, num_training_steps=5, **QUIET))
    model.save(tmp_path / "m")
    again = BayesianNetwork.load(tmp_path / "m", network())
    assert again.draws.log_evidence == model.draws.log_evidence
    assert again.draws.num_gradients is None
    torch.testing.assert_close(again.posterior(X).mean, model.posterior(X).mean)
    assert again.to(torch.float32).draws.center["eps"].dtype == torch.float32


def test_laplace_of_a_pyro_model_takes_the_curvature_of_its_unconstrained_density():
    y = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=double)

    def model():
        rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), 1.0))
        pyro.sample("y", dist.Poisson(rate).expand([4]).to_event(1), obs=y)

    draws = Laplace(num_draws=40000, num_training_steps=50, **QUIET).run(model, y)
    # log rate of Gamma(a, b): mode log(a / b), curvature a
    log_rate = draws.samples["rate"][0].log()
    assert log_rate.mean().item() == pytest.approx(math.log(11 / 5), abs=1e-6)
    assert log_rate.var().item() == pytest.approx(1 / 11, rel=0.03)
    exact = math.lgamma(11) - 11 * math.log(5) - sum(math.lgamma(v + 1) for v in y.tolist())
    assert draws.log_evidence == pytest.approx(exact, abs=1 / (12 * 11) + 1e-4)  # Stirling's


def test_laplace_refuses_what_has_no_maximum():
    saddle = LogDensity(lambda x: x[:, 0] ** 2 - x[:, 1] ** 2, 2)
    with pytest.raises(RuntimeError, match="Laplace"):
        Laplace(num_training_steps=20, **QUIET).run(saddle, torch.zeros(1, dtype=double))
    normal = LogDensity(lambda x: -(x**2).sum(-1), 2)
    with pytest.raises(NotImplementedError, match="last_layer"):
        Laplace(weights="last_layer", **QUIET).run(normal, torch.zeros(1, dtype=double))


def test_kronecker_factors_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    X, Y = data()
    model = BayesianNetwork(X, Y, network())
    with pytest.raises(ImportError, match=r"pip install wideprior\[curvature\]"):
        model.fit(Laplace(structure="kronecker", num_starts=1, num_training_steps=5, **QUIET))


def test_laplace_says_where_it_needs_float64():
    """Rows that tell nearly the same, of little noise: I + A A' has a condition of 1e10."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(2, 3, 60, generator=generator, dtype=double)
    rows = 1e4 * few[0, :, :30].mT @ few[1]
    with pytest.raises(RuntimeError, match="no Cholesky factor in float32; .* float64"):
        Implicit(rows.float())
    exact = torch.linalg.svdvals(rows).square().log1p().sum()
    assert Implicit(rows).log_det == pytest.approx(float(exact), rel=1e-6)


def test_a_guide_that_diverges_is_told():
    quartic = LogDensity(lambda x: -x.pow(4).sum(-1), 2)
    method = MeanField(learning_rate=1e80, num_steps=50, progress=False)
    with pytest.raises(RuntimeError, match="MeanField diverged: its parameters are no longer fin"):
        method.run(quartic, torch.zeros(1, dtype=double))


def test_members_reach_modes_of_their_own():
    # two modes of equal height
    def double_well(x):
        return -5 * (x.square() - 1).square().sum(-1)

    draws = DeepEnsemble(num_members=40, num_training_steps=300, learning_rate=0.1, **QUIET).run(
        LogDensity(double_well, 1), torch.zeros(1, dtype=double)
    )
    x = draws.samples["x"]
    assert x.shape == (1, 40, 1)
    torch.testing.assert_close(x.abs(), torch.ones_like(x), atol=1e-3, rtol=0)
    assert 5 < (x > 0).sum() < 35


def wide_network():
    """Rows, and a network whose prior is tens of deviations and noise of e^20 away from them."""
    X = torch.linspace(-2, 2, 40, dtype=double).unsqueeze(-1)
    Y = (3 * X).sin() + 0.1 * torch.randn(X.shape, generator=torch.manual_seed(0), dtype=double)
    layers = nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    prior = NetworkPrior(nn.Sequential(*layers), weight_var=16.0, bias_var=1.0)
    return BayesianNetwork(X, Y, prior, likelihood="heteroscedastic")


def standardised(Y):
    return (Y - Y.mean()) / Y.std()


def test_members_of_a_wide_prior_all_find_the_data():
    model = wide_network()
    model.fit(DeepEnsemble(num_members=20, num_training_steps=500, **QUIET))
    f = model.functions_of_draws(model.train_X)
    assert f.shape == (20, 40, 2)
    errors = (f[..., :1] - standardised(model.train_Y)).square().mean((1, 2))
    assert errors.max() < 0.5  # of a variance of 1


def test_a_guide_of_a_wide_prior_finds_the_data():
    """It began at a draw, with deviations that were too large for any gradient to be seen."""
    model = wide_network().fit(MeanField(num_steps=1000, **QUIET))
    mean = model.functions_of_draws(model.train_X)[..., :1].mean(0)
    assert (mean - standardised(model.train_Y)).square().mean() < 1


def test_members_of_minibatches_reach_the_same_mode():
    model, Z, mean, _, _ = linear()
    model.fit(DeepEnsemble(num_members=3, num_training_steps=300, learning_rate=0.3, **QUIET))
    torch.testing.assert_close(model.posterior(Z).mean, mean, atol=1e-3, rtol=0)
    some = DeepEnsemble(
        num_members=3, num_training_steps=600, learning_rate=0.3, batch_size=4, **QUIET
    )
    torch.testing.assert_close(model.fit(some).posterior(Z).mean, mean, atol=0.05, rtol=0)


def test_a_weight_on_the_likelihood_is_so_many_copies_of_the_data():
    model, Z, *_ = linear()
    X, Y = data(12)
    copies = BayesianNetwork(
        X.repeat(3, 1),
        Y.repeat(3, 1),
        model.prior,
        train_Yvar=torch.full((36, 1), 0.09, dtype=double),
        input_transform=None,
        outcome_transform=None,
    )
    settings = {"rank": 4, "num_steps": 500, "learning_rate": 0.2, "num_draws": 4000, **QUIET}
    model.fit(LowRank(likelihood_weight=3.0, **settings))
    copies.fit(LowRank(**settings))
    one, other = model.posterior(Z), copies.posterior(Z)
    assert ((one.mean - other.mean).abs() < 0.1 * other.variance.sqrt()).all()
    torch.testing.assert_close(one.variance, other.variance, atol=0, rtol=0.15)


@pytest.mark.slow
def test_the_data_emphasised_bound_underfits_less():
    # many more weights than rows: independent guides leave most of them at their prior
    generator = torch.Generator().manual_seed(0)
    X = torch.linspace(-1, 1, 12, dtype=double).unsqueeze(-1)
    Y = torch.sin(4 * X) + 0.1 * torch.randn(12, 1, generator=generator, dtype=double)
    prior = NetworkPrior(nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1)))
    model = BayesianNetwork(X, Y, prior, train_Yvar=torch.full_like(Y, 0.01))
    error = {}
    for weight in (1.0, "data"):
        model.fit(MeanField(num_steps=500, learning_rate=0.1, likelihood_weight=weight, **QUIET))
        error[weight] = (model.posterior(X).mean - Y).square().mean().sqrt().item()
    assert error["data"] < 0.6 * error[1.0]


def test_what_cannot_be_weighted_is_refused():
    with pytest.raises(NotImplementedError, match="likelihood_weight"):
        MeanField(likelihood_weight=2.0, **QUIET).run(
            LogDensity(lambda x: -x.square().sum(-1), 1), torch.zeros(1)
        )
    with pytest.raises(ValueError, match="likelihood_weight"):
        MeanField(likelihood_weight="rows")
    for method, match in (
        (lambda: LowRank(rank=0), "rank"),
        (lambda: Laplace(weights="first"), "weights"),
        (lambda: Laplace(structure="block"), "structure"),
        (lambda: DeepEnsemble(num_members=0), "num_members"),
        (lambda: DeepEnsemble(batch_size=0), "batch_size"),
    ):
        with pytest.raises(ValueError, match=match):
            method()
    density = LogDensity(lambda x: -x.square().sum(-1), 1)
    with pytest.raises(ValueError, match="rows"):
        DeepEnsemble(batch_size=2, **QUIET).run(density, torch.zeros(1))


def test_sample_paths_of_linearised_draws():
    X, Y = data(10)
    model = BayesianNetwork(X, Y, network(), train_Yvar=torch.full_like(Y, 0.09))
    model.fit(Laplace(num_draws=6, num_starts=1, num_training_steps=5, **QUIET))
    path = model.sample_path(torch.Size([5]), generator=torch.Generator().manual_seed(0))
    Z = data(4, seed=3)[0]
    values = path(Z.expand(5, 4, 3))
    functions = model.outcome_transform.transform(model.functions_of_draws(Z))
    torch.testing.assert_close(values, functions[path.index])


def test_laplace_refuses_other_weights():
    X, Y = data(10)
    model = BayesianNetwork(X, Y, WeightPrior(network(), weights="laplace"))
    with pytest.raises(NotImplementedError, match="Gaussian weights"):
        model.fit(Laplace(**QUIET))
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    scaled = NetworkPrior(module, ard_num_dims=3)
    model = BayesianNetwork(X, Y, scaled, learn_variances=True)
    with pytest.raises(NotImplementedError, match="fixed length scales"):
        model.fit(Laplace(**QUIET))
    model = BayesianNetwork(X, Y, network(), learn_variances=True)
    with pytest.raises(NotImplementedError, match=r'structure="diagonal"\) needs fixed variances'):
        model.fit(Laplace(structure="diagonal", **QUIET))


def test_the_evidence_is_of_outcomes_in_their_own_units():
    X, Y = data(10)
    found = []
    for unit in (1.0, 1024.0):  # a power of two, so that all else is the same to the last bit
        known = torch.full_like(Y, 0.09 * unit**2)
        model = BayesianNetwork(X, unit * Y, network(), train_Yvar=known)
        model.fit(Laplace(num_draws=4, num_starts=1, num_training_steps=50, **QUIET))
        found.append(model.draws.log_evidence)
    assert found[0] - found[1] == pytest.approx(10 * math.log(1024.0), abs=1e-6)


def test_data_outnumbering_weights_count_as_they_are():
    model, *_ = linear(n=12, d=3)
    X, _ = data(12)
    settings = {"num_steps": 20, "num_draws": 4, **QUIET}
    drawn = [
        model.fit(LowRank(likelihood_weight=weight, **settings)).draws.samples["eps"]
        for weight in (1.0, "data")
    ]
    assert torch.equal(*drawn)
