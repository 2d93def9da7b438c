"""Expectations over grids of variances and correlations against closed forms."""

import math

import pytest
import torch

from priors.gaussian.quadrature.grids import Marginal, on_a_grid

double = torch.float64
RHO = torch.tensor([-1, -1 + 1e-9, -0.999, -0.3, 0.0, 0.5, 0.98, 0.99999, 1], dtype=double)


def unscaled(f, q):
    return Marginal(f, q, torch.ones_like(q))


@pytest.mark.parametrize("largest", [0.5, 60.0, 2000.0])
def test_erf(largest):
    q1 = torch.tensor([1e-3, 0.2, 1.0], dtype=double) * largest
    q2 = torch.tensor([0.01, 1.0], dtype=double) * largest
    found = on_a_grid(unscaled(torch.erf, q1), unscaled(torch.erf, q2), RHO)
    c = RHO[:, None, None] * (q1[:, None] * q2).sqrt()
    # Williams 1997, eq. 11
    expected = (2 * c / ((1 + 2 * q1[:, None]) * (1 + 2 * q2)).sqrt()).asin() * 2 / math.pi
    torch.testing.assert_close(found, expected, atol=2e-12, rtol=0)


def test_squares_and_their_slopes():
    q = torch.tensor([0.3, 2.0], dtype=double)
    square, twice = unscaled(torch.square, q), unscaled(lambda x: 2 * x, q)
    c = RHO[:, None, None] * (q[:, None] * q).sqrt()
    expected = q[:, None] * q + 2 * c**2  # Isserlis
    torch.testing.assert_close(on_a_grid(square, square, RHO), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(on_a_grid(twice, twice, RHO), 4 * c, atol=1e-10, rtol=0)


def test_two_functions_and_scales():
    q1, q2 = torch.tensor([0.1, 4.0], dtype=double), torch.tensor([1.0, 9.0, 0.5], dtype=double)
    inverse = torch.tensor([2.0, 0.1, 5.0], dtype=double)
    found = on_a_grid(unscaled(torch.sin, q1), Marginal(torch.sin, q2, inverse), RHO)
    c = RHO[:, None, None] * (q1[:, None] * q2).sqrt()
    expected = torch.exp(-(q1[:, None] + q2) / 2) * torch.sinh(c) * inverse
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
