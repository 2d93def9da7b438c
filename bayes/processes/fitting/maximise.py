"""Maximum of a marginal likelihood by L-BFGS-B, from one or several starts, within limits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gpytorch
import numpy as np
import torch
from botorch.exceptions import ModelFittingError
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from bayes.noise import LessNoise
from bayes.processes.fitting.diagnosis import runaway_values
from bayes.processes.fitting.parameters import ParameterVector
from bayes.processes.fitting.watch import Stopped, Watch

__all__ = ["maximise"]

_MAX_ITER = 200
_SECOND_CHANCES = 5
# How far logarithms may move before the optimiser starts again from where it is. One careless step
# of a line search to a variance of 1e9 costs minutes of numerical integration.
_WINDOW, _STAGES = 2.0, 10
# How near an optimum is another start on its way to it: logarithms, and nats per row.
_NEAR, _NEAR_VALUE = 0.1, 1e-3
# Evaluations after which another start is given up unless it is ahead. Where oscillations were
# taken for noise it was within 25; where fine structure was, it took up to 75.
_PATIENCE, _LONG_PATIENCE = 30, 120
# Of the objective per row: changes that no prediction shows.
_OPTIONS = {"ftol": 1e-9, "gtol": 1e-5, "maxcor": 20}


def maximise(
    model: gpytorch.Module,
    objective: Callable[[], Tensor],
    watch: Watch,
    *,
    num_restarts: int = 0,
    max_iter: int | None = None,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    less_noise: LessNoise | None = None,
) -> None:
    """Set a model's parameters to the best that the optimiser finds.

    Stopped by a limit or Ctrl-C it keeps the best so far and warns.

    Args:
        model: Whose learnable parameters are fitted, from their present values.
        objective: To be maximised, a scalar in nats per row.
        watch: Limits and progress.
        num_restarts: Further starts, from draws of the hyperparameters' priors. Where the first
            start has no finite objective at all, a few are made anyway.
        max_iter: Iterations of the optimiser in each start.
        optimizer_kwargs: Passed to `scipy.optimize.minimize`.
        less_noise: Another start beside the first, and how its optimum is judged.

    Raises:
        ValueError: restarts are asked for, but no hyperparameter has a prior.
        ModelFittingError: no start has a finite objective; names what ran away.
    """
    has_priors = any(True for _ in model.named_priors())
    if num_restarts and not has_priors:
        raise ValueError(
            "num_restarts draws starts from the hyperparameters' priors, but this model has none; "
            "register priors on its kernel or fit from several starting values yourself."
        )
    search = _Search(ParameterVector(model), objective, watch)
    start = search.best
    options = _options(max_iter, optimizer_kwargs)
    stopped: str | None = None
    try:
        stopped = search.run(options)
        if less_noise is not None and less_noise.is_another and search.found:
            stopped = _from_less_noise(search, start, less_noise, options) or stopped
        chances = num_restarts if search.found or not has_priors else _SECOND_CHANCES
        for _ in range(chances):
            if search.found and num_restarts == 0:
                break
            _draw_from_priors(model)
            stopped = search.run(options) or stopped
    except Stopped as stop:
        stopped = str(stop)
    except KeyboardInterrupt:
        if not search.found:
            raise
        stopped = "Ctrl-C"
    finally:
        watch.close()
        search.keep_best()
    if not search.found:
        raise ModelFittingError(_failure(model, watch.owner))
    if stopped is not None:
        warnings.warn(
            f"The fit of {watch.owner} was stopped by {stopped} after {watch.evaluations} "
            f"evaluations in {watch.elapsed:.1f} s; it keeps the best hyperparameters so far.",
            stacklevel=3,
        )


def _from_less_noise(
    search: _Search, start: np.ndarray, less_noise: LessNoise, options: Mapping[str, Any]
) -> str | None:
    """Search from the other start too, and take what it finds where that is better."""

    def without_prior(found: _Search) -> float:
        found.keep_best()
        return found.value + less_noise.log_prior()

    search.keep_best()
    patience = _LONG_PATIENCE if less_noise.is_little() else _PATIENCE
    search.vector.assign(start)
    less_noise.begin()
    other = _Search(search.vector, search.objective, search.watch, search, patience)
    try:
        if less_noise.approach is not None:
            _get_ahead(search, less_noise.approach, patience, options)
        return other.run(options)
    except _Known:
        return None
    finally:
        if other.value < search.value and without_prior(other) < without_prior(search):
            search.best, search.value = other.best, other.value


def _get_ahead(
    search: _Search, objective: Callable[[], Tensor], patience: float, options: Mapping[str, Any]
) -> None:
    """Set the parameters to where another objective is larger than at the best of a search.

    Raises:
        _Known: it is not soon ahead, or comes to the same place.
    """
    start = search.vector.values()
    known = _Search(search.vector, objective, search.watch)
    known.visit(search.best)
    search.vector.assign(start)
    way = _Search(search.vector, objective, search.watch, known, patience, stops_ahead=True)
    try:
        way.run(options)
    except _Ahead:
        way.keep_best()
    else:
        raise _Known


class _Known(Exception):
    """Raised inside the optimiser where another start has found as much or more."""


class _Ahead(Exception):
    """Raised inside the optimiser where it has found more than another start."""


class _Search:
    """The objective as the optimiser calls it, and the best point so far.

    Args:
        vector: The parameters.
        objective: To be maximised.
        watch: Limits and progress.
        known: Another search, to whose optimum there is no need to go again.
        patience: Evaluations after which this one is to be ahead of it.
        stops_ahead: Whether to stop as soon as it is.
    """

    def __init__(
        self,
        vector: ParameterVector,
        objective: Callable[[], Tensor],
        watch: Watch,
        known: _Search | None = None,
        patience: float = math.inf,
        stops_ahead: bool = False,
    ) -> None:
        self.vector, self.objective, self.watch, self.known = vector, objective, watch, known
        self.best, self.value = vector.values(), math.inf
        self.patience, self.stops_ahead = patience, stops_ahead

    @property
    def found(self) -> bool:
        """Whether any point has a finite objective."""
        return self.value < math.inf

    def run(self, options: Mapping[str, Any]) -> str | None:
        """Minimise from the present values; what stopped it early, if anything did."""
        from scipy.optimize import minimize  # slow to load

        left = options["options"]["maxiter"]
        for _ in range(_STAGES):
            within, outer = self.vector.bounds(_WINDOW), self.vector.bounds()
            result = minimize(
                self.visit,
                self.vector.values(),
                jac=True,
                bounds=list(map(tuple, within)),
                **{**options, "options": {**options["options"], "maxiter": left}},
            )
            left -= result.nit
            at_window = (within != outer) & np.isclose(result.x[:, None], within)
            if result.status == 1 or (at_window.any() and left <= 0):
                return f"max_iter={options['options']['maxiter']}"
            if not at_window.any():
                break
            self.vector.assign(result.x)
        return None

    def keep_best(self) -> None:
        """Set the parameters to the best point."""
        self.vector.assign(self.best)

    def is_near(self, point: np.ndarray, value: float) -> bool:
        """Whether a point is where the best one is."""
        near = np.abs(point - self.best).max(initial=0.0) < _NEAR
        return bool(near and abs(value - self.value) < _NEAR_VALUE)

    def visit(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the objective at a point, and its gradient."""
        self.watch.before()
        self.vector.assign(point)
        value, gradient = math.nan, np.zeros_like(point)
        with warnings.catch_warnings():
            # Jitter and rough quadrature on the way do not matter; where they matter in the end,
            # `posterior` warns.
            warnings.simplefilter("ignore", NumericalWarning)
            warnings.filterwarnings("ignore", "A Gaussian expectation", UserWarning)
            if self.watch.evaluations:  # said once
                warnings.filterwarnings("ignore", "This kernel is expected", UserWarning)
            try:
                value, gradient = self.vector.value_and_gradient(lambda: -self.objective())
            except (NanError, NotPSDError, torch.linalg.LinAlgError):
                pass
        fine = math.isfinite(value) and bool(np.isfinite(gradient).all())
        if fine and value < self.value:
            self.value, self.best = value, np.array(point)
        self.watch.after(-self.value)
        self.patience -= 1
        if self.known is not None:
            if self.stops_ahead and self.value < self.known.value:
                raise _Ahead
            behind = self.patience <= 0 and self.value >= self.known.value
            if behind or (fine and self.known.is_near(point, value)):
                raise _Known
        if fine:
            return value, gradient
        # Far above what was reached, so that the line search turns back.
        reached = self.value if self.found else 0.0
        return reached + 1e3 * (1 + abs(reached)), np.zeros_like(point)


