"""Laplace's approximation: a Gaussian about the mode, of the curvature there.

Of a network, in whitened weights w ~ N(0, 1), the precision is I + J^T L J, the generalised
Gauss-Newton matrix (Martens 2020, 1412.1193; Daxberger et al. 2021, 2106.14806): J `[n k, D]` are
the derivatives of the outputs at the rows in the weights, L the curvature of minus the log
likelihood in the outputs, nowhere negative. The likelihood's own parameters, and variances of the
prior that are drawn by samplers, go where the evidence is largest, with the weights integrated out
(`evidence`); the former have its curvature there and are independent of the weights, the latter
stay there. Functions are then those of the linearised network

    f(w*) + J(x) (w - w*),

for which alone this Gaussian is right (Immer, Korzepa & Bauer 2021, 2008.08400): with the network
itself, draws of weights from it underfit.

Everything else with a density gets the curvature of the density itself over its unconstrained
numbers.
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
from bayes.inference.evidence import Evidence, blocks_of_rows, jacobian
from bayes.inference.kronecker import KroneckerFactors
from bayes.inference.log_density import HasParts, LogDensity
from bayes.inference.precisions import Dense, Diagonal, Gaussian, Implicit
from bayes.inference.pyro_density import density_of
from bayes.inference.settings import check_settings

__all__ = ["Laplace"]

# Rounds in which evidence and mode follow each other at most, the gain in nats that ends them, by
# how much logarithms move in one, and steps of the search for its mode.
_ROUNDS, _ENOUGH, _RADIUS, _FEW = 10, 0.01, 2.0, 50

_Parts = list[tuple[slice | Tensor, Gaussian | KroneckerFactors]]


@dataclass(frozen=True)
class Laplace:
    """A Gaussian about the maximum a posteriori, with linearised functions.

    Exact for Bayesian linear regression with known noise. Unknown noise is that of the largest
    evidence, and so are the layer variances of a model with `learn_variances`; both need the
    derivatives of all n k outputs in all weights at once, whichever weights are free.

    Attributes:
        weights: "all", or "last_layer": the others stay at the mode.
        structure: "full"; or "kronecker" or "diagonal", for more weights and rows than a matrix
            has room for. The first has a Kronecker product for each layer and none between them,
            and needs curvlinops-for-pytorch; the second is too wide where many weights share a
            task. With either, unknown noise stays at the mode of weights and noise together, which
            is too low, and layer variances are not learnt.
        num_draws: Draws that make the posterior; in pairs about the mode.
        num_starts: Modes that are sought; the highest is taken.
        num_training_steps: Gradient steps towards each, before a last search; where there is
            noise or a variance to learn, as many again at most from the highest.
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
                a network; a network whose weights are not Gaussian or whose length scales are
                drawn, or, unless the structure is "full", its variances, or that has layers
                without Kronecker factors.
            ImportError: `structure="kronecker"` without curvlinops-for-pytorch.
        """
        self._check(model)
        with isolated(self.seed, like):
            density = density_of(model, like)
            generator = torch.Generator(like.device)
            generator.manual_seed(self.seed)
            mode, history = self._mode(model, density, generator, like)
            with torch.no_grad():
                height = float(density.function(mode.unsqueeze(0)))
            parts: _Parts
            if isinstance(model, HasParts):
                parts, log_det = _of_network(model, mode, self)
            else:
                found = _curvature(density, mode, self.structure)
                parts, log_det = [(slice(None), found)], found.log_det
            change = like.new_zeros(-(-self.num_draws // 2), len(mode))
            for where, part in parts:
                change[:, where] = part.draw(len(change), generator)
            position = mode + torch.cat([change, -change])[: self.num_draws]
            with torch.no_grad():
                samples = density.constrain(position.unsqueeze(0))
                center = density.constrain(mode)
        evidence = height + 0.5 * len(mode) * math.log(2 * math.pi) - 0.5 * log_det
        linearised = self.linearised and self.weights == "all" and isinstance(model, HasParts)
        return Draws(
            samples,
            {},
            history,
            center=center if linearised else None,
            log_evidence=evidence if self.weights == "all" else None,
        )

    def _check(self, model: object) -> None:
        """Refuse what these settings cannot approximate."""
        network = isinstance(model, HasParts)
        if self.weights != "all" and not network:
            raise NotImplementedError(
                'Laplace(weights="last_layer") needs a network with a last layer, as '
                'BayesianNetwork has; use weights="all" for other models.'
            )
        if self.structure == "kronecker" and not network:
            raise NotImplementedError(
                'Laplace(structure="kronecker") needs a network with layers, as BayesianNetwork '
                'has; use structure="full" for other models.'
            )
        if not isinstance(model, HasParts):
            return
        if not model.is_gaussian:
            raise NotImplementedError(
                "Laplace needs Gaussian weights and fixed length scales; use ChEES(), "
                "LangevinEnsemble() or LowRank() with other weight priors."
            )
        if model.num_variances and self.structure != "full":
            raise NotImplementedError(
                f'Laplace(structure="{self.structure}") needs fixed variances of the weights; '
                'structure="full" learns them.'
            )

    def _mode(
        self,
        model: Callable[[], object] | LogDensity,
        density: LogDensity,
        generator: torch.Generator,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The highest mode `[d]`, and the log density at every step of the training."""
        start = density.start(generator, self.num_starts, like, of_ascent=True)
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
        mode = polished(evaluation, best)
        full = self.structure == "full"
        if isinstance(model, HasParts) and full and mode.shape[-1] > model.num_weights:
            held = Evaluation(_held(density, model.num_weights), compile=False)
            return self._of_largest_evidence(model, held, mode), history
        return mode[0], history

    def _of_largest_evidence(
        self, model: HasParts, evaluation: Evaluation, position: Tensor
    ) -> Tensor:
        """A mode near that of all numbers, with what is not a weight where the evidence is larger.

        Args:
            model: The network.
            evaluation: Of a density whose gradient moves weights alone.
            position: Where to begin, `[1, d]`.
        """
        evidence = Evidence(model, position[0])
        radius = _RADIUS
        for _ in range(_ROUNDS):
            moved, _ = trained(
                evaluation,
                evidence.position_at(evidence.improved(radius)).unsqueeze(0),
                -(-self.num_training_steps // _ROUNDS),
                self.learning_rate / _ROUNDS,
                name="evidence",
                progress=False,
            )
            moved = polished(evaluation, moved, num_steps=_FEW)
            found = Evidence(model, moved[0])
            gain = found.here() - evidence.here()
            if gain > 0:
                evidence = found
            else:
                radius /= 4
            if abs(gain) < _ENOUGH or radius < _RADIUS / 50:
                break
        return polished(evaluation, evidence.position.unsqueeze(0))[0]


def _held(density: LogDensity, number: int) -> LogDensity:
    """The same density, whose gradient leaves all but the first numbers where they are."""

    def function(position: Tensor) -> Tensor:
        first, others = position[:, :number], position[:, number:].detach()
        return density.function(torch.cat([first, others], dim=-1))

    return LogDensity(function, density.dimension)


def _free(model: HasParts, weights: str, like: Tensor) -> Tensor:
    """Numbers of the weights that are not held at the mode."""
    every = torch.arange(model.num_weights, device=like.device)
    return every if weights == "all" else every[model.last_layer()]


def _curvature(density: LogDensity, mode: Tensor, structure: str) -> Gaussian:
    """Of minus a log density."""

    def negative(position: Tensor) -> Tensor:
        return -density.function(position.unsqueeze(0))[0]

    precision = torch.func.hessian(negative)(mode).detach()
    precision = (precision + precision.mT) / 2
    if structure == "full":
        return Dense(precision)
    diagonal = precision.diagonal()
    if not bool((diagonal > 0).all()):
        raise RuntimeError("Laplace: the log density is not curved downwards at its maximum.")
    return Diagonal(diagonal)


def _of_network(model: HasParts, mode: Tensor, method: Laplace) -> tuple[_Parts, float]:
    """Gaussians of weights and of the likelihood's parameters, and log det of all precisions."""
    free = _free(model, method.weights, mode)
    found: _Parts = []
    if method.structure == "kronecker":
        root = _curvature_root(model, model.functions(mode).detach(), mode)
        for layer in model.kronecker_factors(mode, root):
            if bool(torch.isin(layer.places, free).all()):
                found.append((layer.places.flatten(), layer))
    else:
        found.append((free, _of_weights(model, mode, free, method.structure)))
    log_det = sum(part.log_det for _, part in found)
    number = model.num_weights
    if len(mode) == number:
        return found, log_det
    if method.structure == "full":
        precision = Evidence(model, mode).precision()
    else:
        precision = _of_parameters(model, mode)
    log_det += Dense(precision).log_det
    if own := len(mode) - number - model.num_variances:  # given the variances, which stay
        found.append((slice(len(mode) - own, None), Dense(precision[-own:, -own:])))
    return found, log_det


def _of_parameters(model: HasParts, mode: Tensor) -> Tensor:
    """Precision of the likelihood's parameters with the weights held, `[p, p]`."""
    weights, parameters = mode[: model.num_weights], mode[model.num_weights :]
    with torch.no_grad():
        f = model.functions(mode)

    def negative(some: Tensor) -> Tensor:
        position = torch.cat([weights, some])
        return -(model.log_likelihood_of(f, position).sum() + model.log_prior(position))

    precision = torch.func.hessian(negative)(parameters).detach()
    return (precision + precision.mT) / 2


def _of_weights(model: HasParts, mode: Tensor, free: Tensor, structure: str) -> Gaussian:
    """Of the weights of these numbers."""
    rows = _rooted(model, mode, free, structure)
    if structure == "diagonal":
        return Diagonal(1 + rows)
    if len(rows) < rows.shape[-1]:
        return Implicit(rows)
    precision = rows.mT @ rows
    precision.diagonal().add_(1)
    return Dense(precision)


def _rooted(model: HasParts, mode: Tensor, free: Tensor, structure: str) -> Tensor:
    """A `[n k, F]` with A^T A = J^T L J, or, if diagonal, the diagonal of that, `[F]`."""
    f = model.functions(mode).detach()
    root = _curvature_root(model, f, mode)
    parts = []
    for rows in blocks_of_rows(model, f.shape[-1], free):
        part = (root[rows].mT @ jacobian(model, mode, free, rows)).flatten(0, 1)
        parts.append(part if structure == "full" else part.square().sum(0, keepdim=True))
    return torch.cat(parts) if structure == "full" else torch.cat(parts).sum(0)


def _curvature_root(model: HasParts, f: Tensor, mode: Tensor) -> Tensor:
    """R `[n, k, k]` with R R^T = the curvature of each row's likelihood in f."""
    curvature = model.likelihood_curvature(f, mode).detach()
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
