"""Gaussian processes whose kernel is itself random: smoothness, structure, infinite networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from priors.draws import Draws
from priors.latent_tasks import LatentTaskPrior, gaussian_oracle, relevance
from priors.network_tasks import draw_networks, network_covariance
from priors.posterior import GaussianPosterior
from priors.tasks import Task

__all__ = ["FORMS", "RandomKernelTaskPrior", "SMOOTHNESS"]

SMOOTHNESS = ("matern12", "matern32", "matern52", "rbf", "rq")
FORMS = ("radial", "additive", "linear", "network")
JITTER = 1e-7
MAX_ADDITIVE = 6
CACHED = 2**20  # elements of one matrix


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
    * network: the NNGP kernel of an infinitely wide network; see `priors.network_tasks`.

    Every component has variance 1 at inputs of unit variance, so f has variance about 1. With a
    `scale_concentration` a, f and noise are multiplied by a random scale whose square is inverse
    gamma with mean 1: Student-t processes of 2a degrees of freedom.

    A draw costs a Cholesky decomposition of N rows in float64 for each task.

    Attributes:
        size: How large tasks are.
        inputs: Where inputs lie.
        noise: Noise of the targets; see `LatentTaskPrior`.
        form_weights: Relative probabilities of `FORMS`.
        periodic: Probability that a radial or additive component has periodic features.
        max_components: Most components of a kernel, 1 to 3.
        scale_concentration: Of the inverse gamma, a multiple of 1/2 above 1; None for no scale.
    """

    form_weights: tuple[float, ...] = (5.0, 1.5, 1.5, 2.0)
    periodic: float = 0.15
    max_components: int = 3
    scale_concentration: float | None = None

    def __post_init__(self) -> None:
        if len(self.form_weights) != len(FORMS) or min(self.form_weights) < 0:
            raise ValueError(
                f"form_weights has a weight >= 0 for each of {FORMS}, got {self.form_weights}."
            )
        if sum(self.form_weights) <= 0:
            raise ValueError("form_weights must have a positive weight.")
        if not 0 <= self.periodic <= 1:
            raise ValueError(f"periodic is a probability, got {self.periodic}.")
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
        self, draws: Draws, batch: int, points: int, features: int, outputs: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, functions and the kernels' hyperparameters."""
        X = self.inputs.draw(draws, batch, points, features)
        latents = self._draw_kernels(draws, batch, features)
        covariance = self.covariance(X, latents)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        diagonal += JITTER * diagonal.mean(-1, keepdim=True)
        root, info = torch.linalg.cholesky_ex(covariance)
        if bool(info.any()):
            root = psd_safe_cholesky(covariance)
        return X, root @ draws.normal(batch, points, outputs), latents

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context *and its hyperparameters*.

        It knows what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior.
        """
        return gaussian_oracle(task, self.covariance(task.X.double(), task.latents))

    def covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of f at `X` `[B, N, d]` given the latents of the tasks, `[B, N, N]`."""
        B, N, _ = X.shape
        # On a CPU a few matrices at a time stay in the cache, which is several times faster.
        step = B if X.is_cuda else max(1, CACHED // N**2)
        out = X.new_empty(B, N, N)
        for start in range(0, B, step):
            part = slice(start, start + step)
            chosen = {name: value[part] for name, value in latents.items()}
            out[part] = _covariance(X[part], chosen)
        return out

    def _draw_kernels(self, draws: Draws, batch: int, features: int) -> dict[str, Tensor]:
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
            "smoothness": draws.integers(len(SMOOTHNESS), batch, C),
            "exponent": draws.log_uniform(0.2, 5.0, batch, C),
            **draw_networks(draws, batch, C),
        }
        if self.scale_concentration is not None:
            a = self.scale_concentration
            latents["scale"] = (a - 1) / draws.gamma(a, batch).clamp_min(1e-3)
        return latents

    def _working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64  # the covariance of a smooth function is singular in float32


