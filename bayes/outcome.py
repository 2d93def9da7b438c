"""The outcome transform of this package where BoTorch looks for one of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.models.transforms.outcome import OutcomeTransform
from torch import Tensor
from torch.distributions.transforms import AffineTransform, Transform

from priors.posteriors.transforms import of_outputs

__all__ = ["ElementwiseOutcome"]


class ElementwiseOutcome(OutcomeTransform):
    """Our outcome transform where BoTorch's own methods (conditioning, loading) look for one."""

    loc: Tensor
    scale: Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.affine = False
        if isinstance(transform, AffineTransform):  # buffers, so that they move with the model
            self.affine = True
            self.register_buffer("loc", _rows(transform.loc))
            self.register_buffer("scale", _rows(transform.scale))
        else:
            self._transform = transform

    @property
    def transform(self) -> Transform:
        """The map from the model's scale to Y's."""
        return AffineTransform(self.loc, self.scale) if self.affine else self._transform

    def of_outputs(self, outputs: Sequence[int]) -> Transform:
        """The map of some outputs, `[..., n, len(outputs)]`."""
        return of_outputs(self.transform, outputs)

    def forward(
        self, Y: Tensor, Yvar: Tensor | None = None, X: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.transform.inv(Y), None if Yvar is None else self.inverse_variances(Yvar)

    def untransform(
        self, Y: Tensor, Yvar: Tensor | None = None, X: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.transform(Y), None if Yvar is None else self.variances(Yvar)

    def variances(self, variances: Tensor) -> Tensor:
        """Variances of noise in squared units of Y, from those on the model's scale.

        Raises:
            ValueError: the transform is not affine.
        """
        return variances * self._squared_scale()

    def inverse_variances(self, variances: Tensor) -> Tensor:
        """Variances of noise on the model's scale, from those in squared units of Y.

        Raises:
            ValueError: the transform is not affine.
        """
        return variances / self._squared_scale()

    def _squared_scale(self) -> Tensor:
        if not self.affine:
            raise ValueError(
                "A known noise variance has no meaning under the outcome transform "
                f"{self.transform}: only affine ones carry it over. Transform Y and its variances "
                "yourself."
            )
        return self.scale**2


def _rows(value: Tensor | float) -> Tensor:
    """A transform's parameter as `[..., 1, m]` or `[1, 1]`; numbers in float64."""
    return torch.atleast_2d(
        value
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.float64, device="cpu")
    )
