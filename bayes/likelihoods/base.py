"""What a likelihood is: the law of outcomes given the outputs of a network.

p(Y | f, parameters) for Y `[n, m]` and network outputs f `[..., n, k]`, rows independent given f.
A likelihood's own parameters (a noise variance, cut points) are unconstrained numbers with
independent normal priors, so that samplers move in R^d; `constrained` says what they stand for.
Leading dimensions `[...]` are of chains and draws; f and the parameters `[..., p]` share them.
Real-valued outcomes, and what is said of them here, are on the model's (standardised) scale.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from botorch.posteriors import Posterior
from torch import Tensor

from priors.posteriors.categorical import ClassProbabilityPosterior
from priors.posteriors.draws import EmpiricalPosterior
from priors.representation import count

__all__ = [
    "Likelihood",
    "NormalPrior",
    "beside_rows",
    "check_functions",
    "check_one_column",
    "check_whole_numbers",
    "per_draw",
    "per_row",
]


@dataclass(frozen=True)
class NormalPrior:
    """Independent normal priors of a parameter's p unconstrained numbers.

    Attributes:
        mean: Means, p numbers.
        std: Standard deviations, p numbers > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        fine = len(self.mean) == len(self.std) and all(
            math.isfinite(mean) and math.isfinite(std) and std > 0
            for mean, std in zip(self.mean, self.std, strict=False)
        )
        if not fine:
            raise ValueError(
                "A normal prior needs finite means and as many finite deviations > 0, got means "
                f"{self.mean} and deviations {self.std}."
            )

    @classmethod
    def repeated(cls, mean: float, std: float, number: int) -> Self:
        """The same prior for several numbers."""
        return cls((float(mean),) * number, (float(std),) * number)

    def __len__(self) -> int:
        return len(self.mean)

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations, each `[p]`."""
        return like.new_tensor(self.mean), like.new_tensor(self.std)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` `[..., p]`, `[...]`, in nats."""
        mean, std = self.tensors(value)
        square = ((value - mean) / std).square()
        return -0.5 * (square + (2 * torch.pi * std.square()).log()).sum(-1)


