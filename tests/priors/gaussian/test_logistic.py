"""Derivatives of the logistic functions against autograd, and at large arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from priors.gaussian.activations import Numerical, logistic

FUNCTIONS = {
    "sigmoid": logistic.sigmoid(),
    "tanh": logistic.tanh(),
    "tanhshrink": logistic.tanhshrink(),
    "silu": logistic.silu(),
    "log sigmoid": logistic.log_sigmoid(),
    "softplus": logistic.softplus(F.softplus, 1.0),
}


def by_autograd(f: logistic.Logistic, order: int, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    value = f.function(x)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value.detach()


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_autograd(name: str, order: int) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    found = FUNCTIONS[name].derivative_function(order)(x)
    expected = by_autograd(FUNCTIONS[name], order, x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_high_derivatives_keep_their_digits_where_they_decay(name: str) -> None:
    """Each falls by e^-rate a unit, times (x + 1) / x at most: its logarithm is nearly straight."""
    f = FUNCTIONS[name].derivative_function(3)
    rate = FUNCTIONS[name].curvature.rate
    for sign in (-1.0, 1.0):
        x = sign * torch.tensor([60.0, 61.0], dtype=torch.float64)
        near, far = f(x).abs().tolist()
        assert math.log(near / far) == pytest.approx(rate, abs=0.02)


def test_a_steeper_softplus() -> None:
    def function(x: Tensor) -> Tensor:
        return F.softplus(x, beta=3.0, threshold=40.0)

    f = logistic.softplus(function, 3.0)
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    for order in range(5):
        torch.testing.assert_close(
            f.derivative_function(order)(x), by_autograd(f, order, x), rtol=1e-10, atol=1e-11
        )


def test_expectations_are_those_of_the_same_function_without_known_derivatives() -> None:
    q = torch.tensor([0.3, 2.0, 50.0], dtype=torch.float64)
    c = 0.8 * (q[:, None] * q).sqrt()
    for name, f in FUNCTIONS.items():
        plain = Numerical(f.function)
        for found, expected in zip(
            f.duals(f, q[:, None], q, c), plain.duals(plain, q[:, None], q, c), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=name)
