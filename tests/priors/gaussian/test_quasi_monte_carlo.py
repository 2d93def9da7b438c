"""Nets of quasi-Monte Carlo points, their variants and the errors these state."""

import pytest
import torch

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, cholesky, jackknife


def test_points_are_several_nets_of_standard_normals():
    rule = QuasiMonteCarlo(4096)
    points = rule.normals(5, torch.empty(0))
    assert points.shape == (4096, 5)
    assert points.dtype == torch.float64
    torch.testing.assert_close(points.mean(0), torch.zeros(5).double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(points.mT @ points / 4096, torch.eye(5).double(), atol=2e-2, rtol=0)
    nets = points.view(8, 512, 5)
    assert not torch.equal(nets[0], nets[1])
    assert len(rule.normals(5, torch.empty(0), multiple=4)) == 4 * 4096
    assert not torch.equal(points, QuasiMonteCarlo(4096, seed=1).normals(5, torch.empty(0)))


def test_signs_make_several_sets_of_points():
    rule = QuasiMonteCarlo(4096)
    signs = rule.signs(200, 3, torch.empty(0))
    assert signs.shape == (200, 3)
    assert (signs.abs() == 1).all()
    assert torch.equal(signs, QuasiMonteCarlo(64).signs(200, 3, torch.empty(0)))
    assert not torch.equal(signs, QuasiMonteCarlo(64, seed=1).signs(200, 3, torch.empty(0)))
    # of no bias, and independent: four standard errors
    assert signs.mean(0).abs().max() < 4 / 200**0.5
    assert (signs[:, 0] * signs[:, 1]).mean().abs() < 4 / 200**0.5
    # a net keeps one point where there are fewer than eight to share
    assert len(QuasiMonteCarlo(64).normals(2, torch.empty(0), multiple=1 / 16)) == 8


def test_variants_leave_out_each_net_once():
    rule = QuasiMonteCarlo(256, seed=3)
    left_out, lower = rule.variants(4)
    assert [len(part.normals(2, torch.empty(0))) for part in left_out] == [192] * 4
    assert sorted(n for part in left_out for n in set(rule.nets) - set(part.nets)) == [*rule.nets]
    assert lower.nets == rule.nets
    assert lower.coarsening == 1


def test_the_jackknife_of_a_mean_is_students_interval():
    from scipy import stats

    values = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without = [(values.sum() - v) / 7 for v in values]
    expected = stats.t.ppf(0.995, 7) * values.std() / 8**0.5
    assert float(jackknife(without)) == pytest.approx(float(expected), rel=1e-12)


def test_roots_of_singular_covariances():
    factor = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    matrix = torch.cat([factor @ factor.mT, torch.zeros(1, 5, 5), torch.ones(1, 5, 5)])
    root = cholesky(matrix.requires_grad_())
    torch.testing.assert_close(root @ root.mT, matrix, atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(root.sum(), matrix)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="not positive semi-definite"):
        cholesky(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))


def test_errors():
    with pytest.raises(ValueError, match="power of two, got 1000"):
        QuasiMonteCarlo(1000)
    with pytest.raises(ValueError, match="exceeds the 21201 dimensions"):
        QuasiMonteCarlo().normals(30000, torch.empty(0))


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
