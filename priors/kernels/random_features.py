"""Random features of network kernels, for more points than an exact kernel matrix allows.

A feature map z with E[z(x) z(x')^T] = k(x, x') turns n x n algebra into m x m. In the NTK
parametrisation, with a_0 = x / sqrt(d) and g_l = [sqrt(weight_var) a_l, sqrt(bias_var)]:

    NNGP   a_{l+1} = phi(W_l g_l) / sqrt(m), W_l standard normal: z = g_L is what a finite network
           of width m computes before its readout. Unbiased for one hidden layer, else to O(1/m).
    NTK    t_{l+1} = [g_{l+1}; sqrt(weight_var) S(t_l (x) phi'(W_l g_l) / sqrt(m))]: the NTK is
           K_{l+1} + weight_var E[phi' phi'] Theta_l, features multiply as tensors do. S is a
           CountSketch of the tensor product, an unbiased and linear compression (Zandieh et al.
           2021, 2106.07880; Han et al. 2022, 2209.04121, who sketch with TensorSRHT).

All draws are buffers, so a map is a fixed function, saved and moved with `.to()`; it is made on the
CPU.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import Kernel
from linear_operator.operators import (
    LinearOperator,
    LowRankRootLinearOperator,
    MatmulLinearOperator,
    RootLinearOperator,
)
from torch import Tensor, nn
from tqdm import tqdm

from priors.gaussian.activations import ABReLU, Activation
from priors.networks.infinite import InfiniteNetwork
from priors.networks.input_scale import InputScale
from priors.programs.nodes import Features, Linear, Nonlinear
from priors.randomness import RandomSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "FeatureError",
    "FeatureMap",
    "NNGPFeatures",
    "NTKFeatures",
    "RandomFeatureKernel",
    "feature_error",
    "plot_feature_error",
    "random_features",
]


class FeatureMap(nn.Module):
    """Points to features whose inner products estimate a kernel."""

    @abstractmethod
    def forward(self, X: Tensor) -> Tensor:
        """Features `[..., n, m]` of points `[..., n, d]`."""


class NNGPFeatures(FeatureMap):
    """Features of the NNGP kernel of a fully connected network.

    Args:
        num_inputs: Features of a point.
        num_features: m, the width of the random layers.
        weight_var: Weight variance of each layer, hidden ones and the readout.
        bias_var: Bias variance of each layer, as many.
        activation: The nonlinearity.
        generator: Source of randomness.

    Raises:
        ValueError: fewer than two layers, numbers that disagree, or negative variances.
    """

    def __init__(
        self,
        num_inputs: int,
        num_features: int,
        *,
        weight_var: Sequence[float],
        bias_var: Sequence[float],
        activation: Activation | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(weight_var) < 2 or len(bias_var) != len(weight_var):
            raise ValueError(
                "weight_var and bias_var need one value per layer, readout included; got "
                f"{len(weight_var)} and {len(bias_var)}."
            )
        if min(*weight_var, *bias_var) < 0 or num_features < 1:
            raise ValueError("Variances must not be negative, num_features must be positive.")
        self.weight_var, self.bias_var = tuple(weight_var), tuple(bias_var)
        self.activation = ABReLU() if activation is None else activation
        width = num_inputs
        draws = RandomSource(generator, "cpu", torch.float64)
        for k in range(len(weight_var) - 1):
            self.register_buffer(f"weight_{k}", draws.normal(width + 1, num_features))
            width = num_features

    def forward(self, X: Tensor) -> Tensor:
        """Features `[..., n, m + 1]` of points `[..., n, d]`."""
        *_, (g, _) = self.layers(X)
        return g

    def layers(self, X: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """g_l of every layer and phi'(W_{l-1} g_{l-1}) / sqrt(m) below it."""
        g = self._with_bias(X / math.sqrt(X.shape[-1]), 0)
        found: list[tuple[Tensor, Tensor | None]] = [(g, None)]
        for k in range(len(self.weight_var) - 1):
            weight = getattr(self, f"weight_{k}").to(X)
            if weight.shape[0] != g.shape[-1]:
                raise ValueError(
                    f"The features were made for inputs with {weight.shape[0] - 1} features, "
                    f"got {X.shape[-1]}."
                )
            u = g @ weight
            root = math.sqrt(weight.shape[-1])
            g = self._with_bias(self.activation(u) / root, k + 1)
            found.append((g, self.activation.derivative(u) / root))
        return found

    def _with_bias(self, a: Tensor, layer: int) -> Tensor:
        bias = a.new_full((*a.shape[:-1], 1), math.sqrt(self.bias_var[layer]))
        return torch.cat([math.sqrt(self.weight_var[layer]) * a, bias], -1)


