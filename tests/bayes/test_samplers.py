"""Samplers against closed forms and dense quadrature, and what must break them."""

import dataclasses
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes import (
    HMC,
    MCLMC,
    NUTS,
    SGHMC,
    BayesianNetwork,
    ChEES,
    LangevinEnsemble,
    LogDensity,
    MeanField,
    Rows,
)
from bayes.inference import graphs
from bayes.inference.adaptation import ARRIVED, Rescue, van_der_corput
from bayes.inference.evaluation import Evaluation
from bayes.inference.hamiltonian import HamiltonianKernel
from bayes.inference.isokinetic import autocorrelation_time, isokinetic_step, unit_velocity
from bayes.inference.log_density import value_and_gradient
from bayes.inference.pyro_density import density_of
from bayes.networks.density import NetworkPosterior
from bayes.testing import SamplerContract, moments_in_errors
from priors import NetworkPrior, NNGPKernel

QUICK = {"num_samples": 20, "num_warmup": 100, "num_chains": 64, "progress": False}


def run(method, model, like=None):
    like = torch.zeros(1, dtype=torch.float64) if like is None else like
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This run of", UserWarning)
        return method.run(model, like)


def fitted(model, method):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This BayesianNetwork may not", UserWarning)
        return model.fit(method).draws


def eight_schools():
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
    s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)

    def model():
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(y.new_tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    return model, y, s


def eight_schools_truth():
    """Means of mu and tau: theta integrates out, y ~ N(mu, tau^2 + s^2); the rest by quadrature."""
    _, y, s = eight_schools()
    mu = torch.linspace(-30, 40, 1401, dtype=torch.float64)
    log_tau = torch.linspace(-12, 7, 1901, dtype=torch.float64)
    tau = log_tau.exp()
    log = dist.Normal(0.0, 5.0).log_prob(mu)[:, None] - torch.log1p((tau / 5).square()) + log_tau
    for one, std in zip(y, s, strict=True):
        var = tau.square() + std**2
        log = log - 0.5 * ((one - mu[:, None]).square() / var + var.log())
    weight = (log - log.max()).exp()
    weight = weight / weight.sum()
    return (weight.sum(1) * mu).sum(), (weight.sum(0) * tau).sum()


@pytest.mark.slow
def test_eight_schools():
    """Quadrature, and the published means of posteriordb's reference draws."""
    model, y, _ = eight_schools()
    mu, tau = eight_schools_truth()
    assert mu == pytest.approx(4.41, abs=0.05)
    assert tau == pytest.approx(3.60, abs=0.05)
    method = ChEES(num_samples=40, num_warmup=120, num_chains=128, progress=False)
    draws = run(method, model, y).samples
    for name, truth in (("mu", mu), ("tau", tau)):
        off, _ = moments_in_errors(draws[name].unsqueeze(-1), truth, 1.0)
        assert float(off.abs().max()) < 4
    assert draws["theta"].shape == (128, 40, 8)


ILL_CONDITIONED = {"num_samples": 300, "num_warmup": 300, "num_chains": 64, "progress": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bias"),
    [
        (HMC(**ILL_CONDITIONED), 0.0),
        (ChEES(**ILL_CONDITIONED), 0.0),
        (MCLMC(adjusted=True, **ILL_CONDITIONED), 0.0),
        (MCLMC(energy_var=1e-5, num_steps=20, **ILL_CONDITIONED), 0.01),
        (LangevinEnsemble(energy_var=1e-5, num_steps=20, **ILL_CONDITIONED), 0.01),
        (SGHMC(num_steps=100, **ILL_CONDITIONED), 0.01),
    ],
    ids=["HMC", "ChEES", "adjusted", "MCLMC", "ensemble", "SGHMC"],
)
def test_an_ill_conditioned_gaussian(method, bias):
    """Ten dimensions, variances over three decades along directions that are no coordinates."""
    z = ill_conditioned(method)
    first, second = moments_in_errors(z, 0.0, 1.0, bias=bias)
    assert float(first.abs().max()) < 4
    assert float(second.abs().max()) < 4
    thinned = z[:, ::60].flatten(0, 1)
    for column in thinned.T:
        p = torch.special.ndtr(column).sort().values
        steps = torch.arange(1, len(p) + 1, dtype=p.dtype) / len(p)
        # p of KS 1e-3 over ten columns
        assert float((steps - p).abs().max()) < 2.3 / len(p) ** 0.5 + bias


def ill_conditioned(method):
    """Draws in coordinates that are independent and standard normal."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]
    root = axes * torch.logspace(0, 1.5, 10, dtype=torch.float64)
    inverse = torch.linalg.inv(root)
    density = LogDensity(lambda x: -0.5 * (x @ inverse.mT).square().sum(-1), 10)
    return run(method, density).samples["x"] @ inverse.mT


def test_a_funnel():
    """A scale and what it scales: log variance v ~ N(0, 1) and x ~ N(0, e^v), not rewritten."""

    def log_prob(x):
        v, rest = x[:, 0], x[:, 1:]
        return -0.5 * v.square() - 0.5 * rest.square().sum(-1) * (-v).exp() - 1.5 * v

    method = ChEES(target_accept_prob=0.9, **QUICK | {"num_chains": 128, "num_samples": 40})
    v = run(method, LogDensity(log_prob, 4)).samples["x"][..., :1]
    first, second = moments_in_errors(v, 0.0, 1.0)
    assert abs(float(first)) < 4
    assert abs(float(second)) < 4


def linear_network(noise=0.25):
    """A network without hidden layer: Bayesian linear regression, mean and covariance of eps."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]).double()
    Y = Y + 0.5 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    prior = NetworkPrior(nn.Linear(3, 1), weight_var=3.0, bias_var=0.5)
    model = BayesianNetwork(
        X,
        Y,
        prior,
        train_Yvar=torch.full_like(Y, noise),
        input_transform=None,
        outcome_transform=None,
    )
    design = torch.cat([X, torch.full((30, 1), 0.5**0.5, dtype=torch.float64)], -1)
    precision = design.mT @ design / noise + torch.eye(4, dtype=torch.float64)
    mean = torch.linalg.solve(precision, design.mT @ Y / noise)[:, 0]
    return model, mean, torch.linalg.cholesky(torch.linalg.inv(precision))


@pytest.mark.parametrize(
    ("method", "bias"),
    [
        (ChEES(**QUICK), 0.0),
        (MCLMC(adjusted=True, **QUICK), 0.0),
        pytest.param(
            SGHMC(step_size=0.1, friction=0.1, num_steps=10, **QUICK), 0.03, marks=pytest.mark.slow
        ),
        (SGHMC(step_size=0.05, friction=0.1, batch_size=15, num_steps=10, **QUICK), 0.1),
    ],
    ids=["ChEES", "MCLMC", "SGHMC", "minibatches"],
)
def test_a_linear_network_is_linear_regression(method, bias):
    model, mean, root = linear_network()
    draws = fitted(model, method)
    eps = draws.samples["eps"]
    z = torch.linalg.solve_triangular(root, (eps - mean).mT, upper=False).mT
    first, second = moments_in_errors(z, 0.0, 1.0, bias=bias)
    assert float(first.abs().max()) < 4
    assert float(second.abs().max()) < 4
    assert set(draws.num_gradients) == {"warmup", "sampling"}


@pytest.mark.slow
def test_a_wide_network_has_the_posterior_of_its_limit():
    """200 units against the process of the NNGP; 4 units have another one."""
    X = torch.tensor([[-1.5], [-0.5], [0.2], [1.0], [1.8]]).double()
    Y = torch.tensor([[1.0], [-0.6], [-0.4], [0.9], [0.3]]).double()
    Z = torch.linspace(-2.5, 2.5, 6, dtype=torch.float64)[:, None]
    variances = {"weight_var": 4.0, "bias_var": 1.0}
    with torch.no_grad():
        kernel = NNGPKernel(wide(2), **variances).double()
        joint = kernel(torch.cat([Z, X])).to_dense()
    noisy = joint[6:, 6:] + 0.1 * torch.eye(5, dtype=torch.float64)
    gain = torch.linalg.solve(noisy, joint[6:, :6]).mT
    mean = (gain @ Y)[:, 0]
    std = (joint[:6, :6] - gain @ joint[6:, :6]).diagonal().sqrt()

    def off(width):
        model = BayesianNetwork(
            X,
            Y,
            NetworkPrior(wide(width), **variances),
            train_Yvar=torch.full_like(Y, 0.1),
            input_transform=None,
            outcome_transform=None,
        )
        fitted(model, ChEES(**QUICK | {"num_samples": 30}))
        f = model.functions_of_draws(Z)[..., 0].unflatten(0, (64, 30))
        return torch.cat(moments_in_errors(f, mean, std)).abs().max()

    assert off(200) < 4
    assert off(4) > 4


def wide(width):
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))


