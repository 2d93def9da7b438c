"""Experts: their posteriors against dense solves, and networks that mix them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pfn import PFN, ArchitectureConfig, BarDistribution, TrainingConfig, load, train
from pfn.experts import (
    _FITTED,
    Advice,
    Experts,
    Kernels,
    _decomposed,
    _evidence_slope,
    _factorised,
    _fitted_covariance,
    _half_inverse,
)
from pfn.mixing import mixed
from priors import LinearTaskPrior, RandomNoise, TaskSize
from priors.random_state import seeded

TINY = ArchitectureConfig(
    max_features=3, embedding=16, layers=2, heads=2, hidden=16, thinking_rows=2, bars=40, experts=2
)


def data(n=12, d=3, batch=2, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    e = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    return X, torch.sin(2 * X[..., 0]) + 0.3 * X[..., 1] + noise * e


def covariance(experts, task, k, a, b):
    """Of one kernel between rows in units of the context, from its formula, pair by pair."""
    kind, w = int(experts.kernels.kind[task, k]), experts.kernels.weight[task, k].numpy()
    a, b = a.numpy(), b.numpy()
    r2 = (w * (a[:, None] - b[None]) ** 2).sum(-1)
    r = np.sqrt(r2)
    s = np.sqrt(5) * r
    found = {
        0: (a * w) @ b.T,
        1: np.exp(-r),
        2: (1 + s + s**2 / 3) * np.exp(-s),
        3: np.exp(-r2 / 2),
    }[kind]
    return found + 0.2


def solved(experts, task, k, X, z, queries):
    """Mean and variance of noisy targets, by numpy."""
    unit = float(experts.unit[task])
    rows, asked = X[task] / unit, queries[task] / unit
    ratio = float(experts.noise[task, k])
    K = covariance(experts, task, k, rows, rows) + ratio * np.eye(len(rows))
    cross = covariance(experts, task, k, rows, asked)
    z = z[task].numpy()
    q = z @ np.linalg.solve(K, z)
    scale = (2 + q) / (2 + len(z))
    mean = cross.T @ np.linalg.solve(K, z)
    own = np.diag(covariance(experts, task, k, asked, asked))
    reduced = (cross * np.linalg.solve(K, cross)).sum(0)
    return mean, scale * (own - reduced + ratio), scale * (own - reduced)


def test_predictions_are_those_of_a_dense_solve():
    X, z = data()
    queries = data(n=5, seed=1)[0]
    experts = Experts.of(X, z, 4)
    found = experts.predict(queries)
    for task in range(2):
        for k in range(4):
            mean, variance, variance_f = solved(experts, task, k, X, z, queries)
            np.testing.assert_allclose(found.mean[task, :, k], mean, atol=1e-4)
            np.testing.assert_allclose(found.log_std[task, :, k].exp() ** 2, variance, rtol=1e-3)
            np.testing.assert_allclose(
                found.log_std_f[task, :, k].exp() ** 2,
                variance_f,
                rtol=2e-3,
                atol=1e-3 * variance.max(),
            )
    np.testing.assert_allclose(found.log_weight.exp().sum(-1), 1)


def test_rows_of_the_context_are_predicted_from_the_others():
    X, z = data(n=9, batch=1)
    experts = Experts.of(X, z, 3)
    unit = float(experts.unit[0])
    rows, target = X[0] / unit, z[0].numpy()
    for k in range(3):
        ratio = float(experts.noise[0, k])
        K = covariance(experts, 0, k, rows, rows) + ratio * np.eye(9)
        scale = (2 + target @ np.linalg.solve(K, target)) / 11
        for i in range(9):
            rest = np.arange(9) != i
            gain = np.linalg.solve(K[np.ix_(rest, rest)], K[rest, i])
            variance = scale * (K[i, i] - gain @ K[rest, i])
            np.testing.assert_allclose(experts.own.mean[0, i, k], gain @ target[rest], atol=1e-4)
            np.testing.assert_allclose(experts.own.log_std[0, i, k].exp() ** 2, variance, rtol=1e-3)


@pytest.mark.parametrize("hidden", [0, 2])
def test_slopes_of_the_evidence_are_those_of_autograd(hidden):
    X, z = data(n=8)
    shown = torch.ones(2, 8, dtype=torch.bool)
    shown[:, 8 - hidden :] = False
    X, z = X * shown[..., None], z * shown
    weight = (torch.rand(2, 2, 3, dtype=torch.float64) + 0.2).requires_grad_()
    kinds = torch.tensor([_FITTED] * 2)
    C = Kernels(kinds, weight, torch.zeros(2, 2)).covariance(X, X)
    n = 8 - hidden
    K = C[..., :n, :n] + 0.1 * torch.eye(n, dtype=torch.float64)
    q = (z[:, None, None, :n] @ K.inverse() @ z[:, None, :n, None])[..., 0, 0]
    evidence = -K.logdet() / 2 - (2 + n) / 2 * (2 + q).log()
    (wanted,) = torch.autograd.grad(evidence.sum(), weight)

    found, derivative = _fitted_covariance(weight.detach(), X)
    torch.testing.assert_close(found + 0.2, C.detach(), rtol=1e-5, atol=1e-5)
    inverse = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    inverse[..., :n, :n] = K.detach().inverse()
    slope = _evidence_slope(inverse, z, shown, derivative, X)
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)


def test_relevances_find_the_column_that_matters():
    X, _ = data(n=60, batch=1)
    z = torch.sin(2 * X[..., 1])
    experts = Experts.of(X, z, 1)
    w = experts.kernels.weight[0, 0]
    assert w[1] > 20 * max(w[0], w[2])
    assert experts.noise[0, 0] <= 1e-4


def test_padding_changes_nothing():
    X, z = data()
    shown = torch.ones(2, 12, dtype=torch.bool)
    shown[:, 9:] = False
    queries = data(n=5, seed=1)[0]
    padded, plain = Experts.of(X, z, 3, shown), Experts.of(X[:, :9], z[:, :9], 3)
    for name, value in vars(plain.predict(queries)).items():
        torch.testing.assert_close(getattr(padded.predict(queries), name), value)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_are_enough(n):
    X, z = data(n=n)
    found = Experts.of(X, z, 3).predict(data(n=4, seed=1)[0])
    assert all(bool(value.isfinite().all()) for value in vars(found).values())


def test_equal_rows_are_no_trouble():
    X = torch.ones(1, 30, 2, dtype=torch.float64)
    found = Experts.of(X, torch.zeros(1, 30, dtype=torch.float64), 3).predict(X[:, :2])
    assert all(bool(value.isfinite().all()) for value in vars(found).values())


@pytest.mark.parametrize("index", [[0, 1, 1, 0], [1, 1, 0]])
def test_copies_share_what_they_are_copies_of(index):
    X, z = data()
    experts, index = Experts.of(X, z, 3), torch.tensor(index)
    queries = data(n=4, batch=len(index), seed=1)[0]
    copies = experts.select(index)
    assert copies.root is experts.root
    direct = Experts.of(X[index], z[index], 3).predict(queries)
    for name, value in vars(copies.predict(queries)).items():
        torch.testing.assert_close(value, getattr(direct, name))


def test_a_network_in_use_compares_kernels_on_more_rows_than_in_training():
    """Relevances of many columns, of which one counts, are told by 200 rows and not by 64."""
    X, _ = data(n=200, d=8, batch=1)
    z = torch.sin(3 * X[..., 0])
    network = PFN(replace(TINY, max_features=8), torch.linspace(-3, 3, 41), targets="raw").double()
    errors = []
    for training in (True, False):
        with torch.no_grad():
            experts = network.train(training).encode(X, z).experts
        errors.append(float((experts.own.mean[0, :, 0] - z[0]).square().mean().sqrt()))
    assert errors[1] < 0.7 * errors[0]


def test_the_mixture_has_the_laws_of_its_experts():
    bars = BarDistribution(torch.linspace(-6, 6, 600, dtype=torch.float64), tail_scale=1.0)
    advice = Advice(
        *(torch.tensor([[value]]).double() for value in ([0.5, -1], [-1, 0], [-1, 0], [-0.2, -1.7]))
    )
    outputs = torch.zeros(1, 1, 600 + 2 * 3 + 2, dtype=torch.float64)
    outputs[..., 600] = -60.0  # nothing of the own distribution
    logits = mixed(bars, outputs, advice, noisy=True)
    df = 3 + math.exp(3)
    weight = torch.tensor([-0.2, -1.7]).double().softmax(0)
    laws = [torch.distributions.StudentT(df, m, s) for m, s in ((0.5, math.exp(-1)), (-1.0, 1.0))]
    y = torch.linspace(-4, 4, 9, dtype=torch.float64)
    wanted = sum(w * law.log_prob(y).exp() for w, law in zip(weight, laws, strict=True))
    torch.testing.assert_close(bars.log_prob(logits[0, 0], y).exp(), wanted, rtol=2e-2, atol=1e-4)
    outputs[..., 600] = 60.0  # nothing of the experts
    outputs[..., :600] = torch.randn(600, dtype=torch.float64)
    logits = mixed(bars, outputs, advice, noisy=True)
    torch.testing.assert_close(logits, outputs[..., :600].log_softmax(-1))


def plainly_mixed(bars, outputs, advice):
    """Of noisy targets, by torch's densities and autograd."""
    k = advice.mean.shape[-1]
    own, weight, shift, log_scale, degrees = outputs.split([bars.num_logits, k + 1, k, k, 1], -1)
    std, nodes = advice.log_std.exp(), bars.borders
    gaps = nodes.diff()
    width = 0.4 * torch.cat([gaps[:1], torch.maximum(gaps[1:], gaps[:-1]), gaps[-1:]])
    scale = (std * (3 * torch.tanh(log_scale / 3)).exp())[..., None].square() + width.square()
    df = (3 + torch.exp(3 + 3 * torch.tanh(degrees / 3)))[..., None]
    law = torch.distributions.StudentT(df, (advice.mean + shift * std)[..., None], scale.sqrt())
    each = (law.log_prob(nodes) + bars.areas(nodes).log()).log_softmax(-1)
    prior = torch.cat([torch.zeros_like(weight[..., :1]), advice.log_weight], -1)
    parts = torch.cat([own.log_softmax(-1)[..., None, :], each], -2)
    return ((weight + prior).log_softmax(-1)[..., None] + parts).logsumexp(-2)


