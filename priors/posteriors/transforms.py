"""Scaling inputs and outcomes, the same way in every engine.

All engines take `input_transform` and `outcome_transform`. `DEFAULT` standardises by the training
rows (columns that a network gives the same weights together), `None` leaves the data alone, and
anything else is used as given: a BoTorch `InputTransform` for inputs, of which models take a copy
that learns from the training rows what it learns, an elementwise monotone `torch.distributions`
transform from the model's scale z to the user's y for outcomes, such as `TailCompression(Y)` for
what is to be optimised. Statistics are those of the training rows and
never change afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from botorch.models.transforms.input import AffineInputTransform, InputTransform
from botorch.utils.types import DEFAULT
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    PowerTransform,
    Transform,
)

from priors.posteriors.compat import InverseTransform, copied
from priors.posteriors.standardisation import location_scale

__all__ = [
    "DEFAULT",
    "AffineBeyond",
    "TailCompression",
    "affine_beyond",
    "check_range",
    "fitted_input_transform",
    "make_input_transform",
    "make_outcome_transform",
    "of_outputs",
]


def make_input_transform(
    input_transform: Any, train_X: Tensor, together: Sequence[Sequence[int]] = ()
) -> InputTransform | None:
    """The input transform that a model applies to its rows.

    Args:
        input_transform: `DEFAULT` (standardise by the training rows), None (off) or a BoTorch
            `InputTransform`, used as given.
        train_X: Training inputs, `[..., n, d]`.
        together: Groups of columns that are standardised by one mean and one standard deviation,
            such as the pixels of a channel.

    Raises:
        TypeError: `input_transform` is something else.
        ValueError: a group has a column that `train_X` has not.
    """
    if input_transform is None:
        return None
    if input_transform is DEFAULT:
        location, scale = location_scale(train_X)
        for columns in together:
            if max(columns) >= train_X.shape[-1]:
                raise ValueError(
                    f"X has {train_X.shape[-1]} columns, but the network reads {max(columns) + 1} "
                    "or more; give flat rows of its input_shape, X.flatten(1)."
                )
            index = torch.tensor(columns, device=train_X.device)
            entries = train_X[..., index].flatten(-2).unsqueeze(-1)
            mean, deviation = location_scale(entries)
            location[..., index], scale[..., index] = mean, deviation
        return AffineInputTransform(
            d=train_X.shape[-1],
            coefficient=scale,
            offset=location,
            batch_shape=train_X.shape[:-2],
        )
    if not isinstance(input_transform, InputTransform):
        raise TypeError(
            "input_transform must be DEFAULT, None or a botorch InputTransform, got "
            f"{type(input_transform).__name__}."
        )
    return input_transform


def fitted_input_transform(
    input_transform: Any, train_X: Tensor, together: Sequence[Sequence[int]] = ()
) -> InputTransform | None:
    """A copy of an input transform that has learnt from the rows whatever it learns.

    One in evaluation mode has learnt before, and keeps what it has, as in BoTorch.

    Args:
        input_transform: As of `make_input_transform`.
        train_X: Training inputs, `[..., n, d]`.
        together: As of `make_input_transform`.

    Returns:
        In evaluation mode, on the device and in the dtype of `train_X`.

    Raises:
        TypeError: `input_transform` is something else.
        ValueError: a group has a column that `train_X` has not.
    """
    made = make_input_transform(input_transform, train_X, together)
    if made is None:
        return None
    made = copy.deepcopy(made).to(train_X)
    with torch.no_grad():
        made(train_X)
    return made.eval()


def make_outcome_transform(outcome_transform: Any, train_Y: Tensor) -> Transform | None:
    """The map from the model's outcome scale z to the user's y.

    The model is trained on `transform.inv(train_Y)`, and `TransformedPosterior(base, transform)`
    brings its posterior back.

    Args:
        outcome_transform: `DEFAULT` (an `AffineTransform` that undoes standardisation by the
            training rows, column by column), None (off) or an elementwise monotone
            `torch.distributions` transform from z to y, used as given: `ExpTransform()` models
            the logarithm of Y.
        train_Y: Training outcomes, `[..., n, m]`.

    Raises:
        TypeError: `outcome_transform` is something else.
        ValueError: the transform is not elementwise and monotone, or `train_Y` is outside its
            range.
    """
    if outcome_transform is None:
        return None
    if outcome_transform is DEFAULT:
        return AffineTransform(*location_scale(train_Y))
    if not isinstance(outcome_transform, Transform):
        raise TypeError(
            "outcome_transform must be DEFAULT, None or a torch.distributions transform from the "
            f"model's scale to Y's (ExpTransform() models log Y), got "
            f"{type(outcome_transform).__name__}."
        )
    if not outcome_transform.bijective or outcome_transform.domain.event_dim != 0:
        raise ValueError(
            f"outcome_transform must act elementwise and be monotone, got {outcome_transform}."
        )
    outcome_transform = _closed(outcome_transform)
    check_range(outcome_transform, train_Y)
    return outcome_transform


def check_range(outcome_transform: Transform, Y: Tensor) -> None:
    """Refuse outcomes that the transform cannot give."""
    if not bool(outcome_transform.codomain.check(Y).all()):
        raise ValueError(
            f"Y has values outside the range of outcome_transform {outcome_transform}."
        )


def _closed(transform: Transform) -> Transform:
    """The inverse of an affine map as an affine map, whose formulas are closed."""
    affine = transform.inv
    if not isinstance(affine, AffineTransform):
        return transform
    return AffineTransform(-affine.loc / affine.scale, 1 / affine.scale)


@runtime_checkable
class AffineBeyond(Protocol):
    """What a transform has that is affine on one side, where improvements are closed forms."""

    def affine_beyond(self, threshold: Tensor, above: bool) -> AffineTransform | None:
        """The affine map that the transform from z to y is for all y beyond a threshold.

        Args:
            threshold: Values of y, broadcasting with `[..., n, m]`.
            above: Whether y above the threshold are meant, rather than those below.

        Returns:
            None where it is not affine for some of them.
        """
        ...


def affine_beyond(transform: Transform, threshold: Tensor, above: bool) -> AffineTransform | None:
    """As in `AffineBeyond`, of any transform."""
    if isinstance(transform, AffineTransform):
        return transform
    if isinstance(transform, AffineBeyond):
        return transform.affine_beyond(threshold, above)
    return None


class TailCompression(Transform):
    r"""Outcome transform for optimisation: good values unchanged, bad ones on a log scale.

    With a the `quantile` of the training rows, s = max Y - a, the depth t = (a - y) / s, D that
    of the worst row, and y to be maximised,

        w = y for t <= 0,   a - s (log(1 + min(t, D)) + max(t - D, 0) / (1 + D)) below;
        z = (w - mean) / deviation,

    once differentiable and monotone, so that densities and quantiles are exact. Test functions
    and losses are often very bad somewhere; standardised without it, all that matters near the
    optimum is then smaller than what a model resolves. Improvements on a value above a are in
    units of y, up to the factor `deviation`, and have their closed form. Winsorising, as in Ax,
    cuts the tail instead. Below the worst row the map is linear: behind an exponential without
    end, moments of a heavy-tailed posterior would not exist.

    Args:
        Y: Training outcomes `[..., n, m]`, n >= 1.
        quantile: Share of the rows that counts as bad, in [0, 1).
        maximize: Whether large values are good.

    Raises:
        ValueError: there are no rows, values are not finite, or the quantile is out of range.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, Y: Tensor, *, quantile: float = 0.75, maximize: bool = True) -> None:
        super().__init__()
        if not 0 <= quantile < 1:
            raise ValueError(f"quantile must lie in [0, 1), got {quantile}.")
        if not bool(Y.isfinite().all()):
            raise ValueError("Y has NaN or infinite values; remove those rows first.")
        _, deviation = location_scale(Y)
        self._side = 1.0 if maximize else -1.0
        good = self._side * Y
        self._anchor = good.quantile(quantile, dim=-2, keepdim=True)
        spread = good.amax(-2, keepdim=True) - self._anchor
        self._spread = torch.where(spread > 0, spread, deviation)
        self._deepest = self._depth(good.amin(-2, keepdim=True))
        self._location, self._scale = location_scale(self._compressed(good))

    def affine_beyond(self, threshold: Tensor, above: bool) -> AffineTransform | None:
        """On the good side, of thresholds that are not bad; see `AffineBeyond`."""
        good = self._side * threshold
        if (self._side > 0) != above or not bool((good >= self._anchor).all()):
            return None
        return AffineTransform(self._side * self._location, self._scale)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of |dy / dz|."""
        log_depth = self._depth(self._unscaled(x))
        return self._scale.log() + torch.minimum(log_depth, self._deepest.log1p())

    def _call(self, x: Tensor) -> Tensor:
        good = self._unscaled(x)
        log_depth, end = self._depth(good), self._deepest.log1p()
        beyond = (log_depth - end).clamp(min=0) * (1 + self._deepest)
        depth = torch.minimum(log_depth, end).expm1() + beyond
        return self._side * (good.clamp(min=self._anchor) - self._spread * depth)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._side * (self._compressed(self._side * y) - self._location) / self._scale

    def _unscaled(self, x: Tensor) -> Tensor:
        return self._location + self._scale * (self._side * x)

    def _compressed(self, good: Tensor) -> Tensor:
        depth, end = self._depth(good), self._deepest
        beyond = (depth - end).clamp(min=0) / (1 + end)
        log_depth = torch.minimum(depth, end).log1p() + beyond
        return good.clamp(min=self._anchor) - self._spread * log_depth

    def _depth(self, good: Tensor) -> Tensor:
        """How far a value is below the anchor, in units of the spread; 0 above."""
        return (self._anchor - good).clamp(min=0) / self._spread


# What transforms have for each output, or for all of them.
_PARAMETERS: dict[type[Transform], tuple[str, ...]] = {
    AffineTransform: ("loc", "scale"),
    PowerTransform: ("exponent",),
    TailCompression: ("_anchor", "_spread", "_deepest", "_location", "_scale"),
}


def of_outputs(transform: Transform, index: Sequence[int]) -> Transform:
    """The outcome transform of some outputs.

    Raises:
        NotImplementedError: a transform of another class that holds several numbers.
    """
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([of_outputs(part, index) for part in transform.parts])
    if isinstance(transform, InverseTransform):
        return of_outputs(transform.inv, index).inv
    names = _PARAMETERS.get(type(transform), tuple(vars(transform)))
    values = {name: getattr(transform, name) for name in names}
    several = {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.dim() and value.shape[-1] > 1
    }
    if type(transform) not in _PARAMETERS:
        if several:
            raise NotImplementedError(
                f"{transform} cannot be split by outputs; compose it from "
                f"{sorted(kind.__name__ for kind in _PARAMETERS)}, or use one model per output."
            )
        return transform
    new = copied(transform)
    for name, value in several.items():
        setattr(new, name, value[..., list(index)])
    return new
