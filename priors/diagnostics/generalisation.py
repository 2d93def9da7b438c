"""How much data a kernel needs: predicted test and train risk of kernel and feature regression.

With the Mercer decomposition k(x, x') = sum_i lambda_i phi_i(x) phi_i(x') and a target
f = sum_i v_i phi_i plus noise of variance sigma^2, ridge regression on n points (ridge delta added
to the diagonal of the kernel matrix) has the typical mean squared error

    n = sum_i lambda_i / (lambda_i + kappa) + delta / kappa
    E_0 = n / (n - sum_i (lambda_i / (lambda_i + kappa))^2)
    test = E_0 (sum_i (kappa / (lambda_i + kappa))^2 v_i^2 + sigma^2)
    train = (delta / (n kappa))^2 test

(Simon et al. 2021, 2110.03922), and regression on k random features of the same kernel

    z = sum_i lambda_i / (lambda_i + gamma),  q = sum_i (lambda_i / (lambda_i + gamma))^2
    z + delta / kappa = n,  z + k kappa / gamma = k
    test = [sum_i (gamma / (lambda_i + gamma)
                   - kappa lambda_i / (lambda_i + gamma)^2 k / (k - q)) v_i^2 + sigma^2]
           / (1 - (q (k - 2 z) + z^2) / (n (k - q)))

with the same train / test (Simon, Karkada, Ghosh & Belkin 2023, 2311.14646). Test errors are of
noisy targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from tqdm import tqdm

from priors.figures import BLUE, ORANGE, axes_or_new, log_axis
from priors.representation import as_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "GeneralisationCurve",
    "Risk",
    "eigenstructure",
    "generalisation_curve",
    "plot_generalisation_curve",
    "predicted_risk",
]

# Halvings of an interval of a few hundred e-folds: to rounding.
_STEPS = 200


@dataclass(frozen=True)
class Risk:
    """Typical mean squared errors, each of the shape of n.

    Attributes:
        test: Of noisy targets at new points.
        train: At the training points.
        kappa: The implicit regularisation: eigenvalues above it are learnt.
    """

    test: Tensor
    train: Tensor
    kappa: Tensor

    def __repr__(self) -> str:
        return as_record(self)


def predicted_risk(
    eigenvalues: Tensor,
    coefficients: Tensor,
    n: Tensor | int | Sequence[int],
    *,
    ridge: float = 0.0,
    noise_var: float = 0.0,
    num_features: int | None = None,
) -> Risk:
    """Predicted errors of kernel ridge regression, or of regression on random features.

    Args:
        eigenvalues: lambda_i of the kernel, `[m]`, not negative.
        coefficients: v_i of the target, `[m]`.
        n: Numbers of training points, any shape.
        ridge: delta, added to the diagonal of the n x n kernel matrix.
        noise_var: Variance of the noise of the targets.
        num_features: k random features; None for the kernel itself.

    Returns:
        Errors in float64, each of the shape of n; infinite at an interpolation peak.

    Raises:
        ValueError: negative eigenvalues, ridge or noise, no training point, or shapes that
            disagree.
    """
    values, targets = eigenvalues.double(), coefficients.double()
    sizes = torch.as_tensor(n, dtype=torch.float64, device=values.device)
    if values.dim() != 1 or values.shape != targets.shape:
        raise ValueError(
            "eigenvalues and coefficients must be vectors of one length, got "
            f"{tuple(values.shape)} and {tuple(targets.shape)}."
        )
    if bool((values < 0).any()) or ridge < 0 or noise_var < 0 or bool((sizes < 1).any()):
        raise ValueError(
            "eigenvalues, ridge and noise_var must not be negative and n at least 1; smallest "
            f"eigenvalue {float(values.min()):.3g}, ridge {ridge}, noise_var {noise_var}."
        )
    if num_features is not None and num_features < 1:
        raise ValueError(f"num_features must be positive, got {num_features}.")
    k = float("inf") if num_features is None else float(num_features)

    def learnt(gamma: Tensor) -> Tensor:
        """lambda / (lambda + gamma), also at gamma = 0, `[.., m]`."""
        return torch.where(values > 0, values / (values + gamma[..., None]), 0.0)

    def kappa_of(gamma: Tensor) -> Tensor:
        if num_features is None:
            return gamma
        return gamma * (1 - learnt(gamma).sum(-1) / k)

    def excess(gamma: Tensor) -> Tensor:
        """Falls through 0 at the solution."""
        kappa = kappa_of(gamma)
        forced = torch.where(kappa > 0, ridge / kappa.clamp_min(1e-300), float("inf"))
        if ridge == 0:  # without a ridge only too many learnt modes count
            forced = torch.where(kappa > 0, 0.0, float("inf"))
        return learnt(gamma).sum(-1) + forced - sizes

    rank = float((values > 0).sum())
    scale = float(values.sum()) + ridge
    low = torch.full_like(sizes, math.log(max(scale, 1e-300)) - 500.0)
    # sum lambda / (lambda + gamma) <= sum lambda / gamma, and kappa >= gamma / 2 where z <= k / 2
    high = torch.full_like(sizes, math.log(max(scale, 1e-300)) + 2.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = excess(middle.exp()) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    gamma = high.exp()
    if ridge == 0:  # everything can be learnt
        gamma = torch.where((sizes >= rank) & (rank <= k), 0.0, gamma)
    kappa = kappa_of(gamma).clamp_min(0.0)
    share = learnt(gamma)
    z, q = share.sum(-1), share.square().sum(-1)
    missed = 1 - share  # gamma / (lambda + gamma)
    if num_features is None:
        peak = 1 - q / sizes
        bias = (missed.square() * targets**2).sum(-1)
    else:
        spare = k - q  # 0 with gamma where k features span all the modes and there is no ridge
        mixed = torch.where(spare > 0, (q * (k - 2 * z) + z**2) / spare.clamp_min(1e-300), z)
        peak = 1 - mixed / sizes
        ratio = torch.where(gamma > 0, kappa / gamma.clamp_min(1e-300), 1 - z / k)
        bend = (ratio * k / spare.clamp_min(1e-300))[..., None] * share * missed
        bias = ((missed - bend) * targets**2).sum(-1)
    test = torch.where(peak > 1e-12, (bias + noise_var) / peak.clamp_min(1e-300), float("inf"))
    # delta / kappa = n - z, which also holds as delta -> 0
    train = ((sizes - z).clamp_min(0) / sizes).square() * test.nan_to_num(posinf=0.0)
    return Risk(test, train, kappa)


def eigenstructure(kernel: Kernel, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mercer decomposition of a kernel and a target on the distribution of a data set.

    The points stand for the distribution: eigenfunctions are those of the N x N kernel matrix.
    Targets are taken as they are; centre and scale them first if the model does.

    Args:
        kernel: Any GPyTorch kernel.
        X: Points, `[N, d]`.
        y: Targets, `[N]` or `[N, 1]`.

    Returns:
        Eigenvalues, falling, and coefficients of the target, each `[N]` in float64.

    Raises:
        ValueError: shapes that disagree, or values that are not finite.
    """
    X, y = _checked(X, y)
    matrix = _matrix(kernel, X)
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(-1), vectors.flip(-1)
    return values.clamp_min(0) / len(X), vectors.mT @ y / len(X) ** 0.5


