import pytest
import torch
from botorch.models.transforms.input import Normalize
from botorch.models.transforms.outcome import Standardize
from torch.distributions.transforms import AffineTransform, ExpTransform, StickBreakingTransform

from priors.transforms import (
    DEFAULT,
    location_scale,
    make_input_transform,
    make_outcome_transform,
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


@pytest.mark.parametrize("value", [0.0, 0.1, -3e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 37])
def test_constant_columns_become_zero(value, dtype, n):
    rows = torch.full((n, 2), value, dtype=dtype)
    location, scale = location_scale(rows)
    assert torch.equal(scale, torch.ones(1, 2, dtype=dtype))
    assert torch.equal((rows - location) / scale, torch.zeros(n, 2, dtype=dtype))


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
    X, Y = torch.rand(5, 2), torch.rand(5, 1) - 0.5
    with pytest.raises(TypeError, match="InputTransform"):
        make_input_transform(AffineTransform(0, 1), X)
    with pytest.raises(TypeError, match=r"torch\.distributions"):
        make_outcome_transform(Standardize(1), Y)
    with pytest.raises(ValueError, match="elementwise"):
        make_outcome_transform(StickBreakingTransform(), Y)
    with pytest.raises(ValueError, match="outside the range"):
        make_outcome_transform(ExpTransform(), Y)
    with pytest.raises(ValueError, match="n >= 1"):
        location_scale(torch.empty(0, 2))
