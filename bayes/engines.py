"""The engines of this package by name, for estimators: processes of common priors.

Beyond 1,000 rows, kernel and noise are learnt on a random part of 1,000, and the process is then
conditioned on all rows, exactly. Classifiers learn on all rows, through inducing points where they
are variational. All take `sample_weight`, tensors `[n]` > 0, of their rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor, nn

from bayes.processes.exact_process import ExactProcess
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.scale_mixture_process import ScaleMixtureProcess
from bayes.processes.student_t_process import StudentTProcess
from bayes.variational.classifiers import GaussianProcessClassifier
from priors.engines import Engine, installed_engines
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.posteriors.standardisation import location_scale
from priors.scales import HalfCauchyVariance

__all__ = ["classifiers", "engines", "process_engine", "processes"]

_ROWS_OF_FIT, _MOST_ROWS = 1_000, 5_000
_NO_NOISE = 2e-6  # of the outcomes' variance; GPyTorch rounds up what is below 1e-6
_WIDTH = 64  # of layers that stand for infinitely wide ones


def engines(kind: str) -> dict[str, Engine]:
    """All engines by name: this package's, and those that other distributions offer.

    Args:
        kind: "regression" or "classification".

    Returns:
        Where a name is taken, that of this package.
    """
    own = processes() if kind == "regression" else classifiers()
    return {**installed_engines(kind), **{engine.name: engine for engine in own}}


def processes(fit_rows: int = _ROWS_OF_FIT) -> list[Engine]:
    """The exact processes of this package.

    Args:
        fit_rows: Most rows on which kernel and noise are learnt, a random part of more.
    """
    return [
        process_engine("NNGP GELU", partial(_nngp, nn.GELU), fit_rows=fit_rows),
        process_engine(
            "NNGP GELU, no noise", partial(_nngp, nn.GELU), fit_rows=fit_rows, noise=False
        ),
        process_engine("NNGP ReLU", partial(_nngp, nn.ReLU), fit_rows=fit_rows),
        process_engine("NTK GELU", _ntk, fit_rows=fit_rows),
        process_engine("Matern", _matern, fit_rows=fit_rows),
        process_engine("RBF", _rbf, fit_rows=fit_rows, is_default=False),
        process_engine("Student t", _unscaled_matern, StudentTProcess, fit_rows=fit_rows),
        process_engine(
            "scale mixture", _unscaled_matern, _half_cauchy, fit_rows=fit_rows, is_default=False
        ),
    ]


def classifiers() -> list[Engine]:
    """The classifiers of this package."""
    return [
        Engine(
            f"GP {likelihood}",
            "classification",
            partial(_classified, likelihood),
            max_rows=most,
            is_default=default,
        )
        for likelihood, most, default in (("softmax", 5_000, False), ("dirichlet", 2_000, True))
    ]


def process_engine(
    name: str,
    kernel: Callable[[int], Kernel],
    process: Callable[..., ExactProcess] = GaussianProcess,
    *,
    fit_rows: int = _ROWS_OF_FIT,
    noise: bool = True,
    is_default: bool = True,
) -> Engine:
    """An exact process with a kernel as an engine.

    Args:
        name: Of the engine.
        kernel: Makes the kernel of d inputs.
        process: `GaussianProcess`, `StudentTProcess` or what else makes an exact process of rows,
            kernel, `train_Yvar` and `train_weights`.
        fit_rows: Most rows on which kernel and noise are learnt, a random part of more.
        noise: Whether a noise variance is learnt. Without, it is two millionths of the
            outcomes' variance: with few rows its prior hides that outcomes have none.
        is_default: Whether it belongs to the default stack.
    """

    factory = partial(_fitted, kernel, process, fit_rows, noise)
    return Engine(name, "regression", factory, max_rows=_MOST_ROWS, is_default=is_default)


def _fitted(
    kernel: Callable[[int], Kernel],
    process: Callable[..., ExactProcess],
    fit_rows: int,
    noise: bool,
    X: Tensor,
    Y: Tensor,
    sample_weight: Tensor | None = None,
) -> ExactProcess:
    known = None
    if not noise:
        known = _NO_NOISE * location_scale(Y)[1].square().expand_as(Y)
        if sample_weight is not None:
            known = known * (sample_weight.max() / sample_weight).unsqueeze(-1)
            sample_weight = None
    model = process(X, Y, kernel(X.shape[-1]).to(X), train_Yvar=known, train_weights=sample_weight)
    return model.fit(progress=False, max_rows=fit_rows)


def _half_cauchy(X: Tensor, *rest: Any, **options: Any) -> ScaleMixtureProcess:
    return ScaleMixtureProcess(X, *rest, scale=HalfCauchyVariance(X.new_ones(())), **options)


def _classified(
    likelihood: str, X: Tensor, Y: Tensor, sample_weight: Tensor | None = None
) -> GaussianProcessClassifier:
    kernel = _nngp(nn.GELU, X.shape[-1]).to(X)
    model = GaussianProcessClassifier(
        X, Y, kernel, likelihood=likelihood, train_weights=sample_weight
    )
    return model.fit(progress=False)


def _perceptron(d: int, activation: nn.Module) -> nn.Module:
    hidden = (nn.Linear(d, _WIDTH), activation, nn.Linear(_WIDTH, _WIDTH), activation)
    return nn.Sequential(*hidden, nn.Linear(_WIDTH, 1))


def _nngp(activation: type[nn.Module], d: int) -> Kernel:
    return NNGPKernel(_perceptron(d, activation()), ard_num_dims=d)


def _ntk(d: int) -> Kernel:
    return NTKKernel(_perceptron(d, nn.GELU()), ard_num_dims=d)


def _scaled(base: Kernel) -> Kernel:
    # with heavy tails: smooth functions that are seen in part have large ones
    return ScaleKernel(base, outputscale_prior=LogNormalPrior(1.0, 1.5))


def _length_prior(d: int) -> LogNormalPrior:
    """Lengths that grow with the dimension (Hvarfner, Hellsten & Nardi 2024, 2402.02229)."""
    return LogNormalPrior(math.sqrt(2) + 0.5 * math.log(d), math.sqrt(3))


def _matern(d: int) -> Kernel:
    return _scaled(_unscaled_matern(d))


def _unscaled_matern(d: int) -> Kernel:
    return MaternKernel(2.5, ard_num_dims=d, lengthscale_prior=_length_prior(d))


def _rbf(d: int) -> Kernel:
    return _scaled(RBFKernel(ard_num_dims=d, lengthscale_prior=_length_prior(d)))
