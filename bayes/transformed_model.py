"""What models share that see inputs and outcomes through transforms and are no exact processes.

Transforms are made from the training rows, and fitted once; predictions are seen through that of
the outcomes, in the units of Y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from botorch.models.model import Model
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from bayes.checks import check_unit
from bayes.description import describe_transform
from bayes.outcome import ElementwiseOutcome
from bayes.outputs import OutputSubset
from priors.kernels.network import columns_together
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.posteriors.transforms import fitted_input_transform, make_outcome_transform

__all__ = ["TransformedModel", "described"]


class TransformedModel(Model):
    """Base of the models: their transforms, and what BoTorch asks of them."""

    def _set_transforms(
        self,
        X: Tensor,
        Y: Tensor,
        input_transform: Any,
        outcome_transform: Any,
        kernel: Kernel | None = None,
    ) -> None:
        """Make the transforms of training rows, inputs that meet the same weights together."""
        outcome = make_outcome_transform(outcome_transform, Y)
        check_unit(type(self).__name__, outcome, Y)
        self.outcome_transform = (
            None if outcome is None else ElementwiseOutcome(outcome).to(X).eval()
        )
        together = () if kernel is None else columns_together(kernel)
        self.input_transform = fitted_input_transform(input_transform, X, together)

    def transformed_inputs(self, X: Tensor) -> Tensor:
        """Inputs on the model's scale.

        Args:
            X: In the units of train_X, `[..., n, d]`.
        """
        return X if self.input_transform is None else self.input_transform(X)

    def transformed_outcomes(self, Y: Tensor) -> Tensor:
        """Outcomes on the model's scale.

        Args:
            Y: In the units of train_Y, `[..., n, m]`.
        """
        return Y if self.outcome_transform is None else self.outcome_transform(Y)[0]

    def _in_units_of_y(self, posterior: Any, outputs: Sequence[int]) -> Any:
        """The posterior of some outputs seen through the outcome transform."""
        if self.outcome_transform is None:
            return posterior
        assert isinstance(posterior, PredictivePosterior)
        transform = self.outcome_transform.of_outputs(outputs)
        if isinstance(posterior, GaussianPosterior) and isinstance(transform, AffineTransform):
            return GaussianPosterior(posterior.base, transform)
        return TransformedPosterior(posterior, transform)

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.

        Raises:
            ValueError: an index is out of range.
        """
        return OutputSubset(self, idcs)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: input transforms are fitted.

        Args:
            mode: Ignored.
        """
        return nn.Module.train(self, False)

    def _set_transformed_inputs(self) -> None:
        """Nothing to do for BoTorch: inputs are transformed where they are used."""


def described(input_transform: Any, outcome_transform: Any) -> dict[str, str]:
    """Whether transforms are the default ones, off or the user's own, for files."""
    return {
        "input_transform": describe_transform(input_transform),
        "outcome_transform": describe_transform(outcome_transform),
    }
