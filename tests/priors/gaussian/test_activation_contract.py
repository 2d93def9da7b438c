"""The contract of activations, by closed forms, quadrature and a user's own."""

import torch

from priors.gaussian.activations import (
    ELU,
    GELU,
    ABReLU,
    Activation,
    Erf,
    Numerical,
    Polynomial,
    Sign,
    Sine,
)
from priors.testing import ActivationContract


class TestABReLU(ActivationContract):
    def make_activation(self):
        return ABReLU(0.2, 1.0)


class TestGELU(ActivationContract):
    def make_activation(self):
        return GELU()


class TestErf(ActivationContract):
    def make_activation(self):
        return Erf()


class TestSine(ActivationContract):
    def make_activation(self):
        return Sine()


class TestELU(ActivationContract):
    def make_activation(self):
        return ELU()


class TestPolynomial(ActivationContract):
    def make_activation(self):
        return Polynomial((0.5, 1.0, -0.3))


class TestSign(ActivationContract):
    has_jumps = True

    def make_activation(self):
        return Sign()


class TestAnyFunction(ActivationContract):
    def make_activation(self):
        return Numerical(torch.tanh, ())


class SoftSign(Activation):
    """As a user writes one: the function, and the rest by quadrature."""

    def __call__(self, x):
        return x / (1 + x.abs())

    @property
    def kinks(self):
        return (0.0,)


class TestOfAUser(ActivationContract):
    def make_activation(self):
        return SoftSign()