def test_the_density_of_a_network_is_that_of_its_pyro_model():
    """Up to a constant, gradients included, and of rows on average."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    Y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    prior = NetworkPrior(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)))
    target = NetworkPosterior(BayesianNetwork(X, Y, prior))
    ours = target.log_density()
    theirs = density_of(target.model.pyro_model, X)
    x = torch.randn(4, ours.dimension, generator=generator, dtype=torch.float64)
    value, gradient = value_and_gradient(ours.function, x)
    other, slope = value_and_gradient(theirs.function, x)
    assert torch.allclose(value - value[0], other - other[0])
    assert torch.allclose(gradient, slope)
    parts = [ours.rows.function(x, torch.arange(k, k + 3)) for k in range(0, 12, 3)]
    assert torch.allclose(torch.stack(parts).mean(0), value)


@pytest.mark.parametrize(
    ("method", "bias"),
    [
        (ChEES(**QUICK | {"num_chains": 32}), 0.0),
        pytest.param(HMC(**QUICK), 0.0, marks=pytest.mark.slow),
        pytest.param(MCLMC(adjusted=True, **QUICK), 0.0, marks=pytest.mark.slow),
        pytest.param(MCLMC(energy_var=1e-4, **QUICK), 0.01, marks=pytest.mark.slow),
        pytest.param(SGHMC(**QUICK), 0.01, marks=pytest.mark.slow),
    ],
    ids=["ChEES", "HMC", "adjusted", "MCLMC", "SGHMC"],
)
def test_a_network_without_information_keeps_its_prior(method, bias):
    """Noise of 1e8 tells nothing: 502 standard normal weights, and half of x . grad U is d / 2."""
    X = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    prior = NetworkPrior(nn.Sequential(nn.Linear(1, 167), nn.Tanh(), nn.Linear(167, 1)))
    model = BayesianNetwork(
        X,
        X,
        prior,
        train_Yvar=torch.full_like(X, 1e8),
        input_transform=None,
        outcome_transform=None,
    )
    draws = fitted(model, method)
    eps = draws.samples["eps"]
    dimension = eps.shape[-1]
    assert dimension >= 500
    virial, _ = moments_in_errors(eps.square().mean(-1, keepdim=True), 1.0, 1.0, bias=bias)
    assert abs(float(virial)) < 4
    p = torch.special.ndtr(eps[:, -1].flatten()).sort().values
    steps = torch.arange(1, len(p) + 1, dtype=p.dtype) / len(p)
    distance = float((steps - p).abs().max())
    assert distance < 1.95 / len(p) ** 0.5 + bias  # p of KS 1e-3
    if "energy" in draws.stats:  # the kinetic one is chi-squared of d, halved
        kinetic = (draws.stats["energy"] + draws.stats["lp"]).unsqueeze(-1)
        first, second = moments_in_errors(kinetic, dimension / 2, (dimension / 2) ** 0.5)
        assert abs(float(first)) < 4
        assert abs(float(second)) < 4


def moments_fail(method):
    """Whether the variance of exp(-x^4), Gamma(3/4) / Gamma(1/4), is missed."""
    density = LogDensity(lambda x: -x.pow(4).sum(-1), 3)
    draws = run(method, density).samples["x"]
    _, second = moments_in_errors(draws, 0.0, (math.gamma(0.75) / math.gamma(0.25)) ** 0.5)
    return float(second.abs().max()) > 4


@pytest.mark.parametrize(
    "method",
    [
        HMC(target_accept_prob=0.6, **QUICK),
        MCLMC(adjusted=True, target_accept_prob=0.2, **QUICK | {"num_samples": 100}),
    ],
    ids=["HMC", "MCLMC"],
)
def test_a_missing_accept_step_is_noticed(method, monkeypatch):
    right = torch.rand

    def mutated(*sizes, **options):
        if len(sizes) == 1:  # one for each chain, below every probability; not where they start
            return torch.zeros(*sizes, dtype=torch.float64)
        return right(*sizes, **options)

    assert not moments_fail(method)
    monkeypatch.setattr(torch, "rand", mutated)
    assert moments_fail(method)


def test_a_wrong_jacobian_is_noticed(monkeypatch):
    like = torch.zeros(1, dtype=torch.float64)

    def model():
        pyro.sample("rate", dist.Gamma(like.new_tensor(3.0), like.new_tensor(2.0)))

    def fails():
        draws = run(HMC(**QUICK), model).samples["rate"].unsqueeze(-1)
        first, _ = moments_in_errors(draws, 1.5, 3**0.5 / 2)
        return float(first.abs().max()) > 4

    assert not fails()
    right = torch.distributions.transforms.ExpTransform.log_abs_det_jacobian
    monkeypatch.setattr(
        torch.distributions.transforms.ExpTransform,
        "log_abs_det_jacobian",
        lambda self, x, y: -right(self, x, y),
    )
    assert fails()


def test_supports_that_move_and_minibatches_are_refused_by_name():
    like = torch.zeros(1, dtype=torch.float64)

    def moving():
        top = pyro.sample("top", dist.LogNormal(like, 1.0))
        pyro.sample("below", dist.Uniform(0 * top, top))

    def part():
        with pyro.plate("rows", 10, subsample_size=3):
            pyro.sample("x", dist.Normal(like.expand(3), 1.0))

    with pytest.raises(NotImplementedError, match="'below'"):
        density_of(moving, like)
    with pytest.raises(NotImplementedError, match="'rows' of the Pyro model takes 3 of its 10"):
        density_of(part, like)
    with pytest.raises(ValueError, match="no latent sites"):
        density_of(lambda: None, like)
    with pytest.raises(TypeError, match="LogDensity"):
        density_of(3, like)


def test_a_mixture_has_the_support_of_its_components():
    shares = dist.Categorical(torch.tensor([0.3, 0.7]).double())
    law = dist.MixtureSameFamily(shares, dist.Gamma(torch.tensor([2.0, 9.0]).double(), 1.0))
    density = density_of(lambda: pyro.sample("x", law), torch.zeros(1).double())
    z = torch.linspace(-2, 2, 5).double()
    truth = law.log_prob(z.exp()) + z
    assert torch.allclose(density.function(z.unsqueeze(-1)), truth)
    on_a_sphere = dist.ProjectedNormal(torch.ones(3).double())
    with pytest.raises(NotImplementedError, match="The site 'x' .* has the support Sphere"):
        density_of(lambda: pyro.sample("x", on_a_sphere), torch.zeros(1).double())


def test_a_model_whose_course_depends_on_values_is_followed():
    """It has no graph of operations and no batch; |x| by a branch is as |x| without."""
    like = torch.zeros((), dtype=torch.float64)

    def branching():
        x = pyro.sample("x", dist.Normal(like, 1.0))
        pyro.factor("f", -x if x > 0 else x)

    density = density_of(branching, like)
    x = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    value, gradient = value_and_gradient(density.function, x)
    expected = -0.5 * x.square() - x.abs() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(value, expected.squeeze(-1))
    assert torch.allclose(gradient, -x - x.sign())
    plain = lambda x: value_and_gradient(density.function, x)  # noqa: E731
    assert graphs.captured(plain, x) is plain


def test_a_graph_computes_what_the_function_does():
    matrix = torch.randn(5, 5, dtype=torch.float64)

    def function(x):
        scale = (matrix.exp() @ matrix).abs()  # of no input: computed once
        y = torch.tanh(x @ scale.T / 50)
        y[:, 0] = x[:, 1].clamp_min(0)  # written in place
        return y.square().sum(-1), y

    x = torch.randn(3, 5, dtype=torch.float64)
    graph = graphs.captured(function, x)
    assert isinstance(graph, graphs.Graph)
    other = torch.randn(3, 5, dtype=torch.float64)
    assert all(map(torch.equal, graph(other), function(other)))
    called = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.exp.default not in called


def test_a_graph_leaves_out_what_does_nothing():
    """Sums over a dimension of one, zeros that are added; not sums and zeros that broadcast."""

    def function(x):
        one = x[:, 0].unsqueeze(-1).sum(-1) + 0.0
        return one * 2, x.unsqueeze(-1).sum(1), torch.zeros(2, 3, 5, dtype=x.dtype) + 0 + x

    x = torch.randn(3, 5, dtype=torch.float64)
    graph = graphs.captured(function, x)
    assert isinstance(graph, graphs.Graph)
    assert all(map(torch.equal, graph(x), function(x)))
    called = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.aten.sum.dim_IntList) == 1
    assert called.count(torch.ops.aten.add.Tensor) == 1


def test_chains_whose_factorisation_fails_leave_the_others_alone():
    def log_prob(x):
        matrix = x[:, :1, None] * torch.eye(2, dtype=x.dtype)
        return torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    x = torch.tensor([[2.0], [-1.0], [3.0]], dtype=torch.float64)
    value, gradient = value_and_gradient(log_prob, x)
    assert value[0] == pytest.approx(math.log(2))
    assert value[1] == -torch.inf
    assert gradient[:, 0].tolist() == pytest.approx([0.5, 0.0, 1 / 3])


def test_no_start_is_an_error():
    density = LogDensity(lambda x: x.sum(-1) * torch.nan, 2)
    with pytest.raises(ValueError, match="No start"):
        run(HMC(progress=False), density)


_STEEP = {"num_samples": 20, "num_warmup": 80, "progress": False, "compile": False}


@pytest.mark.parametrize(
    ("method", "rescued"),
    [
        (HMC(**_STEEP), True),
        (HMC(**_STEEP), False),
        (ChEES(num_chains=16, **_STEEP), True),
        (MCLMC(adjusted=True, **_STEEP), True),
    ],
    ids=["HMC", "without", "ChEES", "MCLMC"],
)
def test_a_chain_that_starts_too_steep_is_put_where_others_are(method, rescued, monkeypatch):
    # noise 1e-4 at residuals of 5: no step that suits the others is accepted there
    def function(x):
        log_noise = x[:, 0]
        white = x[:, 1:] * (-0.5 * log_noise).exp().unsqueeze(-1)
        return -0.5 * (log_noise.square() + white.square().sum(-1) + 2 * log_noise)

    def initial(generator, number):
        start = torch.randn(number, 3, generator=generator, dtype=torch.float64)
        start[0] = torch.tensor([-18.0, 5.0, 5.0])
        return start

    if not rescued:
        monkeypatch.setattr(Rescue, "_EARLY", 0.0)
    draws = run(method, LogDensity(function, 3, initial=initial))
    moved = draws.samples["x"][0].diff(dim=0).abs().sum(-1) > 0
    assert (float(moved.double().mean()) > 0.3) == rescued


def test_a_chain_far_below_the_others_is_put_where_they_are_and_forgotten():
    """It moves, on a plateau; of the scales nothing of it may be left."""

    def function(x):
        return torch.logaddexp(-0.5 * x.square().sum(-1), -1000 - 1e-4 * x.square().sum(-1))

    def initial(generator, number):
        start = torch.randn(number, 3, generator=generator, dtype=torch.float64)
        start[0] = 200
        return start

    kernel = ChEES(num_chains=16)._kernel(
        Evaluation(LogDensity(function, 3, initial=initial), compile=False)
    )
    generator = torch.Generator().manual_seed(0)
    state = kernel.start(initial(generator, 16), generator)
    for done in torch.linspace(0, 0.3, 61).tolist():
        if done < ARRIVED:
            assert float(state["position"][0].norm()) > 100
            assert int(state["refusals"][0]) < 10
        state = kernel.warm_up(state, done, generator)
    assert float(state["position"].norm(dim=-1).max()) < 10
    assert float(state["scale"].max()) < 2


def test_no_draw_of_a_funnel_or_of_heavy_tails_is_far_out():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 11, generator=generator, dtype=torch.float64)
    neck = 3 * z[:, 0]
    funnel = -0.5 * z.square().sum(-1) - 5 * neck  # nine deviations exp(neck / 2)
    u = torch.rand(2000, 5, generator=generator, dtype=torch.float64)
    cauchy = -torch.log1p((math.pi * (u - 0.5)).tan().square()).sum(-1)
    assert not bool(Rescue._far(funnel, 11).any())
    assert not bool(Rescue._far(cauchy, 5).any())
    assert Rescue._far(torch.cat([cauchy[:20], cauchy.new_tensor([-500.0])]), 5).sum() == 1


def test_isokinetic_steps_keep_the_energy_to_second_order():
    """And the speed exactly; the error of a step is of third order, so a path's of second."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)

    def gradient_of(x):
        return -0.5 * x.square().sum(-1), -x

    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    u = unit_velocity(x, generator)

    def error(step, number):
        y, v, total = x, u, 0.0
        lp, gradient = gradient_of(x)
        for _ in range(number):
            y, v, value, gradient, change = isokinetic_step(
                gradient_of, y, v, gradient, torch.tensor(step).double(), scale
            )
            total = total + change
        assert torch.allclose(v.norm(dim=-1), torch.ones(50).double())
        return float((total - (value - lp)).abs().mean())

    assert error(0.2, 5) / error(0.1, 10) == pytest.approx(4, rel=0.3)


