"""How signals survive depth: critical variances, and the first correction of finite width.

In a wide network h = W phi(z) + b with weight variance C_W / width and bias variance C_b, the
variance K of a pre-activation obeys K -> C_b + C_W g(K), g(K) = E[phi(z)^2], z ~ N(0, K). Two
susceptibilities say what becomes of a perturbation of an input in one layer:

    chi_parallel(K) = C_W g'(K) = C_W E[phi(z)^2 (z^2 - K)] / (2 K^2) = C_W E[z phi phi'] / K
    chi_perp(K)     = C_W E[phi'(z)^2]

the first for its length, the second for its direction, and for gradients on the way back. A
network is critical where K is a fixed point at which both are 1: otherwise lengths or angles
contract or grow exponentially with depth. Activations fall into classes by that fixed point:

    scale-invariant   phi(s x) = s phi(x), s > 0: every K is fixed           ReLU, leaky ReLU
    K = 0             phi(0) = 0 and variances near 0 shrink to it           tanh, sin, erf
    half-stable       K > 0, attracting from one side                       GELU, SiLU (swish)

At finite width n the variance of the next layer's pre-activations is itself random, as it is an
average over n neurons. With v the variance of that random variance and K the infinite-width value

    v_(l+1) = chi_parallel(K_l)^2 v_l + C_W^2 (E[phi^4] - E[phi^2]^2) / n_l,   v_1 = 0,

to first order in 1/n: the fluctuation of K_l is carried on by dK_(l+1)/dK_l = chi_parallel, and
averaging n_l independent phi^2 adds its own. One output neuron given that variance is Gaussian,
so E[z^4] = 3 E[variance^2], an excess kurtosis of 3 v / K^2.

Source: Roberts, Yaida & Hanin 2021, The Principles of Deep Learning Theory (2106.10165), ch. 4
(four-point vertex V = n v) and 5 (criticality), appendix A (aspect ratio). Deviation: the vertex
is kept divided by its width, so that layers may differ in width. Weight variances here are per
fan-in throughout, as everywhere in this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from priors.gaussian.activations import Activation, Numerical
from priors.gaussian.quadrature import detect_kinks, gaussian_mean, jumps

__all__ = [
    "as_activation",
    "critical_initialisation",
    "excess_kurtosis",
    "four_point_vertex",
    "optimal_depth_to_width",
    "susceptibilities",
]

ActivationLike = Activation | Callable[[Tensor], Tensor]

# K = 0 stands for this variance: the expressions divide by K, and differ from their limit by O(K).
_SMALLEST = 1e-12


def susceptibilities(
    activation: ActivationLike, variance: float | Tensor, weight_var: float | Tensor
) -> tuple[Tensor, Tensor]:
    """chi_parallel and chi_perp of one layer.

    Args:
        activation: An `Activation`, module or elementwise function of float64.
        variance: K of the pre-activations, >= 0, any shape; a float counts as float64. At 0 the
            limit K -> 0, to 1e-6 where phi'' jumps there and to 1e-10 otherwise.
        weight_var: C_W of the following weights, per fan-in; broadcasts with `variance`.

    Returns:
        (chi_parallel, chi_perp), both of the broadcast shape.

    Raises:
        ValueError: a variance is negative, or the activation jumps, where chi_perp is infinite.

    Source: Roberts et al. 2021, section 5.1.
    """
    function = _continuous(activation)
    K, C_W = _tensors(variance, weight_var)
    K = K.clamp_min(_SMALLEST)
    parallel = gaussian_mean(
        lambda z: z * function(z) * function.derivative(z), K, kinks=function.kinks
    )
    return C_W * parallel / K, C_W * function.second_moment_derivative(K)


def critical_initialisation(activation: ActivationLike) -> tuple[float, float, float]:
    """Variances at which signals neither explode nor vanish with depth.

    Solves chi_parallel = chi_perp = 1 and K = C_b + C_W g(K). The K = 0 solution is taken where
    it attracts (variances above it shrink); else the smallest K in 1e-3 to 100.

    Args:
        activation: An `Activation`, module or elementwise function of float64.

    Returns:
        (weight_var, bias_var, variance): C_W per fan-in, C_b and the fixed point K. A
        scale-invariant activation keeps every variance; 1 is returned for it.

    Raises:
        ValueError: the activation jumps, is constant, or has no critical point; says why.

    Source: Roberts et al. 2021, sections 5.2-5.3.
    """
    function = _continuous(activation)
    if _slopes(function, 1.0)[1] < 1e-12:
        raise ValueError(f"{activation} is constant: no signal passes it at any variance.")
    sides = torch.tensor([-_SMALLEST, _SMALLEST], dtype=torch.float64, device="cpu")
    slope = float((function.derivative(sides) ** 2).mean())
    if _scale_invariant(function):
        return 1 / slope, 0.0, 1.0
    if bool((function(sides).abs() < 1e-9).all()) and slope > 1e-12:
        # chi_parallel falls from its value at 0: with C_W = 1 / g'(0), every small K shrinks
        if _slopes(function, 1e-4)[0] < slope:
            return 1 / slope, 0.0, 0.0

    from scipy.optimize import brentq  # slow to load

    def difference(log_variance: float) -> float:
        parallel, perp = _slopes(function, math.exp(log_variance))
        return parallel / perp - 1

    rejected = []
    grid = [math.log(10) * (-3 + i / 20) for i in range(101)]
    values = [difference(t) for t in grid]
    for i in range(len(grid) - 1):
        if math.isfinite(values[i]) and values[i] * values[i + 1] < 0:
            variance = math.exp(brentq(difference, grid[i], grid[i + 1], xtol=1e-13, rtol=1e-13))
            K = torch.tensor(variance, dtype=torch.float64, device="cpu")
            weight_var = 1 / _slopes(function, variance)[1]
            bias_var = variance - weight_var * float(function.second_moment(K))
            if bias_var >= 0:
                return weight_var, bias_var, variance
            rejected.append((variance, bias_var))
    if rejected:
        variance, bias_var = rejected[0]
        reason = (
            f"chi_parallel = chi_perp = 1 at variance {variance:.4g} would need a negative bias "
            f"variance, {bias_var:.4g}"
        )
    else:
        sign = "below" if values[60] < 0 else "above"
        reason = (
            "no variance between 1e-3 and 100 has chi_parallel = chi_perp; their ratio stays "
            f"{sign} 1"
        )
    raise ValueError(
        f"{activation} has no critical initialisation: {reason}. Use another activation, or shift "
        "it so that it is 0 at 0."
    )


def four_point_vertex(
    activation: ActivationLike,
    weight_vars: Sequence[float | Tensor],
    bias_vars: Sequence[float | Tensor],
    widths: Sequence[int],
    input_variance: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Variance of an output of a finite fully-connected network, and the variance of that variance.

    For one input and Gaussian weights; v to first order in 1 / width.

    Args:
        activation: Between any two layers.
        weight_vars: C_W per fan-in of each linear layer, the first one's included; numbers or
            tensors that broadcast.
        bias_vars: C_b of each linear layer.
        widths: Sizes of the hidden layers, one fewer than there are linear layers.
        input_variance: Mean square of the input's features, |x|^2 / d.

    Returns:
        (K, v): the infinite-width variance of one output and, in its square's units, the variance
        at finite width of the variance given the layers before; both of the broadcast shape.

    Raises:
        ValueError: the counts of layers disagree, a width is below 1, a variance is negative, or
            the activation jumps.

    Source: Roberts et al. 2021, eq. 4.119 for coinciding inputs, divided by the width.
    """
    if not len(weight_vars) == len(bias_vars) == len(widths) + 1:
        raise ValueError(
            f"four_point_vertex got {len(weight_vars)} weight variances, {len(bias_vars)} bias "
            f"variances and {len(widths)} hidden widths; pass one weight and one bias variance "
            "per linear layer, and one width per hidden layer."
        )
    if any(width < 1 for width in widths):
        raise ValueError(f"widths must be at least 1, got {list(widths)}.")
    function = _continuous(activation)
    q, *variances = _tensors(input_variance, *weight_vars, *bias_vars)
    weights, biases = variances[: len(weight_vars)], variances[len(weight_vars) :]
    K = biases[0] + weights[0] * q
    v = torch.zeros_like(K)
    for C_W, C_b, width in zip(weights[1:], biases[1:], widths, strict=True):
        parallel, _ = susceptibilities(function, K, C_W)
        second, spread = _square_spread(function, K)
        v = parallel**2 * v + C_W**2 * spread / width
        K = C_b + C_W * second
    return K, v


