"""Further observations, fantasies, warm starts and kept factors, against dense solves by NumPy."""

import numpy as np
import pytest
import torch
from botorch.acquisition import qKnowledgeGradient
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.kernels import RBFKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from torch.distributions.transforms import ExpTransform

from bayes import GaussianProcess, StudentTProcess

PROCESSES = [GaussianProcess, StudentTProcess]
A, B = 1.5, 0.7  # of the Student t


def rows(n=10, m=1, seed=0, d=2):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    Y = torch.stack([torch.sin((k + 1) * X[:, 0]) + X[:, 1] for k in range(m)], dim=-1)
    return X, 4 + 10 * Y + 0.5 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def kernel(lengthscale=0.8):
    made = RBFKernel()
    made.lengthscale = lengthscale
    return made


def likelihood(noise=0.05):
    made = GaussianLikelihood()
    made.noise = noise
    return made


def make(process, X, Y, **given):
    if process is StudentTProcess:
        given |= {"concentration": A, "rate": B}
    if "train_Yvar" not in given:
        given.setdefault("likelihood", likelihood())
    return process(X, Y, kernel(), **given)


class Dense:
    """The conditional Gaussian or t by NumPy, in the units of the first rows."""

    def __init__(self, X, Y):
        self.units = [value.numpy() for value in (X.mean(-2), X.std(-2), Y.mean(-2), Y.std(-2))]

    def __call__(self, process, X, Y, Xs, *, noise=0.05, lengthscale=0.8):
        """Mean `[q, m]` and covariance `[m, q, q]` of f; noise `[n, m]` on the model's scale."""
        center, scale, location, spread = self.units
        X, Xs = ((value.detach().numpy() - center) / scale for value in (X, Xs))
        Z = (Y.detach().numpy() - location) / spread
        noise = np.broadcast_to(noise, Z.shape)

        def k(a, b):
            distance = ((a[:, None] - b[None]) ** 2).sum(-1)
            return np.exp(-0.5 * distance / lengthscale**2)

        means, covariances, quadratic = [], [], 0.0
        for output in range(Z.shape[-1]):
            K = k(X, X) + np.diag(noise[:, output])
            solved = np.linalg.solve(K, np.concatenate([k(X, Xs), Z[:, [output]]], -1))
            means.append(k(Xs, X) @ solved[:, -1])
            covariances.append(k(Xs, Xs) - k(Xs, X) @ solved[:, :-1])
            quadratic += Z[:, output] @ solved[:, -1]
        factor = 1.0
        if process is StudentTProcess:  # variance of the t
            df = 2 * A + Z.size
            factor = (2 * B + quadratic) / df * df / (df - 2)
        mean = location + spread * np.stack(means, -1)
        return mean, factor * np.stack(covariances) * (spread**2)[:, None, None]


def agree(posterior, truth, rtol=1e-6):
    mean, covariance = truth
    np.testing.assert_allclose(posterior.mean.detach().numpy(), mean, rtol=rtol)
    variance = np.diagonal(covariance, axis1=-2, axis2=-1).T
    size = np.abs(variance).max()
    found = posterior.variance.detach().numpy()
    np.testing.assert_allclose(found, variance, rtol=rtol, atol=1e-9 * size)