def test_autocorrelation_time_of_an_autoregression():
    """x' = r x + noise has (1 + r) / (1 - r)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(64, 1, dtype=torch.float64)
    steps = []
    for _ in range(600):
        x = 0.8 * x + torch.randn(64, 1, generator=generator, dtype=torch.float64)
        steps.append(x)
    assert autocorrelation_time(torch.stack(steps, 1)) == pytest.approx(9, rel=0.1)


def test_members_of_an_ensemble_begin_at_modes():
    """Of two modes each member is in one; its training goes to the top."""

    def log_prob(x):
        top = torch.logaddexp(-50 * (x[:, 0] - 1).square(), -50 * (x[:, 0] + 1).square())
        return top - x[:, 1].square()

    method = LangevinEnsemble(num_training_steps=150, learning_rate=0.05, num_chains=8)
    generator = torch.Generator().manual_seed(0)
    start = method._initial(LogDensity(log_prob, 2), generator, torch.zeros(1).double())
    assert torch.allclose(start[:, 0].abs(), torch.ones(8).double(), atol=0.02)
    assert len(start[:, 0].sign().unique()) == 2


def test_gradients_of_the_training_are_of_the_warm_up():
    density = LogDensity(lambda x: -x.square().sum(-1), 2)
    method = LangevinEnsemble(3, 5, 2, num_training_steps=7, num_steps=4, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This run of", UserWarning)
        draws = method.run(density, torch.zeros(1).double())
    # one at the start, two for a step
    assert draws.num_gradients == {"warmup": 7 + 1 + 5 * 4 * 2, "sampling": 3 * 4 * 2}


def test_a_function_of_one_position_is_told_from_one_of_many():
    """One number for all chains would be the density of none of them."""
    with pytest.raises(ValueError, match=r"gives shape \(\) of positions \(8, 2\).*batched=False"):
        run(HMC(**{**QUICK, "num_chains": 8}), LogDensity(lambda x: -x.square().sum(), 2))
    density = LogDensity(lambda x: -x.square().sum(), 2, batched=False)
    position = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert density.function(position).tolist() == [-5.0, -9.0]


@pytest.mark.parametrize("method", [HMC(), NUTS(), MeanField()])
def test_a_model_with_arguments_is_told_what_to_do(method):
    def model(X, y=None):
        raise AssertionError("called")

    with pytest.raises(TypeError, match=r"takes X; pass functools.partial\(model, X\)"):
        method.run(model, torch.zeros(1))


def test_members_stay_at_modes_of_their_own():
    """A method says so in its draws, by which they are judged."""

    def two_modes(x):
        each = torch.logaddexp(-50 * (x[:, 0] - 2).square(), -50 * (x[:, 0] + 2).square())
        return each - 50 * x[:, 1].square()

    method = LangevinEnsemble(200, 100, 8, num_training_steps=200, progress=False)
    draws = method.run(LogDensity(two_modes, 2), torch.zeros(1).double())  # and no warning
    assert draws.members_apart
    means = draws.samples["x"].mean(1)[:, 0]
    assert bool((means > 1).any())
    assert bool((means < -1).any())
    one_mode = LogDensity(lambda x: -x.square().sum(-1), 1)
    assert not run(HMC(**QUICK), one_mode).members_apart


def test_rows_are_needed_for_minibatches():
    density = LogDensity(lambda x: -x.square().sum(-1), 2)
    with pytest.raises(ValueError, match="Rows"):
        run(SGHMC(batch_size=3, progress=False), density)
    rows = Rows(10, lambda x, index: -x.square().sum(-1))
    assert LogDensity(density.function, 2, rows=rows).rows.num_rows == 10


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_chains >= 1"):
        HMC(num_chains=0)
    with pytest.raises(TypeError, match=r"num_samples as an int, got 10.5"):
        HMC(num_samples=10.5)
    with pytest.raises(ValueError, match="num_chains >= 2"):
        ChEES(num_chains=1)
    with pytest.raises(ValueError, match="target_accept_prob"):
        MCLMC(target_accept_prob=1.0)
    for method in (MCLMC(), MCLMC(adjusted=True), LangevinEnsemble()):
        with pytest.raises(ValueError, match=f"{type(method).__name__} turns a .* two dimensions"):
            run(method, LogDensity(lambda x: -x.square().sum(-1), 1))
    with pytest.raises(ValueError, match="friction"):
        SGHMC(friction=0.0)
    with pytest.raises(ValueError, match="learning_rate"):
        LangevinEnsemble(learning_rate=0.0)
    with pytest.raises(ValueError, match="trajectory_length"):
        HMC(trajectory_length=0.0)
    with pytest.raises(ValueError, match="dimension"):
        LogDensity(lambda x: x, 0)


def test_chains_that_disagree_and_divergences_are_told():
    def two_modes(x):
        return torch.logaddexp(-50 * (x - 5).square(), -50 * (x + 5).square()).sum(-1)

    with pytest.warns(UserWarning, match="draws have R-hat up to"):
        HMC(**QUICK).run(LogDensity(two_modes, 1), torch.zeros(1).double())


def test_chains_of_nuts_that_disagree_are_told():
    def model():
        x = pyro.sample("x", dist.Uniform(-30.0, 30.0))
        pyro.factor("apart", torch.logaddexp(-2 * (x - 20) ** 2, -2 * (x + 20) ** 2))

    with pytest.warns(UserWarning, match="This run of NUTS may not have converged: draws have R-h"):
        NUTS(num_samples=8, num_warmup=8, num_chains=2, progress=False, seed=1).run(
            model, torch.zeros(1)
        )


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(graphs.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="uncompiled"):
        run(
            HMC(compile=True, num_samples=4, num_warmup=4, progress=False),
            LogDensity(lambda x: -x.square().sum(-1), 2),
        )


@pytest.mark.slow
@pytest.mark.skipif(not graphs.has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize(
    "method",
    [
        HMC(),
        ChEES(),
        MCLMC(num_steps=2),
        MCLMC(adjusted=True),
        LangevinEnsemble(num_steps=2, num_training_steps=5),
    ],
    ids=["HMC", "ChEES", "MCLMC", "adjusted", "ensemble"],
)
def test_compiled_runs_are_uncompiled_ones(method):
    """To rounding, which grows along a chain: the first draws are the same, the last alike."""
    model, y, _ = eight_schools()
    mu, _ = eight_schools_truth()
    settings = {"num_samples": 4, "num_warmup": 4, "num_chains": 16, "progress": False}
    both = [
        run(dataclasses.replace(method, compile=compile, **settings), model, y).samples
        for compile in (False, True)
    ]
    for name, eager in both[0].items():
        assert torch.allclose(eager, both[1][name], rtol=1e-6, atol=1e-8), name
    if isinstance(method, LangevinEnsemble):  # whose default is not for exact moments
        return
    settings = {"num_samples": 100, "num_warmup": 150, "num_chains": 64, "progress": False}
    draws = run(dataclasses.replace(method, compile=True, **settings), model, y)
    off, _ = moments_in_errors(draws.samples["mu"].unsqueeze(-1), mu, 3.3, bias=0.02)
    assert abs(float(off)) < 4


@pytest.mark.parametrize(
    "method",
    [
        MCLMC(num_steps=2, progress=False),
        pytest.param(MCLMC(adjusted=True, progress=False), marks=pytest.mark.slow),
        pytest.param(
            LangevinEnsemble(num_steps=2, num_training_steps=5, progress=False),
            marks=pytest.mark.slow,
        ),
        SGHMC(num_steps=2, progress=False),
    ],
    ids=["MCLMC", "adjusted", "ensemble", "SGHMC"],
)
def test_an_interrupted_run_goes_on(method, tmp_path):
    class Contract(SamplerContract):
        def make_method(self, seed):
            return method

    Contract().test_an_interrupted_run_goes_on_bit_for_bit(tmp_path)


def normal_about(mean, num_rows=10):
    """N(mean, 1) in two dimensions, of rows that tell the same."""

    def log_prob(x, index=None):
        return -0.5 * (x - mean).square().sum(-1)

    return LogDensity(log_prob, 2, rows=Rows(num_rows, log_prob))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_checkpoint_of_stochastic_gradients_is_of_one_model(batch_size, tmp_path):
    """Also where it holds a minibatch's state; its own model goes on bit for bit."""
    path = tmp_path / "run.safetensors"
    once = SGHMC(num_samples=10, num_warmup=5, batch_size=batch_size, progress=False)
    half = dataclasses.replace(once, num_samples=5, checkpoint=path)
    whole = run(once, normal_about(0.0))
    run(half, normal_about(0.0))
    with pytest.raises(ValueError, match="of another model or other data"):
        run(half, normal_about(50.0))
    rest = run(dataclasses.replace(half, num_samples=10), normal_about(0.0))
    assert torch.equal(whole.samples["x"], rest.samples["x"])
    assert whole.num_gradients == rest.num_gradients
    run(dataclasses.replace(half, num_samples=15), normal_about(0.0))  # taken up twice
    with pytest.raises(ValueError, match="of another model or other data"):
        run(half, normal_about(50.0))