@pytest.mark.parametrize("at_once", [1, 2**17])
def test_the_mixture_and_its_gradients_are_those_of_the_densities(at_once, monkeypatch):
    monkeypatch.setattr("pfn.mixing._NUMBERS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    bars = BarDistribution(torch.linspace(-2, 3, 30, dtype=torch.float64) ** 3, tail_scale=1.0)
    outputs = draw(2, 5, 30 + 2 * 3 + 2)
    advice = Advice(draw(2, 5, 2), draw(2, 5, 2), draw(2, 5, 2), draw(2, 5, 2))
    found, wanted = mixed(bars, outputs, advice, noisy=True), plainly_mixed(bars, outputs, advice)
    torch.testing.assert_close(found, wanted)
    direction = draw(*found.shape).detach()
    inputs = outputs, advice.mean, advice.log_std, advice.log_weight
    for own, plain in zip(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((wanted * direction).sum(), inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(own, plain)
    by_func = torch.func.grad(lambda x: (mixed(bars, x, advice, noisy=True) * direction).sum())
    torch.testing.assert_close(
        by_func(outputs.detach()), torch.autograd.grad((wanted * direction).sum(), outputs)[0]
    )


def test_experts_far_from_all_nodes_have_finite_gradients():
    bars = BarDistribution(torch.linspace(-4, 4, 60), tail_scale=1.0)
    outputs = torch.zeros(1, 1, 60 + 5, requires_grad=True)
    advice = Advice(*(torch.tensor([[[value]]]) for value in (1e4, -12.0, -12.0, 0.0)))
    bars.log_prob(mixed(bars, outputs, advice, noisy=True), torch.tensor([[-4.0]])).sum().backward()
    assert bool(outputs.grad.isfinite().all())


def prior():
    size = TaskSize(max_features=3, max_context=20, num_queries=6)
    return LinearTaskPrior(size=size, noise=RandomNoise())


def test_a_network_with_experts_is_trained_saved_and_asked(tmp_path):
    config = TrainingConfig(
        TINY,
        inputs="standardised",
        targets="standardised",
        steps=4,
        batch=4,
        border_tasks=40,
        held_out_tasks=0,
        appended=0.5,
        max_buffer=4,
    )
    network = train(prior(), config=config, device="cpu", progress=False)
    assert bool((network.network.mix_y.weight != 0).any())
    network.save(tmp_path / "network")
    network = load(tmp_path / "network").double()
    X, z = data(n=10, batch=1)
    model = network.condition(X[0], z[0, :, None])
    asked = data(n=3, batch=1, seed=1)[0][0].requires_grad_()
    posterior = model.posterior(asked)
    posterior.mean.sum().backward()
    assert bool(asked.grad.isfinite().all())
    assert bool((asked.grad != 0).any())
    draws = model.posterior(asked.detach(), observation_noise=True).rsample(torch.Size([5]))
    assert draws.shape == (5, 3, 1)
    assert bool(draws.isfinite().all())


def test_experts_predict_a_linear_function_before_any_training():
    with seeded(0):
        nodes = torch.linspace(-4, 4, 800)
        network = PFN(
            replace(TINY, bars=800),
            nodes,
            tail_scale=0.1,
            inputs="standardised",
            targets="standardised",
        ).double()
    X = data(n=40, batch=1)[0][0]
    f = X @ torch.tensor([[1.0], [-2.0], [0.5]]).double()
    posterior = network.condition(X[:30], f[:30]).posterior(X[30:])
    with torch.no_grad():
        median = posterior.quantile(torch.tensor(0.5).double())
    assert float((median - f[30:]).abs().max()) < 0.1 * float(f.std())


@pytest.mark.parametrize("padded", [False, True])
def test_what_a_gpu_computes_otherwise_is_the_same(padded):
    """Factors for decompositions, triangular solves for inverses; against numpy."""
    X, z = data(n=9, batch=3)
    shown = torch.arange(9) < torch.tensor([9, 6, 7])[:, None] if padded else None
    if shown is not None:
        X, z = X * shown[..., None], z * shown
    kind = torch.arange(4).expand(3, 4)
    kernels = Kernels(kind, X.new_full((3, 4, 3), 0.7), X.new_zeros(3, 4))
    covariance = kernels.covariance(X, X, shown, shown)
    ratios = X.new_tensor([1.0, 1e-3, 1e-6])
    by_decomposition = _decomposed(covariance, ratios, z, shown)
    by_factors = _factorised(covariance, ratios, z, shown)
    for task in range(3):
        rows = slice(None) if shown is None else slice(0, int(shown[task].sum()))
        C, y = covariance[task][:, rows, rows].numpy(), z[task, rows].numpy()
        for k in range(4):
            for j, ratio in enumerate(ratios.tolist()):
                K = C[k] + ratio * np.eye(len(y))
                q = y @ np.linalg.solve(K, y)
                truth = -np.linalg.slogdet(K)[1] / 2 - (2 + len(y)) / 2 * np.log(2 + q)
                assert by_decomposition[task, k, j] == pytest.approx(truth, rel=1e-7)
                assert by_factors[task, k, j] == pytest.approx(truth, rel=1e-7)
    K = covariance + torch.eye(9)
    half = _half_inverse(torch.linalg.cholesky(K))
    np.testing.assert_allclose(half.mT @ half, np.linalg.inv(K.numpy()), atol=1e-12)
