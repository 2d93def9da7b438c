"""Several engines as one model: a linear pool weighed by what they predicted of rows left out.

No engine is best on all data: a network trained on a prior is hard to beat where there is noise,
an exact Gaussian process where there is none. Stacking (Yao et al. 2018, 1704.02030) lets the data
choose: every engine predicts rows that it has not seen, and the pool has the weights of greatest
mean log score. Of the exact processes these predictions come in closed form
(`ExactProcess.leave_one_out`); any other engine is fitted again without each of K parts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from torch import Tensor, nn
from tqdm.auto import tqdm

from bayes.checks import check_training_data, chosen_outputs
from bayes.outputs import OutputSubset
from priors.figures import BLUE, axes_or_new
from priors.posteriors.categorical import CategoricalPosterior, ClassProbabilityPosterior
from priors.posteriors.gaussian import as_predictive
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.stacking import stacking_weights
from priors.posteriors.transformed import apply_posterior_transform

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["StackedModel", "stack"]

Factory = Callable[[Tensor, Tensor], Model]

_METHODS = ("loo", "kfold", None)


class StackedModel(Model):
    """A weighted linear pool of models, made by `stack`.

    The posterior is a `priors.MixturePosterior` of the members' own: density, distribution
    function, quantiles and moments are those of the mixture. Of classifiers it is the average of
    the class probabilities. Members of weight 0 are not asked.

    Args:
        models: By name, fitted, of the same outputs.
        weights: `[k]`, >= 0, in the order of the models; they are normalised here.
        log_scores: Of rows that the members had not seen, `[n, k]`, nats, if known.
        ways: By name, how the rows were left out, such as "leave-one-out".
        failures: By name, what went wrong with engines that were left out.
        seconds: By name, what fitting and scoring took.

    Raises:
        ValueError: no models, or weights of another number or sign.

    Methods:
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        condition_on_observations: The stack of members given further rows, of the same weights.
        fantasize: Such stacks of rows drawn from the posterior.
        subset_output: A model of some outputs.
        plot: The weights as a figure.

    A stack is saved by saving its members and weights.
    """

    weights: Tensor

    def __init__(
        self,
        models: Mapping[str, Model],
        weights: Tensor,
        *,
        log_scores: Tensor | None = None,
        ways: Mapping[str, str] | None = None,
        failures: Mapping[str, str] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not models or weights.shape != (len(models),) or not bool((weights >= 0).all()):
            raise ValueError(
                f"StackedModel needs one weight >= 0 for each of its models, got {len(models)} "
                f"models and weights {weights.tolist()}."
            )
        if not bool(weights.sum() > 0):
            raise ValueError("StackedModel needs some weight above 0.")
        self.models = nn.ModuleList(models.values())
        self.names = list(models)
        self.register_buffer("weights", weights / weights.sum())
        self.log_scores = log_scores
        self.ways = dict(ways or {})
        self.failures = dict(failures or {})
        self.seconds = dict(seconds or {})

    def __repr__(self) -> str:
        rows = [["", "weight", "log score", "rows left out", "seconds"]]
        for k, name in enumerate(self.names):
            score = "" if self.log_scores is None else f"{float(self.log_scores[:, k].mean()):.4g}"
            took = f"{self.seconds[name]:.1f}" if name in self.seconds else ""
            rows.append([name, f"{self.weights[k]:.3f}", score, self.ways.get(name, ""), took])
        known = [k for k in range(5) if k < 2 or any(row[k] for row in rows[1:])]
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = [f"{type(self).__name__}({len(self.names)} models)"]
        for row in rows:
            cells = [
                f"{row[k]:<{widths[k]}}" if k in (0, 3) else f"{row[k]:>{widths[k]}}" for k in known
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [f"  {name} left out: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)

    def __getitem__(self, name: str) -> Any:
        """The member of that name.

        Args:
            name: As given to `stack`.
        """
        return self.models[self.names.index(name)]

    @property
    def _members(self) -> list[Any]:
        """Those that have a weight."""
        return [m for m, w in zip(self.models, self.weights.tolist(), strict=True) if w > 0]

    @property
    def num_outputs(self) -> int:
        """Number of outputs; classes of classifiers."""
        return int(self._members[0].num_outputs)

    @property
    def batch_shape(self) -> torch.Size:
        """That of the members."""
        return torch.broadcast_shapes(*(member.batch_shape for member in self._members))

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Pool of the members' posteriors at `X`.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of y rather than of f, or noise variances `[..., q, m]`.
            posterior_transform: Applied last.

        Returns:
            `[..., q, m]` in units of Y; class probabilities `[..., q, classes]` of classifiers.
        """
        given = {} if output_indices is None else {"output_indices": list(output_indices)}
        each = [
            member.posterior(X, observation_noise=observation_noise, **given)
            for member in self._members
        ]
        weights = self.weights[self.weights > 0].to(each[0].mean)
        posterior = _pooled(each, weights)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> StackedModel:
        """The stack of the members conditioned on further rows, with the same weights.

        Args:
            X: Inputs, `[..., n', d]`.
            Y: Outcomes, `[..., n', m]`.
            **kwargs: As for the members, such as `noise`.

        Raises:
            NotImplementedError: a member cannot.
        """
        return self._of_members(lambda m: m.condition_on_observations(X, Y, **kwargs))

    def fantasize(self, X: Tensor, sampler: MCSampler, **kwargs: Any) -> StackedModel:
        """Stacks conditioned on observations drawn from the pool's posterior of y at `X`.

        Args:
            X: Where to observe, `[..., q, d]`.
            sampler: Draws the observations.
            **kwargs: As for the members' `condition_on_observations`.
        """
        Y = sampler(self.posterior(X, observation_noise=True))
        return self.condition_on_observations(X, Y, **kwargs)

    def _of_members(self, change: Callable[[Any], Any]) -> StackedModel:
        members = zip(self.names, self.models, self.weights.tolist(), strict=True)
        changed = {name: change(model) for name, model, weight in members if weight > 0}
        return type(self)(changed, self.weights[self.weights > 0])

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.
        """
        return OutputSubset(self, chosen_outputs(type(self).__name__, idcs, self.num_outputs))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the weights as bars, the largest on top.

        Args:
            ax: Axes to draw on; a new figure if None.
        """
        ax = axes_or_new(ax)
        order = self.weights.argsort().tolist()
        ax.barh([self.names[k] for k in order], [float(self.weights[k]) for k in order], color=BLUE)
        ax.set(xlabel="weight in the pool", xlim=(0, 1))
        return ax


