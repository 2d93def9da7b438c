"""The Gaussian process over graphs: motifs and descriptors, times hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import gpytorch
import torch
from botorch.exceptions import ModelFittingError
from botorch.models.model import Model
from gpytorch.distributions import MultivariateNormal
from gpytorch.priors import LogNormalPrior
from linear_operator import to_linear_operator
from torch import Tensor

from bayes import GaussianProcess
from bayes.processes.marginal_likelihood import JointMarginalLogLikelihood
from nas.architectures import Architecture
from nas.encoding.candidates import Candidate, Encoder, TableEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import architecture_kernel, dense
from nas.kernels.motifs import MotifStore
from nas.proxies import ProxyScores
from nas.spaces import FlatSpace, Space
from nas.surrogates.surrogate import Surrogate

__all__ = ["GraphProcess"]

TOLERANCES = {"ftol": 1e-6, "gtol": 1e-4}  # of nats per row: what moves no proposal
MAX_JOINT = 512  # queries whose covariance is computed with their means
MAX_STORED = 1 << 15  # architectures whose features are kept


class GraphProcess(Surrogate):
    """`GaussianProcess` with `architecture_kernel`, its hyperparameters at their mode.

    In a flat space architectures are compared by their parameters too.

    Args:
        max_iter: Steps of the fit at most.
        max_rows: Of more trials hyperparameters are learnt from so many, drawn at random.
        proxies: Scores without training, further descriptors of the architectures.
    """

    refits = True
    reads_studies = True
    reads_fidelities = True

    def __init__(
        self, max_iter: int = 50, *, max_rows: int = 256, proxies: ProxyScores | None = None
    ) -> None:
        self.max_iter = max_iter
        self.max_rows = max_rows
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
            sizes = space.code_sizes() if isinstance(space, FlatSpace) else None
            self._store, self._space = MotifStore(code=code, code_sizes=sizes), space
        return TableEncoder(space, cube, observed, traits=self.proxies, store=self._store)

    def fit(self, X: Tensor, Y: Tensor, encoder: Encoder) -> Model:
        """The process, fitted."""
        return fitted(_process(X, Y, encoder), self.max_iter, self.max_rows)

    def refit(self, X: Tensor, Y: Tensor, encoder: Encoder, earlier: Model) -> Model:
        """The earlier process, of all rows: its hyperparameters are all that counts of it."""
        assert isinstance(earlier, DenseProcess)
        earlier.set_train_data(X, Y, strict=False)
        return earlier


def _code(space: FlatSpace, architecture: Architecture) -> Tensor | None:
    """Of a member; None of one of another space, which an earlier study may have."""
    try:
        return space.encode(architecture)
    except ValueError:
        return None


class DenseProcess(GaussianProcess):
    """Whose marginal likelihood and predictions are computed from dense matrices alone.

    Of some dozens of rows and many single queries the machinery of deferred kernels costs more than
    their entries.
    """

    _kept: tuple[Tensor, tuple[Tensor, Tensor]] | None = None  # `_factor`, and of which values

    @cached_property
    def _all_priors(self) -> _Priors:
        return _Priors(self)

    def _less_noise(self) -> None:
        """None: it takes time of every proposal and finds hardly better candidates."""

    def _objective(self, mll: JointMarginalLogLikelihood) -> Tensor:
        factor, whitened = self._factor()
        log_det = 2 * factor.diagonal().log().sum()
        total = mll.log_marginal(whitened.square().sum(), log_det, len(whitened))
        return (total + self._all_priors.log_density()) / len(whitened)

    def _conditional(
        self, X: Tensor, outputs: Sequence[int], observation_noise: bool | Tensor
    ) -> MultivariateNormal:
        if isinstance(observation_noise, Tensor) or (X.dim() > 2 and X.requires_grad):
            return super()._conditional(X, outputs, observation_noise)
        noise = self.likelihood.noise if observation_noise else X.new_zeros(1)
        if X.shape[-2] == 1:
            mean, variance = self._marginal(X.reshape(-1, X.shape[-1]))
            variance = (variance + noise).reshape(*X.shape[:-1], 1)
            return MultivariateNormal(mean.reshape(X.shape[:-1]), to_linear_operator(variance))
        points = X.reshape(-1, *X.shape[-2:])
        blocks = points.split(max(1, MAX_JOINT - X.shape[-2]))
        moments = [found for block in blocks if (found := self._joint(block)) is not None]
        if len(moments) < len(blocks):
            return super()._conditional(X, outputs, observation_noise)
        mean, covariance = (torch.cat(parts) for parts in zip(*moments, strict=True))
        extra = (1e-10 + noise) * torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
        covariance = (covariance + extra).reshape(*X.shape[:-1], X.shape[-2])
        return MultivariateNormal(mean.reshape(X.shape[:-1]), to_linear_operator(covariance))

    def _marginal(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances `[n]` at `rows` `[n, d]`."""
        mean, across = self._across(rows)
        prior = dense(self.covar_module, rows, rows, diag=True)
        return mean, (prior - across.square().sum(0)).clamp_min(1e-10)

    def _joint(self, points: Tensor) -> tuple[Tensor, Tensor] | None:
        """Means `[b, q]` and covariances `[b, q, q]` at `points` `[b, q, d]`.

        Those of an acquisition function share all but one of their rows, so they are read off the
        covariance of the different ones; None where these are too many.
        """
        rows, places = points.flatten(0, 1), None
        if len(points) > 1:
            rows, places = rows.unique(dim=0, return_inverse=True)
        if len(rows) > MAX_JOINT:
            return None
        mean, across = self._across(rows)
        covariance = dense(self.covar_module, rows, rows) - across.T @ across
        if places is None:
            return mean[None], covariance[None]
        places = places.reshape(points.shape[:2])
        return mean[places], covariance[places[:, :, None], places[:, None, :]]

    def _across(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means `[n]`, and L^-1 K of the training rows and these, see `_factor`."""
        factor, whitened = self._known_factor()
        cross = dense(self.covar_module, self.train_X, rows)
        across = torch.linalg.solve_triangular(factor, cross, upper=False)
        return whitened @ across, across

    def _known_factor(self) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return self._factor()
        values = torch.cat([each.detach().flatten() for each in self.parameters()])
        if self._kept is None or not torch.equal(self._kept[0], values):
            self._kept = values, self._factor()
        return self._kept[1]

    def _clear_cache(self) -> None:
        self._kept = None
        super()._clear_cache()

    def _factor(self) -> tuple[Tensor, Tensor]:
        """L with L L' the covariance of y at the training rows, and L^-1 y."""
        X, y = self.train_X, self.train_targets
        noise = self.likelihood.noise.expand(len(X)).diag_embed()
        factor = torch.linalg.cholesky(dense(self.covar_module, X, X) + noise)
        whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)[:, 0]
        return factor, whitened


