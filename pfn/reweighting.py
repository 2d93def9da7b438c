"""Repair of a network's predictions where the density of the data is known: importance weights.

A network infers only approximately, and only under the prior that it was trained on. Where the
joint density p(y_context, y) of a prior can be evaluated (a Gaussian process with other
hyperparameters, a scale mixture, an average over a grid), the network's joint samples of y are
proposals, and the weights p(y_context, y) / q(y | y_context) make them samples of the exact
posterior predictive, however wrong q is as long as it is wide enough. The largest weights are
smoothed by a Pareto law, whose shape says whether that worked (Vehtari et al. 2024, 1507.02646).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfn.model import PFNModel
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.protocol import PredictivePosterior

__all__ = ["ReweightedPosterior", "reweight"]


class ReweightedPosterior(EmpiricalPosterior):
    """Weighted joint samples of y, with what the weights say of themselves.

    Attributes:
        effective_samples: Kish's effective sample size, 1 / sum w^2.
        pareto_shape: Shape k of the Pareto law of the largest weights.
        largest_shape: Estimates are reliable below it: min(1 - 1 / log10 S, 0.7).
    """

    def __init__(self, draws: Tensor, log_weights: Tensor, pareto_shape: float) -> None:
        super().__init__(draws, log_weights)
        self.pareto_shape = pareto_shape
        # Vehtari et al. 2024, section 3.2.4
        self.largest_shape = min(1 - 1 / math.log10(len(draws)), 0.7) if len(draws) > 10 else 0.0
        self.effective_samples = float(1 / self.log_weights.exp().square().sum())

    @property
    def _kind(self) -> Sequence[str]:
        worth = f"worth {self.effective_samples:.4g}"
        return [*super()._kind, worth, f"Pareto shape {self.pareto_shape:.2f}"]


def reweight(
    model: PFNModel,
    X: Tensor,
    log_density: Callable[[Tensor, Tensor], Tensor],
    *,
    num_samples: int = 512,
    generator: torch.Generator | None = None,
) -> ReweightedPosterior:
    """The posterior of y at X under a density that can be evaluated, by a network's proposals.

    Args:
        model: A network conditioned on one data set of one output.
        X: Queries `[q, d]`; few, since weights get worse with every point.
        log_density: From inputs `[n + q, d]`, context first, and targets `[S, n + q]` to the log
            density of all the targets, `[S]`, up to a constant; -inf where the density is zero.
        num_samples: Number S of proposals.
        generator: Source of the proposals.

    Returns:
        Weighted samples `[S, q, 1]`; warns where their weights are unreliable.

    Raises:
        ValueError: a batch of data sets, several outputs, a density that is NaN or infinite, or
            zero at every proposal.
    """
    if model.batch_shape or model.num_outputs != 1 or X.dim() != 2:
        raise ValueError(
            f"reweight takes one data set of one output and queries [q, d], got batch shape "
            f"{tuple(model.batch_shape)}, {model.num_outputs} outputs and X {tuple(X.shape)}."
        )
    with torch.no_grad():
        posterior = model.posterior(X, observation_noise=True)
        assert isinstance(posterior, PredictivePosterior)
        shape = (num_samples, *posterior.base_sample_shape)
        where = X.device if generator is None else generator.device
        base = torch.randn(shape, generator=generator, dtype=X.dtype, device=where).to(X)
        draws = posterior.rsample_from_base_samples(torch.Size([num_samples]), base)
        proposal = posterior.joint_log_prob(draws)
        known = model.train_Y[:, 0].expand(num_samples, -1)
        inputs = torch.cat([model.train_X, X])
        target = log_density(inputs, torch.cat([known, draws[..., 0]], dim=-1))
    if target.shape != (num_samples,):
        raise ValueError(
            f"log_density must have shape ({num_samples},), got {tuple(target.shape)}."
        )
    unusable = target.isnan() | target.isposinf()
    if bool(unusable.any()):
        raise ValueError(
            f"log_density gave {int(unusable.sum())} NaN or +inf for {num_samples} proposals; it "
            "must give numbers, or -inf where the density is zero."
        )
    if bool(target.isneginf().all()):
        raise ValueError(
            f"log_density is -inf at all {num_samples} proposals: none can be reweighted. Ask for "
            "more samples or fewer points at once, or use an exact engine."
        )
    import arviz  # slow to load

    ratios = (target - proposal).double()
    smoothed, shape = arviz.psislw(ratios.cpu().numpy(), normalize=True)
    found = ReweightedPosterior(draws, draws.new_tensor(smoothed), float(shape))
    if not found.pareto_shape < found.largest_shape:
        warnings.warn(
            f"The largest of {num_samples} importance weights have Pareto shape "
            f"{found.pareto_shape:.2f}; from {found.largest_shape:.2f} on estimates are "
            "unreliable. Ask for fewer points at once or more samples, or use an exact engine.",
            stacklevel=2,
        )
    return found
