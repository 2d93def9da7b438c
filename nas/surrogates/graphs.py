"""The Gaussian process over graphs: motifs and descriptors, times hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence

import gpytorch
from botorch.exceptions import ModelFittingError
from botorch.models.model import Model
from torch import Tensor

from bayes import GaussianProcess
from nas.encoding.candidates import Candidate, Encoder, TableEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import architecture_kernel
from nas.proxies import ProxyScores
from nas.spaces import Space
from nas.surrogates.surrogate import Surrogate

__all__ = ["GraphProcess"]


class GraphProcess(Surrogate):
    """`GaussianProcess` with `architecture_kernel`, its hyperparameters at their mode.

    Args:
        max_iter: Steps of the fit at most.
        proxies: Scores without training, further descriptors of the architectures.
    """

    def __init__(self, max_iter: int = 200, *, proxies: ProxyScores | None = None) -> None:
        self.max_iter = max_iter
        self.proxies = proxies

    def __repr__(self) -> str:
        return "gp" if self.proxies is None else f"gp with {list(self.proxies.names)}"

    def encoder(
        self, space: Space, cube: HyperparameterCube, observed: Sequence[Candidate]
    ) -> Encoder:
        """Numbers of a table."""
        return TableEncoder(space, cube, observed, traits=self.proxies)

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        """The process, fitted."""
        assert isinstance(encoder, TableEncoder)
        with X.device:
            kernel = architecture_kernel(encoder.table, encoder.cube.dimension).to(X)
            model = GaussianProcess(X, Y, kernel, input_transform=None, outcome_transform=None)
        return fitted(model, self.max_iter)


def fitted(model: GaussianProcess, max_iter: int) -> GaussianProcess:
    """The model at the mode of its hyperparameters, or as it is where the fit fails."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with gpytorch.settings.fast_computations(False, False, False):
        try:
            model.fit(max_iter=max_iter)
        except (ModelFittingError, RuntimeError):
            model.load_state_dict(start)  # the prior's own hyperparameters still rank points
    return model.eval()
