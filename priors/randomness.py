"""Random numbers from an explicit generator, of one dtype and on one device.

The vectorised task priors take all their randomness from a `RandomSource`, so that a draw is
reproducible from a generator on any device and leaves the global random state alone.

Single numbers, such as the sizes of a batch, are needed by Python at once. Reading one from a GPU
would make it wait until all work there is done, so those of a CUDA generator are computed on the
host, from its seed and its offset, which moves on as if they had been drawn on the device.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

__all__ = ["RandomSource"]


class RandomSource:
    """What a task prior draws from.

    Args:
        generator: Source of randomness; torch's global one if None.
        device: Device of the result; that of the generator if None.
        dtype: Floating dtype of results; the default dtype if None.
    """

    def __init__(
        self,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.generator = generator
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        if device is None and generator is not None:
            device = generator.device
        self.device = device
        self._source = device if generator is None else generator.device

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1)."""
        values = torch.rand(shape, generator=self.generator, device=self._source, dtype=self.dtype)
        return values.to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        values = torch.randn(shape, generator=self.generator, device=self._source, dtype=self.dtype)
        return values.to(self.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Log-uniform on [low, high]."""
        return low * torch.exp(self.uniform(*shape) * math.log(high / low))

    def bernoulli(self, probability: float | Tensor, *shape: int) -> Tensor:
        """True with a probability that broadcasts with `shape`."""
        return self.uniform(*shape) < probability

    def integers(self, count: int, *shape: int) -> Tensor:
        """Uniform on 0 .. count - 1."""
        values = torch.randint(count, shape, generator=self.generator, device=self._source)
        return values.to(self.device)

    def share(self, mean: float, *shape: int) -> Tensor:
        """A random share with the given mean.

        Uniform, as widely as [0, 1] allows; with a mean of at most 1/2 it is 0 half of the time,
        and twice that mean in the other half.
        """
        often = 2 * mean if mean <= 0.5 else mean
        low, high = max(0.0, 2 * often - 1), min(1.0, 2 * often)
        drawn = low + (high - low) * self.uniform(*shape)
        return drawn * self.bernoulli(0.5, *shape) if mean <= 0.5 else drawn

    def permutations(self, count: int, *shape: int) -> Tensor:
        """Independent permutations of 0 .. count - 1, `[*shape, count]`."""
        return self.uniform(*shape, count).argsort(-1)

    def gamma(self, concentration: float, *shape: int) -> Tensor:
        """Gamma of rate 1, by the generalised normal sums of integer and half-integer shapes.

        Args:
            concentration: A positive multiple of 1/2; half of a chi-squared's degrees of freedom.
            shape: Shape of the result.
        """
        degrees = round(2 * concentration)
        return self.normal(*shape, degrees).square().sum(-1) / 2

    def number(self) -> float:
        """One uniform number on [0, 1)."""
        host = _on_host(self.generator)
        return float(self.uniform()) if host is None else host.random()

    def integer(self, low: int, high: int) -> int:
        """One integer, uniform on low .. high."""
        host = _on_host(self.generator)
        return low + int(self.integers(high - low + 1)) if host is None else host.randint(low, high)

    def seed(self) -> int:
        """A seed for another generator."""
        return self.integer(0, 2**62 - 1)

    def log_integer(self, low: int, high: int) -> int:
        """One integer on low .. high, log-uniform after adding 1 - low."""
        span = math.exp(self.number() * math.log(high - low + 2))
        return low + min(high - low, int(span) - 1)


_OFFSET = 4  # CUDA generators move on in multiples of it


def _on_host(generator: torch.Generator | None) -> random.Random | None:
    """Random numbers of the present state of a CUDA generator, which moves on; None for others."""
    if generator is None or generator.device.type != "cuda":
        return None
    offset = generator.get_offset()
    generator.set_offset(offset + _OFFSET)
    return random.Random((generator.initial_seed() << 64) + offset)
