"""Scale mixtures against dense integration over the scale, the t process, and narrow priors."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import LinearKernel, RBFKernel, ScaleKernel
from scipy import stats
from torch.distributions import (
    Categorical,
    Gamma,
    InverseGamma,
    LogNormal,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import ExpTransform

from bayes import GaussianProcess, ScaleMixtureProcess, StudentTProcess
from priors import BetaPrime, BurrXII, ExpectedImprovement, HalfCauchyVariance
from priors.testing import ModelContract

OFF = {"input_transform": None, "outcome_transform": None}
NARROW = MixtureSameFamily(
    Categorical(torch.tensor([0.999, 0.001]).double()),
    LogNormal(torch.tensor([-6.0, 1.0]).double(), torch.tensor([1e-3, 1e-3]).double()),
)
SCALES = {
    "inverse gamma": InverseGamma(1.5, 0.7),
    "log-normal": LogNormal(0.3, 1.2),
    "Burr": BurrXII(1.5, 0.8, 2.0),
    "beta prime": BetaPrime(0.7, 1.5),
    "half-Cauchy": HalfCauchyVariance(1.0),
    "uniform": Uniform(0.5, 4.0),
    "two narrow humps": NARROW,
    "mixture": MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])),
        InverseGamma(torch.tensor([3.0, 2.0]), torch.tensor([0.02, 90.0])),
    ),
    "by transform": TransformedDistribution(Normal(0.2, 0.9), [ExpTransform()]),
}
# the humps and edges of the densities above, of log s, for the dense rule
CUTS = [-60, -20, -8, -6.006, -5.994, -3, -math.log(2), 0.994, 1.006, math.log(4), 6, 20, 70]


def data(n=8, m=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin(3 * (k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], -1)
    return X, Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def kernel():
    made = RBFKernel()
    made.lengthscale = 0.4
    return made


def make(scale, n=8, m=1, kernel=kernel, **given):
    X, Y = data(n, m)
    model = ScaleMixtureProcess(X, Y, kernel(), scale=scale, **OFF, **given)
    return model


class Dense:
    """The same by NumPy: a solve for each of many scales, weighted by Gauss-Legendre rules."""

    def __init__(self, model, Xs, noisy):
        X, Y = model.train_X, model.train_Y
        ends = np.concatenate(
            [np.linspace(a, b, 9)[:-1] for a, b in itertools.pairwise(CUTS)] + [[70]]
        )
        nodes, weights = np.polynomial.legendre.leggauss(20)
        half = np.diff(ends)[:, None] / 2
        t = (ends[:-1, None] + half * (1 + nodes)).ravel()
        self.s, w = np.exp(t), (half * weights).ravel()
        law = model.scale
        s = torch.as_tensor(self.s)
        inside = law.support.check(s)
        prior = torch.where(inside, law.log_prob(torch.where(inside, s, 1.0)), -torch.inf)
        with torch.no_grad():
            K, k, kk = (
                model.covar_module(*pair).to_dense().numpy() for pair in ((X, X), (Xs, X), (Xs, Xs))
            )
        noise = model.likelihood.noise.flatten()[0].item()
        n, m = Y.shape
        s = self.s[:, None, None]
        scaled = s if model.scale_noise else 1.0
        C = s * K + scaled * noise * np.eye(n)
        Y = np.broadcast_to(Y.numpy(), (len(s), n, m))
        solved = np.linalg.solve(C, np.concatenate([Y, s * k.T], -1))
        log_w = prior.numpy() + t + np.log(w)
        log_w -= 0.5 * (Y * solved[..., :m]).sum((1, 2))
        log_w -= 0.5 * m * (np.linalg.slogdet(C)[1] + n * math.log(2 * math.pi))
        top = log_w.max()
        self.evidence = top + math.log(np.exp(log_w - top).sum())
        self.w = np.exp(log_w - self.evidence)
        self.means = s * k @ solved[..., :m]  # [S, q, m]
        self.covariances = s * kk - s * k @ solved[..., m:]
        self.covariances = self.covariances + noisy * scaled * noise * np.eye(len(Xs))
        keep = self.w > 1e-25
        self.w, self.s, self.means, self.covariances = (
            part[keep] for part in (self.w, self.s, self.means, self.covariances)
        )
        self.std = np.sqrt(self.covariances.diagonal(axis1=1, axis2=2))[..., None]

    def average(self, values):
        return np.einsum("s,s...->...", self.w, values)

    @property
    def mean(self):
        return self.average(self.means)

    @property
    def variance(self):
        return self.average(self.std**2 + (self.means - self.mean) ** 2)

    def density(self, Y):
        return self.average(stats.norm.pdf(Y, self.means, self.std))

    def cdf(self, Y):
        return self.average(stats.norm.cdf(Y, self.means, self.std))

    def joint(self, Y):
        return self.average(np.prod(self.of_outputs(Y), -1))

    def of_outputs(self, Y):
        """Densities `[S, m]` of all points of each output."""
        apart = Y - self.means
        square = (apart * np.linalg.solve(self.covariances, apart)).sum(1)
        log_det = np.linalg.slogdet(self.covariances)[1][:, None]
        return np.exp(-0.5 * (square + log_det + len(Y) * math.log(2 * math.pi)))

    def improvement(self, best):
        u = (self.means - best) / self.std
        return self.average(self.std * (u * stats.norm.cdf(u) + stats.norm.pdf(u)))


Xs = data(4, seed=3)[0]


@pytest.mark.parametrize("scale_noise", [False, True])
@pytest.mark.parametrize("name", SCALES)
def test_against_dense_integration(name, scale_noise):
    model = make(SCALES[name], scale_noise=scale_noise)
    truth = Dense(model, Xs, True)
    posterior = model.posterior(Xs, observation_noise=True)
    assert model.log_marginal_likelihood().item() == pytest.approx(truth.evidence, abs=1e-8)
    assert model.scale_posterior().error < 1e-8
    np.testing.assert_allclose(posterior.mean.detach(), truth.mean, rtol=1e-8)
    np.testing.assert_allclose(posterior.variance.detach(), truth.variance, rtol=1e-8)
    Y = posterior.mean + torch.tensor([[-1.0], [0.3], [2.0], [6.0]]) * posterior.variance.sqrt()
    y = Y.detach().numpy()
    np.testing.assert_allclose(posterior.log_prob(Y).exp().detach(), truth.density(y), rtol=1e-7)
    np.testing.assert_allclose(posterior.cdf(Y).detach(), truth.cdf(y), rtol=1e-7)
    np.testing.assert_allclose(posterior.joint_log_prob(Y).exp().item(), truth.joint(y), rtol=1e-7)
    found = posterior.log_excess(0.5, 1).exp().detach()
    np.testing.assert_allclose(found, truth.improvement(0.5), rtol=1e-7)
    assert torch.allclose(posterior.cdf(posterior.quantile(torch.tensor(0.9))), Y.new_tensor(0.9))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2])
def test_few_rows_and_several_outputs_that_share_the_scale(n, m):
    model = make(BetaPrime(0.7, 1.2), n=n, m=m, likelihood=None)
    model.likelihood.noise = 0.2
    truth = Dense(model, Xs, False)
    posterior = model.posterior(Xs)
    assert model.log_marginal_likelihood().item() == pytest.approx(truth.evidence, abs=1e-8)
    np.testing.assert_allclose(posterior.mean.detach(), truth.mean, rtol=1e-8)
    np.testing.assert_allclose(posterior.variance.detach(), truth.variance, rtol=1e-6)
    Y = truth.mean + 1.3
    np.testing.assert_allclose(
        posterior.log_prob(torch.as_tensor(Y)).exp().detach(), truth.density(Y), rtol=1e-7
    )
    joint = posterior.joint_log_prob(torch.as_tensor(Y)).exp().item()
    assert joint == pytest.approx(truth.joint(Y), rel=1e-6)
    if m > 1:
        one = model.posterior(Xs, output_indices=[1])
        np.testing.assert_allclose(one.variance[:, 0].detach(), truth.variance[:, 1], rtol=1e-6)
        own = truth.average(truth.of_outputs(Y)[:, 1])
        found = one.joint_log_prob(torch.as_tensor(Y[:, 1:])).exp().item()
        assert found == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_the_t_process_for_an_inverse_gamma_and_scaled_noise(m, noisy):
    X, Y = data(12, m)
    t = StudentTProcess(X, Y, kernel(), concentration=1.5, rate=0.7)
    mixture = ScaleMixtureProcess(X, Y, kernel(), scale=InverseGamma(1.5, 0.7), scale_noise=True)
    a, b = (model.posterior(Xs, observation_noise=noisy) for model in (t, mixture))
    p = torch.tensor([1e-6, 0.1, 0.5, 0.99], dtype=torch.float64)
    for distance in (0.5, 4.0, 30.0, 3000.0):
        Z = a.mean + distance * a.variance.sqrt()
        for found, truth in (
            (b.mean, a.mean),
            (b.variance, a.variance),
            (b.quantile(p), a.quantile(p)),
            (b.log_prob(Z), a.log_prob(Z)),
            (b.cdf(Z), a.cdf(Z)),
            (b.joint_log_prob(Z), a.joint_log_prob(Z)),
            (b.log_excess(Z, 0), a.log_excess(Z, 0)),
            (b.log_excess(Z, 1), a.log_excess(Z, 1)),
            (b.crps(Z), a.crps(Z)),
        ):
            assert torch.allclose(found, truth, rtol=1e-8, atol=1e-8)
    assert torch.allclose(mixture.log_marginal_likelihood(), t.log_marginal_likelihood(), 1e-10)
    assert torch.allclose(mixture.leave_one_out().log_prob(Y), _left_out(t, Y), atol=1e-8)


def _left_out(model, Y):
    """Log densities of rows by as many models without them."""
    rows = []
    for i in range(len(Y)):
        rest = [j for j in range(len(Y)) if j != i]
        other = copy.deepcopy(model)
        other.set_train_data(model.train_X[rest], Y[rest], strict=False)
        rows.append(
            other.posterior(model.train_X[i : i + 1], observation_noise=True).log_prob(Y[i])
        )
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["Burr", "half-Cauchy", "two narrow humps"])
def test_leave_one_out_against_models_without_the_row(name):
    for n, m in ((1, 1), (6, 2)):
        X, Y = data(n, m)
        model = ScaleMixtureProcess(X, Y, kernel(), scale=SCALES[name], **OFF)
        found = model.leave_one_out()
        if n > 1:
            assert torch.allclose(found.log_prob(Y), _left_out(model, Y), atol=1e-7)
        else:
            evidence = Dense(model, X, True).evidence  # nothing is left: the prior predictive
            assert found.log_prob(Y).item() == pytest.approx(evidence, abs=1e-7)


@pytest.mark.parametrize("m", [1, 2])
def test_a_narrow_scale_is_the_gaussian_process(m):
    X, Y = data(12, m)
    gaussian = GaussianProcess(X, Y, kernel()).posterior(Xs, observation_noise=True)
    mixture = ScaleMixtureProcess(X, Y, kernel(), scale=LogNormal(0.0, 1e-5))
    found = mixture.posterior(Xs, observation_noise=True)
    Z = gaussian.mean + gaussian.stddev
    assert torch.allclose(found.mean, gaussian.mean, rtol=1e-8)
    assert torch.allclose(found.variance, gaussian.variance, rtol=1e-8)
    assert torch.allclose(found.log_prob(Z), gaussian.log_prob(Z), rtol=1e-8)
    assert torch.allclose(found.joint_log_prob(Z), gaussian.joint_log_prob(Z), rtol=1e-8)


def test_what_is_infinite_and_what_is_undefined():
    """By the tail of the scale's posterior: s^(-a - 1 - rank / 2)."""
    heavy = make(BurrXII(1.0, 0.4), n=1).posterior(Xs)  # moments of sqrt(s) below 1.8
    assert heavy.mean.isfinite().all()
    assert torch.isinf(heavy.variance).all()
    assert heavy.quantile(torch.tensor(0.9)).isfinite().all()
    assert make(BurrXII(1.0, 0.6), n=1).posterior(Xs).variance.isfinite().all()
    assert make(BurrXII(1.0, 0.4), n=2).posterior(Xs).variance.isfinite().all()
    assert make(HalfCauchyVariance(), n=1, scale_noise=True).posterior(Xs).variance.isinf().all()

    def line():
        return LinearKernel()

    # four rows of a linear kernel of two inputs: rank two; a query in their span is bounded
    assert make(BurrXII(1.0, 0.4), n=4, kernel=line).posterior(Xs).variance.isfinite().all()
    X = torch.zeros(2, 1, dtype=torch.float64)
    blind = ScaleMixtureProcess(X, X + 1, LinearKernel(), scale=HalfCauchyVariance(), **OFF)
    undefined = blind.posterior(X + 1)
    with pytest.raises(ValueError, match="no mean"):
        _ = undefined.mean
    with pytest.raises(ValueError, match="no expected improvement"):
        undefined.log_excess(0.0, 1)
    assert blind.posterior(X, observation_noise=True).mean.isfinite().all()


