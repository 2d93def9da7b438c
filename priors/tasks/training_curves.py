"""A prior over learning curves of related hyperparameter settings, for early stopping.

A task holds C curves of a validation metric in [0, 1], larger is better, over K training steps:

    f(t) = low + (high - low) progress(t),  t = step / K in (0, 1]
    progress(t) = sum_k w_k s_k(max(t - delay, 0) / tau_k),  s_k growing from 0 to 1,

with s_k a power law (pow3, pow4), exponential, inverse logarithm (ilog2), Janoschek or Weibull,
and Morgan-Mercer-Flodin; then drops of the learning rate, which close part of the gap to `high`,
overfitting, and divergence. Mixtures of such curves: Domhan et al. 2015; as priors of networks:
Adriaensen et al. 2023 (LC-PFN), Rakotoarison et al. 2024 (FT-PFN).

Every quantity q of a curve is a quantile function of a standard normal z_q,

    z_q(h) = sqrt(1 - v_q) m_q + sqrt(v_q (1 - e)) g_q(h) + sqrt(v_q e) noise,

where m_q is shared by the task, g_q is a random network of the hyperparameters h (one layer of
sines and cosines, so that g_q(h) is standard normal for every h), and the last term differs by
curve. Related settings have related curves, and marginals are what the quantile functions say.

Deviations from FT-PFN: curves end at a known step K instead of at a common maximal one; the
network behind g is one layer; noise is not Gaussian but of the beta family, and stays in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from priors.functions import draw
from priors.randomness import RandomSource
from priors.tasks.base import WholeTaskPrior
from priors.tasks.sizes import LearningCurveSize
from priors.tasks.task import Task
from priors.tasks.validation import check_probabilities

__all__ = ["LearningCurveTaskPrior", "log_time"]

FAMILIES = ("power", "exponential", "ilog2", "weibull", "mmf")

_HIDDEN = 32
_FLOOR = 0.002
_MARGIN = 1e-6  # of an observed value to 0 and 1, where its density may be infinite
_FEWEST_STEPS = 5
# quantities of a curve that are functions of its hyperparameters, after a rate and a shape for
# each family
_QUANTITIES = (
    "high",
    "delay",
    "failed",
    "diverged",
    "divergence_time",
    "overfits",
    "overfitting",
    "noise",
)


def log_time(step: Tensor | float, num_steps: Tensor | float) -> Tensor:
    """The time feature of a training step: log(1 + step) / log(1 + num_steps).

    Args:
        step: Steps done, 1 to `num_steps`, of any shape.
        num_steps: Steps of the whole training, of a shape that broadcasts.

    Returns:
        In (0, 1], and 1 at the end; of their common shape.
    """
    step, num_steps = (v if isinstance(v, Tensor) else torch.tensor(v) for v in (step, num_steps))
    return torch.log1p(step) / torch.log1p(num_steps)


@dataclass(frozen=True)
class LearningCurveTaskPrior(WholeTaskPrior):
    """Beginnings of learning curves as context, their later values as queries.

    One call draws tasks of one size: p hyperparameters, C curves and n context rows.

    Features are `log_time` of the step and the p hyperparameters in [0, 1], which identify the
    curve. Context rows are the first steps of each curve, every one or at irregular times (3 of
    10 tasks). How many differs between curves: some are cut early, some have not begun. The
    number of steps K is random too; it shows in the time feature. Queries are later steps of
    curves that have not ended, a quarter of them the last step. The metric is larger for better
    networks; give 1 - loss for a loss scaled to [0, 1].

    Latents: "steps" `[B]`; "failed", "diverged", "overfits" `[B, C]`; and all that `curves`
    needs. Of every row: "curve", the number of its curve, and "step", both `[B, N]`.

    Attributes:
        size: How large tasks are.
        failure: Probability that a curve hardly leaves its starting value.
        divergence: Probability that a curve falls apart at some step; a third of the tasks let
            them recover.
        overfitting: Probability that a curve declines slowly from some step on.
    """

    size: LearningCurveSize = LearningCurveSize()
    failure: float = 0.2
    divergence: float = 0.1
    overfitting: float = 0.1

    def __post_init__(self) -> None:
        check_probabilities(self, "failure", "divergence", "overfitting")

    @property
    def description(self) -> str:
        """One line for the checkpoint."""
        return (
            f"learning curves, up to {self.size.max_curves} per task, "
            f"0-{self.size.max_hyperparameters} hyperparameters, up to {self.size.max_context} "
            "context rows "
            "(priors.learning_curve_tasks.LearningCurveTaskPrior)"  # as shipped networks store it
        )

    def draw_tasks(self, draws: RandomSource, batch: int) -> Task:
        """Draw the sizes, the curves and the rows of each task."""
        p, C, n = self.size.draw(draws.generator, draws.device)
        h = draws.uniform(batch, C, p)
        latents = self._draw_curves(h, draws)
        curve, step, steps = _draw_rows(draws, batch, C, n, self.size.num_queries)
        x = log_time(step, steps[:, None])
        latents["steps"] = steps
        f, noisy = _metric(latents, curve, step, steps)
        y = draw(noisy, torch.Size(), generator=draws.generator).clamp(_MARGIN, 1 - _MARGIN)
        return Task(
            X=torch.cat([x[..., None], h.gather(1, curve[..., None].expand(-1, -1, p))], -1),
            y=y[..., None],
            f=f[..., None],
            noise_var=noisy.variance,
            num_context=n,
            latents=latents,
            row_latents={"curve": curve, "step": step},
        )

    def curves(self, task: Task, time: Tensor) -> Tensor:
        """Noise-free values of all curves of `task`, at times step / K in (0, 1].

        Args:
            task: Drawn from this prior.
            time: `[T]`, the same for all curves.

        Returns:
            `[B, C, T]`.
        """
        batch, C = task.latents["high"].shape
        time = time.to(task.latents["high"])
        number = torch.arange(C, device=time.device).repeat_interleave(len(time))
        f = _values(task.latents, number.expand(batch, -1), time.repeat(C).expand(batch, -1))
        return f.view(batch, C, len(time)).to(task.y)

    def oracle(self, task: Task) -> Beta:
        """Distribution of y at the queries `[B, m, 1]` *given the task's curves and noise*.

        It is given what a network has to infer, so that the gap to it is an upper bound of the gap
        to the exact posterior under this prior.
        """
        rows = slice(task.num_context, None)
        _, noisy = _metric(task.latents, *_rows(task, rows))
        return Beta(noisy.concentration1[..., None], noisy.concentration0[..., None])

    def _draw_curves(self, h: Tensor, draws: RandomSource) -> dict[str, Tensor]:
        """What determines the curves at hyperparameters `h` `[B, C, p]`: `[B, C, ...]` or `[B]`."""
        batch, C, _ = h.shape
        uniform, normal = draws.uniform, draws.normal
        k = len(FAMILIES)
        z = _related(h, 2 * k + len(_QUANTITIES), draws)
        rate, shape = z[..., :k], z[..., k : 2 * k]
        named = dict(zip(_QUANTITIES, z[..., 2 * k :].unbind(-1), strict=True))
        # Curves that start fast end low in some tasks and high in others; fast ones diverge.
        coupling = 0.9 * ((2 * uniform(batch, 1, 1) - 1) ** 3).expand(-1, C, k)
        rate = coupling * named["high"][..., None] + (1 - coupling**2).sqrt() * rate
        risk = 0.8 * uniform(batch, 1)
        z_diverged = risk * rate[..., 0] + (1 - risk**2).sqrt() * named["diverged"]

        low = torch.where(
            uniform(batch) < 0.7, 0.5 * 10 ** (-2.5 * uniform(batch)), 0.4 * uniform(batch)
        )
        top = uniform(batch, 1) ** 0.3
        shortfall = _cdf(-named["high"]) ** torch.exp(0.7 * normal(batch, 1))
        high = low[:, None] + (1 - low[:, None]) * top * (1 - uniform(batch, 1) ** 0.3 * shortfall)
        mixed = torch.softmax(1.5 * normal(batch, k), -1)
        families = torch.arange(k, device=h.device)
        single = ((uniform(batch, 1) * k).long() == families).to(mixed)
        plateau = (uniform(batch, 1) < 0.35) & (uniform(batch, k) < 0.6)
        falls_to_start = uniform(batch) < 0.5
        drops = uniform(batch) < 0.2
        return {
            "hyperparameters": h,
            "weight": torch.where(uniform(batch, 1) < 0.5, single, mixed),
            "low": low,
            "high": high,
            # fractions of the whole training; the inverse logarithm is much the slowest
            "tau": 10 ** (-1.1 + 0.8 * rate - 1.5 * _is_slow(rate)),
            "shape": torch.exp(0.5 * shape),
            "delay": plateau[:, None] * 10 ** (-2.2 * _cdf(named["delay"]) - 0.1)[..., None],
            "failed": _rare(named["failed"], self.failure),
            "diverged": _rare(z_diverged, self.divergence),
            "divergence_time": 10 ** (-2 * _cdf(named["divergence_time"])),
            "divergence_width": 10 ** (-3 + 2 * uniform(batch)),
            "divergence_level": torch.where(falls_to_start, low, low * uniform(batch)),
            "recovery_width": torch.where(
                uniform(batch) < 1 / 3, 10 ** (-2 + 1.5 * uniform(batch)), torch.inf
            ),
            "overfits": _rare(named["overfits"], self.overfitting),
            "overfitting": 0.6 * _cdf(named["overfitting"]),
            "overfitting_time": 10 ** (-1.5 * uniform(batch)),
            "drop_time": 0.25 + 0.7 * uniform(batch, 2),
            "drop_size": drops[:, None] * (0.1 + 0.6 * uniform(batch, 2)),
            "drop_width": 10 ** (-3 + 2 * uniform(batch)),
            "noise": -5.7 + 1.2 * normal(batch, 1) + 0.4 * named["noise"],
            "noise_trend": 1 + normal(batch),
        }


def _rows(task: Task, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Curve and step of some rows, `[B, M]`, and the number of steps of their tasks, `[B]`."""
    curve, step = (task.row_latents[name][:, rows] for name in ("curve", "step"))
    return curve, step, task.latents["steps"]


