"""Gaussian process classifiers against dense quadrature, dense algebra and importance sampling."""

import math
import warnings

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from scipy import stats
from torch.distributions import Gamma, InverseGamma, LogNormal

from bayes import (
    GaussianProcessClassifier,
    ScaleMixtureClassifier,
    VariationalGaussianProcess,
    calibration,
    compare,
)
from bayes.variational.whitened_gaussian import WhitenedGaussian
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior

KINDS = ["softmax", "probit", "dirichlet"]


def kernel(lengthscale=1.0, outputscale=4.0):
    made = ScaleKernel(RBFKernel()).double()
    made.base_kernel.lengthscale, made.outputscale = lengthscale, outputscale
    return made


def data(n=40, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return X, (X[:, :1] + noise[:, None]).add(1).clamp(0, classes - 1).floor()


def fitted(model, **options):
    """Fitted for a few iterations, of which `fit` warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was stopped by max_iter")
        return model.fit(progress=False, **options)


def grid_posterior(X, Y, Xs, k, link):
    """Exact evidence and P(y* = 1) of two rows and one query, on a grid of three functions."""
    f = np.linspace(-12, 12, 81)
    mesh = np.stack(np.meshgrid(f, f, f, indexing="ij"), -1)
    with torch.no_grad():
        K = k(torch.cat([X, Xs])).to_dense().numpy()
    prior = stats.multivariate_normal.pdf(mesh, np.zeros(3), K)
    sign = 2 * Y[:, 0].numpy() - 1
    weight = prior * link(sign[0] * mesh[..., 0]) * link(sign[1] * mesh[..., 1])
    cell = (f[1] - f[0]) ** 3
    return weight.sum() * cell, (weight * link(mesh[..., 2])).sum() / weight.sum()


@torch.no_grad()
def test_probit_in_one_dimension_against_dense_quadrature():
    X = torch.tensor([[0.0], [1.1]], dtype=torch.float64)
    Y = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    Xs = torch.tensor([[-0.7]], dtype=torch.float64)
    evidence, probability = grid_posterior(X, Y, Xs, kernel(), stats.norm.cdf)
    model = GaussianProcessClassifier(X, Y, kernel(), likelihood="probit", input_transform=None)
    bound = float(model.process.evidence_lower_bound())
    assert math.log(evidence) - 0.1 < bound < math.log(evidence)
    for noisy in (False, True):
        found = model.posterior(Xs, observation_noise=noisy).mean
        assert float(found[0, 1]) == pytest.approx(probability, abs=0.02)
    # of this q the prediction is exact
    latent = model.process.latent(Xs)
    f = np.linspace(-20, 20, 20_001)
    q = stats.norm.pdf(f, float(latent.mean), float(latent.variance.sqrt()))
    truth = (q * stats.norm.cdf(f)).sum() * (f[1] - f[0])
    assert float(found[0, 1]) == pytest.approx(truth, abs=1e-9)


def importance(X, Y, Xs, k, classes, scale=None, draws=100_000):
    """Log evidence and class probabilities by draws of the prior, each with a standard error."""
    generator = torch.Generator().manual_seed(1)
    K = k(torch.cat([X, Xs])).to_dense()
    root = torch.linalg.cholesky(K + 1e-9 * torch.eye(len(K), dtype=K.dtype))
    noise = torch.randn(draws, classes, len(K), generator=generator, dtype=K.dtype)
    f = noise @ root.mT
    if scale is not None:
        torch.manual_seed(0)
        f = f * scale.sample((draws,)).sqrt()[:, None, None]
    log_p = f.log_softmax(1)
    chosen = log_p[:, :, : len(X)].gather(1, Y.long().T.expand(draws, 1, -1)).sum((1, 2))
    weight = chosen.exp()
    evidence = weight.mean()
    error = weight.std() / math.sqrt(draws) / evidence
    p = log_p[:, :, -1].exp()
    probability = (weight[:, None] * p).mean(0) / evidence
    spread = ((weight[:, None] * (p - probability)).std(0) / evidence) / math.sqrt(draws)
    return evidence.log(), error, probability, spread


@pytest.mark.parametrize("scale", [None, InverseGamma(torch.tensor(2.0), torch.tensor(2.0))])
def test_softmax_of_few_rows_against_importance_sampling(scale):
    X = torch.tensor([[0.0], [0.8], [-1.0], [2.0]], dtype=torch.float64)
    Y = torch.tensor([[0.0], [1.0], [2.0], [1.0]], dtype=torch.float64)
    Xs = torch.tensor([[0.4]], dtype=torch.float64)
    with torch.no_grad():
        evidence, error, probability, spread = importance(X, Y, Xs, kernel(), 3, scale)
    if scale is None:
        model = GaussianProcessClassifier(X, Y, kernel(), input_transform=None)
        bound = model.process.evidence_lower_bound()
    else:
        model = ScaleMixtureClassifier(X, Y, kernel(), scale=scale, input_transform=None)
        model.covar_module.requires_grad_(False)
        fitted(model, max_iter=12)
        bound = model.evidence_lower_bound()
    # a Gaussian of which only the size is random is further from the truth
    gap = 0.3 if scale is None else 1.0
    assert evidence - gap < bound < evidence + 3 * error
    found = model.posterior(Xs, observation_noise=True).mean[0]
    assert ((found - probability).abs() < 0.04 + 3 * spread).all()


@torch.no_grad()
def test_a_narrow_scale_is_the_gaussian_process_classifier():
    X, Y = data(15, classes=3)
    narrow = InverseGamma(torch.tensor(1e7).double(), torch.tensor(1e7).double())
    mixture = ScaleMixtureClassifier(X, Y, kernel(), scale=narrow, num_inducing=6)
    process = GaussianProcessClassifier(X, Y, kernel(), num_inducing=6)
    one, two = mixture.evidence_lower_bound(), process.process.evidence_lower_bound()
    assert torch.allclose(one, two, atol=1e-4)
    Xs = data(5, seed=1)[0]
    for noisy in (False, True):
        found = [m.posterior(Xs, observation_noise=noisy) for m in (mixture, process)]
        assert torch.allclose(found[0].mean, found[1].mean, atol=1e-4)
        assert torch.allclose(found[0].variance, found[1].variance, atol=1e-4)


@torch.no_grad()
def test_predictions_of_a_random_scale_are_those_of_a_t():
    X, Y = data(15, classes=3)
    model = ScaleMixtureClassifier(X, Y, kernel(), num_inducing=6)
    Xs = data(3, seed=1)[0]
    latent, q = model.latent(Xs), model.scale_posterior
    torch.manual_seed(0)
    size = 100_000
    s = 1 / Gamma(q.concentration, q.rate).sample((size,))
    f = latent.mean + (s[:, None, None] * latent.variance).sqrt() * torch.randn(
        size, 3, 3, dtype=torch.float64
    )
    draws = f.softmax(-1)
    error = draws.std(0) / math.sqrt(size)
    found = model.posterior(Xs, observation_noise=True)
    assert ((found.mean - draws.mean(0)).abs() < 4 * error + 1e-3).all()
    assert torch.allclose(model.posterior(Xs).mean, found.mean)
    assert torch.allclose(model.posterior(Xs).variance, draws.var(0), rtol=0.02)


@torch.no_grad()
def test_the_bound_of_a_random_scale_against_draws_of_q():
    """E_q[log p(y, v, s) - log q(v, s)], every density written out."""
    X, Y = data(5, classes=3)
    model = ScaleMixtureClassifier(X, Y, kernel(), input_transform=None)
    model.law.log_concentration.fill_(math.log(3.0))
    bound = float(model.evidence_lower_bound())
    q = model.law.scale_posterior
    linear, precision = model.q_linear, model.q_precision  # [C, M], [C, M, M]
    r = float(model.law.inverse_scale())
    eye = torch.eye(5, dtype=torch.float64)
    mean = torch.linalg.solve(precision + (r - 1) * eye, linear)
    half = torch.linalg.cholesky(torch.linalg.inv(precision))
    torch.manual_seed(0)
    size = 100_000
    s = 1 / Gamma(q.concentration, q.rate).sample((size, 1))
    noise = torch.randn(size, 3, 5, dtype=torch.float64)
    v = mean + s[..., None].sqrt() * (half @ noise[..., None])[..., 0]
    root = torch.linalg.cholesky(model.covar_module(model.inducing.points).to_dense())
    weights = torch.linalg.solve(root, model.covar_module(model.inducing.points, X).to_dense())
    f = (v @ weights).log_softmax(1)  # [size, C, n]
    each = f.gather(1, Y.long().T.expand(size, 1, -1)).sum((1, 2))
    # log p(v | s) - log q(v | s)
    each = each - 0.5 * (v.square().sum((1, 2)) / s[:, 0])
    each = each + 0.5 * noise.square().sum((1, 2)) + half.logdet().sum()
    prior = InverseGamma(torch.tensor(2.0).double(), torch.tensor(2.0).double())
    each = each + (prior.log_prob(s) - q.log_prob(s))[:, 0]
    assert abs(float(each.mean()) - bound) < 4 * float(each.std()) / math.sqrt(size) + 5e-3
    generator = torch.Generator().manual_seed(0)
    found = model._bound()
    best = found(WhitenedGaussian(linear, precision).factorised(r))[0]
    for _ in range(10):
        noise = 0.05 * torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
        other = WhitenedGaussian(linear + noise[..., 0], precision + noise @ noise.mT)
        assert found(other.factorised(r))[0] < best


def test_the_scale_is_learnt():
    X, Y = data(8)
    prior = InverseGamma(torch.tensor(2.0), torch.tensor(2.0))
    found = {}
    for size in (0.01, 4.0):
        model = ScaleMixtureClassifier(X, Y, kernel(outputscale=size), scale=prior)
        model.covar_module.requires_grad_(False)
        before = model.evidence_lower_bound()
        fitted(model, max_iter=3)
        assert model.evidence_lower_bound() > before
        found[size] = float(1 / model.law.inverse_scale().detach())
    assert found[0.01] > found[4.0]  # small functions need a large scale


@torch.no_grad()
def test_divergence_of_any_prior_of_the_scale():
    X, Y = data(8)
    closed = ScaleMixtureClassifier(X, Y, kernel())
    law = closed.law
    law.log_rate.fill_(math.log(3.0))
    found = -float(law.divergence())
    law.scale = LogNormal(torch.tensor(0.1).double(), torch.tensor(0.7).double())
    q, s = stats.invgamma(2.0, scale=3.0), np.exp(np.linspace(-6, 14, 40_001))
    for log_density, value in (
        (stats.invgamma(2.0, scale=2.0).logpdf(s), found),
        (stats.lognorm(0.7, scale=math.exp(0.1)).logpdf(s), -float(law.divergence())),
    ):
        weight = q.pdf(s) * s * (20 / 40_000)
        truth = (weight * (log_density - q.logpdf(s))).sum()
        assert value == pytest.approx(truth, abs=1e-3)


@torch.no_grad()
def test_dirichlet_is_exact_regression_of_transformed_labels():
    X, Y = data(12, classes=3)
    Xs = data(3, seed=1)[0]
    k = kernel()
    model = GaussianProcessClassifier(
        X, Y, k, likelihood="dirichlet", alpha=0.01, input_transform=None
    )
    concentration = torch.nn.functional.one_hot(Y[:, 0].long(), 3).double() + 0.01
    noise = torch.log(1 / concentration + 1)
    Z = concentration.log() - noise / 2
    location = Z.mean(0)
    unit = (Z - location).square().mean().sqrt()
    K, Ks = k(X).to_dense(), k(Xs, X).to_dense()
    torch.manual_seed(0)
    means, stds = [], []
    for c in range(3):
        gram = K + torch.diag(noise[:, c] / unit**2)
        means.append(location[c] + Ks @ torch.linalg.solve(gram, Z[:, c] - location[c]))
        left = k(Xs).to_dense() - Ks @ torch.linalg.solve(gram, Ks.mT)
        stds.append(left.diagonal().sqrt() * unit)
    f = torch.stack(means, -1) + torch.stack(stds, -1) * torch.randn(
        200_000, 3, 3, dtype=torch.float64
    )
    draws = f.softmax(-1)
    error = draws.std(0) / math.sqrt(len(draws))
    found = model.posterior(Xs, observation_noise=True).mean
    assert ((found - draws.mean(0)).abs() < 4 * error + 2e-3).all()
    # log-normals with the moments of gammas
    mean = (Z + noise / 2).exp()
    assert torch.allclose(mean, concentration)
    assert torch.allclose((noise.exp() - 1) * mean.square(), concentration)


@torch.no_grad()
def test_scores_of_alphas_are_of_rows_left_out():
    """By a solve without each row, whose class is then averaged over draws of the functions."""
    X, Y = data(8, classes=3)
    k, weights = kernel(), torch.linspace(0.5, 2, 8).double()
    model = GaussianProcessClassifier(
        X, Y, k, likelihood="dirichlet", alpha=0.1, train_weights=weights, input_transform=None
    )
    concentration = weights[:, None] * torch.nn.functional.one_hot(Y[:, 0].long(), 3) + 0.1
    noise = torch.log(1 / concentration + 1)
    Z = concentration.log() - noise / 2
    location = Z.mean(0)
    unit = (Z - location).square().mean().sqrt()
    K = unit**2 * k(X).to_dense()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    truth, squared_error = 0.0, 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        moments = []
        for c in range(3):
            gram = K[others][:, others] + torch.diag(noise[others, c])
            gain = torch.linalg.solve(gram, K[others, i])
            mean = location[c] + gain @ (Z[others, c] - location[c])
            moments.append((mean, (K[i, i] - gain @ K[others, i]).sqrt()))
        means, stds = (torch.stack(part) for part in zip(*moments, strict=True))
        draws = (means + stds * normal).softmax(-1)[:, int(Y[i])]
        share = weights[i] / weights.sum()
        truth += float(share * draws.mean().log())
        squared_error += float(share * draws.std() / draws.mean()) ** 2 / len(draws)
    found = model._left_out_score(model.process)
    assert abs(found - truth) < 4 * math.sqrt(squared_error) + 2e-3


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_alpha_is_chosen_by_how_many_labels_are_wrong(wrong):
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    flipped = torch.rand(400, generator=generator, dtype=torch.float64) < wrong
    Y = ((X[:, 0] > 0) ^ flipped).double()[:, None]
    train, test = slice(0, 100), slice(100, None)

    def nlpd(alpha):
        model = GaussianProcessClassifier(
            X[train], Y[train], kernel(), likelihood="dirichlet", alpha=alpha
        ).fit(progress=False)
        log_prob = model.posterior(X[test], observation_noise=True).log_prob(Y[test])
        return model.alpha, -float(log_prob.detach().mean())

    alpha, found = nlpd(None)
    _, sure = nlpd(0.01)
    if wrong:
        assert alpha > 0.01
        assert found < min(sure - 0.05, math.log(2))
    else:
        assert (alpha, found) == (0.01, pytest.approx(sure))


def test_files_know_the_alpha_and_whether_it_was_chosen(tmp_path):
    X, Y = data(30)
    for alpha in (None, 0.05):
        model = GaussianProcessClassifier(X, Y, kernel(), likelihood="dirichlet", alpha=alpha)
        model.fit(progress=False)
        model.save(tmp_path / "c.safetensors")
        loaded = GaussianProcessClassifier.load(tmp_path / "c.safetensors", kernel())
        torch.testing.assert_close(loaded.posterior(X).mean, model.posterior(X).mean)
        assert loaded.alpha == model.alpha
        assert loaded._chooses_alpha == (alpha is None)


def test_a_timeout_is_for_all_alphas_together():
    X, Y = data(30)
    model = GaussianProcessClassifier(X, Y, kernel(), likelihood="dirichlet")
    with pytest.warns(UserWarning, match="timeout") as caught:
        model.fit(timeout=0.0, progress=False)
    assert len(caught) == 1
    assert model.alpha == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_learnt_and_judged(kind, tmp_path):
    X, Y = data(80)
    model = GaussianProcessClassifier(X[:50], Y[:50].long(), kernel(), likelihood=kind)
    fitted(model, max_iter=3)
    posterior = model.posterior(X[50:], observation_noise=True)
    assert isinstance(posterior, CategoricalPosterior)
    assert isinstance(model.posterior(X[50:]), ClassProbabilityPosterior)
    assert torch.allclose(posterior.mean.sum(-1), torch.ones(30, dtype=torch.float64))
    assert torch.allclose(model.posterior(X[50:]).mean, posterior.mean, atol=1e-3)
    assert (posterior.mean.argmax(-1, keepdim=True) == Y[50:]).double().mean() > 0.8
    assert calibration(posterior, Y[50:]).counts.sum() == 30
    assert model.posterior(X.reshape(2, 40, 2)).mean.shape == (2, 40, 2)
    model.save(tmp_path / "c.safetensors")
    again = GaussianProcessClassifier.load(tmp_path / "c.safetensors", kernel())
    found = again.posterior(X[50:], observation_noise=True).mean
    assert torch.allclose(found, posterior.mean, atol=1e-6)
    assert kind in repr(again)


def test_scale_mixture_is_saved(tmp_path):
    X, Y = data(10)
    model = ScaleMixtureClassifier(X, Y, kernel())
    model.save(tmp_path / "c.safetensors")
    again = ScaleMixtureClassifier.load(tmp_path / "c.safetensors", kernel())
    one, two = (m.posterior(X, observation_noise=True).mean for m in (model, again))
    # up to rounding, which depends on where in memory its tensors lie
    torch.testing.assert_close(one, two, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="was saved with scale"):
        ScaleMixtureClassifier.load(tmp_path / "c.safetensors", kernel(), scale=LogNormal(0.0, 1.0))


def test_compare_takes_classifiers():
    X, Y = data(60)
    splits = [(X[:40], Y[:40], X[40:], Y[40:])]
    factories = {
        "dirichlet": lambda X, Y: GaussianProcessClassifier(X, Y, kernel(), likelihood="dirichlet"),
        "mixture": lambda X, Y: ScaleMixtureClassifier(X, Y, kernel(), num_inducing=5),
    }
    found = compare(factories, splits)
    assert set(found.scores) == {"dirichlet", "mixture"}
    assert all(float(scores["nlpd"].mean()) < math.log(2) for scores in found.scores.values())


def test_errors():
    X, Y = data(10)
    with pytest.raises(ValueError, match="likelihood='softmax' or"):
        GaussianProcessClassifier(X, Y, kernel(), likelihood="logit")
    with pytest.raises(ValueError, match="class numbers"):
        GaussianProcessClassifier(X, Y + 0.5, kernel())
    for classifier in (GaussianProcessClassifier, ScaleMixtureClassifier):
        with pytest.raises(ValueError, match="class number 100 with 10 rows"):
            classifier(X, 100 * Y, kernel())
    with pytest.raises(ValueError, match="class number 100 with 10 rows"):
        VariationalGaussianProcess(X, 100 * Y, kernel(), likelihood="categorical")
    with pytest.raises(ValueError, match="for two classes"):
        GaussianProcessClassifier(X, Y + 1, kernel(), likelihood="probit")
    with pytest.raises(ValueError, match="alpha"):
        GaussianProcessClassifier(X, Y, kernel(), likelihood="dirichlet", alpha=0.0)
    with pytest.raises(ValueError, match="come together"):
        GaussianProcessClassifier(X, Y, kernel()).posterior(X, [0], observation_noise=True)
    with pytest.raises(TypeError, match="one positive number"):
        ScaleMixtureClassifier(X, Y, kernel(), scale=2.0)
    with pytest.raises(ValueError, match="not transformed"):
        VariationalGaussianProcess(
            X, Y, kernel(), likelihood="categorical",
            outcome_transform=torch.distributions.ExpTransform(),
        )  # fmt: skip