def test_draws_follow_the_joint_mixture():
    model = make(HalfCauchyVariance(), n=4)
    posterior = model.posterior(Xs[:2])
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3_000, *posterior.base_sample_shape, generator=generator).double()
    with torch.no_grad():
        f = posterior.rsample_from_base_samples(torch.Size([3_000]), base)
        u = posterior.cdf(f)[..., 0]
    for column in u.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    truth = Dense(model, Xs[:2], False)
    # both points have the scale of the draw: mean of |f1 - m1| |f2 - m2| by its own draws
    product = ((f - posterior.mean).abs() < 0.5).all(-2).double()
    inside = [
        np.mean(
            (
                np.abs(
                    np.random.default_rng(0).multivariate_normal(m[:, 0], C, 2000) - truth.mean.T
                )
                < 0.5
            ).all(-1)
        )
        for m, C in list(zip(truth.means, truth.covariances, strict=True))[::40]
    ]
    w = truth.w[::40] / truth.w[::40].sum()
    expected = (w * np.array(inside)).sum()
    assert abs(product.mean().item() - expected) < 0.05


@pytest.mark.parametrize("scale_noise", [False, True])
def test_gradients_of_the_marginal_likelihood(scale_noise):
    X, Y = data(5, 2)

    def value(width, noise, concentration, rate, y):
        rows = X / width
        K = (-0.5 * torch.cdist(rows, rows).square()).exp()
        model.scale = InverseGamma(concentration, rate)
        return model.integrated(K.expand(2, 5, 5), noise.expand(2, 5), y)

    model = make(InverseGamma(1.5, 0.7), n=5, m=2, scale_noise=scale_noise)
    arguments = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.2, 1.5, 0.7)
    ]
    held = [v.detach().requires_grad_() for v in arguments[:2]]
    prior = [v.detach() for v in arguments[2:]]
    y = Y.mT.contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, y: value(a, b, *prior, y), (*held, y))


