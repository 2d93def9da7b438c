"""Gaussian processes of plain kernels, whose predictions a network is told and mixes.

Where there is little noise a posterior is narrow and its place a sum over all rows with large
weights of both signs, which attention learns slowly and a solve gives at once. So for every context
kernels C and noise ratios r are compared by the evidence, the best few are conditioned on all rows,
and the network learns by how much each of them is wrong.

With the targets z in the network's units, z ~ N(0, s (C + r I)) and s inverse gamma of shape and
scale 1, all is in closed form (Gelman et al. 2013, Bayesian Data Analysis, section 14.8). With
K = C + r I, q = z' K^-1 z and n rows

    log evidence = -log det K / 2 - (2 + n) / 2 log(2 + q) + const,
    E[1 / s | z] = (2 + n) / (2 + q), whose inverse stands for s.

The prediction of one row from the others of the context is (Rasmussen &
Williams 2006, equation 5.12)

    mean_i = z_i - [K^-1 z]_i / [K^-1]_ii,   variance_i = s / [K^-1]_ii.

Kernels are functions of the distance, sum_j w_j (x_j - x'_j)^2 / l^2 in units of the inputs' mean
square norm: with w = 1 for a grid of l, and for the best l with w fitted by a few steps along the
signs of the derivatives of log evidence + log p(w),

    d log evidence / d w_j = tr(G dC / d w_j) / 2,   G = (2 + n) / (2 + q) a a' - K^-1,  a = K^-1 z,

with log w_j ~ N(0, 1.5^2). That is done with some rows of a context, evenly spread: up to 64
in a training, which needs thousands of contexts, and 256 where a network is used, since more rows
tell relevances apart. All is in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["COMPARED", "COMPARED_IN_TRAINING", "Advice", "Experts"]

_LINEAR, _MATERN1, _MATERN5, _SQUARED = range(4)
# Kind and length scale. Where rows tell nothing the first are the best.
_KERNELS = (
    (_LINEAR, 1.0),
    (_MATERN5, 2.0),
    (_SQUARED, 0.4),
    (_SQUARED, 1.0),
    (_MATERN1, 1.0),
    (_SQUARED, 2.5),
    (_MATERN5, 0.5),
    (_SQUARED, 0.15),
)
_FITTED = (_SQUARED, _MATERN5)  # kinds whose w is fitted; `_fitted_covariance` is of these
_CONSTANT = 0.2  # variance of the mean, added to every kernel
# Of the noise to the function; where rows tell nothing the first is the best.
_RATIOS = (1.0, 0.1, 10.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
COMPARED, COMPARED_IN_TRAINING = 256, 64  # rows on which kernels are compared
_STEPS = (1.0, 1.0, 1.0, 1.0, 0.7, 0.5, 0.3, 0.2)  # largest changes of log w
_SPREAD = 1.5  # standard deviation of log w


@dataclass(frozen=True)
class Advice:
    """Predictions of k experts, in the network's units of the target.

    Attributes:
        mean: Of the function and of noisy targets.
        log_std: Log deviation of noisy targets.
        log_std_f: Log deviation of the function.
        log_weight: Log posterior probabilities of the experts.
    """

    mean: Float[Tensor, "B m k"]
    log_std: Float[Tensor, "B m k"]
    log_std_f: Float[Tensor, "B m k"]
    log_weight: Float[Tensor, "B m k"]

    def features(self, targets: Float[Tensor, "B m"] | None) -> Float[Tensor, "B m told"]:
        """What a network is told of them; with the residuals of context rows."""
        residual = torch.zeros_like(self.mean)
        if targets is not None:
            residual = (targets[..., None] - self.mean) / self.log_std.exp()
        return torch.cat(
            [
                self.mean.clamp(-5.0, 5.0),
                self.log_std.clamp(-12.0, 4.0) / 4,
                self.log_weight.clamp_min(-12.0) / 4,
                torch.asinh(residual),
            ],
            dim=-1,
        )


def _linear(product: Tensor) -> Tensor:
    return product


def _matern1(r2: Tensor) -> Tensor:
    return torch.exp(-_distance(r2))


def _matern5(r2: Tensor) -> Tensor:
    s = 5**0.5 * _distance(r2)
    return (1 + s + s.square() / 3) * torch.exp(-s)


def _squared(r2: Tensor) -> Tensor:
    return torch.exp(-0.5 * r2.clamp_min(0))


def _distance(r2: Tensor) -> Tensor:
    return (r2.clamp_min(0) + 1e-12).sqrt()  # with a gradient at 0


_FORMULAS = (_linear, _matern1, _matern5, _squared)  # by kind


@dataclass(frozen=True)
class Kernels:
    """k kernels for each of A contexts.

    Attributes:
        kind: Of each.
        weight: w / l^2; w for a linear one.
        log_prior: log p(w), up to a constant.
    """

    kind: Int[Tensor, "A k"]
    weight: Float[Tensor, "A k d"]
    log_prior: Float[Tensor, "A k"]

    def select(self, index: Int[Tensor, "A s"]) -> Kernels:
        """Some of them for each context."""
        weight = self.weight.gather(1, index[..., None].expand(-1, -1, self.weight.shape[-1]))
        return Kernels(self.kind.gather(1, index), weight, self.log_prior.gather(1, index))

    def of_contexts(self, index: Int[Tensor, " B"]) -> Kernels:
        """Those of contexts `index`."""
        return Kernels(self.kind[index], self.weight[index], self.log_prior[index])

    def joined(self, other: Kernels) -> Kernels:
        """These and others of the same contexts."""
        return Kernels(
            *(
                torch.cat([own, more], 1)
                for own, more in zip(self._parts, other._parts, strict=True)
            )
        )

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.kind, self.weight, self.log_prior

    def covariance(
        self,
        x1: Float[Tensor, "A n d"],
        x2: Float[Tensor, "A m d"],
        shown1: Bool[Tensor, "A n"] | None = None,
        shown2: Bool[Tensor, "A m"] | None = None,
    ) -> Float[Tensor, "A k n m"]:
        """Covariances; rows that do not count have none."""
        found = self._of(self._arguments(x1, x2)) + _CONSTANT
        if shown1 is not None:
            found = found * shown1[:, None, :, None]
        if shown2 is not None:
            found = found * shown2[:, None, None, :]
        return found

    def variances(self, x: Float[Tensor, "A m d"]) -> Float[Tensor, "A k m"]:
        """Prior variances at rows."""
        norms = (x.square() @ self.weight.mT).mT
        return torch.where(self.kind[..., None] == _LINEAR, norms, 1.0) + _CONSTANT

    def _arguments(
        self, x1: Float[Tensor, "A n d"], x2: Float[Tensor, "A m d"]
    ) -> Float[Tensor, "A k n m"]:
        """Products for a linear kernel, else squared distances, up to rounding also below 0."""
        scaled = x1[:, None] * self.weight[:, :, None]
        far = (self.kind != _LINEAR).to(x1)[..., None, None]
        norms1 = (scaled * x1[:, None]).sum(-1, keepdim=True) * far
        norms2 = (x2.square() @ self.weight.mT).mT[..., None, :] * far
        return (scaled * (1 - 3 * far)) @ x2.mT[:, None] + norms1 + norms2

    def _of(self, arguments: Float[Tensor, "A k n m"]) -> Float[Tensor, "A k n m"]:
        """Covariances, one call for each kind."""
        kinds = self.kind.flatten()
        order = kinds.argsort(stable=True)
        counts = kinds.bincount(minlength=len(_FORMULAS)).tolist()
        parts = arguments.flatten(0, 1)[order].split(counts)
        found = [formula(part) for formula, part in zip(_FORMULAS, parts, strict=True)]
        return torch.cat(found)[order.argsort()].unflatten(0, self.kind.shape)


@dataclass(frozen=True)
class Experts:
    """The best k experts of each context, conditioned on its rows.

    Attributes:
        rows: Inputs of the context rows, in units of their root mean square norm.
        shown: True for rows that count; None if all do.
        unit: That norm.
        kernels: Their kernels.
        noise: Their noise ratios r.
        scale: s.
        log_weight: Log posterior probabilities.
        root: Cholesky factors of K.
        weights: K^-1 z.
        own: Predictions of each context row from the others.
        index: Which context serves each of B tasks, None for one each: copies share what is large.
    """

    rows: Float[Tensor, "A n d"]
    shown: Bool[Tensor, "A n"] | None
    unit: Float[Tensor, "A 1 1"]
    kernels: Kernels
    noise: Float[Tensor, "A k"]
    scale: Float[Tensor, "A k"]
    log_weight: Float[Tensor, "A k"]
    root: Float[Tensor, "A k n n"]
    weights: Float[Tensor, "A k n"]
    own: Advice
    index: Int[Tensor, " B"] | None = None

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "B n d"],
        targets: Float[Tensor, "B n"],
        number: int,
        shown: Bool[Tensor, "B n"] | None = None,
        compared: int = COMPARED,
    ) -> Experts:
        """The best `number` experts of contexts.

        Args:
            rows: Inputs as the network sees them, 0 where missing.
            targets: Likewise.
            number: k, at most 8.
            shown: False for padding.
            compared: Most rows on which kernels are compared.
        """
        dtype = rows.dtype
        X, z = rows.double(), targets.double()
        n = X.shape[1]
        if shown is not None:
            X, z = X * shown[..., None], z * shown
        count = _count(z, shown)
        mean_square = X.square().sum((1, 2)) / count.clamp_min(1)
        unit = torch.where(mean_square > 0, mean_square, 1).sqrt()[:, None, None]
        X = X / unit
        some = torch.linspace(0, n - 1, min(n, compared), device=X.device).round().long()
        part = None if shown is None else shown[:, some]
        kernels, noise = _best(X[:, some], z[:, some], part, number)
        full = _add_noise(kernels.covariance(X, X, shown, shown), noise, shown)
        evidence, scale, root, weights = _condition(full, z, shown)
        precision = _inverse_diagonal(root)
        log_weight = (evidence + kernels.log_prior).log_softmax(-1)
        mean, variance = z[:, None] - weights / precision, scale[..., None] / precision
        own = _advice(mean, variance, (scale * noise)[..., None], log_weight, dtype)
        return cls(X, shown, unit, kernels, noise, scale, log_weight, root, weights, own)

    def select(self, index: Int[Tensor, " chosen"]) -> Experts:
        """Those of the tasks `index`, with repetitions."""
        return replace(self, index=index if self.index is None else self.index[index])

    def predict(self, rows: Float[Tensor, "B m d"]) -> Advice:
        """Predictions at other rows."""
        if self.index is None:
            return self._predict(rows)
        number = self.index.bincount(minlength=len(self.rows))
        if not bool((number == number[0]).all()):
            return self._of_contexts(self.index)._predict(rows)
        order = self.index.argsort(stable=True)
        found = self._predict(rows[order].reshape(len(self.rows), -1, rows.shape[-1]))
        back, shape = order.argsort(), (*rows.shape[:2], -1)
        return Advice(**{name: v.reshape(shape)[back] for name, v in vars(found).items()})

    def _of_contexts(self, index: Int[Tensor, " B"]) -> Experts:
        parts = {name: v[index] for name, v in vars(self).items() if isinstance(v, Tensor)}
        kernels = self.kernels.of_contexts(index)
        return replace(self, **{**parts, "kernels": kernels, "index": None})  # type: ignore[arg-type]

    def _predict(self, rows: Float[Tensor, "A m d"]) -> Advice:
        X = rows.double() / self.unit
        cross = self.kernels.covariance(self.rows, X, self.shown)  # [A, k, n, m]
        mean = (self.weights[:, :, None] @ cross)[:, :, 0]
        known = torch.linalg.solve_triangular(self.root, cross, upper=False).square().sum(-2)
        ratio = self.kernels.variances(X) - known + self.noise[..., None]
        ratio = torch.maximum(ratio, self.noise[..., None])
        noise = (self.scale * self.noise)[..., None]
        return _advice(mean, self.scale[..., None] * ratio, noise, self.log_weight, rows.dtype)


def _advice(
    mean: Float[Tensor, "A k m"],
    variance: Float[Tensor, "A k m"],
    noise: Float[Tensor, "A k 1"],
    log_weight: Float[Tensor, "A k"],
    dtype: torch.dtype,
) -> Advice:
    """Of the variances of noisy targets."""
    variance_f = torch.maximum(variance - noise, 1e-4 * variance).clamp_min(1e-14)
    weights = log_weight[:, None].expand(-1, mean.shape[-1], -1)
    return Advice(
        mean.mT.to(dtype),
        0.5 * variance.clamp_min(1e-14).log().mT.to(dtype),
        0.5 * variance_f.log().mT.to(dtype),
        weights.to(dtype),
    )


def _best(
    X: Float[Tensor, "A n d"],
    z: Float[Tensor, "A n"],
    shown: Bool[Tensor, "A n"] | None,
    number: int,
) -> tuple[Kernels, Float[Tensor, "A k"]]:
    """The kernels of greatest evidence, each with its best noise ratio, that ratio."""
    A, d = len(X), X.shape[-1]
    kind = torch.tensor([kind for kind, _ in _KERNELS], device=X.device).expand(A, -1)
    length = X.new_tensor([length for _, length in _KERNELS])
    weight = (length**-2)[:, None].expand(A, -1, d)
    plain = Kernels(kind, weight, X.new_zeros(A, len(_KERNELS)))
    evidence, noise = _best_noise(plain, X, z, shown)
    starts = [
        evidence.masked_fill(kind != fitted, -torch.inf).argmax(1, keepdim=True)
        for fitted in _FITTED
    ]
    start = torch.cat(starts, dim=1)
    more = _fitted(plain.select(start), noise.gather(1, start), X, z, shown)
    evidence_more, noise_more = _best_noise(more, X, z, shown)
    evidence = torch.cat([evidence, evidence_more + more.log_prior], dim=1)
    best = evidence.sort(dim=1, descending=True, stable=True).indices[:, :number]
    return plain.joined(more).select(best), torch.cat([noise, noise_more], dim=1).gather(1, best)


def _best_noise(
    kernels: Kernels, X: Tensor, z: Tensor, shown: Tensor | None
) -> tuple[Float[Tensor, "A k"], Float[Tensor, "A k"]]:
    """Greatest log evidence over the noise ratios, and the ratio."""
    ratios = X.new_tensor(_RATIOS)
    covariance = kernels.covariance(X, X, shown, shown)
    # A GPU has factorisations of many matrices at once, of decompositions slow ones.
    by = _factorised if X.is_cuda else _decomposed
    evidence, which = by(covariance, ratios, z, shown).max(-1)
    return evidence, ratios[which]


def _decomposed(
    covariance: Float[Tensor, "A k n n"],
    ratios: Float[Tensor, " r"],
    z: Float[Tensor, "A n"],
    shown: Bool[Tensor, "A n"] | None,
) -> Float[Tensor, "A k r"]:
    """Log evidence for all noise ratios by one decomposition C = V diag(values) V'."""
    values, vectors = torch.linalg.eigh(covariance)
    z2 = (z[:, None, None] @ vectors)[:, :, 0].square()
    noisy = values.clamp_min(0)[..., None, :] + ratios[:, None]  # [A, k, r, n]
    n = _count(z, shown)[:, None, None]
    # Rows that do not count have values 0 and no part in z.
    log_det = noisy.log().sum(-1) - (z.shape[-1] - n) * ratios.log()
    return _evidence((z2[:, :, None] / noisy).sum(-1), log_det, n)


