"""Ordered classes: a network output among cut points that are learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from bayes.likelihoods.base import (
    Likelihood,
    NormalPrior,
    beside_rows,
    check_functions,
    check_one_column,
    check_whole_numbers,
)
from bayes.likelihoods.categorical import class_numbers, of_class, predicted_classes
from priors.posteriors.categorical import CategoricalPosterior

__all__ = ["Ordinal"]


@dataclass(frozen=True)
class Ordinal(Likelihood):
    """P(y <= c) = sigmoid(cut_c - f), with cuts in increasing order (McCullagh 1980, logit link).

    The unconstrained parameters `raw_cuts` are the first cut and the logarithms of the gaps between
    cuts. Their prior means make all classes equally probable where f is 0.

    Attributes:
        num_classes: C >= 2, of class numbers 0, ..., C - 1; one more than the largest in train_Y
            if None.
        cut_std: Standard deviation of the prior of each of the `raw_cuts`.
    """

    real_valued: ClassVar[bool] = False

    num_classes: int | None = None
    cut_std: float = 1.0

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"Ordinal needs num_classes >= 2, got {self.num_classes}.")
        if not 0 < self.cut_std < math.inf:
            raise ValueError(f"Ordinal needs cut_std > 0, got {self.cut_std}.")

    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        self.check_outcomes(Y, "train_Y")
        check_functions(self, num_functions, 1, "one for the column of train_Y")
        if self.num_classes is not None:
            return self
        return replace(self, num_classes=max(2, int(Y.max()) + 1))

    def check_outcomes(self, Y: Tensor, name: str = "Y") -> None:
        check_one_column(self, Y, name)
        check_whole_numbers(self, Y, name, "class numbers", self.num_classes)

    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        assert self.num_classes is not None
        shares = [c / self.num_classes for c in range(1, self.num_classes)]
        cuts = [math.log(share / (1 - share)) for share in shares]
        gaps = [math.log(b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        return {"raw_cuts": NormalPrior((cuts[0], *gaps), (self.cut_std,) * len(cuts))}

    def _log_probabilities(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """`[..., n, C]`.

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) does not cancel.
        """
        raw = parameters["raw_cuts"].unsqueeze(-2)
        beyond = _cuts(raw) - f
        ends = f.new_zeros(f.shape)
        gap = raw[..., 1:].exp().expand(*f.shape[:-1], raw.shape[-1] - 1)
        below = torch.cat([_log_sigmoid(beyond), ends], dim=-1)
        above = torch.cat([ends, _log_sigmoid(-beyond)], dim=-1)
        between = torch.cat([ends, (-torch.expm1(-gap)).log(), ends], dim=-1)
        return below + above + between

    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        return of_class(self._log_probabilities(f, parameters), Y)

    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._log_probabilities(f, parameters).exp()

    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> CategoricalPosterior:
        each = {name: beside_rows(value, f) for name, value in parameters.items()}
        return predicted_classes(self._log_probabilities(f, each), outputs, log_weights)

    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return class_numbers(self._log_probabilities(f, parameters), generator)

    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"cuts": _cuts(parameters["raw_cuts"])}


def _cuts(raw: Tensor) -> Tensor:
    """Cut points in increasing order from the first one and logarithms of gaps, `[..., C - 1]`."""
    return torch.cat([raw[..., :1], raw[..., 1:].exp()], dim=-1).cumsum(-1)


def _log_sigmoid(x: Tensor) -> Tensor:
    """With second derivatives that are exact everywhere, also under `torch.func.vmap`."""
    return torch.stack([x, torch.zeros_like(x)], dim=-1).log_softmax(-1)[..., 0]
