"""Universal features against the layers and the kernels they estimate."""

import math

import gpytorch
import pytest
import torch
from torch import nn

from bayes import GaussianProcess
from priors import InfiniteNetwork, NNGPKernel, RandomFeatureKernel, UniversalFeatures
from priors.gaussian.activations import GELU, ABReLU
from priors.kernels.universal_features import expand, gegenbauer, num_harmonics

MAX_NORM = 4.0


def points(n=15, d=3, seed=0):
    """Points within MAX_NORM."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return X * (MAX_NORM / X.norm(dim=-1, keepdim=True)).clamp(max=1)


def neurons(h=12, d=3, weight_var=1.5, bias_var=0.2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(h, d, dtype=torch.float64, generator=generator)
    bias = torch.randn(h, dtype=torch.float64, generator=generator)
    return weight * math.sqrt(weight_var / d), bias * math.sqrt(bias_var)


def make(m, seed=0, d=3, **options):
    options = {"weight_var": 1.5, "bias_var": 0.2, "activation": torch.sin, **options}
    generator = torch.Generator().manual_seed(seed)
    return UniversalFeatures(d, m, max_norm=MAX_NORM, generator=generator, **options)


def exact_kernel(module, X):
    network = nn.Sequential(nn.Linear(X.shape[-1], 8), module, nn.Linear(8, 1))
    kernel = NNGPKernel(InfiniteNetwork(network, weight_var=1.5, bias_var=0.2))
    return (kernel(X).to_dense().detach() - 0.2) / 1.5


def relative(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("d", "counts"), [(1, [1, 1, 0, 0]), (2, [1, 2, 2, 2]), (3, [1, 3, 5, 7])])
def test_number_of_harmonics(d, counts):
    assert [num_harmonics(d, n) for n in range(4)] == counts


@pytest.mark.parametrize("dimension", [2, 3, 7])
def test_polynomials_reproduce(dimension):
    # N E[P_n(u.x) P_m(u.w)] = delta P_n(x.w), over many directions
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(200_000, dimension, dtype=torch.float64, generator=generator)
    u = u / u.norm(dim=-1, keepdim=True)
    t = 0.6
    w = u.new_zeros(dimension)
    w[:2] = u.new_tensor([t, 0.8])
    p, q = gegenbauer(u[:, 0], dimension, 3), gegenbauer(u @ w, dimension, 3)
    terms = p[:, :, None] * q[:, None, :]
    count = u.new_tensor([num_harmonics(dimension, n) for n in range(4)])
    exact = torch.diag(gegenbauer(u.new_tensor(t), dimension, 3) / count)
    assert ((terms.mean(0) - exact).abs() < 5 * terms.std(0) / len(u) ** 0.5 + 1e-9).all()


@pytest.mark.parametrize("dimension", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("f", [torch.sin, lambda v: (v - 0.3).cos() + v])
def test_expansion_reconstructs_smooth_functions(dimension, f):
    found = expand(f, dimension, (0.0, 2.0), tolerance=1e-10)
    generator = torch.Generator().manual_seed(0)
    r = 2 * torch.rand(500, dtype=torch.float64, generator=generator)
    w = torch.randn(500, dimension, dtype=torch.float64, generator=generator)
    s = w.norm(dim=-1)
    t = w[:, 0] / s
    assert relative(found(r, s, t), f(r * s * t)) < 1e-8
    assert found.truncation < 1e-8


@pytest.mark.parametrize("dimension", [2, 4])
def test_expansion_knows_what_it_leaves_out(dimension):
    found = expand(ABReLU(), dimension, (0.5, 3.0), kinks=(0.0,), tolerance=3e-3)
    generator = torch.Generator().manual_seed(0)
    r = 0.5 + 2.5 * torch.rand(20_000, dtype=torch.float64, generator=generator)
    w = torch.randn(20_000, dimension, dtype=torch.float64, generator=generator)
    s = w.norm(dim=-1)
    error = relative(found(r, s, w[:, 0] / s), w[:, 0].mul(r).relu())
    assert error == pytest.approx(found.truncation, rel=0.1)
    assert found.truncation < 3e-3


def test_moving_kinks():
    # with the kink known the coefficients are exact, so that truncation is the whole error
    f = lambda v: (v - 0.7).relu()  # noqa: E731
    found = expand(f, 3, (0.5, 3.0), kinks=(0.7,), tolerance=3e-2, max_degree=24)
    r = torch.linspace(0.5, 3.0, 30, dtype=torch.float64)[:, None]
    w = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = w.norm(dim=-1)
    error = relative(found(*torch.broadcast_tensors(r, s, w[:, 0] / s)), f(r * w[:, 0]))
    assert error == pytest.approx(found.truncation, rel=0.1)


@pytest.mark.parametrize("target", ["kernel", pytest.param("layer", marks=pytest.mark.slow)])
def test_layer_and_kernel_are_unbiased(target):
    X, (weight, bias) = points(), neurons()
    layers, kernels = [], []
    expansion = make(60, tolerance=1e-5).expansion
    with torch.no_grad():
        for seed in range(40):
            u = make(60, seed, unbiased=True, target=target, expansion=expansion)
            layers.append(u.layer(X, weight, bias))
            features = u(X)
            kernels.append(features @ features.mT)
            assert features.shape[-1] <= 60
    assert (u.counts < u.expansion.multiplicity).any()
    for draws, exact in (
        (torch.stack(layers), (X @ weight.mT + bias).sin()),
        (torch.stack(kernels), _sine_kernel(X)),
    ):
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - exact).abs() < 5 * error + 1e-3).all()
        assert error.median() > 0


def _sine_kernel(X):
    v = 0.5 * X @ X.mT + 0.2
    q = v.diagonal()
    return (-(q[:, None] + q) / 2).exp() * v.sinh()


def test_the_error_falls_like_the_root_of_the_size_until_all_is_exact():
    # the harmonics of degree 3 in 21 dimensions are 1750
    d, X, f = 20, points(30, 20), lambda v: v**3 - 3 * v
    exact = _cubic_kernel(1.5 / d * X @ X.mT + 0.2)
    first = make(2000, d=d, activation=f, tolerance=1e-6)
    assert relative(first(X) @ first(X).mT, exact) < 1e-8
    curve = []
    for m in (64, 256):
        options = {"d": d, "activation": f, "unbiased": True, "expansion": first.expansion}
        drawn = [make(m, seed, **options)(X) for seed in range(10)]
        curve.append(sum(relative(z @ z.mT, exact) for z in drawn))
    assert -0.8 < math.log(curve[1] / curve[0]) / math.log(4) < -0.3


def _cubic_kernel(v):
    # E f f for f = v^3 - 3 v: Wick's theorem
    q = v.diagonal()[:, None]
    p = v.diagonal()[None]
    return 6 * v**3 + 9 * q * p * v - 9 * (q + p) * v + 9 * v


@pytest.mark.parametrize(("module", "f"), [(nn.GELU(), GELU()), (nn.ReLU(), ABReLU())])
def test_kernel_of_a_network_with_one_hidden_layer(module, f):
    X = points(40)
    exact = exact_kernel(module, X)
    errors = [relative(u(X) @ u(X).mT, exact) for u in (make(m, activation=f) for m in (16, 256))]
    assert errors[0] < 0.02
    assert errors[1] < 2e-4
    z = make(256, activation=f)(X)
    assert torch.linalg.eigvalsh(z @ z.mT).min() > -1e-10


def test_layer_has_the_least_error_with_the_leading_components():
    X, (weight, bias) = points(300), neurons(200)
    F = (X @ weight.mT + bias).relu()
    for m in (16, 64):
        best = torch.linalg.svdvals(F)[m:].norm() / F.norm()
        ours = relative(make(m, activation=ABReLU()).layer(X, weight, bias), F)
        assert best < ours < 3 * best
        drawn = make(m, activation=ABReLU(), unbiased=True, tolerance=0.1, target="layer")
        assert relative(drawn.layer(X, weight, bias), F) > ours


@pytest.mark.covering
@pytest.mark.parametrize("bias_var", [0.0, 0.3])
@pytest.mark.parametrize("d", [1, 2])
def test_few_dimensions(d, bias_var):
    X, (weight, bias) = points(d=d), neurons(d=d, bias_var=bias_var)
    u = make(1000, d=d, bias_var=bias_var, activation=GELU(), tolerance=1e-6)
    F = GELU()(X @ weight.mT + bias)
    assert relative(u.layer(X, weight, bias), F) < 1e-4
    if bias_var == 0:
        torch.testing.assert_close(u.psi(weight), u.psi(weight, 0 * bias))


def test_single_precision():
    X, (weight, bias) = points(), neurons()
    u = make(300, activation=GELU())
    found = u.layer(X.float(), weight.float(), bias.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), u.layer(X, weight, bias), rtol=0, atol=2e-4)
    assert u.float()(X).dtype == torch.float64


@pytest.mark.covering
@pytest.mark.parametrize("bias_var", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_layer(dtype, bias_var):
    X, (weight, bias) = points(), neurons(bias_var=bias_var)
    X[0] = 0.0
    X = X.to(dtype).requires_grad_()
    weight, bias = weight.to(dtype).requires_grad_(), bias.to(dtype)
    u = make(2000, bias_var=bias_var, tolerance=1e-6)
    found = torch.autograd.grad(u.layer(X, weight, bias).sum(), (X, weight))
    exact = torch.autograd.grad((X @ weight.mT + bias).sin().sum(), (X, weight))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
    (gradient,) = torch.autograd.grad(u(X).square().sum(), X)
    assert gradient.isfinite().all()


def test_gaussian_process_and_state():
    X = points(40)
    features = make(20, activation=GELU())
    model = GaussianProcess(
        X,
        X.sin().sum(-1, keepdim=True),
        RandomFeatureKernel(features),
        input_transform=None,
        outcome_transform=None,
    )
    assert model.posterior(points(5, seed=1)).mean.isfinite().all()
    whole = RandomFeatureKernel(features)(X)
    with gpytorch.settings.max_cholesky_size(1):
        assert whole.add_jitter(0.1).logdet().isfinite()
    batch = torch.stack([X, X / 2])
    torch.testing.assert_close(features(batch)[1], features(X / 2))
    again = make(20, seed=5, activation=GELU())
    again.load_state_dict(features.state_dict())
    assert torch.equal(again(X), features(X))


def test_what_is_out_of_range_is_named():
    u = make(20)
    with pytest.raises(ValueError, match="larger max_norm"):
        u(2 * MAX_NORM * torch.ones(1, 3))
    with pytest.raises(ValueError, match="larger max_weight_norm"):
        u.psi(10 * torch.ones(1, 3))
    with pytest.raises(ValueError, match="other inputs"):
        make(20, bias_var=0.0, expansion=u.expansion)
    wide = make(20, max_weight_norm=40.0)
    assert wide.psi(10 * torch.ones(1, 3)).isfinite().all()
    with pytest.raises(ValueError, match="Points must have the 3 features"):
        u(torch.ones(1, 4))
    with pytest.raises(ValueError, match="Weights must have the 3 features"):
        u.psi(torch.ones(1, 4))
    with pytest.raises(ValueError, match="without bias"):
        make(20, bias_var=0.0).psi(torch.ones(1, 3), torch.ones(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_var": 0.0}, "weight_var"),
        ({"bias_var": -1.0}, "bias_var"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"target": "ntk"}, "target"),
        ({"unbiased": True}, "need at least"),
        ({"activation": torch.zeros_like}, "zero everywhere"),
        ({"activation": torch.log}, "finite"),
        ({"activation": lambda v: (50 * v).sin()}, "does not resolve"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(2, **options)