def _factorised(
    covariance: Float[Tensor, "A k n n"],
    ratios: Float[Tensor, " r"],
    z: Float[Tensor, "A n"],
    shown: Bool[Tensor, "A n"] | None,
) -> Float[Tensor, "A k r"]:
    """The same by a Cholesky factor for each ratio."""
    n, found = _count(z, shown)[:, None], []
    z = z[:, None, :, None].expand(*covariance.shape[:-1], 1)
    for ratio in ratios:
        noise = ratio.expand(covariance.shape[:2])
        root = torch.linalg.cholesky(_add_noise(covariance.clone(), noise, shown))
        q = torch.linalg.solve_triangular(root, z, upper=False).square().sum((-2, -1))
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        found.append(_evidence(q, log_det, n))
    return torch.stack(found, dim=-1)


def _inverse(root: Float[Tensor, "A k n n"]) -> Float[Tensor, "A k n n"]:
    """Of K, from its Cholesky factor."""
    if not root.is_cuda:
        return torch.cholesky_inverse(root)
    half = _half_inverse(root)
    return half.mT @ half


def _inverse_diagonal(root: Float[Tensor, "A k n n"]) -> Float[Tensor, "A k n"]:
    if not root.is_cuda:
        return torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1)
    return _half_inverse(root).square().sum(-2)


