"""A prior over functions to be maximised on the unit cube, at the inputs an optimiser visits.

A function is a Gaussian process with a trend, in inputs warped per feature:

    u_k = 1 - (1 - x_k^a_k)^b_k                              Kumaraswamy's distribution function
    z = sqrt(1 - s) g(u) + sqrt(s) trend(u),   g ~ GP(0, k(|u - u'| over lengths ell))
    f = z, or (exp(c z) - 1) / c standardised, which is skewed
    y = f + noise

k is Matern 3/2, Matern 5/2 or RBF. The trend has random linear and quadratic coefficients, so that
z is a Gaussian process too. This is the model that HEBO fits (Cowen-Rivers et al. 2022), with
hyperparameters drawn instead of fitted, as in PFNs4BO (Müller et al. 2023).

Rows are visited as a running optimisation would: a first sample, uniform or a shifted Sobol
sequence; then rounds of which most points lie near good ones found so far; and queries, uniform
and near the best. Each round is drawn given the values before it, so that f remains an exact draw
of the process, and context says about queries what it says for any design.

Deviations from HEBO: the kernel is one of three instead of a sum with a linear one; lengths grow
with the square root of the number of features; the output warping is the inverse of a log
transform instead of Box-Cox or Yeo-Johnson.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.randomness import RandomSource
from priors.tasks.annealing import AnnealedSampler, gaussian_average
from priors.tasks.base import WholeTaskPrior
from priors.tasks.grouping import groups
from priors.tasks.oracles import gaussian_oracle
from priors.tasks.sizes import OptimizationSize, TaskSize
from priors.tasks.stationary import stationary
from priors.tasks.task import Task
from priors.tasks.validation import check_probabilities

__all__ = ["OptimizationTaskPrior"]

KERNELS = ("matern32", "matern52", "rbf")

_JITTER = 1e-8


@dataclass(frozen=True)
class OptimizationTaskPrior(WholeTaskPrior):
    """Functions on the unit cube, seen at the points of a running maximisation.

    One call draws tasks of one size, d features and n context rows. In 7 of 10 calls with n >= 4
    the first 10 to 70 % of the context are a first sample and two rounds follow.

    Lengths are half of the time lognormal, half of the time from Gamma(3, 6), each times sqrt(d);
    in half of the tasks a quarter of the features hardly matter. Noise variances are log-uniform
    on [1e-6, 1] for half of the tasks, on [1e-6, 1e-3] for the others; f has variance about 1.

    Latents: "kernel" `[B]`, "lengthscale", "warp_a", "warp_b" `[B, d]`, "trend_share" `[B]`,
    "linear_var", "quadratic_var" `[B, d]`, "skew" `[B]` (c above, 0 for f = z). Of every row:
    "z", and "near", True for rows that were placed near good ones, both `[B, N]`.

    Attributes:
        size: How large tasks are; half of the queries, in random order, lie near the best
            context row.
        input_warping: Probability that the inputs of a task are warped.
        output_warping: Probability that the output of a task is warped.
        adaptive: Probability that a task has points near good ones.
    """

    size: TaskSize = OptimizationSize()
    input_warping: float = 0.5
    output_warping: float = 0.3
    adaptive: float = 0.8
    exchangeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probabilities(self, "input_warping", "output_warping", "adaptive")

    @property
    def description(self) -> str:
        """One line for the checkpoint."""
        return (
            f"functions to maximise, 1-{self.size.max_features} features in the unit cube, up to "
            f"{self.size.max_context} context rows, inputs warped in {self.input_warping:.0%}, "
            f"outputs in {self.output_warping:.0%} "
            "(priors.optimization_tasks.OptimizationTaskPrior)"  # as shipped networks store it
        )

    def draw_tasks(self, draws: RandomSource, batch: int) -> Task:
        """Draw the sizes, the hyperparameters and a run of each task."""
        d, n = self.size.draw(draws.generator, draws.device)
        few, share = draws.number(), draws.number()
        first = n if n < 4 or few < 0.3 else max(2, int(n * (0.1 + 0.6 * share)))
        half = (n - first + 1) // 2
        latents = self._draw_latents(draws, batch, d)
        noise_var = _draw_noise_var(draws, batch)
        X, f, y, rows = self._draw_run(draws, latents, noise_var, (first, half, n - first - half))
        return Task(
            X=X,
            y=y[..., None],
            f=f[..., None],
            noise_var=noise_var,
            num_context=n,
            latents=latents,
            row_latents=rows,
        )

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries of `task` given its context *and its hyperparameters*.

        It is given what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior.

        Raises:
            ValueError: an output is warped, and its posterior is not normal; draw tasks
                with `output_warping=0`.
        """
        if bool((task.latents["skew"] != 0).any()):
            raise ValueError(
                "the posterior of a warped output is not Gaussian; draw tasks for the oracle from "
                "OptimizationTaskPrior(output_warping=0)."
            )
        return gaussian_oracle(task, self._covariance(task.X.double(), task.latents))

    def annealed(self, task: Task, sampler: AnnealedSampler | None = None) -> PredictivePosterior:
        """Posterior of y at the queries of `task` given its context, by sampling hyperparameters.

        It is given the prior and the context only, so that the gap to it is a lower bound of the
        gap to the exact posterior, and close to it if the sampler runs long.

        Args:
            task: Drawn from this prior.
            sampler: How long to sample; `AnnealedSampler()` if None.

        Raises:
            ValueError: outputs may be warped, so that the likelihood is not Gaussian.
        """
        if self.output_warping > 0:
            raise ValueError("The sampler needs Gaussian outputs; use output_warping=0.")

        def program(draws: RandomSource, rows: int) -> dict[str, Tensor]:
            latents = self._draw_latents(draws, rows, task.X.shape[-1])
            return {**latents, "noise_var": _draw_noise_var(draws, rows)}

        particles = AnnealedSampler() if sampler is None else sampler
        return gaussian_average(task, program, self._covariance, particles)

    def _covariance(self, X: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of z at `X` `[B, N, d]`, of positive eigenvalues, `[B, N, N]`."""
        eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        return self.covariance(X, X, latents) + _JITTER * eye

    def covariance(self, x1: Tensor, x2: Tensor, latents: dict[str, Tensor]) -> Tensor:
        """Covariance of z given the latents of the tasks.

        Args:
            x1: Inputs `[B, n, d]`.
            x2: Inputs `[B, m, d]`.
            latents: Latent variables of the tasks.

        Returns:
            `[B, n, m]`.
        """
        a, b = latents["warp_a"][:, None], latents["warp_b"][:, None]
        u1, u2 = _kumaraswamy(x1.to(a), a, b), _kumaraswamy(x2.to(a), a, b)
        lengthscale = latents["lengthscale"][:, None]
        # the difference of squares would lose half of the digits of small distances
        r = torch.cdist(
            u1 / lengthscale, u2 / lengthscale, compute_mode="donot_use_mm_for_euclid_dist"
        )
        out = torch.empty_like(r)
        for name, chosen in zip(KERNELS, groups(latents["kernel"], len(KERNELS)), strict=True):
            out[chosen] = stationary(name, r[chosen].square_())
        share = latents["trend_share"][:, None, None]
        var = torch.cat([latents["linear_var"], latents["quadratic_var"]], -1)[:, None]
        return torch.baddbmm((1 - share) * out, share * var * _trend(u1), _trend(u2).mT)

    def _draw_latents(self, draws: RandomSource, batch: int, d: int) -> dict[str, Tensor]:
        uniform, normal = draws.uniform, draws.normal
        lognormal = 0.4 * torch.exp(0.7 * normal(batch, 1) + 0.5 * normal(batch, d))
        gamma = (draws.gamma(3.0, batch, d) / 6).clamp(min=0.05)
        lengthscale = torch.where(uniform(batch, 1) < 0.5, lognormal, gamma)
        idle = (uniform(batch, 1) < 0.5) & (uniform(batch, d) < 0.25)
        warped = (uniform(batch, 1) < self.input_warping).to(torch.float64)
        weight = normal(batch, 2 * d) ** 2 * (uniform(batch, 2 * d) < 0.7) + 1e-3
        weight = weight / weight.sum(-1, keepdim=True)
        # long tails of bad values are more common than long tails of good ones
        sign = torch.where(uniform(batch) < 0.7, -1.0, 1.0)
        skewed = uniform(batch) < self.output_warping
        return {
            "kernel": draws.integers(len(KERNELS), batch),
            "lengthscale": math.sqrt(d) * lengthscale * torch.where(idle, 20.0, 1.0),
            "warp_a": torch.exp(0.75 * warped * normal(batch, d)),
            "warp_b": torch.exp(0.75 * warped * normal(batch, d)),
            "trend_share": torch.where(uniform(batch) < 0.5, 0.0, uniform(batch)),
            "linear_var": weight[:, :d],
            "quadratic_var": weight[:, d:],
            "skew": torch.where(skewed, sign * (0.3 + 0.7 * uniform(batch)), 0.0),
            "adaptive": uniform(batch) < self.adaptive,
        }

    def _draw_run(
        self,
        draws: RandomSource,
        latents: dict[str, Tensor],
        noise_var: Tensor,
        rounds: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Inputs `[B, N, d]`, f and y `[B, N]`: the rounds of the context, then the queries.

        Also what there is to say of every row.
        """
        batch, d = latents["lengthscale"].shape
        like = latents["lengthscale"]
        X = like.new_empty(batch, 0, d)
        y = like.new_empty(batch, 0)
        z, white, near, root = y, y, y.bool(), like.new_empty(batch, 0, 0)
        sizes = [size for size in rounds if size] + [self.size.num_queries]
        for number, size in enumerate(sizes):
            queries = number == len(sizes) - 1
            new, close = _place(draws, X, y, size, queries, latents["adaptive"])
            # one more block of rows of the Cholesky factor, and of z = root @ white
            cross = torch.linalg.solve_triangular(
                root, self.covariance(X, new, latents), upper=False
            )
            eye = _JITTER * torch.eye(size, dtype=like.dtype, device=like.device)
            rest = self.covariance(new, new, latents) + eye - cross.mT @ cross
            corner = torch.linalg.cholesky(rest)
            fresh = draws.normal(batch, size)
            value = (cross.mT @ white[..., None] + corner @ fresh[..., None])[..., 0]
            noise = noise_var.sqrt()[:, None] * draws.normal(batch, size)
            value_y = _skewed(value, latents["skew"]) + noise
            X, z, y = torch.cat([X, new], 1), torch.cat([z, value], 1), torch.cat([y, value_y], 1)
            near = torch.cat([near, close], 1)
            if not queries:
                above = torch.cat([root, torch.zeros_like(cross)], 2)
                root = torch.cat([above, torch.cat([cross.mT, corner], 2)], 1)
                white = torch.cat([white, fresh], 1)
        return X, _skewed(z, latents["skew"]), y, {"z": z, "near": near}


def _draw_noise_var(draws: RandomSource, batch: int) -> Tensor:
    quiet = draws.uniform(batch) < 0.5
    return 10 ** (torch.where(quiet, 3.0, 6.0) * draws.uniform(batch) - 6)


def _place(
    draws: RandomSource, X: Tensor, y: Tensor, size: int, queries: bool, adaptive: Tensor
) -> tuple[Tensor, Tensor]:
    """New inputs `[B, size, d]`, given those before and their noisy values; which are near good.

    A round of context goes near rows drawn by their rank; half of the queries, in random places
    so that any few of them are of both kinds, near the best one.
    """
    batch, n, d = X.shape
    uniform = draws.uniform
    sobol = SobolEngine(d, scramble=False).draw(size, dtype=torch.float64).to(X)
    spread = torch.where(
        uniform(batch, 1, 1) < 0.5, (sobol + uniform(batch, 1, d)) % 1, uniform(batch, size, d)
    )
    if n == 0:
        return spread, torch.zeros(batch, size, dtype=torch.bool, device=X.device)
    rank = y.argsort(-1, descending=True)
    # the share of rows that count as good, from the best one alone to all of them
    greed = 1 + 20 * uniform(batch, 1)
    place = (n * uniform(batch, size) ** greed).long().clamp(max=n - 1)
    if queries:
        place = torch.zeros_like(place)
    centre = X.gather(1, rank.gather(1, place)[..., None].expand(-1, -1, d))
    step = draws.normal(batch, size, d)
    point = (centre + 10 ** (-2 + 1.5 * uniform(batch, size, 1)) * step) % 2
    point = torch.where(point > 1, 2 - point, point)  # reflected at the walls
    if queries:
        close = draws.permutations(size, batch) >= (size + 1) // 2
    else:
        close = adaptive[:, None] & (uniform(batch, size) < 0.8)
    return torch.where(close[..., None], point, spread), close


def _kumaraswamy(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Bijection of [0, 1], 1 - (1 - x^a)^b; Kumaraswamy 1980."""
    return -torch.expm1(b * torch.log1p(-x.clamp(0, 1).pow(a)))


def _skewed(z: Tensor, skew: Tensor) -> Tensor:
    """(exp(c z) - 1) / c, standardised for standard normal z `[B, N]`; z where c = 0."""
    c = torch.where(skew == 0, 1.0, skew)[:, None]
    mean = torch.expm1(c**2 / 2) / c
    std = torch.exp(c**2 / 2) * torch.expm1(c**2).sqrt() / c.abs()
    return torch.where(skew[:, None] == 0, z, (torch.expm1(c * z) / c - mean) / std)


def _trend(u: Tensor) -> Tensor:
    """Linear and quadratic features `[B, n, 2 d]`, orthonormal and centred for uniform u."""
    centred = u - 0.5
    return torch.cat([math.sqrt(12) * centred, math.sqrt(180) * (centred**2 - 1 / 12)], -1)
