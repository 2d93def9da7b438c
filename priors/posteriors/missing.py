"""Inputs with missing values, for models whose kernels know of numbers only."""

from __future__ import annotations

import torch
from botorch.models.transforms.input import InputTransform
from torch import Tensor, nn

from priors.posteriors.standardisation import location_scale

__all__ = ["MissingInputs"]


class MissingInputs(InputTransform, nn.Module):
    """Input transform for NaN: columns standardised, gaps at their mean, and a column that says so.

    Each column is standardised by the values that it has in the training rows, and a missing value
    becomes 0, its mean. Columns with gaps among the training rows are followed, after all others,
    by an indicator each: 1 where the value is missing, else 0. So a kernel sees
    `num_columns` columns, and a row without a value can be unlike all with one. A column that had
    no gaps has no indicator; in queries its mean stands in.

    That is right where a gap tells something by itself, and harmless where few are missing; it is
    not an average over what the values may have been.

    Args:
        train_X: Training inputs `[n, d]`, NaN where missing.

    Raises:
        ValueError: shapes other than `[n, d]`.
    """

    location: Tensor
    scale: Tensor
    gaps: Tensor
    takes_missing = True

    def __init__(self, train_X: Tensor) -> None:
        super().__init__()
        if train_X.dim() != 2:
            raise ValueError(
                f"MissingInputs needs training inputs [n, d], got shape {tuple(train_X.shape)}."
            )
        missing = train_X.isnan()
        location, scale = location_scale(train_X, ~missing)
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)
        self.register_buffer("gaps", missing.any(0).nonzero().squeeze(-1))
        self.transform_on_train = self.transform_on_eval = self.transform_on_fantasize = True

    @property
    def num_columns(self) -> int:
        """How many columns the kernel sees, indicators included."""
        return self.location.shape[-1] + len(self.gaps)

    def transform(self, X: Tensor) -> Tensor:
        """Inputs `[..., n, d]` as `[..., n, num_columns]`.

        Args:
            X: NaN where missing.
        """
        missing = X.isnan()
        # NaN is replaced before the arithmetic: it would spoil gradients
        filled = torch.where(missing, self.location, X)
        indicators = missing[..., self.gaps].to(X)
        return torch.cat([(filled - self.location) / self.scale, indicators], -1)
