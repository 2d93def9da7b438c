"""Tasks of any function prior: `FunctionTaskPrior` adds inputs, noise and hyperpriors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from priors.functions import FunctionPrior, GaussianProcessPrior, ScaleMixturePrior, draw
from priors.kernel_batch import expanded_kernel
from priors.networks.variances import LayerVariances
from priors.randomness import RandomSource
from priors.representation import as_distribution
from priors.tasks.task import Task

if TYPE_CHECKING:
    from priors.posteriors.gaussian import GaussianPosterior

__all__ = ["FunctionTaskPrior"]

# (batch, points, generator, device, dtype) -> [batch, points, d]
InputSampler = Callable[..., Tensor]


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
        if scale_noise and not isinstance(function_prior, ScaleMixturePrior):
            raise ValueError("scale_noise=True needs a ScaleMixturePrior.")
        self.function_prior = function_prior
        self.inputs = inputs
        self.num_points = num_points
        self.noise_var = noise_var
        self.hyperprior = dict(hyperprior or {})
        self.scale_noise = scale_noise
        for name in self.hyperprior:
            _resolve(_with_kernel(function_prior).kernel, name)

    @property
    def description(self) -> str:
        """One line for a checkpoint."""
        kernel = getattr(self.function_prior, "kernel", None)
        kind = type(self.function_prior).__name__
        scaled = " times the scale" if self.scale_noise else ""
        parts = [
            kind if kernel is None else f"{kind}, {_described(kernel)}",
            *(f"{name} from {as_distribution(law)}" for name, law in self.hyperprior.items()),
            f"noise variance {as_distribution(self.noise_var)}{scaled}",
            f"inputs {getattr(self.inputs, '__qualname__', as_distribution(self.inputs))}",
            f"{self.num_points} rows (priors.FunctionTaskPrior)",
        ]
        return " ".join("; ".join(parts).split())

    def __repr__(self) -> str:
        own = "" if hasattr(self.function_prior, "kernel") else f"; {self.function_prior!r}"
        return f"FunctionTaskPrior({self.description}{own})"

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
            raise ValueError(
                f"a task has a single output, but the function prior draws {f.shape[-1]}."
            )
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
        latents: dict[str, Tensor] = {}
        for name, distribution in self.hyperprior.items():
            latents[name] = draw(distribution, torch.Size([batch]), generator=generator).to(X)
        return self._with_hyperparameters(latents, batch, X), latents

    def _with_hyperparameters(
        self, latents: dict[str, Tensor], batch: int, X: Tensor
    ) -> FunctionPrior:
        """The function prior of each task; `latents` become as large as the parameters."""
        if not self.hyperprior:
            return self.function_prior
        prior = deepcopy(_with_kernel(self.function_prior))
        prior.kernel = expanded_kernel(prior.kernel, torch.Size([batch])).to(X)
        for parameter in prior.kernel.parameters():
            parameter.data = parameter.data.clone()  # an expanded one shares memory
        for name in self.hyperprior:
            owner, last = _resolve(prior.kernel, name)
            is_mapping = isinstance(owner, Mapping)
            old = owner[last] if is_mapping else getattr(owner, last)
            value = latents[name].to(X)
            value = value.reshape(batch, *(1,) * (old.dim() - value.dim()), *value.shape[1:])
            value = value.expand(old.shape).clone()
            if is_mapping:
                owner[last] = value
            else:
                setattr(owner, last, value)
            latents[name] = value
        return prior

    @property
    def oracle_is(self) -> str:
        """What `oracle` is to the exact posterior: "exact", or an "upper bound" that knows more."""
        known = isinstance(self.noise_var, Distribution) or self.hyperprior
        mixture = isinstance(self.function_prior, ScaleMixturePrior)
        return "upper bound" if known or mixture else "exact"

    def oracle(self, task: Task) -> GaussianPosterior:
        """Posterior of y at the queries, given noise, hyperparameters and scale of each task.

        Exact where these are fixed, see `oracle_is`.

        Args:
            task: B tasks of this prior.

        Raises:
            ValueError: the function prior is not Gaussian given what is known of its tasks.
        """
        from priors.tasks.oracles import gaussian_oracle  # loads BoTorch

        known = GaussianProcessPrior | ScaleMixturePrior
        if not isinstance(self.function_prior, known):
            raise ValueError(
                "The oracle needs a GaussianProcessPrior or a ScaleMixturePrior, got "
                f"{type(self.function_prior).__name__}."
            )
        X = task.X.double()
        latents = dict(task.latents)
        prior = self._with_hyperparameters(latents, len(X), X)
        assert isinstance(prior, known)
        scale = latents["scale"][:, None, None] if "scale" in latents else 1.0
        with torch.no_grad():
            kernel = deepcopy(prior.kernel).to(X)
            covariance = kernel(X).to_dense() * scale
            mean = getattr(prior, "mean", None)
            mean = None if mean is None else deepcopy(mean).to(X)(X)
            return gaussian_oracle(task, covariance, mean)


def _with_kernel(prior: FunctionPrior) -> GaussianProcessPrior | ScaleMixturePrior:
    """A function prior whose kernel's hyperparameters can be drawn."""
    if not isinstance(prior, GaussianProcessPrior | ScaleMixturePrior):
        raise ValueError(f"a hyperprior needs a prior with a kernel, got {type(prior).__name__}.")
    return prior


def _described(kernel: Any) -> str:
    """A kernel with its hyperparameters; of a network layer by layer, equal ones counted."""
    values: dict[str, list[str]] = {}
    for name, module in kernel.named_modules():
        if isinstance(module, LayerVariances):
            owner = name.removesuffix("network.variances")
            for kind in ("weight_var", "bias_var"):
                layers = getattr(module, kind).values()
                values[f"{owner}{kind}"] = [_numbers(value) for value in layers]
    for name, raw, constraint in kernel.named_parameters_and_constraints():
        if not re.search(r"variances\.raw_(weight|bias)_var_", name):
            value = raw if constraint is None else constraint.transform(raw)
            values[name.replace("raw_", "").replace("network.variances.input_scale.", "")] = [
                _numbers(value)
            ]
    parts = [f"{name} {_counted(numbers)}" for name, numbers in values.items() if numbers]
    return f"{type(kernel).__name__}({'; '.join(parts)})"


def _numbers(value: Tensor) -> str:
    flat = value.detach().flatten()
    more = ", ..." if len(flat) > 4 else ""
    return ", ".join(f"{number:.4g}" for number in flat[:4].tolist()) + more


def _counted(texts: list[str]) -> str:
    """Texts in a row, of equal neighbours one: "1, 2 (4 layers)"."""
    runs = [(text, len(list(group))) for text, group in groupby(texts)]
    return ", ".join(text if size == 1 else f"{text} ({size} layers)" for text, size in runs)


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
