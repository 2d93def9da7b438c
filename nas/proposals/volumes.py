"""What a candidate is expected to add to the volume that a Pareto front dominates.

Given a front, the space that it does not dominate falls into disjoint boxes, and a point y adds to
the box from l to u the volume prod_j (min(y_j, u_j) - l_j)_+. Of independent Gaussian y_j the mean
of that is prod_j (psi_j(l_j) - psi_j(u_j)) with psi_j(a) = E (y_j - a)_+, in closed form (Yang et
al. 2019, "Efficient computation of expected hypervolume improvement using box decomposition
algorithms", section 3; Daulton et al. 2020, 2006.05078, eq. 2).

The observed points are uncertain too. `ExpectedVolume` draws their values, and with them the front,
and takes the mean over the draws of the closed form given each: the noisy expected improvement of
Daulton et al. 2021, 2105.08195, eq. 3, of which only the front is left to Monte Carlo.
`PlugInVolume` takes the means for the values, which costs next to nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models import ModelList
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from botorch.utils.multi_objective.hypervolume import infer_reference_point
from botorch.utils.multi_objective.pareto import is_non_dominated
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Generator, Tensor

from nas.proposals.moments import joint_moments

__all__ = ["ExpectedVolume", "PlugInVolume", "Screened", "reference_of"]

NUM_FRONTS = 32  # draws of the values at the observed points
NUM_SCREENED = 128  # candidates for which the fronts are drawn
ENTRIES = 1 << 20  # of candidates, draws and boxes at a time
LOG_DENSITY_AT_0 = -0.5 * math.log(2 * math.pi)


class PlugInVolume(AcquisitionFunction):
    """Logarithm of the expected gain if the observed points have the values expected of them.

    Args:
        model: An output for each objective.
        X: Observed points, `[n, d]`.
        pending: Running trials, `[p, d]`, or None.
    """

    _log = True  # as BoTorch marks its own

    def __init__(self, model: ModelList, X: Tensor, pending: Tensor | None = None) -> None:
        super().__init__(model)
        reference = reference_of(model, X)
        known = X if pending is None else torch.cat([X, pending])
        with torch.no_grad():
            mean = model.posterior(known).mean  # type: ignore[attr-defined]
        self.lower, self.upper = _boxes(mean[None], reference)

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        posterior: Any = self.model.posterior(X)
        mean, deviation = posterior.mean[:, 0], posterior.variance[:, 0].clamp_min(1e-12).sqrt()
        return _log_gain(mean[None], deviation, self.lower, self.upper)


class ExpectedVolume(AcquisitionFunction):
    """Logarithm of the expected gain over a front that is drawn with the values of its points.

    Args:
        model: An output for each objective, independent, with joint Gaussian posteriors.
        X: Observed points, `[n, d]`.
        pending: Running trials, `[p, d]`, or None; their values are drawn like the observed ones.
        seed: Of the draws.
    """

    _log = True

    def __init__(self, model: ModelList, X: Tensor, pending: Tensor | None, seed: int) -> None:
        super().__init__(model)
        self._models: list[Any] = [*model.models]
        reference = reference_of(model, X)
        known = X if pending is None else torch.cat([X, pending])
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            # Only what is on some front counts, which one draw tells and another one is made for.
            on_front = is_non_dominated(self._draw(known, generator)[0]).any(0)
            self.known = known[on_front]
            values, self._noise = self._draw(self.known, generator)
        self.lower, self.upper = _boxes(values, reference)

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`."""
        rows, number = torch.cat([self.known, X[:, 0]]), len(self.known)
        means, deviations = [], []
        for model, noise in zip(self._models, self._noise, strict=True):
            mean, covariance = joint_moments(model.posterior(rows))
            across = torch.linalg.solve_triangular(
                _factor(covariance[:number, :number]), covariance[:number, number:], upper=False
            )
            variance = covariance.diagonal()[number:] - across.square().sum(0)
            means.append(mean[number:] + noise @ across)
            deviations.append(variance.clamp_min(1e-12).sqrt())
        return _log_gain(
            torch.stack(means, -1), torch.stack(deviations, -1), self.lower, self.upper
        )

    def _draw(self, X: Tensor, generator: Generator) -> tuple[Tensor, list[Tensor]]:
        """Values at `X` `[draws, n, m]`, and for each objective the normals `[draws, n]` behind."""
        values, normals = [], []
        for model in self._models:
            mean, covariance = joint_moments(model.posterior(X))
            noise = torch.randn(
                NUM_FRONTS, len(X), generator=generator, dtype=torch.float64, device="cpu"
            ).to(X)
            values.append(mean + noise @ _factor(covariance).T)
            normals.append(noise)
        return torch.stack(values, -1), normals