def _half_inverse(root: Float[Tensor, "A k n n"]) -> Float[Tensor, "A k n n"]:
    """Inverse of the factor: a GPU solves many triangular systems at once, others in turn."""
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)


def _fitted(kernels: Kernels, noise: Tensor, X: Tensor, z: Tensor, shown: Tensor | None) -> Kernels:
    """Those of `_FITTED`, one each, with relevances fitted at these noise ratios."""
    log_w = torch.zeros_like(kernels.weight)
    pairs = None if shown is None else shown[:, None, :, None] & shown[:, None, None]
    for most in _STEPS:
        weight = kernels.weight * log_w.exp()
        C, derivative = _fitted_covariance(weight, X)
        C = C + _CONSTANT if pairs is None else (C + _CONSTANT) * pairs
        root = torch.linalg.cholesky(_add_noise(C, noise, shown))
        slope = _evidence_slope(_inverse(root), z, shown, derivative, X) * weight
        slope = slope - log_w / _SPREAD**2
        log_w = (log_w + most * torch.tanh(slope / 2)).clamp(-6.0, 4.0)
    log_prior = -0.5 * (log_w / _SPREAD).square().sum(-1)
    return replace(kernels, weight=kernels.weight * log_w.exp(), log_prior=log_prior)


def _fitted_covariance(
    weight: Float[Tensor, "A 2 d"], X: Float[Tensor, "A n d"]
) -> tuple[Float[Tensor, "A 2 n n"], Float[Tensor, "A 2 n n"]]:
    """Covariances of the kinds of `_FITTED`, and derivatives in the squared distance."""
    scaled = X[:, None] * weight[:, :, None]
    norms = (scaled * X[:, None]).sum(-1)
    r2 = (scaled @ X.mT[:, None]).mul_(-2).add_(norms[..., None]).add_(norms[..., None, :])
    r2 = r2.clamp_(min=0)
    squared = r2[:, 0].mul_(-0.5).exp_()
    s = r2[:, 1].mul_(5).sqrt_()
    decay = torch.exp(-s)
    rising = (1 + s) * decay
    C = torch.stack([squared, s.square_().mul_(decay).div_(3).add_(rising)], 1)
    return C, torch.stack([-0.5 * squared, -5 / 6 * rising], 1)


