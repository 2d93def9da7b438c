"""The posterior of a Gaussian process's hyperparameters as a density for samplers.

Every learnable parameter is told by unconstrained numbers u: the value within its constraint is
`biject_to` of u, the logarithm above the lower bound for what is positive. A GPyTorch prior is a
density of what its closure returns, z, elementwise in u; the density of u has |dz / du| beside it.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from bayes.inference import HasLogDensity, LogDensity
from bayes.processes.marginal_likelihood import exact_solves
from priors.kernel_batch import expanded_kernel

if TYPE_CHECKING:
    from bayes.processes.exact_process import ExactProcess

__all__ = ["HyperparameterPosterior"]


class _Slot:
    """A parameter's place in the vector of unconstrained numbers."""

    def __init__(self, name: str, parameter: Tensor, constraint: Any, start: int) -> None:
        self.name, self.shape, self.constraint = name, parameter.shape, constraint
        self.part = slice(start, start + parameter.numel())
        self.transform: Transform = biject_to(constraints.real)
        if constraint is not None:
            lower, upper = float(constraint.lower_bound), float(constraint.upper_bound)
            if math.isfinite(lower) and math.isfinite(upper):
                self.transform = biject_to(constraints.interval(lower, upper))
            elif math.isfinite(lower):
                self.transform = biject_to(constraints.greater_than(lower))
            elif math.isfinite(upper):
                self.transform = biject_to(constraints.less_than(upper))

    def raw(self, u: Tensor) -> Tensor:
        """`[chains, D]` to the parameter, `[chains, *shape]`."""
        value = self.transform(u[..., self.part].unflatten(-1, self.shape or (1,)))
        if not self.shape:
            value = value.squeeze(-1)
        if self.constraint is None or not self.constraint.enforced:
            return value
        raw: Tensor = self.constraint.inverse_transform(value)
        return raw


