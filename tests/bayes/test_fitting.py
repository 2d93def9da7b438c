"""Fits: that they end, within limits and well, and what is said where they do not."""

import itertools
import math
from functools import partial

import gpytorch
import linear_operator
import numpy as np
import pytest
import torch
from botorch.exceptions import ModelFittingError
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import Kernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood, LaplaceLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.errors import NanError
from torch import nn

from bayes import (
    GaussianProcess,
    HeteroscedasticGaussianProcess,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
)
from bayes.log_priors import log_priors
from bayes.noise import LessNoise, NoiseLevel, learnt_noise
from bayes.processes.fitting import ParameterVector, Watch, maximise, runaway_values
from bayes.processes.marginal_likelihood import relative_jitter
from benchmarks.bayes.stress import WELL, random_problem, verdict
from priors import HalfCauchyVariance, NNGPKernel

PROCESSES = [GaussianProcess, StudentTProcess]


def network(activation=None, inputs=3, width=4):
    activation = nn.ReLU() if activation is None else activation
    return nn.Sequential(nn.Linear(inputs, width), activation, nn.Linear(width, 1))


def deep(activation, inputs):
    layers = [nn.Linear(inputs, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 1)]
    return nn.Sequential(*layers)


def with_priors(model):
    """What a fit maximises, up to a constant."""
    total = model.log_marginal_likelihood()
    for _, module, prior, closure, _ in model.named_priors():
        total = total + prior.log_prob(closure(module)).sum()
    return total.item()


def data(n=30, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, torch.sin(2 * X[:, :1]) + noise


class Bowl(gpytorch.Module):
    """-(log a - 1)^2 - (b - 2)^2 with a >= 0.5 and b free: a known maximum at a = e, b = 2."""

    def __init__(self):
        super().__init__()
        self.register_parameter("a", nn.Parameter(torch.tensor([1.0], dtype=torch.float64)))
        self.register_constraint("a", GreaterThan(0.5, transform=None))
        self.register_parameter("b", nn.Parameter(torch.zeros(2, dtype=torch.float64)))

    def forward(self):
        return -((self.a.log() - 1) ** 2).sum() - ((self.b - 2) ** 2).sum()


def watch(timeout=None, **options):
    settings = {"progress": False, "num_starts": 1, "reasons": list} | options
    settings["device"] = torch.device("cpu")
    return Watch("Bowl", timeout=timeout, **settings)


class TestMaximise:
    def test_the_maximum_is_found(self):
        bowl = Bowl()
        maximise(bowl, bowl.forward, watch())
        assert bowl.a.item() == pytest.approx(math.e, rel=1e-4)
        assert bowl.b.tolist() == pytest.approx([2.0, 2.0], rel=1e-4)

    def test_bounds_hold(self):
        bowl = Bowl()
        maximise(bowl, lambda: -bowl.a.log().sum() - bowl.b.square().sum(), watch())
        assert bowl.a.item() == pytest.approx(0.5)

    def test_interruption_keeps_the_best_so_far(self):
        bowl, count = Bowl(), itertools.count()
        seen = []

        def objective():
            if next(count) == 2:
                raise KeyboardInterrupt
            value = bowl()
            seen.append((value.item(), bowl.b.tolist()))
            return value

        with pytest.warns(UserWarning, match="stopped by Ctrl-C after 2 evaluations"):
            maximise(bowl, objective, watch())
        assert bowl.b.tolist() == max(seen)[1]

    def test_interruption_before_anything_is_found_is_passed_on(self):
        def objective():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            maximise(Bowl(), objective, watch())

    def test_a_timeout_keeps_the_first_evaluation(self):
        bowl = Bowl()
        with pytest.warns(UserWarning, match="its timeout of 0 s after 1 evaluations"):
            maximise(bowl, bowl.forward, watch(timeout=0.0))
        assert bowl.a.item() == 1.0

    def test_max_iter(self):
        bowl = Bowl()
        with pytest.warns(UserWarning, match="stopped by max_iter=1"):
            maximise(bowl, bowl.forward, watch(), max_iter=1)
        start = Bowl()
        assert bowl() > start()

    def test_options_reach_the_optimiser(self):
        bowl = Bowl()
        options = {"method": "TNC", "options": {"maxfun": 200}}
        with pytest.warns(UserWarning, match="Unknown solver options"):  # maxiter is not TNC's
            maximise(bowl, bowl.forward, watch(), optimizer_kwargs=options)

    def test_restarts_leave_a_local_optimum(self):
        class Two(gpytorch.Module):
            """A low peak at s = 1, where the fit starts, and a high one at s = 10."""

            def __init__(self):
                super().__init__()
                self.register_parameter("raw_s", nn.Parameter(torch.zeros(1)))
                self.register_constraint("raw_s", Positive(torch.exp, torch.log))
                self.register_prior(
                    "s_prior",
                    LogNormalPrior(1.0, 1.5),
                    lambda m: m.raw_s.exp(),
                    lambda m, value: m.initialize(raw_s=value.log()),
                )

            def forward(self):
                t = self.raw_s / math.log(10)
                return (torch.exp(-20 * t**2) + 2 * torch.exp(-20 * (t - 1) ** 2)).sum()

        for restarts, expected in ((0, 1.0), (8, 10.0)):
            torch.manual_seed(0)
            two = Two()
            maximise(two, two.forward, watch(), num_restarts=restarts)
            assert two.raw_s.exp().item() == pytest.approx(expected, rel=1e-2)
        with pytest.raises(ValueError, match="priors, but this model has none"):
            maximise(Bowl(), Bowl().forward, watch(), num_restarts=1)

    def test_failed_evaluations_turn_the_line_search_back(self):
        bowl = Bowl()

        def objective():
            if bowl.b.max() > 2.5:
                raise linear_operator.utils.errors.NotPSDError("not positive definite")
            return bowl()

        maximise(bowl, objective, watch())
        assert bowl.b.tolist() == pytest.approx([2.0, 2.0], rel=1e-3)

    def test_other_errors_are_raised(self):
        def objective():
            raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            maximise(Bowl(), objective, watch())


def test_a_window_holds_what_is_a_logarithm_by_its_name():
    module = gpytorch.Module()
    for name in ("log_scale", "logit", "raw_log_scale"):
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(1).double()))
    free = [-math.inf, math.inf]
    assert ParameterVector(module).bounds(2.0).tolist() == [[-2.0, 2.0], free, free]


