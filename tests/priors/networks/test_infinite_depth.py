"""Infinite-depth limits against dual polynomials, deep finite networks and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from priors.gaussian.activations import Erf, Hermite, Polynomial, Sign, Sine
from priors.networks.infinite_depth import InfiniteDepthClassifier, classify_activation


def with_dual(*coefficients):
    """The polynomial activation whose dual is sum_k coefficients[k] xi^k."""
    monomials = [0.0] * len(coefficients)
    for degree, coefficient in enumerate(coefficients):
        for power, value in enumerate(Hermite(degree).monomials):
            monomials[power] += math.sqrt(coefficient) * value
    return Polynomial(tuple(monomials))


# duals that Radhakrishnan et al. 2022 give for the alpha they are consistent with
PUBLISHED = {
    1: (0, 1 / 2, 0, 0, 0, 0, 0, 1 / 2),
    2: (0, 1 / 2, 0, 1 / 2),
    4: (0, 1 / 4, 1 / 2, 1 / 4),
    8: (0, 1 / 16, 7 / 8, 1 / 16),
}


def deep_ntk(coefficients, xi, depth):
    """Theta_depth(xi) of the recursion, from the dual polynomial itself."""
    K, theta = xi, xi
    for _ in range(depth):
        dual = sum(c * K**k for k, c in enumerate(coefficients))
        slope = sum(k * c * K ** (k - 1) for k, c in enumerate(coefficients) if k)
        K, theta = dual, dual + theta * slope
    return theta


@pytest.mark.parametrize("alpha", PUBLISHED)
def test_exponents_of_published_duals(alpha):
    limit = classify_activation(with_dual(*PUBLISHED[alpha]))
    assert limit.kind == "singular kernel"
    assert limit.exponent == pytest.approx(alpha, rel=1e-9)
    assert limit.A_prime**2 == pytest.approx(PUBLISHED[alpha][1], rel=1e-9)
    assert limit.B_prime == pytest.approx(
        sum(k * c for k, c in enumerate(PUBLISHED[alpha])), rel=1e-9
    )


def scaled_deep_ntk(coefficients, xi, depth):
    """Theta_depth(xi) / a^depth, which does not underflow; cut off at 1e200."""
    dual = torch.tensor(coefficients, dtype=xi.dtype)
    ratio_series = dual[1:] / dual[1]
    slope_series = torch.arange(1, len(dual)) * ratio_series
    K, ratio, theta = xi, xi, xi
    for _ in range(depth):
        powers = torch.linalg.vander(K, N=len(dual))
        ratio = ratio * (powers[..., :-1] @ ratio_series)
        theta = (ratio + theta * (powers[..., :-1] @ slope_series)).clamp(max=1e200)
        K = powers @ dual
    return theta


def test_scaled_tangent_kernel():
    xi = torch.tensor([0.3, -0.6, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        scaled_deep_ntk(PUBLISHED[4], xi, 9) / 4**9, deep_ntk(PUBLISHED[4], xi, 9)
    )


@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_exponent_is_the_slope_of_a_deep_tangent_kernel(alpha):
    coefficients = PUBLISHED[alpha]
    # over a whole number of periods: h may oscillate in log(1 - xi) with period log(B')
    B_prime = sum(k * c for k, c in enumerate(coefficients))
    gap = 1e-4 * B_prime ** torch.tensor([0.0, -6.0], dtype=torch.float64)
    # Theta_l / a^l = l h + const: its increase in depth is h
    first, second = (scaled_deep_ntk(coefficients, 1 - gap, depth) for depth in (100, 200))
    h = (second - first) / 100
    slope = float((h[1] / h[0]).log() / (gap[1] / gap[0]).log())
    assert -2 * slope == pytest.approx(alpha, abs=1e-3)


@pytest.mark.parametrize("alpha", PUBLISHED)
def test_singular_kernel_is_the_limit_of_the_tangent_kernel(alpha):
    limit = classify_activation(with_dual(*PUBLISHED[alpha]))
    xi = torch.tensor([-0.8, -0.2, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    first, second = (scaled_deep_ntk(PUBLISHED[alpha], xi, depth) for depth in (60, 120))
    torch.testing.assert_close((second - first) / 60, limit.singular_kernel(xi), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(torch.tanh, marks=pytest.mark.slow),
        Erf(),
        Sine(0.0),
        with_dual(0, 0.25, 0.5, 0.25),
    ],
)
def test_singular_kernel_solves_its_equation(activation):
    limit = classify_activation(activation)
    xi = torch.tensor([-0.9, 0.05, 0.6, 0.99], dtype=torch.float64)
    torch.testing.assert_close(
        limit.singular_kernel(limit.dual(xi)),
        limit.A_prime**2 * limit.singular_kernel(xi),
        rtol=1e-6,
        atol=0,
    )
    small = torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    torch.testing.assert_close(limit.singular_kernel(small), small, rtol=1e-4, atol=0)


def test_singular_kernel_of_a_linear_fractional_dual_is_known():
    # kappa(xi) = a xi / (1 - (1 - a) xi) = sum_k a (1 - a)^(k-1) xi^k linearises in closed form:
    # h = xi / (1 - xi), so alpha = 2 for every a (B' = 1 / a); cut off at degree 15
    a = 0.7
    coefficients = [0.0] + [a * (1 - a) ** (k - 1) for k in range(1, 16)]
    limit = classify_activation(with_dual(*coefficients))
    xi = torch.tensor([-0.7, -0.3, 0.2, 0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(limit.singular_kernel(xi), xi / (1 - xi), rtol=1e-5, atol=0)
    assert limit.exponent == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        Erf(),
        pytest.param(torch.tanh, marks=pytest.mark.slow),
        pytest.param(F.hardtanh, marks=pytest.mark.slow),
        with_dual(0, 0.25, 0.5, 0.25),
        pytest.param(with_dual(0, 0.5, 0, 0.5), marks=pytest.mark.slow),
    ],
)
def test_votes_are_the_singular_kernel(activation):
    # one training point at angle 0, with a label of its own, and one at a fixed other angle
    angle = torch.tensor([1e-3, 0.02, 0.3, 1.0, 2.0, 2.9], dtype=torch.float64)
    X = torch.tensor([[1.0, 0.0], [math.cos(-0.5), math.sin(-0.5)]], dtype=torch.float64)
    new = torch.stack([angle.cos(), angle.sin()], -1)
    limit = classify_activation(activation)
    scores = InfiniteDepthClassifier(limit).fit(X, torch.tensor([0, 1])).decision(new)
    h = limit.singular_kernel(new @ X.T)
    expected = h / h.abs().sum(-1, keepdim=True)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        (nn.ReLU(), "majority vote"),
        (F.gelu, "majority vote"),
        (torch.cos, "majority vote"),
        (Hermite(2), "one-nearest-neighbour"),
        (Hermite(3), "one-nearest-neighbour"),
        (torch.tanh, "singular kernel"),
        (F.hardtanh, "singular kernel"),
        (torch.sin, "singular kernel"),
    ],
)
def test_taxonomy(activation, kind):
    limit = classify_activation(activation)
    assert limit.kind == kind
    assert (limit.exponent is None) == (kind != "singular kernel")


def test_moments_are_known():
    # E relu = 1 / sqrt(2 pi), E relu^2 = 1 / 2, E relu'^2 = 1 / 2
    relu = classify_activation(nn.ReLU())
    moments = (relu.A, relu.A_prime, relu.B_prime)
    assert moments == pytest.approx((1 / math.sqrt(math.pi), math.sqrt(0.5), 1), rel=1e-10)
    # sin: E sin^2 = (1 - e^-2) / 2, E cos = e^-1/2, E cos^2 = (1 + e^-2) / 2
    sine = classify_activation(torch.sin)
    square = (1 - math.exp(-2)) / 2
    a, b = math.exp(-1) / square, (1 + math.exp(-2)) / 2 / square
    assert sine.exponent == pytest.approx(-2 * math.log(a) / math.log(b), rel=1e-9)


def orthant(num, d, seed):
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(num, d, generator=generator, dtype=torch.float64)
    return X, torch.randint(0, 3, (num,), generator=generator) * 5 - 2


def ntk_machine(kernel, X, y, new):
    """Prediction of one-against-rest minimum-norm interpolation with a kernel of the cosine."""
    X, new = X / X.norm(dim=-1, keepdim=True), new / new.norm(dim=-1, keepdim=True)
    classes = y.unique()
    targets = (y[:, None] == classes).double()
    gram = kernel((X @ X.T).fill_diagonal_(1.0))
    return classes[(kernel(new @ X.T) @ torch.linalg.solve(gram, targets)).argmax(-1)]


@pytest.mark.parametrize("alpha", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_deep_network_agrees_with_its_limit(alpha):
    X, y = orthant(40, 4, 0)
    new, _ = orthant(100, 4, 1)
    classifier = InfiniteDepthClassifier(with_dual(*PUBLISHED[alpha])).fit(X, y)
    predicted, top = classifier.predict(new), classifier.decision(new).topk(2).values
    differs = [
        ntk_machine(lambda xi, d=depth: scaled_deep_ntk(PUBLISHED[alpha], xi, d), X, y, new)
        != predicted
        for depth in (1, 30, 5000)
    ]
    # only where two classes score about equal may the remaining 1 / depth decide
    assert not bool(differs[2][(top[:, 0] - top[:, 1]) > 0.02].any())
    assert int(differs[2].sum()) <= 2
    assert int(differs[0].sum()) > int(differs[1].sum()) > int(differs[2].sum())


def test_deep_network_without_a_linear_term_takes_the_nearest_neighbour():
    X, y = orthant(40, 4, 2)
    new, _ = orthant(200, 4, 3)
    predicted = InfiniteDepthClassifier(Hermite(2)).fit(X, y).predict(new)
    unit = X / X.norm(dim=-1, keepdim=True), new / new.norm(dim=-1, keepdim=True)
    assert torch.equal(predicted, y[torch.cdist(unit[1], unit[0]).argmin(-1)])
    deep = ntk_machine(lambda xi: deep_ntk((0, 0, 1), xi, 8), X, y, new)
    assert float((deep == predicted).double().mean()) > 0.97


def test_majority_vote():
    X, _ = orthant(9, 3, 4)
    y = torch.tensor([1, 1, 4, 4, 4, 4, 7, 7, 7])
    classifier = InfiniteDepthClassifier(torch.relu).fit(X, y)
    assert classifier.predict(orthant(5, 3, 5)[0]).tolist() == [4] * 5
    torch.testing.assert_close(
        classifier.decision(X[:1]), torch.tensor([[2, 4, 3]], dtype=torch.float64) / 9
    )
    new = orthant(20, 3, 6)[0]
    deep = ntk_machine(lambda xi: deep_ntk((0.3, 0.3, 0.4), xi, 300), X, y, new)
    assert deep.tolist() == [4] * 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [with_dual(0, 0.5, 0, 0.5), Hermite(2)])
def test_training_points_keep_their_labels_at_any_length(activation, dtype):
    X, y = orthant(30, 3, 7)
    X = X.to(dtype)
    classifier = InfiniteDepthClassifier(activation, chunk_size=7).fit(X, y)
    assert torch.equal(classifier.predict(3 * X), y)
    assert classifier.decision(X).dtype == dtype
    # contradicting labels of the same input share the votes
    twice = classifier.fit(X[[0, 0, 1]], torch.tensor([0, 1, 1]))
    assert twice.decision(X[:1])[0].tolist() == [0.5, 0.5]


def test_an_odd_activation_votes_against_the_antipode():
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    classifier = InfiniteDepthClassifier(Sine(0.0)).fit(X, torch.tensor([0, 1]))
    assert classifier.predict(torch.tensor([[-1.0, 0.0]])).item() == 1
    assert bool(classifier.decision(-X).isfinite().all())


def test_chunks_do_not_matter():
    X, y = orthant(20, 3, 8)
    new, _ = orthant(33, 3, 9)
    scores = [
        InfiniteDepthClassifier(Sine(0.0), chunk_size=size).fit(X, y).decision(new)
        for size in (5, 100)
    ]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-12)


def test_errors():
    for activation, message in [
        (Sign(), "discontinuous"),
        (nn.Identity(), "linear"),
        (Polynomial((0.0,)), "zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            classify_activation(activation)
    classifier = InfiniteDepthClassifier(Sine(0.0))
    with pytest.raises(RuntimeError, match="fit"):
        classifier.predict(torch.ones(1, 2))
    with pytest.raises(ValueError, match="n >= 1"):
        classifier.fit(torch.ones(2, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="zero"):
        classifier.fit(torch.zeros(2, 2), torch.zeros(2))
    classifier.fit(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="as in fit"):
        classifier.decision(torch.ones(2, 3))
    with pytest.raises(ValueError, match="no singular kernel"):
        classify_activation(torch.relu).singular_kernel(torch.zeros(1))