class _Parts(nn.Module):
    """Kernel and likelihood, whose parameters are exchanged for those of many chains."""

    kernel: Any
    likelihood: Any

    def __init__(self, kernel: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.kernel, self.likelihood = kernel, likelihood

    def forward(self, call: Any) -> Any:
        return call(self)

    def priors(self) -> list[tuple[nn.Module, Any, Any]]:
        """Modules with a prior, it, and what of the module it is a density of."""
        found = []
        for part in (self.kernel, self.likelihood):
            for _, module, prior, closure, _ in part.named_priors():
                found.append((module, prior, closure))
        return found


class Hyperparameters:
    """The learnable parameters of a process as a vector of unconstrained numbers.

    Args:
        process: Whose kernel and likelihood they are of.
    """

    def __init__(self, process: ExactProcess) -> None:
        self.parts = _Parts(process.covar_module, process.likelihood)
        self.slots: list[_Slot] = []
        start = 0
        for prefix in ("kernel", "likelihood"):
            part = getattr(self.parts, prefix)
            for name, parameter, constraint in part.named_parameters_and_constraints():
                if parameter.requires_grad:
                    slot = _Slot(f"{prefix}.{name}", parameter, constraint, start)
                    start = slot.part.stop
                    self.slots.append(slot)
        self.dimension = start

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """The raw parameters by name, `[chains, *shape]`, from `[chains, D]`."""
        return {slot.name: slot.raw(u) for slot in self.slots}

    def constrained(self, u: Tensor) -> Tensor:
        """What the parameters stand for, `[..., D]`."""
        return torch.cat([slot.transform(u[..., slot.part]) for slot in self.slots], -1)


class HyperparameterPosterior(HasLogDensity):
    """What samplers draw from, given the rows of a process as they are now.

    As a Pyro model it has one site, "position", of all unconstrained numbers.

    Args:
        process: With one set of rows and of hyperparameters; its noise is learnt for all rows, or
            known.

    Raises:
        NotImplementedError: a batch of processes, or another likelihood.
        ValueError: nothing to learn, or a hyperparameter without a prior.
    """

    def __init__(self, process: ExactProcess) -> None:
        self.owner = type(process).__name__
        if process.train_Y.dim() != 2 or process.covar_module.batch_shape:
            raise NotImplementedError(
                f"Hyperparameters are drawn for one set of rows [n, d]; this {self.owner} is a "
                f"batch {tuple(process.train_Y.shape[:-2])}."
            )
        likelihood = process.likelihood
        self.known = None
        if isinstance(likelihood, FixedNoiseGaussianLikelihood):
            self.known = likelihood.noise
        elif not isinstance(likelihood, GaussianLikelihood):
            raise NotImplementedError(
                f"Hyperparameters are drawn for a GaussianLikelihood or known noise, this "
                f"{self.owner} has a {type(likelihood).__name__}."
            )
        process.eval()
        self.num_outputs = process.num_outputs
        self.inputs = process.train_inputs[0].reshape(-1, *process.train_inputs[0].shape[-2:])[0]
        self.targets = process.train_targets.reshape(-1, process.train_targets.shape[-1])  # [m, n]
        self.hyperparameters = Hyperparameters(process)
        self.parts, self.slots = self.hyperparameters.parts, self.hyperparameters.slots
        self.dimension = self.hyperparameters.dimension
        if not self.dimension:
            raise ValueError(f"This {self.owner} has no hyperparameters to draw; use it as it is.")
        self._check_priors()

    def __call__(self) -> None:
        """Run the Pyro model."""
        zeros = self.targets.new_zeros(self.dimension)
        start = dist.Normal(zeros, 1.0).to_event(1)  # where chains start; divided out
        position = pyro.sample("position", start)
        density = self.log_density().function(position.unsqueeze(0)).squeeze(0)
        pyro.factor("posterior", density - start.log_prob(position))

    def log_density(self) -> LogDensity:
        """Over the unconstrained numbers of all learnable parameters."""
        batches: dict[int, _Parts] = {}

        def function(u: Tensor) -> Tensor:
            if len(u) not in batches:
                batches[len(u)] = self.batch(len(u))
            parts = batches[len(u)]
            values = self.hyperparameters.values(u)
            # Values are in the supports of priors; asking costs the graph of operations.
            with exact_solves(), pyro.validation_enabled(False):
                likelihood: Tensor = torch.func.functional_call(
                    parts, values, (self._log_likelihood,)
                )
                z, derivative = torch.func.jvp(  # type: ignore[misc]
                    lambda u: self._prior_values(parts, u), (u,), (torch.ones_like(u),)
                )
                prior = torch.func.functional_call(
                    parts, values, (lambda parts: _log_priors(parts, z, derivative),)
                )
            return likelihood + prior

        return LogDensity(
            function,
            self.dimension,
            constrain=lambda u: {"position": u},
            identified=False,
        )

    def batch(self, size: int) -> _Parts:
        """Kernel and likelihood whose parameters may have `size` values each."""
        kernel = expanded_kernel(self.parts.kernel, torch.Size([size]))
        return _Parts(kernel, copy.deepcopy(self.parts.likelihood))

    def _log_likelihood(self, parts: _Parts) -> Tensor:
        covariance = parts.kernel(self.inputs).to_dense()  # [chains, n, n]
        n = covariance.shape[-1]
        if self.known is not None:
            noise = self.known.reshape(1, -1, n).expand(1, len(self.targets), n)
        else:
            noise = parts.likelihood.noise  # [chains, (m,) 1]
            noise = noise if self.num_outputs > 1 else noise.unsqueeze(-2)
        eye = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
        # outputs of one noise share a factor only by chance of their values: one for each
        matrix = covariance.unsqueeze(-3) + noise.unsqueeze(-1) * eye
        factor, failed = torch.linalg.cholesky_ex(matrix)
        y = self.targets.unsqueeze(-1).expand(*factor.shape[:-1], 1)
        white = torch.linalg.solve_triangular(factor, y, upper=False).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = -0.5 * white.square().sum(-1) - log_det - 0.5 * n * math.log(2 * math.pi)
        return torch.where(failed > 0, -torch.inf, each).sum(-1)

    def _prior_values(self, parts: _Parts, u: Tensor) -> tuple[Tensor, ...]:
        """What the priors are densities of, each `[chains, ...]`."""
        values = self.hyperparameters.values(u)

        def call(parts: _Parts) -> tuple[Tensor, ...]:
            return tuple(closure(module) for module, _, closure in parts.priors())

        found: tuple[Tensor, ...] = torch.func.functional_call(parts, values, (call,))
        return found

    def _check_priors(self) -> None:
        """Every number needs one prior of its own, or the density of u is another one."""
        u = torch.zeros(1, self.dimension, dtype=torch.float64, device=self.targets.device)
        u = u + 0.1 * torch.arange(1, self.dimension + 1, device=u.device).to(u) / self.dimension
        parts = copy.deepcopy(self.batch(1)).to(u)

        def every(u: Tensor) -> Tensor:
            return torch.cat([z.reshape(-1) for z in self._prior_values(parts, u)])

        if not parts.priors():
            counts = torch.zeros(self.dimension, dtype=torch.long)
            jacobian = u.new_zeros(0, self.dimension)
        else:
            jacobian = torch.autograd.functional.jacobian(every, u).squeeze(1)
            counts = (jacobian != 0).sum(0)
        for slot in self.slots:
            if not bool((counts[slot.part] == 1).all()):
                found = "no prior" if bool((counts[slot.part] == 0).any()) else "several priors"
                raise ValueError(
                    f"The hyperparameter {slot.name!r} of this {self.owner} has {found}; drawing "
                    "it needs one: register_prior on its module, or requires_grad_(False) to hold "
                    "it."
                )
        if bool(((jacobian != 0).sum(1) > 1).any()):
            raise NotImplementedError(
                f"A prior of this {self.owner} is on a function of several hyperparameters; "
                "register priors on each."
            )


def _log_priors(
    parts: _Parts, values: tuple[Tensor, ...], derivatives: tuple[Tensor, ...]
) -> Tensor:
    total: Any = 0.0
    for (_, prior, _), z, slope in zip(parts.priors(), values, derivatives, strict=True):
        log_prob = prior.log_prob(z)
        total = total + log_prob.reshape(len(z), -1).sum(-1)
        total = total + slope.abs().log().reshape(len(z), -1).sum(-1)
    return total