def test_a_vector_of_parameters():
    vector = ParameterVector(Bowl())
    assert len(vector) == 3
    assert vector.values().tolist() == [0.0, 0.0, 0.0]  # log 1, 0, 0
    free = [-math.inf, math.inf]
    assert vector.bounds().tolist() == [[math.log(0.5), math.inf], free, free]
    assert vector.bounds(0.1).tolist() == [[-0.1, 0.1], free, free]
    bowl = Bowl()
    vector = ParameterVector(bowl)
    vector.assign(np.array([0.3, 1.0, -1.0]))
    assert bowl.a.item() == pytest.approx(math.exp(0.3))
    value, gradient = vector.value_and_gradient(bowl.forward)
    assert value == pytest.approx(-(0.7**2) - 1 - 9)
    assert gradient.tolist() == pytest.approx([2 * 0.7, 2.0, 6.0])


def tell(monkeypatch, times, share=1.0):
    """Let clocks tell these times, and a share of them as the work's."""
    seconds = ((t, share * t, share * t) for t in times)
    monkeypatch.setattr("priors.work_clock.WorkClock._now", lambda _: next(seconds))


class TestWatch:
    def clock(self, monkeypatch, seconds):
        tell(monkeypatch, itertools.count(0.0, seconds))

    def test_a_short_fit_shows_nothing(self, monkeypatch, capsys):
        self.clock(monkeypatch, 0.001)
        bowl = Bowl()
        maximise(bowl, bowl.forward, watch(progress=None))
        assert capsys.readouterr().err == ""

    def test_a_long_fit_shows_a_bar(self, monkeypatch, capsys):
        self.clock(monkeypatch, 0.5)
        bowl = Bowl()
        maximise(bowl, bowl.forward, watch(progress=None))
        assert "fit:" in capsys.readouterr().err

    def test_minutes_are_announced_with_their_reason(self, monkeypatch, capsys):
        self.clock(monkeypatch, 3.0)
        bowl = Bowl()
        with pytest.warns(UserWarning, match=r"about 2 minutes(.|\n)*\* a slow part"):
            maximise(bowl, bowl.forward, watch(reasons=lambda: ["a slow part"]))
        assert capsys.readouterr().err == ""  # progress=False

    def test_a_busy_machine_is_no_reason_to_warn(self, monkeypatch, capsys):
        # of 3 s that pass, the process had 0.1 s: no minutes of work, but a bar while it lasts
        tell(monkeypatch, itertools.count(0.0, 3.0), share=1 / 30)
        bowl = Bowl()
        maximise(bowl, bowl.forward, watch(progress=None))  # warnings are errors
        assert "fit:" in capsys.readouterr().err

    def test_a_first_evaluation_that_makes_tables_is_no_estimate(self, monkeypatch, capsys):
        # the clock is asked at the start, and before and after each evaluation
        times = itertools.chain([0.0, 0.0], itertools.count(100.0, 0.001))
        tell(monkeypatch, times)
        bowl = Bowl()
        maximise(bowl, bowl.forward, watch(progress=None))  # warnings are errors
        assert capsys.readouterr().err == ""