class Likelihood(ABC):
    """The law of outcomes given network outputs and a few parameters.

    Subclasses are frozen dataclasses whose fields are JSON values: `BayesianNetwork.save` writes
    them.

    Attributes:
        real_valued: Whether outcomes are real numbers, which are standardised; class numbers and
            counts are not.
        takes_variances: Whether known noise variances can take the place of its own.
    """

    real_valued: ClassVar[bool] = True
    takes_variances: ClassVar[bool] = False

    @property
    def classes(self) -> int | None:
        """Number of classes; None where outcomes are not classes, or before `fitted_to`."""
        return getattr(self, "num_classes", None)

    def num_outputs(self, num_columns: int) -> int:
        """Columns of a posterior for m columns of outcomes: m, or the number of classes."""
        return num_columns if self.classes is None else self.classes

    @abstractmethod
    def fitted_to(self, Y: Tensor, num_functions: int) -> Self:
        """Itself with what it takes from the training rows, such as the number of classes.

        Args:
            Y: Outcomes in the user's units, `[n, m]`.
            num_functions: k, outputs of the network.

        Raises:
            ValueError: outcomes that it cannot give, or another number of outputs than it needs.
        """

    def check_outcomes(self, Y: Tensor, name: str = "Y") -> None:  # noqa: B027
        """Refuse outcomes that it cannot give, as far as it is fitted; all are fine by default.

        Args:
            Y: Outcomes in the user's units, `[..., n, m]`.
            name: Of the argument, for the message.

        Raises:
            ValueError: an outcome that it cannot give.
        """

    @abstractmethod
    def priors(self, num_columns: int) -> dict[str, NormalPrior]:
        """Priors of its unconstrained parameters by name, for m columns of outcomes."""

    @abstractmethod
    def log_prob(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        """Pointwise log likelihood in nats, differentiable in f and the parameters.

        Args:
            Y: Outcomes, `[n, m]`.
            f: Network outputs, `[..., n, k]`.
            parameters: By name, `[..., p]`.
            Yvar: Known noise variances, broadcasting with Y, where `takes_variances`.

        Returns:
            `[..., n, m]`.
        """

    @abstractmethod
    def noise_free(self, f: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What outcomes scatter about, `[..., n, num_outputs]`.

        The location of real outcomes, the rate of counts, the probabilities of classes.

        Args:
            f: Network outputs, `[..., n, k]`.
            parameters: By name, `[..., p]`.
        """

    @abstractmethod
    def of_outcomes(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
        Yvar: Tensor | None = None,
    ) -> Posterior:
        """The predictive posterior of outcomes, the average over S draws.

        Args:
            f: Network outputs, `[S, ..., q, k]`.
            parameters: By name, `[S, p]`.
            outputs: Which outputs, of `num_outputs`.
            log_weights: Of the draws, `[S]`; equal if None.
            Yvar: Known noise variances of all outputs, `[..., q, m]`, where `takes_variances`.
        """

    @abstractmethod
    def sample(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        Yvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Outcomes drawn for each draw of f, `[..., n, m]`.

        Args:
            f: Network outputs, `[..., n, k]`.
            parameters: By name, `[..., p]`.
            Yvar: Known noise variances, where `takes_variances`.
            generator: Source of randomness.
        """

    @abstractmethod
    def constrained(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What its parameters `[..., p]` stand for, by name: variances, cut points."""

    def of_functions(
        self,
        f: Tensor,
        parameters: Mapping[str, Tensor],
        outputs: Sequence[int],
        log_weights: Tensor | None = None,
    ) -> EmpiricalPosterior:
        """The posterior of what is noise-free, `[..., q, num_outputs]`: the draws themselves.

        Args:
            f: Network outputs, `[S, ..., q, k]`.
            parameters: By name, `[S, p]`.
            outputs: Which outputs, of `num_outputs`.
            log_weights: Of the draws, `[S]`; equal if None.
        """
        kind = EmpiricalPosterior if self.classes is None else ClassProbabilityPosterior
        each = {name: beside_rows(value, f) for name, value in parameters.items()}
        return kind(self.noise_free(f, each)[..., outputs], log_weights)

    def hessian(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        """Second derivatives in f of the log likelihood of each row, `[..., n, k, k]`.

        Args:
            Y: Outcomes, `[n, m]`.
            f: Network outputs, `[..., n, k]`.
            parameters: By name, `[..., p]`.
            Yvar: Known noise variances, broadcasting with Y, where `takes_variances`.
        """
        lead, number = f.shape[:-2], f.shape[:-2].numel()
        known = Y if Yvar is None else Yvar.expand_as(Y)  # a place holder if None

        def of_row(f: Tensor, y: Tensor, var: Tensor, own: dict[str, Tensor]) -> Tensor:
            variances = None if Yvar is None else var[None]
            return self.log_prob(y[None], f[None], own, variances).sum()

        of_rows = torch.func.vmap(torch.func.hessian(of_row), (0, 0, 0, None))
        found = torch.func.vmap(of_rows, (0, None, None, 0))(
            f.reshape(number, *f.shape[-2:]),
            Y,
            known,
            {
                name: value.expand(*lead, value.shape[-1]).reshape(number, -1)
                for name, value in parameters.items()
            },
        )
        return found.reshape(*lead, *found.shape[1:])

    def curvature(
        self, Y: Tensor, f: Tensor, parameters: Mapping[str, Tensor], Yvar: Tensor | None = None
    ) -> Tensor:
        """Curvature of minus the log likelihood of each row in f, nowhere negative.

        That of `hessian` without its negative part, or the expected one where that has a simple
        form and the other may be negative.

        Args:
            Y: Outcomes, `[n, m]`.
            f: Network outputs, `[..., n, k]`.
            parameters: By name, `[..., p]`.
            Yvar: Known noise variances, broadcasting with Y, where `takes_variances`.

        Returns:
            Positive semidefinite, `[..., n, k, k]`.
        """
        found = -self.hessian(Y, f, parameters, Yvar)
        if found.shape[-1] == 1:
            return found.clamp_min(0)
        values, vectors = torch.linalg.eigh((found + found.mT) / 2)
        return (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT

    def description(self) -> dict[str, Any]:
        """Class name and fields as JSON values."""
        return {"class": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]


def per_row(parameter: Tensor) -> Tensor:
    """A parameter `[..., p]` beside values `[..., n, p]`."""
    return parameter.unsqueeze(-2)


def beside_rows(parameter: Tensor, f: Tensor) -> Tensor:
    """A parameter of draws `[S, p]` with the batch dimensions of f `[S, ..., q, k]`."""
    return parameter.reshape(len(parameter), *[1] * (f.dim() - 3), parameter.shape[-1])


def per_draw(parameter: Tensor, f: Tensor) -> Tensor:
    """A parameter of draws `[S, p]` beside values `[S, ..., q, p]`, f `[S, ..., q, k]`."""
    return per_row(beside_rows(parameter, f))


def check_functions(likelihood: Likelihood, found: int, needed: int, why: str) -> None:
    """Refuse a network with another number of outputs than a likelihood needs."""
    if found != needed:
        raise ValueError(
            f"The network has {count(found, 'output')}, but {type(likelihood).__name__} needs "
            f"{needed}: {why}. Its last layer must have {count(needed, 'output')}."
        )


def check_one_column(likelihood: Likelihood, Y: Tensor, name: str) -> None:
    """Refuse several columns of classes."""
    if Y.shape[-1] != 1:
        raise ValueError(
            f"{type(likelihood).__name__} needs {name} as one column of class numbers [n, 1], got "
            f"shape {tuple(Y.shape)}; class indicators become class numbers by "
            f"{name}.argmax(-1, keepdim=True)."
        )


def check_whole_numbers(
    likelihood: Likelihood, Y: Tensor, name: str, what: str, limit: int | None
) -> None:
    """Refuse outcomes that are not whole numbers from 0 to below a limit."""
    bad = (Y != Y.round()) | (Y < 0)
    if limit is not None:
        bad = bad | (Y >= limit)
    if bool(bad.any()):
        wanted = "0, 1, ..." if limit is None else f"0, 1, ..., {limit - 1}"
        raise ValueError(
            f"{type(likelihood).__name__} needs {name} of {what} {wanted} as whole "
            f"numbers, got {Y[bad][0].item():g} in {int(bad.sum())} of {Y.numel()} values."
        )
