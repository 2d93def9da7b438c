"""Expansions of functions of several Gaussian variables against closed forms and quadrature."""

import math

import numpy as np
import pytest
import torch

from priors.gaussian.activations import GELU, ABReLU, Erf, Sine
from priors.gaussian.hermite import Whitening, expand, inner_product
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, jackknife


def generator(seed):
    return torch.Generator().manual_seed(seed)


def process(n, k, seed, independent=False, dim=4):
    """Covariances [k, k, n, n] of k variables at n points, positive definite over all."""
    g = generator(seed)
    x = torch.randn(n, dim, dtype=torch.float64, generator=g)
    near = (-(torch.cdist(x, x) ** 2) / dim).exp()
    if independent:
        scale = 0.5 + torch.rand(k, dtype=torch.float64, generator=g)
        powers = torch.stack([s * near**p for s, p in zip(scale, range(1, k + 1), strict=True)])
        return torch.diag_embed(powers.movedim(0, -1)).movedim((-2, -1), (0, 1)), True
    mix = torch.randn(k, 3, dtype=torch.float64, generator=g) / math.sqrt(2)
    powers = torch.stack([near, near**2, near**3])
    return torch.einsum("ip,jp,pab->ijab", mix, mix, powers), False


def parts(covariance, independent):
    k = len(covariance)
    return [
        [None if independent and i != j else covariance[i, j] for j in range(k)] for i in range(k)
    ]


def kernel(f, g, covariance, independent, rule, rows=slice(None), columns=slice(None)):
    """E[f(u) g(v)] of all pairs."""
    cov = parts(covariance, independent)
    single = [[None if c is None else c.diagonal() for c in row] for row in cov]

    def at(points):
        return Whitening.of([[None if c is None else c[points] for c in row] for row in single])

    left, right = expand(f, at(rows), rule), expand(g, at(columns), rule)
    cross = [[None if c is None else c[rows, columns] for c in row] for row in cov]
    return inner_product(left, right, cross, lambda v: v[..., None], lambda v: v[..., None, :])


def kernel_and_error(f, g, covariance, independent, rule):
    value = kernel(f, g, covariance, independent, rule)
    left_out, lower = rule.variants(8)
    values = [kernel(f, g, covariance, independent, part) for part in left_out]
    coarse = kernel(f, g, covariance, independent, lower)
    return value, jackknife(values) + (value - coarse).abs()


@pytest.mark.parametrize("independent", [False, True])
def test_polynomials_are_exact(independent):
    c, _ = process(5, 3, 0, independent)

    def f(u):
        return u[0] * u[1] + 2 * u[2] - 1

    found = kernel(f, f, c, independent, QuasiMonteCarlo(256))
    own = c.diagonal(dim1=-2, dim2=-1)
    mean = own[0, 1] - 1
    # Isserlis
    expected = c[0, 0] * c[1, 1] + c[0, 1] * c[1, 0] + 4 * c[2, 2] + mean[:, None] * mean
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_smooth_function_by_dense_product_quadrature():
    def f(u):
        return torch.tanh(u[0] + torch.sigmoid(u[1]) * u[1]) * torch.exp(-(u[0] ** 2) / 4)

    c, _ = process(2, 2, 1)
    z, w = np.polynomial.hermite_e.hermegauss(36)
    grid = torch.tensor(np.stack(np.meshgrid(z, z, z, z, indexing="ij"), -1).reshape(-1, 4))
    weight = torch.tensor(np.prod(np.stack(np.meshgrid(w, w, w, w, indexing="ij"), -1), -1).ravel())
    weight = weight / weight.sum()
    joint = torch.cat([torch.cat([c[:, :, i, j] for j in (0, 1)], 1) for i in (0, 1)])
    u = grid @ torch.linalg.cholesky(joint).mT
    exact = (weight * f((u[:, 0], u[:, 1])) * f((u[:, 2], u[:, 3]))).sum()
    found, error = kernel_and_error(f, f, c, False, QuasiMonteCarlo())
    assert abs(found[0, 1] - exact) < error[0, 1]
    assert error[0, 1] < 5e-3 * found[0, 0]


RIDGES = [ABReLU(), ABReLU(-0.3, 1.0), GELU(), Erf(), Sine(0.4)]


