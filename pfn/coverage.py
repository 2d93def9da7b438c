"""The range of data that a network was trained on, and checks of a user's data against it.

What a network cannot take is refused; where it would extrapolate, it warns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from pfn.architecture import ArchitectureConfig

__all__ = ["Coverage", "check_data", "check_num_classes"]


@dataclass(frozen=True)
class Coverage:
    """What the tasks had in all trainings of a network; defaults where that is not recorded.

    Attributes:
        max_context: Most context rows.
        max_buffer: Most appended rows; 0 if none ever were, so that nothing can be appended.
        missing: Whether any inputs were missing.
        categorical: Whether any columns held categories.
        known_noise: Whether the network was given noise variances.
        function: Whether any task had a noise-free function.
        exchangeable: Whether the order of columns means nothing under the prior.
        input_range: Least and largest of raw inputs; None for standardised ones.
        target_range: Least and largest of targets in fixed units, raw or given; None for
            standardised ones.
        num_features: Most features; None where only the number of slots is known.
    """

    max_context: float = math.inf
    max_buffer: int = 0
    missing: bool = False
    categorical: bool = False
    known_noise: bool = True
    function: bool = True
    exchangeable: bool = True
    input_range: tuple[float, float] | None = None
    target_range: tuple[float, float] | None = None
    num_features: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without what is not known."""
        values = {k: v for k, v in asdict(self).items() if v is not None and v != math.inf}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Coverage:
        """Inverse of `to_json`; other values, of the metadata of a network, are left alone."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name in ("input_range", "target_range"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)

    def joined(self, other: Coverage) -> Coverage:
        """What either of two trainings covered; ranges only of what has fixed units in this one."""
        features = [n for n in (self.num_features, other.num_features) if n is not None]
        return Coverage(
            max_context=max(self.max_context, other.max_context),
            max_buffer=max(self.max_buffer, other.max_buffer),
            missing=self.missing or other.missing,
            categorical=self.categorical or other.categorical,
            known_noise=self.known_noise or other.known_noise,
            function=self.function or other.function,
            exchangeable=self.exchangeable and other.exchangeable,
            input_range=_hull(self.input_range, other.input_range),
            target_range=_hull(self.target_range, other.target_range),
            num_features=max(features) if features else None,
        )

    def check_inputs(self, X: Tensor) -> None:
        """Refuse inputs that are infinite, or missing where the network does not know missing."""
        if not bool((X.isfinite() | X.isnan() if self.missing else X.isfinite()).all()):
            raise ValueError("X has NaN or infinite values; remove or impute those rows first.")

    def check_noise(self, Yvar: Tensor, y: Tensor) -> None:
        """Refuse noise variances of targets `y` that the network was not trained to use."""
        if not self.known_noise:
            raise ValueError(
                "this network was trained without known noise variances; omit them, or train "
                "it with TrainingConfig.known_noise > 0."
            )
        if Yvar.dtype != y.dtype or Yvar.device != y.device:
            raise TypeError(
                f"y is {y.dtype} on {y.device} and its noise variances {Yvar.dtype} on "
                f"{Yvar.device}; they must agree."
            )
        if Yvar.shape != y.shape or bool((Yvar < 0).any()) or bool(Yvar.isinf().any()):
            raise ValueError(
                f"train_Yvar must hold finite variances of shape {tuple(y.shape)}, none negative "
                f"and NaN where unknown; got shape {tuple(Yvar.shape)}."
            )

    def check_categorical(self, categorical: Tensor | None, X: Tensor) -> None:
        """Refuse a mask of categories of another shape, or for a network that knows none."""
        if categorical is None:
            return
        if categorical.shape != X.shape[-1:]:
            raise ValueError(
                f"categorical must be a mask [{X.shape[-1]}], got {tuple(categorical.shape)}."
            )
        if not self.categorical:
            raise ValueError(
                "this network was trained without categorical columns; omit `categorical`, or "
                "train it on tasks that have some (`priors.Tabular`)."
            )

    def warn_beyond_training(self, rows: int) -> None:
        """Warn if a context is longer than those of the training."""
        if rows > self.max_context:
            warnings.warn(
                f"This network was trained on up to {self.max_context} context rows and got "
                f"{rows}; beyond that its predictions are extrapolation. Condition on a subset, or "
                "silence this with warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )

    def warn_of_features(self, architecture: ArchitectureConfig, features: int) -> None:
        """Warn if a context is wider than those of the training."""
        slots = architecture.max_features
        most = slots if self.num_features is None else self.num_features
        if features <= most:
            return
        what = "beyond that its predictions are extrapolation"
        if features > slots and not architecture.cell_layers:
            what = f"it uses {slots} of them, chosen by `column_seed`"
        warnings.warn(
            f"This network was trained on up to {most} features and got {features}; {what}. "
            "Select features, or silence this with "
            "warnings.filterwarnings('ignore', 'This network').",
            stacklevel=4,
        )

    def warn_outside_range(self, X: Tensor) -> None:
        """Warn if raw inputs are outside those of the training."""
        _warn_outside(self.input_range, X, 0.05, "inputs", "`input_transform`")

    def warn_outside_targets(self, Y: Tensor) -> None:
        """Warn if targets in fixed units are far outside those of the training."""
        # Noise has tails, which some thousands of targets do not show.
        _warn_outside(self.target_range, Y, 0.5, "targets", "`outcome_transform`")


def _hull(
    own: tuple[float, float] | None, other: tuple[float, float] | None
) -> tuple[float, float] | None:
    if own is None or other is None:
        return own
    return min(own[0], other[0]), max(own[1], other[1])


def _warn_outside(
    known: tuple[float, float] | None, found: Tensor, slack: float, what: str, transform: str
) -> None:
    """Warn of values farther outside a range than `slack` times its length."""
    if known is None:
        return
    low, high = known
    values = found[found.isfinite()]
    slack = slack * (high - low)
    if values.numel() and not low - slack <= values.min() <= values.max() <= high + slack:
        warnings.warn(
            f"This network was trained on {what} between {low:.3g} and {high:.3g}, in fixed "
            f"units, and got {values.min():.3g} to {values.max():.3g}; outside that its "
            f"predictions are extrapolation. Scale the {what}, for example by {transform}, or "
            "silence this with warnings.filterwarnings('ignore', 'This network').",
            stacklevel=5,
        )


def check_data(
    architecture: ArchitectureConfig,
    coverage: Coverage,
    X: Tensor,
    y: Tensor,
    Yvar: Tensor | None = None,
) -> None:
    """Refuse data that a network cannot take; see `PFN.condition`."""
    for name, value in (("X", X), ("y", y), ("train_Yvar", Yvar)):
        if value is None and name == "train_Yvar":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            if isinstance(value, Tensor):
                got = f"one of {value.dtype}; {name}.float() makes one"
            else:
                got = f"a {type(value).__name__}; torch.as_tensor({name}).float() makes one"
            raise TypeError(f"{name} must be a floating-point tensor, got {got}.")
    coverage.check_inputs(X)
    if not bool(y.isfinite().all()):
        raise ValueError("y has NaN or infinite values; remove those rows first.")
    if X.dim() < 2 or X.shape[:-1] != y.shape[:-1] or y.shape[-1] == 0:
        raise ValueError(
            f"condition needs X [..., n, d] and y [..., n, m] with the same rows, got "
            f"{tuple(X.shape)} and {tuple(y.shape)}."
        )
    if X.dtype != y.dtype or X.device != y.device:
        raise TypeError(
            f"X is {X.dtype} on {X.device} and y {y.dtype} on {y.device}; they must agree."
        )
    if X.shape[-1] < 1:
        most = architecture.max_features
        raise ValueError(f"X has no features; this network takes 1 to {most}.")
    if Yvar is not None:
        if architecture.classes:
            raise ValueError("train_Yvar is for regression; this is a classification network.")
        coverage.check_noise(Yvar, y)
    if architecture.classes:
        _check_classes(architecture.classes, y)


def check_num_classes(architecture: ArchitectureConfig, num_classes: int | None, y: Tensor) -> None:
    """Refuse fewer classes than y has, or more than the network has."""
    if num_classes is None:
        return
    most = architecture.classes
    least = 1 + (int(y.max()) if y.numel() else 0)
    if not least <= num_classes <= most:
        raise ValueError(
            f"num_classes must lie between {least}, as many as y has, and {most}, as many as the "
            f"network has (none in regression); got {num_classes}."
        )


def _check_classes(classes: int, y: Tensor) -> None:
    wrong = (y != y.round()) | (y < 0) | (y >= classes)
    if y.shape[-1] != 1 or bool(wrong.any()):
        raise ValueError(
            f"y must be one column of classes 0 .. {classes - 1} for this network, got shape "
            f"{tuple(y.shape)} with values from {y.min():g} to {y.max():g}."
        )