class NTKFeatures(FeatureMap):
    """Features of the neural tangent kernel of a fully connected network.

    Args:
        num_inputs: Features of a point.
        num_features: Width of the random layers.
        sketch_size: Length of the sketched part; as num_features if None.
        weight_var: See `NNGPFeatures`.
        bias_var: See `NNGPFeatures`.
        activation: See `NNGPFeatures`.
        generator: Source of randomness.

    Raises:
        ValueError: as for `NNGPFeatures`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_features: int,
        *,
        weight_var: Sequence[float],
        bias_var: Sequence[float],
        sketch_size: int | None = None,
        activation: Activation | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base = NNGPFeatures(
            num_inputs,
            num_features,
            weight_var=weight_var,
            bias_var=bias_var,
            activation=activation,
            generator=generator,
        )
        self.size = num_features if sketch_size is None else sketch_size
        length = num_inputs + 1
        draws = RandomSource(generator, "cpu", torch.float64)
        for k in range(len(weight_var) - 1):
            for name, n in (("t", length), ("slope", num_features)):
                place = draws.integers(self.size, n)
                sign = 2.0 * draws.integers(2, n).double() - 1
                self.register_buffer(f"{name}_place_{k}", place)
                self.register_buffer(f"{name}_sign_{k}", sign)
            length = num_features + 1 + self.size

    def forward(self, X: Tensor) -> Tensor:
        """Features `[..., n, m + 1 + sketch_size]` of points `[..., n, d]`."""
        (t, _), *rest = self.base.layers(X)
        for k, (g, slope) in enumerate(rest):
            assert slope is not None
            sketched = torch.fft.irfft(
                torch.fft.rfft(self._count(t, "t", k))
                * torch.fft.rfft(self._count(slope, "slope", k)),
                n=self.size,
            )
            t = torch.cat([g, math.sqrt(self.base.weight_var[k + 1]) * sketched], -1)
        return t

    def _count(self, value: Tensor, name: str, layer: int) -> Tensor:
        """CountSketch: every entry, with a random sign, added to a random place."""
        place = getattr(self, f"{name}_place_{layer}").to(value.device)
        signed = value * getattr(self, f"{name}_sign_{layer}").to(value)
        return value.new_zeros(*value.shape[:-1], self.size).index_add(-1, place, signed)


def random_features(
    network: InfiniteNetwork,
    num_features: int,
    *,
    kind: str = "nngp",
    generator: torch.Generator | None = None,
) -> FeatureMap:
    """Features of a fully connected network's kernel, with its present variances.

    Args:
        network: Linear layers and one kind of nonlinearity in a chain.
        num_features: Width of the random layers.
        kind: "nngp" or "ntk".
        generator: Source of randomness.

    Returns:
        The feature map; `RandomFeatureKernel` makes a kernel of it.

    Raises:
        NotImplementedError: the network is not such a chain.
        ValueError: another kind, or an input of unknown width.
    """
    if kind not in ("nngp", "ntk"):
        raise ValueError(f'kind must be "nngp" or "ntk", got {kind!r}.')
    program = network.program
    layers = [n for n in program.nodes if isinstance(n, Linear)]
    hidden = [n for n in program.nodes if isinstance(n, Nonlinear)]
    activations = {f.function for n in hidden for f in n.factors}
    plain = all(len(n.factors) == 1 for n in hidden) and len(activations) == 1
    others = [n for n in program.nodes if not isinstance(n, Linear | Nonlinear | Features)][1:]
    if not plain or others or len(layers) != len(hidden) + 1:
        raise NotImplementedError(
            "Random features support only fully connected chains with a single kind of "
            "nonlinearity; for other networks use the exact kernel."
        )
    (activation,) = activations
    shape = program.input_shape
    if None in shape or not isinstance(activation, Activation):
        raise ValueError(
            "The width of the input must be known: use nn.Linear, or give input_shape."
        )
    variances = network.variances
    made: Any = NNGPFeatures if kind == "nngp" else NTKFeatures
    result: FeatureMap = made(
        math.prod(s or 1 for s in shape),
        num_features,
        weight_var=[variances.value("weight", n.layer).item() for n in layers],
        bias_var=[
            0.0 if n.bias_layer is None else variances.value("bias", n.bias_layer).item()
            for n in layers
        ],
        activation=activation,
        generator=generator,
    )
    if variances.input_scale is not None:
        return _Scaled(deepcopy(variances.input_scale).requires_grad_(False), result)
    return result


class _Scaled(FeatureMap):
    """Features of inputs that are divided by length scales."""

    def __init__(self, scale: InputScale, features: FeatureMap) -> None:
        super().__init__()
        self.scale, self.features = scale, features

    def forward(self, X: Tensor) -> Tensor:
        features: Tensor = self.features(self.scale(X))
        return features


class RandomFeatureKernel(Kernel):
    """The low-rank kernel of a feature map.

    With fewer features than points GPyTorch solves by Woodbury's identity, in O(n m^2), where
    `gpytorch.settings.fast_computations` is on; importing BoTorch turns it off, and the marginal
    likelihood then costs O(n^3).

    Args:
        features: The feature map.
        active_dims: Features of a point that the kernel sees.
    """

    has_lengthscale = False

    def __init__(self, features: FeatureMap, *, active_dims: tuple[int, ...] | None = None) -> None:
        super().__init__(active_dims=active_dims)
        self.features = features

    @property
    def is_stationary(self) -> bool:
        """Network kernels depend on more than the difference of their inputs."""
        return False

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor | LinearOperator:
        """Kernel between `x1` `[..., n1, d]` and `x2` `[..., n2, d]`, as a product of features.

        Raises:
            NotImplementedError: `last_dim_is_batch`, which GPyTorch deprecates.
        """
        if last_dim_is_batch:
            raise NotImplementedError(
                "Network kernels are not additive over features; last_dim_is_batch is not "
                "supported."
            )
        z1 = self.features(x1)
        if x1.shape == x2.shape and torch.equal(x1, x2):
            if diag:
                return z1.square().sum(-1)
            few = z1.shape[-1] < z1.shape[-2]
            return LowRankRootLinearOperator(z1) if few else RootLinearOperator(z1)
        z2 = self.features(x2)
        if diag:
            return (z1 * z2).sum(-1)
        return MatmulLinearOperator(z1, z2.mT)


@dataclass(frozen=True)
class FeatureError:
    """Error of a feature map by its size.

    Attributes:
        sizes: Numbers of features asked for.
        error: Mean relative Frobenius error of the kernel matrix.
        standard_error: Standard error of that mean, over draws.
    """

    sizes: Tensor
    error: Tensor
    standard_error: Tensor


def feature_error(
    make: Callable[[int, torch.Generator], FeatureMap],
    kernel: Kernel,
    X: Tensor,
    sizes: Sequence[int],
    *,
    repeats: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> FeatureError:
    """Measure how well features of growing number give a kernel.

    Args:
        make: Makes a map of a size with a generator.
        kernel: The exact kernel.
        X: Points, `[n, d]`.
        sizes: Numbers of features.
        repeats: RandomSource for each size, at least 2.
        seed: Seed of the first draw.
        progress: Show a progress bar when it takes longer than a few seconds.

    Returns:
        Mean errors and their standard errors.
    """
    errors = torch.empty(len(sizes), repeats, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        exact = kernel(X).to_dense()
        todo = [(k, r) for k in range(len(sizes)) for r in range(repeats)]
        bar = tqdm(
            todo, desc="features", delay=5.0, leave=False, disable=None if progress else True
        )
        for k, r in bar:
            generator = torch.Generator().manual_seed(seed + r)
            z = make(sizes[k], generator).to(X.device)(X)
            errors[k, r] = (z @ z.mT - exact).norm() / exact.norm()
    spread = errors.std(-1) / repeats**0.5
    return FeatureError(torch.tensor(list(sizes), device="cpu"), errors.mean(-1), spread)


def plot_feature_error(curves: dict[str, FeatureError], ax: Axes | None = None) -> Axes:
    """Errors by number of features, on logarithmic axes.

    Args:
        curves: Results of `feature_error` by name.
        ax: Axes to draw on; a new figure if None.

    Returns:
        The axes.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5.0, 3.6), layout="constrained").subplots()
    for name, curve in curves.items():
        ax.errorbar(curve.sizes, curve.error, curve.standard_error, fmt="o-", ms=4, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("features")
    ax.set_ylabel("relative error of the kernel matrix")
    ax.legend(frameon=False)
    return ax
