"""Microcanonical dynamics: unit velocities that turn towards higher density.

Robnik, De Luca, Silverstein & Seljak 2023 (2212.08549) and Robnik & Seljak 2023 (2303.18221). With
y = x / s, g the gradient of the log density in y and unit velocity u in d dimensions,

    y' = u,    u' = (1 - u u') g / (d - 1),

the velocity's part for a time e being, with n = g / |g|, a = e |g| / (d - 1), c = n'u,

    u <- (u + n (sinh a + c (cosh a - 1))) / (cosh a + c sinh a),
    kinetic energy += (d - 1) log(cosh a + c sinh a).

A step is the second-order splitting of least error norm (Omelyan, Mryglod & Folk 2003), velocity,
position, velocity, position, velocity, of two gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["autocorrelation_time", "isokinetic_step", "refreshed", "unit_velocity"]

# Share of the outer velocity parts in a step.
_OUTER = 0.1931833275037836

_Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def isokinetic_step(
    gradient_of: _Gradient, x: Tensor, u: Tensor, gradient: Tensor, step: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of time `step` in the scaled coordinates.

    Args:
        gradient_of: Positions to log densities and gradients.
        x: Positions, `[chains, d]`.
        u: Unit velocities, `[chains, d]`.
        gradient: At `x`.
        step: `[chains, 1]` or a scalar.
        scale: s, broadcasting with `x`.

    Returns:
        Position, velocity, log density, gradient, and the change of kinetic energy `[chains]`.
    """
    u, first = _turned(u, gradient * scale, _OUTER * step)
    x = x + 0.5 * step * scale * u
    _, gradient = gradient_of(x)
    u, second = _turned(u, gradient * scale, (1 - 2 * _OUTER) * step)
    x = x + 0.5 * step * scale * u
    lp, gradient = gradient_of(x)
    u, third = _turned(u, gradient * scale, _OUTER * step)
    return x, u, lp, gradient, first + second + third


def _turned(u: Tensor, g: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Velocities after a time under a fixed gradient, and what kinetic energy that took.

    Divided by e^a, so that steep gradients do not overflow.
    """
    freedom = u.shape[-1] - 1
    norm = g.norm(dim=-1, keepdim=True)
    n = g / norm.clamp_min(torch.finfo(g.dtype).tiny)
    a = time * norm / freedom
    along = (n * u).sum(-1, keepdim=True)
    decay = (-a).exp()  # zeta
    # 2 e^-a (cosh a + c sinh a), and the same of the numerator
    total = (1 + along) + (1 - along) * decay.square()
    turned = n * (1 - decay) * (1 + decay + along * (1 - decay)) + 2 * decay * u
    turned = turned / turned.norm(dim=-1, keepdim=True)
    change = freedom * (a + (0.5 * total).log())
    return turned, change.squeeze(-1)


def refreshed(u: Tensor, noise: Tensor, time: Tensor, length: Tensor) -> Tensor:
    """Velocities that have forgotten some of their direction (2303.18221, equation 6).

    Args:
        u: Unit velocities, `[chains, d]`.
        noise: Standard normal, `[chains, d]`.
        time: Of this refreshment.
        length: L, over which a direction is forgotten; broadcasts with `[chains, 1]`.
    """
    strength = (torch.expm1(2 * time / length) / u.shape[-1]).sqrt()
    turned = u + strength * noise
    return turned / turned.norm(dim=-1, keepdim=True)


def unit_velocity(like: Tensor, generator: torch.Generator) -> Tensor:
    """Directions, uniform on the sphere, of the shape of `like` `[chains, d]`."""
    u = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return u / u.norm(dim=-1, keepdim=True)


def autocorrelation_time(positions: Tensor) -> float:
    """Integrated autocorrelation time, iterations per independent one, mean over coordinates.

    Args:
        positions: `[chains, iterations, d]`, of one distribution.
    """
    chains, number, _ = positions.shape
    # each chain about its own mean: chains may be in different modes
    centred = positions - positions.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred.double(), n=2 * number, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * number, dim=1)[:, :number].mean(0)
    correlation = covariance / covariance[:1].clamp_min(torch.finfo(torch.float64).tiny)
    times = 2 * correlation.cumsum(0) - 1
    # Sokal's window: the first lag beyond five times the sum up to it
    lags = torch.arange(number, dtype=times.dtype, device=times.device).unsqueeze(-1)
    beyond = lags >= 5 * times
    first = torch.where(beyond.any(0), beyond.to(torch.uint8).argmax(0), number - 1)
    found = times.gather(0, first.unsqueeze(0)).clamp(1.0, float(number))
    mean = float(found.mean())
    return mean if math.isfinite(mean) else 1.0
