"""The Gaussian process over graphs: motifs and descriptors, times hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gpytorch
from botorch.exceptions import ModelFittingError
from botorch.models.model import Model
from torch import Tensor

from bayes import GaussianProcess
from nas.architectures import Architecture
from nas.encoding.candidates import Candidate, Encoder, TableEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import architecture_kernel
from nas.kernels.motifs import MotifStore
from nas.proxies import ProxyScores
from nas.spaces import FlatSpace, Space
from nas.surrogates.surrogate import Surrogate

__all__ = ["GraphProcess"]

MAX_STORED = 1 << 15  # architectures whose features are kept


class GraphProcess(Surrogate):
    """`GaussianProcess` with `architecture_kernel`, its hyperparameters at their mode.

    In a flat space architectures are compared by their parameters too.

    Args:
        max_iter: Steps of the fit at most.
        proxies: Scores without training, further descriptors of the architectures.
    """

    refits = True
    reads_studies = True

    def __init__(self, max_iter: int = 50, *, proxies: ProxyScores | None = None) -> None:
        self.max_iter = max_iter
        self.proxies = proxies
        self._store = MotifStore()
        self._space: Space | None = None  # of the store

    def __repr__(self) -> str:
        return "gp" if self.proxies is None else f"gp with {list(self.proxies.names)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_store": MotifStore(), "_space": None}  # found again where needed

    def encoder(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> Encoder:
        """Numbers of a table."""
        if self._space is not space or len(self._store) > MAX_STORED:
            code = partial(_code, space) if isinstance(space, FlatSpace) else None
            self._store, self._space = MotifStore(code=code), space
        return TableEncoder(space, cube, observed, traits=self.proxies, store=self._store)

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        """The process, fitted."""
        return fitted(_process(X, Y, encoder), self.max_iter)

    def refit(self, X: Tensor, Y: Tensor, encoder: Encoder, earlier: Model) -> Model:
        """The process of all rows with the earlier hyperparameters."""
        model = _process(X, Y, encoder)
        model.load_state_dict(earlier.state_dict())
        return model.eval()


def _code(space: FlatSpace, architecture: Architecture) -> Tensor | None:
    """Of a member; None of one of another space, which an earlier study may have."""
    try:
        return space.encode(architecture)
    except ValueError:
        return None


def _process(X: Tensor, Y: Tensor, encoder: Encoder) -> GaussianProcess:
    assert isinstance(encoder, TableEncoder)
    with X.device:
        kernel = architecture_kernel(
            encoder.table, encoder.cube.dimension, num_earlier=encoder.num_earlier
        ).to(X)
        return GaussianProcess(X, Y, kernel, input_transform=None, outcome_transform=None)


def fitted(model: GaussianProcess, max_iter: int) -> GaussianProcess:
    """The model at the mode of its hyperparameters, or as it is where the fit fails."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with gpytorch.settings.fast_computations(False, False, False):
        try:
            model.fit(max_iter=max_iter, progress=False)
        except (ModelFittingError, RuntimeError):
            model.load_state_dict(start)  # the prior's own hyperparameters still rank points
    return model.eval()
