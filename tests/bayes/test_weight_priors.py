"""Laws of weights: densities, draws, limits of wide networks, and posteriors by quadrature."""

import math

import numpy as np
import pytest
import torch
from gpytorch.priors import GammaPrior
from scipy import stats
from torch import nn
from torch.distributions import Gamma, HalfCauchy, InverseGamma, LogNormal, Normal, Uniform

from bayes import BayesianNetwork, ChEES, MeanField, WeightPrior, student_t_weights
from bayes.networks.density import NetworkPosterior
from priors import NetworkPrior, NNGPKernel
from priors.functions import FunctionPrior, draws_functions

FAST = MeanField(num_steps=15, num_draws=12, progress=False)
pytestmark = pytest.mark.usefixtures("without_graphs")  # fits are of a few steps


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(width=5, outputs=1, **settings):
    module = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, outputs))
    return NetworkPrior(module, weight_var=2.0, bias_var=0.5, **settings).double()


MIXED = {"0": "laplace", "2": student_t_weights(5.0)}
PRIORS = {
    "gaussian": {},
    "laplace": {"weights": "laplace"},
    "by layer": {"weights": MIXED},
    "scale": {"readout_scale": InverseGamma(3.0, 2.0)},
    "variances": {"learn_variances": True},
    "length scales": {"learn_variances": True},
    "all": {"weights": MIXED, "readout_scale": Gamma(2.0, 1.5), "learn_variances": True},
}


def made(name, **settings):
    if name == "length scales":
        settings["ard_num_dims"] = 2
    return WeightPrior(network(**settings), **PRIORS[name])


def fitted(name, dtype=torch.float64):
    X = normals(9, 2, dtype=dtype)
    return BayesianNetwork(X, X[:, :1] ** 2, made(name)).fit(FAST)


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        ("gaussian", stats.norm()),
        ("laplace", stats.laplace(scale=0.5**0.5)),
        ("student_t", stats.t(4, scale=0.5**0.5)),
        (student_t_weights(1.5), stats.t(1.5)),
        (Normal(0.0, 0.5), stats.norm(scale=0.5)),
    ],
)
def test_laws_have_their_density_and_draws_and_variance_one(law, truth):
    prior = WeightPrior(NetworkPrior(nn.Linear(1, 1, bias=False)).double(), weights=law)
    x = torch.tan(torch.linspace(-1.57, 1.57, 20_001, dtype=torch.float64))  # far into the tails
    density = prior.log_density(x[:, None], {}).exp()
    assert np.allclose(density, truth.pdf(x))
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=2e-3)
    eps, _ = prior.draw_sites(
        torch.Size([3000]), torch.zeros(1).double(), generator=torch.Generator().manual_seed(1)
    )
    assert stats.kstest(eps[:, 0].numpy(), truth.cdf).pvalue > 1e-3
    if truth.var() < np.inf and not isinstance(law, Normal):
        assert truth.var() == pytest.approx(1)
        weight = prior.draw(torch.Size([20_000]), generator=torch.Generator().manual_seed(2))
        second = weight["weight"].detach().square()
        if truth.stats("k") < np.inf:  # else no standard error
            error = float(second.std()) / 20_000**0.5
            assert abs(float(second.mean()) - 1) < 4.5 * error


@pytest.mark.parametrize("scale", [InverseGamma(3.0, 2.0), Gamma(2.0, 1.5)])
def test_the_density_of_the_log_scale_has_its_jacobian(scale):
    prior = WeightPrior(network(), readout_scale=scale)
    x = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    density = prior.log_density_of("log_readout_scale", x[:, None]).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-5)
    _, drawn = prior.draw_sites(torch.Size([2000]), x, generator=torch.Generator().manual_seed(0))
    reached = torch.cumulative_trapezoid(density, x)
    at = torch.searchsorted(x, drawn["log_readout_scale"][:, 0].contiguous()) - 1
    assert stats.kstest(reached[at.clamp(0, len(reached) - 1)].numpy(), "uniform").pvalue > 1e-3
    assert torch.allclose(
        prior.variances(drawn)["readout_scale"], drawn["log_readout_scale"][:, 0].exp()
    )


@pytest.mark.parametrize("scale", [InverseGamma(3.0, 2.0), LogNormal(0.0, 1.0), HalfCauchy(1.0)])
def test_a_scale_out_of_range_has_no_density_and_stops_nobody(scale):
    prior = WeightPrior(network(), readout_scale=scale)
    x = torch.tensor([[0.3], [2e3], [math.nan], [-2e3]], dtype=torch.float64)
    found = prior.log_density_of("log_readout_scale", x)
    assert found[0] == pytest.approx(float(scale.log_prob(x[0].exp()) + 0.3))
    assert not (found[1:] > -700).any()


