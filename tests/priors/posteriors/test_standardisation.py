import pytest
import torch

from priors.posteriors.standardisation import location_scale


@pytest.mark.parametrize("value", [0.0, 0.1, -3e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 37])
def test_constant_columns_become_zero(value, dtype, n):
    rows = torch.full((n, 2), value, dtype=dtype)
    location, scale = location_scale(rows)
    assert torch.equal(scale, torch.ones(1, 2, dtype=dtype))
    assert torch.equal((rows - location) / scale, torch.zeros(n, 2, dtype=dtype))


def test_a_scale_is_not_below_the_rounding_of_its_numbers():
    for values in ([1e9, 1e9, 1e9 + 64, 1e9], [0.3, 0.1 + 0.2, 0.3, 0.3]):
        rows = torch.tensor(values)[:, None]
        location, scale = location_scale(rows)
        assert ((rows - location) / scale).abs().max() < 1
    times = 1.7e9 + 2000 * torch.linspace(-1, 1, 40)[:, None]
    location, scale = location_scale(times)
    assert 0.3 < ((times - location) / scale).std() <= 1


def test_constant_columns_have_gradients():
    for n in (1, 3):
        rows = torch.full((n, 1), 2.0, requires_grad=True)
        location, scale = location_scale(rows)
        (slope,) = torch.autograd.grad((location + scale).sum(), rows)
        assert bool(slope.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absent_values_do_not_count(dtype):
    generator = torch.Generator().manual_seed(0)
    rows = 5 + 1e-3 * torch.randn(2, 40, 4, generator=generator).to(dtype)
    rows[..., 1] *= torch.finfo(dtype).max / 1000  # squares overflow
    rows[..., 2] = 0.1
    present = torch.rand(2, 40, 4, generator=generator) < 0.5
    present[1, :, 0] = False
    hidden = torch.where(present, rows, torch.nan)
    location, scale = location_scale(hidden, present)
    for b in range(2):
        for j in range(4):
            some = rows[b, present[b, :, j], j]
            expected = location_scale(some[:, None]) if len(some) else (0.0, 1.0)
            for found, truth in zip((location, scale), expected, strict=True):
                assert float(found[b, 0, j]) == pytest.approx(float(truth), rel=1e-6)
    one = location_scale(rows[0], present[:, :, 3:])  # one mask for all columns, two tasks
    assert one[0].shape == one[1].shape == (2, 1, 4)
    torch.testing.assert_close(one[1][0, 0, 3], scale[0, 0, 3])
    nothing = location_scale(torch.empty(3, 0, 2), torch.empty(3, 0, 1, dtype=torch.bool))
    assert torch.equal(nothing[0], torch.zeros(3, 1, 2))
    assert torch.equal(nothing[1], torch.ones(3, 1, 2))


def test_rows_are_needed():
    for rows in (torch.empty(0, 2), torch.ones(3)):
        with pytest.raises(ValueError, match="n >= 1"):
            location_scale(rows)
