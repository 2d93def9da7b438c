"""The bar distribution against numerical integration; its parts against each other."""

import pytest
import torch

from pfn import BarDistribution

BORDERS = torch.tensor([-2.0, -1.2, -0.9, -0.1, 0.0, 0.4, 1.1, 2.5], dtype=torch.float64)


@pytest.fixture
def bars():
    return BarDistribution(BORDERS, tail_scale=0.7)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 9, generator=generator, dtype=torch.float64)


def integral(bars, logits, f):
    """E[f(y)], each bar and each tail by Gauss-Legendre where the density is smooth."""
    import numpy

    nodes, weights = (torch.tensor(v) for v in numpy.polynomial.legendre.leggauss(200))
    nodes, weights = (nodes + 1) / 2, weights / 2
    total = 0.0
    for low, high in zip(BORDERS[:-1], BORDERS[1:], strict=True):
        y = low + (high - low) * nodes
        p = bars.log_prob(logits.expand(200, -1), y).exp()
        total = total + (p * f(y) * weights).sum() * (high - low)
    for end, sign in ((BORDERS[0], -1.0), (BORDERS[-1], 1.0)):
        # distance t = s (v^-4 - 1), v in (0, 1): every moment becomes a polynomial in v
        t = bars.tail_scale * (nodes**-4 - 1)
        y = end + sign * t
        p = bars.log_prob(logits.expand(200, -1), y).exp()
        total = total + (p * f(y) * weights * 4 * bars.tail_scale * nodes**-5).sum()
    return total


def test_moments_and_mass(bars, logits):
    mean, variance = bars.mean(logits), bars.variance(logits)
    for i in range(3):
        assert integral(bars, logits[i], torch.ones_like).item() == pytest.approx(1, abs=1e-7)
        assert integral(bars, logits[i], lambda y: y).item() == pytest.approx(
            mean[i].item(), abs=1e-7
        )
        spread = integral(bars, logits[i], lambda y, i=i: (y - mean[i]) ** 2).item()
        assert spread == pytest.approx(variance[i].item(), rel=1e-5)


@pytest.mark.parametrize("y", [-30.0, -3.0, -2.0, -1.0, 0.0, 0.2, 2.0, 4.0, 50.0])
def test_cdf(bars, logits, y):
    point = torch.tensor(y, dtype=torch.float64)
    for row in logits:
        found = bars.cdf(row, point).item()
        # the mass of whole bars below plus the integral of the density over the rest
        low = float(BORDERS[BORDERS <= y][-1]) if y >= -2 else None
        if low is None or y > 2.5:
            survival = (1 + (abs(y + 2) if low is None else y - 2.5) / 0.7) ** -5
            mass = row.softmax(-1)
            expected = mass[0] * survival if low is None else 1 - mass[-1] * survival
        else:
            whole = row.softmax(-1)[: int((BORDERS <= y).sum())].sum()
            middle = torch.tensor((low + y) / 2 if y > low else low + 1e-9, dtype=torch.float64)
            expected = whole + (y - low) * bars.log_prob(row, middle).exp()
        assert found == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile_inverts_cdf_also_in_the_tails(logits, dtype):
    bars = BarDistribution(BORDERS.to(dtype), tail_scale=0.7)
    p = torch.tensor([1e-5, 1e-3, 0.01, 0.2, 0.5, 0.77, 0.99, 0.999, 1 - 1e-5], dtype=dtype)
    y = bars.quantile(logits.to(dtype)[:, None], p.expand(3, 9))
    assert (y.diff(dim=-1) > 0).all()
    found = bars.cdf(logits.to(dtype)[:, None].expand(3, 9, 9), y)
    torch.testing.assert_close(found, p.expand(3, 9), atol=8 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("best", [-40.0, -2.5, -1.0, 0.0, 0.35, 2.5, 6.0, 80.0])
@pytest.mark.parametrize("maximize", [True, False])
def test_expected_improvement(bars, logits, best, maximize):
    # split at `best`, where the integrand has a kink: E[(y - b)+] = E[(y - b) 1{y > b}]
    found = bars.log_expected_improvement(
        logits, torch.full((3,), best, dtype=torch.float64), maximize
    ).exp()
    sign = 1.0 if maximize else -1.0
    for i in range(3):
        inner = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1]
        p = bars.quantile(logits[i], inner)
        numeric = (sign * (p - best)).clamp_min(0).mean().item()
        assert found[i].item() == pytest.approx(numeric, rel=5e-3, abs=2e-4)
    # exact identity: E[(y - b)+] - E[(b - y)+] = E[y] - b
    other = bars.log_expected_improvement(
        logits, torch.full((3,), best, dtype=torch.float64), not maximize
    ).exp()
    torch.testing.assert_close(sign * (found - other), bars.mean(logits) - best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [True, False])
def test_log_expected_improvement_is_finite_far_beyond_all_bars(logits, dtype, maximize):
    bars = BarDistribution(BORDERS.to(dtype), tail_scale=0.7)
    far = torch.full((3,), 1e4 if maximize else -1e4, dtype=dtype)
    value = bars.log_expected_improvement(logits.to(dtype), far, maximize)
    assert value.isfinite().all()
    mass = logits.log_softmax(-1)[:, -1 if maximize else 0]
    distance = 1e4 - 2.5 if maximize else 1e4 - 2.0
    exact = mass + torch.tensor(0.7 / 4).log() - 4 * torch.tensor(1 + distance / 0.7).log()
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)


def test_gradients(bars, logits):
    logits.requires_grad_()
    y = torch.tensor([-3.0, 0.13, 4.2], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.003, 0.4, 0.998], dtype=torch.float64)
    torch.autograd.gradcheck(bars.log_prob, (logits, y))
    torch.autograd.gradcheck(bars.cdf, (logits, y))
    torch.autograd.gradcheck(lambda v: bars.quantile(v, p), logits)
    torch.autograd.gradcheck(lambda v: (bars.mean(v), bars.variance(v)), logits)
    for maximize in (True, False):
        torch.autograd.gradcheck(
            lambda v, b, m=maximize: bars.log_expected_improvement(v, b, m), (logits, y)
        )


def test_bad_arguments():
    with pytest.raises(ValueError, match="strictly increasing"):
        BarDistribution(torch.tensor([0.0, 0.0, 1.0]), tail_scale=1.0)
    with pytest.raises(ValueError, match="index > 2"):
        BarDistribution(torch.tensor([0.0, 1.0]), tail_scale=1.0, tail_index=2.0)
