"""Quadratic form and log determinant against dense algebra, in value and gradient."""

import pytest
import torch

from bayes.processes.quadratic_form import quadratic_and_log_det, quadratic_log_det_and_inverse


def covariance_and_targets(*batch, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(*batch, n, n, generator=generator, dtype=torch.float64)
    targets = torch.randn(*batch, n, generator=generator, dtype=torch.float64)
    return (root @ root.mT + torch.eye(n)).to(dtype), targets.to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_values_against_a_dense_inverse(batch):
    C, y = covariance_and_targets(*batch)
    quadratic, log_det = quadratic_and_log_det(C, y)
    expected = torch.einsum("...i,...ij,...j->...", y, torch.linalg.inv(C), y)
    torch.testing.assert_close(quadratic, expected)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(C).logabsdet)
    *same, inverse = quadratic_log_det_and_inverse(C, y)
    torch.testing.assert_close(same, [quadratic, log_det])
    torch.testing.assert_close(inverse, torch.linalg.inv(C))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_gradients_against_differences(batch):
    C, y = covariance_and_targets(*batch, n=3)

    def of_symmetric(C, y):  # a difference of one entry is no covariance
        return quadratic_and_log_det((C + C.mT) / 2, y)

    def with_inverse(C, y):
        quadratic, log_det, inverse = quadratic_log_det_and_inverse((C + C.mT) / 2, y)
        return quadratic, log_det, inverse.square()

    C, y = C.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(of_symmetric, (C, y))
    assert torch.autograd.gradcheck(with_inverse, (C, y))


def test_one_covariance_of_several_targets_gathers_their_gradients():
    C, _ = covariance_and_targets()
    _, Y = covariance_and_targets(4)
    C.requires_grad_()
    together = sum(part.sum() for part in quadratic_and_log_det(C, Y))
    each = sum(sum(quadratic_and_log_det(C, y)) for y in Y)
    torch.testing.assert_close(torch.autograd.grad(together, C)[0], torch.autograd.grad(each, C)[0])


def test_a_second_derivative_is_refused():
    C, y = covariance_and_targets()
    C.requires_grad_()
    (first,) = torch.autograd.grad(quadratic_and_log_det(C, y)[0], C, create_graph=True)
    with pytest.raises(RuntimeError, match="require grad"):
        torch.autograd.grad(first.sum(), C)


def test_float32_follows_float64():
    C, y = covariance_and_targets()
    for low, high in zip(
        quadratic_and_log_det(C.float(), y.float()), quadratic_and_log_det(C, y), strict=True
    ):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=1e-5)