Xs = rows(n=5, seed=7)[0]


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("fitted", [False, True])
def test_further_rows_in_the_units_of_the_first(process, m, fitted):
    """Also before any `posterior`, which GPyTorch needs, and after a fit."""
    X, Y = rows(m=m)
    more_X, more_Y = rows(n=3, m=m, seed=1)
    model = make(process, X, Y)
    if fitted:  # with nothing to learn
        model.requires_grad_(False).fit()
    truth = Dense(X, Y)(process, torch.cat([X, more_X]), torch.cat([Y, more_Y]), Xs)
    grown = model.condition_on_observations(more_X, more_Y)
    agree(grown.posterior(Xs), truth)
    assert grown.train_X.shape == (13, 2)
    assert "13 rows" in repr(grown)
    one_by_one = model
    for k in range(3):
        one_by_one.posterior(Xs)
        one_by_one = one_by_one.condition_on_observations(more_X[[k]], more_Y[[k]])
    agree(one_by_one.posterior(Xs), truth)
    agree(model.posterior(Xs), Dense(X, Y)(process, X, Y, Xs))


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", [(), (1,), (2,), (3,), (2, 1), (1, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("q", [1, 2])
def test_fantasies_of_any_batch(process, m, batch, q):
    X, Y = rows(m=m)
    model = make(process, X, Y)
    candidates = rows(n=6, seed=3)[0].repeat(2, 1)[: q * int(np.prod(batch))]
    candidates = candidates.reshape(*batch, q, 2)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(candidates, sampler)
    assert fantasies.batch_shape == (4, *batch)
    drawn = fantasies.train_Y[..., -q:, :]
    expected = sampler(model.posterior(candidates, observation_noise=True))
    assert torch.allclose(drawn, expected)
    dense = Dense(X, Y)
    together = fantasies.posterior(Xs)
    apart = fantasies.posterior(Xs.expand(4, *batch, 5, 2))
    assert together.mean.shape == (4, *batch, 5, m)
    for index in np.ndindex(4, *batch):
        truth = dense(
            process,
            torch.cat([X, candidates[index[1:]]]),
            torch.cat([Y, drawn[index]]),
            Xs,
        )
        for posterior in (together, apart):
            np.testing.assert_allclose(posterior.mean[index].detach(), truth[0], rtol=1e-6)
            variance = np.diagonal(truth[1], axis1=-2, axis2=-1).T
            found = posterior.variance[index].detach()
            np.testing.assert_allclose(found, variance, rtol=1e-6, atol=1e-6)


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_data_batches(process, m, batch):
    """Each data set by itself, its further rows and its fantasies."""
    sets = [rows(m=m, seed=seed) for seed in range(batch)]
    X, Y = (torch.stack(parts) for parts in zip(*sets, strict=True))
    model = make(process, X, Y)
    more = [rows(n=2, m=m, seed=10 + seed) for seed in range(batch)]
    more_X, more_Y = (torch.stack(parts) for parts in zip(*more, strict=True))
    before = model.posterior(Xs)
    grown = model.condition_on_observations(more_X, more_Y).posterior(Xs)
    shared = model.condition_on_observations(more_X[0], more_Y[0]).posterior(Xs)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(more_X[:, :1], sampler)
    imagined = fantasies.posterior(Xs)
    assert fantasies.batch_shape == (4, batch)
    for k, (Xk, Yk) in enumerate(sets):
        dense = Dense(Xk, Yk)
        for posterior, extra in (
            (before, None),
            (grown, more[k]),
            (shared, more[0]),
            (imagined, (more_X[k, :1], fantasies.train_Y[2, k, -1:])),
        ):
            at = (2, k) if posterior is imagined else k
            all_X = Xk if extra is None else torch.cat([Xk, extra[0]])
            all_Y = Yk if extra is None else torch.cat([Yk, extra[1]])
            mean, covariance = dense(process, all_X, all_Y, Xs)
            variance = np.diagonal(covariance, axis1=-2, axis2=-1).T
            np.testing.assert_allclose(posterior.mean[at].detach(), mean, rtol=1e-6)
            found = posterior.variance[at].detach()
            np.testing.assert_allclose(found, variance, rtol=1e-6, atol=1e-6)