@pytest.mark.parametrize("scale_noise", [False, True])
def test_scale_and_kernel_are_learnt(scale_noise):
    X, Y = data(15)
    model = ScaleMixtureProcess(
        X,
        5 * Y,
        kernel(),
        scale=BurrXII(2.0, 1.5),
        scale_noise=scale_noise,
        learn_scale=True,
        **OFF,
    )
    before = model.log_marginal_likelihood().item()
    start = {name: value.clone() for name, value in model.scale_prior.named_parameters()}
    model.train()
    objective = model._objective(model._marginal_log_likelihood())
    for name, parameter in model.named_parameters():
        (slope,) = torch.autograd.grad(objective, parameter, retain_graph=True)
        step = 1e-5
        ends = []
        for side in (-step, step):
            with torch.no_grad():
                parameter.add_(side)
                ends.append(model._objective(model._marginal_log_likelihood()).item())
                parameter.sub_(side)
        assert slope.item() == pytest.approx((ends[1] - ends[0]) / 2 / step, rel=1e-4, abs=1e-7), (
            name
        )
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(max_iter=8)
    assert model.log_marginal_likelihood().item() > before
    assert any((start[name] != value).all() for name, value in model.scale_prior.named_parameters())
    assert "concentration1" in repr(model)
    given = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    some = ScaleMixtureProcess(X, Y, kernel(), scale=InverseGamma(given, 1.0))
    learnt = [name for name, _ in some.scale_prior.named_parameters()]
    assert learnt == ["raw_concentration"]


