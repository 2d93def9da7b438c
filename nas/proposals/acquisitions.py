"""Acquisition functions by name: what makes a candidate worth a trial.

An acquisition is made from a model, the observed rows, the rows of running trials and a seed. Those
of BoTorch and `priors` respect running trials by integrating over their outcomes; the ones here,
which need a mean and a standard deviation, by the deviation that is left once the running trials
will be known, whatever they give. All take batches `[b, 1, d]`.

With several objectives the model has an output for each, and what is gained is volume that the
Pareto front dominates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from botorch.acquisition import (
    AcquisitionFunction,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
)
from botorch.acquisition import LogExpectedImprovement as GaussianLogExpectedImprovement
from botorch.acquisition.multi_objective.logei import (
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.models import ModelList
from botorch.models.model import Model
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.list_sampler import ListSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Generator, Tensor

from nas.compat import uncompiled
from nas.proposals.moments import is_gaussian, joint_moments
from nas.proposals.volumes import ExpectedVolume, PlugInVolume, reference_of
from pfn.model import PFNModel
from priors.posteriors.acquisition import GaussianApproximation, LogExpectedImprovement
from priors.posteriors.protocol import PredictivePosterior

__all__ = [
    "ACQUISITIONS",
    "HYPERVOLUME",
    "Acquisition",
    "SCREENS",
    "MaxValueEntropy",
    "ThompsonSample",
    "UpperConfidenceBound",
]

Acquisition = Callable[[Model, Tensor, Tensor | None, int], AcquisitionFunction]
"""`(model, observed X [n, d], pending X [p, d] or None, seed)` to an acquisition function of a
maximisation."""

NUM_SAMPLES = 128
NUM_VOLUME_SAMPLES = 128  # each with a partition of its own
NUM_MAXIMA = 32  # draws of the maximum
BETA = 2.0
JITTER = 1e-6  # of standardised targets, so that points asked twice can be drawn


class UpperConfidenceBound(AcquisitionFunction):
    """mean + sqrt(beta) deviation, the deviation with running trials known.

    Args:
        model: With a joint posterior.
        pending: Running trials, `[p, d]`, or None.
        beta: Weight.
    """

    def __init__(self, model: Model, pending: Tensor | None = None, beta: float = BETA) -> None:
        super().__init__(model)
        self.pending = pending
        self.beta = beta

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        mean, deviation = _moments(self.model, X, self.pending)
        return mean + self.beta**0.5 * deviation


class MaxValueEntropy(AcquisitionFunction):
    """Logarithm of the nats about the maximum that a noise-free value tells.

    Wang & Jegelka 2017 (1703.01968), eq. 6.

    The maximum over the first batch is drawn from a Gumbel law fitted to the product of the
    marginals (their section 3.1): ask first for a batch that represents the space.

    Args:
        model: With a joint posterior.
        pending: Running trials, `[p, d]`, or None.
    """

    _log = True  # as BoTorch marks its own

    def __init__(self, model: Model, pending: Tensor | None = None) -> None:
        super().__init__(model)
        self.pending = pending
        self._maxima: Tensor | None = None

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        mean, deviation = _moments(self.model, X, self.pending)
        if self._maxima is None:
            self._maxima = _gumbel_maxima(*_moments(self.model, X, None))
        excess = (self._maxima[:, None] - mean) / deviation
        log_below = torch.special.log_ndtr(excess)
        log_density = -0.5 * excess.square() - 0.5 * math.log(2 * math.pi)
        gain = 0.5 * excess * (log_density - log_below).exp() - log_below
        return gain.mean(0).clamp_min(torch.finfo(gain.dtype).tiny).log()


class ThompsonSample(AcquisitionFunction):
    """One draw of the whole function, exact and joint over all that is asked.

    Each batch is drawn given the values of the batches before it.

    Args:
        model: With a joint posterior.
        seed: Of the draw.
    """

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__(model)
        self.seed = seed
        self._X: Tensor | None = None
        self._values: Tensor | None = None

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        new = X[:, 0]
        rows = new if self._X is None else torch.cat([self._X, new])
        known = len(rows) - len(new)
        posterior = self.model.posterior(rows)
        mean, covariance = joint_moments(posterior)
        eye = torch.eye(len(rows), dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.cholesky(covariance + JITTER * eye)
        # A factor's first rows are that of the first points alone, so the same normals give them
        # the same values, and new ones follow.
        noise = torch.randn(
            len(rows),
            generator=Generator().manual_seed(self.seed),
            dtype=torch.float64,
            device="cpu",
        ).to(mean)
        if known:
            assert self._values is not None
            head = torch.linalg.solve_triangular(
                factor[:known, :known], (self._values - mean[:known])[:, None], upper=False
            )[:, 0]
            noise = torch.cat([head, noise[known:]])
        values = mean + factor @ noise
        self._X, self._values = rows.detach(), values.detach()
        return values[known:]


def _moments(model: Model, X: Tensor, pending: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[b]` at `X` `[b, 1, d]`, given that pending rows will be known."""
    if pending is None:
        posterior: Any = model.posterior(X)
        variance = posterior.variance[..., 0, 0]
        return posterior.mean[..., 0, 0], variance.clamp_min(1e-12).sqrt()
    together = torch.cat([X, pending.expand(*X.shape[:-2], *pending.shape)], dim=-2)
    mean, covariance = joint_moments(model.posterior(together))
    across = covariance[..., :1, 1:]
    inner = covariance[..., 1:, 1:]
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    factor = torch.linalg.cholesky(inner + (1e-6 * size + 1e-12) * eye)
    known = torch.linalg.solve_triangular(factor, across.mT, upper=False).square().sum((-2, -1))
    variance = covariance[..., 0, 0] - known
    return mean[..., 0], variance.clamp_min(1e-12).sqrt()


