"""torch.func through expectations from tables and by quadrature, beside ordinary gradients."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, vmap

from priors.gaussian.activations import Numerical
from priors.gaussian.interpolation import store

double = torch.float64


@pytest.fixture(params=["tables", "quadrature"])
def _made(request, monkeypatch):
    least = 1 if request.param == "tables" else 10**9
    monkeypatch.setattr(store, "MIN_PAIRS", least)
    monkeypatch.setattr(store, "MIN_POINTS", least)


@pytest.mark.usefixtures("_made")
def test_transforms_of_a_kernel_of_three_points():
    phi = Numerical(torch.sigmoid)
    x = torch.tensor([[0.5, 1.0], [0.4, -0.2], [-0.5, 0.9]], dtype=double)
    z = torch.tensor([0.3, 0.8], dtype=double)

    def value(z):
        q1, q2 = (z * z).sum()[None, None], (x * x).sum(-1)[None]
        both = phi.duals(phi, q1, q2, (x @ z)[None])
        return both[0].sum() + both[1].square().sum() + phi.second_moment(q1).sum()

    points = torch.stack([z, -z, 2 * z])
    # tables are made inside the transforms, and outlive them
    ordinary = torch.autograd.functional.hessian
    torch.testing.assert_close(hessian(value)(z), ordinary(value, z), atol=1e-9, rtol=0)
    again = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(again), again)
    for transform in (grad, jacfwd):
        torch.testing.assert_close(transform(value)(z), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        vmap(value)(points), torch.stack([value(p) for p in points]), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(vmap(grad(value))(points)[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        pytest.param(torch.nn.functional.hardtanh, (-1.0, 1.0), marks=pytest.mark.slow),
        (lambda x: (x > 0.5).to(x) * x, (0.5,)),  # a jump
    ],
    ids=["bend", "jump"],
)
def test_batches_of_gradients_of_kinked_functions(function, kinks):
    # given u, the kinks of v lie where u says: they must be seen by the transform
    phi = Numerical(function, kinks)
    x = torch.tensor([[0.5, 1.0], [0.4, -0.2], [-0.5, 0.9]], dtype=double)

    def value(z):
        q1, q2 = (z * z).sum()[None, None], (x * x).sum(-1)[None]
        return phi.dual(phi, q1, q2, (x @ z)[None]).sum() + phi.second_moment(q1).sum()

    points = torch.tensor([[0.3, 0.8], [-0.3, -0.8], [0.6, 1.6]], dtype=double)
    each = torch.stack([grad(value)(p) for p in points])
    torch.testing.assert_close(vmap(grad(value))(points), each, atol=1e-9, rtol=0)
    # and a gradient is what differences say
    step = torch.tensor([1e-5, 0.0], dtype=double)
    slope = (value(points[0] + step) - value(points[0] - step)) / 2e-5
    torch.testing.assert_close(each[0, 0], slope, atol=1e-5, rtol=0)
