"""Gaussian expectations of functions without a closed form.

E[f(u) g(v)] for a centred Gaussian pair (u, v) with variances q1, q2 and covariance c, by Mehler's
expansion: with Hermite coefficients a_k(q) = E[f(sqrt(q) Z) h_k(Z)], h_k orthonormal,

    E[f(u) g(v)] = sum_k a_k(q1) b_k(q2) rho^k,   rho = c / sqrt(q1 q2),

which costs one-dimensional integrals per point and a polynomial per pair. Its error after K terms
is at most |rho|^K (sum_(k >= K) a_k^2 sum_(k >= K) b_k^2)^(1/2), and the two sums are known from
E[f^2] and E[g^2]: K is taken as small as that allows. Pairs which the longest series does not
reach (a kinked or steep function and |rho| near 1) are integrated in two dimensions,

    E[f(sqrt(q1) z) E[g(sqrt(q2) (rho z + s w)) | z]],   s = sqrt(1 - rho^2),

by Gauss-Legendre panels that end at the kinks of f and of g, and are as narrow as s around those
of g, which the inner expectation smooths over that width. At rho = +-1 the inner one disappears.

Gradients are expectations again, by Price's theorem: dE/dc = E[f' g'], dE/dq1 = E[f'' g] / 2,
with the deltas that f' and f'' have at a jump or kink t taken by hand from E[delta(u - t) g(v)] =
density(t) E[g(v) | u = t]. They stay finite where differentiating rho would not (q = 0, rho = 1);
a slope that is infinite (two jumps that meet at rho = 1, a jump at q = 0) is set to 0.

Everything is computed in float64 and returned in the dtype of its arguments.
"""

from priors.gaussian.quadrature.functions import Function, derivative_of
from priors.gaussian.quadrature.gradients import gaussian_expectation, gaussian_mean
from priors.gaussian.quadrature.kinks import detect_kinks, jumps

__all__ = [
    "Function",
    "derivative_of",
    "detect_kinks",
    "gaussian_expectation",
    "gaussian_mean",
    "jumps",
]
