"""Activations and the Gaussian expectations of their products.

For a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, an activation phi and
another psi, the infinite-width recursion needs

    dual               E[phi(u) psi(v)]
    dual_derivative    E[phi'(u) psi'(v)]
    second_moment      E[phi(u)^2], and with derivatives E[phi'(u)^2]   (u = v, exactly)
    mean               E[phi(u)], and with the derivative E[phi'(u)]

in closed form where there is one, otherwise by `gaussian.quadrature`. The closed forms are written
in D = q1 q2 - c^2, factored as (sqrt(q1 q2) - c)(sqrt(q1 q2) + c) so that nearly parallel u and v
lose few digits, and are differentiable at u = v, u = -v and q = 0; where their automatic
derivative is not, by Price's theorem, dE/dc = E[phi' psi'] and dE/dq1 = E[phi'' psi] / 2.

A jump of phi contributes a delta to phi'. All expectations of phi' leave it out, as the gradient
of a finite network does, but `stein`, whose use is E[phi(u) w] = E[phi'(u)] E[u w].

Shapes: q1, q2 and c broadcast together; the result has the broadcast shape.
"""

from priors.gaussian.activations.base import Activation, Numerical, Smooth
from priors.gaussian.activations.elu import ELU
from priors.gaussian.activations.polynomial import Hermite, Polynomial
from priors.gaussian.activations.rectified import ABReLU, RectifiedPower, Sign
from priors.gaussian.activations.smooth import GELU, Erf, Exp, Gabor, Gaussian, Probit, Sine

__all__ = [
    "ELU",
    "GELU",
    "ABReLU",
    "Activation",
    "Erf",
    "Exp",
    "Gabor",
    "Gaussian",
    "Hermite",
    "Numerical",
    "Polynomial",
    "Probit",
    "RectifiedPower",
    "Sign",
    "Sine",
    "Smooth",
]