class Endless(Kernel):
    """A kernel that counts its evaluations and interrupts."""

    has_lengthscale = True

    def __init__(self, after):
        super().__init__()
        self.after, self.count = after, 0

    def forward(self, x1, x2, diag=False, **params):
        self.count += 1
        if self.training and self.count > self.after:
            raise KeyboardInterrupt
        return RBFKernel.forward(self, x1, x2, diag=diag, **params)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_interrupted_model_is_usable(process):
    X, Y = data()
    model = process(X, Y, Endless(after=3))
    with pytest.warns(UserWarning, match="stopped by Ctrl-C"):
        assert model.fit() is model
    assert model.posterior(X).mean.isfinite().all()


@pytest.mark.parametrize("process", PROCESSES)
def test_limits_of_a_model_s_fit(process):
    X, Y = data()
    with pytest.warns(UserWarning, match=f"fit of {process.__name__} was stopped by max_iter=2"):
        early = process(X, Y, NNGPKernel(network())).fit(max_iter=2)
    late = process(X, Y, NNGPKernel(network())).fit(optimizer_kwargs={"options": {"gtol": 1e-4}})
    assert with_priors(late) > with_priors(early)
    with pytest.warns(UserWarning, match="its timeout of 0 s"):
        process(X, Y, NNGPKernel(network())).fit(timeout=0.0)
    with pytest.raises(ValueError, match="max_iter >= 1"):
        process(X, Y, NNGPKernel(network())).fit(max_iter=0)


@pytest.mark.filterwarnings("ignore:.*max_iter=10")
@pytest.mark.parametrize("process", PROCESSES)
def test_restarts_are_seeded_and_no_worse(process):
    X, Y = data()

    made = NNGPKernel(network(), ard_num_dims=3)  # a module draws weights

    def fitted(**options):
        return process(X, Y, made).fit(progress=False, max_iter=10, **options)

    state = torch.random.get_rng_state()
    one, again = (fitted(num_restarts=2, seed=1) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)

    def objective(model):
        model.train()
        return model._objective(model._marginal_log_likelihood()).item()

    assert objective(one) >= objective(fitted()) - 1e-9


