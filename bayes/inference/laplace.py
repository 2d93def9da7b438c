"""Laplace's approximation: a Gaussian about the mode, of the curvature there.

Of a network, in whitened weights w ~ N(0, 1), the precision is I + J^T L J, the generalised
Gauss-Newton matrix (Martens 2020, 1412.1193; Daxberger et al. 2021, 2106.14806): J `[n k, D]` are
the derivatives of the outputs at the rows in the weights, L the negative second derivative of the
log likelihood in the outputs, of which negative curvature is left out. The likelihood's own
parameters are given the curvature of the density with the network held at its mode, and are
independent of the weights. Functions are then those of the linearised network

    f(w*) + J(x) (w - w*),

for which alone this Gaussian is right (Immer, Korzepa & Bauer 2021, 2008.08400): with the network
itself, draws of weights from it underfit.

Everything else with a density gets the curvature of the density itself over its unconstrained
numbers.

With n k < D the matrix is never formed: draws are e - J' (I + J J')^-1 (J e + e'), of the same law
(Matheron's rule), and its determinant is that of I + J J'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes.inference.ascent import polished, trained
from bayes.inference.draws import Draws, isolated
from bayes.inference.evaluation import Evaluation
from bayes.inference.kronecker import KroneckerFactors
from bayes.inference.log_density import HasParts, LogDensity
from bayes.inference.pyro_density import density_of
from bayes.inference.settings import check_settings

__all__ = ["Laplace"]

# Numbers of a block of derivatives of outputs in weights.
_BLOCK = 2**25


@dataclass(frozen=True)
class Laplace:
    """A Gaussian about the maximum a posteriori, with linearised functions.

    Exact for Bayesian linear regression with known noise.

    Attributes:
        weights: "all", or "last_layer": the others stay at the mode.
        structure: "full"; or "kronecker" or "diagonal", for more weights and rows than a matrix
            has room for. The first has a Kronecker product for each layer and none between them,
            and needs curvlinops-for-pytorch; the second is too wide where many weights share a
            task.
        num_draws: Draws that make the posterior; in pairs about the mode.
        num_starts: Modes that are sought; the highest is taken.
        num_training_steps: Gradient steps towards each, before a last search.
        learning_rate: Of Adam at the beginning; it falls to a hundredth, along a cosine.
        linearised: Whether predictions are those of the linearised network.
        seed: Of all random numbers.
        progress: Whether to show a bar.
    """

    weights: str = "all"
    structure: str = "full"
    num_draws: int = 256
    num_starts: int = 4
    num_training_steps: int = 1000
    learning_rate: float = 0.05
    linearised: bool = True
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.weights not in ("all", "last_layer"):
            raise ValueError(f'Laplace needs weights "all" or "last_layer", got {self.weights!r}.')
        if self.structure not in ("full", "kronecker", "diagonal"):
            raise ValueError(
                f'Laplace needs structure "full", "kronecker" or "diagonal", got '
                f"{self.structure!r}."
            )
        check_settings(
            self,
            at_least_one=("num_draws", "num_starts", "num_training_steps"),
            positive=("learning_rate",),
        )

    def run(self, model: Callable[[], object] | LogDensity, like: Tensor) -> Draws:
        """Find the mode and draw from the Gaussian about it.

        Args:
            model: A Pyro model without arguments, a `LogDensity`, or what has one.
            like: Gives dtype and device.

        Returns:
            One "chain" of independent draws, the log density at every step of the training as
            history, and, unless only the last layer is free, the estimate of the log evidence.

        Raises:
            RuntimeError: the density has no maximum, or is not curved downwards where it was
                found, or the precision cannot be factorised in this dtype.
            NotImplementedError: `weights="last_layer"` or `structure="kronecker"` of anything but
                a network; a network whose weights are not Gaussian or have variances that are
                drawn, or has layers without Kronecker factors.
            ImportError: `structure="kronecker"` without curvlinops-for-pytorch.
        """
        if self.weights != "all" and not isinstance(model, HasParts):
            raise NotImplementedError(
                'Laplace(weights="last_layer") needs a network with a last layer, as '
                'BayesianNetwork has; use weights="all" for other models.'
            )
        if self.structure == "kronecker" and not isinstance(model, HasParts):
            raise NotImplementedError(
                'Laplace(structure="kronecker") needs a network with layers, as BayesianNetwork '
                'has; use structure="full" for other models.'
            )
        if isinstance(model, HasParts) and not model.is_plain:
            raise NotImplementedError(
                "Laplace needs Gaussian weights of fixed variances; use ChEES(), "
                "LangevinEnsemble() or LowRank() with other weight priors."
            )
        with isolated(self.seed, like):
            density = density_of(model, like)
            generator = torch.Generator(like.device)
            generator.manual_seed(self.seed)
            mode, history = self._mode(density, generator, like)
            parts = (
                _of_network(model, mode, self)
                if isinstance(model, HasParts)
                else [(slice(None), _curvature(density, mode, self.structure))]
            )
            change = like.new_zeros(-(-self.num_draws // 2), len(mode))
            log_det = 0.0
            for where, part in parts:
                change[:, where] = part.draw(len(change), generator)
                log_det += part.log_det
            position = mode + torch.cat([change, -change])[: self.num_draws]
            with torch.no_grad():
                samples = density.constrain(position.unsqueeze(0))
                center = density.constrain(mode)
                height = float(density.function(mode.unsqueeze(0)))
        evidence = height + 0.5 * len(mode) * math.log(2 * math.pi) - 0.5 * log_det
        linearised = self.linearised and self.weights == "all" and isinstance(model, HasParts)
        return Draws(
            samples,
            {},
            history,
            center=center if linearised else None,
            log_evidence=evidence if self.weights == "all" else None,
        )

    def _mode(
        self, density: LogDensity, generator: torch.Generator, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        start = density.start(generator, self.num_starts, like)
        evaluation = Evaluation(density, compile=False)
        found, history = trained(
            evaluation,
            start,
            self.num_training_steps,
            self.learning_rate,
            name="Laplace",
            progress=self.progress,
        )
        value, _ = evaluation(found)
        value = torch.where(value.isfinite(), value, -torch.inf)
        best = found[int(value.argmax())].unsqueeze(0)
        if not bool(value.max().isfinite()):
            raise RuntimeError(
                "Laplace found no mode: the training diverged, and its parameters are no longer "
                "finite. Use a smaller learning_rate, or check that the density has a maximum."
            )
        return polished(density.function, best)[0], history


class _Gaussian:
    """N(0, P^-1), by its draws and log det P."""

    log_det: float

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """`[number, d]`."""
        raise NotImplementedError


class _Diagonal(_Gaussian):
    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self.log_det = float(precision.log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        normals = self.precision.new_empty(number, len(self.precision)).normal_(generator=generator)
        return normals * self.precision.rsqrt()


class _Dense(_Gaussian):
    def __init__(self, precision: Tensor) -> None:
        factor, failed = torch.linalg.cholesky_ex(precision)
        if bool(failed):
            raise RuntimeError(
                "Laplace: the log density is not curved downwards at the maximum that was found; "
                "it may lie at the edge of the support, or need more num_training_steps."
            )
        self.factor = factor
        self.log_det = float(2 * factor.diagonal().log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        normals = self.factor.new_empty(len(self.factor), number).normal_(generator=generator)
        return torch.linalg.solve_triangular(self.factor.mT, normals, upper=True).mT


class _Implicit(_Gaussian):
    """P = I + A^T A of more columns than rows."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        inner = rows @ rows.mT
        inner.diagonal().add_(1)
        self.factor, failed = torch.linalg.cholesky_ex(inner)
        if bool(failed):
            dtype = str(inner.dtype).removeprefix("torch.")
            raise RuntimeError(
                f"Laplace: the precision of the weights has no Cholesky factor in {dtype}; give "
                "training data in float64, or a likelihood with more noise."
            )
        self.log_det = float(2 * self.factor.diagonal().log().sum())

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        count, dimension = self.rows.shape
        first = self.rows.new_empty(number, dimension).normal_(generator=generator)
        second = self.rows.new_empty(number, count).normal_(generator=generator)
        missed = (first @ self.rows.mT + second).mT
        return first - torch.cholesky_solve(missed, self.factor).mT @ self.rows


