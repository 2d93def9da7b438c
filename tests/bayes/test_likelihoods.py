"""Likelihoods against SciPy's densities, quadrature and Pyro, each in a model of its own."""

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Gamma, InverseGamma
from torch.distributions.transforms import ExpTransform

from bayes import BayesianNetwork, MeanField, WeightPrior, student_t_weights
from bayes.inference import ChEES
from bayes.inference.graphs import Graph, captured
from bayes.inference.log_density import value_and_gradient
from bayes.inference.pyro_density import density_of
from bayes.likelihoods import (
    Categorical,
    Gaussian,
    Heteroscedastic,
    HeteroscedasticStudentT,
    Ordinal,
    Poisson,
    StudentT,
    named,
)
from bayes.networks.density import NetworkPosterior
from priors import CategoricalPosterior, ClassProbabilityPosterior
from priors.networks.finite import NetworkPrior

FAST = MeanField(num_steps=15, num_draws=12, progress=False)
pytestmark = pytest.mark.usefixtures("without_graphs")  # fits are of a few steps
NAMES = ["gaussian", "heteroscedastic", "student_t", "heteroscedastic_student_t"]
NAMES += ["categorical", "ordinal", "poisson"]


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outcomes(name, n=7, m=2, dtype=torch.float64):
    """Outcomes of a likelihood, and how many outputs its network has."""
    if name in ("categorical", "ordinal"):
        Y = torch.arange(n).remainder(3)[:, None]
        return Y.to(dtype), 3 if name == "categorical" else 1
    Y = normals(n, m, seed=1, dtype=dtype)
    if name == "poisson":
        return (2 * Y).abs().round(), m
    return 3 * Y + 1, 2 * m if name.startswith("heteroscedastic") else m


def case(name, chains=4):
    """A likelihood, outcomes, network outputs of some chains and generic parameters."""
    Y, k = outcomes(name)
    likelihood = named(name).fitted_to(Y, k)
    parameters = {
        site: 0.3 * normals(chains, len(prior), seed=3) - 0.2
        for site, prior in likelihood.priors(Y.shape[-1]).items()
    }
    return likelihood, Y, normals(chains, len(Y), k, seed=2), parameters


def by_scipy(name, Y, f, parameters):
    """Log likelihoods `[chains, n, m]`, from the definitions."""
    y, f = Y.numpy(), f.numpy()
    own = {site: value[..., None, :].numpy() for site, value in parameters.items()}
    if name == "gaussian":
        return stats.norm.logpdf(y, f, np.exp(own["log_noise_var"] / 2))
    if name == "heteroscedastic":
        mean, log_var = np.split(f, 2, axis=-1)
        return stats.norm.logpdf(y, mean, np.exp((log_var - 2) / 2))
    if name == "heteroscedastic_student_t":
        mean, log_square = np.split(f, 2, axis=-1)
        df = 1 + np.exp(own["log_excess_df"])
        return stats.t.logpdf(y, df, mean, np.exp((log_square - 2) / 2))
    if name == "student_t":
        df = 1 + np.exp(own["log_excess_df"])
        return stats.t.logpdf(y, df, f, np.exp(own["log_scale"]))
    if name == "poisson":
        return stats.poisson.logpmf(y, y.mean(0) * np.exp(f))
    if name == "categorical":
        shares = np.exp(f) / np.exp(f).sum(-1, keepdims=True)
    else:
        first, gap = np.split(own["raw_cuts"], 2, axis=-1)
        low, high = (stats.logistic.cdf(c - f) for c in (first, first + np.exp(gap)))
        shares = np.concatenate([low, high - low, 1 - high], axis=-1)
    return np.log(sum((y == c) * shares[..., c : c + 1] for c in range(3)))


def fitted(name, dtype=torch.float64, likelihood=None, weights="normal"):
    """A network of that likelihood with a dozen draws."""
    Y, k = outcomes(name, n=9, dtype=dtype)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, k))
    prior = NetworkPrior(module, weight_var=2.0, bias_var=0.5)
    prior = WeightPrior(prior, **WEIGHTS[weights])
    X = normals(9, 2, seed=4, dtype=dtype)
    return BayesianNetwork(X, Y, prior, likelihood=likelihood or name).fit(FAST)