class Screened(AcquisitionFunction):
    """An acquisition function of the few candidates that a cheap one finds best.

    Args:
        acquisition: In logarithms; asked about `NUM_SCREENED` of more candidates.
        screen: Says which.
    """

    _log = True

    def __init__(self, acquisition: AcquisitionFunction, screen: AcquisitionFunction) -> None:
        super().__init__(acquisition.model)
        self.acquisition = acquisition
        self.screen = screen

    def forward(self, X: Tensor) -> Tensor:
        """`[b, 1, d]` to `[b]`, `-inf` for those that were not asked about."""
        if len(X) <= NUM_SCREENED:
            return self.acquisition(X)
        best = self.screen(X).nan_to_num(nan=-torch.inf).topk(NUM_SCREENED).indices
        values = X.new_full((len(X),), -torch.inf)
        values[best] = self.acquisition(X[best])
        return values


def reference_of(model: ModelList, X: Tensor) -> Tensor:
    """The corner from which volume is measured, `[m]`, behind the front of the expected values.

    Args:
        model: An output for each objective.
        X: Observed points, `[n, d]`.
    """
    with torch.no_grad():
        mean = model.posterior(X).mean  # type: ignore[attr-defined]
    return infer_reference_point(mean[is_non_dominated(mean)])


def _boxes(values: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corners `[draws, boxes, m]` of what the fronts of `values` `[draws, n, m]`
    do not dominate; draws with fewer boxes have empty ones besides."""
    if values.shape[-1] == 2:
        lower, upper = FastNondominatedPartitioning(reference, Y=values).get_hypercell_bounds()
        return lower, upper
    each = [FastNondominatedPartitioning(reference, Y=y).get_hypercell_bounds() for y in values]
    size = max(bounds.shape[1] for bounds in each)
    empty = reference.expand(2, size, -1)
    padded = torch.stack([torch.cat([b, empty[:, b.shape[1] :]], 1) for b in each], 1)
    return padded[0], padded[1]


def _log_gain(mean: Tensor, deviation: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Logarithm of the mean over draws of the volume that is gained, `[b]`.

    Args:
        mean: Of candidates given each draw, `[draws, b, m]`.
        deviation: `[b, m]`, the same given any draw.
        lower: Corners of boxes, `[draws, boxes, m]`.
        upper: Likewise.
    """
    number = max(1, ENTRIES // lower[..., 0].numel())
    gains = []
    for means, deviations in zip(
        mean.split(number, 1), deviation.split(number), strict=True
    ):  # so that they fit the caches
        spread = deviations[:, None]
        above = _excess(means[:, :, None], spread, lower[:, None])
        beyond = _excess(means[:, :, None], spread, upper[:, None])
        gains.append((above - beyond).prod(-1).sum(-1).mean(0))
    gain = torch.cat(gains)
    return gain.clamp_min(torch.finfo(gain.dtype).tiny).log()


def _excess(mean: Tensor, deviation: Tensor, threshold: Tensor) -> Tensor:
    """E (y - threshold)_+ of Gaussian y; 0 for an infinite threshold."""
    z = ((mean - threshold) / deviation).clamp_min(-40.0)  # where it is 0 in double precision
    density = (LOG_DENSITY_AT_0 - 0.5 * z.square()).exp()
    return deviation * (density + z * torch.special.ndtr(z)).clamp_min(0.0)


def _factor(covariance: Tensor) -> Tensor:
    size = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return psd_safe_cholesky(covariance + 1e-8 * size * eye)
