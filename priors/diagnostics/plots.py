"""What a prior over functions believes: sample paths, correlations, spectrum, complexity.

Two cuts through input space are looked at: a line through the origin, x(t) = t u for t in the
domain, and, with two or more features, a circle around the origin in the plane of u and a vector
orthogonal to it. On them

    correlation        of f at the line's start and along it; of f at two points of the circle
                       an angle apart, averaged over rotations
    zero crossings     P(sign change between neighbours) = arccos(rho) / pi for a centred Gaussian
                       pair, summed over a fine grid: for smooth paths the formula of Rice 1944,
                       (1/pi) sqrt(E f'^2 / E f^2) per unit, and growing with the grid for rough
    spectrum           E|Fourier coefficient|^2, on the circle the Fourier series of a rotation-
                       invariant kernel; it decays like frequency^-exponent for finite smoothness

and, as Teney et al. 2024 (2403.02241) do for networks at initialisation, three complexities of
sampled functions: the mean frequency weighted by Fourier amplitude, the mean order weighted by
Chebyshev coefficient, and the Lempel-Ziv complexity (1976) of the function cut at its median.

Deviations from Teney et al.: the first two are measured along the line (theirs on a plane), with
a Hann window for the frequency, as paths are not periodic; constants have no weight in either.

Where a covariance is known the first three are computed from it, without sampling; otherwise it
is estimated from the sampled functions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, cycle
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from gpytorch.kernels import Kernel
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor, nn

from priors.figures import BLUE, CATEGORIES, GREY, log_axis
from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.networks.finite import NetworkPrior
from priors.networks.infinite import InfiniteNetwork
from priors.representation import as_record, count

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["PriorSummary", "lempel_ziv_complexity", "plot_prior", "prior_summary"]

Prior: TypeAlias = InfiniteNetwork | Kernel | FunctionPrior
Covariance: TypeAlias = Callable[[Tensor], Tensor]

_LINE = 256
_CIRCLE = 512
_PLANE = 24
_ORDER = 20


@dataclass(frozen=True, eq=False)
class PriorSummary:
    """Numbers and curves that describe a prior; see the module's docstring.

    Attributes:
        half_correlation_distance: Distance from the line's start at which the correlation first
            falls to 1/2, in units of the input; infinite where it does not within the domain.
        half_correlation_angle: Likewise on the circle, in radians; None with one feature.
        zero_crossings: Expected number per unit of length along the line.
        spectrum_exponent: s in power ~ frequency^-s, fitted to harmonics 8 to 32; on the line
            (one feature) at most 6, which is what its window resolves. Large for analytic
            functions, and infinite where fewer than three hold 1e-12 of the power.
        mean_frequency: Cycles per unit along the line, averaged over functions.
        polynomial_order: Mean order of the Chebyshev series to order 20 along the line.
        lz_complexity: `lempel_ziv_complexity` of 24 x 24 values in the plane, row by row, or of
            256 along the line with one feature; averaged over at most 16 functions.
        position: Points t of the line, `[n]`.
        functions: Sampled functions there, `[num_functions, n]`.
        correlation: With the line's start, `[n]`.
        angle: From 0 to pi, `[k]`; None with one feature.
        angular_correlation: `[k]`; None with one feature.
        frequency: Harmonics on the circle, cycles per unit on the line; without 0, `[m]`.
        power: Share of the variance at these, `[m]`.
    """

    half_correlation_distance: float
    half_correlation_angle: float | None
    zero_crossings: float
    spectrum_exponent: float
    mean_frequency: float
    polynomial_order: float
    lz_complexity: float
    position: Tensor
    functions: Tensor
    correlation: Tensor
    angle: Tensor | None
    angular_correlation: Tensor | None
    frequency: Tensor
    power: Tensor

    def __repr__(self) -> str:
        return as_record(self)


def prior_summary(
    prior: Prior,
    *,
    num_functions: int = 64,
    domain: tuple[float, float] = (-3.0, 3.0),
    direction: Tensor | None = None,
    kind: Literal["nngp", "ntk"] = "nngp",
    generator: torch.Generator | None = None,
) -> PriorSummary:
    """Measure what a prior believes; see the module's docstring.

    Args:
        prior: An `InfiniteNetwork`, a GPyTorch kernel, or a prior that draws functions, of which
            the first output is looked at. Its functions are taken to be centred, except for the
            three complexities.
        num_functions: Functions sampled, for the complexities and where no covariance is known.
        domain: Interval of t on the line; the circle's radius is its end farther from 0.
        direction: u, `[d]`, scaled to length 1; without, the diagonal of a network's inputs, or
            one feature. Where it lies everything is computed, without it where the prior lies.
        kind: Which kernel of an `InfiniteNetwork`; "ntk" for what training by gradient descent
            would use.
        generator: Source of randomness.

    Raises:
        ValueError: `domain` is empty, `direction` is not a nonzero vector, "ntk" of something other
            than an `InfiniteNetwork`, a batch of kernels, or the function is 0 for certain where
            the line starts.
        TypeError: `prior` is none of the above.
    """
    low, high = domain
    if not low < high:
        raise ValueError(f"domain must be (low, high) with low < high, got {domain}.")
    if num_functions < 1:
        raise ValueError(f"num_functions must be at least 1, got {num_functions}.")
    u = direction
    if u is None:
        u = torch.ones(_num_inputs(prior), dtype=torch.float64, device=_device(prior))
    if u.dim() != 1 or not float(u.norm()) > 0:
        raise ValueError(f"direction must be a nonzero vector [d], got {u}.")
    u = u / u.norm()
    sampler, covariance = _functions_and_covariance(prior, kind)

    def sample(X: Tensor, size: int) -> Tensor:
        with warnings.catch_warnings():
            # smooth functions on a fine grid need jitter, which no picture shows
            warnings.simplefilter("ignore", NumericalWarning)
            return sampler.sample(X, torch.Size([size]), generator=generator)[..., 0].double()

    def second_moments(X: Tensor) -> Tensor:
        if covariance is not None:
            return covariance(X)
        values = sample(X, num_functions)
        return values.T @ values / num_functions

    step = (high - low) / _LINE
    # midpoints: the origin, where a network without biases is 0, is none of them
    t = low + step * (torch.arange(_LINE, dtype=torch.float64, device=u.device) + 0.5)
    line = t.to(u)[:, None] * u
    with torch.no_grad():
        paths = sample(line, num_functions)
        C = second_moments(line) if covariance is not None else paths.T @ paths / num_functions
        std = C.diagonal().clamp_min(0).sqrt()
        if not float(std[0]) > 0:
            raise ValueError(
                f"the prior's variance is 0 at t = {float(t[0]):.3g}, the start of the line; "
                "choose another domain."
            )
        rho = C / (std * std[:, None]).clamp_min(torch.finfo(C.dtype).tiny)
        crossings = torch.arccos(rho.diagonal(1).clamp(-1, 1)).mean() / math.pi / step
        window = torch.hann_window(_LINE, dtype=torch.float64, device=u.device)
        angle = angular = half_angle = None
        if len(u) == 1:
            power = _expected_power(C, window)
            unit, bits = high - low, paths
        else:
            v = _orthogonal(u)
            phase = torch.arange(_CIRCLE, dtype=torch.float64, device=u.device) * (
                2 * math.pi / _CIRCLE
            )
            circle = torch.stack([phase.cos(), phase.sin()], -1).to(u) @ torch.stack([u, v])
            power = _expected_power(
                second_moments(max(abs(low), abs(high)) * circle),
                torch.ones(_CIRCLE, dtype=torch.float64, device=u.device),
            )
            unit = 1.0
            # the covariance averaged over rotations has the spectrum `power`
            angular = torch.fft.irfft(power.to(torch.complex128), n=_CIRCLE)[: _CIRCLE // 2 + 1]
            angular = angular / angular[0]
            angle = phase[: _CIRCLE // 2 + 1]
            half_angle = _first_below(angle, angular, 0.5)
            place = torch.arange(_PLANE, dtype=u.dtype, device=u.device)
            side = low + (high - low) * (place + 0.5) / _PLANE
            plane = torch.cartesian_prod(side, side) @ torch.stack([u, v])
            bits = sample(plane, min(num_functions, 16))
        bits = bits[:16] > bits[:16].median(-1, keepdim=True).values
    harmonics = torch.arange(1, len(power), dtype=torch.float64, device=u.device)
    return PriorSummary(
        half_correlation_distance=_first_below(t - t[0], rho[0], 0.5),
        half_correlation_angle=half_angle,
        zero_crossings=float(crossings),
        spectrum_exponent=_decay(power),
        mean_frequency=_mean_frequency(paths, window) / (high - low),
        polynomial_order=_mean_order(paths),
        lz_complexity=sum(lempel_ziv_complexity(row) for row in bits) / len(bits),
        position=t,
        functions=paths,
        correlation=rho[0],
        angle=angle,
        angular_correlation=angular,
        frequency=harmonics / unit,
        power=power[1:] / power.sum(),
    )


def plot_prior(
    prior: Prior,
    *,
    num_functions: int = 5,
    domain: tuple[float, float] = (-3.0, 3.0),
    direction: Tensor | None = None,
    kind: Literal["nngp", "ntk"] = "nngp",
    generator: torch.Generator | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw what a prior believes: sample paths, correlations and spectrum.

    Args:
        prior: As for `prior_summary`.
        num_functions: Sampled functions drawn; 64 are measured, or as many as are drawn.
        domain: As for `prior_summary`.
        direction: `[d]`, as for `prior_summary`.
        kind: As for `prior_summary`.
        generator: Source of randomness.
        figure: Where to draw; a new one outside pyplot if None.

    Returns:
        The figure, with `savefig` and, in notebooks, a picture of itself.

    Raises:
        ValueError: as `prior_summary`.
        TypeError: as `prior_summary`.
    """
    summary = prior_summary(
        prior,
        num_functions=max(64, num_functions),
        domain=domain,
        direction=direction,
        kind=kind,
        generator=generator,
    )
    on_circle = summary.angle is not None
    if figure is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 7), layout="constrained")
    paths, ray, sphere, spectrum = figure.subplots(2, 2).flat
    t = summary.position.cpu()
    for path, color in zip(
        summary.functions[:num_functions].cpu(), cycle(CATEGORIES), strict=False
    ):
        paths.plot(t, path, linewidth=1, color=color)
    through = " through the origin" if on_circle else ""
    paths.set(
        xlabel=f"position on a line{through}",
        ylabel="function f",
        title=f"{count(num_functions, 'function')} drawn from the prior",
    )
    ray.plot(t - t[0], summary.correlation.cpu(), color=BLUE)
    ray.set(
        xlabel="distance from the line's start, units of the input",
        ylabel="correlation of f",
        title=f"correlation along the line {_halved(summary.half_correlation_distance)};\n"
        f"{summary.zero_crossings:.3g} zero crossings expected per unit",
    )
    if summary.angle is not None and summary.angular_correlation is not None:
        sphere.plot(summary.angle.cpu(), summary.angular_correlation.cpu(), color=BLUE)
        halved = _halved(summary.half_correlation_angle or 0.0, " radians")
        sphere.set(
            xlabel="angle between inputs on a circle around the origin, radians",
            ylabel="correlation of f",
            title=f"correlation around the circle\n{halved}",
            xticks=[0, math.pi / 2, math.pi],
            xticklabels=["0", "π/2", "π"],
        )
    else:
        values = summary.functions.flatten().cpu().numpy()
        sphere.hist(values, bins=40, density=True, color=BLUE)
        sphere.set(xlabel="function f", ylabel="density", title="values along the line")
    for ax in (ray, sphere) if on_circle else (ray,):
        ax.axhline(0.5, color=GREY, linewidth=0.8)
    # coefficients that are exactly 0 would stretch the axis to rounding errors
    shown = summary.power > 1e-14
    spectrum.loglog(
        summary.frequency[shown].cpu(), summary.power[shown].cpu(), ".", markersize=3, color=BLUE
    )
    decay = "faster than any power of the frequency"
    if math.isfinite(summary.spectrum_exponent):
        decay = f"like frequency^-{summary.spectrum_exponent:.3g}"
    spectrum.set(
        xlabel="harmonic on the circle, periods" if on_circle else "frequency, cycles per unit",
        ylabel="share of the variance of f",
        title=f"spectrum: falls off\n{decay}",
    )
    log_axis(spectrum.xaxis)
    log_axis(spectrum.yaxis)
    name = type(prior).__name__
    if isinstance(prior, InfiniteNetwork):
        name = f"the {kind.upper()} kernel of an {name}"
    figure.suptitle(
        f"Functions under {name}, before any data\n"
        f"mean frequency {summary.mean_frequency:.3g} cycles per unit, mean polynomial order "
        f"{summary.polynomial_order:.3g},\nLempel-Ziv complexity {summary.lz_complexity:.3g} "
        "(0 is regular, 1 random)",
        fontsize=10,
    )
    return figure


