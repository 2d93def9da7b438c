"""Bayesian linear regression on features: a Gaussian process whose cost is linear in the rows.

    f(x) = z(x)' w, w ~ N(0, s I), y = f(x) + e, e ~ N(0, noise)

is the process with kernel s z(x)' z(x'), for random features an estimate of the kernel that they
are of. The rows enter through G = Z'Z (D x D), Z'y and y'y alone, so that further ones are added
exactly (Rasmussen & Williams 2006, section 2.1). In the eigenbasis of G the evidence of any s and
noise costs O(D).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.transforms.input import InputTransform
from botorch.posteriors import Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from linear_operator.operators import (
    BlockDiagLinearOperator,
    DiagLinearOperator,
    RootLinearOperator,
)
from torch import Tensor

from bayes.checks import check_query, check_training_data, chosen_outputs
from bayes.description import check_given, check_module, describe_module
from bayes.one_data_set import OneDataSet
from bayes.transformed_model import described
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.kernels.network import NNGPKernel, NTKKernel
from priors.kernels.random_features import FeatureMap, RandomFeatureKernel, random_features
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.transformed import apply_posterior_transform
from priors.posteriors.transforms import DEFAULT
from priors.randomness import RandomSource
from priors.representation import as_data, count

__all__ = ["WeightSpaceProcess"]

# Features of one block of rows.
_BLOCK = 2**24
_STATISTICS = ("gram", "cross", "square", "log_jacobian")  # of the rows, sums over them
# Where the evidence is maximised, logarithms on the model's scale.
_NOISE, _SCALE = (math.log(1e-6), math.log(1e2)), (math.log(1e-4), math.log(1e4))


class WeightSpaceProcess(OneDataSet):
    """A Gaussian process through features, for hundreds of thousands of rows.

    O(n D^2) time once and O(D^2) memory beside the rows, for D features; O(D^3) for a prediction of
    other hyperparameters or rows. The kernel is as given: learn it on a subset first
    (`GaussianProcess.fit`); `fit` learns its output scale and the noise, for each output.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`.
        kernel: An `NNGPKernel` or `NTKKernel` of a fully connected network, whose random features
            are drawn with its present variances; or a `priors.FeatureMap`, such as
            `UniversalFeatures`, or a `RandomFeatureKernel` of one.
        num_features: Width of the random features of a kernel.
        seed: Seed of the random features.
        input_transform: `DEFAULT` standardises by the training rows, None applies none; or a
            BoTorch `InputTransform`, copied.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree or values are not finite.
        NotImplementedError: a network that random features do not support.

    Attributes:
        outputscale: s of each output, `[m]`, on the model's scale.
        noise: Noise variance of each output, `[m]`, on the model's scale.

    Methods:
        fit: Learn output scale and noise; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        log_marginal_likelihood: The evidence.
        condition_on_observations: A model of further rows, exactly.
        sample_path: Functions drawn from the posterior.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    outputscale: Tensor
    noise: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    log_jacobian: Tensor
    like: Tensor
    num_rows: int

    _doubles = ("outputscale", "noise", *_STATISTICS)

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel | FeatureMap,
        *,
        num_features: int = 1024,
        seed: int = 0,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_training_data(owner, train_X, train_Y)
        if train_X.dim() != 2:
            raise ValueError(
                f"{owner} takes one data set [n, d], got train_X of shape {tuple(train_X.shape)}."
            )
        self.features = feature_map(owner, kernel, num_features, seed).to(train_X.device)
        self._num_features = num_features
        self._given = described(input_transform, outcome_transform)
        self._set_transforms(train_X, train_Y, input_transform, outcome_transform)
        ones = torch.ones(train_Y.shape[-1], dtype=torch.float64, device=train_X.device)
        self.register_buffer("outputscale", ones)
        self.register_buffer("noise", 0.1 * ones)
        self.register_buffer("like", train_X[:1].clone())
        for name, value in zip(_STATISTICS, self._statistics(train_X, train_Y), strict=True):
            self.register_buffer(name, value)
        self.num_rows = len(train_X)
        self.eval()

    def __repr__(self) -> str:
        """Rows, features and the present hyperparameters."""
        data = as_data(self.like, self.num_outputs).replace("1 row", count(self.num_rows, "row"))
        lines = [f"{type(self).__name__}({data}; {count(len(self.gram), 'feature')})"]
        for name in ("outputscale", "noise"):
            values = ", ".join(f"{value:.3g}" for value in getattr(self, name).tolist())
            lines.append(f"{name}: {values}")
        return "\n  ".join(lines)

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self.noise)

    def _z(self, X: Tensor) -> Tensor:
        """Features `[..., n, D]` of inputs in the user's units, float64."""
        return self.features(self.transformed_inputs(X)).double()

    def _statistics(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Z'Z `[D, D]`, Z'y `[D, m]`, y'y `[m]` and the log Jacobian of the outcomes, in blocks."""
        log_jacobian = Y.new_zeros((), dtype=torch.float64)
        if self.outcome_transform is not None:
            transform, original = self.outcome_transform.transform, Y
            Y = self.outcome_transform(Y)[0]
            each = transform.log_abs_det_jacobian(Y, original)
            log_jacobian = each.expand_as(Y).double().sum()
        Y = Y.double()
        with torch.no_grad():
            size = self._z(X[:1]).shape[-1]
            gram, cross = Y.new_zeros(size, size), Y.new_zeros(size, Y.shape[-1])
            rows = max(1, _BLOCK // size)
            for x, y in zip(X.split(rows), Y.split(rows), strict=True):
                z = self._z(x)
                gram += z.mT @ z
                cross += z.mT @ y
        return gram, cross, Y.square().sum(0), log_jacobian

    def fit(self) -> Self:
        """Maximise the evidence over output scale and noise, for each output.

        Returns:
            The model itself.
        """
        from scipy.optimize import minimize  # slow to load

        values, vectors = torch.linalg.eigh(self.gram)
        values = values.clamp_min(0).cpu().numpy()
        along = (vectors.mT @ self.cross).cpu().numpy()
        square = self.square.cpu().numpy()
        for k in range(self.num_outputs):

            def loss(at: np.ndarray, k: int = k) -> float:
                return -_evidence(values, along[:, k], square[k], self.num_rows, *np.exp(at))

            starts = [(s, v) for s in (-2.0, 0.0, 2.0) for v in (-6.0, -2.0, 0.0)]
            best = min(starts, key=lambda start: loss(np.array(start)))
            found = minimize(loss, best, method="L-BFGS-B", bounds=[_SCALE, _NOISE])
            self.outputscale[k], self.noise[k] = (float(v) for v in np.exp(found.x))
        return self

    def log_marginal_likelihood(self) -> Tensor:
        """Log density of the outcomes at the present output scale and noise.

        Returns:
            A scalar in nats, of all rows and outputs in the units of Y.
        """
        values, vectors = torch.linalg.eigh(self.gram)
        values = values.clamp_min(0).cpu().numpy()
        along = (vectors.mT @ self.cross).cpu().numpy()
        total = 0.0
        for k in range(self.num_outputs):
            total += _evidence(
                values,
                along[:, k],
                float(self.square[k]),
                self.num_rows,
                float(self.outputscale[k]),
                float(self.noise[k]),
            )
        return total - self.log_jacobian

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Posterior means `[m, D]` of w, and roots `[m, D, D]` of its covariances."""
        ratio = self.noise / self.outputscale
        eye = torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        root = torch.linalg.cholesky(self.gram + ratio[:, None, None] * eye)
        mean = torch.cholesky_solve(self.cross.mT.unsqueeze(-1), root).squeeze(-1)
        half = torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True)
        return mean, self.noise.sqrt()[:, None, None] * half

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Posterior at `X`, joint over its points, of rank D.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of y rather than of f.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A Gaussian posterior `[..., q, m]` in units of Y, or seen through the outcome transform.

        Raises:
            NotImplementedError: noise variances as a tensor.
        """
        owner = type(self).__name__
        check_query(owner, X, self.like)
        outputs = chosen_outputs(owner, output_indices, self.num_outputs)
        outputs = [k % self.num_outputs for k in outputs]
        if isinstance(observation_noise, Tensor):
            raise NotImplementedError(
                f"{owner} has a noise variance for each output; pass observation_noise=True."
            )
        mean, half = (part[outputs] for part in self._weights())
        z = self._z(X).unsqueeze(-3)  # [..., 1, q, D]
        location = (z @ mean.unsqueeze(-1)).squeeze(-1).to(X)  # [..., m, q]
        covariance: Any = RootLinearOperator((z @ half).to(X))
        if observation_noise:
            noise = self.noise[outputs].to(X).unsqueeze(-1).expand(location.shape)
            covariance = covariance + DiagLinearOperator(noise.contiguous())
        joint = (
            MultivariateNormal(location[..., 0, :], covariance[..., 0, :, :])
            if len(outputs) == 1
            else MultitaskMultivariateNormal(
                location.mT, BlockDiagLinearOperator(covariance), interleaved=False
            )
        )
        posterior = self._in_units_of_y(GaussianPosterior(joint), outputs)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def sample_path(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """Functions drawn from the posterior, for Thompson sampling; O(D) for each point.

        Args:
            sample_shape: How many.
            generator: Source of randomness.

        Returns:
            Maps X `[..., q, d]` to `[*sample_shape, ..., q, m]` in units of Y.
        """
        mean, half = self._weights()
        noise = RandomSource(generator, mean.device, mean.dtype).normal(
            *sample_shape, *mean.shape, 1
        )
        weights = mean + (half @ noise).squeeze(-1)  # [*sample_shape, m, D]

        def path(X: Tensor) -> Tensor:
            z = self._z(X)
            lead = [1] * (z.dim() - 2)
            w = weights.reshape(*sample_shape, *lead, *weights.shape[-2:])
            values = (z @ w.mT).to(X)
            return (
                values
                if self.outcome_transform is None
                else self.outcome_transform.transform(values)
            )

        return path

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Self:
        """A model of these rows and further ones, exactly; hyperparameters and transforms stay.

        O(n' D^2): the rows before are not looked at.

        Args:
            X: Inputs, `[n', d]`.
            Y: Outcomes, `[n', m]`.
            **kwargs: Ignored.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, or values are not finite.
            NotImplementedError: a batch of further rows.
        """
        self._check_further_rows(X, Y, self.like, self.like.new_zeros(1, self.num_outputs))
        new = copy.deepcopy(self)
        for name, value in zip(_STATISTICS, self._statistics(X, Y), strict=True):
            setattr(new, name, getattr(self, name) + value)
        new.num_rows = self.num_rows + len(X)
        return new

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write features, statistics of the rows and hyperparameters to one safetensors file.

        The rows themselves are not kept.

        Args:
            path: Target file; replaced in one step.
        """
        write_safetensors_atomically(
            path,
            {f"state.{name}": value for name, value in self.state_dict().items()},
            kind=type(self).__name__,
            description={
                "given": self._given,
                "num_rows": self.num_rows,
                "num_features": self._num_features,
                "features": describe_module(self.features),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | FeatureMap,
        *,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            kernel: The same as at construction.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
        """
        tensors, description = read_safetensors(path, kind=cls.__name__)
        given = {"input_transform": input_transform, "outcome_transform": outcome_transform}
        check_given(path, described(**given), description["given"])
        state = tensors_under("state", tensors)
        width = description["num_features"]
        features = feature_map(cls.__name__, kernel, width, 0)
        check_module(path, "feature map", features, description["features"])
        like = state["like"]
        Y = like.new_zeros(1, len(state["noise"]))
        if isinstance(input_transform, InputTransform):  # it learnt from all rows, not from this
            given["input_transform"] = copy.deepcopy(input_transform).eval()
        model = cls(like, Y, features, num_features=width, **given)
        model.load_state_dict(state)
        model.num_rows = description["num_rows"]
        return model


def feature_map(
    owner: str, kernel: Kernel | FeatureMap, num_features: int, seed: int
) -> FeatureMap:
    """A feature map of its own, without gradients."""
    if isinstance(kernel, RandomFeatureKernel) and kernel.active_dims is None:
        kernel = kernel.features
    if isinstance(kernel, NNGPKernel | NTKKernel):
        if kernel.active_dims is not None or kernel.batch_shape:
            raise NotImplementedError(
                f"{owner} takes kernels of all inputs and without a batch; select the columns of X."
            )
        kernel = random_features(
            kernel.network,
            num_features,
            kind="nngp" if isinstance(kernel, NNGPKernel) else "ntk",
            generator=torch.Generator().manual_seed(seed),
        )
    if not isinstance(kernel, FeatureMap):
        raise TypeError(
            f"{owner} needs an NNGPKernel, an NTKKernel or a priors FeatureMap, got "
            f"{type(kernel).__name__}; VariationalGaussianProcess takes every kernel."
        )
    return copy.deepcopy(kernel).requires_grad_(False)


def _evidence(
    values: np.ndarray, along: np.ndarray, square: float, rows: int, scale: float, noise: float
) -> float:
    """Log density of one output in nats, from the eigenvalues of G and Z'y in its eigenbasis."""
    inner = noise + scale * values
    log_det = (rows - len(values)) * math.log(noise) + np.log(inner).sum()
    quadratic = (square - (scale * along**2 / inner).sum()) / noise
    return float(-0.5 * (log_det + quadratic + rows * math.log(2 * math.pi)))
