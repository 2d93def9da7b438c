"""What a surrogate is: a way to write candidates as rows, and a model fitted to such rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from botorch.models.model import Model
from torch import Tensor

from nas.encoding.candidates import Candidate, Encoder, VectorEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.spaces import Space

__all__ = ["Surrogate", "VectorModel", "VectorSurrogate"]

VectorModel = Callable[[Tensor, Tensor, int], Model]
"""`(train_X [n, d], train_Y [n, 1], num_architecture) -> Model`, fitted; the first
`num_architecture` of the d unit coordinates encode the architecture; larger Y is better."""


class Surrogate(ABC):
    """A model of the objective over architectures and hyperparameters together.

    Attributes:
        refits: Whether `refit` is there, for a surrogate whose learning costs more than its use.
        reads_studies: Whether its rows say of which study a candidate is, so that earlier studies,
            of other spaces too, can warm a search.
        reads_fidelities: Whether its rows have a column for the level of fidelity, see `Encoder`.
    """

    refits = False
    reads_studies = False
    reads_fidelities = False

    @abstractmethod
    def encoder(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> Encoder:
        """Writes candidates as rows for this surrogate.

        Args:
            space: Of the architectures.
            cube: Of the hyperparameters.
            observed: The training rows, at least one.
        """

    @abstractmethod
    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        """A BoTorch model fitted to data.

        Args:
            X: Rows of `encoder`, `[n, d]`, oldest first.
            Y: Standardised targets, `[n, 1]`; larger is better.
            encoder: What wrote the rows.
        """

    def refit(self, X: Tensor, Y: Tensor, encoder: Encoder, earlier: Model) -> Model:
        """A model of further rows with what an earlier one learnt, without learning anew.

        Only asked where `refits` is true: then `fit` is asked again when there are a fifth more
        trials.

        Args:
            X: Rows of `encoder`, `[n, d]`; those that the earlier model was fitted to come first.
            Y: Standardised targets, `[n, 1]`.
            encoder: What wrote the rows, made for those of the earlier model.
            earlier: What `fit` gave for them, or an earlier `refit` of it; may be changed and
                returned.
        """
        raise NotImplementedError(f"{type(self).__name__} sets `refits`, so it needs `refit`.")

    def notice(self, X: Tensor) -> str | None:
        """What a user should know about how these rows are modelled; None if nothing."""
        return None


class VectorSurrogate(Surrogate):
    """Any callable from rows of the unit cube to a BoTorch model; see `VectorModel`."""

    def __init__(self, model: VectorModel) -> None:
        self.model = model

    def __repr__(self) -> str:
        return getattr(self.model, "__name__", repr(self.model))

    def encoder(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> Encoder:
        """The space's own codes."""
        return VectorEncoder(space, cube)

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        """What the callable makes of the rows."""
        return self.model(X, Y, X.shape[-1] - encoder.cube.dimension)
