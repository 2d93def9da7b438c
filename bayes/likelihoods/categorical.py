"""Unordered classes, one network output for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from bayes.likelihoods.base import (
    Likelihood,
    NormalPrior,
    check_functions,
    check_one_column,
    check_whole_numbers,
)
from priors.functions import draw
from priors.posteriors.categorical import CategoricalPosterior
from priors.posteriors.draws import log_average, normalised

__all__ = ["Categorical", "class_numbers", "num_classes_of", "predicted_classes"]

_MANY_CLASSES = 100  # more than these need as many rows


@dataclass(frozen=True)
class Categorical(Likelihood):
    """P(y = c) is proportional to exp(f_c), y one column of class numbers 0, ..., C - 1.

    Attributes:
        num_classes: C; the network's number of outputs if None.
    """

    real_valued: ClassVar[bool] = False

    num_classes: int | None = None

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        check_one_column(self, Y, "train_Y")
        classes = num_functions if self.num_classes is None else self.num_classes
        if classes < 2:
            raise ValueError(
                f"Categorical needs an output for each of 2 or more classes, got {classes}."
            )
        check_functions(self, num_functions, classes, "one for each class")
        if self.num_classes is None and bool((Y >= classes).any()):
            raise ValueError(
                f"train_Y has the class {Y.max():g}, and Categorical has a class for each of the "
                f"network's {classes} outputs, 0 to {classes - 1}; give the network more outputs."
            )
        fitted = replace(self, num_classes=classes)
        fitted.check_outcomes(Y, "train_Y")
        return fitted

    def check_outcomes(self, Y: Tensor, name: str = "Y") -> None:
        check_one_column(self, Y, name)
        check_whole_numbers(self, Y, name, "class numbers", self.num_classes)

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        return {}

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        return of_class(f.log_softmax(-1), Y)

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return f.softmax(-1)

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> CategoricalPosterior:
        return predicted_classes(f.log_softmax(-1), outputs, log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return class_numbers(f.log_softmax(-1), generator)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


def of_class(log_probabilities: Tensor, Y: Tensor) -> Tensor:
    """Of log probabilities `[..., n, C]` those of classes `[n, 1]`, `[..., n, 1]`."""
    index = Y.long().expand(*log_probabilities.shape[:-1], 1)
    return log_probabilities.gather(-1, index)


def predicted_classes(
    log_probabilities: Tensor, outputs: Sequence[int], log_weights: Tensor | None
) -> CategoricalPosterior:
    """The average of S draws of log probabilities `[S, ..., q, C]`.

    Raises:
        ValueError: not all outputs are asked for.
    """
    classes = log_probabilities.shape[-1]
    if list(outputs) != list(range(classes)):
        raise ValueError(
            f"Class probabilities come together, got outputs {list(outputs)} of {classes} classes; "
            "take columns of posterior(X).mean."
        )
    weights = normalised(log_weights, log_probabilities)
    return CategoricalPosterior(log_average(log_probabilities, weights))


def num_classes_of(owner: str, Y: Tensor) -> int:
    """One more than the largest class number, at least 2.

    Args:
        owner: Who asks, for the error.
        Y: Class numbers, `[n, 1]`.

    Raises:
        ValueError: that would be more classes than rows, and many: Y numbers something else.
    """
    classes = max(2, int(Y.max()) + 1)
    if classes > max(_MANY_CLASSES, len(Y)):
        raise ValueError(
            f"{owner} got the class number {classes - 1} with {len(Y)} rows. All numbers from 0 to "
            "the largest are classes: number those that there are by "
            "torch.unique(Y, return_inverse=True)[1], or give num_classes."
        )
    return classes


def class_numbers(log_probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Classes `[..., n, 1]` drawn with log probabilities `[..., n, C]`."""
    law = torch.distributions.Categorical(logits=log_probabilities, validate_args=False)
    drawn = draw(law, torch.Size(), generator=generator)
    return drawn.unsqueeze(-1).to(log_probabilities)
