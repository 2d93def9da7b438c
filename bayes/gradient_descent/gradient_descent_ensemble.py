"""The law of all networks of an architecture that gradient descent trains on the data.

An infinitely wide network is linear in its parameters, f = f_0 + J (theta - theta_0), and f_0 is a
Gaussian process with the NNGP kernel K. Gradient flow on

    1/2 sum_i (f(x_i) - y_i)^2 + ridge/2 |theta - theta_0|^2

at a learning rate eta moves every member of the ensemble by a linear map of its residuals
(1902.06720, section 2; the ridge adds to Theta in the exponent):

    f_t(x) = f_0(x) + T_t(x) (y - f_0(X)),   T_t(x) = Theta(x, X) g(Theta + ridge),
    g(a) = (1 - exp(-eta t a)) / a,

so that over random f_0 the ensemble is Gaussian with

    mean       T_t(x) y
    covariance K(x, x') - T_t(x) K(X, x') - K(x, X) T_t(x')' + T_t(x) K(X, X) T_t(x')'

(Lee et al. 2019, 1902.06720, eqs. 14 and 15; eq. 16 and the one after it at infinite time). It is
the posterior of a process only where K = Theta, that is where the readout alone is trained; else it
is what it is, the law of trained networks (He et al. 2020, 2007.05864, change the initialisation
so as to get the posterior of the process with the kernel Theta, `GaussianProcess(X, Y,
NTKKernel(network))` here).
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from typing import Any, Self

import gpytorch
import torch
from botorch.sampling.base import MCSampler
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from bayes.checks import warn_about_scale
from bayes.description import describe_values
from bayes.gradient_descent.filters import decay, left_out_weights, null_below, trained_weights
from bayes.processes.left_out import independent_rows
from bayes.standardised_model import StandardisedModel
from priors.kernels.network import NTKKernel
from priors.networks.infinite import InfiniteNetwork
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior
from priors.posteriors.transforms import DEFAULT
from priors.representation import as_data

__all__ = ["GradientDescentEnsemble"]


@dataclass(frozen=True)
class _Rows:
    """Of all rows at any time, in the eigenbasis V of Theta.

    Attributes:
        inputs: `[..., n, d]`.
        values: Eigenvalues, `[..., n]`.
        vectors: V, `[..., n, n]`.
        nngp: V' K V, `[..., n, n]`.
        targets: V' y, `[..., n, m]`.
        null: Eigenvalues below are rounding, `[..., 1]`.
    """

    inputs: Tensor
    values: Tensor
    vectors: Tensor
    nngp: Tensor
    targets: Tensor
    null: Tensor


class GradientDescentEnsemble(StandardisedModel):
    """The law of infinitely many infinitely wide networks trained by gradient descent.

    Each member starts at random weights and follows gradient flow on half the sum of its squared
    errors over the rows, for the time `time * learning_rate`, on the standardised scale.
    `torch.nn.MSELoss` of n rows and m outputs is 2 / (n m) of that sum: its learning rate times
    2 / (n m) is the one here. Gradient descent by steps follows the flow while the rate is well
    below `max_learning_rate`; above it diverges. The posterior of f is the exact distribution over
    members, at any time from one eigendecomposition, O(n^3).

    That of y adds noise: what an observation scatters about a member. It does not enter the
    training; `fit` learns it from rows left out.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`; one readout for each column.
        network: A `torch.nn.Module`, or an `InfiniteNetwork` or `NetworkPrior` with variances of
            its own; copied. Parameters that do not require a gradient are not trained.
        time: How long each member is trained; infinite to the end, 0 not at all (the NNGP prior).
            For steps of gradient descent, their number.
        learning_rate: Of the flow or of a step.
        ridge: Weight of half the squared distance from the initial weights, in the NTK
            parametrisation, in the loss.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, values are not finite, or a negative time or ridge.

    Attributes:
        time: Training time; may be set, and costs no new decomposition.
        ridge: May be set too.
        learning_rate: As given.
        noise: Noise variance of each output, `[m]`, on the model's scale.
        max_learning_rate: Of steps of gradient descent; they diverge above.

    Methods:
        fit: Learn variances, noise, a finite time and a positive ridge; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        leave_one_out: Each row's y given all the others.
        log_score: The sum of its log densities, which `fit` maximises.
        condition_on_observations: A model of further rows.
        fantasize: Such models of rows drawn from the posterior.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    _module_name = "network"

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        network: nn.Module,
        *,
        time: float = math.inf,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self._check(train_X, train_Y)
        if isinstance(network, Kernel):
            raise TypeError(
                f"{owner} takes the network itself, got the kernel {type(network).__name__}; pass "
                "its torch module, or kernel.network."
            )
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"{owner} needs a torch module, an InfiniteNetwork or a NetworkPrior, got "
                f"{type(network).__name__}."
            )
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"{owner} needs a positive learning_rate, got {learning_rate}.")
        kernel = NTKKernel(
            network if isinstance(network, InfiniteNetwork) else InfiniteNetwork(network)
        )
        if kernel.batch_shape:
            raise ValueError(
                f"{owner} takes one network, got one of batch shape {tuple(kernel.batch_shape)}."
            )
        if input_transform is None:
            warn_about_scale(owner, train_X, kernel)
        self.covar_module = copy.deepcopy(kernel).to(train_X)
        self._hold(train_X, train_Y, input_transform, outcome_transform, kernel)
        self.learning_rate = float(learning_rate)
        self.flow = _Flow(time, ridge).to(train_X)

    def __repr__(self) -> str:
        """Data, the training, and the present values of the hyperparameters."""
        head = f"{type(self).__name__}({as_data(self.train_X, self.num_outputs)})"
        training = [
            f"time: {self.time:.3g}",
            f"learning_rate: {self.learning_rate:.3g}",
            f"ridge: {self.ridge:.3g}",
        ]
        values = describe_values(self.covar_module) + describe_values(self.likelihood)
        return "\n  ".join([head, *training, *values])

    @property
    def network(self) -> InfiniteNetwork:
        """The network, with its variances."""
        return self.covar_module.network

    @property
    def time(self) -> float:
        """How long each member is trained."""
        return float(self.flow.raw_time.detach().double().exp())

    @time.setter
    def time(self, value: float) -> None:
        self.flow.set("time", value)

    @property
    def ridge(self) -> float:
        """Weight of half the squared distance from the initial weights in the loss."""
        return float(self.flow.raw_ridge.detach().double().exp())

    @ridge.setter
    def ridge(self, value: float) -> None:
        self.flow.set("ridge", value)

    @property
    def max_learning_rate(self) -> float:
        """2 / (largest eigenvalue of Theta + ridge): steps of gradient descent diverge above."""
        with torch.no_grad():
            return float(2 / (self._rows().values.max() + self.ridge))

    def _rows(self) -> _Rows:
        parts = {"covar_module": self.covar_module, **self._transforms()}
        found: _Rows = self._remembered(parts, self._computed_rows)
        return found

    def _computed_rows(self) -> _Rows:
        X = self.transformed_inputs(self.train_X)
        nngp, tangent = self.network.kernels(X)
        values, vectors = torch.linalg.eigh(tangent)
        return _Rows(
            X,
            values,
            vectors,
            vectors.mT @ nngp @ vectors,
            vectors.mT @ self.targets().mT,
            null_below(tangent).unsqueeze(-1),
        )

    def _moments(self, inputs: Tensor, *, joint: bool) -> tuple[Tensor, Tensor]:
        ridge, time = (part.double() for part in (self.flow.ridge, self.flow.time))
        time = time * self.learning_rate
        if self._follows_rows():
            X = self.transformed_inputs(self.train_X)
            targets = self.targets().mT
            nngp, tangent = self.network.kernels(X)
            to_queries, cross = self._crossed(inputs, X)
            moves = cross @ trained_weights(tangent, ridge, time)
        else:
            rows = self._rows()
            to_queries, cross = (part @ rows.vectors for part in self._crossed(inputs, rows.inputs))
            nngp, targets = rows.nngp, rows.targets
            with torch.no_grad():
                kept = decay(rows.values, ridge, time, rows.null)
            moves = cross * kept.unsqueeze(-2)
        mean = (moves @ targets).mT
        if joint:
            prior = self.network.nngp(inputs)
            both = moves @ to_queries.mT
            covariance = prior - both - both.mT + moves @ nngp @ moves.mT
            return mean, covariance.unsqueeze(-3)
        prior = self.network.nngp(inputs, diag=True)
        change = (moves @ nngp - 2 * to_queries) * moves
        return mean, (prior + change.sum(-1)).unsqueeze(-2)

    def _crossed(self, inputs: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """K and Theta `[..., q, n]` between queries `[..., q, d]` and rows `[..., n, d]`."""
        if X.dim() == 2:  # common rows meet all queries at once
            nngp, tangent = self.network.kernels(inputs.reshape(-1, inputs.shape[-1]), X)
            batch = inputs.shape[:-1]
            return nngp.unflatten(0, batch), tangent.unflatten(0, batch)
        batch = torch.broadcast_shapes(inputs.shape[:-2], X.shape[:-2])
        return self.network.kernels(
            inputs.expand(*batch, *inputs.shape[-2:]), X.expand(*batch, *X.shape[-2:])
        )

    def _left_out(self) -> tuple[Tensor, Tensor]:
        """Means and variances `[..., m, n]` of each row's y given the others, without noise."""
        nngp, tangent = self.network.kernels(self.transformed_inputs(self.train_X))
        time = self.flow.time.double() * self.learning_rate
        weights = left_out_weights(tangent, self.flow.ridge.double(), time)
        mean = self.targets() @ weights.mT
        own = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device) - weights
        variance = ((own @ nngp) * own).sum(-1)
        return mean, variance.clamp_min(0).unsqueeze(-2).expand_as(mean)

    def leave_one_out(self) -> PredictivePosterior:
        """What each training row's y is expected to be by networks trained on all other rows.

        Exact at every time, O(n^3) for all rows together. Hyperparameters and transforms stay,
        and have seen every row.

        Returns:
            A posterior `[..., n, m]` of y in units of Y. Only its marginals mean anything: each
            row is given other rows.
        """
        with torch.no_grad():
            mean, variance = self._left_out()
            variance = variance + self.noise.double().unsqueeze(-1)
        mean, variance = mean.to(self.train_X), variance.to(self.train_X)
        if self.num_outputs == 1:
            mean, variance = mean.squeeze(-2), variance.squeeze(-2)
        joint = independent_rows(mean, variance, self.num_outputs)
        if self.outcome_transform is None:
            return GaussianPosterior(joint)
        transform = self.outcome_transform.transform
        if isinstance(transform, AffineTransform):
            return GaussianPosterior(joint, transform)
        return TransformedPosterior(GaussianPosterior(joint), transform)

    def log_score(self) -> Tensor:
        """Sum of the log densities of each row's outcomes given the other rows.

        Trained networks have no evidence; this decides among networks, times and ridges of the
        same data.

        Returns:
            A scalar in nats, of all rows and outputs in the units of train_Y.
        """
        with torch.no_grad():
            return self._objective() - self._log_jacobian()

    def _objective(self) -> Tensor:
        mean, variance = self._left_out()
        variance = variance + self.noise.double().unsqueeze(-1)
        square = (self.targets() - mean).square() / variance
        return -0.5 * (square + variance.log() + math.log(2 * math.pi)).sum()

    def _costs(self) -> list[str]:
        found = self.network.costs()
        rows = self.train_X.shape[-2]
        if rows > 1000:
            found = [*found, f"{rows} rows, whose kernels are inverted in O(n^3): use a subset."]
        return found

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> Self:
        """Models trained on observations drawn from the posterior of y at `X` as well.

        Args:
            X: Where to observe, `[..., q, d]`.
            sampler: Draws the observations.
            observation_noise: Their noise variances, broadcasting with `[..., q, m]`, squared
                units of Y; the learnt ones if None.
            **kwargs: Ignored.

        Returns:
            A model with batch shape `[*sampler.sample_shape, ...]`.
        """
        noise = True if observation_noise is None else observation_noise
        return self.condition_on_observations(X, sampler(self.posterior(X, None, noise)))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: nn.Module | None = None,
        *,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass a network (and transforms, if the model was given its own) of
        the same make; learnt values come from the file.

        Args:
            path: The file.
            network: The same as at construction, with any variances; required.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no network was passed.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"{cls.__name__}.load needs the network as well, since {path} holds values and no "
                "code; call load(path, network) with one constructed like the saved one."
            )

        def make(X: Tensor, Y: Tensor, **options: Any) -> Any:
            return cls(X, Y, network, **options)

        return cls._load(path, make, input_transform, outcome_transform)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state as `torch.nn.Module` does; a finite time and a positive ridge are learnt.

        Args:
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            Missing and unexpected names.
        """
        found = super().load_state_dict(*args, **kwargs)
        self.flow.choose()
        return found

    def _construction(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}

    def _module(self) -> nn.Module:
        return self.covar_module

    def _covariance_of(self, inputs: Tensor) -> Tensor:
        return torch.stack(self.network.kernels(inputs))

    def _parts(self) -> dict[str, nn.Module]:
        return {"covar_module": self.covar_module, "flow": self.flow, **self._transforms()}


class _Flow(gpytorch.Module):
    """Time and ridge, whose logarithms are learnt where they are finite."""

    def __init__(self, time: float, ridge: float) -> None:
        super().__init__()
        for name, value in (("time", time), ("ridge", ridge)):
            raw = nn.Parameter(torch.zeros((), dtype=torch.float64, device="cpu"))
            self.register_parameter(f"raw_{name}", raw)
            constraint = Positive(transform=torch.exp, inv_transform=torch.log)
            self.register_constraint(f"raw_{name}", constraint)
            self.set(name, value)

    @property
    def time(self) -> Tensor:
        return self.raw_time.exp()

    @property
    def ridge(self) -> Tensor:
        return self.raw_ridge.exp()

    def set(self, name: str, value: float) -> None:
        """Set "time" or "ridge"."""
        if not value >= 0 or (name == "ridge" and value == math.inf):
            finite = " and finite" if name == "ridge" else ""
            raise ValueError(f"GradientDescentEnsemble needs a {name} >= 0{finite}, got {value}.")
        with torch.no_grad():
            new = torch.tensor(float(value), dtype=torch.float64, device="cpu")
            getattr(self, f"raw_{name}").copy_(new.log())
        self.choose()

    def choose(self) -> None:
        """Let those be learnt that can be: infinity and 0 stay what they are."""
        for raw in self.parameters():
            raw.requires_grad_(bool(raw.detach().isfinite()))
