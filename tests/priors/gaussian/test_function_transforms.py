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