@pytest.mark.slow
def test_the_stated_error_holds():
    # phi(a . u) of k variables, whose exact value is the dual of one variable
    ratios = []
    for case in range(200):
        g = generator(1000 + case)
        k = int(torch.randint(2, 6, (), generator=g))
        independent = case % 2 == 0
        c, _ = process(3, k, case, independent)
        phi, psi = (RIDGES[int(i)] for i in torch.randint(0, len(RIDGES), (2,), generator=g))
        a, b = torch.randn(2, k, dtype=torch.float64, generator=g) / math.sqrt(k)

        def one(u, phi=phi, a=a):
            return phi(sum(x * y for x, y in zip(a, u, strict=True)))

        def two(u, psi=psi, b=b):
            return psi(sum(x * y for x, y in zip(b, u, strict=True)))

        rule = QuasiMonteCarlo(512, seed=case)
        found, error = kernel_and_error(one, two, c, independent, rule)
        own = c.diagonal(dim1=-2, dim2=-1)
        q1 = torch.einsum("i,j,ijn->n", a, a, own)
        q2 = torch.einsum("i,j,ijn->n", b, b, own)
        cross = torch.einsum("i,j,ijab->ab", a, b, c)
        exact = phi.dual(psi, q1[:, None], q2[None, :], cross)
        ratios.append(((found - exact).abs() / error)[0, 1])
    ratios = torch.stack(ratios)
    assert ratios.median() < 1
    assert (ratios > 1).sum() <= 3
    assert ratios.max() < 3


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(
    "f",
    [
        lambda u: torch.relu(u[0] + torch.relu(u[1] + torch.relu(u[2]))),
        lambda u: torch.tanh(u[0] + torch.sigmoid(u[1]) * u[2]),
        lambda u: (u[0] > u[1]).to(u[0]) * torch.sign(u[2] + 0.1),
    ],
)
def test_symmetric_positive_semidefinite_and_continuous(f, independent):
    c, _ = process(24, 3, 3, independent, dim=2)
    rule = QuasiMonteCarlo(256)
    whole = kernel(f, f, c, independent, rule)
    assert torch.linalg.eigvalsh(whole).min() > -1e-13 * whole.diagonal().sum()
    torch.testing.assert_close(whole, whole.mT, rtol=1e-12, atol=1e-13)
    blocks = [slice(0, 7), slice(7, 24)]
    for rows in blocks:
        for columns in blocks:
            block = kernel(f, f, c, independent, rule, rows, columns)
            torch.testing.assert_close(block, whole[rows, columns], rtol=1e-10, atol=1e-12)
    # the diagonal is E f^2 as it is beside it: a copy of every point
    doubled = c.repeat_interleave(2, -1).repeat_interleave(2, -2)
    pairs = kernel(f, f, doubled, independent, rule)
    torch.testing.assert_close(pairs[::2, 1::2].diagonal(), whole.diagonal(), rtol=1e-9, atol=1e-12)


def test_slopes_are_those_of_steins_lemma():
    # E[f u_j] = sum_i Cov(u_j, u_i) E[d_i f]; for a step, d f is a delta
    c = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64)
    whitening = Whitening.of([[c[i, j].reshape(1) for j in (0, 1)] for i in (0, 1)])
    step = expand(lambda u: (u[0] + u[1] > 0).to(u[0]), whitening, QuasiMonteCarlo())
    density = 1 / math.sqrt(2 * math.pi * float(c.sum()))
    for slope in step.slopes:
        assert float(slope) == pytest.approx(density, rel=5e-3)
    product = expand(lambda u: u[0] * u[1] ** 2, whitening, QuasiMonteCarlo(256))
    slopes = [float(s) for s in product.slopes]
    assert slopes == pytest.approx([0.7, 2 * 0.4], rel=1e-9)


def test_variables_without_variance_and_determined_ones_have_finite_gradients():
    base = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    c = base[..., None, None].expand(3, 3, 2, 2).clone().requires_grad_()

    def f(u):
        return torch.relu(u[0] + u[1]) + u[2]

    value = kernel(f, f, c, False, QuasiMonteCarlo())
    torch.testing.assert_close(value, torch.full_like(value, 2.0), rtol=5e-3, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), c)
    assert gradient.isfinite().all()


def test_gradient_is_that_of_the_value():
    c, independent = process(3, 2, 5)

    def value(c):
        return kernel(
            lambda u: torch.tanh(u[0]) * torch.sigmoid(u[1] - u[0]),
            lambda u: torch.relu(u[0] + torch.tanh(u[1])),
            c,
            independent,
            QuasiMonteCarlo(64),
        )

    weight = torch.randn(3, 3, dtype=torch.float64, generator=generator(0))
    direction = torch.randn(c.shape, dtype=torch.float64, generator=generator(1))
    direction = direction + direction.permute(1, 0, 3, 2)
    x = c.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((value(x) * weight).sum(), x)
    step = 1e-6
    up, down = (((value(c + s * direction)) * weight).sum() for s in (step, -step))
    torch.testing.assert_close(
        (gradient * direction).sum(), (up - down) / (2 * step), rtol=1e-5, atol=1e-8
    )


def test_many_steps_equal_one(monkeypatch):
    c, independent = process(4, 3, 6)
    apart, _ = process(4, 3, 6, True)

    def f(u):
        return torch.relu(u[0] + u[1]) * torch.tanh(u[2])

    rule = QuasiMonteCarlo(128)
    whole = kernel(f, f, c, False, rule), kernel(f, f, apart, True, rule)
    monkeypatch.setattr("priors.gaussian.hermite._CHUNK", 100)
    torch.testing.assert_close(kernel(f, f, c, False, rule), whole[0])
    x = apart.clone().requires_grad_()
    again = kernel(f, f, x, True, rule)
    torch.testing.assert_close(again.detach(), whole[1])
    assert torch.autograd.grad(again.sum(), x)[0].isfinite().all()