class _Priors:
    """The priors of a process: log-normal ones are evaluated all at once.

    Of some dozens of rows ten densities one by one cost as much as the likelihood.

    Args:
        process: Whose hyperparameters they are of, on the device where it stays.
    """

    def __init__(self, process: Any) -> None:
        every = [
            (prior, partial(closure, of)) for _, of, prior, closure, _ in process.named_priors()
        ]
        self.others = [each for each in every if not isinstance(each[0], LogNormalPrior)]
        log_normal = [each for each in every if isinstance(each[0], LogNormalPrior)]
        self.positive = [value for _, value in log_normal]
        sizes = [value().numel() for value in self.positive]
        pairs = list(zip(log_normal, sizes, strict=True))
        self.location = torch.cat([prior.loc.expand(size) for (prior, _), size in pairs])
        self.scale = torch.cat([prior.scale.expand(size) for (prior, _), size in pairs])
        self.constant = (self.scale.log() + 0.5 * math.log(2 * math.pi)).sum()

    def log_density(self) -> Tensor:
        """Of the present values, a scalar."""
        logs = torch.cat([value().flatten() for value in self.positive]).log()
        standard = (logs - self.location) / self.scale
        total = -(0.5 * standard.square() + logs).sum() - self.constant
        for prior, value in self.others:
            total = total + prior.log_prob(value()).sum()
        return total


def _process(X: Tensor, Y: Tensor, encoder: Encoder) -> GaussianProcess:
    assert isinstance(encoder, TableEncoder)
    with X.device:
        kernel = architecture_kernel(
            encoder.table,
            encoder.cube.sizes,
            shares=encoder.shares,
            num_earlier=encoder.num_earlier,
        ).to(X)
        return DenseProcess(X, Y, kernel, input_transform=None, outcome_transform=None)


def fitted(model: GaussianProcess, max_iter: int, max_rows: int | None = None) -> GaussianProcess:
    """The model at the mode of its hyperparameters, or as it is where the fit fails."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with gpytorch.settings.fast_computations(False, False, False):
        try:
            model.fit(
                max_iter=max_iter,
                max_rows=max_rows,
                progress=False,
                optimizer_kwargs={"options": TOLERANCES},
            )
        except (ModelFittingError, RuntimeError):
            model.load_state_dict(start)  # the prior's own hyperparameters still rank points
    return model.eval()