def _metric(
    latents: dict[str, Tensor], curve: Tensor, step: Tensor, steps: Tensor
) -> tuple[Tensor, Beta]:
    """Noise-free and noisy values at rows `[B, M]` of tasks of so many steps, `[B]`."""
    f = _values(latents, curve, step / steps[:, None])
    # larger early in most tasks; at most 1/4, at f = 1/2
    trend = latents["noise_trend"][:, None] * (0.5 - log_time(step, steps[:, None]))
    scale = (latents["noise"].gather(1, curve) + trend).exp().clamp(max=0.25)
    precision = 1 / (4 * scale**2) - 1
    return f, Beta(f * precision, (1 - f) * precision, validate_args=False)


def _related(h: Tensor, num: int, draws: RandomSource) -> Tensor:
    """`num` standard normal quantities of the settings `h` `[B, C, p]`; see the module's text."""
    batch, C, p = h.shape
    uniform, normal = draws.uniform, draws.normal
    relevance = torch.exp(0.9 + 0.8 * normal(batch, p, 1)) * (uniform(batch, p, 1) < 0.8)
    angle = h @ (relevance * normal(batch, p, _HIDDEN))
    hidden = torch.cat([angle.sin(), angle.cos()], -1) / math.sqrt(_HIDDEN)
    g = hidden @ normal(batch, 2 * _HIDDEN, num)
    variety = 1 - 0.7 * uniform(batch, 1, num) ** 2
    own = 0.3 * uniform(batch, 1, 1) ** 2
    return (
        (1 - variety).sqrt() * normal(batch, 1, num)
        + (variety * (1 - own)).sqrt() * g
        + (variety * own).sqrt() * normal(batch, C, num)
    )