@pytest.mark.covering
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("transform", ["default", None, "exp"])
def test_evidence_is_the_density_of_the_outcomes(m, transform):
    """Against dense algebra, in the units of Y, without priors, with the transform's Jacobian."""
    X, Y = data(n=8)
    Y = torch.cat([Y, 3 * Y.flip(0) + 1], -1)[:, :m]
    likelihood = GaussianLikelihood()
    likelihood.noise = 0.05
    kernel = NNGPKernel(network(nn.GELU()), ard_num_dims=3)
    options = {"default": {}, None: {"outcome_transform": None}}
    options["exp"] = {"outcome_transform": torch.distributions.ExpTransform()}
    if transform == "exp":
        Y = Y.exp()
    model = GaussianProcess(X, Y, kernel, likelihood=likelihood, **options[transform])
    Z = (X - X.mean(0)) / X.std(0)
    with torch.no_grad():
        K = kernel(Z).to_dense() + 0.05 * torch.eye(8, dtype=torch.float64)
    expected = 0.0
    for y in Y.T:
        loc, scale = (y.mean(), y.std()) if transform == "default" else (0.0, 1.0)
        z = y.log() if transform == "exp" else (y - loc) / scale
        jacobian = y.log().sum() if transform == "exp" else 8 * math.log(scale)
        density = torch.distributions.MultivariateNormal(torch.zeros_like(z), K)
        expected += density.log_prob(z) - jacobian
    torch.testing.assert_close(model.log_marginal_likelihood(), expected)
    before = model.posterior(X).mean
    model.log_marginal_likelihood()
    assert torch.equal(model.posterior(X).mean, before)


def test_evidence_of_a_student_t_process_by_integration_over_the_scale():
    X, Y = data(n=5)
    likelihood = GaussianLikelihood()
    likelihood.noise = 0.1
    kernel = NNGPKernel(network(), bias_var=0.2)
    model = StudentTProcess(
        X, Y, kernel, likelihood=likelihood, input_transform=None, outcome_transform=None
    )
    with torch.no_grad():
        K = kernel(X).to_dense() + 0.1 * torch.eye(5, dtype=torch.float64)
    log_scale = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    scale = log_scale.exp()
    prior = torch.distributions.InverseGamma(2.0, 2.0).log_prob(scale) + log_scale
    density = torch.distributions.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64), scale[:, None, None] * K
    ).log_prob(Y[:, 0])
    expected = torch.trapezoid((prior + density).exp(), log_scale).log()
    torch.testing.assert_close(model.log_marginal_likelihood(), expected)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_jitter_is_relative_to_the_diagonal(scale):
    """A kernel of rank 3 at 30 rows needs jitter; its predictions do not depend on its scale."""
    diagonal = torch.full((4,), scale, dtype=torch.float64)
    with relative_jitter(diagonal):
        found = linear_operator.settings.cholesky_jitter.value(torch.float64)
    assert found == pytest.approx(1e-8 * scale)
    assert linear_operator.settings.cholesky_jitter.value(torch.float64) == 1e-8


def test_the_variance_that_ran_away_is_named():
    X, Y = data()
    kernel = NNGPKernel(network())
    kernel.variances.weight_var["0"] = 1e300
    kernel.variances.weight_var["2"] = 1e300
    for parameter in kernel.parameters():
        parameter.requires_grad_(False)
    model = GaussianProcess(X, Y, kernel)
    for name in ("weight_var_0_prior", "weight_var_2_prior"):
        del model.covar_module.variances._priors[name]
    with pytest.raises(ModelFittingError, match=r"weight_var of layer '[02]' is 1e\+300.*hold"):
        model.fit()


def test_runaway_values():
    kernel = ScaleKernel(NNGPKernel(network(), ard_num_dims=3))
    assert runaway_values(kernel) == []
    kernel.double()
    kernel.base_kernel.lengthscale = torch.tensor([1.0, 1e9, 1.0])
    kernel.outputscale = 1e-20
    kernel.base_kernel.variances.bias_var["0"] = 1e8
    first, *others = runaway_values(kernel)
    assert first.endswith("outputscale is 1e-20")
    assert others == ["input_scale.lengthscale is 1e+09", "bias_var of layer '0' is 1e+08"]