def _curvature(density: LogDensity, mode: Tensor, structure: str) -> _Gaussian:
    """Of minus a log density."""

    def negative(position: Tensor) -> Tensor:
        return -density.function(position.unsqueeze(0))[0]

    precision = torch.func.hessian(negative)(mode).detach()
    precision = (precision + precision.mT) / 2
    if structure == "full":
        return _Dense(precision)
    diagonal = precision.diagonal()
    if not bool((diagonal > 0).all()):
        raise RuntimeError("Laplace: the log density is not curved downwards at its maximum.")
    return _Diagonal(diagonal)


def _of_network(
    model: HasParts, mode: Tensor, method: Laplace
) -> list[tuple[slice | Tensor, _Gaussian | KroneckerFactors]]:
    """Gaussians of the free weights and of the likelihood's parameters, with their places."""
    number = model.num_weights
    weights, parameters = mode[:number], mode[number:]
    free = torch.arange(number, device=mode.device)
    if method.weights == "last_layer":
        free = free[model.last_layer()]

    found: list[tuple[slice | Tensor, _Gaussian | KroneckerFactors]] = []
    if method.structure == "kronecker":
        root = _curvature_root(model, model.functions(mode).detach(), mode)
        for layer in model.kronecker_factors(mode, root):
            if bool(torch.isin(layer.places, free).all()):
                found.append((layer.places.flatten(), layer))
    else:
        found.append((free, _of_weights(model, mode, free, method.structure)))
    if len(parameters):
        with torch.no_grad():
            f = model.functions(mode)

        def negative(some: Tensor) -> Tensor:
            position = torch.cat([weights, some])
            return -(model.log_likelihood_of(f, position).sum() + model.log_prior(position))

        curvature = torch.func.hessian(negative)(parameters).detach()
        found.append((slice(number, None), _Dense((curvature + curvature.mT) / 2)))
    return found