def _evidence_slope(
    inverse: Float[Tensor, "A 2 n n"],
    z: Float[Tensor, "A n"],
    shown: Bool[Tensor, "A n"] | None,
    derivative: Float[Tensor, "A 2 n n"],
    X: Float[Tensor, "A n d"],
) -> Float[Tensor, "A 2 d"]:
    """d log evidence / d (w / l^2), half the sum over pairs of rows of M_ij (x_i - x_j)^2.

    That is sum_i (M 1)_i x_i^2 - x' M x for every column, which needs no table of differences.
    Rows that do not count are 0, and `inverse` and z are 0 between one of them and another.
    """
    weights = (inverse @ z[:, None, :, None])[..., 0]
    q = (weights * z[:, None]).sum(-1)
    share = (2 + _count(z, shown)[:, None]) / (2 + q)
    products = (share[..., None] * weights)[..., None] * weights[..., None, :]
    M = products.sub_(inverse).mul_(derivative)
    return M.sum(-1) @ X.square() - ((M @ X[:, None]) * X[:, None]).sum(-2)


def _count(z: Float[Tensor, "A n"], shown: Bool[Tensor, "A n"] | None) -> Float[Tensor, " A"]:
    return z.new_full((len(z),), z.shape[-1]) if shown is None else shown.sum(-1).to(z)


def _condition(
    K: Float[Tensor, "A k n n"], z: Float[Tensor, "A n"], shown: Bool[Tensor, "A n"] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log evidence, s, Cholesky factor and K^-1 z."""
    root = torch.linalg.cholesky(K)
    z = z[:, None].expand(K.shape[:-1])
    weights = torch.cholesky_solve(z[..., None], root)[..., 0]
    q = (z * weights).sum(-1)
    n = _count(z[:, 0], shown)[:, None]
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _evidence(q, log_det, n), (2 + q) / (2 + n), root, weights


def _evidence(q: Tensor, log_det: Tensor, n: Tensor) -> Tensor:
    return -log_det / 2 - (2 + n) / 2 * (2 + q).log()


def _add_noise(
    covariance: Float[Tensor, "A k n n"],
    ratio: Float[Tensor, "A k"],
    shown: Bool[Tensor, "A n"] | None,
) -> Float[Tensor, "A k n n"]:
    """Noise on the diagonal, in place; rows that do not count get variance 1 and change nothing."""
    noise = ratio[..., None]
    if shown is not None:
        noise = torch.where(shown[:, None], noise, 1.0)
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
    return covariance
