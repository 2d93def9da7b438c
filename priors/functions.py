"""Priors over functions: anything that draws noise-free functions at given inputs."""

from __future__ import annotations

import inspect
from copy import deepcopy
from itertools import chain
from typing import Protocol, TypeVar, runtime_checkable

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor, nn
from torch.distributions import Distribution

from priors.random_state import seeded
from priors.randomness import RandomSource
from priors.representation import as_distribution

__all__ = [
    "FunctionPrior",
    "GaussianProcessPrior",
    "ScaleMixturePrior",
    "draw",
    "draws_functions",
]

_Module = TypeVar("_Module", bound=nn.Module)


@runtime_checkable
class FunctionPrior(Protocol):
    """A distribution over functions."""

    def sample(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw functions at `X` `[*batch, n, d]`, `[*sample_shape, *batch, n, m]`, without noise.

        Batch elements of X get independent functions, as the draws of `sample_shape` are, in the
        dtype and on the device of X.
        """
        ...


class GaussianProcessPrior:
    """A Gaussian process; with a `NNGPKernel` the limit of a network.

    For inputs on another device than the kernel's, kernel and mean are copied there.

    Args:
        kernel: Covariance of one output.
        mean: GPyTorch mean; zero if None.
    """

    def __init__(self, kernel: Kernel, mean: Mean | None = None) -> None:
        self.kernel = kernel
        self.mean = ZeroMean() if mean is None else mean

    def __repr__(self) -> str:
        mean = "" if isinstance(self.mean, ZeroMean) else f"{self.mean!r}, "
        return f"{type(self).__name__}({mean}{self.kernel!r})"

    def distribution(self, X: Tensor) -> MultivariateNormal:
        """Joint distribution of the function's values at `X` `[*batch, n, d]`."""
        return MultivariateNormal(_like(self.mean, X)(X), _on(self.kernel, X.device)(X))

    def sample(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw functions at `X` `[*batch, n, d]`, `[*sample_shape, *batch, n, 1]`.

        The batch of the kernel broadcasts with that of X. Computed in float64 with a jitter of
        1e-8 of the variance: the covariance of a smooth function is singular in float32.
        """
        _check_inputs(X)
        covariance = _on(self.kernel, X.device)(X.double()).to_dense()
        jitter = 1e-8 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
        root = psd_safe_cholesky(
            covariance + torch.diag_embed(jitter.expand(covariance.shape[:-1]))
        )
        noise = RandomSource(generator, root.device, root.dtype).normal(
            *sample_shape, *root.shape[:-1], 1
        )
        mean = _like(self.mean, X.double())(X.double())
        return (root @ noise + mean[..., None]).to(X)


class ScaleMixturePrior:
    """A Gaussian process whose variance is itself random: f = sigma g, sigma^2 ~ `scale`.

    Args:
        kernel: Covariance of g.
        scale: Distribution of sigma^2 on the positive reals, torch's or one of `priors.scales`; an
            inverse gamma gives a Student-t process.
    """

    def __init__(self, kernel: Kernel, scale: Distribution) -> None:
        if scale.event_shape or scale.batch_shape:
            raise ValueError(f"scale must be a distribution of a single number, got {scale}.")
        self.kernel = kernel
        self.scale = scale

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(variance from {as_distribution(self.scale)}, {self.kernel!r})"
        )

    def sample_with_scale(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Functions `[*sample_shape, *batch, n, 1]` and their sigma^2 `[*sample_shape, *batch]`."""
        g = GaussianProcessPrior(self.kernel).sample(X, sample_shape, generator=generator)
        variance = draw(self.scale, g.shape[:-2], generator=generator).to(g)
        return g * variance.sqrt()[..., None, None], variance

    def sample(
        self,
        X: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw functions at `X` `[*batch, n, d]`, each with a variance of its own."""
        return self.sample_with_scale(X, sample_shape, generator=generator)[0]


def draws_functions(prior: object) -> bool:
    """Whether a prior is a `FunctionPrior`, and not one of something else that has a `sample`."""
    if isinstance(prior, type) or not isinstance(prior, FunctionPrior):
        return False
    return "sample_shape" in inspect.signature(prior.sample).parameters


def draw(
    distribution: Distribution, shape: torch.Size, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from a torch distribution with an explicit generator, which torch does not offer.

    The generator seeds the draw; the global random state is left as it was.
    """
    if generator is None:
        return distribution.sample(shape)
    with seeded(RandomSource(generator).seed(), _device(distribution)):
        return distribution.sample(shape)


def _device(distribution: Distribution) -> torch.device:
    """Where a distribution draws its random numbers; the GPU in use where it does not tell."""
    for name in distribution.arg_constraints:
        value = getattr(distribution, name, None)
        if isinstance(value, Tensor):
            return value.device
    base = getattr(distribution, "base_dist", None)
    if base is not None:
        return _device(base)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _on(module: _Module, device: torch.device) -> _Module:
    """The module itself if it lies on `device`, else a copy there: the user's never moves.

    A copy takes about a millisecond, and unlike a stored one follows the user's changes.
    """
    if all(t.device == device for t in chain(module.parameters(), module.buffers())):
        return module
    return deepcopy(module).to(device)


def _like(mean: _Module, X: Tensor) -> _Module:
    """A mean that takes inputs like X, itself if it does: linear ones multiply in their dtype."""
    own = [t for t in chain(mean.parameters(), mean.buffers()) if t.is_floating_point()]
    if all(t.device == X.device and t.dtype == X.dtype for t in own):
        return mean
    return deepcopy(mean).to(X)


def _check_inputs(X: Tensor) -> None:
    if X.dim() < 2:
        raise ValueError(f"X must have shape [..., n, d], got {tuple(X.shape)}.")