def test_the_log_density_of_stochastic_gradients_is_that_of_the_draw():
    method = SGHMC(num_samples=10, num_warmup=5, num_steps=4, progress=False)
    draws = run(method, normal_about(1.0))
    assert torch.allclose(draws.stats["lp"], -0.5 * (draws.samples["x"] - 1).square().sum(-1))
    assert draws.num_gradients == {"warmup": 1 + 5 * 4, "sampling": 10 * 4}
    minibatches = run(dataclasses.replace(method, batch_size=3), normal_about(1.0))
    assert "lp" not in minibatches.stats  # which a minibatch does not know


def test_a_warm_up_that_diverges_is_told():
    upwards = LogDensity(lambda x: x.square().exp().sum(-1), 2)
    with pytest.raises(RuntimeError, match="SGHMC diverged in its warm-up: .* no longer finite"):
        run(SGHMC(step_size=1.0, num_warmup=50, progress=False), upwards)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        (HMC(), "raise target_accept_prob above 0.8"),
        (ChEES(target_accept_prob=0.9), "raise target_accept_prob above 0.9"),
        (MCLMC(adjusted=True), "raise target_accept_prob above 0.9"),
        (MCLMC(), "lower energy_var below 0.0005"),
        (LangevinEnsemble(num_training_steps=5), "lower energy_var below 0.001"),
        (SGHMC(num_steps=2), "lower step_size below 0.05"),
        (NUTS(), "raise target_accept_prob above 0.8"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_methods_say_what_makes_their_steps_smaller(method, advice):
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    few = {"num_samples": 4, "num_warmup": 4, "num_chains": 2, "progress": False}
    draws = run(dataclasses.replace(method, **few), model)
    assert draws.smaller_steps == advice
    assert all(hasattr(method, word) for word in advice.split() if "_" in word)


def test_lengths_are_spread_evenly():
    values = [van_der_corput(k) for k in range(1, 8)]
    assert sorted(values) == [k / 8 for k in range(1, 8)]


def test_leapfrog_steps_are_reversible():
    """Back with the momentum turned round, to where it came from."""
    from bayes.inference.evaluation import Evaluation

    density = LogDensity(lambda x: -x.pow(4).sum(-1), 3)
    evaluation = Evaluation(density, compile=False)
    kernel = HamiltonianKernel(evaluation, 0.8, 1.0, 10)
    assert kernel.max_steps == 10
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    p = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    size = torch.tensor(0.1, dtype=torch.float64)

    def walk(x, p):
        _, gradient = evaluation(x)
        x, p, _, gradient = evaluation.steps(x, p + size / 2 * gradient, size, 7)
        return x, p - size / 2 * gradient

    end, momentum = walk(x, p)
    back, turned = walk(end, -momentum)
    assert torch.allclose(back, x)
    assert torch.allclose(turned, -p)