def excess_kurtosis(
    activation: ActivationLike,
    weight_vars: Sequence[float | Tensor],
    bias_vars: Sequence[float | Tensor],
    widths: Sequence[int],
    input_variance: float | Tensor,
) -> Tensor:
    """E[z^4] / E[z^2]^2 - 3 of one output over random weights: how far it is from Gaussian.

    3 v / K^2, to first order in 1 / width; arguments and errors as for `four_point_vertex`.
    """
    K, v = four_point_vertex(activation, weight_vars, bias_vars, widths, input_variance)
    return 3 * v / K**2


def optimal_depth_to_width(activation: ActivationLike, *, num_outputs: int = 1) -> float:
    """Depth over width at which a critical network's layers share the most information.

    r* = 4 / ((20 + 3 n_L) nu), where nu is the slope of v n / K^2 in depth at criticality, which
    the recursion above gives:

        scale-invariant   nu = E[phi^4] / E[phi^2]^2 - 1, 5 for ReLU; v n / K^2 = nu l
        K = 0             nu = 2 / 3: K = 1 / (a l) with chi_parallel = 1 - 2 / l, and
                          v n = c / l solves the recursion for c = 2 / (3 a^2)
        half-stable       nu = C_W^2 (E[phi^4] - E[phi^2]^2) / K^2 at the fixed point

    nu is derived here and tested; the factor 4 / (20 + 3 n_L) is quoted from the book, where it
    maximises the mutual information of two groups of output neurons, to second order in depth
    over width. The K = 0 value needs phi twice differentiable at 0.

    Args:
        activation: An `Activation`, module or elementwise function of float64.
        num_outputs: n_L, the number of output neurons.

    Raises:
        ValueError: `num_outputs` is below 1, there is no critical point, or phi is not
            twice differentiable at a critical variance of 0, for which nu is unknown.

    Source: Roberts et al. 2021, appendix A; nu from ch. 5, for equal hidden widths.
    """
    if num_outputs < 1:
        raise ValueError(f"num_outputs must be at least 1, got {num_outputs}.")
    function = _continuous(activation)
    weight_var, _, variance = critical_initialisation(function)
    if variance == 0:
        # where phi has a second derivative at 0, chi_parallel falls linearly, else like sqrt(K)
        start, near, far = (_slopes(function, K)[0] for K in (0.0, 1e-5, 4e-5))
        if (start - far) < 3 * (start - near):
            raise ValueError(
                f"{activation} or its slope has a kink at 0, which is also its critical "
                "variance; how fast its fluctuations grow there is not known. Use an "
                "activation that is smooth at 0, or scale-invariant."
            )
        nu = 2 / 3
    else:
        K = torch.tensor(variance, dtype=torch.float64, device="cpu")
        nu = weight_var**2 * float(_square_spread(function, K)[1]) / variance**2
    return 4 / ((20 + 3 * num_outputs) * nu)


