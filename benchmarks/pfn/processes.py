"""Gaussian processes, their scale mixtures and finite mixtures, as priors of tasks.

Each draws tasks by one batched Cholesky decomposition and knows the exact posterior predictive of
y at the queries of a task. Notation: K the covariance of y at the n context rows (that of f plus
the noise), k the cross-covariance with a query, L L' = K.

    Gaussian    mean k' K^-1 y, variance v = k(x, x) + noise - k' K^-1 k
    Student t   y = s g, g Gaussian, s^2 ~ InverseGamma(a, b): df 2a + n, the same location,
                squared scale v (2b + y' K^-1 y) / (2a + n)  (Shah et al. 2014, 1402.4306)
    mixture     a component c with weight w_c: the components' Gaussians with weights proportional
                to w_c N(y; 0, K_c)

The context size is drawn before the rows, so that small tasks are cheap: half the time uniform on
0 .. `max_context`, otherwise log-uniform. Boxes are centred at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, StudentT

from priors.tasks.task import Task

# Inputs [..., n, d] to the covariance of f, [..., n, n].
Covariance = Callable[[Tensor], Tensor]


def squared_distance(X: Tensor) -> Tensor:
    """Between all rows of `[..., n, d]`, by differences, so that coincident rows have 0 exactly."""
    return (X[..., :, None, :] - X[..., None, :, :]).square().sum(-1)


def rbf(X: Tensor, lengthscale: float | Tensor = 1.0) -> Tensor:
    """Squared exponential covariance of output scale 1; length scales broadcast with it."""
    return torch.exp(-0.5 * squared_distance(X) / lengthscale**2)


def matern52(X: Tensor, lengthscale: float | Tensor = 1.0) -> Tensor:
    """Matern 5/2 covariance of output scale 1; length scales broadcast with it."""
    return matern52_at(squared_distance(X).sqrt() / lengthscale)


def matern52_at(distance: Tensor) -> Tensor:
    """Matern 5/2 correlation at a distance in length scales."""
    r = math.sqrt(5) * distance
    return (1 + r + r.square() / 3) * torch.exp(-r)


@dataclass(frozen=True)
class Sizes:
    """Where inputs lie and how large tasks are.

    Attributes:
        features: Features d.
        sides: Sides of the boxes, one drawn for each task.
        max_context: Most context rows.
        queries: Query rows.
        log_share: Share of the batches whose context size is log-uniform instead of uniform.
        full: Draw `max_context` context rows always, as certificates need.
        normal: Inputs are standard normal instead, times the side.
        growing: Half the tasks have only their first features, a random number of them, the others
            being 0. The posterior given the inputs is the same function of them.
    """

    features: int = 1
    sides: tuple[float, ...] = (1.0,)
    max_context: int = 80
    queries: int = 24
    log_share: float = 0.5
    full: bool = False
    normal: bool = False
    growing: bool = False

    def draw(
        self, batch: int, generator: torch.Generator | None, device: torch.device | str | None
    ) -> tuple[Tensor, int]:
        """Inputs in float64 and the number of context rows."""
        uniform = torch.rand(2, generator=generator, device=device).tolist()
        n = int(uniform[1] * (self.max_context + 1))
        if uniform[0] < self.log_share:
            n = int(math.exp(uniform[1] * math.log(self.max_context + 2))) - 1
        n = min(n, self.max_context)
        if self.full:
            n = self.max_context
        sides = torch.tensor(self.sides, dtype=torch.float64, device=device)
        which = torch.randint(len(self.sides), (batch,), generator=generator, device=device)
        shape = (batch, n + self.queries, self.features)
        make = {"generator": generator, "device": device, "dtype": torch.float64}
        X = torch.randn(shape, **make) if self.normal else torch.rand(shape, **make) - 0.5
        if self.growing and not self.full:
            d = self.features
            active = torch.randint(1, 2 * d, (batch,), generator=generator, device=device)
            X = X * (torch.arange(d, device=device) < active[:, None, None])
        return X * sides[which, None, None], n


@dataclass(frozen=True)
class GaussianTasks:
    """Tasks of a Gaussian process, or of a Student t process.

    Attributes:
        covariance: Of f.
        noise_var: Variance of the noise.
        sizes: Inputs and rows.
        concentration: a of the inverse gamma law of the squared scale of f and noise, its rate
            being a - 1 so that its mean is 1; None for a Gaussian process.
        description: One line for a file.
    """

    covariance: Covariance
    noise_var: float
    sizes: Sizes = Sizes()
    concentration: float | None = None
    description: str = "Gaussian process"

    def full(self, sides: tuple[float, ...] | None = None) -> GaussianTasks:
        """Always with all context rows, in boxes of the given sides."""
        sizes = replace(self.sizes, full=True, sides=sides or self.sizes.sides)
        return replace(self, sizes=sizes)

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw tasks without their noise-free functions: networks learn y alone."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        X, n = self.sizes.draw(batch, generator, device)
        y = _gaussian(_noisy(self.covariance(X), self.noise_var), generator)
        scale = torch.ones(batch, dtype=X.dtype, device=X.device)
        if self.concentration is not None:
            a = self.concentration
            scale = _inverse_gamma(a, a - 1, batch, generator, X)
        y = y * scale.sqrt()[:, None]
        noise = (self.noise_var * scale).to(dtype)
        return Task(X.to(dtype), y.to(dtype)[..., None], None, noise, n)

    def reference(self, task: Task) -> Distribution:
        """Exact posterior predictive of y at the queries, batch shape `[B, m, 1]`."""
        n, X = task.num_context, task.X.double()
        mean, variance, quadratic, _ = condition(
            self.covariance(X), self.noise_var, task.y[:, :n, 0].double()
        )
        if self.concentration is None:
            return Normal(mean[..., None], variance.sqrt()[..., None])
        a, b = self.concentration, self.concentration - 1
        scale = variance * ((2 * b + quadratic) / (2 * a + n))[:, None]
        return StudentT(2 * a + n, mean[..., None], scale.sqrt()[..., None])


@dataclass(frozen=True)
class Component:
    """A Gaussian process of a mixture."""

    name: str
    covariance: Covariance
    noise_var: float


@dataclass(frozen=True)
class MixtureTasks:
    """Tasks of one of finitely many Gaussian processes, drawn with equal probability.

    Attributes:
        components: The processes.
        sizes: Inputs and rows.
        description: One line for a file.
    """

    components: tuple[Component, ...]
    sizes: Sizes = Sizes()
    description: str = "finite mixture of Gaussian processes"

    def full(self) -> MixtureTasks:
        """Always with all context rows."""
        return replace(self, sizes=replace(self.sizes, full=True))

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw tasks, the component being the latent "component"."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        X, n = self.sizes.draw(batch, generator, device)
        which = torch.randint(len(self.components), (batch,), generator=generator, device=device)
        K = X.new_zeros(batch, X.shape[1], X.shape[1])
        noise = X.new_zeros(batch)
        for c, component in enumerate(self.components):
            chosen = which == c
            if bool(chosen.any()):
                K[chosen] = _noisy(component.covariance(X[chosen]), component.noise_var)
                noise[chosen] = component.noise_var
        y = _gaussian(K, generator)
        latents = {"component": which}
        return Task(X.to(dtype), y.to(dtype)[..., None], None, noise.to(dtype), n, latents=latents)

    def conditionals(self, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Per component means and variances `[B, m, C]` and log marginal likelihoods `[B, C]`."""
        n, X = task.num_context, task.X.double()
        y = task.y[:, :n, 0].double()
        found = [condition(c.covariance(X), c.noise_var, y) for c in self.components]
        mean, variance, _, evidence = (
            torch.stack(part, dim=-1) for part in zip(*found, strict=True)
        )
        return mean, variance, evidence

    def reference(self, task: Task) -> Distribution:
        """Exact Bayes average over the components, batch shape `[B, m, 1]`."""
        mean, variance, evidence = self.conditionals(task)
        weights = Categorical(logits=evidence[:, None, None].expand(*mean.shape[:2], 1, -1))
        parts = Normal(mean[:, :, None], variance.sqrt()[:, :, None])
        return MixtureSameFamily(weights, parts)

    def best_component(self, task: Task) -> Distribution:
        """The component of the largest marginal likelihood alone."""
        mean, variance, evidence = self.conditionals(task)
        best = evidence.argmax(-1)[:, None, None].expand(*mean.shape[:2], 1)
        return Normal(mean.gather(-1, best), variance.gather(-1, best).sqrt())

    def true_component(self, task: Task) -> Distribution:
        """The component that the task was drawn from: what nobody can know."""
        mean, variance, _ = self.conditionals(task)
        true = task.latents["component"][:, None, None].expand(*mean.shape[:2], 1)
        return Normal(mean.gather(-1, true), variance.gather(-1, true).sqrt())