def test_one_decomposition_serves_queries_and_priors(monkeypatch):
    model = make(InverseGamma(1.5, 0.7), n=8)
    model.posterior(Xs)
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a: calls.append(1) or eigh(*a))
    model.posterior(Xs[:1])
    model.scale = HalfCauchyVariance()
    found = model.posterior(Xs, observation_noise=True)
    evidence = model.log_marginal_likelihood().item()
    assert not calls
    truth = Dense(model, Xs, True)
    np.testing.assert_allclose(found.variance.detach(), truth.variance, rtol=1e-8)
    assert evidence == pytest.approx(truth.evidence, abs=1e-8)
    model.likelihood.noise = 0.4
    found = model.posterior(Xs, observation_noise=True)
    assert calls
    truth = Dense(model, Xs, True)
    np.testing.assert_allclose(found.variance.detach(), truth.variance, rtol=1e-8)


def test_hardly_any_noise_and_any_unit_of_y():
    X, Y = data(6)
    nothing = torch.full_like(Y, 1e-6)
    for unit in (1e-8, 1.0, 1e8):
        models = [
            ScaleMixtureProcess(
                X,
                unit * Y,
                kernel(),
                train_Yvar=unit**2 * nothing,
                scale=InverseGamma(2.0, 2.0),
                scale_noise=inside,
            )
            for inside in (False, True)
        ]
        outside, inside = (model.posterior(Xs) for model in models)
        assert torch.allclose(outside.mean, inside.mean, rtol=1e-2)
        assert torch.allclose(outside.variance, inside.variance, rtol=1e-2)
        assert outside.variance.sqrt().max() < 10 * unit
    constant = ScaleMixtureProcess(X, torch.ones_like(Y), kernel(), scale=HalfCauchyVariance())
    posterior = constant.posterior(Xs, observation_noise=True)
    assert posterior.variance.isfinite().all()
    assert torch.allclose(posterior.mean, torch.ones_like(posterior.mean))