def _of_weights(model: HasParts, mode: Tensor, free: Tensor, structure: str) -> _Gaussian:
    """Of the weights of these numbers."""
    weights, parameters = mode[: model.num_weights], mode[model.num_weights :]

    def of_row(some: Tensor, row: Tensor) -> Tensor:
        every = torch.cat([weights.index_copy(0, free, some), parameters])
        return model.functions(every, index=row.unsqueeze(0))[0]

    rows = _rooted(model, mode, of_row, weights[free], structure)
    if structure == "diagonal":
        return _Diagonal(1 + rows)
    if len(rows) < rows.shape[-1]:
        return _Implicit(rows)
    precision = rows.mT @ rows
    precision.diagonal().add_(1)
    return _Dense(precision)


def _rooted(
    model: HasParts,
    mode: Tensor,
    of_row: Callable[[Tensor, Tensor], Tensor],
    weights: Tensor,
    structure: str,
) -> Tensor:
    """A `[n k, D]` with A^T A = J^T L J, or, if diagonal, the diagonal of that, `[D]`."""
    f = model.functions(mode).detach()
    root = _curvature_root(model, f, mode)
    n, k = f.shape
    block = max(1, _BLOCK // (k * len(weights)))
    parts = []
    # row by row, whose derivatives pass through no other rows
    jacobians = torch.func.vmap(torch.func.jacrev(of_row), (None, 0))
    for rows in torch.arange(n, device=f.device).split(block):
        jacobian = jacobians(weights, rows)
        part = (root[rows].mT @ jacobian.detach()).flatten(0, 1)
        parts.append(part if structure == "full" else part.square().sum(0, keepdim=True))
    return torch.cat(parts) if structure == "full" else torch.cat(parts).sum(0)


def _curvature_root(model: HasParts, f: Tensor, mode: Tensor) -> Tensor:
    """R `[n, k, k]` with R R^T = minus the second derivative of each row's log likelihood in f."""

    curvature = -model.likelihood_hessian(f, mode).detach()
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
