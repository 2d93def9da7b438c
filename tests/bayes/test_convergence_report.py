"""The report of convergence: what it judges, what it concludes, what it draws."""

import matplotlib as mpl
import pytest
import torch
from gpytorch.kernels import RBFKernel
from gpytorch.priors import LogNormalPrior

from bayes import HMC, BayesianNetwork, ChEES, GaussianProcess, MeanField, report
from bayes.inference import Draws
from priors.networks.finite import NetworkPrior

mpl.use("Agg")

pytestmark = pytest.mark.filterwarnings("ignore:This .* may not have converged")


def chains(chains=4, draws=400, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, draws, k, generator=generator, dtype=torch.float64)


def found(values, **stats):
    number = values.shape[:2]
    usual = {"diverging": torch.zeros(number), "energy": chains(*number, 1, seed=5)[..., 0]}
    return report(Draws({"theta": values}, {**usual, **stats}))


def test_independent_draws_are_fine():
    page = found(chains())
    assert page.is_fine
    assert "No sign of trouble" in str(page)
    assert page.names == ("theta[0]", "theta[1]")
    assert page.nested_r_hat is None
    assert page.e_bfmi.shape == (4,)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (found(chains() + torch.arange(4.0)[:, None, None]), "Chains disagree on 2 of 2 quant"),
        (found(chains().cumsum(1)), "effective draws in the bulk of theta"),
        (found(chains(), diverging=torch.ones(4, 400)), "1600 of 1600 draws diverged"),
        (found(chains(), energy=chains(4, 400, 1)[..., 0].cumsum(1)), "E-BFMI"),
        (found(chains(1)), "One chain cannot show"),
        (found(chains(4, 3)), "cannot be judged"),
        (found(chains() / 0.0), "not finite"),
    ],
    ids=["apart", "slow", "divergent", "energies", "one chain", "few draws", "infinite"],
)
def test_each_trouble_is_told_with_what_to_do(page, words):
    assert not page.is_fine
    assert words in str(page)
    assert any(words in trouble for trouble in page.troubles)


def test_divergences_are_told_with_what_the_method_can_do():
    stats = {"diverging": torch.ones(4, 400)}
    page = report(Draws({"theta": chains()}, stats, smaller_steps="lower energy_var below 0.1"))
    assert "Lower energy_var below 0.1; if that does not help, use a likelihood with" in str(page)
    assert "Take smaller steps; if" in str(found(chains(), **stats))


def test_members_that_stay_apart_are_judged_each_for_itself():
    values = chains(8, 400) * torch.rand(8, 1, 2) + 100 * torch.arange(8.0)[:, None, None]

    def judged(values):
        stats = {"diverging": torch.zeros(values.shape[:2])}
        return report(Draws({"theta": values}, stats, members_apart=True))

    page = judged(values)
    assert page.is_fine
    assert "members have settled" in str(page)
    assert page.nested_r_hat is None
    assert "Chains disagree" in str(report(Draws({"theta": values}, {"lp": torch.zeros(8, 400)})))
    assert judged(values[:1]).is_fine  # one member need not agree with any other
    drifting = values.clone()
    drifting[3] += torch.linspace(0, 10, 400)[:, None]
    assert "Members still move in 2 of 2 quantities" in str(judged(drifting))
    assert "effective draws in the bulk of theta" in str(judged(values.cumsum(1)))


def test_names_are_told_apart_however_long():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 400, 2, generator=generator)
    name = "kernel.base_kernel.lengthscale_prior"
    page = report(Draws({name: values}, {"lp": torch.zeros(4, 400)}))
    assert f"{name}[0] " in str(page)
    assert f"{name}[1] " in str(page)


def test_many_short_chains_have_a_nested_r_hat():
    values = chains(64, 40)
    page = found(values)
    assert page.is_fine
    assert float(page.nested_r_hat.max()) < 1.1
    assert "nested, groups of 4" in str(page)
    apart = values + torch.arange(16.0).repeat_interleave(4)[:, None, None]
    assert float(found(apart).nested_r_hat.min()) > 2


@pytest.fixture(scope="module")
def network():
    X, Y = chains(1, 12)[0], chains(1, 12, 1, seed=1)[0]
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    model = BayesianNetwork(X, Y, NetworkPrior(module, bias_var=1.0))
    method = HMC(num_samples=6, num_warmup=3, num_chains=8, progress=False, compile=False)
    with pytest.warns(UserWarning, match="may not have converged"):
        return model.fit(method)


def test_a_network_is_judged_by_functions_and_noise(network):
    page = report(network)
    names = [f"f at training row {row}" for row in range(12)]
    assert page.names == (*names, "log_noise_var", "log density")
    f = network.functions_of_draws(network.train_X)
    assert torch.equal(page.values[..., :12].flatten(0, 1), f[..., 0])
    assert torch.equal(page.values[..., 12:13], network.draws.samples["log_noise_var"])
    assert page.diverging == int(network.draws.stats["diverging"].sum())


def test_symmetries_of_weights_are_no_trouble():
    """A chain that sits at the mirrored weights has the same functions."""
    X = chains(1, 12)[0]
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 3, bias=False), torch.nn.Tanh(), torch.nn.Linear(3, 1, bias=False)
    )
    prior = NetworkPrior(module, weight_var=1.0)
    model = BayesianNetwork(X, X[:, :1], prior, train_Yvar=torch.full((12, 1), 0.1).double())
    eps = 3 + 0.01 * chains(4, 500, 9)
    eps[::2] = -eps[::2]  # both layers: tanh is odd
    model._keep(Draws({"eps": eps}, {"diverging": torch.zeros(4, 500)}))
    assert report(model).is_fine
    assert not report(Draws({"eps": eps}, {"diverging": torch.zeros(4, 500)})).is_fine


@pytest.mark.slow
def test_a_process_is_judged_by_its_hyperparameters():
    X = chains(1, 12)[0]
    kernel = RBFKernel(lengthscale_prior=LogNormalPrior(0.0, 1.0))
    model = GaussianProcess(X, X[:, :1], kernel)
    with pytest.raises(RuntimeError, match="before save"):
        report(model)
    model.fit(method=ChEES(6, 4, 8, progress=False, compile=False))
    page = report(model)
    assert page.names == (
        "kernel.lengthscale",
        "likelihood.noise_covar.noise",
        "log density",
    )
    assert (page.values[..., :2] > 0).all()


def test_pictures_and_pages(network, tmp_path):
    page = report(network)
    figure = page.plot()
    assert len(figure.axes) == 4
    assert all(ax.get_title() for ax in figure.axes)
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "R-hat up to" in text
    assert "data:image/png;base64," in text
    without = report(Draws({"theta": chains()}, {"lp": chains(k=1)[..., 0]}))
    assert without.e_bfmi is None
    assert without.diverging is None
    assert len(without.plot().axes) == 4


def test_what_has_no_chains_is_refused():
    X = chains(1, 12)[0]
    prior = NetworkPrior(torch.nn.Sequential(torch.nn.Linear(2, 1)), bias_var=1.0)
    model = BayesianNetwork(X, X[:, :1], prior)
    with pytest.raises(RuntimeError, match="call fit"):
        report(model)
    with pytest.raises(ValueError, match="independent"):
        report(model.fit(MeanField(num_steps=5, num_draws=5, progress=False)))
    with pytest.raises(TypeError, match="BayesianNetwork, a GaussianProcess or Draws"):
        report(prior)