def stack(
    models: Mapping[str, Model | Factory] | Sequence[Model | Factory],
    X: Tensor,
    Y: Tensor,
    *,
    method: str | None = None,
    folds: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> StackedModel:
    """Weigh engines by their log scores of rows left out, and pool them.

    A score is the sum over outputs of the marginal log density of y, or the log probability of the
    class. Leave-one-out scores have hyperparameters that have seen all rows, K-fold ones have not
    and are of models of fewer rows.

    Args:
        models: By name, or in a row: factories `(X, Y) -> fitted model`, such as
            `lambda X, Y: GaussianProcess(X, Y, kernel).fit()` or the `condition` of a PFN, and
            fitted models of these rows that have `leave_one_out`.
        X: Training inputs, `[n, d]`.
        Y: Outcomes, `[n, m]`; class numbers `[n, 1]` of classifiers.
        method: How rows are left out: "loo" in closed form, which every engine must have; "kfold"
            for all, which takes factories; or None: in closed form where an engine has it, else
            by folds.
        folds: K, of random parts, stratified by class for whole-numbered targets of few values.
        seed: Of the parts.
        progress: Show a bar; None shows it after ten seconds.

    Returns:
        The pool. An engine that fails is left out, with a warning and in `failures`.

    Raises:
        TypeError: an entry is neither a model nor a factory.
        ValueError: shapes disagree, an unknown method, or a fitted model that cannot be scored.
        RuntimeError: every engine failed.
    """
    named = dict(models) if isinstance(models, Mapping) else _named(models)
    check_training_data("stack", X, Y)
    if X.dim() != 2 or not named:
        raise ValueError(
            f"stack needs at least one engine and rows [n, d], got {len(named)} engines and X of "
            f"shape {tuple(X.shape)}."
        )
    if method not in _METHODS:
        raise ValueError(f"method must be 'loo', 'kfold' or None, got {method!r}.")
    for name, given in named.items():
        _check_entry(name, given, method)
    scoring = _Scoring(X, Y, method, folds, seed)
    fitted: dict[str, Model] = {}
    scores: dict[str, Tensor] = {}
    ways: dict[str, str] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    bar = tqdm(named.items(), disable=progress is False, delay=0 if progress else 10, leave=False)
    for name, given in bar:
        bar.set_description_str(name, refresh=False)
        start = time.perf_counter()
        try:
            model = given if isinstance(given, Model) else given(X, Y)
            if not isinstance(model, Model):
                raise TypeError(f"its factory gave a {type(model).__name__}, no BoTorch model")
            found, way = scoring.of(model, given)
        except _Unusable:
            raise
        except Exception as error:  # whatever an engine fails with
            failures[name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"stack leaves out {name!r}, which failed with {failures[name]}", stacklevel=2
            )
            continue
        fitted[name], scores[name], ways[name] = model, found, way
        seconds[name] = time.perf_counter() - start
    if not fitted:
        told = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise RuntimeError(f"stack has no engine left, all failed: {told}")
    log_scores = torch.stack(list(scores.values()), dim=1)
    stacked = StackedModel(
        fitted,
        stacking_weights(log_scores),
        log_scores=log_scores,
        ways=ways,
        failures=failures,
        seconds=seconds,
    )
    for rows, values in (("train_X", X), ("train_Y", Y)):
        stacked.register_buffer(rows, values, persistent=False)
    return stacked


class _Unusable(ValueError):
    """What the caller passed cannot be scored at all: no failure of an engine."""


def _without_scores(model: Model) -> _Unusable:
    return _Unusable(
        f"a fitted {type(model).__name__} has no leave_one_out of these rows to be weighed by; "
        "pass a factory (X, Y) -> model, which is fitted without each part of them."
    )


class _Scoring:
    """Log scores of rows left out."""

    def __init__(self, X: Tensor, Y: Tensor, method: str | None, folds: int, seed: int) -> None:
        self.X, self.Y, self.method = X, Y, method
        if not 2 <= folds:
            raise ValueError(f"stack needs folds >= 2, got {folds}.")
        self.folds = min(folds, len(X))
        self.parts = _parts(Y, self.folds, seed)

    def of(self, model: Any, given: Any) -> tuple[Tensor, str]:
        """Scores `[n]` and how they were made."""
        if self.method != "kfold":
            found = self._left_out(model)
            if found is not None:
                return found, "leave-one-out"
        owner = type(model).__name__
        if given is model:
            raise _without_scores(model)
        if self.method == "loo":
            raise _Unusable(
                f"{owner} has no leave_one_out of these rows in closed form; with method=None it "
                "is scored by folds."
            )
        if len(self.X) < 2:
            raise ValueError("a single row cannot be left out by folds")
        scores = self.X.new_empty(len(self.X))
        for part in self.parts:
            rest = torch.ones(len(self.X), dtype=torch.bool, device=self.X.device)
            rest[part] = False
            with torch.no_grad():
                of_rest = _with_gradients(given, self.X[rest], self.Y[rest])
                posterior = of_rest.posterior(self.X[part], observation_noise=True)
                scores[part] = _log_scores(posterior, self.Y[part])
        return _proper(scores), f"{self.folds} folds"

    def _left_out(self, model: Any) -> Tensor | None:
        if not hasattr(model, "leave_one_out"):
            return None
        rows = getattr(model, "train_X", None), getattr(model, "train_Y", None)
        same = all(
            isinstance(own, Tensor) and own.shape == all_.shape and bool((own == all_).all())
            for own, all_ in zip(rows, (self.X, self.Y), strict=True)
        )
        if not same:  # of some of them
            return None
        try:
            with torch.no_grad():
                return _proper(_log_scores(model.leave_one_out(), self.Y))
        except NotImplementedError:
            return None


def _with_gradients(factory: Factory, X: Tensor, Y: Tensor) -> Any:
    with torch.enable_grad():  # of what it fits
        return factory(X, Y)


def _proper(scores: Tensor) -> Tensor:
    wrong = scores.isnan() | (scores == torch.inf)
    if bool(wrong.any()):
        raise ValueError(f"its log scores are NaN or infinite at {int(wrong.sum())} rows")
    return scores


def _log_scores(posterior: Posterior, Y: Tensor) -> Tensor:
    """Log scores of rows, `[n]`."""
    if isinstance(posterior, CategoricalPosterior | ClassProbabilityPosterior):
        return _log_probabilities(posterior, int(Y.max()) + 1).gather(-1, Y.long())[..., 0]
    return as_predictive(posterior).log_prob(Y).sum(-1)


def _log_probabilities(posterior: Any, classes: int) -> Tensor:
    """`[..., n, classes]` or more, of probability 0 for classes that the engine has not seen."""
    if isinstance(posterior, CategoricalPosterior):
        logits = posterior.logits
    else:
        logits = posterior.mean.log()
    missing = classes - logits.shape[-1]
    return nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits


def _pooled(each: Sequence[Any], weights: Tensor) -> Posterior:
    kinds = [isinstance(p, CategoricalPosterior | ClassProbabilityPosterior) for p in each]
    if all(kinds):
        most = max(p.mean.shape[-1] for p in each)
        logits = torch.stack([_log_probabilities(p, most) for p in each])
        weights = weights.log().reshape(-1, *[1] * (logits.dim() - 1))
        return CategoricalPosterior((weights + logits).logsumexp(0))
    if any(kinds):
        raise ValueError("a stack is of regressors or of classifiers, this one has both.")
    return MixturePosterior([as_predictive(p) for p in each], weights.log())


def _named(models: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for given in models:
        name = getattr(given, "__name__", type(given).__name__)
        taken = sum(other == name or other.startswith(f"{name} ") for other in named)
        named[f"{name} {taken + 1}" if taken else name] = given
    return named


def _check_entry(name: str, given: Any, method: str | None) -> None:
    if isinstance(given, Model):
        if method == "kfold":
            raise ValueError(
                f"{name!r} is a fitted model, which K folds cannot fit again; pass a factory "
                "(X, Y) -> model."
            )
        if not hasattr(given, "leave_one_out"):
            raise _without_scores(given)
    elif not callable(given):
        raise TypeError(
            f"stack needs {name!r} to be a BoTorch model or a factory (X, Y) -> model, got "
            f"{type(given).__name__}."
        )


def _parts(Y: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Disjoint random parts of all rows, alike in the classes they have."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(Y), generator=generator, device="cpu")
    values = Y[:, 0].cpu()
    classes = values.unique()
    whole = bool((values == values.round()).all()) and len(classes) <= max(2, len(Y) // folds)
    if Y.shape[1] == 1 and whole:
        order = order[values[order].argsort(stable=True)]
    return [order[k::folds].to(Y.device) for k in range(folds)]