def _halved(where: float, unit: str = "") -> str:
    return f"falls to 1/2 at {where:.3g}{unit}" if math.isfinite(where) else "stays above 1/2"


def lempel_ziv_complexity(bits: Tensor) -> float:
    """Number of phrases of a binary sequence `[n]`, n >= 2, over n / log2(n).

    A phrase is the shortest continuation that has not occurred before, overlaps included. About 1
    for random bits (from above, slowly), near 0 for regular ones.

    Source: Lempel & Ziv 1976; Kaspar & Schuster 1987.
    """
    text = "".join("1" if bit else "0" for bit in bits.tolist())
    start = phrases = 0
    while start < len(text):
        end = start + 1
        while end <= len(text) and text[start:end] in text[: end - 1]:
            end += 1
        phrases, start = phrases + 1, end
    return phrases * math.log2(len(text)) / len(text)


def _functions_and_covariance(prior: Prior, kind: str) -> tuple[FunctionPrior, Covariance | None]:
    if kind not in ("nngp", "ntk"):
        raise ValueError(f'kind must be "nngp" or "ntk", got {kind!r}.')
    if isinstance(prior, InfiniteNetwork):
        prior = NNGPKernel(prior) if kind == "nngp" else NTKKernel(prior)
    elif kind == "ntk":
        raise ValueError(
            f'kind="ntk" is for an InfiniteNetwork; {type(prior).__name__} has one covariance.'
        )
    if isinstance(prior, Kernel):
        prior = GaussianProcessPrior(prior)
    if not isinstance(prior, FunctionPrior):
        raise TypeError(
            "expected an InfiniteNetwork, a GPyTorch kernel or a prior with sample(X, size, "
            f"generator=), got {type(prior).__name__}."
        )
    if not isinstance(prior, GaussianProcessPrior | ScaleMixturePrior):
        return prior, None
    kernel = prior.kernel
    if kernel.batch_shape:
        raise ValueError(
            f"the kernel has batch shape {tuple(kernel.batch_shape)}; pass a single kernel."
        )
    centred = GaussianProcessPrior(kernel)
    return prior, lambda X: centred.distribution(X.double()).lazy_covariance_matrix.to_dense()