def test_inputs_far_from_standardised_get_a_warning():
    X, Y = data()
    X_far = X * torch.tensor([1.0, 100.0, 1.0])
    with pytest.warns(UserWarning, match=r"column 1.*expects mean 0.*input_transform"):
        GaussianProcess(X_far, Y, ScaleKernel(NNGPKernel(network())), input_transform=None)
    GaussianProcess(X_far, Y, NNGPKernel(network()))  # standardised
    GaussianProcess(X_far, Y, RBFKernel(), input_transform=None)  # not of a network
    GaussianProcess(X, Y, NNGPKernel(network()), input_transform=None)
    seen = NNGPKernel(network(inputs=2), active_dims=(0, 2))
    GaussianProcess(X_far, Y, seen, input_transform=None)


def test_a_model_shows_what_it_learnt():
    X, Y = data()
    model = GaussianProcess(X, Y, ScaleKernel(NNGPKernel(network(), ard_num_dims=3)))
    model.covar_module.outputscale = 0.25
    model.likelihood.noise = 0.125
    text = repr(model)
    assert text.startswith("GaussianProcess(30 rows, 3 inputs, 1 output)")
    for part in ("weight_var", "1 (held)", "lengthscale by feature: 1, 1, 1", "0.25", "0.125"):
        assert part in text


@pytest.mark.parametrize("process", PROCESSES)
def test_help_lists_the_class_s_own_arguments(process):
    text = process.__doc__ + process.__init__.__doc__
    for name in ("train_X", "kernel", "input_transform", "outcome_transform"):
        assert f"{name}:" in text
    assert "covar_module:" not in text
    assert "mean_module" not in text


@pytest.mark.parametrize("seed", [0, 1])
def test_noisy_outcomes_are_not_interpolated(seed):
    """Half of the variance is noise; an optimum without any is 13 nats below the best."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    Y = X[:, :1] + torch.randn(60, 1, generator=generator, dtype=torch.float64)
    kernel = NNGPKernel(deep(nn.ReLU(), inputs=8), ard_num_dims=8)
    model = GaussianProcess(X, Y, kernel).fit()
    assert 0.2 < model.likelihood.noise.item() < 0.8
    from_truth = GaussianProcess(X, Y, kernel)
    from_truth.likelihood.noise = 0.5
    from_truth.fit()
    evidence = [m.log_marginal_likelihood().item() for m in (model, from_truth)]
    assert evidence[0] == pytest.approx(evidence[1], abs=0.1)


def test_outcomes_with_hardly_any_noise_are_not_smoothed():
    X, _ = data(n=40, d=2)
    Y = torch.sin(3 * X[:, :1]) + X[:, 1:].relu()
    model = GaussianProcess(X, Y, NNGPKernel(deep(nn.GELU(), inputs=2), ard_num_dims=2)).fit()
    assert model.likelihood.noise.item() < 0.01


@pytest.mark.parametrize(
    "model",
    [
        GaussianProcess,
        StudentTProcess,
        partial(ScaleMixtureProcess, scale=HalfCauchyVariance(torch.ones(()).double())),
        HeteroscedasticGaussianProcess,
        VariationalGaussianProcess,
    ],
)
def test_fine_structure_is_not_taken_for_noise(model):
    """There are two optima, one with the fine wave as noise of 0.3% of the variance."""
    X = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    between = (X[1:] + X[:-1]) / 2

    def function(X):
        return torch.sin(6 * X) + 0.05 * torch.sin(25 * X)

    posterior = model(X, function(X), ScaleKernel(RBFKernel())).fit().posterior(between)
    assert (posterior.mean - function(between)).square().mean().sqrt() < 1e-3


def scale_process(noise_too):
    scale = HalfCauchyVariance(torch.ones(()).double())
    return partial(ScaleMixtureProcess, scale=scale, scale_noise=noise_too)


@pytest.mark.parametrize(
    "model",
    [
        GaussianProcess,
        VariationalGaussianProcess,
        partial(VariationalGaussianProcess, likelihood="student_t"),
        partial(VariationalGaussianProcess, likelihood=LaplaceLikelihood()),
        StudentTProcess,
        scale_process(False),
        scale_process(True),
    ],
    ids=[
        "Gaussian",
        "variational",
        "outliers",
        "Laplace noise",
        "Student t",
        "mixture",
        "mixture and noise",
    ],
)
def test_oscillations_are_not_taken_for_noise(model):
    """sin 40 x and 10% noise, of which networks' kernels see nothing from where fits start. An
    unknown scale explains any misfit to a smooth function."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(100, 1, generator=generator, dtype=torch.float64)
    queries = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)[:, None]
    Y = torch.sin(40 * X) + 0.1 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
    kernel = NNGPKernel(deep(nn.GELU(), inputs=1), ard_num_dims=1)
    fitted = model(X, Y, kernel).fit()
    error = fitted.posterior(queries).mean - torch.sin(40 * queries)
    assert error.square().mean().sqrt() < 0.15