def as_activation(activation: ActivationLike) -> Activation:
    """An `Activation` from a module or an elementwise function, whose kinks are searched for.

    Raises:
        TypeError: it is not callable.
    """
    if isinstance(activation, Activation):
        return activation
    if not callable(activation):
        raise TypeError(
            f"expected an Activation, a module or an elementwise function, got {activation!r}."
        )
    # a node at 0, where most activations have their kink, costs nothing
    return Numerical(activation, tuple(sorted({0.0, *detect_kinks(activation)})))


def _continuous(activation: ActivationLike) -> Activation:
    function = as_activation(activation)
    if any(jumps(function, function.kinks)):
        raise ValueError(
            f"{activation} is discontinuous, so its chi_perp is infinite: it has no critical "
            "point and carries no gradient. Use a continuous activation."
        )
    return function


def _tensors(*values: float | Tensor) -> tuple[Tensor, ...]:
    """The values broadcast together, on the device and in the dtype of the tensors among them."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    like = tensors[0] if tensors else torch.zeros((), dtype=torch.float64, device="cpu")
    broadcast = torch.broadcast_tensors(
        *(torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values)
    )
    for value in broadcast:
        if not bool((value >= 0).all()):
            raise ValueError(f"variances must be >= 0, got {value}.")
    return broadcast


def _slopes(function: Activation, variance: float) -> tuple[float, float]:
    parallel, perp = susceptibilities(function, variance, 1.0)
    return float(parallel), float(perp)


def _square_spread(function: Activation, K: Tensor) -> tuple[Tensor, Tensor]:
    """E[phi^2] and E[phi^4] - E[phi^2]^2, as the mean of a square so that nothing cancels."""
    second = function.second_moment(K)
    spread = gaussian_mean(
        lambda z, mean: (function(z) ** 2 - mean) ** 2,
        K,
        parameters=(second,),
        kinks=function.kinks,
    )
    return second, spread


def _scale_invariant(function: Activation) -> bool:
    x = torch.linspace(-7.0, 7.0, 29, dtype=torch.float64, device="cpu")
    return torch.allclose(function(3 * x), 3 * function(x), rtol=1e-12, atol=1e-12)