def _draw_rows(
    draws: RandomSource, batch: int, C: int, n: int, q: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Curve and step of every row, `[B, n + q]`, and the number of steps of each task, `[B]`.

    The n context rows are shared out among the curves at random; a curve with m of them is known
    up to step m.
    """
    uniform = draws.uniform

    def pick(weight: Tensor, num: int) -> Tensor:
        """Curve numbers `[B, num]` in proportion to `weight` `[B, C]`."""
        edges = weight.cumsum(-1)
        # u < 1 may still round up to the last edge, behind which there is no curve
        u = (uniform(batch, num) * edges[:, -1:]).clamp(max=edges[:, -1:] * (1 - 1e-12))
        return torch.searchsorted(edges, u, right=True)

    inequality = 3 * uniform(batch, 1)
    weight = (-uniform(batch, C).log()) ** inequality + 1e-6
    first = pick(weight, n).sort(-1).values
    known = torch.zeros(batch, C, dtype=torch.long, device=first.device)
    known = known.scatter_add(1, first, torch.ones_like(first))
    before = (known.cumsum(-1) - known).gather(1, first)
    step = (torch.arange(n, device=first.device) - before + 1).to(torch.float64)
    last = known.gather(1, first).to(torch.float64)
    irregular = uniform(batch, 1) < 0.3
    step = torch.where(irregular, last ** uniform(batch, n), step)

    longest = known.amax(-1)
    steps = (longest / (0.05 + 0.95 * uniform(batch))).ceil()
    few = torch.exp(math.log(200) * uniform(batch)).ceil()
    steps = torch.where(uniform(batch) < 0.5, few, steps)
    steps = torch.maximum(steps, (longest + 1).clamp(min=_FEWEST_STEPS))
    some_ended = (uniform(batch) < 0.25) & (known.amin(-1) < longest) & (longest >= _FEWEST_STEPS)
    steps = torch.where(some_ended, longest.to(steps), steps)

    open_ended = (known < steps[:, None]).to(torch.float64)
    second = pick(open_ended, q)
    past = known.gather(1, second).to(torch.float64)
    left = steps[:, None] - past
    share = torch.where(uniform(batch, q) < 0.25, 1.0, uniform(batch, q) ** 1.5)
    later = past + (share * left).ceil().clamp(min=1)
    return torch.cat([first, second], 1), torch.cat([step, later], 1), steps


def _values(latents: dict[str, Tensor], curve: Tensor, time: Tensor) -> Tensor:
    """Noise-free values of the curves numbered `curve` `[B, M]` at `time` `[B, M]`."""

    def of_task(name: str) -> Tensor:
        return latents[name][:, None]

    def of_curve(name: str) -> Tensor:
        value = latents[name]
        if value.dim() == 2:
            return value.gather(1, curve)
        return value.gather(1, curve[..., None].expand(-1, -1, value.shape[-1]))

    since = (time[..., None] - of_curve("delay")).clamp(min=0)
    growth = _growth(since / of_curve("tau"), of_curve("shape"))
    gap = 1 - (growth * of_task("weight")).sum(-1)
    for j in range(latents["drop_time"].shape[-1]):
        late = (time - latents["drop_time"][:, j, None]).clamp(min=0)
        gap = gap * (
            1 - latents["drop_size"][:, j, None] * -torch.expm1(-late / of_task("drop_width"))
        )
    progress = (1 - gap) * torch.where(of_curve("failed"), 0.03, 1.0)
    start = of_task("overfitting_time")
    late = (time - start).clamp(min=0) / (1 - start).clamp(min=1e-3)
    progress = progress * (1 - of_curve("overfits") * of_curve("overfitting") * late)
    f = of_task("low") + (of_curve("high") - of_task("low")) * progress
    late = (time - of_curve("divergence_time")).clamp(min=0)
    fallen = -torch.expm1(-late / of_task("divergence_width"))
    fallen = fallen * torch.exp(-late / of_task("recovery_width")) * of_curve("diverged")
    f = f + fallen * (of_task("divergence_level") - f)
    # away from 0 and 1, where there would be no noise
    return _FLOOR + (1 - 2 * _FLOOR) * f


def _growth(u: Tensor, shape: Tensor) -> Tensor:
    """The families' growth from 0 at u = 0 to 1, `[..., k]` in the order of `FAMILIES`."""
    power, exponential, ilog2, weibull, mmf = u.unbind(-1)
    a, b, c = shape[..., 0], shape[..., 3], shape[..., 4]
    hill = mmf.pow(c)
    return torch.stack(
        [
            1 - (1 + power).pow(-a),
            -torch.expm1(-exponential),
            1 - 1 / torch.log2(2 + ilog2),
            -torch.expm1(-weibull.pow(b)),
            hill / (1 + hill),
        ],
        -1,
    )


def _is_slow(like: Tensor) -> Tensor:
    return like.new_tensor([name == "ilog2" for name in FAMILIES])


def _cdf(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


def _rare(z: Tensor, probability: float) -> Tensor:
    """True with this probability; never at 0, always at 1."""
    return _cdf(z) < probability if probability < 1 else torch.ones_like(z, dtype=torch.bool)