def _gumbel_maxima(mean: Tensor, deviation: Tensor) -> Tensor:
    """Draws of the maximum by quantiles: the Gumbel law through its quartiles, at even levels."""

    def quantile(level: float) -> Tensor:
        low, high = mean.max() - 5 * deviation.max(), (mean + 5 * deviation).max()
        for _ in range(40):
            middle = (low + high) / 2
            log_below = torch.special.log_ndtr((middle - mean) / deviation).sum()
            below = log_below < math.log(level)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    lower, middle, upper = (quantile(level) for level in (0.25, 0.5, 0.75))
    scale = (upper - lower) / (math.log(math.log(4)) - math.log(math.log(4 / 3)))
    scale = scale.clamp_min(1e-9)
    location = middle + scale * math.log(math.log(2))
    levels = (torch.arange(NUM_MAXIMA, dtype=mean.dtype, device=mean.device) + 0.5) / NUM_MAXIMA
    return location - scale * (-levels.log()).log()


def _log_expected_improvement(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    """Closed form without pending points, where the posterior has one; otherwise sampled."""
    with torch.no_grad():
        posterior: Any = model.posterior(X)  # whose mean BoTorch's base class does not declare
        best_f = posterior.mean.max()
    if X_pending is not None:
        return qLogExpectedImprovement(model, best_f, _sampler(seed), X_pending=X_pending)
    if not isinstance(posterior, PredictivePosterior):
        return GaussianLogExpectedImprovement(model, best_f)
    try:
        posterior.log_excess(best_f, 1)
    except NotImplementedError:
        return qLogExpectedImprovement(model, best_f, _sampler(seed))
    return LogExpectedImprovement(model, best_f)


def _log_noisy_expected_improvement(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    model = _of_moments(model)
    return qLogNoisyExpectedImprovement(model, X, _sampler(seed), X_pending=X_pending)


def _upper_confidence_bound(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    return UpperConfidenceBound(model, X_pending)


def _max_value_entropy(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    return MaxValueEntropy(model, X_pending)


def _thompson(model: Model, X: Tensor, X_pending: Tensor | None, seed: int) -> AcquisitionFunction:
    return ThompsonSample(model, seed)


def _log_hypervolume_improvement(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    """Over the uncertain front at observed points, in closed form but for that front; where the
    models are not Gaussian sampled (Ament et al. 2023, 2310.20708)."""
    model = _of_moments(model)
    assert isinstance(model, ModelList)
    with torch.no_grad():
        posterior: Any = model.posterior(X)
    if all(is_gaussian(one) for one in posterior.posteriors):
        return ExpectedVolume(model, X, X_pending, seed)
    shape = torch.Size([NUM_VOLUME_SAMPLES])
    samplers = [
        get_sampler(one, shape, seed=seed + k) for k, one in enumerate(posterior.posteriors)
    ]
    with uncompiled():
        return qLogNoisyExpectedHypervolumeImprovement(
            model,
            reference_of(model, X),
            X,
            sampler=ListSampler(*samplers),
            X_pending=X_pending,
            prune_baseline=True,
            cache_root=False,  # models need not be of GPyTorch
        )


def _plug_in_volume(
    model: Model, X: Tensor, X_pending: Tensor | None, seed: int
) -> AcquisitionFunction:
    model = _of_moments(model)
    assert isinstance(model, ModelList)
    return PlugInVolume(model, X, X_pending)


def _of_moments(model: Model) -> Model:
    """The model, PFNs by their marginal means and variances alone: they draw from a joint posterior
    one point after another, which takes minutes for the candidates of a proposal."""
    if isinstance(model, ModelList):
        return ModelList(*(_of_moments(one) for one in model.models))  # type: ignore[arg-type]
    return GaussianApproximation(model) if isinstance(model, PFNModel) else model


def _sampler(seed: int) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(torch.Size([NUM_SAMPLES]), seed=seed)


ACQUISITIONS: dict[str, Acquisition] = {
    "logei": _log_expected_improvement,
    "lognei": _log_noisy_expected_improvement,
    "mes": _max_value_entropy,
    "thompson": _thompson,
    "ucb": _upper_confidence_bound,
}

HYPERVOLUME: dict[str, Acquisition] = {
    "logei": _log_hypervolume_improvement,
    "lognei": _log_hypervolume_improvement,
}
"""What the names stand for with several objectives."""

SCREENS: dict[Acquisition, Acquisition] = {_log_hypervolume_improvement: _plug_in_volume}
"""Of those that cost much, cheaper ones that say which candidates they are asked about."""