@pytest.mark.parametrize("m", [1, 2])
def test_variances_of_any_ratio_at_one_scale(m):
    # GPyTorch's smallest variance is 1e-10 of whatever is the unit: here 500 times the noise
    X = torch.tensor([[0.0], [0.0], [100.0]], dtype=torch.float64)
    Y = torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64).expand(-1, m).contiguous()
    noise, s = 0.1, 1e13
    scale = LogNormal(torch.tensor(math.log(s)).double(), torch.tensor(1e-4).double())
    known = {"train_Yvar": torch.full_like(Y, noise)}
    model = ScaleMixtureProcess(X, Y, RBFKernel(), scale=scale, **known, **OFF)
    posterior = model.posterior(torch.tensor([[0.0], [50.0]], dtype=torch.float64))
    truth = torch.tensor([[noise / 2], [s]], dtype=torch.float64)
    torch.testing.assert_close(posterior.variance, truth.expand(-1, m), rtol=0.05, atol=0)
    left_out = model.leave_one_out().variance
    truth = torch.tensor([[2 * noise], [2 * noise], [s]], dtype=torch.float64)
    torch.testing.assert_close(left_out, truth.expand(-1, m), rtol=0.05, atol=0)
    drawn = posterior.rsample(torch.Size([2000]))
    spread = drawn.std(0) / posterior.variance.sqrt()
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0.1, atol=0)


