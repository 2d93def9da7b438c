"""Priors over whole supervised tasks, from which a prior-data fitted network learns.

A task is a data set with the function behind it: inputs, noisy targets, and how many of the
rows are context; the others are to be predicted. `FunctionTaskPrior` makes tasks of any function
prior; a `TaskPrior` is anything that draws batches of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior, draw
from priors.randomness import RandomSource

__all__ = ["FunctionTaskPrior", "Task", "TaskPrior"]

# (batch, points, generator, device, dtype) -> [batch, points, d]
InputSampler = Callable[..., Tensor]


@dataclass(frozen=True)
class Task:
    """A batch of B tasks of N rows and d features.

    Attributes:
        X: Inputs `[B, N, d]`; NaN where a value is missing; category numbers 0, 1, ... in
            categorical columns.
        y: Noisy targets `[B, N, 1]`; in classification the class, 0 .. num_classes - 1.
        f: Noise-free function values `[B, N, 1]`, or None where there are none.
        noise_var: Variance of y - f given the task, `[B]`, or `[B, N]` where it differs by row;
            infinite or meaningless where y - f is not of that kind (classes, outliers).
        num_context: The first rows are context, the rest are queries.
        points: `[B, N]`, False where a row is padding; None means all rows count.
        features: `[B, d]`, False where a feature is padding; None means all count.
        categorical: `[B, d]`, True where a feature is a category; None means none is.
        num_classes: Classes of each task `[B]`; None means regression.
        latents: What else was drawn, by name, each `[B, ...]`.
        row_latents: What else was drawn for every row, each `[B, N, ...]`.
    """

    X: Tensor
    y: Tensor
    f: Tensor | None
    noise_var: Tensor
    num_context: int
    points: Tensor | None = None
    features: Tensor | None = None
    categorical: Tensor | None = None
    num_classes: Tensor | None = None
    latents: dict[str, Tensor] = field(default_factory=dict)
    row_latents: dict[str, Tensor] = field(default_factory=dict)

    @property
    def row_noise_var(self) -> Tensor:
        """Noise variance of every row, `[B, N]`."""
        noise = self.noise_var if self.noise_var.dim() == 2 else self.noise_var[:, None]
        return noise.expand(self.X.shape[:2])

    def to(self, device: torch.device | str) -> Task:
        """The same tasks on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(self, **{name: moved(value) for name, value in vars(self).items()})


