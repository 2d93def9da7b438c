"""Two priors whose posteriors are known by sampling, and samplers without shortcuts.

Both are written in standard normal coordinates z, one vector for each data set:

    GP       log lengthscale, log outputscale, log noise variance = LOG_MEAN + LOG_STD z;
             Matern 5/2 with unit-free inputs, uniform on [0, 1]^d
    network  weights = prior std * z (NTK parametrisation, tanh), last coordinate the log of the
             noise variance; inputs standard normal

Every sampler targets N(z; 0, I) p(y | X, z), the data observed, and its prediction is the average
of the predictive *densities* of its draws. Three ways: Hamiltonian Monte Carlo with all chains in
one batch (`hmc`), quadrature on a grid (`grid`, the GP only, exact up to its spacing), and NUTS of
Pyro through `bayes.NUTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.pfn.processes import matern52_at
from priors import NetworkPrior
from priors.tasks.task import Task

__all__ = ["GPTasks", "Hmc", "NetworkTasks", "grid", "hmc", "mixture_nll"]

LOG_MEAN = (math.log(0.25), 0.0, math.log(0.03))
LOG_STD = (0.6, 0.6, 1.0)


@dataclass(frozen=True)
class GPTasks:
    """Data sets of Gaussian processes with random hyperparameters; a task prior.

    Attributes:
        features: d.
        max_context: Most context rows; their number is uniform on 1 .. max_context.
        queries: Query rows of a task.
        fixed: Always `max_context` context rows.
    """

    features: int = 1
    max_context: int = 40
    queries: int = 32
    fixed: bool = False
    size = 3

    @property
    def description(self) -> str:
        """One line for a file."""
        return (
            f"GP, Matern 5/2, {self.features} features, up to {self.max_context} rows, lognormal "
            f"lengthscale, outputscale, noise variance {LOG_MEAN} +- {LOG_STD}"
        )

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw tasks."""
        n = _context(self.max_context, self.fixed, generator)
        rows = n + self.queries

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float64)

        X = torch.rand(
            batch, rows, self.features, generator=generator, device=device, dtype=torch.float64
        )
        z = normal(batch, 3)
        lengthscale, outputscale, noise = hyperparameters(z)
        root = torch.linalg.cholesky(_with_noise(matern(X, X, lengthscale, outputscale), noise))
        y = root @ normal(batch, rows, 1)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return Task(X.to(dtype), y.to(dtype), None, noise.to(dtype), n)

    def log_density(self, z: Tensor, X: Tensor, y: Tensor) -> Tensor:
        """Log of prior times marginal likelihood at `z` `[C, 3]`, for `X` `[n, d]`, `y` `[n]`."""
        lengthscale, outputscale, noise = hyperparameters(z)
        covariance = _with_noise(matern(X, X, lengthscale, outputscale), noise)
        # a diverging trajectory must become NaN and be rejected, not stop the other chains
        root = torch.linalg.cholesky_ex(covariance).L
        half = torch.linalg.solve_triangular(root, y[:, None].expand(len(z), -1, 1), upper=False)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        fit = -0.5 * half.square().sum((-2, -1)) - log_det - 0.5 * len(y) * math.log(2 * math.pi)
        return fit + log_normal(z)

    def predictive(self, z: Tensor, X: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y at the queries given `z` `[S, 3]`, both `[S, m]`."""
        means, variances = [], []
        for part in z.split(2048):
            lengthscale, outputscale, noise = hyperparameters(part)
            root = torch.linalg.cholesky(_with_noise(matern(X, X, lengthscale, outputscale), noise))
            across = matern(X, queries, lengthscale, outputscale)  # [S, n, m]
            half = torch.linalg.solve_triangular(
                root, torch.cat([across, y[:, None].expand(len(part), -1, 1)], -1), upper=False
            )
            across, target = half[..., :-1], half[..., -1:]
            means.append((across * target).sum(-2))
            variances.append((outputscale + noise)[:, None] - across.square().sum(-2))
        return torch.cat(means), torch.cat(variances)

    def pyro_model(self, X: Tensor, y: Tensor) -> Callable[[], None]:
        """The same as a Pyro model, y observed, its latent site `z`."""

        def model() -> None:
            z = pyro.sample("z", dist.Normal(X.new_zeros(3), X.new_ones(3)).to_event(1))
            lengthscale, outputscale, noise = (v[0] for v in hyperparameters(z[None]))
            covariance = _with_noise(
                matern(X, X, lengthscale[None], outputscale[None]), noise[None]
            )
            root = torch.linalg.cholesky(covariance[0])
            pyro.sample("y", dist.MultivariateNormal(X.new_zeros(len(X)), scale_tril=root), obs=y)

        return model


class NetworkTasks:
    """Data sets of one finite random network; a task prior.

    Args:
        features: d.
        width: Units of both hidden layers.
        max_context: Most context rows; their number is uniform on 1 .. max_context.
        queries: Query rows of a task.
        fixed: Always `max_context` context rows.
    """

    weight_var, bias_var = 2.0, 0.5
    log_noise_var_prior = (-3.0, 0.5)

    def __init__(
        self,
        features: int = 3,
        width: int = 16,
        max_context: int = 60,
        queries: int = 32,
        fixed: bool = False,
    ) -> None:
        self.features, self.width, self.max_context = features, width, max_context
        self.queries, self.fixed = queries, fixed
        sizes = [features, width, width, 1]
        self.shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.weights = sum(a * b + a for a, b in self.shapes)
        self.size = self.weights + 1

    @property
    def description(self) -> str:
        """One line for a file."""
        return (
            f"network {self.features}-{self.width}-{self.width}-1, tanh, up to "
            f"{self.max_context} rows, weight variance {self.weight_var}, bias variance "
            f"{self.bias_var}, log noise variance {self.log_noise_var_prior}"
        )

    def prior(self) -> NetworkPrior:
        """The same prior for `bayes.BayesianNetwork`, with `log_noise_var_prior`."""
        width = self.width
        module = nn.Sequential(
            nn.Linear(self.features, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, 1),
        )
        return NetworkPrior(module, weight_var=self.weight_var, bias_var=self.bias_var)

    def function(self, z: Tensor, X: Tensor) -> Tensor:
        """Outputs `[C, n]` of the networks `z` `[C, size]` at `X` `[n, d]` or `[C, n, d]`.

        Coordinates are in the order of the module's parameters: weight, bias, layer by layer.
        """
        h, start = X.expand(len(z), -1, -1), 0
        for i, (out, into) in enumerate(self.shapes):
            weight = z[:, start : start + out * into].reshape(-1, out, into)
            start += out * into
            bias = z[:, None, start : start + out]
            start += out
            # [C, n, out]; the standard deviations multiply the small matrices
            h = torch.baddbmm(
                bias * self.bias_var**0.5, h, weight.mT * (self.weight_var / into) ** 0.5
            )
            if i + 1 < len(self.shapes):
                h = torch.tanh(h)
        return h[..., 0]

    def noise_var(self, z: Tensor) -> Tensor:
        """Noise variances `[C]`."""
        mean, std = self.log_noise_var_prior
        return (mean + std * z[:, -1]).exp()

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw tasks."""
        n = _context(self.max_context, self.fixed, generator)
        dtype = torch.get_default_dtype() if dtype is None else dtype

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

        X, z = normal(batch, n + self.queries, self.features), normal(batch, self.size)
        noise = self.noise_var(z)
        y = self.function(z, X) + noise.sqrt()[:, None] * normal(batch, n + self.queries)
        return Task(X, y[..., None], None, noise, n)

    def log_density(self, z: Tensor, X: Tensor, y: Tensor) -> Tensor:
        """Log of prior times likelihood at `z` `[C, size]`."""
        noise = self.noise_var(z)[:, None]
        fit = -0.5 * ((self.function(z, X) - y).square() / noise + (2 * math.pi * noise).log())
        return fit.sum(-1) + log_normal(z)

    def predictive(self, z: Tensor, X: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y at the queries given `z` `[S, size]`, both `[S, m]`."""
        mean = self.function(z, queries)
        return mean, self.noise_var(z)[:, None].expand_as(mean)


@dataclass(frozen=True)
class Hmc:
    """What `hmc` found.

    Attributes:
        draws: `[C, S, D]`.
        gradients: Evaluations of the gradient, each of all chains.
        accepted: Mean acceptance probability after the warm-up.
    """

    draws: Tensor
    gradients: int
    accepted: float


def hmc(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    warmup: int,
    samples: int,
    generator: torch.Generator,
    time: float = 1.5,
    target: float = 0.8,
    max_steps: int = 200,
) -> Hmc:
    """Hamiltonian Monte Carlo, the chains one batch.

    Step size by dual averaging of the chains' mean acceptance, a diagonal mass matrix from all
    chains' states in the second quarter and half of the warm-up; trajectories of random length.

    Args:
        log_density: From `[C, D]` to `[C]`, up to a constant.
        start: `[C, D]`.
        warmup: Steps that adapt.
        samples: Steps that count.
        generator: Randomness.
        time: Mean length of trajectories, in units of the mass matrix.
        target: Mean acceptance probability.
        max_steps: Most leapfrog steps of a trajectory.
    """

    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = log_density(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    C, D = start.shape
    z, scale = start, start.new_ones(D)
    value, slope = gradient(z)
    count, kept, seen, accepted = 1, [], [], []
    averaging = _DualAveraging(0.1, target)
    for step in range(warmup + samples):
        warm = step < warmup
        epsilon = averaging.current if warm else averaging.average
        length = 2 * time * float(torch.rand((), generator=generator))
        steps = min(max(1, math.ceil(length / epsilon)), max_steps)
        p = torch.randn(C, D, generator=generator, dtype=z.dtype)
        new, new_value, new_slope, momentum = z, value, slope, p
        for _ in range(steps):
            momentum = momentum + 0.5 * epsilon * scale * new_slope
            new = new + epsilon * scale * momentum
            new_value, new_slope = gradient(new)
            momentum = momentum + 0.5 * epsilon * scale * new_slope
        count += steps
        change = new_value - value + 0.5 * (p.square() - momentum.square()).sum(-1)
        probability = change.clamp(max=0).exp().nan_to_num(0.0)
        take = torch.rand(C, generator=generator, dtype=z.dtype) < probability
        z = torch.where(take[:, None], new, z)
        value = torch.where(take, new_value, value)
        slope = torch.where(take[:, None], new_slope, slope)
        if not warm:
            kept.append(z)
            accepted.append(float(probability.mean()))
            continue
        averaging.update(float(probability.mean()))
        if step >= warmup // 4:
            seen.append(z)
        if step + 1 in (warmup // 2, 3 * warmup // 4) and len(seen) * C >= 20:
            states = torch.cat(seen)
            weight = len(states) / (len(states) + 10.0)
            scale = (weight * states.var(0) + (1 - weight)).sqrt()
            averaging, seen = _DualAveraging(averaging.average, target), []
    return Hmc(torch.stack(kept, 1), count, sum(accepted) / len(accepted))


class _DualAveraging:
    """Of Hoffman & Gelman 2014, section 3.2, with their constants."""

    def __init__(self, start: float, target: float) -> None:
        self.centre, self.target = math.log(10 * start), target
        self.error, self.count = 0.0, 0
        self.current, self.log_average = start, math.log(start)

    @property
    def average(self) -> float:
        return math.exp(self.log_average)

    def update(self, accepted: float) -> None:
        self.count += 1
        share = 1 / (self.count + 10)
        self.error += share * (self.target - accepted - self.error)
        log_step = self.centre - self.count**0.5 / 0.05 * self.error
        weight = self.count**-0.75
        self.log_average = weight * log_step + (1 - weight) * self.log_average
        self.current = math.exp(log_step)


def grid(
    tasks: GPTasks, X: Tensor, y: Tensor, *, points: int = 25, width: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Equidistant nodes `[points^3, 3]` of the GP's hyperparameters and their log weights."""
    axis = torch.linspace(-width, width, points, dtype=X.dtype)
    nodes = torch.cartesian_prod(axis, axis, axis)
    log_weights = torch.cat([tasks.log_density(part, X, y) for part in nodes.split(2048)])
    return nodes, log_weights.log_softmax(0)


def mixture_nll(
    mean: Tensor, variance: Tensor, y: Tensor, log_weights: Tensor | None = None
) -> Tensor:
    """Negative log of the averaged Gaussian densities `[S, m]` at `y` `[m]`; `[m]`."""
    density = -0.5 * ((y - mean).square() / variance + (2 * math.pi * variance).log())
    if log_weights is None:
        return math.log(len(density)) - density.logsumexp(0)
    return -(density + log_weights[:, None]).logsumexp(0)


def diagnostics(draws: Tensor) -> tuple[float, float]:
    """Worst R-hat and smallest bulk ESS over the quantities of `draws` `[C, S, Q]`, by arviz.

    R-hat is 100 at most, and where it is not defined: chains that never moved.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        data: Any = arviz.convert_to_dataset({"q": draws.numpy()})
        rhat, ess = arviz.rhat(data)["q"].values, arviz.ess(data)["q"].values
    worst = float(rhat.max())  # NaN if any is
    return worst if worst < 100 else 100.0, float(ess.min())


def hyperparameters(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengthscale, outputscale and noise variance, each `[C]`, of `z` `[C, 3]`."""
    first, second, third = (
        (mean + std * z[:, i]).exp()
        for i, (mean, std) in enumerate(zip(LOG_MEAN, LOG_STD, strict=True))
    )
    return first, second, third


def matern(x1: Tensor, x2: Tensor, lengthscale: Tensor, outputscale: Tensor) -> Tensor:
    """Matern 5/2 covariance `[C, n, m]`."""
    squares = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).square().sum(-1)
    correlation = matern52_at(squares.sqrt() / lengthscale[:, None, None])
    return outputscale[:, None, None] * correlation


def log_normal(z: Tensor) -> Tensor:
    """Log density of standard normal vectors."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _with_noise(covariance: Tensor, noise: Tensor) -> Tensor:
    jitter = (noise + 1e-9)[..., None].expand(covariance.shape[:-1])
    return covariance + torch.diag_embed(jitter)


def _context(most: int, fixed: bool, generator: torch.Generator | None) -> int:
    if fixed:
        return most
    return 1 + int(torch.randint(most, (), generator=generator))
