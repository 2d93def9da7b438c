"""Universal random features: a layer f(w.x + b) as an inner product of features of x and of w.

With z = [sqrt(weight_var / d) x, sqrt(bias_var)] in R^D, w standard normal (a layer's weights and
biases over their standard deviations), r = |z|, s = |w| and t the cosine between them,

    f(w.z) = f(r s t) = sum_n c_n(r s) P_n(t),   c_n(y) = N_n E[f(y t) P_n(t)],
    c_n(r s) = sum_i a_ni(r) b_ni(s),            E[b_ni(s) b_nj(s)] = delta_ij,

P_n the Gegenbauer polynomials of dimension D with P_n(1) = 1, N_n the number of spherical harmonics
of degree n, t a coordinate of a uniform point on the sphere; the second line is a singular value
decomposition on a grid, r uniform and s chi distributed. For directions u_1..u_M of degree n let
p(z) = [P_n(u_j.z / r)]_j, G = [P_n(u_j.u_k)] and q(z) = G^{-1/2} p(z). Then q(z).q(w) is the
projection of P_n(t) on M of the N_n harmonics: P_n(t) itself if M = N_n, and M / N_n of it in
expectation over rotations (Schur's lemma). So with features bounded by a and b,

    Phi(x) = [sqrt(N_n / M) a_ni(r) q(z)]_ni,    Psi(w) = [sqrt(N_n / M) b_ni(s) q(w)]_ni,
    E[Phi(x).Psi(w)] = f(w.z),                   E[f(w.x) f(w.y)] = E[Phi(x)^T N^-1 Phi(y)].

The mean square error of component (n, i) is |a|^2 (1 / M - 1 / N_n), least for M in proportion to
|a|, at most N_n: the largest singular values are exact, the rest random. For the kernel, whose
eigenvalues are their squares, M goes as |a|^2 / N_n. Being unbiased costs more than it is worth
where harmonics are many: the default leaves out both the smallest components and sqrt(N_n / M).

No unbiased mean of M independent products phi(x) psi(w) has less mean square error than (|f|_*^2 -
|f|^2) / M, with |f|_* the nuclear norm of f(w.x) between the laws of x and w: E[|phi|^2 |psi|^2] >=
E[|phi| |psi|]^2 >= |E phi psi^T|_*^2. For exp(i k w.x), x ~ N(0, I), w ~ N(0, I / d), |f|_*^2 =
((1 + q) / (1 - q))^d, q^2 = b / (a + b + c), a = 1/4, b = k^2 / 2d, c = sqrt(a^2 + 2 a b), from the
eigenvalues of a Gaussian kernel (Rasmussen & Williams 2006, 4.3.1): 19 for d = 3, k = 1; 353 for
d = 3, k = 3; 1.2e6 for d = 10, k = 3. So random exponential features of a single wave cannot be
good at standardised inputs. Exact leading components are not such a mean.

Sources: Sehanobish et al. 2024, 2310.13225 (the disentangled layer, by Fourier transforms and
random exponential features); Han, Zandieh & Avron 2022, 2202.03474 (random Gegenbauer features).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from scipy.special import gammaincinv
from torch import Tensor

from priors.gaussian.activations import ABReLU
from priors.kernels.random_features import FeatureMap
from priors.randomness import RandomSource

__all__ = ["Expansion", "UniversalFeatures", "expand", "gegenbauer", "num_harmonics"]


def num_harmonics(dimension: int, degree: int) -> int:
    """Number of linearly independent spherical harmonics of a degree in R^dimension."""
    lower = math.comb(degree + dimension - 3, degree - 2) if degree > 1 else 0
    return math.comb(degree + dimension - 1, degree) - lower


def gegenbauer(t: Tensor, dimension: int, degree: int) -> Tensor:
    """P_0..P_degree of a dimension, with P_n(1) = 1.

    Args:
        t: Where, in [-1, 1], `[...]`.
        dimension: Of the space whose sphere it is: 2 gives Chebyshev's, 3 Legendre's polynomials.
        degree: The highest one.

    Returns:
        Values `[..., degree + 1]`.
    """
    found = [torch.ones_like(t), t]
    for n in range(1, degree):
        top = (2 * n + dimension - 2) * t * found[n] - n * found[n - 1]
        found.append(top / (n + dimension - 2))
    return torch.stack(found[: degree + 1], -1)


@dataclass(frozen=True)
class Expansion:
    """f(r s t) = sum_k a_k(r) b_k(s) P_{degree_k}(t), in order of falling singular values.

    Attributes:
        dimension: D, of the sphere.
        degree: Degree of each component, `[k]`.
        multiplicity: N, the number of harmonics of that degree, `[k]`.
        norm: Root mean square of a_k; that of b_k is 1. N singular values are norm / N, `[k]`.
        radial_x: Legendre coefficients of a_k, `[l, k]`.
        radial_w: Legendre coefficients of b_k, `[l, k]`.
        norms_x: Least and greatest r.
        norms_w: Least and greatest s.
        truncation: Root mean square of what is left out, relative to that of f.
    """

    dimension: int
    degree: Tensor
    multiplicity: Tensor
    norm: Tensor
    radial_x: Tensor
    radial_w: Tensor
    norms_x: tuple[float, float]
    norms_w: tuple[float, float]
    truncation: float

    def __call__(self, r: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """f(r s t) of what is kept; `r`, `s`, `t` of one shape."""
        a = radial(r, self.norms_x, self.radial_x)
        b = radial(s, self.norms_w, self.radial_w)
        degree = int(self.degree.max())
        return (a * b * gegenbauer(t, self.dimension, degree)[..., self.degree]).sum(-1)


def radial(r: Tensor, ends: tuple[float, float], coefficients: Tensor) -> Tensor:
    """Legendre series `[..., k]` at `r` `[...]` between `ends`."""
    low, high = ends
    place = ((2 * r - low - high) / (high - low)).clamp(-1, 1)
    return gegenbauer(place, 3, coefficients.shape[0] - 1) @ coefficients.to(r)


@torch.no_grad()
def expand(
    f: Callable[[Tensor], Tensor],
    dimension: int,
    norms_x: tuple[float, float],
    *,
    max_weight_norm: float | None = None,
    kinks: Sequence[float] = (),
    tolerance: float = 1e-3,
    max_degree: int = 64,
) -> Expansion:
    """Expand f(r s t) in Gegenbauer polynomials and separate r from s.

    Args:
        f: Elementwise.
        dimension: D.
        norms_x: Least and greatest r.
        max_weight_norm: Greatest s; if None what a standard normal w exceeds with probability
            1e-12.
        kinks: Where f or a derivative of it jumps.
        tolerance: Relative root mean square of what may be left out.
        max_degree: Where to stop even if more is left out.

    Returns:
        The components that matter.

    Raises:
        ValueError: f has no finite values, is zero throughout, or changes too fast for its range.
    """
    top = math.sqrt(2 * gammaincinv(dimension / 2, 1 - 1e-12))
    norms_w = (0.0, max(top, max_weight_norm or 0.0))
    largest = norms_x[1] * norms_w[1]
    # What f does within a distance of 1 must be resolved on [0, largest]
    size = min(64 + 2 * math.ceil(largest), 400)
    unit, weight = _nodes(size)
    r, weight_r = _scaled(unit, norms_x), weight / 2
    s = _scaled(unit, norms_w)
    log_density = (dimension - 1) * s.log() - s.square() / 2
    weight_s = weight * (log_density - log_density.max()).exp()
    weight_s = weight_s / weight_s.sum()
    degree = 1 if dimension == 1 else max_degree
    harmonics = [float(num_harmonics(dimension, n)) for n in range(degree + 1)]
    count = torch.tensor(harmonics, dtype=torch.float64, device="cpu")

    c = unit.new_empty(degree + 1, size, size)
    square = unit.new_empty(size, size)
    points = degree + 64 + 4 * math.ceil(largest)
    moving = dimension > 1 and any(k != 0 for k in kinks)
    for j in range(size):  # row by row: the array of all arguments of f would be large
        if j == 0 or moving:
            t, weight_t = _angles(dimension, r[j] * s, kinks, points)
            p = gegenbauer(t, dimension, degree)
        value = f(r[j] * s[:, None] * t)
        square[j] = (value.square() * weight_t).sum(-1)
        value = value * weight_t
        c[:, j] = torch.einsum("sq,sqn->ns", value, p) if moving else (value @ p[0]).mT
    total = weight_r @ square @ weight_s
    if not total.isfinite() or total <= 0:
        raise ValueError("The function must be finite, and not zero everywhere.")

    share = count * torch.einsum("nrs,r,s->n", c.square(), weight_r, weight_s) / total
    degrees = (share > max(1e-28, 1e-3 * tolerance**2 / (degree + 1))).nonzero()[:, 0]
    c, count = c[degrees] * count[degrees, None, None], count[degrees]
    left, sigma, _ = torch.linalg.svd(weight_r.sqrt()[:, None] * c * weight_s.sqrt())
    energy = (sigma.square() / count[:, None]).flatten() / total
    energy, order = energy.sort(descending=True)
    above = 1 - energy.sum().item()  # of the degrees above, or else rounding
    above = above if above > 1e-13 else 0.0
    missing = energy.flip(0).cumsum(0).flip(0) - energy
    # where the degrees above are too much already, what the others may add is little
    allowed = max(tolerance**2 - above, 0.1 * tolerance**2)
    kept = min(int((missing > allowed).sum()) + 1, int((energy > 1e-28).sum()))
    chosen = order[:kept]
    chosen = chosen[(sigma / count[:, None]).flatten()[chosen].argsort(descending=True)]
    n, i = chosen // size, chosen % size

    u = left[n, :, i] / weight_r.sqrt()  # [k, r]
    norm = sigma[n, i]
    # b from a: the right singular vectors over the root of a density near 0 would be noise
    b = torch.einsum("kr,krs->ks", u * weight_r, c[n]) / norm[:, None]
    radial_x = _series(u * norm[:, None], unit, weight)
    order_x = torch.arange(len(radial_x), device="cpu")[:, None]
    last = (radial_x.square() / (2 * order_x + 1) / count[n])[size - size // 8 :].sum() / total
    if last > tolerance**2:
        raise ValueError(
            f"The expansion does not resolve the function for arguments up to {largest:.3g}; "
            "use smaller norms or a larger tolerance."
        )
    return Expansion(
        dimension,
        degrees[n],
        count[n],
        norm,
        radial_x,
        _series(b, unit, weight),
        norms_x,
        norms_w,
        math.sqrt(max(missing[kept - 1].item(), 0.0) + above),
    )


class UniversalFeatures(FeatureMap):
    """Features of a layer f(w.x + b) and of its kernel E[f(w.x + b) f(w.y + b)].

    The weights have variance weight_var / num_inputs each and the bias bias_var; `layer` takes any.
    The map itself gives features of the kernel, for `RandomFeatureKernel`.

    Args:
        num_inputs: d, features of a point.
        num_features: Features made; fewer where fewer are exact.
        max_norm: Greatest norm of a point.
        activation: f, elementwise; ReLU if None.
        weight_var: Weight variance of the layer, in the NTK parametrisation.
        bias_var: Bias variance of the layer.
        unbiased: Random features for all components; False keeps those of the largest singular
            values only, which has less mean square error.
        target: Share features out for the least error of the "kernel" or of the "layer".
        kinks: Where f or a derivative of it jumps; those an `Activation` knows if None. Away from
            0 they slow the convergence in the norms, too.
        tolerance: Relative root mean square error of f that may be left out.
        max_degree: Of the polynomials; for f with a kink more is left out than `tolerance` asks.
        max_weight_norm: Greatest norm of [w sqrt(d / weight_var), b / sqrt(bias_var)] for `layer`;
            if None what normal weights exceed with probability 1e-12.
        expansion: Of another map with the same activation, variances and norms, to find it once.
        generator: Source of the directions.

    Attributes:
        expansion: The expansion that is estimated.
        counts: Features of each component, `[k]`.

    Raises:
        ValueError: numbers out of range, or too few features for an unbiased estimate.
    """

    radial_x: Tensor
    radial_w: Tensor

    def __init__(
        self,
        num_inputs: int,
        num_features: int,
        *,
        max_norm: float,
        activation: Callable[[Tensor], Tensor] | None = None,
        weight_var: float = 1.0,
        bias_var: float = 0.0,
        unbiased: bool = False,
        target: str = "kernel",
        kinks: Sequence[float] | None = None,
        tolerance: float = 1e-3,
        max_degree: int = 64,
        max_weight_norm: float | None = None,
        expansion: Expansion | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (weight_var > 0 and bias_var >= 0 and 0 < max_norm < math.inf):
            raise ValueError(
                "weight_var and max_norm must be positive and finite, bias_var not negative."
            )
        if num_inputs < 1 or num_features < 1 or max_degree < 1 or not 0 < tolerance < 1:
            raise ValueError(
                "num_inputs, num_features and max_degree must be positive, tolerance in (0, 1)."
            )
        if target not in ("kernel", "layer"):
            raise ValueError(f'target must be "kernel" or "layer", got {target!r}.')
        self.num_inputs = num_inputs
        self.weight_var, self.bias_var = weight_var, bias_var
        f = ABReLU() if activation is None else activation
        dimension = num_inputs + (bias_var > 0)
        norms_x = math.sqrt(bias_var), math.hypot(max_norm * self._scale, math.sqrt(bias_var))
        if expansion is None:
            expansion = expand(
                f,
                dimension,
                norms_x,
                max_weight_norm=max_weight_norm,
                kinks=getattr(f, "kinks", ()) if kinks is None else kinks,
                tolerance=tolerance,
                max_degree=max_degree,
            )
        elif (expansion.dimension, expansion.norms_x) != (dimension, norms_x):
            raise ValueError(
                "The expansion was made for other inputs, variances or norms; make one for these."
            )
        self.expansion = found = expansion
        size = found.multiplicity
        if unbiased:
            if num_features < len(size):
                raise ValueError(
                    f"Unbiased features at tolerance {tolerance:g} need at least {len(size)}, "
                    f"got {num_features}; raise tolerance, or use unbiased=False."
                )
            wanted = found.norm if target == "layer" else found.norm.square() / size
            self.counts = _share(wanted, size, num_features)
        else:
            self.counts = (num_features - size.cumsum(0) + size).clamp(min=0).minimum(size).long()
        self.gain = size / self.counts if unbiased else torch.ones_like(size)
        used = int((self.counts > 0).sum())  # the first ones
        self.gain, self.degree = self.gain[:used], found.degree[:used]
        self.register_buffer("radial_x", found.radial_x[:, :used])
        self.register_buffer("radial_w", found.radial_w[:, :used])
        for n in self.degree.unique().tolist():
            most = int(self.counts[:used][self.degree == n].max())
            directions, whiten = _projection(dimension, n, most, generator)
            self.register_buffer(f"directions_{n}", directions)
            self.register_buffer(f"whiten_{n}", whiten)

    def forward(self, X: Tensor) -> Tensor:
        """Features `[..., n, m]` of points `[..., n, d]`, whose products estimate the kernel.

        Raises:
            ValueError: points of another width, or beyond max_norm.
        """
        z = self._point(X)
        scale = (self.gain / self.expansion.multiplicity[: len(self.gain)]).sqrt()
        return self._features(z, self.radial_x, self.expansion.norms_x, scale, "points", "max_norm")

    def phi(self, X: Tensor) -> Tensor:
        """Features `[..., n, m]` of points `[..., n, d]` for a product with `psi`.

        Raises:
            ValueError: as for `forward`.
        """
        z = self._point(X)
        scale = self.gain.sqrt()
        return self._features(z, self.radial_x, self.expansion.norms_x, scale, "points", "max_norm")

    def psi(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Features of neurons.

        Args:
            weight: As that of `nn.Linear`, `[..., h, d]`.
            bias: As that of `nn.Linear`, `[..., h]`; 0 if None.

        Returns:
            Features `[..., h, m]`.

        Raises:
            ValueError: weights of another width, beyond max_weight_norm, or a bias where bias_var
                is 0.
        """
        self._check(weight, "Weights")
        w = weight / self._scale
        if self.bias_var > 0:
            bias = torch.zeros_like(weight[..., 0]) if bias is None else bias
            w = torch.cat([w, bias[..., None] / math.sqrt(self.bias_var)], -1)
        elif bias is not None and bool((bias != 0).any()):
            raise ValueError("The features were made for a layer without bias: bias_var is 0.")
        ends, scale = self.expansion.norms_w, self.gain.sqrt()
        return self._features(w, self.radial_w, ends, scale, "weights", "max_weight_norm")

    def layer(self, X: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The estimate `[..., n, h]` of f(X @ weight.T + bias).

        Args:
            X: Points, `[..., n, d]`.
            weight: See `psi`.
            bias: See `psi`.

        Raises:
            ValueError: as for `forward` and `psi`.
        """
        return self.phi(X) @ self.psi(weight, bias).mT

    @property
    def _scale(self) -> float:
        return math.sqrt(self.weight_var / self.num_inputs)

    def _check(self, X: Tensor, name: str) -> None:
        if X.shape[-1] != self.num_inputs:
            raise ValueError(
                f"{name} must have the {self.num_inputs} features the map was made for, got "
                f"{X.shape[-1]}."
            )

    def _point(self, X: Tensor) -> Tensor:
        """z `[..., n, D]` of points `[..., n, d]`."""
        self._check(X, "Points")
        z = X * self._scale
        if self.bias_var > 0:
            z = torch.cat([z, z.new_full((*z.shape[:-1], 1), math.sqrt(self.bias_var))], -1)
        return z

    def _features(
        self,
        z: Tensor,
        coefficients: Tensor,
        ends: tuple[float, float],
        scale: Tensor,
        name: str,
        limit: str,
    ) -> Tensor:
        # away from the root's kink, so that gradients at 0 are those of f
        floor = (1e-6 if z.dtype == torch.float64 else 1e-4) * ends[1]
        r = (z.square().sum(-1) + (0.0 if ends[0] > 0 else floor**2)).sqrt()
        if bool((r > ends[1] * (1 + 1e-4)).any()):
            raise ValueError(
                f"The norm of some {name} is {(r.max() / ends[1]).item():.3g} times the largest "
                f"that the features were made for; make them with a larger {limit}."
            )
        unit = z / r[..., None]
        a = radial(r, ends, coefficients) * scale.to(z)
        parts = []
        for n in self.degree.unique().tolist():
            t = unit @ getattr(self, f"directions_{n}").to(z).mT
            q = gegenbauer(t, self.expansion.dimension, n)[..., n]
            q = q @ getattr(self, f"whiten_{n}").to(z)
            for k in (self.degree == n).nonzero()[:, 0].tolist():
                parts.append(a[..., k, None] * q[..., : self.counts[k]])
        return torch.cat(parts, -1)


def _nodes(size: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(size)
    return torch.from_numpy(x), torch.from_numpy(w)


def _scaled(unit: Tensor, ends: tuple[float, float]) -> Tensor:
    return (ends[0] + ends[1]) / 2 + unit * (ends[1] - ends[0]) / 2


def _series(values: Tensor, unit: Tensor, weight: Tensor) -> Tensor:
    """Legendre coefficients `[l, k]` of values `[k, node]`, without those that are rounding."""
    vandermonde = gegenbauer(unit, 3, len(unit) - 1)
    found = (weight[:, None] * vandermonde).mT @ values.mT
    found = found * (torch.arange(len(unit), device="cpu")[:, None] + 0.5)
    large = (found.abs() > 1e-14 * values.abs().max()).any(-1).nonzero()
    return found[: int(large.max()) + 1]


def _angles(dimension: int, y: Tensor, kinks: Sequence[float], size: int) -> tuple[Tensor, Tensor]:
    """Quadrature `[y or 1, q]` for a coordinate t of a uniform point; f(y t) is smooth between.

    In the angle the law has density sin^(D - 2), smooth for every D > 1.
    """
    if dimension == 1:
        return y.new_tensor([[1.0, -1.0]]), y.new_tensor([[0.5, 0.5]])
    inner = [k / y for k in sorted(kinks, reverse=True)]
    if all(k == 0 for k in kinks):  # the same for all y
        inner = [y.new_zeros(1) for _ in kinks]
    shape = inner[0].shape if inner else (1,)
    cuts = [y.new_ones(shape), *(k.clamp(-1, 1) for k in inner), -y.new_ones(shape)]
    unit, weight = _nodes(size)
    angles, weights = [], []
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        low, half = a.acos()[:, None], (b.acos() - a.acos())[:, None] / 2
        angles.append(low + half * (1 + unit))
        weights.append(half * weight)
    angle = torch.cat(angles, -1)
    density = torch.cat(weights, -1) * angle.sin().pow(dimension - 2)
    return angle.cos(), density / density.sum(-1, keepdim=True)


def _share(wanted: Tensor, most: Tensor, total: int) -> Tensor:
    """Whole numbers in proportion to `wanted`, from 1 to `most`, that sum to at most `total`."""
    if total >= most.sum():
        return most.long()
    low, high = 0.0, total / wanted.min().item()
    for _ in range(200):
        middle = (low + high) / 2
        counts = (middle * wanted).floor().clamp(min=1).minimum(most)
        low, high = (middle, high) if counts.sum() <= total else (low, middle)
    return (low * wanted).floor().clamp(min=1).minimum(most).long()


def _projection(
    dimension: int, degree: int, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Directions `[count, D]` and the matrix that makes their polynomials orthonormal."""
    enough = 2 * count <= num_harmonics(dimension, degree)
    # among more directions than harmonics pivoting finds some that are far from dependent
    size = count if enough else 2 * count + 8
    u = RandomSource(generator, "cpu", torch.float64).normal(size, dimension)
    u = u / u.norm(dim=-1, keepdim=True)
    gram = gegenbauer((u @ u.mT).clamp(-1, 1), dimension, degree)[..., degree]
    factor, pivots, _, _ = dpstrf(gram.numpy(), tol=0.0)
    first = torch.from_numpy(pivots[:count].astype(np.int64) - 1)
    upper = torch.from_numpy(np.triu(factor[:count, :count]))
    identity = torch.eye(count, dtype=torch.float64, device="cpu")
    return u[first], torch.linalg.solve_triangular(upper, identity, upper=True)