@runtime_checkable
class TaskPrior(Protocol):
    """A distribution over tasks."""

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks of one size together."""
        ...


def describe(task_prior: object) -> str:
    """One line on a task prior: its `description` if it has one, else the name of its kind."""
    return getattr(task_prior, "description", type(task_prior).__name__)


def exchangeable(task_prior: object) -> bool:
    """Whether features may change places under a prior: its `exchangeable`, else that of `prior`.

    Which is what a task prior made of another one has; False where neither says so.
    """
    own = getattr(task_prior, "exchangeable", None)
    if own is not None:
        return bool(own)
    inner = getattr(task_prior, "prior", None)
    return inner is not None and exchangeable(inner)


class FunctionTaskPrior:
    """Tasks whose functions come from one function prior.

    Args:
        function_prior: Any `FunctionPrior`.
        inputs: Distribution of one input, its batch or event shape `[d]`; or a callable
            `(batch, points, generator=, device=, dtype=) -> [batch, points, d]`.
        num_points: Rows of a task. The number of context rows is uniform on 0 .. num_points - 1.
        noise_var: Variance of the noise, a number or its distribution.
        hyperprior: Distribution of kernel hyperparameters by (dotted) name, such as
            "lengthscale" or "base_kernel.lengthscale"; drawn anew for each task. A distribution
            of one number is drawn once per task for all elements of the parameter, one of the
            parameter's own shape once per element.
        scale_noise: Let a `ScaleMixturePrior` scale the noise with the function.

    Raises:
        ValueError: a hyperprior without a kernel, an unknown name, or bad sizes.
    """

    def __init__(
        self,
        function_prior: FunctionPrior,
        *,
        inputs: Distribution | InputSampler,
        num_points: int,
        noise_var: float | Distribution,
        hyperprior: Mapping[str, Distribution] | None = None,
        scale_noise: bool = False,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}.")
        if not isinstance(noise_var, Distribution) and noise_var < 0:
            raise ValueError(f"noise_var is a variance and cannot be negative, got {noise_var}.")
        if hyperprior and not isinstance(function_prior, GaussianProcessPrior | ScaleMixturePrior):
            raise ValueError(
                f"a hyperprior needs a prior with a kernel, got {type(function_prior).__name__}."
            )
        if scale_noise and not isinstance(function_prior, ScaleMixturePrior):
            raise ValueError("scale_noise=True needs a ScaleMixturePrior.")
        self.function_prior = function_prior
        self.inputs = inputs
        self.num_points = num_points
        self.noise_var = noise_var
        self.hyperprior = dict(hyperprior or {})
        self.scale_noise = scale_noise
        for name in self.hyperprior:
            _resolve(function_prior.kernel, name)  # type: ignore[attr-defined]

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        kernel = getattr(self.function_prior, "kernel", None)
        kind = type(self.function_prior).__name__
        parts = [
            kind if kernel is None else f"{kind}, {_told(kernel)}",
            *(f"{name} from {law}" for name, law in self.hyperprior.items()),
            f"noise variance {self.noise_var}{' times the scale' if self.scale_noise else ''}",
            f"inputs {getattr(self.inputs, '__qualname__', self.inputs)}",
            f"{self.num_points} rows (priors.FunctionTaskPrior)",
        ]
        return " ".join("; ".join(parts).split())

    def __repr__(self) -> str:
        return f"FunctionTaskPrior({self.description}; {self.function_prior!r})"

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Task:
        """Draw `batch` tasks; see `Task`."""
        draws = RandomSource(generator, device, dtype)
        X = self._draw_inputs(batch, draws)
        prior, latents = self._draw_hyperparameters(batch, generator, X)
        scale = torch.ones(batch, dtype=X.dtype, device=X.device)
        with torch.no_grad():
            if isinstance(prior, ScaleMixturePrior):
                f, variance = prior.sample_with_scale(X, generator=generator)
                latents["scale"] = variance
                scale = variance if self.scale_noise else scale
            else:
                f = prior.sample(X, generator=generator)
        if f.shape[-1] != 1:
            raise ValueError(f"a task has one output, the function prior draws {f.shape[-1]}.")
        if isinstance(self.noise_var, Distribution):
            noise_var = draw(self.noise_var, torch.Size([batch]), generator=generator).to(X)
        else:
            noise_var = torch.full_like(scale, self.noise_var)
        noise_var = noise_var * scale
        noise = RandomSource(generator, f.device, f.dtype).normal(*f.shape)
        return Task(
            X=X,
            y=f + noise_var.sqrt()[:, None, None] * noise,
            f=f,
            noise_var=noise_var,
            num_context=RandomSource(generator).integer(0, self.num_points - 1),
            latents=latents,
        )

    def _draw_inputs(self, batch: int, draws: RandomSource) -> Tensor:
        generator, device, dtype = draws.generator, draws.device, draws.dtype
        if not isinstance(self.inputs, Distribution):
            return self.inputs(
                batch, self.num_points, generator=generator, device=device, dtype=dtype
            )
        X = draw(self.inputs, torch.Size([batch, self.num_points]), generator=generator)
        X = X.to(device=device, dtype=dtype)
        return X[..., None] if X.dim() == 2 else X

    def _draw_hyperparameters(
        self, batch: int, generator: torch.Generator | None, X: Tensor
    ) -> tuple[FunctionPrior, dict[str, Tensor]]:
        if not self.hyperprior:
            return self.function_prior, {}
        prior = deepcopy(self.function_prior)
        prior.kernel = prior.kernel.expand_batch(torch.Size([batch])).to(X)  # type: ignore[attr-defined]
        for parameter in prior.kernel.parameters():  # type: ignore[attr-defined]
            parameter.data = parameter.data.clone()  # an expanded one shares memory
        latents: dict[str, Tensor] = {}
        for name, distribution in self.hyperprior.items():
            owner, last = _resolve(prior.kernel, name)  # type: ignore[attr-defined]
            is_mapping = isinstance(owner, Mapping)
            old = owner[last] if is_mapping else getattr(owner, last)
            value = draw(distribution, torch.Size([batch]), generator=generator).to(X)
            value = value.reshape(batch, *(1,) * (old.dim() - value.dim()), *value.shape[1:])
            value = value.expand(old.shape).clone()
            if is_mapping:
                owner[last] = value
            else:
                setattr(owner, last, value)
            latents[name] = value
        return prior, latents


def _told(kernel: Any) -> str:
    """A kernel with its hyperparameters."""
    values = []
    for name, raw, constraint in kernel.named_parameters_and_constraints():
        value = (raw if constraint is None else constraint.transform(raw)).detach().flatten()
        numbers = ", ".join(f"{number:.4g}" for number in value[:4].tolist())
        more = ", ..." if len(value) > 4 else ""
        values.append(f"{name.replace('raw_', '')} {numbers}{more}")
    return f"{type(kernel).__name__}({'; '.join(values)})"


def _resolve(kernel: Any, name: str) -> tuple[Any, str]:
    """The object that holds the parameter `name` of a kernel, and its last name there."""
    owner: Any = kernel
    parts = name.split(".")
    try:
        for i, part in enumerate(parts[:-1]):
            owner = getattr(owner, part)
            if isinstance(owner, Mapping):
                rest = ".".join(parts[i + 1 :])
                owner[rest]
                return owner, rest
        getattr(owner, parts[-1])
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"hyperprior names {name!r}, which {type(kernel).__name__} does not have."
        ) from error
    return owner, parts[-1]