def _covariance(X: Tensor, latents: dict[str, Tensor]) -> Tensor:
    shares, product = latents["share"], latents["product"]
    task, component = (shares > 0).nonzero().unbind(1)
    flat = {
        name: value[task, component]
        for name, value in latents.items()
        if name not in ("share", "product", "scale")
    }
    parts = _components(X[task], flat)
    parts *= torch.where(product[task], 1.0, shares[task, component])[:, None, None]
    out = parts[component == 0]
    for index in range(1, shares.shape[1]):
        for multiply in (False, True):
            chosen = ((component == index) & (product[task] == multiply)).nonzero()[:, 0]
            if len(chosen):
                old, new = out[task[chosen]], parts[chosen]
                out[task[chosen]] = old * new if multiply else old + new
    if "scale" in latents:
        out *= latents["scale"][:, None, None]
    return out


def _components(X: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Unit-variance covariances of A components at `X` `[A, N, d]`, `[A, N, N]`."""
    out = X.new_empty(0, 0, 0)
    for index, form in enumerate(FORMS):
        which = (latents["form"] == index).nonzero()[:, 0]
        if len(which):
            chosen = {name: value[which] for name, value in latents.items()}
            part = _component(form, X[which], chosen)
            if len(which) == len(X):
                return part
            if not len(out):
                out = X.new_empty(X.shape[0], X.shape[1], X.shape[1])
            out[which] = part
    return out


def _component(form: str, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
    weights = latents["relevance"]
    if form == "radial":
        return _radial(_square_distances(_embedded(X, latents).flatten(-2)), latents)
    if form == "additive":
        points = _embedded(X, latents)
        total = X.new_zeros(X.shape[0], X.shape[1], X.shape[1])
        for j in range(X.shape[-1]):
            used = (weights[:, j] > 0).nonzero()[:, 0]
            if len(used):
                own = {name: latents[name][used] for name in ("smoothness", "exponent")}
                part = _radial(_square_distances(points[used, :, j]), own)
                total[used] += part.mul_(weights[used, j, None, None])
        return total
    products = (X * weights[:, None]) @ X.mT
    return products if form == "linear" else network_covariance(products, latents)


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


def _square_distances(points: Tensor) -> Tensor:
    """Between all pairs of rows of `[A, N, k]`, `[A, N, N]`, 0 on the diagonal."""
    squares = points.square().sum(-1)
    out = torch.baddbmm(squares[:, None, :], points, points.mT, alpha=-2.0)
    out += squares[:, :, None]
    out.clamp_(min=0).diagonal(dim1=-2, dim2=-1).zero_()
    return out


def _radial(r2: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Unit-variance kernels of the squared scaled distance; Rasmussen & Williams 2006, 4.2.

    In place where it can be: memory is most of the cost.
    """
    smoothness = latents["smoothness"]
    for index, name in enumerate(SMOOTHNESS):
        which = (smoothness == index).nonzero()[:, 0]
        if len(which) == len(r2):
            return _radial_of(name, r2, latents["exponent"])
        if len(which):
            r2[which] = _radial_of(name, r2[which], latents["exponent"][which])
    return r2


def _radial_of(name: str, r2: Tensor, exponent: Tensor) -> Tensor:
    match name:
        case "matern12":
            return r2.sqrt_().neg_().exp_()
        case "matern32":
            s = r2.mul_(3).sqrt_()
            decay = s.neg().exp_()
            return s.add_(1).mul_(decay)
        case "matern52":
            s = r2.mul(5).sqrt_()
            r2.mul_(5 / 3).add_(s).add_(1)
            return r2.mul_(s.neg_().exp_())
        case "rbf":
            return r2.mul_(-0.5).exp_()
        case "rq":
            a = exponent[:, None, None]
            return r2.div_(2 * a).log1p_().mul_(-a).exp_()
    raise ValueError(f"unknown smoothness {name!r}, known are {SMOOTHNESS}.")