def test_learnt_variances_and_the_scale_multiply_the_weights():
    model = fitted("all")
    target = NetworkPosterior(model)
    x = 0.5 * normals(4, target.dimension)
    eps, parameters = target.split(x)
    variances = model.weight_prior.variances(parameters)
    assert list(variances) == [
        "weight_var.0", "weight_var.2", "bias_var.0", "bias_var.2", "readout_scale"
    ]  # fmt: skip
    z = parameters["whitened_log_var"]
    start = torch.tensor([2.0, 2.0, 0.5, 0.5]).double().log()
    assert torch.allclose(torch.stack(list(variances.values())[:4], -1), (start + z).exp())
    found = model.weight_prior.weights(eps, parameters)
    truth = {
        "0.weight": eps[:, :10].reshape(4, 5, 2)
        * (variances["weight_var.0"] / 2).sqrt()[:, None, None],
        "0.bias": eps[:, 10:15] * variances["bias_var.0"].sqrt()[:, None],
        "2.weight": eps[:, None, 15:20]
        * (variances["weight_var.2"] * variances["readout_scale"] / 5).sqrt()[:, None, None],
        "2.bias": eps[:, 20:]
        * (variances["bias_var.2"] * variances["readout_scale"]).sqrt()[:, None],
    }
    for name, value in truth.items():
        assert torch.allclose(found[name], value)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("image", [False, True])
def test_inputs_are_divided_by_the_length_scales_that_are_drawn(image, each):
    if image:  # a length scale for each channel
        layers = [nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)]
        shape, sizes = {"input_shape": (2, 3, 3)}, [9, 9]
    else:  # one for each entry
        layers, shape, sizes = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)], {}, [1, 1, 1]
    network = NetworkPrior(nn.Sequential(*layers), ard_num_dims=len(sizes), **shape).double()
    plain = NetworkPrior(network.module, **shape).double()
    network.variances.input_scale.lengthscale = 0.5 + torch.arange(len(sizes))
    prior = WeightPrior(network, learn_variances=True)
    assert prior.sites()["whitened_log_lengthscale"] == len(sizes)
    like = normals(1)
    eps, drawn = prior.draw_sites(torch.Size([2, 4] if not each else [4]), like)
    X = normals(*([4, 5, 6] if each else [6]), sum(sizes))
    found = prior.functions(eps, drawn, X, each=each)
    lengths, weights = prior.variances(drawn)["lengthscale"], prior.weights(eps, drawn)
    for index in range(4):
        one = index if each else (1, index)
        scaled = X[index] if each else X
        scaled = scaled / lengths[one].repeat_interleave(torch.tensor(sizes))
        truth = plain.apply_parameters({k: v[one] for k, v in weights.items()}, scaled)
        torch.testing.assert_close(found[one], truth)


