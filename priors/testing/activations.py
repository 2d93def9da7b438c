"""What every activation must satisfy: that its expectations are those of the function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.testing.dtypes import both_dtypes

__all__ = ["ActivationContract"]


class ActivationContract(ABC):
    """The function against its derivative, its closed forms against samples.

    Attributes:
        variances: Variances of the pair in the tests, where moments of the samples must exist.
        samples: Number of Monte Carlo samples; standard errors are measured.
        has_jumps: Whether the function jumps. Expectations of its derivative leave jumps out.
    """

    variances = (0.6, 1.7)
    samples = 400_000
    has_jumps = False

    @abstractmethod
    def make_activation(self) -> Activation:
        """The activation."""

    def test_derivative_is_that_of_the_function(self) -> None:
        """By central differences, away from the kinks."""
        phi = self.make_activation()
        x = torch.linspace(-3, 3, 61, dtype=torch.float64) + 0.0123
        for kink in phi.kinks:
            x = x[(x - kink).abs() > 1e-3]
        h = 1e-5
        slope = (phi(x + h) - phi(x - h)) / (2 * h)
        assert torch.allclose(phi.derivative(x), slope, rtol=1e-6, atol=1e-6)

    def test_expectations_are_those_of_samples(self) -> None:
        """All six, of a correlated pair, within five standard errors."""
        phi = self.make_activation()
        q1, q2 = (torch.tensor(q, dtype=torch.float64) for q in self.variances)
        c = -0.6 * (q1 * q2).sqrt()
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(2, self.samples, generator=generator, dtype=torch.float64)
        u = q1.sqrt() * z[0]
        v = q2.sqrt() * (-0.6 * z[0] + math.sqrt(1 - 0.6**2) * z[1])
        found = {
            "dual": (phi.dual(phi, q1, q2, c), phi(u) * phi(v)),
            "dual_derivative": (
                phi.dual_derivative(phi, q1, q2, c),
                phi.derivative(u) * phi.derivative(v),
            ),
            "second_moment": (phi.second_moment(q1), phi(u) ** 2),
            "second_moment_derivative": (phi.second_moment_derivative(q1), phi.derivative(u) ** 2),
            "mean": (phi.mean(q1), phi(u)),
            "mean_derivative": (phi.mean_derivative(q1), phi.derivative(u)),
            "stein": (phi.stein(q1), u * phi(u) / q1),
        }
        for name, (value, drawn) in found.items():
            error = drawn.std() / self.samples**0.5
            assert abs(value - drawn.mean()) <= 5 * error + 1e-9, name

    def test_a_pair_of_equals_is_one_variable(self) -> None:
        """The dual at u = v is the second moment, in all variances."""
        phi = self.make_activation()
        q = torch.tensor([1e-3, 0.2, 1.0, 3.0], dtype=torch.float64)
        for dual, moment in (
            (phi.dual, phi.second_moment),
            (phi.dual_derivative, phi.second_moment_derivative),
        ):
            assert torch.allclose(dual(phi, q, q, q), moment(q), rtol=1e-6, atol=1e-9)

    def test_order_means_nothing(self) -> None:
        """E[phi(u) phi(v)] is that of (v, u), and `duals` are the two."""
        phi = self.make_activation()
        q1, q2 = (torch.tensor([q], dtype=torch.float64) for q in self.variances)
        c = torch.tensor([0.3], dtype=torch.float64)
        both = phi.duals(phi, q1, q2, c)
        for dual, value in zip((phi.dual, phi.dual_derivative), both, strict=True):
            assert torch.allclose(dual(phi, q1, q2, c), dual(phi, q2, q1, c), rtol=1e-9)
            assert torch.allclose(dual(phi, q1, q2, c), value, rtol=1e-9)

    @both_dtypes
    def test_gradients_are_finite_everywhere(self, dtype: torch.dtype) -> None:
        """At equal, opposite and independent pairs, and at variance 0; in the input's dtype."""
        phi = self.make_activation()
        q1 = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=dtype, requires_grad=True)
        q2 = torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=dtype, requires_grad=True)
        c = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
        value = phi.dual(phi, q1, q2, c)
        assert value.dtype == dtype
        if self.has_jumps:  # whose slope at variance 0 is infinite
            assert value.isfinite().all()
            return
        for gradient in torch.autograd.grad(value.sum(), (q1, q2, c), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()

    def test_gradients_are_those_of_the_value(self) -> None:
        """In both variances and the covariance, by central differences."""
        phi = self.make_activation()
        q1, q2 = (torch.tensor(q, dtype=torch.float64) for q in self.variances)
        arguments = [q1, q2, torch.tensor(0.4, dtype=torch.float64)]

        def value(*given: Tensor) -> Tensor:
            return phi.dual(phi, *given)

        _check_slopes(value, arguments)

    def test_shifted(self) -> None:
        """phi(x + offset), with its own expectations."""
        phi = self.make_activation()
        moved = phi.shifted(0.3)
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)
        assert torch.allclose(moved(x), phi(x + 0.3))
        q = torch.tensor(0.8, dtype=torch.float64)
        nodes = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        weight = torch.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi) * (nodes[1] - nodes[0])
        exact = (weight * phi(q.sqrt() * nodes + 0.3)).sum()
        # A sum over nodes errs by a part of a step where the function jumps.
        assert torch.allclose(moved.mean(q), exact, atol=1e-3 if self.has_jumps else 1e-5)


def _check_slopes(value: Callable[..., Tensor], arguments: list[Tensor]) -> None:
    inputs = [a.clone().requires_grad_() for a in arguments]
    slopes = torch.autograd.grad(value(*inputs), inputs)
    h = 1e-5
    for k, slope in enumerate(slopes):
        up, down = ([a + s * h if i == k else a for i, a in enumerate(arguments)] for s in (1, -1))
        expected = (value(*up) - value(*down)) / (2 * h)
        assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-6), k
