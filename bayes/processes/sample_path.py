"""Functions drawn from the posterior of an exact process, evaluated where and when one likes.

BoTorch's paths (`botorch.sampling.pathwise`) are closed formulas of kernels that have random
Fourier features. Here any kernel will do, a network's too: values at new points are drawn given
those that the path has already. A joint draw is mean + L z with a Cholesky factor L, whose leading
rows do not depend on later points; so it is enough to remember points and z.
"""

from __future__ import annotations

from typing import Any

import torch
from botorch.posteriors import GPyTorchPosterior
from torch import Tensor

from priors.randomness import RandomSource

__all__ = ["SamplePath"]


class SamplePath:
    """Drawn functions; made by `ExactProcess.sample_path`.

    Values are those of one function however the points are divided among calls, up to the jitter
    of a factorisation. All points asked for are remembered: a call costs the cube of their number.
    Gradients reach the points of the call. The model must stay as it is.

    Args:
        process: An exact process without batch dimensions.
        sample_shape: Of independent functions.
        generator: Source of randomness; torch's global one if None.
    """

    def __init__(
        self, process: Any, sample_shape: torch.Size, generator: torch.Generator | None
    ) -> None:
        self._process, self._shape = process, torch.Size(sample_shape)
        rows = process.train_X
        self._source = RandomSource(generator, rows.device, rows.dtype)
        self._points = rows.new_empty(0, rows.shape[-1])
        self._normals = rows.new_empty(*self._shape, 0, process.num_outputs)
        self._shared = self._source.normal(*self._shape, 1)  # of the scale that all points share
        self._unchanged = process.same_as_now()

    def __call__(self, X: Tensor) -> Tensor:
        """Values of the functions at `X` `[q, d]`, `[*sample_shape, q, m]`, without noise.

        Args:
            X: In the units of the training inputs.

        Raises:
            ValueError: `X` is a batch, or the model has changed since the path was drawn.
        """
        if X.dim() != 2:
            raise ValueError(
                f"A sample path takes points [q, d], got shape {tuple(X.shape)}; X.flatten(0, -2) "
                "makes one set of them."
            )
        if not self._unchanged():
            raise ValueError("The model has changed since this path was drawn; draw another one.")
        points, place = _distinct(torch.cat([self._points, X]))
        new = len(points) - len(self._points)
        drawn = self._source.normal(*self._shape, new, self._normals.shape[-1])
        normals = torch.cat([self._normals, drawn.to(self._normals)], -2)
        posterior = self._process.posterior(points)
        base = normals
        if not isinstance(posterior, GPyTorchPosterior):
            base = torch.cat([normals.flatten(-2), self._shared.to(normals)], -1)
        base = base.reshape(*self._shape, *posterior.base_sample_shape)
        values: Tensor = posterior.rsample_from_base_samples(self._shape, base)
        self._points, self._normals = points.detach(), normals
        return values[..., place[-len(X) :], :]


def _distinct(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points `[N, d]` without repetitions, in order, and the place of each among them `[N]`.

    Of equal points the last stands for all, which may have a gradient.
    """
    equal = (points.detach().unsqueeze(1) == points.detach()).all(-1).int()
    first = equal.argmax(-1)
    last = len(points) - 1 - equal.flip(-1).argmax(-1)
    kept = first == torch.arange(len(points), device=points.device)
    return points[last[kept]], (kept.cumsum(0) - 1)[first]
