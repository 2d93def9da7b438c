"""Names borrowed from other libraries: each exists and does what we rely on."""

import math

import pytest
import torch
from botorch.posteriors import Posterior
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch.distributions.transforms import AffineTransform, ExpTransform

from priors.posteriors.compat import (
    InverseTransform,
    copied,
    is_stored_by_output,
    log_ndtr_integral,
)
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_log_ei_helper(dtype, rtol):
    u = torch.tensor([-8.0, -1.5, 0.0, 0.7, 9.0], dtype=dtype, requires_grad=True)
    # With 30 digits, by mpmath.
    exact = [
        -37.122364261692632999,
        -3.5299359208057098515,
        -0.91893853320467274178,
        -0.17093141922474072101,
        2.1972245773362193828,
    ]
    exact = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(log_ndtr_integral(u).double(), exact, rtol=rtol, atol=rtol)
    far = torch.tensor([-30.0, -1e3], dtype=dtype, requires_grad=True)
    # φ(u) / u^2 (1 - 3 / u^2), asymptotically, and its slope -u - 2 / u.
    expected = -(far**2) / 2 - math.log(2 * math.pi) / 2 - 2 * (-far).log() - 3 / far**2
    value = log_ndtr_integral(far)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), far)
    torch.testing.assert_close(slope, (-far - 2 / far).detach(), rtol=max(1e-5, 10 * rtol), atol=0)


def test_interleaved():
    parts = [MultivariateNormal(torch.zeros(3), (k + 1.0) * torch.eye(3)) for k in range(2)]
    by_output = MultitaskMultivariateNormal.from_independent_mvns(parts)
    assert is_stored_by_output(by_output)
    variances = by_output.covariance_matrix.diagonal()
    torch.testing.assert_close(variances, torch.tensor([1.0, 1, 1, 2, 2, 2]))
    assert not is_stored_by_output(MultitaskMultivariateNormal(torch.zeros(3, 2), torch.eye(6)))
    assert not is_stored_by_output(parts[0])


def test_inverse_transform():
    transform = AffineTransform(1.0, 2.0)
    assert isinstance(transform.inv, InverseTransform)
    assert not isinstance(transform, InverseTransform)
    assert transform.inv.inv is transform


def test_cached_inverse():
    transform = AffineTransform(1.0, 2.0)
    inverse = transform.inv  # kept by the transform
    new = copied(transform)
    new.loc = 5.0
    assert new.inv(torch.tensor(7.0)) == 1.0
    assert transform.inv is inverse
    assert inverse(torch.tensor(7.0)) == 3.0
    assert copied(ExpTransform()).inv(torch.ones(1)) == 0.0


def test_extended_shape():
    """What BoTorch asks a posterior for is what its samplers give."""
    with pytest.raises(NotImplementedError):
        Posterior._extended_shape(object())
    posterior = GaussianMixturePosterior(torch.zeros(4, 2, 3, 1), torch.ones(1))
    shape = posterior._extended_shape(torch.Size([5]))
    assert SobolQMCNormalSampler(torch.Size([5]))(posterior).shape == shape == (5, 2, 3, 1)
