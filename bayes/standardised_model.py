"""A model of rows that computes on a scale of its own and has Gaussian predictions.

What engines share that are neither BoTorch's exact process nor variational: the rows as they were
given, transforms, learnt noise, predictions in the units of Y, fitting within limits, conditioning
and files. All of it is computed in float64, whatever the dtype of the rows.
"""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors import Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from linear_operator import to_linear_operator
from linear_operator.operators import (
    BlockDiagLinearOperator,
    DiagLinearOperator,
    LinearOperator,
)
from torch import Tensor, nn

from bayes.caching import Snapshot
from bayes.checks import (
    check_query,
    check_training_data,
    check_variances,
    chosen_outputs,
)
from bayes.conditioning import check_observations, joined
from bayes.description import (
    FINGERPRINT_ROWS,
    check_fingerprint,
    check_given,
    check_module,
    describe_module,
)
from bayes.log_priors import log_priors
from bayes.noise import LessNoise, NoiseLevel, learnt_noise
from bayes.processes.deferred_covariance import DeferredCovariance
from bayes.processes.fitting import Watch, maximise
from bayes.processes.marginal_likelihood import exact_solves
from bayes.transformed_model import TransformedModel, described
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import apply_posterior_transform
from priors.posteriors.transforms import DEFAULT, check_range
from priors.random_state import seeded

__all__ = ["StandardisedModel"]

# Queries whose covariance is computed with their marginals.
_JOINT_QUERIES, _JOINT_NUMBERS = 512, 2**24