def test_conditioning_is_a_model_of_all_rows():
    X, Y = data(9, 2)
    model = ScaleMixtureProcess(X[:6], Y[:6], kernel(), scale=HalfCauchyVariance(), **OFF)
    more = model.condition_on_observations(X[6:], Y[6:])
    every = ScaleMixtureProcess(X, Y, kernel(), scale=HalfCauchyVariance(), **OFF)
    for a, b in zip(_told(more), _told(every), strict=True):
        assert torch.allclose(a, b)
    fantasies = model.fantasize(Xs[:2], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    assert fantasies.posterior(Xs).mean.shape == (3, 4, 2)
    for k in range(3):
        alone = ScaleMixtureProcess(
            fantasies.train_X[k], fantasies.train_Y[k], kernel(), scale=HalfCauchyVariance(), **OFF
        )
        assert torch.allclose(fantasies.posterior(Xs).variance[k], alone.posterior(Xs).variance)


def _told(model):
    posterior = model.posterior(Xs, observation_noise=True)
    return posterior.mean, posterior.variance, posterior.quantile(torch.tensor(0.2))


def test_gradients_to_rows_that_are_functions_of_candidates():
    """As look-ahead acquisition functions need them; by finite differences."""
    X, Y = data(5)
    model = ScaleMixtureProcess(X, Y, kernel(), scale=BetaPrime(1.0, 2.0), **OFF)

    def value(x, y):
        found = model.condition_on_observations(x, y).posterior(Xs[:2], observation_noise=True)
        return torch.cat([found.mean, found.variance, found.log_prob(y.new_tensor(0.4))])

    x, y = Xs[2:3].clone().requires_grad_(), torch.tensor([[0.7]]).double().requires_grad_()
    plain = model.condition_on_observations(x.detach(), y.detach()).posterior(Xs[:2], None, True)
    assert torch.allclose(value(x, y)[:2], plain.mean)
    assert torch.allclose(value(x, y)[2:4], plain.variance)
    assert torch.autograd.gradcheck(value, (x, y), rtol=1e-4, atol=1e-7)


def test_gradients_to_queries():
    model = make(HalfCauchyVariance(), n=6)
    improvement = ExpectedImprovement(model, best_f=0.4)
    X = Xs[:3, None].clone().requires_grad_()
    assert torch.autograd.gradcheck(improvement, X, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_queries_are_those_of_few(dtype):
    X, Y = (part.to(dtype) for part in data(10))
    model = ScaleMixtureProcess(X, Y, kernel(), scale=InverseGamma(2.0, 2.0))
    queries = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    many = model.posterior(queries)
    few = model.posterior(queries[:5])
    assert many.mean.dtype == dtype
    assert torch.allclose(many.mean[:5], few.mean)
    assert torch.allclose(many.variance[:5], few.variance, rtol=1e-3, atol=1e-6)
    if dtype == torch.float64:
        model.likelihood.noise = 0.5
        with pytest.raises(ValueError, match="call posterior"):
            many.rsample()


@pytest.mark.parametrize("scale", [NARROW, SCALES["Burr"], SCALES["by transform"]], ids=str)
def test_a_file_brings_the_model_back(scale, tmp_path):
    X, Y = data(8)
    model = ScaleMixtureProcess(X, Y, ScaleKernel(kernel()), scale=scale, scale_noise=True)
    model.covar_module.outputscale = 2.0
    model.save(tmp_path / "model")
    if scale is SCALES["by transform"]:
        with pytest.raises(TypeError, match="scale="):
            ScaleMixtureProcess.load(tmp_path / "model", ScaleKernel(RBFKernel()))
        back = ScaleMixtureProcess.load(tmp_path / "model", ScaleKernel(RBFKernel()), scale=scale)
    else:
        back = ScaleMixtureProcess.load(tmp_path / "model", ScaleKernel(RBFKernel()))
        with pytest.raises(ValueError, match="another scale"):
            ScaleMixtureProcess.load(
                tmp_path / "model", ScaleKernel(RBFKernel()), scale=Gamma(1.0, 1.0)
            )
    assert back.scale_noise
    for a, b in zip(_told(back), _told(model), strict=True):
        assert torch.equal(a, b)


def test_scales_that_are_none():
    X, Y = data()
    with pytest.raises(TypeError, match="InverseGamma"):
        ScaleMixtureProcess(X, Y, kernel(), scale=2.0)
    with pytest.raises(ValueError, match="single number"):
        ScaleMixtureProcess(X, Y, kernel(), scale=InverseGamma(torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match="negative"):
        ScaleMixtureProcess(X, Y, kernel(), scale=Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="cannot be learnt"):
        ScaleMixtureProcess(X, Y, kernel(), scale=Uniform(0.5, 2.0), learn_scale=True)


class TestContract(ModelContract):
    def make_model(self, dtype):
        X, Y = data(8, 2)
        return ScaleMixtureProcess(X.to(dtype), Y.to(dtype), kernel(), scale=BurrXII(2.0, 2.0))

    def make_X(self, dtype):
        return data(6, seed=1)[0].reshape(2, 3, 2).to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("scale_noise", [False, True])
def test_calibration_over_data_of_its_own_prior(scale_noise):
    """Simulation-based: held-out outcomes and scales have uniform places in their predictions."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    law = BurrXII(*(torch.tensor(v, dtype=torch.float64) for v in (1.5, 1.2, 1.0)))
    noise = 0.1
    K = kernel()(X).to_dense().detach()
    places, of_scale = [], []
    for _ in range(400):
        s = law.icdf(torch.rand((), generator=generator, dtype=torch.float64))
        C = s * K + (s if scale_noise else 1.0) * noise * torch.eye(9)
        y = torch.linalg.cholesky(C) @ torch.randn(9, 1, generator=generator, dtype=torch.float64)
        model = ScaleMixtureProcess(
            X[:6], y[:6], kernel(), scale=law, scale_noise=scale_noise, **OFF
        )
        with torch.no_grad():
            places.append(model.posterior(X[6:], observation_noise=True).cdf(y[6:])[0, 0])
            nodes = model.scale_posterior()
            of_scale.append(nodes.log_masses.exp()[nodes.scales < s].sum())
    for values in (places, of_scale):
        assert stats.kstest(torch.stack(values).numpy(), "uniform").pvalue > 1e-3
