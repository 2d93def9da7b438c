"""Quasi-Monte Carlo expectations against closed forms, within their spread over seeds."""

import pytest
import torch

from priors.gaussian.activations import GELU, ABReLU, Sine
from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, cholesky


def covariance(k, batch=3, rank=None):
    generator = torch.Generator().manual_seed(k)
    factor = torch.randn(batch, k, rank or k, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / k


def replicates(f, matrix, num_samples=1024, seeds=16):
    values = torch.stack(
        [
            QuasiMonteCarlo(num_samples, seed).gaussian_expectation_multivariate(f, matrix)
            for seed in range(seeds)
        ]
    )
    return values.mean(0), values.std(0) / seeds**0.5


@pytest.mark.parametrize("phi", [ABReLU(), GELU(), Sine(0.3)])
def test_products_of_two(phi):
    matrix = covariance(2)
    mean, error = replicates(lambda u: phi(u[0]) * phi(u[1]), matrix)
    exact = phi.dual(phi, matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 1])
    assert ((mean - exact).abs() < 5 * error).all()
    # plain Monte Carlo with as many points would have an error of about 0.01
    assert (error < 5e-4).all()


def test_a_product_of_four_by_isserlis():
    m = covariance(4)
    mean, error = replicates(lambda u: u[0] * u[1] * u[2] * u[3], m)
    exact = (
        m[:, 0, 1] * m[:, 2, 3] + m[:, 0, 2] * m[:, 1, 3] + m[:, 0, 3] * m[:, 1, 2]
    )  # fmt: skip
    assert ((mean - exact).abs() < 5 * error).all()
    assert (error < 0.05 * exact.abs().max()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_covariances(dtype):
    low_rank = covariance(5, rank=2).to(dtype)
    zero = torch.zeros(1, 5, 5, dtype=dtype)
    ones = torch.ones(1, 5, 5, dtype=dtype)
    matrix = torch.cat([low_rank, zero, ones]).requires_grad_()
    rule = QuasiMonteCarlo(2048)
    value = rule.gaussian_expectation_multivariate(lambda u: u[3] * u[4], matrix)
    assert value.dtype == dtype
    torch.testing.assert_close(value, matrix[:, 3, 4], atol=0.02, rtol=0.02)
    (grad,) = torch.autograd.grad(value.sum(), matrix)
    assert grad.isfinite().all()


def test_gradient_is_that_of_the_closed_form():
    matrix = covariance(2)
    phi = GELU()

    def slope(seed):
        x = matrix.clone().requires_grad_()
        rule = QuasiMonteCarlo(4096, seed)
        value = rule.gaussian_expectation_multivariate(lambda u: phi(u[0]) * phi(u[1]), x)
        return torch.autograd.grad(value.sum(), x)[0][:, 1, 0]  # the lower half is read

    slopes = torch.stack([slope(seed) for seed in range(8)])
    exact = phi.dual_derivative(phi, matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 1])
    assert ((slopes.mean(0) - exact).abs() < 6 * slopes.std(0) / 8**0.5).all()


def test_a_root_has_gradients_of_both_orders():
    a = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = (a @ a.mT + torch.eye(3, dtype=torch.float64)).requires_grad_()

    def root(m):
        return cholesky((m + m.mT) / 2)

    torch.testing.assert_close(root(matrix) @ root(matrix).mT, matrix)
    torch.autograd.gradcheck(root, matrix)
    torch.autograd.gradgradcheck(root, matrix)


def test_the_root_of_a_singular_matrix_has_the_gradient_of_what_determines_it():
    """The third variable is the sum of the others: its column is noise and counts for nothing."""
    a = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    mix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    weights = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(matrix):
        return (cholesky(mix @ matrix @ mix.mT)[:, :2] * weights).sum()

    def known(matrix):  # of full rank
        return ((mix @ torch.linalg.cholesky(matrix)) * weights).sum()

    (found,) = torch.autograd.grad(value(a), a)
    (expected,) = torch.autograd.grad(known(a), a)
    symmetric = [g + g.mT for g in (found, expected)]
    torch.testing.assert_close(*symmetric, atol=1e-6, rtol=1e-6)


def test_chunks_batches_and_seeds(monkeypatch):
    matrix = covariance(3, batch=6)

    def f(u):
        return torch.relu(u[0] + u[1]) * u[2] ** 2

    whole = QuasiMonteCarlo(256).gaussian_expectation_multivariate(f, matrix)
    monkeypatch.setattr("priors.gaussian.quasi_monte_carlo._CHUNK", 6 * 3 * 100)
    again = QuasiMonteCarlo(256).gaussian_expectation_multivariate(f, matrix.view(2, 3, 3, 3))
    torch.testing.assert_close(whole.view(2, 3), again)
    other = QuasiMonteCarlo(256, seed=1).gaussian_expectation_multivariate(f, matrix)
    assert not torch.equal(whole, other)


def test_errors():
    with pytest.raises(ValueError, match="power of two, got 1000"):
        QuasiMonteCarlo(1000)
    with pytest.raises(ValueError, match=r"must be \[..., k, k\], got \(2, 3\)"):
        QuasiMonteCarlo().gaussian_expectation_multivariate(sum, torch.zeros(2, 3))
