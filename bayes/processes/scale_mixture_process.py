"""Gaussian processes whose overall scale has any prior: scale mixtures, exact in the scale.

    s ~ scale,   f | s ~ GP(0, s k),   y = f(x) + e,
    e ~ N(0, noise)        noise outside the mixture (`scale_noise=False`)
    e | s ~ N(0, s noise)  noise inside it (`scale_noise=True`)

Given s everything is Gaussian, and s is one number: with one eigendecomposition of the rows
(`ScaledRows`) the likelihood of any s costs O(n), and what is asked is a one-dimensional integral
over s to a stated error (`scale_quadrature`). Neither knows of the prior of s, so another prior
costs no further decomposition. Lee et al. 2022 (2107.01408) draw s from its prior and weigh the
draws; that degenerates as rows come in, and the integral does not.

For an inverse gamma prior and noise inside the mixture this is `StudentTProcess`, whose formulas
are closed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from botorch.models.utils import gpt_posterior_settings
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from linear_operator import to_dense
from linear_operator.operators import BlockDiagLinearOperator, DiagLinearOperator, LinearOperator
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import AffineTransform

from bayes.caching import Snapshot
from bayes.conditioning import unrepeated
from bayes.processes.exact_process import ExactProcess
from bayes.processes.marginal_likelihood import (
    JointMarginalLogLikelihood,
    exact_solves,
    relative_jitter,
)
from bayes.processes.scale_mixture import ScaleMixturePosterior, order_of_moments
from bayes.processes.scale_prior import ScalePrior, scale_of_description
from bayes.processes.scale_quadrature import Landmarks, ScaleNodes, integrate
from bayes.processes.scale_queries import Queries, own_unit
from bayes.processes.scaled_rows import FactoredRows, ScaledRows, log_likelihoods
from priors.files import read_safetensors
from priors.posteriors.batch_mixture import BatchMixturePosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.posteriors.transforms import DEFAULT

__all__ = ["ScaleMixtureProcess"]

_NO_SCALE = -600.0  # log s of what is no number any more


class ScaleMixtureProcess(ExactProcess):
    """A Gaussian process times the square root of an unknown variance, conditioned exactly.

    The posterior is a `ScaleMixturePosterior`, joint over points and outputs: the mixture itself,
    never a Gaussian with its moments. `fit()` maximises the marginal likelihood, the integral over
    the scale included, over kernel, noise and what is learnt of the scale prior. Integrals over
    the scale have a relative error of about 1e-11, estimated and kept (`scale_posterior().error`).
    The first prediction costs one eigendecomposition of the rows, some ten times a Gaussian
    process's; it is kept for all later ones and for other scale priors (`model.scale = ...`).

    What it cannot do: discount a single bad y. The scale is one number for all rows; an outlier
    widens the intervals everywhere and pulls the mean as it does that of a Gaussian process.
    Against outliers take a likelihood with heavy tails or BoTorch's
    `RobustRelevancePursuitSingleTaskGP`; the guide "Heavy tails" compares them.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`; the columns share the scale.
        kernel: Prior covariance of f given a scale of 1; copied.
        scale: Prior of the variance sigma^2 that multiplies the kernel, on the model's
            (standardised) scale: a `torch.distributions` distribution on the positive reals, such
            as `InverseGamma(2.0, 2.0)`, `LogNormal`, `priors.BurrXII`, `BetaPrime`,
            `HalfCauchyVariance`, or a `MixtureSameFamily` of them. Copied.
        scale_noise: Whether the scale multiplies the noise too, which then is relative to it.
        learn_scale: Learn the scale prior's parameters with the kernel's. Without it those are
            learnt that were given as tensors that require a gradient. A kernel with an output
            scale of its own leaves only the shape of the scale prior to be learnt: hold one.
        train_Yvar: Known noise variances, `[..., n, m]`, units of Y squared; relative to sigma^2
            with `scale_noise`.
        train_weights: See `GaussianProcess`.
        likelihood: See `GaussianProcess`.
        input_transform: See `GaussianProcess`.
        outcome_transform: See `GaussianProcess`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, values are not finite, or the scale is not a distribution of
            one positive number.

    Attributes:
        scale: The scale prior at its present parameters; may be set.

    Methods:
        fit: Learn kernel, noise and scale prior; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        scale_posterior: What is believed of the scale now.
        log_marginal_likelihood: The evidence, to decide among kernels and scale priors.
        leave_one_out: Each row's y given all the others.
        sample_path: Functions drawn from the posterior, for any kernel.
        condition_on_observations: A model of further rows, with the hyperparameters as they are.
        fantasize: Such models of rows drawn from the posterior.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `SingleTaskGP`.
    """

    _has_unknown_scale = True
    _kept: tuple[Any, ScaledRows] | None = None
    _kept_nodes: tuple[ScaledRows, Snapshot, ScaleNodes] | None = None

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        scale: Distribution,
        scale_noise: bool = False,
        learn_scale: bool = False,
        train_Yvar: Tensor | None = None,
        train_weights: Tensor | None = None,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        """See the class for the arguments."""
        scale_prior = ScalePrior(type(self).__name__, scale, learn_scale)
        super().__init__(
            train_X,
            train_Y,
            kernel,
            train_Yvar=train_Yvar,
            train_weights=train_weights,
            likelihood=likelihood,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
        )
        self.scale_noise = bool(scale_noise)
        self.scale_prior = scale_prior.to(train_Y)

    @property
    def scale(self) -> Distribution:
        """The prior of sigma^2 at its present parameters."""
        return self.scale_prior.law()

    @scale.setter
    def scale(self, law: Distribution) -> None:
        self._kept_nodes = None
        self.scale_prior = ScalePrior(type(self).__name__, law).to(self.train_Y)

    def __repr__(self) -> str:
        """Data, scale prior and the present values of the hyperparameters."""
        head, *values = super().__repr__().split("\n")
        where = "kernel and noise" if self.scale_noise else "kernel"
        return "\n".join([head, f"  scale of the {where}: {self.scale_prior.said()}", *values])

    def scale_posterior(self) -> ScaleNodes:
        """The posterior of sigma^2 as nodes, on the model's scale, and the error of integrals.

        A posterior mean is `(nodes.log_masses.exp() * nodes.scales).sum(-1)`, where it exists.
        """
        self.eval()
        with torch.no_grad(), exact_solves(), gpt_posterior_settings(), self.conditioned():
            return self._nodes(self._rows())

    def leave_one_out(self) -> PredictivePosterior:
        """What each training row's y was expected to be, given all the other rows.

        Hyperparameters and transforms stay. Each row has a posterior of the scale of its own, that
        of the other rows: the posterior of all rows over the density of this one.

        Returns:
            A posterior `[..., n, m]` of y in units of Y; marginals only.
        """
        self.eval()
        outcome = self._outcome
        with torch.no_grad(), exact_solves(), gpt_posterior_settings(), self.conditioned():
            rows = self._rows()
            part = 1 - 1 / rows.targets.shape[-1]  # all rows but one tell as much

            def log_density(t: Tensor) -> Tensor:
                tempered = part * rows.log_likelihoods(t.exp())
                return self.scale_prior.log_density(t) + tempered

            log_posterior = self._log_posterior(rows)
            nodes = integrate(_both(log_posterior, log_density), self.landmarks(rows))
            mean, variance = rows.left_out(nodes.scales)  # [*batch, S, m, n]
            density = -0.5 * (rows.targets.unsqueeze(-3) - mean).square() / variance
            density = (density - 0.5 * variance.log()).sum(-2)
            heights = log_posterior(nodes.t) + nodes.log_weights
            log_weights = (heights.unsqueeze(-1) - density).unsqueeze(-1)  # [*batch, S, n, 1]
            every = list(range(self.num_outputs))
            affine: Any = None
            if outcome is not None and outcome.affine:
                affine = outcome.of_outputs(every)
            unit = own_unit(variance, self.train_X.dtype)
            covariance = DiagLinearOperator((variance / unit.square()).to(self.train_X))
            each = self.gaussians(mean, covariance, unit, affine)
            found: PredictivePosterior = BatchMixturePosterior(each, log_weights.to(each.dtype))
        if outcome is not None and not outcome.affine:
            found = TransformedPosterior(found, outcome.transform)
        return found

    def gaussians(
        self,
        mean: Tensor,
        covariance: LinearOperator,
        unit: Tensor,
        transform: AffineTransform | None,
    ) -> GaussianPosterior:
        """Posteriors `[..., S, q, m]` given each scale, in the dtype of the rows.

        Args:
            mean: On the model's scale, `[..., S, m, q]`.
            covariance: Of the outputs in units of the queries, `[..., S, m, q, q]`.
            unit: How much of the model's scale it is, of the shape of the mean.
            transform: From the model's scale to the units of Y.
        """
        loc, scale = mean.mT.to(self.train_X), unit.mT.to(self.train_X)
        if transform is not None:  # parameters [..., 1, m] of a batch, beside its scales
            shift, size = (
                part.unsqueeze(-3) if isinstance(part, Tensor) and part.dim() > 2 else part
                for part in (transform.loc, transform.scale)
            )
            loc, scale = shift + size * loc, size * scale
        # the means are in the transform: in units of small deviations they would be rounded
        nothing = torch.zeros_like(loc)
        if loc.shape[-1] == 1:
            gaussian = MultivariateNormal(nothing.squeeze(-1), covariance[..., 0, :, :])
        else:
            joint = BlockDiagLinearOperator(covariance)
            gaussian = MultitaskMultivariateNormal(nothing, joint, interleaved=False)
        return GaussianPosterior(gaussian, AffineTransform(loc, scale))

    def _predict(
        self,
        X: Tensor,
        outputs: Sequence[int],
        observation_noise: bool | Tensor,
        transform: AffineTransform | None,
    ) -> ScaleMixturePosterior:
        with self.conditioned():
            return self._mixture(X, outputs, observation_noise, transform)

    def _mixture(
        self,
        X: Tensor,
        outputs: Sequence[int],
        observation_noise: bool | Tensor,
        transform: AffineTransform | None,
    ) -> ScaleMixturePosterior:
        X = self.transform_inputs(X)
        kept = self._rows()
        nodes = self._nodes(kept)
        rows: ScaledRows | FactoredRows = kept
        if self._attached:
            parts = self.row_parts()
            rows = FactoredRows(*parts, self.scale_noise)
            values = log_likelihoods(kept, *parts, nodes.scales)
            heights = self.scale_prior.log_density(nodes.t) + values + nodes.log_weights
            nodes = replace(nodes, log_masses=heights.log_softmax(-1))
        queries = Queries(self, X, observation_noise, outputs)
        moments = order_of_moments(self.scale_prior.tail_index(), kept.rank())
        return ScaleMixturePosterior(
            queries.given(rows, transform),
            nodes,
            queries.joint(kept, nodes, transform),
            moments=moments,
            growing=queries.growing(kept)
            if moments <= 2
            else torch.zeros_like(nodes.t[0], dtype=torch.bool),
        )

    def _rows(self) -> ScaledRows:
        """Of now, decomposed once; within `conditioned`."""
        if self._kept is None or self._kept[0] is not self.prediction_strategy:
            with torch.no_grad():
                rows = ScaledRows(*self.row_parts(), self.scale_noise)
            self._kept = (self.prediction_strategy, rows)
        return self._kept[1]

    def row_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kernel matrix, noise variances and targets, the outputs in dimension -3 or -2."""
        inputs = [unrepeated(part) for part in self.train_inputs]
        prior = self._get_train_prior_distribution(inputs)
        covariance = to_dense(prior.lazy_covariance_matrix)
        noise = _noise_variances(self.likelihood, prior.mean, inputs)
        return self._parts_by_output(covariance, noise, self.train_targets)

    def _parts_by_output(
        self, covariance: Tensor, noise: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.num_outputs > 1:
            return covariance, noise, targets
        return covariance.unsqueeze(-3), noise.unsqueeze(-2), targets.unsqueeze(-2)

    def _log_posterior(self, rows: ScaledRows) -> Callable[[Tensor], Tensor]:
        """Of log s, not normalised: takes `[S]` or `[*batch, S]`."""
        return lambda t: self.scale_prior.log_density(t) + rows.log_likelihoods(t.exp())

    def _nodes(self, rows: ScaledRows) -> ScaleNodes:
        parts = {"scale": self.scale_prior}
        kept = self._kept_nodes
        if kept is None or kept[0] is not rows or not kept[1].holds(parts):
            nodes = integrate(self._log_posterior(rows), self.landmarks(rows))
            if bool((nodes.log_masses.exp() * (nodes.t < _NO_SCALE)).sum(-1).max() > 1e-3):
                warnings.warn(
                    f"The outcomes of this {type(self).__name__} are all at the prior mean, and "
                    "its scale prior lets the scale be 0: predictions have no width. Take one "
                    "without much density there, such as InverseGamma(2.0, 2.0), or "
                    "scale_noise=False.",
                    stacklevel=2,
                )
            self._kept_nodes = kept = (rows, Snapshot(parts), nodes)
        return kept[2]

    def landmarks(self, rows: ScaledRows) -> Landmarks:
        """Those of the prior, and the scale that a likelihood of scaled noise suggests."""
        found = self.scale_prior.landmarks()
        suggested = rows.white.square().mean((-2, -1)).flatten().log().clamp(-600, 600)
        return replace(found, guides=torch.cat([found.guides, suggested.to(found.guides)]))

    def _log_evidence(self) -> Tensor:
        with gpt_posterior_settings(), self.conditioned():
            return self._nodes(self._rows()).log_integral.sum()

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return _ScaleMixtureMarginalLogLikelihood(self.likelihood, self)

    def integrated(self, covariance: Tensor, noise: Tensor, targets: Tensor) -> Tensor:
        """Log densities `[*batch]` of outcomes with the scale integrated out, with gradients.

        Args:
            covariance: Kernel matrix, `[..., n, n]`, of several outputs `[..., m, n, n]`.
            noise: Noise variances, `[..., n]` or `[..., m, n]`.
            targets: Of the same shape.
        """
        parts = self._parts_by_output(covariance, noise, targets)
        rows = ScaledRows(*parts, self.scale_noise)
        # derivatives of the nodes cancel: the integral does not depend on them
        nodes = integrate(self._log_posterior(rows), self.landmarks(rows))
        values = log_likelihoods(rows, *parts, nodes.scales)
        return (self.scale_prior.log_density(nodes.t) + values + nodes.log_weights).logsumexp(-1)

    def _process_posterior(
        self, gaussian: MultivariateNormal, transform: AffineTransform | None
    ) -> GaussianPosterior:
        return GaussianPosterior(gaussian, transform)  # given a scale of 1

    def _clear_cache(self) -> None:
        self._kept = self._kept_nodes = None
        super()._clear_cache()

    def _construction(self) -> dict[str, Any]:
        return {"scale": self.scale_prior.describe(), "scale_noise": self.scale_noise}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None = None,
        *,
        scale: Distribution | None = None,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote; see `ExactProcess.load`.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values; required.
            scale: Of the same make as at construction; needed where it is neither torch's nor
                ours.
            likelihood: The same as at construction.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no kernel was passed, or no scale where it is needed.
        """
        _, description = read_safetensors(path, kind=cls.__name__)
        saved = description["construction"]["scale"]
        law = scale_of_description(path, saved, scale)
        further = {"scale": law, "learn_scale": False}
        return cls._load(path, kernel, further, likelihood, input_transform, outcome_transform)


class _ScaleMixtureMarginalLogLikelihood(JointMarginalLogLikelihood):
    """Log of the integral over s of its prior density times N(y; 0, s K + noise)."""

    def evidence(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Log density of the outcomes without the hyperparameters' priors, a scalar in nats.

        Args:
            function_dist: Prior of f at the training rows given s = 1.
            target: See `JointMarginalLogLikelihood`.
            *params: Passed to the likelihood.
            **kwargs: Passed to the likelihood.
        """
        covariance = to_dense(function_dist.lazy_covariance_matrix)
        noise = _noise_variances(self.likelihood, function_dist.mean, *params, **kwargs)
        with relative_jitter(covariance.diagonal(dim1=-2, dim2=-1) + noise):
            evidence: Tensor = self.model.integrated(covariance, noise, target).sum()
        return evidence


def _noise_variances(likelihood: Any, mean: Tensor, *params: Any, **kwargs: Any) -> Tensor:
    """The diagonal that a likelihood adds to a covariance, `[..., n]`."""
    nothing = MultivariateNormal(torch.zeros_like(mean), DiagLinearOperator(torch.zeros_like(mean)))
    noisy = likelihood(nothing, *params, **kwargs)
    return noisy.lazy_covariance_matrix.diagonal(dim1=-2, dim2=-1)


def _both(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Two log densities as a batch `[2, ...]`."""

    def log_density(t: Tensor) -> Tensor:
        first, second = (t, t) if t.dim() == 1 else t
        return torch.stack([one(first), other(second)])

    return log_density
