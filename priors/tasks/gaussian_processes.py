"""Gaussian processes whose kernel is itself random: smoothness, structure, infinite networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.randomness import RandomSource
from priors.tasks.annealing import AnnealedSampler, gaussian_average
from priors.tasks.base import LatentTaskPrior, relevance, scaled_variance
from priors.tasks.grouping import groups, members
from priors.tasks.networks import draw_networks, network_covariance
from priors.tasks.oracles import gaussian_oracle
from priors.tasks.stationary import STATIONARY, stationary
from priors.tasks.task import Task
from priors.tasks.validation import check_at_least, check_probabilities

__all__ = ["FORMS", "RandomKernelTaskPrior"]

FORMS = ("radial", "additive", "linear", "network")
JITTER = {torch.float64: 1e-7, torch.float32: 1e-6}  # parts of the variance
MAX_ADDITIVE = 6
CACHED = 2**18  # elements of one matrix


@dataclass(frozen=True)
class RandomKernelTaskPrior(LatentTaskPrior):
    """Gaussian processes with random kernels.

    A kernel has one, two or three components, weighted and summed or multiplied. Each is of one
    of four forms, with its own relevances of the features, some of which are 0:

    * radial: a function of the scaled distance: Matern 1/2, 3/2, 5/2, squared exponential, or
      rational quadratic of random exponent; some features may enter periodically, as the point
      (cos, sin) on a circle;
    * additive: the weighted mean of such one-dimensional kernels of up to six features;
    * linear; a product of two is quadratic;
    * network: the NNGP kernel of an infinitely wide network; see `priors.tasks.networks`.

    Every component has variance 1 at inputs of unit variance, so f has variance about 1. With a
    `scale_concentration` a, f and noise are multiplied by a random scale whose square is inverse
    gamma with mean 1: Student-t processes of 2a degrees of freedom.

    A draw costs a Cholesky decomposition of N rows for each task, or for each `functions` tasks.

    Attributes:
        size: How large tasks are.
        inputs: How inputs are drawn.
        noise: Noise of the targets; see `LatentTaskPrior`.
        form_weights: Relative probabilities of `FORMS`.
        periodic: Probability that a radial or additive component has periodic features.
        max_components: Most components of a kernel, 1 to 3.
        scale_concentration: Of the inverse gamma law: a multiple of 1/2 above 1; None for no scale.
        functions: Tasks of one call that share inputs and kernel, and so a decomposition. Each
            has the law that it would have alone.
        precision: "double" or "single" precision of the draws. Single needs more jitter, 1e-6 of
            the variance in most tasks and up to 1e-4 in smooth ones, and is for training on a GPU:
            it is less than the least variance of `RandomNoise`.
    """

    form_weights: tuple[float, ...] = (5.0, 1.5, 1.5, 2.0)
    periodic: float = 0.15
    max_components: int = 3
    scale_concentration: float | None = None
    functions: int = 1
    precision: str = "double"

    def __post_init__(self) -> None:
        if len(self.form_weights) != len(FORMS) or min(self.form_weights) < 0:
            raise ValueError(
                f"form_weights must have one weight >= 0 for each of {FORMS}, got "
                f"{self.form_weights}."
            )
        if sum(self.form_weights) <= 0:
            raise ValueError("form_weights must have a positive weight.")
        check_probabilities(self, "periodic")
        check_at_least(self, functions=1)
        if self.precision not in ("double", "single"):
            raise ValueError(f"precision must be 'double' or 'single', got {self.precision!r}.")
        if not 1 <= self.max_components <= 3:
            raise ValueError(f"max_components must be 1, 2 or 3, got {self.max_components}.")
        a = self.scale_concentration
        if a is not None and (a <= 1 or 2 * a != round(2 * a)):
            raise ValueError(f"scale_concentration must be a multiple of 1/2 above 1, got {a}.")

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        kind = "GPs" if self.scale_concentration is None else "Student-t processes"
        return (
            f"{kind} with random kernels, those of infinite networks among them, "
            f"{self.size.description} (priors.RandomKernelTaskPrior)"
        )

    def draw(
        self, draws: RandomSource, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, functions and the kernels' hyperparameters."""
        kernels = -(-batch // self.functions)
        X = self.inputs.draw(draws, kernels, points, features)
        latents = self._draw_kernels(draws, kernels, features)
        noise = draws.normal(kernels, points, self.functions * outputs)
        F = torch.empty_like(noise)
        pairs = _Pairs(points, X.device)
        for part in _parts(X):
            lower = _lower_covariance(X[part], _of(latents, part), pairs)
            F[part] = _root(lower) @ noise[part]
        if self.functions == 1:
            return X, F, latents
        # [kernels, points, functions * outputs] -> [kernels * functions, points, outputs]
        F = F.unflatten(-1, (self.functions, outputs)).movedim(2, 1).flatten(0, 1)[:batch]
        which = torch.arange(batch, device=X.device) // self.functions
        return X[which], F, _of(latents, which)

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context *and its hyperparameters*.

        It is given what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior.
        """
        return gaussian_oracle(task, self.covariance(task.X.double(), task.latents))

    def annealed(self, task: Task, sampler: AnnealedSampler | None = None) -> PredictivePosterior:
        """Posterior of y at the queries of `task` given its context, by sampling hyperparameters.

        It is given the prior and the context only, so that the gap to it is a lower bound of the
        gap to the exact posterior, and close to it if the sampler runs long.

        Args:
            task: Drawn from this prior.
            sampler: How long to sample; `AnnealedSampler()` if None.

        Raises:
            ValueError: there is no noise, or it has outliers: the likelihood is not Gaussian.
        """
        noise = self.noise
        if noise is None or noise.outliers > 0:
            raise ValueError("The sampler needs Gaussian noise; use RandomNoise(outliers=0).")
        particles = AnnealedSampler() if sampler is None else sampler
        X = task.X.double().repeat_interleave(particles.particles, 0)

        def program(draws: RandomSource, rows: int) -> dict[str, Tensor]:
            latents = self._draw_kernels(draws, rows, X.shape[-1])
            noise_var = scaled_variance(noise.draw_variance(draws, X), latents)
            return {**latents, "noise_var": noise_var}

        return gaussian_average(task, program, self.covariance, particles)

    def covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of f at `X` `[B, N, d]` given the latents of the tasks, `[B, N, N]`."""
        out = X.new_empty(X.shape[0], X.shape[1], X.shape[1])
        pairs = _Pairs(X.shape[1], X.device)
        for part in _parts(X):
            out[part] = _lower_covariance(X[part], _of(latents, part), pairs)
        return out.tril() + out.tril(-1).mT

    def _draw_kernels(self, draws: RandomSource, batch: int, features: int) -> dict[str, Tensor]:
        C = self.max_components
        weights = torch.tensor(self.form_weights, dtype=draws.dtype, device=draws.device)
        bounds = (weights / weights.sum()).cumsum(0)
        form = torch.searchsorted(bounds, draws.uniform(batch, C), right=True).clamp(
            max=len(FORMS) - 1
        )
        count = torch.searchsorted(
            torch.tensor([0.5, 0.8], dtype=draws.dtype, device=draws.device)[: C - 1],
            draws.uniform(batch, 1),
        )
        active = torch.arange(C, device=draws.device) <= count
        share = (draws.uniform(batch, C) + 0.05) * active
        relevant = relevance(draws, batch, C, features)
        # An additive component is of a few features.
        order = (draws.uniform(batch, C, features) * (relevant > 0)).argsort(-1, descending=True)
        few = order.argsort(-1) < MAX_ADDITIVE
        relevant = relevant * (few | (form != FORMS.index("additive"))[..., None])
        # Typical distances grow as the root of the number of relevant features.
        reach = relevant.sum(-1, keepdim=True) / relevant.amax(-1, keepdim=True)
        ell = 0.5 * reach.sqrt() * torch.exp(0.8 * draws.normal(batch, C, 1))
        periodic = draws.bernoulli(self.periodic, batch, C, 1)
        periodic = periodic & draws.bernoulli(draws.uniform(batch, C, 1), batch, C, features)
        latents = {
            "share": share / share.sum(-1, keepdim=True),
            "product": draws.bernoulli(0.3, batch),
            "form": form,
            "relevance": relevant / relevant.sum(-1, keepdim=True),
            "inverse_lengthscale": (relevant / relevant.amax(-1, keepdim=True)).sqrt() / ell,
            "frequency": draws.log_uniform(0.5, 5.0, batch, C, features) * periodic,
            "smoothness": draws.integers(len(STATIONARY), batch, C),
            "exponent": draws.log_uniform(0.2, 5.0, batch, C),
            **draw_networks(draws, batch, C),
        }
        if self.scale_concentration is not None:
            a = self.scale_concentration
            latents["scale"] = (a - 1) / draws.gamma(a, batch).clamp_min(1e-3)
        return latents

    def _working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if self.precision == "double" else torch.float32


def _parts(X: Tensor) -> list[slice]:
    """Tasks to be computed together: on a CPU few, whose matrices stay in the cache."""
    B, N, _ = X.shape
    step = max(1, CACHED // N**2) if X.device.type == "cpu" else B
    return [slice(start, start + step) for start in range(0, B, step)]


def _of(latents: dict[str, Tensor], tasks: slice | Tensor) -> dict[str, Tensor]:
    return {name: value[tasks] for name, value in latents.items()}


def _root(lower: Tensor) -> Tensor:
    """Cholesky root of the covariance `[A, N, N]`, with as much jitter as each of them needs.

    The jitter is added in place.
    """
    diagonal = lower.diagonal(dim1=-2, dim2=-1)
    jitter = JITTER[lower.dtype] * diagonal.mean(-1, keepdim=True)
    diagonal += jitter
    root, info = torch.linalg.cholesky_ex(lower)
    for power in range(1, 6):
        if not bool(info.any()):
            return root
        failed = info.nonzero()[:, 0]
        again = lower[failed]
        again.diagonal(dim1=-2, dim2=-1).add_(10**power * jitter[failed])
        root[failed], info[failed] = torch.linalg.cholesky_ex(again)
    if bool(info.any()):
        raise RuntimeError("A random covariance is not positive definite; this is a bug.")
    return root


class _Pairs:
    """Pairs of rows, every one once: covariances are computed as vectors of the lower triangle."""

    def __init__(self, points: int, device: torch.device) -> None:
        self.points = points
        self.rows, self.columns = torch.tril_indices(points, points, device=device)
        self.index = self.rows * points + self.columns

    def of(self, matrix: Tensor) -> Tensor:
        """Elements of `[A, N, N]`, `[A, P]`."""
        return matrix.flatten(1).index_select(1, self.index)

    def matrix(self, values: Tensor) -> Tensor:
        """Inverse of `of`, with 0 above the diagonal."""
        flat = values.new_zeros(len(values), self.points**2)
        return flat.index_copy_(1, self.index, values).unflatten(1, (self.points, self.points))

    def distances(self, points: Tensor) -> Tensor:
        """Squared distances of the rows of `[A, N, k]`, `[A, P]`."""
        dtype, points = points.dtype, points.double()  # small ones are differences of large numbers
        squares = points.square().sum(-1)
        full = torch.baddbmm(squares[:, None, :], points, points.mT, alpha=-2.0)
        full += squares[:, :, None]
        full.diagonal(dim1=-2, dim2=-1).zero_()
        return self.of(full).clamp_(min=0).to(dtype)


def _lower_covariance(X: Tensor, latents: dict[str, Tensor], pairs: _Pairs) -> Tensor:
    """Lower triangle of the covariance of f, `[B, N, N]`, all tasks at once."""
    B = len(X)
    out = X.new_empty(B, len(pairs.index))
    for index in range(latents["share"].shape[1]):
        own = {name: v[:, index] if v.dim() > 1 else v for name, v in latents.items()}
        kind = torch.where(own["share"] > 0, own["form"], -1)
        for form, which in zip(FORMS, groups(kind, len(FORMS)), strict=True):
            if not len(which):
                continue
            chosen = _of(own, which)
            new = _component(form, X if len(which) == B else X[which], chosen, pairs)
            new *= torch.where(chosen["product"], 1.0, chosen["share"])[:, None]
            if index > 0:
                old = out if len(which) == B else out[which]
                for multiply, alike in enumerate(groups(chosen["product"], 2)):
                    if len(alike) == len(which):
                        new = new.mul_(old) if multiply else new.add_(old)
                    elif len(alike):
                        a, b = new[alike], old[alike]
                        new[alike] = a.mul_(b) if multiply else a.add_(b)
            if len(which) == B:
                out = new
            else:
                out[which] = new
    if "scale" in latents:
        out *= latents["scale"][:, None]
    return pairs.matrix(out)


def _component(form: str, X: Tensor, latents: dict[str, Tensor], pairs: _Pairs) -> Tensor:
    """Unit-variance covariances of A components at `X` `[A, N, d]`, `[A, P]`."""
    weights = latents["relevance"]
    if form == "radial":
        return _radial(pairs.distances(_embedded(X, latents).flatten(-2)), latents)
    if form == "additive":
        points = _embedded(X, latents)
        total = X.new_zeros(len(X), len(pairs.index))
        for j, used in enumerate(members(weights.mT > 0)):
            if len(used):
                own = {name: latents[name][used] for name in ("smoothness", "exponent")}
                part = _radial(pairs.distances(points[used, :, j]), own)
                part.mul_(weights[used, j, None])
                total = total.add_(part) if len(used) == len(X) else total.index_add_(0, used, part)
        return total
    full = (X * weights[:, None]) @ X.mT
    products = pairs.of(full)
    if form == "linear":
        return products
    squares = full.diagonal(dim1=-2, dim2=-1)
    return network_covariance(products, (pairs.rows, pairs.columns), squares, latents)


def _embedded(X: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Points of the plane for every feature, `[A, N, d, 2]`, in units of the length scale.

    (x, 0), or where the feature is periodic the point of a circle on which arc length is x.
    """
    frequency = latents["frequency"][:, None]
    periodic = frequency > 0
    radius = torch.where(periodic, 1 / frequency, 1.0)
    angle = X * frequency
    first = torch.where(periodic, radius * torch.sin(angle), X)
    second = torch.where(periodic, radius * torch.cos(angle), 0.0)
    return torch.stack([first, second], -1) * latents["inverse_lengthscale"][:, None, :, None]


def _radial(r2: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Unit-variance kernels of the squared scaled distance, in its place."""
    alike = groups(latents["smoothness"], len(STATIONARY))
    for name, which in zip(STATIONARY, alike, strict=True):
        if len(which) == len(r2):
            return stationary(name, r2, latents["exponent"])
        if len(which):
            r2[which] = stationary(name, r2[which], latents["exponent"][which])
    return r2