@pytest.mark.parametrize("name", NAMES)
def test_densities_are_those_of_scipy(name):
    likelihood, Y, f, parameters = case(name)
    found = likelihood.log_prob(Y, f, parameters)
    assert found.shape == (4, *Y.shape)
    assert np.allclose(found, by_scipy(name, Y, f, parameters), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_hessians_by_differences_of_gradients(name):
    likelihood, Y, f, parameters = case(name)
    found = likelihood.hessian(Y, f, parameters)

    def gradient(f):
        f = f.clone().requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(Y, f, parameters).sum(), f)
        return slope

    step = 1e-5 * torch.eye(f.shape[-1], dtype=f.dtype)
    columns = [(gradient(f + s) - gradient(f - s)) / 2e-5 for s in step]
    assert torch.allclose(found, torch.stack(columns, dim=-1), atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_curvatures_are_of_the_density_or_expected(name):
    """E[second derivatives of outcomes drawn given f] = E[outer products of slopes], Fisher's."""
    likelihood, Y, f, parameters = case(name)
    found = likelihood.curvature(Y, f, parameters)
    assert (torch.linalg.eigvalsh(found) > -1e-9).all()
    f, parameters = f[:1], {site: value[:1] for site, value in parameters.items()}
    number, generator = 4000, torch.Generator().manual_seed(0)
    many = f.expand(number, *f.shape[1:]).clone().requires_grad_()
    own = {site: value.expand(number, -1) for site, value in parameters.items()}
    drawn = likelihood.sample(many.detach(), own, generator=generator)
    log_prob = torch.func.vmap(likelihood.log_prob)(drawn, many, own)
    (slope,) = torch.autograd.grad(log_prob.sum(), many)
    outer = slope.unsqueeze(-1) * slope.unsqueeze(-2)
    error = outer.std(0) / number**0.5
    # of outcomes themselves where it does not depend on them, by their distribution otherwise
    curvatures = [likelihood.curvature(y, f, parameters)[0] for y in drawn[:200]]
    each = torch.stack(curvatures)
    error = (error.square() + each.var(0) / len(each)).sqrt()
    assert ((each.mean(0) - outer.mean(0)).abs() < 5 * error + 1e-9).all()


def test_hessian_of_known_variances():
    Y, f, known = normals(5, 2), normals(3, 5, 2, seed=1), 0.5 + normals(5, 2, seed=2).square()
    found = Gaussian().hessian(Y, f, {}, known)
    assert torch.allclose(found, torch.diag_embed(-1 / known).expand(3, 5, 2, 2))


MIXED = {"0": "laplace", "2": student_t_weights(5.0)}
WEIGHTS = {
    "normal": {},
    "laplace": {"weights": "laplace"},
    "by layer": {"weights": MIXED},
    "scale": {"readout_scale": InverseGamma(3.0, 2.0)},
    "variances": {"learn_variances": True},
    "all": {"weights": MIXED, "readout_scale": Gamma(2.0, 1.5), "learn_variances": True},
}


def log_prior_of_weights(name, eps, parameters):
    """Of whitened weights `[chains, size]` of layers of 2 and 3 inputs, from the definitions."""
    laplace = stats.laplace(scale=0.5**0.5)
    first = laplace if name in ("laplace", "by layer", "all") else stats.norm
    second = {"laplace": laplace, "by layer": stats.t(5, scale=0.6**0.5)}
    second["all"] = second["by layer"]
    outputs = (eps.shape[-1] - 9) // 4
    weights, bias, more, last = eps.split([6, 3, 3 * outputs, outputs], dim=-1)
    total = first.logpdf(weights).sum(-1) + second.get(name, stats.norm).logpdf(more).sum(-1)
    total += stats.norm.logpdf(bias).sum(-1) + stats.norm.logpdf(last).sum(-1)
    if "log_readout_scale" in parameters:
        log_s = parameters["log_readout_scale"][:, 0].numpy()
        law = stats.gamma(2, scale=1 / 1.5) if name == "all" else stats.invgamma(3, scale=2)
        total += law.logpdf(np.exp(log_s)) + log_s
    if "whitened_log_var" in parameters:
        assert parameters["whitened_log_var"].shape[-1] == 4
        total += stats.norm.logpdf(parameters["whitened_log_var"]).sum(-1)
    return total


# the others put the same parts together
FEW = [("student_t", "normal"), ("categorical", "normal"), ("gaussian", "all")]
JOINTS = [(name, "normal") for name in NAMES] + [
    ("gaussian", name) for name in WEIGHTS if WEIGHTS[name]
]


@pytest.mark.parametrize(
    ("name", "weights"),
    [case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in JOINTS],
)
def test_the_joint_density_is_that_of_pyro_and_of_scipy(name, weights):
    model = fitted(name, weights=weights)
    target = NetworkPosterior(model)
    ours, theirs = target.log_density(), density_of(model.pyro_model, model.train_X)
    x = 0.5 * normals(4, ours.dimension)
    graph = captured(lambda position: value_and_gradient(ours.function, position), x + 0.1)
    assert isinstance(graph, Graph)  # as samplers run it
    assert torch.allclose(graph(x)[1], value_and_gradient(ours.function, x)[1])
    value, gradient = value_and_gradient(ours.function, x)
    other, slope = value_and_gradient(theirs.function, x)
    assert torch.allclose(value, other)
    assert torch.allclose(gradient, slope)
    eps, parameters = target.split(x)
    truth = log_prior_of_weights(weights, eps, parameters)
    for site, prior in target.parameter_priors().items():
        if site in model.likelihood.priors(model.train_Y.shape[-1]):
            mean, std = prior.tensors(x)
            truth = truth + stats.norm.logpdf(parameters[site], mean, std).sum(-1)
    assert np.allclose(target.log_prior(x), truth)
    f = target.functions(x)
    truth = truth + by_scipy(name, model.targets()[0], f, parameters).sum((-2, -1))
    assert np.allclose(value, truth)
    parts = [ours.rows.function(x, torch.arange(k, k + 3)) for k in range(0, 9, 3)]
    assert torch.allclose(torch.stack(parts).mean(0), value)
    half = target.log_likelihood(x, torch.tensor([4, 1]))
    assert torch.allclose(half, target.log_likelihood(x)[:, [4, 1]])


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name):
    """Frequencies of classes and counts, and the distribution function of real outcomes."""
    likelihood, Y, f, parameters = case(name, chains=1)
    size = 4000
    many = f.expand(size, *f.shape[1:])
    drawn = likelihood.sample(many, parameters, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (size, *Y.shape)
    every = likelihood.of_outcomes(f, parameters, range(likelihood.num_outputs(Y.shape[-1])))
    if likelihood.real_valued:
        u = every.cdf(drawn)
        assert ((u.mean(0) - 0.5).abs() < 5 * (1 / 12 / size) ** 0.5).all()
        assert ((u.var(0) - 1 / 12).abs() < 5 * (1 / 180 / size) ** 0.5).all()
        return
    for value in range(3):
        p = likelihood.log_prob(torch.full_like(Y, value), f, parameters)[0].exp()
        error = (p * (1 - p) / size).sqrt()
        assert (((drawn == value).double().mean(0) - p).abs() < 5 * error).all()


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_averages_over_draws(name):
    model = fitted(name)
    X = normals(2, 3, 2, seed=5)
    log_prob = NetworkPosterior(model).model.likelihood.log_prob
    Y = outcomes(name, n=3)[0]
    y = model.posterior(X, observation_noise=True)
    transform = model.outcome_transform
    z = Y if transform is None else transform(Y)[0]
    parameters = {site: value.flatten(0, 1) for site, value in model.draws.samples.items()}
    f = model.functions_of_draws(X)
    each = torch.stack([log_prob(z, f[:, k], parameters) for k in range(2)], dim=1)
    truth = each.exp().mean(0).log()
    if transform is not None:
        truth = truth - transform.scale.log()
    assert torch.allclose(y.log_prob(Y.expand(2, *Y.shape)), truth)
    assert y.mean.shape == (2, 3, model.num_outputs)
    noise_free = model.posterior(X)
    assert torch.allclose(noise_free.mean, y.mean)
    assert noise_free.rsample(torch.Size([5])).shape == (5, 2, 3, model.num_outputs)
    if model.likelihood.classes:
        assert isinstance(y, CategoricalPosterior)
        assert isinstance(noise_free, ClassProbabilityPosterior)
        assert torch.allclose(y.mean.sum(-1), torch.ones(2, 3, dtype=torch.float64))
        assert torch.allclose(noise_free.log_prob(Y), y.log_prob(Y.expand(2, *Y.shape)))
    else:
        inner = y if transform is None else y.base
        assert (y.variance >= noise_free.variance).all() or "student_t" in name
        assert inner.shape == y.shape
        assert torch.allclose(
            model.posterior(X, output_indices=[1], observation_noise=True).mean, y.mean[..., 1:]
        )


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_files_know_the_likelihood(name, dtype, tmp_path):
    model = fitted(name, dtype)
    model.save(tmp_path / "network")
    loaded = BayesianNetwork.load(tmp_path / "network", model.prior)
    assert loaded.likelihood == model.likelihood
    X = normals(4, 2, seed=5, dtype=dtype)
    before, after = (m.posterior(X, observation_noise=True) for m in (model, loaded))
    assert torch.equal(before.mean, after.mean)
    assert before.mean.dtype == dtype
    assert type(model.likelihood).__name__ in repr(loaded)
    for value in loaded.likelihood_of_draws().values():
        assert value.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_arviz_gets_the_pointwise_likelihood(name):
    model = fitted(name)
    exported = model.to_arviz()
    found = torch.as_tensor(exported.log_likelihood["y"].values).flatten(0, 1)
    truth = model.posterior(model.train_X, observation_noise=True).log_prob(model.train_Y)
    assert torch.allclose(found.exp().mean(0).log(), truth)
    assert exported.posterior_predictive["y"].shape == (1, 12, *model.train_Y.shape)
    for parameter, value in model.likelihood_of_draws().items():
        assert np.allclose(exported.posterior[parameter].values[0], value)


def test_a_likelihood_of_ones_own(tmp_path):
    """A subclass without settings of its own; its file needs it again."""

    class Sharp(Gaussian):
        pass

    model = fitted("gaussian", likelihood=Sharp((-4.0, 0.5)))
    model.save(tmp_path / "network")
    with pytest.raises(ValueError, match="likelihood Sharp; pass it to load"):
        BayesianNetwork.load(tmp_path / "network", model.prior)
    loaded = BayesianNetwork.load(tmp_path / "network", model.prior, likelihood=Sharp((-4.0, 0.5)))
    assert torch.equal(loaded.noise_var_of_draws(), model.noise_var_of_draws())
    known = fitted("gaussian")
    known.save(tmp_path / "known")
    with pytest.raises(ValueError, match="load knows it and needs none"):
        BayesianNetwork.load(tmp_path / "known", known.prior, likelihood=Gaussian())


def test_settings():
    Y, k = outcomes("gaussian")
    assert set(StudentT(df=4).priors(2)) == {"log_scale"}
    f, scale = normals(3, 7, 2), {"log_scale": normals(3, 2, seed=1)}
    truth = stats.t.logpdf(Y, 4, f, scale["log_scale"].exp()[:, None])
    assert np.allclose(StudentT(df=4).log_prob(Y, f, scale), truth)
    headed, both = HeteroscedasticStudentT(df=4), torch.cat([f, normals(3, 7, 2, seed=2)], -1)
    assert headed.priors(2) == headed.constrained({}) == {}
    truth = stats.t.logpdf(Y, 4, f, (both[..., 2:] / 2 - 1).exp())
    assert np.allclose(headed.log_prob(Y, both, {}), truth)
    found = headed.of_outcomes(both, {}, [1]).log_prob(Y[:, 1:])
    assert np.allclose(found, np.log(np.exp(truth[..., 1:]).mean(0)))
    with pytest.raises(ValueError, match='HeteroscedasticStudentT needs .*="heteroscedastic"'):
        HeteroscedasticStudentT(df=1.0)
    counts, _ = outcomes("poisson")
    rate = Poisson(log_base_rate=(0.0, 1.0)).fitted_to(counts, 2)
    truth = stats.poisson.logpmf(counts, torch.exp(f + torch.tensor([0.0, 1.0])))
    assert np.allclose(rate.log_prob(counts, f, {}), truth)
    nothing = Poisson().fitted_to(torch.zeros(10, 1), 1)
    assert nothing.log_base_rate == pytest.approx((np.log(0.05),))
    ordinal = Ordinal(num_classes=5).fitted_to(outcomes("ordinal")[0], 1)
    means, _ = ordinal.priors(1)["raw_cuts"].tensors(torch.zeros(1, dtype=torch.float64))
    at_zero = ordinal.noise_free(torch.zeros(1, 1, dtype=torch.float64), {"raw_cuts": means})
    assert torch.allclose(at_zero, at_zero.new_full((1, 5), 0.2))
    middle = Heteroscedastic(log_noise_var=0.0)
    zero = torch.zeros(7, 4, dtype=torch.float64)
    assert np.allclose(middle.log_prob(Y, zero, {}), stats.norm.logpdf(Y))


def test_ordinal_probabilities_far_from_the_cuts():
    ordinal = Ordinal(num_classes=3)
    raw = torch.tensor([[-1.0, 0.5]])
    Y = torch.tensor([[1.0]])
    for f in (-200.0, 200.0):  # log of sigmoid(b - f) - sigmoid(a - f) is linear there
        at = torch.full((1, 1, 1), f, requires_grad=True)
        value = ordinal.log_prob(Y, at, {"raw_cuts": raw})
        (slope,) = torch.autograd.grad(value.sum(), at)
        assert float(slope) == pytest.approx(-np.sign(f), abs=1e-4)
        assert float(value.detach()) == pytest.approx(-200, abs=3)


def test_outcomes_are_checked():
    X = normals(6, 2)
    prior = {k: NetworkPrior(nn.Linear(2, k)) for k in (1, 2, 3, 4)}
    Y = torch.tensor([0.0, 1, 2, 0, 1, 2]).double()[:, None]

    def make(k, Y, likelihood, **settings):
        return BayesianNetwork(X, Y, prior[k], likelihood=likelihood, **settings)

    with pytest.raises(ValueError, match="has 3 outputs, but Gaussian needs 1: one for each"):
        make(3, Y, "gaussian")
    with pytest.raises(ValueError, match="Heteroscedastic needs 2: one for the mean and one"):
        make(1, Y, "heteroscedastic")
    with pytest.raises(ValueError, match="class 2, .* each of the network's 2 outputs, 0 to 1"):
        make(2, Y, "categorical")
    with pytest.raises(ValueError, match=r"Categorical needs train_Y of class numbers .* got 0\.5"):
        make(3, Y / 2, "categorical")
    with pytest.raises(ValueError, match="each of 2 or more classes, got 1"):
        make(1, Y * 0, "categorical")
    with pytest.raises(ValueError, match=r"one column .*argmax\(-1, keepdim=True\)"):
        make(3, nn.functional.one_hot(Y[:, 0].long()), "categorical")
    with pytest.raises(ValueError, match="Categorical needs 4"):
        make(3, Y, Categorical(num_classes=4))
    with pytest.raises(ValueError, match="Ordinal needs 1"):
        make(3, Y, "ordinal")
    with pytest.raises(ValueError, match=r"0, 1, ..., 1 as whole numbers, got 2"):
        make(1, Y, Ordinal(num_classes=2))
    with pytest.raises(ValueError, match="num_classes >= 2"):
        Ordinal(num_classes=1)
    with pytest.raises(ValueError, match="cut_std > 0"):
        Ordinal(cut_std=0.0)
    with pytest.raises(ValueError, match=r"of counts 0, 1, \.\.\. as whole numbers, got -1"):
        make(1, Y - 1, "poisson")
    with pytest.raises(ValueError, match="log_base_rate for each of 1 columns"):
        make(1, Y, Poisson(log_base_rate=(0.0, 1.0)))
    with pytest.raises(ValueError, match="df < inf, got 1"):
        StudentT(df=1.0)
    with pytest.raises(ValueError, match="std > 0"):
        StudentT(log_scale_prior=(0.0, 0.0))
    with pytest.raises(ValueError, match="one of \"?'gaussian'.*got 'normal'"):
        make(1, Y, "normal")
    with pytest.raises(TypeError, match=r"StudentT\(df=4\)"):
        make(1, Y, StudentT)
    with pytest.raises(ValueError, match="train_Yvar are variances of Gaussian noise"):
        make(1, Y, "student_t", train_Yvar=Y)
    with pytest.raises(ValueError, match="not transformed; omit outcome_transform"):
        make(1, Y, "poisson", outcome_transform=ExpTransform())
    with pytest.raises(ValueError, match="pass the settings to the likelihood"):
        make(1, Y, "student_t", log_noise_var_prior=(-2.0, 1.0))
    model = make(3, Y.long(), "categorical").fit(FAST)
    assert model.train_Y.dtype == torch.float64
    with pytest.raises(ValueError, match="come together"):
        model.posterior(X, output_indices=[1], observation_noise=True)
    with pytest.raises(ValueError, match="is for a Gaussian likelihood, this one is Categorical"):
        model.posterior(X, observation_noise=Y)
    with pytest.raises(NotImplementedError, match="no noise variance of each output"):
        model.noise_var_of_draws()


def test_a_fitted_likelihood_refuses_outcomes_that_it_cannot_give():
    for name in ("categorical", "ordinal"):
        likelihood, seen, *_ = case(name)
        likelihood.check_outcomes(seen.expand(2, *seen.shape))
        for y in (0.7, 3, -1):
            with pytest.raises(ValueError, match=f"needs Y of class numbers 0, .*, 2 .*got {y}"):
                likelihood.check_outcomes(torch.full((2, 1, 1), float(y)))
        with pytest.raises(ValueError, match="needs Y as one column"):
            likelihood.check_outcomes(torch.zeros(1, 2))
    counts, *_ = case("poisson")
    counts.check_outcomes(torch.full((1, 2), 100.0))
    for y in (2.5, -1):
        with pytest.raises(ValueError, match=f"needs Y of counts .*got {y}"):
            counts.check_outcomes(torch.full((1, 2), float(y)))
    for name in ("gaussian", "heteroscedastic", "student_t"):
        named(name).check_outcomes(normals(4, 2))


def test_pyro_draws_outcomes_where_they_are_not_observed():
    model = fitted("ordinal")
    with pyro.poutine.uncondition(), torch.random.fork_rng():
        trace = pyro.poutine.trace(model.pyro_model).get_trace()
    y = trace.nodes["y"]["value"]
    assert y.shape == (9, 1)
    assert y.unique().tolist() == sorted({*y.flatten().tolist()} & {0.0, 1.0, 2.0})


ONE_WEIGHT = {
    "gaussian": "gaussian",
    "heteroscedastic": "heteroscedastic",
    "heteroscedastic_student_t": HeteroscedasticStudentT(df=3.0),
    "student_t": StudentT(df=3.0),
    "categorical": "categorical",
    "ordinal": Ordinal(num_classes=2),
    "poisson": "poisson",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
@pytest.mark.parametrize("name", NAMES)
def test_one_weight_for_each_output_against_quadrature(name):
    """At most two unknown numbers: means of what is noise-free and of Y, by a dense grid."""
    X = normals(12, 1, seed=6)
    Y = {
        "categorical": (X + 0.3 * normals(12, 1, seed=7) > 0).double(),
        "ordinal": (X + 0.3 * normals(12, 1, seed=7) > 0).double(),
        "poisson": torch.exp(1 + X).round(),
    }.get(name, X + 0.4 * normals(12, 1, seed=7))
    k = 2 if name == "categorical" or name.startswith("heteroscedastic") else 1
    prior = NetworkPrior(nn.Linear(1, k, bias=False), weight_var=1.5)
    model = BayesianNetwork(
        X, Y, prior, likelihood=ONE_WEIGHT[name], input_transform=None, outcome_transform=None
    )
    target = NetworkPosterior(model)
    axis = torch.linspace(-7, 7, 401 if target.dimension == 2 else 4001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * target.dimension).reshape(-1, target.dimension)
    eps, parameters = target.split(grid)
    f = 1.5**0.5 * eps[:, None, :] * X
    if name == "student_t":
        scale = parameters["log_scale"].exp()[:, None]
        each = torch.as_tensor(stats.t.logpdf(Y, 3.0, f, scale))
    elif name == "heteroscedastic_student_t":
        scale = (0.5 * (f[..., 1:] - 2)).exp()
        each = torch.as_tensor(stats.t.logpdf(Y, 3.0, f[..., :1], scale))
    elif name == "ordinal":
        p = torch.sigmoid(parameters["raw_cuts"][:, None] - f)
        each = torch.where(Y == 0, p, 1 - p).log()
    elif name == "categorical":
        each = torch.where(Y == 0, f[..., :1], f[..., 1:]) - f.logsumexp(-1, keepdim=True)
    else:
        each = torch.as_tensor(by_scipy(name, Y, f, parameters))
    log_weights = each.sum((-2, -1)) + torch.as_tensor(stats.norm.logpdf(eps)).sum(-1)
    for site, own in target.parameter_priors().items():
        mean, std = own.tensors(grid)
        log_weights += torch.as_tensor(stats.norm.logpdf(parameters[site], mean, std)).sum(-1)
    weights = log_weights.softmax(0)
    method = ChEES(num_chains=32, num_warmup=300, num_samples=200, progress=False)
    draws = model.fit(method).draws.samples
    drawn = torch.cat([value.flatten(2) for value in draws.values()], dim=-1)
    for power in (1, 2):
        truth = weights @ grid**power
        by_chain = (drawn**power).mean(1)
        error = by_chain.std(0) / len(by_chain) ** 0.5
        assert ((by_chain.mean(0) - truth).abs() < 4.5 * error).all()
