"""Kernels that need expectations over several variables: closed forms, Monte Carlo, properties."""

import math

import pytest
import torch
from torch import nn

from priors import InfiniteNetwork, QuasiMonteCarlo

WIDTH = 8


class Forward(nn.Module):
    """Layers a, b, c of the input, d of hidden units, the readout r, and a forward."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, WIDTH) for _ in range(3))
        self.d, self.r = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.function = forward

    def forward(self, x):
        return self.r(self.function(self, x))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, WIDTH, batch_first=True)
        self.r = nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.r(self.rnn(x)[0][:, -1])


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.r = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
        self.m = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.r(self.m(h, h, h, need_weights=False)[0].mean(1))


def skip(m, x):
    h = torch.relu(m.a(x))
    return torch.relu(h + m.d(h))


JOINT = {
    "skip after the activation": (lambda: Forward(skip), (3,)),
    "gate": (
        lambda: Forward(lambda m, x: torch.tanh(m.a(x) + torch.sigmoid(m.b(x)) * m.c(x))),
        (3,),
    ),
    "correlated gate": (
        lambda: Forward(lambda m, x: m.a(x) * torch.sigmoid(m.a(x) + m.b(x)) + m.b(x)),
        (3,),
    ),
    "hard gate": (
        lambda: Forward(lambda m, x: torch.relu(m.a(x) - m.b(x)) * torch.sign(m.b(x)) + m.c(x)),
        (3,),
    ),
    "GRU": (lambda: Recurrent(nn.GRU), (2, 3)),
    "LSTM": (lambda: Recurrent(nn.LSTM), (2, 3)),
}
ALL = {**JOINT, "heads": (Heads, (2, 3))}


def network(name, num_samples=256):
    torch.manual_seed(0)
    module, shape = ALL[name][0](), ALL[name][1]
    return InfiniteNetwork(
        module.double(),
        weight_var=1.5,
        bias_var=0.1,
        input_shape=shape,
        quadrature=QuasiMonteCarlo(num_samples),
    ), math.prod(shape)


def inputs(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=g)


def preactivations(x, weight_var=1.5, bias_var=0.1):
    return weight_var * x @ x.mT / x.shape[-1] + bias_var


def relu_dual(q):
    root = (q.diagonal()[:, None] * q.diagonal()).sqrt()
    angle = torch.arccos((q / root).clamp(-1, 1))
    return root * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)


def erf_dual(q):
    own = 1 + 2 * q.diagonal()
    return 2 / math.pi * torch.asin(2 * q / (own[:, None] * own).sqrt())


# E of products of sums, from the moments of one variable: q of each of three independent layers
CLOSED = {
    "affine gate": (
        lambda m, x: (0.7 + 2 * torch.erf(m.a(x))) * m.b(x),
        lambda q: (0.49 + 4 * erf_dual(q)) * q,
    ),
    "affine gate of another activation": (
        lambda m, x: (1 + torch.erf(m.a(x))) * torch.relu(m.b(x)),
        lambda q: (1 + erf_dual(q)) * relu_dual(q),
    ),
    "two affine factors": (
        lambda m, x: (1 - torch.erf(m.a(x))) * (2 + torch.relu(m.b(x))),
        lambda q: (
            (1 + erf_dual(q))
            * (
                4
                + 2 * (q.diagonal() / (2 * math.pi)).sqrt()[:, None]
                + 2 * (q.diagonal() / (2 * math.pi)).sqrt()
                + relu_dual(q)
            )
        ),
    ),
    "the gated unit inside": (
        lambda m, x: (m.a(x) + torch.relu(m.b(x))) * m.b(x),
        lambda q: q * q + relu_times_itself(q),
    ),
    "mixture of two": (
        lambda m, x: (1 + torch.erf(m.c(x))) * (m.a(x) + torch.erf(m.b(x))),
        lambda q: (1 + erf_dual(q)) * (q + erf_dual(q)),
    ),
}


def relu_times_itself(q):
    """E relu(u) u relu(v) v: the arc-cosine kernel of order 2 (Cho & Saul 2009), J2 / 2 pi."""
    root = (q.diagonal()[:, None] * q.diagonal()).sqrt()
    t = torch.arccos((q / root).clamp(-1, 1))
    order2 = 3 * t.sin() * t.cos() + (math.pi - t) * (1 + 2 * t.cos() ** 2)
    return root**2 * order2 / (2 * math.pi)


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_products_of_affine_functions_have_closed_forms(name):
    forward, expected = CLOSED[name]
    made = InfiniteNetwork(Forward(forward).double(), weight_var=1.5, bias_var=0.1)
    x = inputs(5, 3)
    with torch.no_grad():
        found = made.nngp(x)
        stated = made.quadrature_error(x, replicates=2)[0]
    torch.testing.assert_close(found, 1.5 * expected(preactivations(x)) + 0.1, rtol=1e-7, atol=1e-7)
    assert (stated == 0).all()


def test_a_skip_after_the_activation_by_monte_carlo():
    # relu(h + d), h = relu(u), d Gaussian with the covariance that h has
    made, _ = network("skip after the activation", 4096)
    x = inputs(3, 3)
    q = preactivations(x)
    inner = 1.5 * relu_dual(q) + 0.1
    inner = inner - torch.diag(inner.diagonal()) + torch.diag(0.75 * q.diagonal() + 0.1)
    g = torch.Generator().manual_seed(1)
    u, d = (
        torch.randn(1_000_000, 3, dtype=torch.float64, generator=g) @ torch.linalg.cholesky(c).mT
        for c in (q, inner)
    )
    y = torch.relu(torch.relu(u) + d)
    products = 1.5 * y[:, :, None] * y[:, None, :] + 0.1
    error = products.std(0) / 1000
    with torch.no_grad():
        found, stated = made.nngp(x), made.quadrature_error(x)[0]
    assert ((products.mean(0) - found).abs() < 4 * error + stated).all()
    assert (stated < 1e-2 * found.diagonal().max()).all()


@pytest.mark.fast_for("LSTM", "correlated gate", "skip after the activation")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "GRU" else n for n in sorted(JOINT)]
)
def test_positive_semidefinite_over_all_blocks(name):
    made, d = network(name)
    x = inputs(10, d)
    x = torch.cat([x, x[:2], x[:2] + 1e-9, 2 * x[:2], -x[:2]])
    cut = [slice(0, 7), slice(7, 18)]
    for kernel in (made.nngp, made.ntk):
        with torch.no_grad():
            whole = kernel(x)
            rows = [torch.cat([kernel(x[r], x[c]) for c in cut], 1) for r in cut]
        scale = whole.diagonal().max()
        assert torch.linalg.eigvalsh(whole).min() > -1e-10 * scale
        torch.testing.assert_close(whole, whole.mT, rtol=1e-12, atol=1e-12)
        # the NTK of kinks has a cusp at coinciding points
        slack = 1e-11 if kernel == made.nngp else 1e-6
        torch.testing.assert_close(torch.cat(rows), whole, rtol=slack, atol=slack * float(scale))


@pytest.mark.fast_for("GRU", "correlated gate", "heads", "skip after the activation")
@pytest.mark.parametrize("name", sorted(ALL))
def test_symmetric_and_continuous_at_coinciding_points(name):
    made, d = network(name)
    x = inputs(4, d)
    for kernel in (made.nngp, made.ntk):
        with torch.no_grad():
            own = kernel(x)
            near = kernel(x, x + 1e-9)
            one, other = kernel(x[:2], x[2:]), kernel(x[2:], x[:2])
        torch.testing.assert_close(near.diagonal(), own.diagonal(), rtol=1e-6, atol=0)
        torch.testing.assert_close(one, other.mT, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one, own[:2, 2:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["skip after the activation", "GRU"])
def test_posterior_variances_at_training_points_are_positive(name):
    made, d = network(name)
    x = inputs(20, d)
    x = torch.cat([x, x[:5] + 1e-7])
    with torch.no_grad():
        train, cross, own = made.nngp(x), made.nngp(x.clone(), x), made.nngp(x, diag=True)
    noise = 1e-6 * own.mean()
    solved = torch.linalg.solve(train + noise * torch.eye(len(x)), cross.mT)
    variance = own - (cross * solved.mT).sum(-1)
    assert (variance > 0).all()


def test_more_points_are_closer():
    made, d = network("gate", 2**14)
    x = inputs(3, d)
    with torch.no_grad():
        truth = made.nngp(x)
        errors = []
        for size in (2**7, 2**11):
            made.quadrature = QuasiMonteCarlo(size, seed=5)
            errors.append((made.nngp(x) - truth).abs().max())
    assert errors[1] < errors[0] / 2


def test_replicates_are_at_least_two():
    made, d = network("gate")
    with pytest.raises(ValueError, match="replicates must be at least 2, got 1"):
        made.quadrature_error(inputs(2, d), replicates=1)
