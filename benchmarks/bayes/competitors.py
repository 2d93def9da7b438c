"""The models of `benchmarks fits`: exact processes of networks, and those that others use.

Each gets raw rows and the transforms that its documentation recommends: ours standardise inputs
and outcomes by the training rows, as they do by default; BoTorch's `SingleTaskGP` has inputs in the
unit cube, which its priors are meant for, and standardised outcomes; scikit-learn's has a
`StandardScaler` before it and `normalize_y`. Networks have two hidden layers; nothing is tuned.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.stats
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Normalize, Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from bayes import GaussianProcess, StudentTProcess
from bayes.processes.exact_process import ExactProcess
from benchmarks.bayes.problems import Problem
from benchmarks.pfn.scores import Prediction
from priors import NNGPKernel, Nonlinearity, NTKKernel
from priors.gaussian.activations import Erf
from priors.posteriors.crps import crps_of_standard_normal
from priors.posteriors.gaussian import as_predictive

__all__ = ["ACTIVATIONS", "BOTORCH", "COMPETITORS", "NETWORKS", "SKLEARN", "Competitor"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "erf": lambda: Nonlinearity(Erf()),
    "tanh": nn.Tanh,
}
BOTORCH, SKLEARN = "SingleTaskGP", "scikit-learn"
_WIDTH = 64  # without a meaning in the limit
_RESTARTS = 3  # of scikit-learn, whose optimiser starts from bounds of six decades


class Competitor(ABC):
    """A model of rows: made, fitted, asked, in this order."""

    @abstractmethod
    def fit(self) -> None:
        """Find hyperparameters; with the construction this is what is timed."""

    @abstractmethod
    def predict(self, problem: Problem) -> Prediction:
        """Of the outcomes at the test rows."""

    @abstractmethod
    def evidence(self) -> float:
        """Log marginal likelihood in nats, in units of the outcomes, without priors."""


class NetworkProcess(Competitor):
    """One of ours with its defaults.

    Args:
        problem: The rows.
        process: The engine.
        kernel: Of the limit of a perceptron.
        activation: Its name.
        relevance: Whether inputs have length scales.
    """

    def __init__(
        self,
        problem: Problem,
        process: type[ExactProcess],
        kernel: type[NNGPKernel | NTKKernel],
        activation: str,
        relevance: bool,
    ) -> None:
        features = problem.train_X.shape[-1]
        act = ACTIVATIONS[activation]
        network = nn.Sequential(
            *(nn.Linear(features, _WIDTH), act(), nn.Linear(_WIDTH, _WIDTH), act()),
            nn.Linear(_WIDTH, 1),
        )
        limit = kernel(network, ard_num_dims=features if relevance else None)
        self.model = process(problem.train_X, problem.train_Y, limit)

    def fit(self) -> None:
        self.model.fit(progress=False)

    def predict(self, problem: Problem) -> Prediction:
        return _prediction(self.model, problem)

    def evidence(self) -> float:
        return float(self.model.log_marginal_likelihood())


class BoTorchProcess(Competitor):
    """BoTorch's default model."""

    def __init__(self, problem: Problem) -> None:
        self.model = SingleTaskGP(
            problem.train_X,
            problem.train_Y,
            input_transform=Normalize(problem.train_X.shape[-1]),
            outcome_transform=Standardize(1),
        )

    def fit(self) -> None:
        fit_gpytorch_mll(ExactMarginalLogLikelihood(self.model.likelihood, self.model))

    def predict(self, problem: Problem) -> Prediction:
        return _prediction(self.model, problem)

    def evidence(self) -> float:
        model = self.model.train()
        prior = model.likelihood(model(*model.train_inputs))
        total = prior.log_prob(model.train_targets)
        scale = model.outcome_transform.stdvs.log().sum() * len(model.train_targets)
        model.eval()
        return float((total - scale).detach())


class SklearnProcess(Competitor):
    """scikit-learn's, with a length scale of each feature and a learnt noise."""

    def __init__(self, problem: Problem) -> None:
        self._rows = problem
        d = problem.train_X.shape[-1]
        covariance = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(np.ones(d), (1e-2, 1e4))
        self.model: Pipeline = make_pipeline(
            StandardScaler(),
            GaussianProcessRegressor(
                covariance + WhiteKernel(0.1, (1e-6, 1e1)),
                normalize_y=True,
                n_restarts_optimizer=_RESTARTS,
                random_state=0,
            ),
        )

    def fit(self) -> None:
        with warnings.catch_warnings():  # an irrelevant column's scale at its bound is no news
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self._rows.train_X.numpy(), self._rows.train_Y[:, 0].numpy())

    def predict(self, problem: Problem) -> Prediction:
        mean, deviation = self.model.predict(problem.test_X.numpy(), return_std=True)
        normal = scipy.stats.norm(mean, deviation)  # of y: the kernel has the noise
        y = problem.test_Y[:, 0].numpy()
        u = torch.as_tensor((y - mean) / deviation)
        crps = deviation * crps_of_standard_normal(u).numpy()
        return Prediction(mean, normal.logpdf(y), normal.cdf(y), crps)

    def evidence(self) -> float:
        rows = self._rows.train_Y[:, 0].numpy()
        standardised = float(self.model[-1].log_marginal_likelihood_value_)
        return standardised - len(rows) * math.log(rows.std())


def _prediction(model: Model, problem: Problem) -> Prediction:
    with torch.no_grad():
        posterior, Y = model.posterior(problem.test_X, observation_noise=True), problem.test_Y
        predictive = as_predictive(posterior)
        values = (predictive.mean, predictive.log_prob(Y), predictive.cdf(Y), predictive.crps(Y))
    return Prediction(*(v[:, 0].numpy() for v in values))


def _networks() -> dict[str, Callable[[Problem], Competitor]]:
    found: dict[str, Callable[[Problem], Competitor]] = {}
    for activation in ACTIVATIONS:
        for kernel, make in (("NNGP", NNGPKernel), ("NTK", NTKKernel)):
            for relevance in (True, False):
                name = f"{kernel} {activation}{' ARD' if relevance else ''}"
                found[name] = partial(
                    NetworkProcess,
                    process=GaussianProcess,
                    kernel=make,
                    activation=activation,
                    relevance=relevance,
                )
    found["Student-t NNGP ReLU ARD"] = partial(
        NetworkProcess,
        process=StudentTProcess,
        kernel=NNGPKernel,
        activation="ReLU",
        relevance=True,
    )
    return found


NETWORKS = _networks()
COMPETITORS: dict[str, Callable[[Problem], Competitor]] = {
    BOTORCH: BoTorchProcess,
    SKLEARN: SklearnProcess,
    **NETWORKS,
}
