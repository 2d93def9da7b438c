"""The classifiers that infinitely wide and deep networks become.

Let phi be normalised, E[phi(z)^2] = 1 for z ~ N(0, 1), and let inputs have unit length. The
covariance of two inputs with cosine xi then evolves by kappa(xi) = E[phi(u) phi(v)], (u, v)
standard normal with correlation xi, and the tangent kernel of depth l by

    K_(l+1) = kappa(K_l),   Theta_(l+1) = K_(l+1) + Theta_l kappa'(K_l),   K_0 = Theta_0 = xi.

With A = E[phi], A' = E[phi'] and B' = E[phi'^2], that is kappa(0) = A^2, kappa'(0) = A'^2 and
kappa'(1) = B', the minimum-norm classifier with kernel Theta_l becomes, as l grows,

    A != 0           a majority vote: all different inputs become equally similar
    A = 0, A' = 0    one nearest neighbour: similarities vanish doubly exponentially
    A = 0, A' != 0   sign(sum_i y_i w(xi_i)), with a kernel w singular at xi = 1

The last: 0 is an attracting fixed point of kappa with slope a = A'^2, so K_l / a^l tends to
Koenigs' function h, the solution of h(kappa(xi)) = a h(xi) with h'(0) = 1. Every summand
K_j prod_(i >= j) kappa'(K_i) of Theta_l tends to a^l h, so Theta_l / (l a^l) -> h(xi) for xi < 1,
while Theta_l(1) = sum_j B'^j with B' > 1 grows: the Gram matrix becomes diagonal, and w = h. (The
next term is h' / l up to a constant: a depth l tells apart only cosines below about 1 - 1 / l.)
Near xi = 1, 1 - kappa(xi) = B' (1 - xi) turns h(kappa) = a h into

    h ~ (1 - xi)^(log a / log B') ~ |x - x'|^-alpha,   alpha = -4 log A' / log B'

(A' by its absolute value). Such a rule is the Hilbert estimate of Devroye et al. 1998, and its
error tends to the smallest possible one for every distribution exactly when alpha = d, where d is
the dimension of the sphere S^d = {x in R^(d+1): |x| = 1} on which the inputs lie.

Source: Radhakrishnan, Belkin & Uhler 2022 (2204.14126), whose theorems are for inputs in the
nonnegative part of the sphere. Where cosines are negative, the singular kernel here is still the
limit derived above; the nearest neighbour stays the one with the largest cosine, although an
even phi cannot tell x from -x. Deviation: the weights are h itself rather than the power, to
which h is proportional only for near inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from priors.gaussian.activations import Activation
from priors.gaussian.quadrature import jumps
from priors.networks.criticality import ActivationLike, as_activation

__all__ = ["InfiniteDepthClassifier", "InfiniteDepthLimit", "classify_activation"]

Kind = Literal["one-nearest-neighbour", "majority vote", "singular kernel"]

# A and A' below this are 0: quadrature is accurate to about 1e-13.
_ZERO = 1e-9
# Cosines of equal inputs differ from 1 by less.
_SAME = 1e-13


@dataclass(frozen=True)
class InfiniteDepthLimit:
    """The classifier that an infinitely wide and deep network is.

    Attributes:
        kind: Which of the three.
        exponent: alpha of the singular kernel |x - x'|^-alpha; None for the others. The
            classifier is consistent on the sphere S^d of dimension d = alpha, in R^(d+1).
        A: E[phi(z)] of the normalised activation.
        A_prime: E[phi'(z)].
        B_prime: E[phi'(z)^2].
        activation: phi before it is normalised.
        scale: What normalises it, E[phi(z)^2]^(-1/2).
    """

    kind: Kind
    exponent: float | None
    A: float
    A_prime: float
    B_prime: float
    activation: Activation
    scale: float

    @property
    def odd(self) -> bool:
        """Whether phi(-x) = -phi(x), so that the singular kernel is -infinite at antipodes."""
        return float(self.dual(-torch.ones((), dtype=torch.float64, device="cpu"))) < _SAME - 1

    def dual(self, cosine: Tensor) -> Tensor:
        """kappa(cosine) = E[phi(u) phi(v)] of the normalised activation."""
        # of no dimension: the activation is projected on Hermite polynomials once, not per pair
        one = torch.ones((), dtype=cosine.dtype, device=cosine.device)
        return self.scale**2 * self.activation.dual(self.activation, one, one, cosine)

    def singular_kernel(self, cosine: Tensor) -> Tensor:
        """h of the module's docstring, infinite at cosine 1.

        Args:
            cosine: x . x' of unit vectors, any shape. Computed in float64; 1 - cosine is the
                squared distance over 2 and carries its rounding error.

        Returns:
            The shape and dtype of `cosine`.

        Raises:
            ValueError: the limit is not a singular kernel.
        """
        if self.kind != "singular kernel":
            raise ValueError(f"the limit is a {self.kind}, which has no singular kernel.")
        xi = cosine.double().reshape(-1)
        h = xi.sign() * math.inf
        # nearer to 1 than this, rounding would hold the iteration at the fixed point
        distinct = xi < 1 - _SAME
        if self.odd:
            distinct &= xi > _SAME - 1
        index = distinct.nonzero().squeeze(-1)
        K, growth = xi[index], 1.0
        while len(index):
            # h(K) = K + O(K^2)
            small = K.abs() < 1e-8
            h[index[small]] = growth * K[small]
            index, K = index[~small], self.dual(K[~small])
            growth /= self.A_prime**2
        return h.reshape(cosine.shape).to(cosine)


def classify_activation(activation: ActivationLike) -> InfiniteDepthLimit:
    """The limit classifier of an activation.

    Args:
        activation: An `Activation`, module or elementwise function of float64.

    Raises:
        ValueError: the activation is zero or linear, which has no such limit, or jumps, which
            has no tangent kernel.

    Source: Radhakrishnan et al. 2022, theorems 1-3.
    """
    function = as_activation(activation)
    if any(jumps(function, function.kinks)):
        raise ValueError(
            f"{activation} is discontinuous, so its tangent kernel is infinite. Use a "
            "continuous activation."
        )
    one = torch.ones((), dtype=torch.float64, device="cpu")
    square = float(function.second_moment(one))
    if square == 0:
        raise ValueError(f"{activation} is zero everywhere and cannot be normalised.")
    scale = 1 / math.sqrt(square)
    A = scale * float(function.mean(one))
    A_prime = scale * float(function.mean_derivative(one))
    B_prime = scale**2 * float(function.second_moment_derivative(one))
    kind: Kind = "singular kernel"
    exponent = None
    if abs(A) > _ZERO:
        kind = "majority vote"
    elif abs(A_prime) <= _ZERO:
        kind = "one-nearest-neighbour"
    elif A_prime**2 > 1 - _ZERO:
        raise ValueError(
            f"{activation} is linear: depth does not change its kernel, and the limit is a "
            "linear classifier. Use a nonlinear activation."
        )
    else:
        exponent = -4 * math.log(abs(A_prime)) / math.log(B_prime)
    return InfiniteDepthLimit(kind, exponent, A, A_prime, B_prime, function, scale)


class InfiniteDepthClassifier:
    """An infinitely wide and deep network, trained to the end on labelled points.

    Inputs are divided by their length first. Costs one pass over all pairs of a new and a
    training input, with memory for `chunk_size` new inputs at a time; the singular kernel is
    interpolated to a relative 1e-5, from about 1000 of its values.

    Args:
        limit: An `InfiniteDepthLimit`, or an activation to classify.
        chunk_size: New inputs compared with all training inputs at a time.

    Raises:
        ValueError: the activation has no limit; see `classify_activation`.
    """

    def __init__(
        self, limit: InfiniteDepthLimit | ActivationLike, *, chunk_size: int = 256
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        self.limit = limit if isinstance(limit, InfiniteDepthLimit) else classify_activation(limit)
        self.chunk_size = chunk_size
        singular = self.limit.kind == "singular kernel"
        self._kernel = _InterpolatedKernel(self.limit) if singular else None
        self._train: tuple[Tensor, Tensor, Tensor] | None = None

    def fit(self, X: Tensor, y: Tensor) -> InfiniteDepthClassifier:
        """Keep the training inputs `X` `[n, d]`, none of them zero, and labels `y` `[n]`."""
        if X.dim() != 2 or y.shape != X.shape[:1] or not len(y):
            raise ValueError(
                f"fit needs X [n, d] and y [n] with n >= 1, got {tuple(X.shape)} and "
                f"{tuple(y.shape)}."
            )
        classes, index = torch.unique(y, return_inverse=True)
        targets = torch.eye(len(classes), dtype=torch.float64, device=X.device)[index]
        self._train = _on_sphere(X), targets, classes
        return self

    def decision(self, X: Tensor) -> Tensor:
        """Score of each class at `X` `[n, d]`, `[n, num_classes]` in the order of sorted labels.

        The share of the class in the votes, whose sizes sum to one: every training input's vote is
        equal, or the nearest one's alone counts, or they are weighted by the singular kernel,
        which is negative where K_l is. At a training input its label has all the votes, except by
        a majority vote.
        """
        if self._train is None:
            raise RuntimeError("the classifier has no training data; call fit(X, y) first.")
        train, targets, _ = self._train
        if X.dim() != 2 or X.shape[1] != train.shape[1]:
            raise ValueError(f"X must be [n, {train.shape[1]}] as in fit, got {tuple(X.shape)}.")
        chunks = [
            self._weights(chunk @ train.T) @ targets
            for chunk in _on_sphere(X).split(self.chunk_size)
        ]
        return torch.cat(chunks).to(X)

    def predict(self, X: Tensor) -> Tensor:
        """Label of each row of `X` `[n, d]`, `[n]`; of equal scores the smallest label's."""
        scores = self.decision(X)
        assert self._train is not None
        return self._train[2][scores.argmax(-1)]

    def _weights(self, cosine: Tensor) -> Tensor:
        """Votes of the training inputs `[n, n_train]`, of absolute sum 1."""
        if self.limit.kind == "majority vote":
            weights = torch.ones_like(cosine)
        elif self._kernel is None:
            nearest = cosine.amax(-1, keepdim=True)
            weights = (cosine >= nearest - 4 * torch.finfo(cosine.dtype).eps).to(cosine)
        else:
            h = self._kernel(cosine)
            infinite = h.isinf()
            hit = infinite.any(-1, keepdim=True)
            weights = torch.where(hit, h.sign() * infinite, h)
        size = weights.abs().sum(-1, keepdim=True)
        return weights / torch.where(size > 0, size, 1.0)


class _InterpolatedKernel:
    """h of a limit from a table, cubic in t = log((1 + xi) / (1 - xi)).

    What is tabulated is h times (1 - xi)^(alpha / 2), and (1 + xi)^(alpha / 2) where h is
    singular at -1 too: bounded and smooth in t, and taken as constant beyond |t| = 20, where the
    distance of x and x' (or -x') is below 1e-4.
    """

    _END = 20.0
    _NODES = 1001

    def __init__(self, limit: InfiniteDepthLimit) -> None:
        assert limit.exponent is not None
        self.power = limit.exponent / 2
        self.odd = limit.odd
        t = torch.linspace(-self._END, self._END, self._NODES, dtype=torch.float64, device="cpu")
        xi = torch.tanh(t / 2)
        self.table = limit.singular_kernel(xi) / self._singularity(xi)

    def _singularity(self, xi: Tensor) -> Tensor:
        gap = (1 - xi) * (1 + xi) if self.odd else 1 - xi
        return gap**-self.power

    def __call__(self, cosine: Tensor) -> Tensor:
        """h at cosines in float64, infinite at 1 and, where h is, at -1."""
        xi = cosine.clamp(_SAME - 1, 1 - _SAME)
        t = torch.log1p(xi) - torch.log1p(-xi)
        place = (t.clamp(-self._END, self._END) / self._END + 1) * ((self._NODES - 1) / 2)
        left = place.floor().clamp(1, self._NODES - 3)
        x, left = place - left, left.long()
        table = self.table.to(cosine)
        # Lagrange's cubic through the nodes -1, 0, 1, 2
        value = (
            -x * (x - 1) * (x - 2) / 6 * table[left - 1]
            + (x + 1) * (x - 1) * (x - 2) / 2 * table[left]
            - (x + 1) * x * (x - 2) / 2 * table[left + 1]
            + (x + 1) * x * (x - 1) / 6 * table[left + 2]
        )
        h = value * self._singularity(xi)
        h = torch.where(cosine >= 1 - _SAME, math.inf, h)
        return torch.where(cosine <= _SAME - 1, -math.inf, h) if self.odd else h


def _on_sphere(X: Tensor) -> Tensor:
    X = X.double()
    length = X.norm(dim=-1, keepdim=True)
    if not bool((length > 0).all()):
        raise ValueError("an input is zero and has no direction; add a constant feature.")
    return X / length
