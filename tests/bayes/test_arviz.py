"""The export to ArviZ: its groups, and that ArviZ's functions and plots take them."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch

from bayes import HMC, MCLMC, BayesianNetwork, ChEES, MeanField
from bayes.inference import Draws
from bayes.inference.arviz_export import import_arviz
from priors.networks.finite import NetworkPrior

mpl.use("Agg")

pytestmark = pytest.mark.filterwarnings(
    "ignore:This .* may not have converged",
    "ignore:Estimated shape parameter of Pareto",
    "ignore:More chains",
    "ignore::DeprecationWarning",  # ArviZ's own calls of pandas and Matplotlib
    "ignore::FutureWarning",
)


def network(width=2):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    Y = X[:, :1] + 5 + 0.3 * torch.randn(10, 1, generator=generator, dtype=torch.float64)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
    )
    return BayesianNetwork(X, Y, NetworkPrior(module, weight_var=2.0, bias_var=0.5))


def short(method, num_samples, num_warmup, **settings):
    return method(num_samples, num_warmup, num_chains=4, progress=False, compile=False, **settings)


def with_draws(width):
    """The network with draws and statistics such as a sampler gives, made up."""
    model, generator = network(width), torch.Generator().manual_seed(1)
    dimension = len(model.whitening.zeros())

    def normal(*shape):
        return torch.randn(4, 30, *shape, generator=generator, dtype=torch.float64)

    stats = {
        "lp": normal(),
        "energy": normal(),
        "diverging": normal() > 2,
        "acceptance_rate": normal().sigmoid(),
        "n_steps": normal().abs().round(),
        "step_size": normal().exp(),
    }
    samples = {"eps": normal(dimension), "log_noise_var": normal(1) - 2}
    model._keep(Draws(samples, {name: value.double() for name, value in stats.items()}))
    return model


@pytest.fixture(scope="module")
def fitted():
    return with_draws(2)


@pytest.fixture(scope="module")
def data(fitted):
    return fitted.to_arviz()


def test_groups(data):
    assert set(data.groups()) == {
        "posterior",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
        "sample_stats",
    }
    assert data.prior["0.weight"].shape == (1, 500, 2, 2)
    assert data.prior_predictive["y"].shape == (1, 500, 10, 1)
    assert set(data.prior.data_vars) == set(data.posterior.data_vars)
    assert data.prior_predictive["y"].dims == data.posterior_predictive["y"].dims


def test_the_prior_is_the_prior(fitted, data):
    """Deviations of weights, quantiles of the noise, and outcomes in units of Y about their mean.

    4 standard errors of a standard deviation of N numbers are 4 / sqrt(2 N).
    """
    for name, std in fitted.prior.parameter_std().items():
        drawn = data.prior[name].to_numpy()
        assert abs(drawn.std() / float(std) - 1) < 4 / math.sqrt(2 * drawn.size)
        assert abs(drawn.mean()) < 4 * float(std) / math.sqrt(drawn.size)
    log_noise = np.log(data.prior["noise_var"].to_numpy())
    mean, std = fitted.likelihood.log_noise_var_prior
    assert abs(log_noise.mean() - mean) < 4 * std / math.sqrt(500)
    y = data.prior_predictive["y"].to_numpy()
    assert abs(np.median(y) - float(fitted.train_Y.mean())) < float(fitted.train_Y.std())
    assert fitted.draws.samples["eps"].shape[:2] == (4, 30)  # as before


def test_the_prior_does_not_depend_on_the_draws(fitted, data):
    again = fitted.to_arviz(seed=0)
    assert np.array_equal(again.prior["noise_var"], data.prior["noise_var"])
    other = fitted.to_arviz(seed=1)
    assert not np.array_equal(other.prior["noise_var"], data.prior["noise_var"])


@pytest.mark.fast_for("ChEES", "adjusted MCLMC")
@pytest.mark.parametrize(
    "method",
    [
        short(HMC, 8, 6, max_steps=4),
        short(ChEES, 8, 6, max_steps=4),
        short(MCLMC, 4, 3, adjusted=True),
    ],
    ids=["HMC", "ChEES", "adjusted MCLMC"],
)
def test_statistics_of_samplers(method):
    stats = network(1).fit(method).to_arviz().sample_stats
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].dtype == int
    assert float(stats["acceptance_rate"].min()) >= 0
    assert float(stats["acceptance_rate"].max()) <= 1
    assert {"lp", "step_size"} < set(stats.data_vars)
    assert ("energy" in stats) == (type(method) is not MCLMC)  # microcanonical: one energy only


def test_numbers_of_arviz(data):
    arviz = import_arviz()
    summary = arviz.summary(data, var_names=["noise_var"])
    assert {"r_hat", "ess_bulk", "ess_tail"} < set(summary.columns)
    assert arviz.bfmi(data).shape == (4,)
    loo = arviz.loo(data)
    pointwise = data.log_likelihood["y"].to_numpy().reshape(120, 10)
    lpd = np.logaddexp.reduce(pointwise) - math.log(120)
    assert loo.elpd_loo < lpd.sum()
    assert loo.n_data_points == 10
    better = arviz.compare({"one": data, "two": with_draws(1).to_arviz()})
    assert set(better.index) == {"one", "two"}


@pytest.mark.parametrize("name", ["plot_trace", "plot_forest", "plot_energy", "plot_ppc"])
def test_plots_of_arviz(data, name):
    import matplotlib.pyplot as plt

    settings = {} if name in ("plot_energy", "plot_ppc") else {"var_names": ["noise_var"]}
    try:
        assert getattr(import_arviz(), name)(data, **settings) is not None
        if name == "plot_ppc":
            assert import_arviz().plot_ppc(data, group="prior") is not None
    finally:
        plt.close("all")


def test_independent_draws_have_no_statistics():
    model = network().fit(MeanField(num_steps=3, num_draws=4, progress=False))
    assert "sample_stats" not in model.to_arviz().groups()


def test_draws_of_any_model_are_exported():
    generator = torch.Generator().manual_seed(0)
    samples = {"mu": torch.randn(4, 50, generator=generator)}
    samples["theta"] = torch.randn(4, 50, 3, generator=generator)
    stats = {"energy": torch.rand(4, 50, generator=generator), "diverging": torch.zeros(4, 50)}
    data = Draws(samples, stats).to_arviz()
    assert data.groups() == ["posterior", "sample_stats"]
    assert np.array_equal(data.posterior["theta"].values, samples["theta"].numpy())
    assert data.sample_stats["diverging"].dtype == bool
    assert len(import_arviz().summary(data, kind="diagnostics")) == 4
    assert Draws(samples, {}).to_arviz().groups() == ["posterior"]