@dataclass(frozen=True)
class GeneralisationCurve:
    """Predicted and measured errors by number of training points.

    Attributes:
        sizes: Numbers of training points.
        predicted: `predicted_risk` at these and between.
        predicted_sizes: Where.
        test: Measured mean squared error on the points left out.
        test_error: Its standard error over the draws of training points.
        train: Measured error on the training points.
        train_error: Its standard error.
        ridge: The ridge.
    """

    sizes: Tensor
    predicted: Risk
    predicted_sizes: Tensor
    test: Tensor
    test_error: Tensor
    train: Tensor
    train_error: Tensor
    ridge: float

    def __repr__(self) -> str:
        return as_record(self)


def generalisation_curve(
    kernel: Kernel,
    X: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    *,
    ridge: float = 1e-3,
    repeats: int = 10,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> GeneralisationCurve:
    """Predict a kernel's learning curve on a data set, and measure it.

    Args:
        kernel: Any GPyTorch kernel.
        X: Points, `[N, d]`.
        y: Targets, `[N]` or `[N, 1]`.
        sizes: Numbers of training points, below N; the prediction treats N as infinite, so it
            holds for those well below.
        ridge: Added to the diagonal of the training kernel matrix.
        repeats: Random training sets for each size.
        generator: For the training sets.
        progress: Show a progress bar when it takes longer than a few seconds.

    Returns:
        Predicted and measured errors.

    Raises:
        ValueError: sizes outside 1..N-1, fewer than 2 repeats, or bad data.
    """
    X, y = _checked(X, y)
    if not sizes or min(sizes) < 1 or max(sizes) >= len(X) or repeats < 2:
        raise ValueError(
            f"sizes must lie between 1 and {len(X) - 1} and repeats be at least 2, got "
            f"{list(sizes)} and {repeats}."
        )
    matrix = _matrix(kernel, X)
    values, coefficients = eigenstructure(kernel, X, y)
    between = torch.logspace(
        math.log10(min(sizes)), math.log10(max(sizes)), 60, dtype=torch.float64, device=X.device
    )
    errors = X.new_empty(2, len(sizes), repeats, dtype=torch.float64)
    where = "cpu" if generator is None else generator.device
    bar = tqdm(
        total=errors[0].numel(),
        desc="learning curve",
        delay=5.0,
        leave=False,
        disable=None if progress else True,
    )
    for k, size in enumerate(sizes):
        for repeat in range(repeats):
            order = torch.randperm(len(X), generator=generator, device=where).to(X.device)
            train, rest = order[:size], order[size:]
            own = matrix[train][:, train]
            shifted = own + ridge * torch.eye(size, dtype=own.dtype, device=own.device)
            weights = torch.linalg.solve(shifted, y[train])
            errors[0, k, repeat] = (matrix[rest][:, train] @ weights - y[rest]).square().mean()
            errors[1, k, repeat] = (own @ weights - y[train]).square().mean()
            bar.update()
    bar.close()
    means, spread = errors.mean(-1), errors.std(-1) / repeats**0.5
    return GeneralisationCurve(
        sizes=torch.tensor(sizes, device=X.device),
        predicted=predicted_risk(values, coefficients, between, ridge=ridge),
        predicted_sizes=between,
        test=means[0],
        test_error=spread[0],
        train=means[1],
        train_error=spread[1],
        ridge=ridge,
    )


def plot_generalisation_curve(curve: GeneralisationCurve, ax: Axes | None = None) -> Axes:
    """Predicted errors as lines, measured ones as points with their standard errors.

    Args:
        curve: Of `generalisation_curve`.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes; `ax.figure.savefig(...)` stores them.
    """
    ax = axes_or_new(ax)
    sizes = curve.predicted_sizes.cpu()
    for name, colour in (("test", BLUE), ("train", ORANGE)):
        predicted = getattr(curve.predicted, name).cpu()
        measured, error = getattr(curve, name).cpu(), getattr(curve, f"{name}_error").cpu()
        ax.plot(sizes, predicted, color=colour, label=f"{name}, predicted")
        ax.errorbar(
            curve.sizes.cpu(),
            measured,
            yerr=error,
            fmt="o",
            color=colour,
            ms=4,
            label=f"{name}, measured",
        )
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.set_xlabel("training points")
    ax.set_ylabel("mean squared error, squared units of y")
    ax.legend(frameon=False)
    return ax


def _checked(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if X.dim() != 2 or y.numel() != len(X) or not (X.isfinite().all() and y.isfinite().all()):
        raise ValueError(
            f"X must be finite [N, d] and y finite [N] or [N, 1], got {tuple(X.shape)} and "
            f"{tuple(y.shape)}."
        )
    return X, y.reshape(-1).double()


def _matrix(kernel: Kernel, X: Tensor) -> Tensor:
    with torch.no_grad():
        return kernel(X).to_dense().double()