def _noisy(K: Tensor, noise_var: float | Tensor) -> Tensor:
    return K + noise_var * torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)


def _gaussian(K: Tensor, generator: torch.Generator | None) -> Tensor:
    root = torch.linalg.cholesky(K)
    shape = (*K.shape[:-1], 1)
    noise = torch.randn(shape, generator=generator, dtype=K.dtype, device=K.device)
    return (root @ noise)[..., 0]


def _inverse_gamma(
    a: float, b: float, batch: int, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """b / g, g ~ Gamma(a, 1); for a multiple of 1/2 by sums of squares."""
    if 2 * a != round(2 * a):
        raise ValueError(f"the concentration must be a multiple of 1/2, got {a}.")
    normal = torch.randn(
        batch, round(2 * a), generator=generator, dtype=like.dtype, device=like.device
    )
    return 2 * b / normal.square().sum(-1)


def condition(
    K: Tensor, noise_var: float | Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Condition Gaussian processes on the first n rows.

    Args:
        K: Covariance of f at all rows, `[B, n + m, n + m]`.
        noise_var: Variance of the noise, broadcasting with `[B, 1, 1]`.
        y: Targets of the first rows, `[B, n]`.

    Returns:
        Means and variances of y at the others, `[B, m]`; y' K^-1 y and the log marginal likelihood,
        `[B]`.
    """
    n = y.shape[-1]
    root = torch.linalg.cholesky(_noisy(K[:, :n, :n], noise_var))
    cross = torch.linalg.solve_triangular(root, K[:, :n, n:], upper=False)
    white = torch.linalg.solve_triangular(root, y[..., None], upper=False)
    mean = (cross.mT @ white)[..., 0]
    variance = K[:, n:, n:].diagonal(dim1=-2, dim2=-1) - cross.square().sum(1)
    variance = variance + torch.as_tensor(noise_var).to(K).reshape(-1, 1)
    quadratic = white.square().sum((1, 2))
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    evidence = -0.5 * quadratic - log_det - 0.5 * n * math.log(2 * math.pi)
    return mean, variance, quadratic, evidence