def _options(max_iter: int | None, optimizer_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(optimizer_kwargs or {})
    method = given.setdefault("method", "L-BFGS-B")
    options = dict(_OPTIONS) if method == "L-BFGS-B" else {}
    options |= {"maxiter": _MAX_ITER, **given.get("options", {})}
    if max_iter is not None:
        options["maxiter"] = max_iter
    return {**given, "options": options}


def _draw_from_priors(model: gpytorch.Module) -> None:
    """Set every hyperparameter that has a prior to a draw from it, within its constraint."""
    for _, module, prior, closure, setting_closure in model.named_priors():
        if setting_closure is None:
            continue
        shape = closure(module).shape
        event = prior.batch_shape + prior.event_shape
        sample_shape = shape if event.numel() == 1 else shape[: len(shape) - len(event)]
        for _ in range(100):
            try:
                setting_closure(module, prior.sample(sample_shape))
                break
            except (RuntimeError, ValueError):  # out of the constraint's bounds
                continue


def _failure(model: gpytorch.Module, owner: str) -> str:
    found = runaway_values(model)
    start = (
        f"The fit of {owner} found no hyperparameters at which the marginal likelihood is finite"
    )
    if not found:
        return (
            f"{start}. Check that the kernel is finite and positive definite at the training rows, "
            "and that inputs and outcomes are on the scale that it expects."
        )
    return (
        f"{start}: {'; '.join(found[:3])}. Start it near 1 (or hold it: "
        "kernel.variances.hold), give it a prior, and standardise the inputs (input_transform)."
    )