class StandardisedModel(TransformedModel, gpytorch.Module):
    """Base of the models, which document the arguments.

    A subclass calls `_hold`, and gives `_moments`, `_objective`, `_parts`, `_covariance_of` and
    `_construction`.
    """

    _module_name: ClassVar[str] = "kernel"  # of what `load` is given again, for messages

    train_X: Tensor
    train_Y: Tensor
    likelihood: GaussianLikelihood

    def _check(self, train_X: Tensor, train_Y: Tensor) -> None:
        """Refuse what is no training data."""
        check_training_data(type(self).__name__, train_X, train_Y)

    def _hold(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        input_transform: Any,
        outcome_transform: Any,
        kernel: Kernel | None = None,
    ) -> None:
        """Keep rows, transforms and a noise variance for each output."""
        self._set_transforms(train_X, train_Y, input_transform, outcome_transform, kernel)
        self.likelihood = learnt_noise(train_Y.shape[-1:], train_X)
        self.register_buffer("train_X", train_X, persistent=False)
        self.register_buffer("train_Y", train_Y, persistent=False)
        self._given = described(input_transform, outcome_transform)
        self._kept: tuple[Snapshot, tuple[Tensor, Tensor], Any] | None = None
        self.eval()

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.train_Y.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of data sets."""
        return self.train_Y.shape[:-2]

    @property
    def noise(self) -> Tensor:
        """Noise variance of each output, `[m]`, on the model's scale."""
        return self.likelihood.noise.squeeze(-1)

    def transformed_inputs(self, X: Tensor) -> Tensor:
        """Inputs on the model's scale, float64.

        Args:
            X: In the units of train_X, `[..., n, d]`.
        """
        return super().transformed_inputs(X).double()

    def targets(self) -> Tensor:
        """Outcomes on the model's scale, `[..., m, n]`, float64."""
        return self.transformed_outcomes(self.train_Y).double().mT

    def fit(
        self,
        *,
        num_restarts: int = 0,
        max_iter: int | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        seed: int = 0,
    ) -> Self:
        """Maximise the objective of the class plus log priors, from the present values.

        Stopped by a limit or by Ctrl-C, it keeps the best so far and warns.

        Args:
            num_restarts: Further starts from draws of the hyperparameters' priors.
            max_iter: Iterations of the optimiser (L-BFGS-B) for each start.
            timeout: Seconds after which no evaluation is started.
            progress: Show a bar; None shows it if more than ten seconds are expected.
            seed: Seed of the restarts; the global generator is left as it was.

        Returns:
            The model itself.

        Raises:
            ValueError: a negative number.
            botorch.exceptions.ModelFittingError: no start has a finite objective; says which
                hyperparameter ran away.
        """
        if num_restarts < 0 or (max_iter is not None and max_iter < 1):
            raise ValueError(
                f"fit needs num_restarts >= 0 and max_iter >= 1, got {num_restarts} and {max_iter}."
            )
        if any(parameter.requires_grad for parameter in self.parameters()):
            less_noise = self._less_noise()
            watch = Watch(
                type(self).__name__,
                device=self.train_X.device,
                timeout=timeout,
                progress=progress,
                num_starts=1 + (less_noise is not None) + num_restarts,
                reasons=self._costs,
            )
            with exact_solves(), seeded(seed, self.train_X.device):
                maximise(
                    self,
                    lambda: (self._objective() + log_priors(self)) / self.train_X.shape[-2],
                    watch,
                    num_restarts=num_restarts,
                    max_iter=max_iter,
                    less_noise=less_noise,
                )
        return self

    def _less_noise(self) -> LessNoise | None:
        """The other start of a fit."""
        return LessNoise.beside(NoiseLevel.of(self.likelihood), self.train_X.shape[-2])

    @abstractmethod
    def _objective(self) -> Tensor:
        """What `fit` maximises besides log priors, a scalar in nats."""

    def _costs(self) -> list[str]:
        """What makes an evaluation slow, and what would be cheaper."""
        return []

    def _log_jacobian(self) -> Tensor:
        """What a log density in the units of Y has less than one on the model's scale."""
        total = self.train_Y.new_zeros((), dtype=torch.float64)
        if self.outcome_transform is not None:
            transform, Y = self.outcome_transform.transform, self.train_Y
            each = transform.log_abs_det_jacobian(transform.inv(Y), Y)
            total = each.expand_as(Y).double().sum()
        return total

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`, joint over its points.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of y rather than of f. A tensor `[..., q, m]` gives the
                noise variances in squared units of Y.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A Gaussian posterior `[..., q, m]` in units of Y, or seen through the outcome transform.
        """
        owner = type(self).__name__
        check_query(owner, X, self.train_X)
        outputs = [
            k % self.num_outputs for k in chosen_outputs(owner, output_indices, self.num_outputs)
        ]
        mean, covariance = self._functions(X)  # [..., m, q] and [..., m, q, q]
        if isinstance(observation_noise, Tensor):
            check_variances(owner, observation_noise, self.num_outputs)
            noise = observation_noise
            if self.outcome_transform is not None:
                noise = self.outcome_transform.inverse_variances(noise)
            noise = noise.mT
        else:
            noise = self.noise.to(X).unsqueeze(-1)
        if observation_noise is not False:
            covariance = covariance + DiagLinearOperator(noise.expand(mean.shape).contiguous())
        joint = (
            MultivariateNormal(mean[..., outputs[0], :], covariance[..., outputs[0], :, :])
            if len(outputs) == 1
            else MultitaskMultivariateNormal(
                mean[..., outputs, :].mT,
                BlockDiagLinearOperator(covariance[..., outputs, :, :]),
                interleaved=False,
            )
        )
        posterior = self._in_units_of_y(GaussianPosterior(joint), outputs)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def _functions(self, X: Tensor) -> tuple[Tensor, LinearOperator]:
        """Means `[..., m, q]` and covariances `[..., m, q, q]` of f on the model's scale."""
        queries, m = X.shape[-2], self.num_outputs
        inputs = self.transformed_inputs(X)
        numbers = m * X.shape[:-1].numel() * (queries + self.train_X.shape[-2])
        least = gpytorch.settings.min_variance.value(X.dtype)  # GPyTorch warns of smaller ones
        if 1 < queries <= _JOINT_QUERIES and numbers <= _JOINT_NUMBERS:
            mean, joint = self._moments(inputs, joint=True)
            return mean.to(X), _floored(joint.to(X).expand(*mean.shape, queries), least)
        size = max(1, _JOINT_NUMBERS // (X.shape[:-2].numel() * self.train_X.shape[-2]))
        parts = [self._moments(some, joint=False) for some in inputs.split(size, dim=-2)]
        mean = torch.cat([part for part, _ in parts], dim=-1)
        variance = torch.cat([part.expand_as(of) for of, part in parts], dim=-1)
        variance = variance.to(X).clamp_min(least)
        if queries == 1:
            return mean.to(X), to_linear_operator(variance.unsqueeze(-1))
        unchanged, rows = Snapshot(self._parts()), (self.train_X, self.train_Y)

        def covariance() -> LinearOperator:
            same = all(map(torch.equal, rows, (self.train_X, self.train_Y)))
            if not (same and unchanged.holds(self._parts())):
                raise ValueError(
                    f"The covariance of these {queries} queries was not computed yet, and the "
                    f"{type(self).__name__} has changed since: call posterior(X) again."
                )
            whole = self._moments(inputs, joint=True)[1]
            return _floored(whole.to(X).expand(*mean.shape, queries), least)

        return mean.to(X), DeferredCovariance(variance, covariance=covariance)

    @abstractmethod
    def _moments(self, inputs: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
        """Means `[..., m, q]` of f and variances `[..., 1 or m, q]`, or covariances if `joint`.

        Args:
            inputs: On the model's scale, float64, `[..., q, d]`.
            joint: Whether covariances `[..., 1 or m, q, q]` are wanted.
        """

    @abstractmethod
    def _parts(self) -> dict[str, nn.Module]:
        """What predictions are made with, besides the rows."""

    def _follows_rows(self) -> bool:
        """Whether gradients are to reach the rows, as those of fantasies."""
        rows = (self.train_X, self.train_Y)
        return torch.is_grad_enabled() and any(part.requires_grad for part in rows)

    def _remembered(self, parts: dict[str, nn.Module], compute: Callable[[], Any]) -> Any:
        """What is derived from rows and parts without a gradient, anew where one has changed."""
        kept = self._kept
        fresh = kept is not None and kept[1][0] is self.train_X and kept[1][1] is self.train_Y
        if kept is None or not fresh or not kept[0].holds(parts):
            with torch.no_grad(), exact_solves():
                kept = Snapshot(parts), (self.train_X, self.train_Y), compute()
            self._kept = kept
        return kept[2]

    def _transforms(self) -> dict[str, nn.Module]:
        pair = {
            "input_transform": self.input_transform,
            "outcome_transform": self.outcome_transform,
        }
        return {name: transform for name, transform in pair.items() if transform is not None}

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Self:
        """A model of these rows and further ones; hyperparameters and transforms stay.

        Args:
            X: Inputs, `[..., n', d]`.
            Y: Outcomes, `[..., n', m]`.
            **kwargs: Ignored.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, or values are not finite.
        """
        check_observations(type(self).__name__, X, Y, None, self.train_X, self.train_Y)
        if self.outcome_transform is not None:
            check_range(self.outcome_transform.transform, Y)
        batch = torch.broadcast_shapes(self.batch_shape, X.shape[:-2], Y.shape[:-2])
        return self._of_rows(
            joined(self.train_X, X).expand(*batch, -1, -1),
            joined(self.train_Y, Y).expand(*batch, -1, -1),
        )

    def _of_rows(self, X: Tensor, Y: Tensor) -> Self:
        """A copy with other rows."""
        kept, self._kept = self._kept, None
        try:
            rows = (self.train_X, self.train_Y)
            new = copy.deepcopy(self, {id(part): part for part in rows})
        finally:
            self._kept = kept
        new.train_X, new.train_Y = X, Y
        return new

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write data, learnt values and what identifies the model to one safetensors file.

        Args:
            path: Target file; replaced in one step.
        """
        tensors = {f"state.{name}": value for name, value in self.state_dict().items()}
        tensors.update(train_X=self.train_X, train_Y=self.train_Y)
        tensors["fingerprint"] = self._fingerprint()
        write_safetensors_atomically(
            path,
            tensors,
            kind=type(self).__name__,
            description={
                "construction": self._construction(),
                "given": self._given,
                "module": describe_module(self._module()),
            },
        )

    @classmethod
    def _load(
        cls,
        path: str | os.PathLike[str],
        make: Callable[..., Self],
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """What `save` wrote; `make(train_X, train_Y, **construction and transforms)`."""
        tensors, description = read_safetensors(path, kind=cls.__name__)
        passed = {"input_transform": input_transform, "outcome_transform": outcome_transform}
        check_given(path, described(**passed), description["given"])
        model = make(
            tensors["train_X"], tensors["train_Y"], **passed, **description["construction"]
        )
        check_module(path, cls._module_name, model._module(), description["module"])
        model.load_state_dict(tensors_under("state", tensors))
        found = model._fingerprint()
        check_fingerprint(path, cls._module_name, found, tensors["fingerprint"])
        return model

    @abstractmethod
    def _construction(self) -> dict[str, Any]:
        """JSON-serialisable arguments of the constructor besides the module and the transforms."""

    @abstractmethod
    def _module(self) -> nn.Module:
        """What is passed to `load` again, since a file holds no code."""

    @abstractmethod
    def _covariance_of(self, inputs: Tensor) -> Tensor:
        """What tells modules of the same parameters apart, of a few rows on the model's scale."""

    def _fingerprint(self) -> Tensor:
        with torch.no_grad(), exact_solves():
            rows = self.train_X[..., :FINGERPRINT_ROWS, :]
            return self._covariance_of(self.transformed_inputs(rows))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state as `torch.nn.Module` does.

        Args:
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            Missing and unexpected names.
        """
        return nn.Module.load_state_dict(self, *args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)


def _floored(covariance: Tensor, least: float) -> LinearOperator:
    """Covariances `[..., q, q]` whose variances are not below the least."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    lift = (least - variance.detach()).clamp_min(0)
    if bool((lift > 0).any()):
        covariance = covariance + torch.diag_embed(lift)
    return to_linear_operator(covariance)
