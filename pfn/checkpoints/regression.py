"""The shipped `regression` network: its prior, and the command that trains it.

    python -m pfn.checkpoints.regression --hours 1.2 [--out FILE] [--resume]

The prior is a Gaussian process with a hyperprior: 1 to 10 features, inputs normal or uniform with
unit variance, a kernel of random smoothness (Matern 1/2, 3/2, 5/2, RBF, rational quadratic) with a
length scale per feature, a linear part, and noise from almost none to almost all of the variance.
Up to 256 context rows.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from pfn.architecture import ArchitectureConfig
from pfn.certificate import Certificate, certify
from pfn.network import PFN
from pfn.training import TrainingConfig, train
from priors.posterior import GaussianPosterior
from priors.tasks import Task

__all__ = ["RegressionTaskPrior", "main"]

KERNELS = ("matern12", "matern32", "matern52", "rbf", "rq")


@dataclass(frozen=True)
class RegressionTaskPrior:
    """Gaussian processes with a hyperprior over length scales, smoothness and noise.

    One call draws tasks of one size: d features, uniform on 1 .. `max_features`, and n context
    rows, half of the time uniform on 0 .. `max_context`, half of the time log-uniform.

    Per task: f = g sqrt(1 - s) + l sqrt(s), where l is linear with random weights and g has a
    kernel k(r), r^2 = sum_k (x_k - x'_k)^2 / ell_k^2. With probability 1/2 features differ in
    relevance. Then y = f + noise, the noise variance log-uniform on [1e-4, 1] for half of the
    tasks and uniform on [0.2, 2] for the others. f has prior variance 1.

    Attributes:
        max_features: Most features.
        max_context: Most context rows.
        num_queries: Query rows of each task.
        num_features: Fixed number of features, for a certificate at that size.
        num_context: Fixed number of context rows, likewise.
    """

    max_features: int = 10
    max_context: int = 256
    num_queries: int = 48
    num_features: int | None = None
    num_context: int | None = None

    @property
    def description(self) -> str:
        """One line for the checkpoint."""
        return (
            f"GP with hyperprior, 1-{self.max_features} features, up to {self.max_context} "
            "context rows (pfn.checkpoints.regression.RegressionTaskPrior)"
        )

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float64)

        d = self.num_features or 1 + int(uniform() * self.max_features)
        n = self.num_context
        if n is None:
            u = float(uniform())
            linear = u * (self.max_context + 1)
            n = int(linear if uniform() < 0.5 else math.exp(u * math.log(self.max_context + 1)))
        N = n + self.num_queries
        flat = (uniform(batch, 1, d) - 0.5 < 0).to(torch.float64)
        box = (uniform(batch, N, d) - 0.5) * math.sqrt(12)
        X = torch.where(flat > 0, box, normal(batch, N, d))
        # Typical distances grow as sqrt(d); so do length scales, more slowly than that.
        ell = (0.5 * math.sqrt(d) * torch.exp(0.8 * normal(batch, 1))) * torch.exp(
            (uniform(batch, 1) < 0.5) * 0.7 * normal(batch, d).abs() * 1.5
        )
        latents = {
            "lengthscale": ell,
            "kernel": (uniform(batch) * len(KERNELS)).long(),
            "linear_share": torch.where(uniform(batch) < 0.5, 0.0, uniform(batch)),
            "linear_var": _normalised(normal(batch, d) ** 2 * (uniform(batch, d) < 0.7) + 1e-3),
        }
        noise_var = torch.where(
            uniform(batch) < 0.5,
            torch.exp(-uniform(batch) * math.log(1e4)),
            0.2 + 1.8 * uniform(batch),
        )
        covariance = self.covariance(X, latents)
        jitter = 1e-8 * torch.eye(N, dtype=X.dtype, device=X.device)
        f = torch.linalg.cholesky(covariance + jitter) @ normal(batch, N, 1)
        y = f + noise_var.sqrt()[:, None, None] * normal(batch, N, 1)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return Task(
            X=X.to(dtype),
            y=y.to(dtype),
            f=f.to(dtype),
            noise_var=noise_var.to(dtype),
            num_context=n,
            latents=latents,
        )

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context *and its hyperparameters*.

        It knows what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior.
        """
        n = task.num_context
        X, y = task.X.double(), task.y.double()
        noise = task.noise_var.double()[:, None, None]
        K = self.covariance(X, task.latents)
        eye = torch.eye(n, dtype=X.dtype, device=X.device)
        root = torch.linalg.cholesky(K[:, :n, :n] + noise * eye)
        cross = torch.linalg.solve_triangular(root, K[:, :n, n:], upper=False)
        target = torch.linalg.solve_triangular(root, y[:, :n], upper=False)
        mean = (cross.mT @ target)[..., 0]
        variance = K[:, n:, n:].diagonal(dim1=-2, dim2=-1) - cross.square().sum(1) + noise[:, 0]
        mean, variance = mean.to(task.y), variance.to(task.y)
        return GaussianPosterior(MultivariateNormal(mean, DiagLinearOperator(variance)))

    def covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of f at `X` `[B, N, d]` given the latents of the tasks, `[B, N, N]`."""
        r = torch.cdist(X / latents["lengthscale"][:, None], X / latents["lengthscale"][:, None])
        out = torch.empty_like(r)
        for index in range(len(KERNELS)):
            chosen = latents["kernel"] == index
            if bool(chosen.any()):
                out[chosen] = _stationary(KERNELS[index], r[chosen])
        share = latents["linear_share"][:, None, None]
        linear = (X * latents["linear_var"][:, None]) @ X.mT
        return (1 - share) * out + share * linear


def _stationary(kernel: str, r: Tensor) -> Tensor:
    """Unit-variance kernels of the scaled distance; Rasmussen & Williams 2006, 4.2."""
    match kernel:
        case "matern12":
            return torch.exp(-r)
        case "matern32":
            return (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r)
        case "matern52":
            s = math.sqrt(5) * r
            return (1 + s + s**2 / 3) * torch.exp(-s)
        case "rbf":
            return torch.exp(-(r**2) / 2)
        case "rq":
            return 1 / (1 + r**2 / 2)
    raise ValueError(f"unknown kernel {kernel!r}, known are {KERNELS}.")


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def certificate(pfn: PFN, *, num_tasks: int = 960, progress: bool = True) -> Certificate:
    """Measure a network on this prior against the oracle; about two minutes on one core."""
    sizes = (0, 5, 20, 80, 256)
    prior = RegressionTaskPrior(num_context=max(sizes))
    return certify(
        pfn,
        prior,
        reference=prior.oracle,
        reference_is="upper bound",
        context_sizes=sizes,
        num_tasks=num_tasks,
        seed=1,
        progress=progress,
    )


def main(arguments: list[str] | None = None) -> None:
    """Train the network from scratch and write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--hours", type=float, default=1.2, help="time for training")
    parser.add_argument("--steps", type=int, default=200_000, help="at most so many steps")
    parser.add_argument("--batch", type=int, default=24, help="tasks per step")
    parser.add_argument("--out", type=Path, default=Path("runs/regression/regression.safetensors"))
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    config = TrainingConfig(
        architecture=ArchitectureConfig(),
        steps=options.steps,
        batch=options.batch,
        time_limit=options.hours * 3600,
    )
    pfn = train(
        RegressionTaskPrior(),
        config=config,
        checkpoint=options.out.with_name("training.safetensors"),
        resume=options.resume,
        log=options.out.with_name("log.jsonl"),
    )
    pfn.metadata["command"] = f"python -m pfn.checkpoints.regression --hours {options.hours:g}"
    pfn.metadata["max_context"] = RegressionTaskPrior().max_context
    pfn.metadata["certificate"] = certificate(pfn).to_json()
    pfn.save(options.out)


if __name__ == "__main__":
    main()