def _expected_power(C: Tensor, window: Tensor) -> Tensor:
    """E|sum_j w_j f_j exp(-2 pi i j k / n)|^2 for k = 0, ..., n / 2 and f of covariance C."""
    weighted = torch.fft.fft(C * window * window[:, None], dim=0)
    power = torch.fft.ifft(weighted, dim=1, norm="forward").diagonal().real.clamp_min(0)
    return power[: len(C) // 2 + 1]


def _first_below(x: Tensor, y: Tensor, level: float) -> float:
    """Where y first falls to `level`, linear between points; infinite if nowhere."""
    below = (y <= level).nonzero()
    if not len(below):
        return math.inf
    i = int(below[0])
    share = (y[i - 1] - level) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def _decay(power: Tensor) -> float:
    k = torch.arange(8, 33, device=power.device)
    k = k[power[k] > 1e-12 * power.sum()]
    if len(k) < 3:
        return math.inf
    x, y = k.double().log(), power[k].log()
    x = x - x.mean()
    return float(-(x * y).sum() / (x * x).sum())


def _mean_frequency(paths: Tensor, window: Tensor) -> float:
    """Amplitude-weighted mean frequency in periods of the line, averaged over functions."""
    centred = paths - (paths * window).sum(-1, keepdim=True) / window.sum()
    amplitude = torch.fft.rfft(centred * window).abs()
    k = torch.arange(amplitude.shape[-1], device=paths.device)
    return float(((amplitude * k).sum(-1) / amplitude.sum(-1)).mean())


def _mean_order(paths: Tensor) -> float:
    """Mean order of the Chebyshev series, weighted by |coefficient|, order 0 aside."""
    x = (torch.arange(_LINE, dtype=torch.float64, device=paths.device) + 0.5) * 2 / _LINE - 1
    order = torch.arange(_ORDER + 1, device=paths.device)
    basis = torch.cos(torch.acos(x)[:, None] * order)
    size = torch.linalg.lstsq(basis, paths.T).solution[1:].abs()
    return float(((size * order[1:, None]).sum(0) / size.sum(0)).mean())


def _orthogonal(u: Tensor) -> Tensor:
    """A unit vector orthogonal to the unit vector u, `[d]` with d >= 2."""
    v = torch.zeros_like(u)
    v[u.abs().argmin()] = 1
    v = v - (v @ u) * u
    return v / v.norm()


def _device(prior: object) -> torch.device:
    """Where the parameters of a prior lie; the CPU for one without any."""
    module = getattr(prior, "kernel", prior)
    if isinstance(module, nn.Module):
        for tensor in chain(module.parameters(), module.buffers()):
            return tensor.device
    return torch.device("cpu")


def _num_inputs(prior: object) -> int:
    """Features of a point, as far as a network says; else 1."""
    network = getattr(getattr(prior, "kernel", prior), "network", prior)
    if not isinstance(network, InfiniteNetwork | NetworkPrior):
        return 1
    return math.prod(1 if size is None else size for size in network.program.input_shape)