def test_the_prior_of_noise_is_no_judge_of_optima():
    """Most of this is noise; a function through all 20 rows has the larger density, by 7 nats, to
    which the prior of the noise gives 8."""
    generator = torch.Generator().manual_seed(1027)
    X = torch.rand(20, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    Y = 0.3 * torch.sin(3 * X) + noise
    model = GaussianProcess(X, Y, ScaleKernel(RBFKernel())).fit()
    assert model.likelihood.noise.item() > 0.2


def test_another_start_of_noise():
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(2e-3))
    likelihood.noise = torch.tensor([[0.5]])
    other = LessNoise(NoiseLevel.of(likelihood), 10)
    assert other.is_another
    other.begin()
    assert likelihood.noise.item() == pytest.approx(4e-3), "twice its least"
    learnt = learnt_noise(torch.Size([2]), torch.zeros(1, dtype=torch.float64))
    other = LessNoise(NoiseLevel.of(learnt), 10)
    other.begin()
    assert learnt.noise.flatten().tolist() == pytest.approx([1e-4, 1e-4])
    assert not LessNoise(NoiseLevel.of(learnt), 10).is_another, "it begins with little"
    prior = LogNormalPrior(-4.0, 1.0).log_prob(torch.tensor(1e-4)).item()
    assert other.log_prior() == pytest.approx(2 * prior / 10)
    learnt.noise_covar.raw_noise.requires_grad_(False)
    assert NoiseLevel.of(learnt) is None, "held"


@pytest.mark.parametrize("better", [-1.0, 1.0])
@pytest.mark.parametrize("log_prior", [0.0, 0.5])
def test_the_better_of_two_starts_is_kept(better, log_prior):
    """Optima at about -1, where the first start ends, and 1, 0.4 nats apart; the other is to be
    better without what the prior of the noise gives it, too."""
    bowl = Bowl()

    def objective():
        return -(bowl.b.square() - 1).square().sum() + 0.1 * better * bowl.b.sum()

    class Other:
        is_another = True
        approach = None

        def begin(self):
            assert bowl.b.tolist() == [-2.0, -2.0], "the values that the first began with"
            bowl.b.data.fill_(2.0)

        def is_little(self):
            return False

        def log_prior(self):
            return log_prior if bowl.b[0] > 0 else 0.0

    bowl.b.data.fill_(-2.0)
    maximise(bowl, objective, watch(), less_noise=Other())
    kept = 1.0 if better > 0 and log_prior < 0.4 else -1.0
    assert bowl.b.tolist() == pytest.approx([kept, kept], abs=0.1)


@pytest.mark.parametrize("little", [False, True])
def test_a_start_that_stays_behind_is_given_up(little):
    """After 30 evaluations, unless what it looks for takes longer."""
    bowl = Bowl()
    seen = []

    def objective():
        seen.append(bowl.b.tolist())
        valley = (1 - bowl.b[0]).square() + 100 * (bowl.b[1] - bowl.b[0].square()).square()
        return -valley

    class Other:
        is_another = True
        approach = None

        def is_little(self):
            return little

        def begin(self):
            self.after = len(seen)
            bowl.b.data.copy_(torch.tensor([-30.0, 20.0]))

        def log_prior(self):
            return 0.0

    other = Other()
    bowl.b.data.fill_(0.9)
    maximise(bowl, objective, watch(), less_noise=other)
    assert (len(seen) - other.after == 30) is not little


