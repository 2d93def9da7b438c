import pytest
import torch
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from gpytorch.distributions import MultivariateNormal
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    PowerTransform,
    StickBreakingTransform,
)

from bayes.processes.student_t import StudentTPosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.posteriors.transforms import (
    DEFAULT,
    TailCompression,
    make_input_transform,
    make_outcome_transform,
    of_outputs,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_standardises_training_rows_column_by_column(dtype):
    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    X = X * torch.tensor([1.0, 100.0, 1e-3], dtype=dtype) + 7
    transform = make_input_transform(DEFAULT, X)
    Z = transform(X)
    assert Z.dtype == dtype
    # Rounding of the mean relative to the column's deviation is what remains.
    tolerance = 50 * torch.finfo(dtype).eps * 7 / 1e-3
    assert torch.allclose(Z.mean(0), torch.zeros(3, dtype=dtype), atol=tolerance)
    assert torch.allclose(Z.std(0), torch.ones(3, dtype=dtype), rtol=tolerance)
    # Other rows use the training rows' statistics, in train mode too.
    transform.train()
    assert torch.allclose(transform(X[:5]), Z[:5])


def test_columns_are_standardised_together_where_asked():
    X = torch.randn(2, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = X * torch.tensor([1.0, 9.0, 1e-3, 0.0]).double() + torch.tensor([3.0, 0.0, 1.0, 2.0])
    Z = make_input_transform(DEFAULT, X, [[3, 1]])(X)
    alone = make_input_transform(DEFAULT, X)(X)
    assert torch.equal(Z[..., [0, 2]], alone[..., [0, 2]])
    both = X[..., [1, 3]].flatten(1)
    expected = (X[..., [1, 3]] - both.mean(1)[:, None, None]) / both.std(1)[:, None, None]
    assert torch.allclose(Z[..., [1, 3]], expected)


def test_outcome_transform_is_the_inverse_of_standardisation():
    Y = 5 + 3 * torch.randn(2, 30, 2, dtype=torch.float64)
    transform = make_outcome_transform(DEFAULT, Y)
    Z = transform.inv(Y)
    assert torch.allclose(Z.mean(-2), torch.zeros(2, 2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(Z.std(-2), torch.ones(2, 2, dtype=torch.float64))
    assert torch.allclose(transform(Z), Y)


def test_given_transforms_are_used_as_they_are():
    X, Y = torch.rand(5, 2), torch.rand(5, 1) + 1
    normalise, exponential = Normalize(2), ExpTransform()
    assert make_input_transform(normalise, X) is normalise
    assert make_outcome_transform(exponential, Y) is exponential
    assert make_input_transform(None, X) is None
    assert make_outcome_transform(None, Y) is None


def test_wrong_transforms_are_refused():
    X, Y = torch.rand(5, 2), torch.linspace(-0.5, 0.5, 5)[:, None]
    with pytest.raises(TypeError, match="InputTransform"):
        make_input_transform(AffineTransform(0, 1), X)
    with pytest.raises(TypeError, match=r"torch\.distributions"):
        make_outcome_transform(Standardize(1), Y)
    with pytest.raises(ValueError, match="elementwise"):
        make_outcome_transform(StickBreakingTransform(), Y)
    with pytest.raises(ValueError, match="outside the range"):
        make_outcome_transform(ExpTransform(), Y)


def outcomes(n=30, m=2):
    """Values with a long tail of bad ones, for maximising."""
    generator = torch.Generator().manual_seed(1)
    return -torch.exp(3 * torch.randn(n, m, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("maximize", [True, False])
def test_tail_compression_is_a_smooth_bijection_which_leaves_good_values_alone(maximize):
    side = 1.0 if maximize else -1.0
    Y = side * outcomes()
    transform = TailCompression(Y, quantile=0.75, maximize=maximize)
    Z = transform.inv(Y)
    torch.testing.assert_close(transform(Z), Y, rtol=1e-9, atol=1e-9)
    assert torch.allclose(Z.mean(-2), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(Z.std(-2), torch.ones(2, dtype=torch.float64))
    assert torch.equal(Z.argsort(-2), Y.argsort(-2))
    # The documented formula, and an affine map of the best quarter.
    good = side * Y
    anchor, best = good.quantile(0.75, dim=-2), good.amax(-2)
    w = torch.where(
        good >= anchor,
        good,
        anchor - (best - anchor) * torch.log1p((anchor - good) / (best - anchor)),
    )
    torch.testing.assert_close(Z, side * (w - w.mean(-2)) / w.std(-2))
    # The derivative against automatic differentiation, across the anchor and the worst row.
    z = torch.linspace(-6, 6, 81, dtype=torch.float64)[:, None].repeat(1, 2).requires_grad_()
    y = transform(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, y), slope.log())
    # On both sides of the worst row the slope is the same, and behind it remains so.
    worst = side * (side * Z).amin(-2)
    beyond = worst - side * torch.tensor([[-1e-6], [1e-6], [1.0], [50.0]], dtype=torch.float64)
    log_slope = transform.log_abs_det_jacobian(beyond, transform(beyond))
    torch.testing.assert_close(log_slope, log_slope[1:2].expand(4, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transform.inv(transform(beyond)), beyond)
    assert torch.equal(of_outputs(transform, [1])(z[:, 1:]), y[:, 1:])


@pytest.mark.parametrize("maximize", [True, False])
def test_improvement_under_tail_compression_is_that_of_the_values_themselves(maximize):
    Y = (1.0 if maximize else -1.0) * outcomes(m=1)
    transform = TailCompression(Y, maximize=maximize)
    mean = torch.tensor([0.5, 1.5], dtype=torch.float64) * (1 if maximize else -1)
    normal = MultivariateNormal(mean, torch.diag(torch.tensor([0.3, 0.8], dtype=torch.float64)))
    posterior = TransformedPosterior(GaussianPosterior(normal), transform)
    best = Y.amax() if maximize else Y.amin()
    draws = transform(posterior.base.rsample(torch.Size([400_000]))).squeeze(-1)
    gain = ((draws - best) * (1 if maximize else -1)).clamp(min=0)
    error = gain.std(0) / len(draws) ** 0.5
    exact = posterior.log_excess(best, 1, maximize).exp().squeeze(-1)
    assert ((gain.mean(0) - exact).abs() < 4.5 * error).all()
    with pytest.raises(NotImplementedError, match="closed-form"):  # over a bad value
        posterior.log_excess(Y.median(), 1, maximize)
    with pytest.raises(NotImplementedError, match="closed-form"):  # in the other direction
        posterior.log_excess(best, 1, not maximize)


@pytest.mark.parametrize("maximize", [True, False])
def test_tail_compression_keeps_the_moments_of_a_heavy_tail(maximize):
    Y = (1.0 if maximize else -1.0) * outcomes(m=1)
    transform = TailCompression(Y, maximize=maximize)
    mean = torch.zeros(1, dtype=torch.float64)
    base = StudentTPosterior(MultivariateNormal(mean, 4 * torch.eye(1, dtype=torch.float64)), 5.0)
    posterior = TransformedPosterior(base, transform)
    # Against the density, with steps that grow towards both ends.
    z = torch.linspace(-25, 25, 400_001, dtype=torch.float64).sinh()[:, None, None] * 1e-4
    density = base.log_prob(z).exp()[:, 0, 0]
    y = transform(z)[:, 0, 0]
    z = z[:, 0, 0]
    mean = torch.trapezoid(density * y, z)
    variance = torch.trapezoid(density * (y - mean).square(), z)
    assert posterior.mean.item() == pytest.approx(mean.item(), rel=1e-4)
    assert posterior.variance.item() == pytest.approx(variance.item(), rel=1e-3)


def test_outputs_of_transforms_of_several():
    z = torch.randn(5, 3, dtype=torch.float64)
    scale = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    for transform in (
        AffineTransform(torch.tensor(0.5), torch.tensor(2.0)),
        ComposeTransform([AffineTransform(scale, torch.tensor(2.0)), ExpTransform()]),
        ComposeTransform([AffineTransform(0.0, scale), AffineTransform(1.0, scale)]),
        AffineTransform(1.0, scale).inv,
        ComposeTransform([ExpTransform(), PowerTransform(scale)]).inv.inv,
        ComposeTransform([ExpTransform(), PowerTransform(scale).inv]),
    ):
        part = of_outputs(transform, [2, 0])
        assert torch.equal(part(z[:, [2, 0]]), transform(z)[:, [2, 0]])


def test_outputs_of_unknown_transforms_are_refused():
    class Shift(AffineTransform):
        pass

    with pytest.raises(NotImplementedError, match="cannot be split by outputs"):
        of_outputs(Shift(torch.zeros(1, 3), 1.0), [0])
    assert of_outputs(ExpTransform(), [0]) == ExpTransform()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tail_compression_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        TailCompression(torch.tensor([[1.0], [value], [2.0]]))


def test_tail_compression_of_equal_or_single_values_standardises():
    for Y in (torch.full((5, 1), 3.0), torch.tensor([[3.0]])):
        transform = TailCompression(Y)
        assert torch.equal(transform.inv(Y), torch.zeros_like(Y))
        assert transform(torch.tensor([[1.0]])).item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="n >= 1"):
        TailCompression(torch.empty(0, 1))
    with pytest.raises(ValueError, match="quantile"):
        TailCompression(torch.rand(5, 1), quantile=1.0)
