"""A user's transforms of inputs and outcomes, between the units of their data and the network's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from botorch.models.transforms.input import InputTransform
from torch import Tensor
from torch.distributions.transforms import AffineTransform, Transform

from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.posteriors.transforms import (
    DEFAULT,
    check_range,
    make_input_transform,
    make_outcome_transform,
    of_outputs,
)

__all__ = ["Transforms"]


@dataclass(frozen=True)
class Transforms:
    """Transforms that have learnt what they learn; None leaves the data to the network.

    Attributes:
        inputs: From the user's inputs to the network's.
        outcome: From the network's targets to the user's.
    """

    inputs: InputTransform | None
    outcome: Transform | None

    @classmethod
    def fitted(cls, inputs: Any, outcome: Any, X: Tensor, y: Tensor) -> Transforms:
        """For the data `X`, `y`; `DEFAULT` leaves them to the network too."""
        return cls(
            _fitted(None if inputs is DEFAULT else inputs, X),
            make_outcome_transform(None if outcome is DEFAULT else outcome, y),
        )

    def of_outputs(self, outputs: list[int]) -> Transforms:
        """Those of some outputs."""
        outcome = None if self.outcome is None else of_outputs(self.outcome, outputs)
        return replace(self, outcome=outcome)

    def observed(self, X: Tensor) -> Tensor:
        """Inputs of observed rows as the network sees them."""
        return self._transformed(X, "preprocess_transform")

    def asked(self, X: Tensor) -> Tensor:
        """Inputs of queries as the network sees them."""
        return self._transformed(X, "forward")

    def targets(self, Y: Tensor) -> Tensor:
        """Targets as the network sees them; refuses values that the transform cannot have."""
        if self.outcome is None:
            return Y
        check_range(self.outcome, Y)
        return self.outcome.inv(Y)

    def noise(self, variances: Tensor) -> Tensor:
        """Noise variances as the network sees them."""
        if self.outcome is None:
            return variances
        if not isinstance(self.outcome, AffineTransform):
            raise ValueError("noise variances need an affine outcome_transform, or none.")
        scale = torch.as_tensor(self.outcome.scale, dtype=variances.dtype, device=variances.device)
        return variances / scale**2

    def undo(self, posterior: PredictivePosterior, outputs: list[int]) -> PredictivePosterior:
        """The posterior of some outputs in the user's units."""
        if self.outcome is None:
            return posterior
        return TransformedPosterior(posterior, of_outputs(self.outcome, outputs))

    def _transformed(self, X: Tensor, how: str) -> Tensor:
        if self.inputs is None:
            return X
        rows = getattr(self.inputs, how)(X)
        if rows.shape == X.shape and bool((rows.isnan() & ~X.isnan()).any()):
            raise ValueError(
                "input_transform turned numbers into NaN; if it learns from X, which has "
                "missing values, give it fixed coefficients, or omit it and let the network "
                "scale the inputs."
            )
        return rows


def _fitted(input_transform: Any, X: Tensor) -> InputTransform | None:
    """A copy of an input transform that has learnt from X whatever it learns, and never again."""
    made = make_input_transform(input_transform, X)
    if made is None:
        return None
    made = copy.deepcopy(made).to(X).train()
    if X.shape[-2]:
        made(X)
    elif any(getattr(part, "learn_coefficients", False) for part in made.modules()):
        raise ValueError(
            "input_transform learns from X, which has no rows; give it fixed coefficients, for "
            "example by Normalize(d, bounds=...)."
        )
    return made.eval()