def test_an_optimum_is_not_climbed_twice():
    """Rosenbrock's valley, of which the second climb leaves out the end."""
    bowl = Bowl()
    seen = []

    def objective():
        seen.append(bowl.b.tolist())
        return -(1 - bowl.b[0]).square() - 10 * (bowl.b[1] - bowl.b[0].square()).square()

    class Other:
        is_another = True
        approach = None

        def is_little(self):
            return True

        def begin(self):
            self.after = len(seen)

        def log_prior(self):
            return 0.0

    other = Other()
    maximise(bowl, objective, watch(), less_noise=other)
    assert seen[0] == seen[other.after]
    assert len(seen) - other.after < other.after - 2
    assert bowl.b.tolist() == pytest.approx([1, 1], abs=1e-3)


def test_a_value_that_leaves_the_support_of_its_prior_is_a_step_too_far():
    """In double precision softplus is zero from -745 on."""
    kernel = ScaleKernel(RBFKernel(), outputscale_prior=LogNormalPrior(1.0, 1.5))
    model = GaussianProcess(*data(), kernel)
    with torch.no_grad():
        assert math.isfinite(log_priors(model))
    model.covar_module.raw_outputscale.data.fill_(-800.0)
    with pytest.raises(NanError, match="outputscale_prior"):
        log_priors(model)


@pytest.mark.parametrize("process", PROCESSES)
def test_little_noise_is_found(process):
    """A hundred thousandth of the variance: sd of the estimate is 0.14 of it, and noise is a ratio
    to the scale for the t process."""
    X = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    noise = torch.randn(100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = torch.sin(5 * X)
    Y = smooth + noise * math.sqrt(1e-5) * smooth.std()
    model = process(X, Y, ScaleKernel(RBFKernel()) if process is GaussianProcess else RBFKernel())
    model.fit()
    single = model.posterior(X[:1], observation_noise=True).variance
    found = (single - model.posterior(X[:1]).variance) / Y.var()
    assert found.item() == pytest.approx(1e-5, rel=0.6)


def test_single_precision_keeps_more_noise():
    X = torch.linspace(0, 1, 100)[:, None]
    model = GaussianProcess(X, torch.sin(5 * X), ScaleKernel(RBFKernel())).fit()
    assert model.likelihood.noise.item() == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_batches_of_several_outputs(process):
    """Outputs of data sets are learnt together as data sets of one output are."""
    X, Y = (torch.stack(rows) for rows in zip(*(data(20, seed=k) for k in range(3)), strict=True))
    several = process(X, torch.cat([Y, Y.exp()], -1), RBFKernel()).fit()
    one = process(torch.cat([X, X]), torch.cat([Y, Y.exp()]), RBFKernel()).fit()
    torch.testing.assert_close(
        several.covar_module.lengthscale, one.covar_module.lengthscale, rtol=1e-3, atol=0
    )
    mean = several.posterior(X).mean
    torch.testing.assert_close(
        mean,
        one.posterior(torch.cat([X, X])).mean.view(2, 3, 20).movedim(0, -1),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_given_likelihood_starts_where_it_is():
    X, Y = data()
    likelihood = GaussianLikelihood()
    likelihood.noise = 0.3
    model = GaussianProcess(X, Y, NNGPKernel(network()), likelihood=likelihood)
    assert model.likelihood.noise.item() == pytest.approx(0.3)


# The quick ones of the first problems; all of `benchmarks fits --stress` by hand.
@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3, 6))])
def test_random_fits_end_well(seed):
    assert verdict(random_problem(seed, {}), limit=60.0) == WELL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 60))
def test_many_random_fits_end_well(seed):
    assert verdict(random_problem(seed, {}), limit=60.0) == WELL