def test_fantasies_of_fantasies():
    """A look two steps ahead, as BoTorch's multi-step acquisition takes it."""
    X, Y = rows(m=2)
    model = make(GaussianProcess, X, Y)
    first = model.fantasize(Xs[:1], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    second = first.fantasize(
        Xs[1:2].expand(3, 1, 2), SobolQMCNormalSampler(torch.Size([2]), seed=1)
    )
    assert second.batch_shape == (2, 3)
    found = second.posterior(Xs[2:])
    for index in np.ndindex(2, 3):
        truth = Dense(X, Y)(GaussianProcess, second.train_X[index], second.train_Y[index], Xs[2:])
        np.testing.assert_allclose(found.mean[index].detach(), truth[0], rtol=1e-6)
    nothing = model.fantasize(Xs[:0], SobolQMCNormalSampler(torch.Size([3]), seed=0))
    assert nothing.batch_shape == (3,)
    assert torch.allclose(nothing.posterior(Xs).mean, model.posterior(Xs).mean)


@pytest.mark.parametrize("process", PROCESSES)
def test_joint_distribution_of_fantasies(process):
    """Samples of all points and outputs, at one candidate set and at two."""
    X, Y = rows(m=2)
    model = make(process, X, Y)
    for batch in (1, 2):
        candidates = rows(n=2 * batch, seed=3)[0].reshape(batch, 2, 2)
        fantasies = model.fantasize(candidates, SobolQMCNormalSampler(torch.Size([3]), seed=0))
        posterior = fantasies.posterior(Xs)
        assert posterior.rsample(torch.Size([2])).shape == (2, 3, batch, 5, 2)
        if process is StudentTProcess:
            continue
        weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
        scalar = fantasies.posterior(Xs, posterior_transform=ScalarizedPosteriorTransform(weights))
        for index in np.ndindex(3, batch):
            _, covariance = Dense(X, Y)(
                process, fantasies.train_X[index], fantasies.train_Y[index], Xs
            )
            found = scalar.distribution.covariance_matrix[index].detach()
            truth = 4 * covariance[0] + covariance[1]
            np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.fast_for("1-1", "2-2")
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_knowledge_gradient(m, batch):
    """The mean over fantasies of the scalarised mean there, and its slope in the candidates."""
    X, Y = rows(m=m)
    model = make(GaussianProcess, X, Y)
    weights = torch.arange(1.0, m + 1, dtype=torch.float64)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    acquisition = qKnowledgeGradient(
        model,
        num_fantasies=4,
        sampler=sampler,
        posterior_transform=ScalarizedPosteriorTransform(weights),
    )
    candidates = rows(n=6 * batch, seed=4)[0].reshape(batch, 6, 2)  # q = 2, and 4 fantasies' best
    value = acquisition(candidates)
    drawn = sampler(model.posterior(candidates[:, :2], observation_noise=True)).detach()
    for k in range(batch):
        means = [
            Dense(X, Y)(
                GaussianProcess,
                torch.cat([X, candidates[k, :2]]),
                torch.cat([Y, drawn[fantasy, k]]),
                candidates[k, 2 + fantasy : 3 + fantasy],
            )[0]
            @ weights.numpy()
            for fantasy in range(4)
        ]
        assert value[k].item() == pytest.approx(np.mean(means), rel=1e-6)
    assert torch.autograd.gradcheck(acquisition, candidates.requires_grad_())


@pytest.mark.parametrize("process", PROCESSES)
def test_gradients_through_further_rows(process):
    """In their inputs and outcomes, of means and of variances, as often as one likes."""
    X, Y = rows(m=2)
    model = make(process, X, Y).requires_grad_(False)
    more_X, more_Y = (value.requires_grad_() for value in rows(n=2, m=2, seed=1))

    def moments(more_X, more_Y):
        posterior = model.condition_on_observations(more_X, more_Y).posterior(Xs[:2])
        return posterior.mean, posterior.variance

    assert torch.autograd.gradcheck(moments, (more_X, more_Y))
    grown = model.condition_on_observations(more_X, more_Y)
    slopes = []
    for _ in range(2):
        (slope,) = torch.autograd.grad(grown.posterior(Xs).variance.sum(), more_X)
        slopes.append(slope)
        grown.posterior(Xs).mean.sum().backward()
    assert torch.allclose(*slopes)
    assert (slopes[0] != 0).all()


def test_a_copy_is_conditioned():
    """The hyperparameters of either do not follow those of the other."""
    X, Y = rows()
    model = make(GaussianProcess, X, Y)
    grown = model.condition_on_observations(*rows(n=3, seed=1)).fit()
    lengthscale, noise = grown.covar_module.lengthscale.item(), grown.likelihood.noise.item()
    assert lengthscale != pytest.approx(0.8)
    assert model.covar_module.lengthscale.item() == pytest.approx(0.8)
    all_rows = [torch.cat(pair) for pair in zip(rows(), rows(n=3, seed=1), strict=True)]
    truth = Dense(X, Y)(GaussianProcess, *all_rows, Xs, noise=noise, lengthscale=lengthscale)
    agree(grown.posterior(Xs), truth)


def test_a_transformed_outcome():
    X, Y = rows()
    log = make(GaussianProcess, X, Y.abs().log(), outcome_transform=None)
    model = make(GaussianProcess, X, Y.abs(), outcome_transform=ExpTransform())
    more_X, more_Y = rows(n=3, seed=1)
    half = torch.tensor(0.5, dtype=torch.float64)
    found = model.condition_on_observations(more_X, more_Y.abs()).posterior(Xs).quantile(half)
    expected = log.condition_on_observations(more_X, more_Y.abs().log()).posterior(Xs)
    assert torch.allclose(found, expected.quantile(half).exp())
    with pytest.raises(ValueError, match="range of outcome_transform"):
        model.condition_on_observations(more_X, -more_Y.abs())


@pytest.mark.parametrize("process", PROCESSES)
def test_what_does_not_fit_is_refused(process):
    X, Y = rows(m=2)
    model = make(process, X, Y)
    more_X, more_Y = rows(n=3, m=2, seed=1)
    bad = more_X.clone()
    bad[1, 0] = torch.nan
    infinite = more_Y.clone()
    infinite[0, 1] = torch.inf
    for arguments, error, message in (
        ((bad, more_Y), ValueError, "X with 1 NaN"),
        ((more_X, infinite), ValueError, "Y with 1 NaN or infinite"),
        ((more_X[:, :1], more_Y), ValueError, r"X \[..., n, 2\]"),
        ((more_X, more_Y[:, :1]), ValueError, r"Y \[..., n, 2\]"),
        ((more_X[0], more_Y[0]), ValueError, r"one row is X\[None\]"),
        ((more_X, more_Y[:2]), ValueError, "3 of X and 2 of Y"),
        ((more_X.expand(2, 3, 2), more_Y.expand(4, 3, 2)), ValueError, "do not broadcast"),
        ((more_X.float(), more_Y), TypeError, "trained in torch.float64"),
        ((more_X.numpy(), more_Y), TypeError, "got X as ndarray"),
        ((more_X, more_Y, more_Y[:2].abs()), ValueError, "noise of shape"),
        ((more_X, more_Y, -more_Y.abs()), ValueError, "negative variances"),
        ((more_X, more_Y, more_Y * torch.nan), ValueError, "noise with 6 NaN"),
    ):
        with pytest.raises(error, match=message):
            model.condition_on_observations(*arguments)
    sampler = SobolQMCNormalSampler(torch.Size([2]), seed=0)
    with pytest.raises(TypeError, match="as a tensor of variances"):
        model.fantasize(more_X, sampler, observation_noise=True)
    with pytest.raises(TypeError, match="no argument 'evaluation_mask'"):
        model.fantasize(more_X, sampler, evaluation_mask=more_Y > 0)
    with pytest.raises(ValueError, match="2 input columns"):
        model.fantasize(more_X[:, :1], sampler)


def relative(model, variances):
    """Variances of noise on the model's scale, from squared units of Y."""
    return (variances / model.train_Y[:10].std(0) ** 2).numpy()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_known_noise_of_further_rows(process, m):
    """In squared units of Y, whether the model learns its noise or knows that of its rows."""
    X, Y = rows(m=m)
    more_X, more_Y = rows(n=3, m=m, seed=1)
    Yvar, more_Yvar = (2 + torch.rand_like(value) for value in (Y, more_Y))
    all_rows = torch.cat([X, more_X]), torch.cat([Y, more_Y])
    known = make(process, X, Y, train_Yvar=Yvar)
    noise = np.concatenate([relative(known, Yvar), relative(known, more_Yvar)])
    grown = known.condition_on_observations(more_X, more_Y, noise=more_Yvar)
    agree(grown.posterior(Xs), Dense(X, Y)(process, *all_rows, Xs, noise=noise))
    assert torch.equal(grown.train_Yvar, torch.cat([Yvar, more_Yvar]))
    given = FixedNoiseGaussianLikelihood(Yvar.mT.squeeze(0) / known.outcome_transform.scale.mT**2)
    if m == 1:
        given = FixedNoiseGaussianLikelihood(Yvar[:, 0] / Y.std() ** 2)
    own = make(process, X, Y, likelihood=given)
    same = own.condition_on_observations(more_X, more_Y, noise=more_Yvar)
    agree(same.posterior(Xs), Dense(X, Y)(process, *all_rows, Xs, noise=noise))
    learnt = make(process, X, Y)
    grown = learnt.condition_on_observations(more_X, more_Y, noise=more_Yvar)
    for size in (5, 13):  # as many queries as rows are not taken for the rows
        queries = rows(n=size, seed=7)[0]
        noise = np.concatenate([np.full((10, m), 0.05), relative(learnt, more_Yvar)])
        mean, covariance = Dense(X, Y)(process, *all_rows, queries, noise=noise)
        agree(grown.posterior(queries), (mean, covariance))
        f, y = (grown.posterior(queries, observation_noise=flag) for flag in (False, True))
        added = (y.variance - f.variance).detach().numpy()
        factor = 1.0
        if process is StudentTProcess:
            unit = Dense(X, Y)(GaussianProcess, *all_rows, queries, noise=noise)[1]
            factor = (covariance[:, 0, 0] / unit[:, 0, 0])[None]
        truth = np.broadcast_to(0.05 * Y.var(0).numpy() * factor, added.shape)
        np.testing.assert_allclose(added, truth, rtol=1e-5)
    again = grown.condition_on_observations(*rows(n=2, m=m, seed=2))
    assert torch.equal(
        again.train_Yvar.isnan().any(-1).nonzero()[:, 0], torch.tensor([*range(10), 13, 14])
    )
    noise = np.concatenate([noise, np.full((2, m), 0.05)])
    more_rows = [torch.cat(pair) for pair in zip(all_rows, rows(n=2, m=m, seed=2), strict=True)]
    agree(again.posterior(Xs), Dense(X, Y)(process, *more_rows, Xs, noise=noise))


def test_exact_values_and_learnt_noise():
    """A variance of 0 pins f; the other rows' noise is still learnt."""
    X, Y = rows()
    more_X, more_Y = rows(n=2, seed=1)
    grown = make(GaussianProcess, X, Y).condition_on_observations(
        more_X, more_Y, noise=torch.zeros_like(more_Y)
    )
    assert torch.allclose(grown.posterior(more_X).mean, more_Y, rtol=1e-5)
    before = grown.likelihood.noise.item()
    grown.fit()
    assert grown.likelihood.noise.item() != before
    assert torch.allclose(grown.posterior(more_X).mean, more_Y, rtol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_noise_of_queries_in_the_units_of_y(process, m):
    X, Y = rows(m=m)
    model = make(process, X, Y)
    variances = 1 + torch.rand(5, m, dtype=torch.float64)
    f, y = (model.posterior(Xs, observation_noise=noise) for noise in (False, variances))
    factor = 1.0
    if process is StudentTProcess:
        unit = Dense(X, Y)(GaussianProcess, X, Y, Xs)[1][:, 0, 0]
        factor = Dense(X, Y)(process, X, Y, Xs)[1][:, 0, 0] / unit
    added = (y.variance - f.variance).detach().numpy()
    np.testing.assert_allclose(added, variances.numpy() * np.asarray(factor), rtol=1e-6)
    for shape in ((1, m), (5, 1)):
        part = model.posterior(Xs, observation_noise=torch.full(shape, 3.0, dtype=torch.float64))
        np.testing.assert_allclose(
            (part.variance - f.variance).detach(), np.broadcast_to(3 * factor, (5, m)), rtol=1e-6
        )
    with pytest.raises(ValueError, match="observation_noise of shape"):
        model.posterior(Xs, observation_noise=torch.ones(5, m + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="negative or NaN variances"):
        model.posterior(Xs, observation_noise=-variances)


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
def test_noise_of_fantasies(process, m):
    X, Y = rows(m=m)
    Yvar = 2 + torch.rand_like(Y)
    candidates = rows(n=4, seed=3)[0].reshape(2, 2, 2)
    sampler = SobolQMCNormalSampler(torch.Size([3]), seed=0)
    given = torch.tensor([[5.0]], dtype=torch.float64)
    known = make(process, X, Y, train_Yvar=Yvar)
    for model, argument, expected in (
        (known, None, Yvar.mean(0)),
        (known, given, torch.full_like(Yvar.mean(0), 5.0)),
        (make(process, X, Y), given, torch.full_like(Yvar.mean(0), 5.0)),
    ):
        fantasies = model.fantasize(candidates, sampler, observation_noise=argument)
        own = np.full((10, m), 0.05) if model.train_Yvar is None else relative(known, Yvar)
        noise = np.concatenate([own, np.broadcast_to(relative(known, expected), (2, m))])
        found = fantasies.posterior(Xs)
        for index in np.ndindex(3, 2):
            mean, _ = Dense(X, Y)(
                process, fantasies.train_X[index], fantasies.train_Y[index], Xs, noise=noise
            )
            np.testing.assert_allclose(found.mean[index].detach(), mean, rtol=1e-6)
        drawn = sampler(model.posterior(candidates, observation_noise=expected.expand(2, m)))
        assert torch.allclose(fantasies.train_Y[..., -2:, :], drawn)


def test_missing_noise_is_refused():
    X, Y = rows()
    model = make(GaussianProcess, X, Y, train_Yvar=torch.ones_like(Y))
    with pytest.raises(ValueError, match="pass noise=, .* in squared units of Y"):
        model.condition_on_observations(*rows(n=2, seed=1))
    positive = make(GaussianProcess, X, Y.abs(), outcome_transform=ExpTransform())
    more_X, more_Y = rows(n=2, seed=1)
    with pytest.raises(ValueError, match="no meaning under the outcome transform"):
        positive.condition_on_observations(more_X, more_Y.abs(), noise=more_Y.abs())
    with pytest.raises(ValueError, match="no meaning under the outcome transform"):
        positive.posterior(Xs, observation_noise=torch.ones(5, 1, dtype=torch.float64))


@pytest.mark.covering
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("kind", ["known", "learnt", "mixed"])
def test_conditioned_models_are_saved(process, m, kind, tmp_path):
    X, Y = rows(m=m)
    more_X, more_Y = rows(n=3, m=m, seed=1)
    given = {"train_Yvar": 2 + torch.rand_like(Y)} if kind == "known" else {"likelihood": None}
    model = make(process, X, Y, **given)
    noise = None if kind == "learnt" else torch.ones_like(more_Y)
    grown = model.condition_on_observations(more_X, more_Y, noise=noise)
    grown.save(tmp_path / "grown.safetensors")
    loaded = process.load(tmp_path / "grown.safetensors", kernel())
    for noisy in (False, True):
        before, after = (m.posterior(Xs, observation_noise=noisy) for m in (grown, loaded))
        assert torch.equal(before.mean, after.mean)
        assert torch.equal(before.variance, after.variance)
    batch = grown.fantasize(Xs, SobolQMCNormalSampler(torch.Size([2]), seed=0))
    with pytest.raises(NotImplementedError, match=r"batch \(2,\) of .* cannot be saved"):
        batch.save(tmp_path / "batch.safetensors")
