"""The training rows of an exact process: their units, further rows, and what is kept of them.

A model holds its rows as they were given, `train_X`, `train_Y` and `train_Yvar`. What GPyTorch
conditions on (`train_inputs`, `train_targets`, the likelihood's known noise) is made of them by
the present transforms, whenever rows or transforms change. So a state may be loaded onto other
rows, a model conditioned on more of them, and nothing is standardised in two ways.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import gpytorch
import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import InputTransform
from botorch.sampling.base import MCSampler
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor, nn

from bayes.caching import ExactPredictionStrategy, Snapshot
from bayes.checks import check_variances
from bayes.conditioning import NoiseOfRows, check_observations, joined, unrepeated
from bayes.outcome import ElementwiseOutcome
from bayes.outputs import OutputSubset
from bayes.processes.marginal_likelihood import relative_jitter
from priors.posteriors.transforms import check_range

__all__ = ["ProcessRows", "takes_missing"]


class ProcessRows(SingleTaskGP):
    """BoTorch's Gaussian process with rows in the user's units, and conditioning on more of them.

    Attributes:
        train_X: Inputs, `[*batch, n, d]`, as given.
        train_Y: Outcomes, `[*batch, n, m]`, as given.
        train_Yvar: Known noise variances of the same shape, squared units of Y, NaN where a row
            has the learnt noise; None where all have.
        train_weights: By which the learnt noise variance of each row is divided, `[*batch, n, 1]`;
            None where it is 1 for all.
    """

    train_X: Tensor
    train_Y: Tensor
    train_Yvar: Tensor | None
    train_weights: Tensor | None
    likelihood: Any
    prediction_strategy: Any
    _clear_cache: Callable[[], None]
    _get_train_prior_distribution: Callable[..., Any]
    _made: Snapshot | None = None
    _noise_made: Tensor | None = None
    _attached = False
    _row_variance: Tensor | None = None  # of f, the mean over the rows, on the model's scale
    _within = False

    def _hold(
        self, X: Tensor, Y: Tensor, Yvar: Tensor | None, weights: Tensor | None = None
    ) -> None:
        """Keep the rows; buffers, so that they move with the model. `save` writes them itself."""
        self.register_buffer("train_X", X, persistent=False)
        self.register_buffer("train_Y", Y, persistent=False)
        self.register_buffer("train_Yvar", Yvar, persistent=False)
        self.register_buffer("train_weights", weights, persistent=False)
        self._condition_on(X, Y, Yvar, weights)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> Self:
        """A model of these rows and further ones; hyperparameters and transforms stay.

        Args:
            X: Inputs, `[..., n', d]`; batch dimensions of X, Y and the model broadcast, and give a
                batch of models.
            Y: Outcomes, `[..., n', m]`.
            noise: Known noise variances of Y, `[..., n', m]`, squared units of Y. Needed by a
                model with `train_Yvar`; another one has its learnt noise where they are missing,
                with a weight of 1.
            **kwargs: Ignored: `propagate_grads` by BoTorch, since gradients always pass.

        Returns:
            A model with a copy of the hyperparameters and `[..., n + n']` rows.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, values are not finite, or known noise is missing.
        """
        owner = type(self).__name__
        _refuse_others(owner, "condition_on_observations", kwargs)
        self._check_rows(X, Y, noise)
        before = self._noise_of_rows()
        if noise is None and self._has_fixed_noise:
            raise ValueError(
                f"This {owner} has a known noise variance for each row and got none for the "
                "further ones; pass noise=, [..., n, m] in squared units of Y."
            )
        Yvar = None
        if noise is not None or before is not None:
            noise = Y.new_full((1, 1), torch.nan) if noise is None else noise
            before = self.train_Y.new_full((1, 1), torch.nan) if before is None else before
            Yvar = joined(
                before.expand_as(self.train_Y), noise.expand(*noise.shape[:-2], *Y.shape[-2:])
            )
        batch = torch.broadcast_shapes(
            *(rows.shape[:-2] for rows in (self.train_Y, X, Y, *([] if Yvar is None else [Yvar])))
        )
        weights = self.train_weights
        if weights is not None:
            weights = joined(weights, Y.new_ones(*Y.shape[:-1], 1)).expand(*batch, -1, -1)
        new = self._copied()
        new._condition_on(
            joined(self.train_X, X).expand(*batch, -1, -1),
            joined(self.train_Y, Y).expand(*batch, -1, -1),
            None if Yvar is None else Yvar.expand(*batch, -1, -1),
            weights,
        )
        return new

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> Self:
        """Models conditioned on observations drawn from the posterior of y at `X`.

        Args:
            X: Where to observe, `[..., q, d]`; q may be 0.
            sampler: Draws the observations.
            observation_noise: Their noise variances, broadcasting with `[..., q, m]`, squared
                units of Y. Without it the learnt ones, or the mean of the rows' known ones.
            **kwargs: See `condition_on_observations`.

        Returns:
            A model with batch shape `[*sampler.sample_shape, ...]`.

        Raises:
            TypeError: `observation_noise` is not a tensor, or another dtype than the model's.
            ValueError: shapes disagree or values are not finite.
        """
        owner = type(self).__name__
        _refuse_others(owner, "fantasize", kwargs)
        if observation_noise is not None and not isinstance(observation_noise, Tensor):
            raise TypeError(
                f"{owner}.fantasize takes observation_noise as a tensor of variances, or None for "
                f"the model's own noise; got {observation_noise!r}."
            )
        if observation_noise is None and self._has_fixed_noise:
            of_rows = self._noise_of_rows()
            assert of_rows is not None
            observation_noise = of_rows.mean(-2, keepdim=True)
        batch = torch.broadcast_shapes(self.batch_shape, X.shape[:-2])
        if X.shape[-2] == 0:
            Y = X.new_empty(*sampler.sample_shape, *batch, 0, self.num_outputs)
        else:
            noise = True if observation_noise is None else observation_noise
            Y = sampler(self.posterior(X, observation_noise=noise))
        known = None if observation_noise is None else observation_noise.expand(Y.shape)
        return self.condition_on_observations(X, Y, known)

    def subset_output(  # type: ignore[override]  # any model, not one of the same class
        self, idcs: Sequence[int]
    ) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.

        Raises:
            ValueError: an index is out of range.
        """
        return OutputSubset(self, idcs)

    def load_state_dict(  # type: ignore[override]  # BoTorch's third argument is not PyTorch's
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        keep_transforms: bool = True,
        assign: bool = False,
    ) -> Any:
        """Load hyperparameters and transforms, those of a model of other rows too.

        Args:
            state_dict: State of a model of the same make.
            strict: Whether names must agree.
            keep_transforms: Whether standardisations come from the state, so that the
                hyperparameters mean what they meant; else this model's own stay. A non-affine
                outcome transform is in no state and stays.
            assign: See `torch.nn.Module`.

        Returns:
            Missing and unexpected names.

        Raises:
            ValueError: a shape differs, also after `load_strict_shapes(False)`.
            RuntimeError: names differ.
        """
        for name, value in self.state_dict().items():
            found = state_dict.get(name, value).shape
            if found != value.shape:
                raise ValueError(
                    f"{type(self).__name__} got {name} of shape {tuple(found)}, its own is "
                    f"{tuple(value.shape)}; for a batch of hyperparameters construct one of a "
                    "batch of rows, with a kernel of that batch_shape."
                )
        known = self._known_noise()
        own = {
            name: {key: value.clone() for key, value in transform.state_dict().items()}
            for name, transform in self._transforms().items()
        }
        # Past BoTorch's, which brings old targets to new units but not the inputs.
        result = nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)
        if not keep_transforms:
            for name, transform in self._transforms().items():
                transform.load_state_dict(own[name])
        self._condition_on(self.train_X, self.train_Y, known, self.train_weights)
        return result

    def set_train_data(
        self, inputs: Any = None, targets: Tensor | None = None, strict: bool = True
    ) -> None:
        """Replace the rows; hyperparameters and transforms stay.

        Args:
            inputs: Like `train_X`, in its units.
            targets: Like `train_Y`, in its units; `[..., n]` will do for one output.
            strict: Whether shapes must stay.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, or values are not finite.
        """
        owner = type(self).__name__
        if isinstance(inputs, tuple | list):
            (inputs,) = inputs
        X = self.train_X if inputs is None else inputs
        Y = self.train_Y if targets is None else targets
        if isinstance(Y, Tensor) and self.num_outputs == 1 and Y.dim() == X.dim() - 1:
            Y = Y.unsqueeze(-1)
        self._check_rows(X, Y, None)
        if strict and (X.shape, Y.shape) != (self.train_X.shape, self.train_Y.shape):
            raise ValueError(
                f"{owner} has train_X {tuple(self.train_X.shape)} and train_Y "
                f"{tuple(self.train_Y.shape)}, got {tuple(X.shape)} and {tuple(Y.shape)}; "
                "strict=False allows other rows."
            )
        known = self._noise_of_rows()
        if known is not None and known.shape != Y.shape:
            raise ValueError(
                f"{owner} has known noise for {known.shape[-2]} rows; construct a model of the "
                "other rows with their train_Yvar and load this one's state_dict."
            )
        weights = self.train_weights
        if weights is not None and weights.shape[:-1] != Y.shape[:-1]:
            raise ValueError(
                f"{owner} has weights of {weights.shape[-2]} rows; construct a model of the other "
                "rows with their train_weights and load this one's state_dict."
            )
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        self._condition_on(X.expand(*batch, -1, -1), Y.expand(*batch, -1, -1), known, weights)

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """GPyTorch's, of rows and hyperparameters as they are now."""
        if self.training or gpytorch.settings.prior_mode.on():
            return super().__call__(*inputs, **kwargs)
        with self.conditioned():
            return super().__call__(*inputs, **kwargs)

    @contextmanager
    def conditioned(self) -> Iterator[None]:
        """For predictions: caches are those of now, and gradients reach the rows that want them.

        Within another one nothing is compared again.
        """
        if self._within:
            yield
            return
        follows = self.train_inputs[0].requires_grad or self.train_targets.requires_grad
        with gpytorch.settings.detach_test_caches(False) if follows else nullcontext():
            self.update_caches()
            self._within = True
            try:
                assert self._row_variance is not None
                with relative_jitter(self._row_variance):
                    yield
            finally:
                self._within = False

    def same_as_now(self) -> Callable[[], bool]:
        """A test whether rows, hyperparameters and transforms are still those of now."""

        def data() -> tuple[Tensor | None, ...]:
            return self.train_X, self.train_Y, self.train_Yvar, self.train_weights

        made, rows = Snapshot(self._parts()), data()

        def test() -> bool:
            same = (
                a is b or (a is not None and b is not None and torch.equal(a, b))
                for a, b in zip(rows, data(), strict=True)
            )
            return all(same) and made.holds(self._parts())

        return test

    def update_caches(self) -> None:
        """Make `prediction_strategy` that of the present rows, hyperparameters and transforms.

        It stays as it is if nothing has changed; every prediction begins with this.
        """
        attached = torch.is_grad_enabled() and gpytorch.settings.detach_test_caches.off()
        parts = self._parts()
        fresh = self._made is not None and self._made.holds(parts)
        if not fresh:
            with warnings.catch_warnings():
                # that noise is very small was told when it came
                warnings.simplefilter("ignore", NumericalWarning)
                known = self._known_noise()
                self._condition_on(self.train_X, self.train_Y, known, self.train_weights)
            with torch.no_grad():
                self._row_variance = self.covar_module(*self.train_inputs, diag=True).mean()
            self._made = Snapshot(self._parts())
        if self.prediction_strategy is not None and fresh and attached == self._attached:
            return
        self._attached = attached
        rows = [unrepeated(inputs) for inputs in self.train_inputs]
        kept = ExactPredictionStrategy(
            rows, self._get_train_prior_distribution(rows), self.train_targets, self.likelihood
        )
        self.prediction_strategy = kept
        if attached:  # a second pass backward needs a graph of its own
            assert self._row_variance is not None
            with relative_jitter(self._row_variance):
                caches = kept.mean_cache, kept.covar_cache
            for cache in caches:
                if cache.requires_grad:
                    cache.register_hook(self._forget)

    def _forget(self, gradient: Tensor) -> None:
        self._made = None

    def _apply_noise(
        self, X: Tensor, mvn: MultivariateNormal, observation_noise: bool | Tensor = False
    ) -> MultivariateNormal:
        """The posterior of y from that of f; variances given are in squared units of Y."""
        if isinstance(observation_noise, Tensor):
            check_variances(type(self).__name__, observation_noise, self.num_outputs)
            observation_noise = self._on_the_models_scale(observation_noise)
        elif observation_noise and isinstance(self.likelihood, NoiseOfRows):
            return self.likelihood.of_queries(X, mvn)
        return super()._apply_noise(X, mvn, observation_noise)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if "train_X" not in self._buffers:  # in BoTorch's constructor
            return super()._apply(fn)
        self.train_Yvar = self._known_noise()
        super()._apply(fn)
        self._condition_on(self.train_X, self.train_Y, self.train_Yvar, self.train_weights)
        return self

    def _condition_on(
        self, X: Tensor, Y: Tensor, Yvar: Tensor | None, weights: Tensor | None
    ) -> None:
        """Make all that GPyTorch conditions on of these rows."""
        self.train_X, self.train_Y, self.train_Yvar = X, Y, Yvar
        self.train_weights = weights
        self._input_batch_shape = Y.shape[:-2]
        outputs = torch.Size([self.num_outputs] if self.num_outputs > 1 else [])
        self._aug_batch_shape = self._input_batch_shape + outputs
        outcome = self._outcome
        self.train_targets = self._by_output(Y if outcome is None else outcome(Y)[0])
        self._has_transformed_inputs = False
        if self.training:
            self._revert_to_original_inputs()
        else:
            self._set_transformed_inputs()
        known = None
        if Yvar is not None:
            known = self._by_output(self._on_the_models_scale(unrepeated(Yvar)))
        if known is not None and self._has_fixed_noise:
            self.likelihood.noise_covar = FixedGaussianNoise(noise=known)
            self._noise_made = self.likelihood.noise_covar.noise.clone()
        elif known is not None or weights is not None:
            of_rows = None if weights is None else self._by_output(unrepeated(weights))
            self.likelihood = NoiseOfRows(self.likelihood, known, of_rows)
        self._clear_cache()

    def _check_rows(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        """Refuse other rows that do not fit these, or that the outcome transform cannot give."""
        check_observations(
            type(self).__name__,
            X,
            Y,
            noise,
            self.train_X,
            self.train_Y,
            missing=takes_missing(self._input_transform),
        )
        if self._outcome is not None:
            check_range(self._outcome.transform, Y)

    # BoTorch's own pair keeps a copy of the inputs, and stops gradients to further rows.
    def _set_transformed_inputs(self) -> None:
        if not self._has_transformed_inputs:
            X = unrepeated(self.train_X)
            if self._input_transform is not None:
                X = self._input_transform.preprocess_transform(X)
            self._set_inputs(X)
            self._has_transformed_inputs = True

    def _revert_to_original_inputs(self) -> None:
        self._set_inputs(unrepeated(self.train_X))
        self._has_transformed_inputs = False

    def _set_inputs(self, X: Tensor) -> None:
        self.train_inputs = (self._for_each_output(X),)
        self._clear_cache()

    def _for_each_output(self, X: Tensor) -> Tensor:
        """Rows `[..., n, d]` as GPyTorch has them: `[..., m, n, d]` of several outputs."""
        X = X.expand(*self._input_batch_shape, *X.shape[-2:])
        if self.num_outputs == 1:
            return X
        return X.unsqueeze(-3).expand(*self._aug_batch_shape, *X.shape[-2:])

    def _by_output(self, rows: Tensor) -> Tensor:
        """`[..., n, m]` as GPyTorch has it: `[..., m, n]`, or `[..., n]` of one output."""
        return rows.mT if self.num_outputs > 1 else rows.squeeze(-1)

    @property
    def _has_fixed_noise(self) -> bool:
        return isinstance(self.likelihood, FixedNoiseGaussianLikelihood)

    def _known_noise(self) -> Tensor | None:
        """`train_Yvar`, or what the user has set on the likelihood in its place."""
        return None if self.train_Yvar is None else self._noise_of_rows()

    def _noise_of_rows(self) -> Tensor | None:
        """Known noise variances in squared units of Y, those of a user's likelihood too."""
        if not self._has_fixed_noise:
            return self.train_Yvar
        made, known = self._noise_made, self.likelihood.noise_covar.noise
        if made is not None and torch.equal(made, known):
            return self.train_Yvar
        known = known.expand(self.train_targets.shape)
        known = known.mT if self.num_outputs > 1 else known.unsqueeze(-1)
        return known if self._outcome is None else self._outcome.variances(known)

    def _on_the_models_scale(self, variances: Tensor) -> Tensor:
        return variances if self._outcome is None else self._outcome.inverse_variances(variances)

    @property
    def _outcome(self) -> ElementwiseOutcome | None:
        return getattr(self, "outcome_transform", None)

    @property
    def _input_transform(self) -> InputTransform | None:
        return getattr(self, "input_transform", None)

    def _transforms(self) -> dict[str, nn.Module]:
        pair = {"input_transform": self._input_transform, "outcome_transform": self._outcome}
        return {name: transform for name, transform in pair.items() if transform is not None}

    def _parts(self) -> dict[str, nn.Module]:
        """What predictions are made with, besides the rows."""
        names = ("covar_module", "mean_module", "likelihood")
        return {**{name: getattr(self, name) for name in names}, **self._transforms()}

    def _copied(self) -> Self:
        """A deep copy that shares tensors with a history, which torch does not copy."""
        held = [
            value
            for module in self.modules()
            for value in (*vars(module).values(), *module._buffers.values(), *self.train_inputs)
            if isinstance(value, Tensor) and value.grad_fn is not None
        ]
        return copy.deepcopy(self, {id(value): value for value in held})


def takes_missing(input_transform: Any) -> bool:
    """Whether a transform makes numbers of missing inputs, as `priors.MissingInputs` does."""
    return bool(getattr(input_transform, "takes_missing", False))


def _refuse_others(owner: str, method: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that mean something to nobody."""
    others = [name for name, value in kwargs.items() if value is not None]
    others = [name for name in others if name != "propagate_grads"]
    if others:
        raise TypeError(f"{owner}.{method} has no argument {others[0]!r}.")