@pytest.mark.slow
def test_a_length_scale_has_the_posterior_of_quadrature():
    # y = a x / l, of which a has variance 1 and the logarithm of l a normal prior
    x, y, noise = normals(6, 1, seed=1), 0.5 * normals(6, 1, seed=2) + 1.0, 0.2
    network = NetworkPrior(nn.Linear(1, 1, bias=False), ard_num_dims=1).double()
    network.variances.hold("weight", "weight", 1.0)
    model = BayesianNetwork(
        x,
        y,
        network,
        train_Yvar=torch.full_like(y, noise),
        learn_variances=True,
        input_transform=None,
        outcome_transform=None,
    )
    mean, std = network.variances.input_scale.log_prior()
    log_l = torch.linspace(mean - 8 * std, mean + 8 * std, 2001, dtype=torch.float64)
    slopes = (x / log_l.exp()).T  # [grid, n]
    cov = slopes[:, :, None] * slopes[:, None] + noise * torch.eye(6)
    zero = torch.zeros(6, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(zero, cov).log_prob(y[:, 0])
    weight = (evidence - 0.5 * ((log_l - mean) / std) ** 2).softmax(0)
    truth = weight @ log_l, (weight @ log_l**2)
    model.fit(ChEES(100, 200, 32, target_accept_prob=0.97, progress=False))
    drawn = model.variances_of_draws()["lengthscale"].log().reshape(32, -1)
    for power, moment in zip((1, 2), truth, strict=True):
        by_chain = (drawn**power).mean(1)
        error = by_chain.std() / 32**0.5
        assert abs(by_chain.mean() - moment) < 4.5 * error < 0.3


class Waves(nn.Module):
    """Fixed random features of the squared-exponential kernel (Rahimi & Recht 2007)."""

    def __init__(self, number):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", torch.randn(1, number, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(number, generator=generator))

    def forward(self, x):
        return math.sqrt(2) * torch.cos(x @ self.frequencies + self.phases)


@pytest.mark.slow
def test_the_data_emphasised_bound_learns_the_length_scale_of_random_features():
    """Given the length scale, the bound of independent weights of a linear model is closed."""
    number, n, noise = 60, 20, 0.05
    network = NetworkPrior(
        nn.Sequential(Waves(number), nn.Linear(number, 1, bias=False)).double(),
        ard_num_dims=1,
        input_shape=(1,),
    ).double()
    X = torch.linspace(-1.5, 1.5, n, dtype=torch.float64).unsqueeze(-1)
    Y = 1.3 * torch.sin(2 * X) + noise**0.5 * normals(n, 1, seed=1)
    model = BayesianNetwork(
        X,
        Y,
        network,
        train_Yvar=torch.full_like(Y, noise),
        learn_variances=True,
        input_transform=None,
        outcome_transform=None,
    )
    mean, std = network.variances.input_scale.log_prior()

    def bound(log_l, kappa):
        features = network.module[0](X / math.exp(log_l)) / number**0.5
        precision = kappa / noise * features.T @ features + torch.eye(number)
        location = torch.linalg.solve(precision, kappa / noise * features.T @ Y[:, 0])
        variance = 1 / precision.diagonal()
        squares = (Y[:, 0] - features @ location).square().sum() + (features**2 @ variance).sum()
        divergence = 0.5 * (variance + location**2 - 1 - variance.log()).sum()
        prior = 0.5 * ((log_l - mean) / std) ** 2
        return float(-0.5 * kappa * squares / noise - divergence - prior)

    # from the prior's mean downwards, where the fit begins; narrower features overfit
    grid = np.linspace(-1, 2, 151)
    best = grid[np.argmax([bound(t, number / n) for t in grid])]
    method = MeanField(num_steps=1000, learning_rate=0.05, likelihood_weight="data", progress=False)
    lengths = model.fit(method).variances_of_draws()["lengthscale"]
    assert lengths.log().mean().item() == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("name", PRIORS)
def test_priors_over_functions(name):
    prior = made(name, outputs=2)
    assert isinstance(prior, FunctionPrior)
    assert draws_functions(prior)
    X = normals(2, 3, 2)
    first, second = (
        prior.sample(X, torch.Size([4]), generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert first.shape == (4, 2, 3, 2)
    assert torch.equal(first, second)
    assert prior.sample(X.float()).dtype == torch.float32
    drawn = prior.draw(torch.Size([4]))
    assert drawn["0.weight"].shape == (4, 5, 2)


def test_a_wide_network_with_an_inverse_gamma_scale_approaches_the_t_process():
    """Values at two inputs and their difference, of networks of 200 units."""
    concentration, rate = 1.5, 1.0
    prior = WeightPrior(network(200), readout_scale=InverseGamma(concentration, rate))
    X = normals(2, 2, seed=3)
    with torch.no_grad():
        kernel = NNGPKernel(prior.network.module, weight_var=2.0, bias_var=0.5).double()
        covariance = kernel(X).to_dense() * rate / concentration
        f = prior.sample(X, torch.Size([3000]), generator=torch.Generator().manual_seed(0))[..., 0]
    for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
        c = torch.tensor(direction).double()
        scale = float(c @ covariance @ c) ** 0.5
        assert stats.kstest((f @ c).numpy(), stats.t(2 * concentration, 0, scale).cdf).pvalue > 1e-3
        assert stats.kstest((f @ c).numpy(), stats.norm(0, scale).cdf).pvalue < 1e-3  # no Gaussian


@pytest.mark.parametrize(
    "name",
    [n if n in ("gaussian", "all") else pytest.param(n, marks=pytest.mark.slow) for n in PRIORS],
)
def test_files_know_the_prior(name, tmp_path):
    model = fitted(name)
    model.save(tmp_path / "network")
    loaded = BayesianNetwork.load(tmp_path / "network", made(name))
    X = normals(4, 2, seed=5)
    before, after = (m.posterior(X, observation_noise=True).mean for m in (model, loaded))
    assert torch.equal(before, after)
    other = "laplace" if name == "gaussian" else "gaussian"
    with pytest.raises(ValueError, match="was saved with"):
        BayesianNetwork.load(tmp_path / "network", made(other))
    exported = model.to_arviz()
    for variance, value in model.variances_of_draws().items():
        assert np.allclose(exported.posterior[variance].values[0], value)
    narrow = model.float().posterior(X.float()).mean
    assert torch.allclose(narrow, loaded.posterior(X).mean.float(), rtol=1e-3, atol=1e-4)


def test_arguments_are_checked():
    prior = network()
    with pytest.raises(TypeError, match="needs a NetworkPrior"):
        WeightPrior(prior.module)
    with pytest.raises(ValueError, match=r"layers \['1'\], but the network has \['0', '2'\]"):
        WeightPrior(prior, weights={"1": "laplace"})
    with pytest.raises(ValueError, match="'laplace', 'student_t'.* got 'cauchy'"):
        WeightPrior(prior, weights="cauchy")
    with pytest.raises(ValueError, match="0 < df"):
        student_t_weights(0.0)
    with pytest.raises(ValueError, match="of a single number"):
        WeightPrior(prior, weights=Normal(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match="must be a Distribution"):
        WeightPrior(prior, readout_scale=2.0)
    with pytest.raises(ValueError, match="all positive reals"):
        WeightPrior(prior, readout_scale=Uniform(-2.0, 1.0))
    own = network()
    own.variances.register_prior("weight_var_0_prior", GammaPrior(2.0, 1.0), "raw_weight_var_0")
    with pytest.raises(NotImplementedError, match="needs its log-normal prior"):
        WeightPrior(own, learn_variances=True)
    X = normals(5, 2)
    with pytest.raises(ValueError, match="to the WeightPrior itself"):
        BayesianNetwork(X, X[:, :1], WeightPrior(prior), learn_variances=True)
    model = BayesianNetwork(X, X[:, :1], prior, learn_variances=True)
    assert "variances learnt" in repr(model)
    held = NetworkPrior(nn.Linear(2, 1), weight_var=0.0, bias_var=1.0)
    assert WeightPrior(held, learn_variances=True).sites() == {"whitened_log_var": 1}


def linear(prior_settings, n=8):
    """A linear network without bias and a known noise: two weights and what else is drawn."""
    X = normals(n, 2, seed=6)
    Y = X @ torch.tensor([[1.5], [0.0]], dtype=torch.float64) + 0.5 * normals(n, 1, seed=7)
    prior = WeightPrior(NetworkPrior(nn.Linear(2, 1, bias=False)).double(), **prior_settings)
    return BayesianNetwork(
        X,
        Y,
        prior,
        train_Yvar=torch.full_like(Y, 0.25),
        input_transform=None,
        outcome_transform=None,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This BayesianNetwork may not have converged")
@pytest.mark.parametrize("name", ["laplace", "scale", "variances"])
def test_posteriors_of_linear_networks_against_quadrature(name):
    """Moments of the weights; given the variance of the weights they are conjugate."""
    model = linear(PRIORS[name])
    X, Y = model.train_X, model.train_Y[:, 0]
    eye = torch.eye(2, dtype=torch.float64)
    if name == "laplace":
        axis = torch.linspace(-4, 4, 1201, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        log_weights = -0.5 * ((Y - grid @ X.T) ** 2).sum(-1) / 0.25
        log_weights += torch.as_tensor(stats.laplace(scale=0.5).logpdf(grid)).sum(-1)
        weights = log_weights.softmax(0)
        mean, second = weights @ grid, weights @ grid**2
    else:
        log_s = torch.linspace(-9, 9, 2001, dtype=torch.float64)
        law = {
            "scale": stats.invgamma(3, scale=2).logpdf(log_s.exp()) + log_s.numpy(),
            "variances": stats.norm.logpdf(log_s),
        }[name]
        variance = log_s.exp() / 2  # of a weight, fan-in 2
        precision = X.T @ X / 0.25 + eye / variance[:, None, None]
        means = torch.linalg.solve(precision, (X.T @ Y / 0.25).expand(2001, 2))
        covariances = torch.linalg.inv(precision)
        marginal = X @ X.T * variance[:, None, None] + 0.25 * torch.eye(8, dtype=torch.float64)
        evidence = torch.distributions.MultivariateNormal(
            torch.zeros(8, dtype=torch.float64), marginal
        ).log_prob(Y)
        weights = (evidence + torch.as_tensor(law)).softmax(0)
        mean = weights @ means
        second = weights @ (covariances.diagonal(dim1=-2, dim2=-1) + means**2)
    method = ChEES(num_chains=32, num_warmup=300, num_samples=150, progress=False)
    drawn = model.fit(method).parameters_of_draws()["weight"].reshape(32, -1, 2)
    for power, truth in ((1, mean), (2, second)):
        by_chain = (drawn**power).mean(1)
        error = by_chain.std(0) / 32**0.5
        assert ((by_chain.mean(0) - truth).abs() < 4.5 * error).all()
        assert (error < 0.1 * math.sqrt(float(second.max()))).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"readout_scale": torch.distributions.Uniform(0.5, 2.0)}, "all positive reals"),
        ({"weights": torch.distributions.Exponential(1.0)}, "all reals"),
        ({"weights": torch.distributions.Bernoulli(0.5)}, "all reals"),
    ],
)
def test_laws_that_samplers_would_leave_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        WeightPrior(network(), **settings)
