"""The common base of the exact Gaussian and Student-t processes.

Both condition y = f(x) + noise, f a zero-mean process with a given kernel, on all rows by a
Cholesky factorisation. `ExactProcess` is BoTorch's `SingleTaskGP` with our transforms, solver
settings and files; its subclasses say what the conditional Gaussian of the kernel means for their
process and which marginal likelihood fits the kernel.

The mean is zero on the model's (standardised) scale, because the prior is the kernel: the same
prior can then be given to every engine. Outputs are independent given the kernel and share it.
"""

from __future__ import annotations

import copy
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import InputDataWarning
from botorch.models import SingleTaskGP
from botorch.models.utils import add_output_dim, gpt_posterior_settings
from botorch.posteriors import Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, Likelihood
from gpytorch.means import ZeroMean
from linear_operator.operators import BlockDiagLinearOperator
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from bayes.checks import (
    check_query,
    check_training_data,
    check_unit,
    check_weights,
    chosen_outputs,
    warn_about_scale,
)
from bayes.conditioning import unrepeated
from bayes.description import (
    FINGERPRINT_ROWS,
    check_fingerprint,
    check_given,
    check_module,
    describe_module,
    describe_transform,
    describe_values,
)
from bayes.noise import LessNoise, NoiseLevel, learnt_noise
from bayes.outcome import ElementwiseOutcome
from bayes.processes.fitting import Watch, maximise
from bayes.processes.left_out import left_out_moments
from bayes.processes.marginal_likelihood import (
    JointMarginalLogLikelihood,
    exact_solves,
    relative_jitter,
)
from bayes.processes.prediction import conditional
from bayes.processes.rows import ProcessRows, takes_missing
from bayes.processes.sample_path import SamplePath
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.kernels.network import NNGPKernel, NTKKernel, columns_together
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.posteriors.transforms import DEFAULT, fitted_input_transform, make_outcome_transform
from priors.random_state import seeded
from priors.representation import as_data

__all__ = ["ExactProcess"]


class ExactProcess(ProcessRows, ABC):
    """An exactly conditioned process; its subclasses are the models and document the arguments."""

    _has_unknown_scale = False  # which multiplies the kernel, beside its own variances

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        train_Yvar: Tensor | None = None,
        train_weights: Tensor | None = None,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        """See the class for the arguments."""
        owner = type(self).__name__
        missing = takes_missing(input_transform)
        check_training_data(owner, train_X, train_Y, train_Yvar, missing=missing)
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"{owner} needs a gpytorch kernel, got {type(kernel).__name__}; "
                "priors.NNGPKernel(module) makes one of a torch module."
            )
        if input_transform is None:
            warn_about_scale(owner, train_X, kernel)
        if train_Yvar is not None and likelihood is not None:
            raise ValueError(f"{owner} takes train_Yvar or a likelihood, not both.")
        if train_weights is not None:
            train_weights = check_weights(owner, train_weights, train_Y)
            if train_Yvar is not None or isinstance(likelihood, FixedNoiseGaussianLikelihood):
                raise ValueError(
                    f"{owner} weighs rows by their learnt noise; divide known noise variances by "
                    "the weights instead."
                )
        outcome = make_outcome_transform(outcome_transform, train_Y)
        check_unit(owner, outcome, train_Y)
        noise = copy.deepcopy(likelihood)
        if train_Yvar is None and likelihood is None:
            of_each = train_Y.mT.shape[:-1] if train_Y.shape[-1] > 1 else train_Y.shape[:-2]
            noise = learnt_noise(of_each, train_X)
        super().__init__(
            train_X,
            train_Y,
            train_Yvar,
            likelihood=noise,
            covar_module=copy.deepcopy(kernel),
            mean_module=ZeroMean(),
            outcome_transform=None if outcome is None else ElementwiseOutcome(outcome),
            input_transform=fitted_input_transform(
                input_transform, train_X, columns_together(kernel)
            ),
        )
        self._hyperparameter_batch = train_Y.shape[:-2]
        self._hold(train_X, train_Y, train_Yvar, train_weights)
        self.eval()
        self._given = {
            "likelihood": likelihood is not None,
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }

    def __repr__(self) -> str:
        """Data and the present values of the hyperparameters."""
        head = f"{type(self).__name__}({as_data(self.train_X, self.num_outputs)})"
        values = describe_values(self.covar_module) + describe_values(self.likelihood)
        return "\n  ".join([head, *values])

    @abstractmethod
    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        """What `fit` maximises."""

    @abstractmethod
    def _process_posterior(
        self, gaussian: MultivariateNormal, transform: AffineTransform | None
    ) -> PredictivePosterior:
        """Posterior of the process, given the Gaussian that conditioning the kernel gives.

        Args:
            gaussian: On the model's scale.
            transform: From there to the units of Y, if it is affine.
        """

    def _left_out_posterior(
        self, mean: Tensor, variance: Tensor, transform: AffineTransform | None
    ) -> PredictivePosterior:
        """Posterior of each row's outcomes given the others, from those of the kernel's Gaussian.

        Args:
            mean: On the model's scale, `[..., n]`, of several outputs `[..., m, n]`.
            variance: Of the same shape, noise included.
            transform: From there to the units of Y, if it is affine.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed form of its rows given the others; "
            "use K-fold cross-validation."
        )

    def fit(
        self,
        *,
        num_restarts: int = 0,
        max_iter: int | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
        max_rows: int | None = None,
    ) -> Self:
        """Maximise marginal likelihood times priors over kernel and noise, from the present values.

        The optimiser starts there and, where noise is learnt, once more from hardly any: there are
        often two optima, of which the better is kept (`bayes.noise.LessNoise` says how it judges).
        Stopped by a limit or by Ctrl-C, it keeps the best so far and warns.

        Args:
            num_restarts: Further starts from draws of the hyperparameters' priors, of which the
                best is kept: with many length scales there are several optima.
            max_iter: Iterations of the optimiser for each start.
            timeout: Seconds after which no evaluation is started.
            progress: Show a bar; None shows it if more than ten seconds are expected.
            optimizer_kwargs: Passed to `scipy.optimize.minimize`, such as
                `{"options": {"gtol": 1e-6}}`; L-BFGS-B without a method.
            seed: Seed of the restarts and of the choice of rows; the global generator is left as it
                was.
            max_rows: Rows from which hyperparameters are learnt, drawn at random if there are more;
                all rows if None. Predictions are of all rows in any case: one factorisation,
                O(n^3), instead of one for each evaluation.

        Returns:
            The model itself.

        Raises:
            ValueError: restarts of a model without priors, or a negative number.
            botorch.exceptions.ModelFittingError: no start has a finite likelihood; says which
                hyperparameter ran away.
        """
        if num_restarts < 0 or (max_iter is not None and max_iter < 1):
            raise ValueError(
                f"fit needs num_restarts >= 0 and max_iter >= 1, got {num_restarts} and {max_iter}."
            )
        if max_rows is not None:
            if max_rows < 1:
                raise ValueError(f"fit needs max_rows >= 1, got {max_rows}.")
            if self.train_X.shape[-2] > max_rows:
                return self._fit_on_some(
                    max_rows,
                    num_restarts=num_restarts,
                    max_iter=max_iter,
                    timeout=timeout,
                    progress=progress,
                    optimizer_kwargs=optimizer_kwargs,
                    seed=seed,
                )
        mll = self._marginal_log_likelihood()
        less_noise = self._less_noise()
        if any(parameter.requires_grad for parameter in self.parameters()):
            watch = Watch(
                type(self).__name__,
                device=self.train_X.device,
                timeout=timeout,
                progress=progress,
                num_starts=1 + (less_noise is not None) + num_restarts,
                reasons=self._costs,
            )
            self.train()
            try:
                with exact_solves(), seeded(seed, self.train_X.device):
                    maximise(
                        self,
                        lambda: self._objective(mll),
                        watch,
                        num_restarts=num_restarts,
                        max_iter=max_iter,
                        optimizer_kwargs=optimizer_kwargs,
                        less_noise=less_noise,
                    )
            finally:
                self.eval()
        return self

    def _fit_on_some(self, max_rows: int, *, seed: int, **options: Any) -> Self:
        """Take the hyperparameters that some random rows have, in the units of all rows."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.train_X.shape[-2], generator=generator, device="cpu")
        index = order[:max_rows].sort().values.to(self.train_X.device)
        some = self._copied()

        def chosen(rows: Tensor | None) -> Any:
            return None if rows is None else rows[..., index, :]

        rows = (self.train_X, self.train_Y, self._known_noise(), self.train_weights)
        some._condition_on(*map(chosen, rows))
        some.fit(seed=seed, **options)
        learnt = dict(some.named_parameters())
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(learnt[name])
        return self

    def _less_noise(self) -> LessNoise | None:
        """The other start of a fit."""
        level, num_rows = NoiseLevel.of(self.likelihood), self.train_targets.shape[-1]
        if not self._has_unknown_scale:
            return LessNoise.beside(level, num_rows)
        gaussian = JointMarginalLogLikelihood(self.likelihood, self)
        return LessNoise.beside(level, num_rows, lambda: self._objective(gaussian))

    def _objective(self, mll: JointMarginalLogLikelihood) -> Tensor:
        """Log marginal likelihood and log priors in training mode, nats per row."""
        X = self._for_each_output(self.transform_inputs(unrepeated(self.train_X)))
        prior = MultivariateNormal(self.mean_module(X), self.covar_module(X))
        objective: Tensor = mll(prior, self.train_targets, X)
        return objective

    def _costs(self) -> list[str]:
        """What makes an evaluation of the marginal likelihood slow, and what would be cheaper."""
        kernels = (k for k in self.covar_module.modules() if isinstance(k, NNGPKernel | NTKKernel))
        found = [reason for kernel in kernels for reason in kernel.network.costs()]
        rows = self.train_targets.shape[-1]
        if rows > 2000:
            found.append(f"{rows} rows, whose covariance is factorised in O(n^3): use a subset.")
        return list(dict.fromkeys(found))

    def log_marginal_likelihood(self) -> Tensor:
        """Log density of the outcomes at the present hyperparameters, without their priors.

        The evidence that decides among kernels or networks of the same data.

        Returns:
            A scalar in nats, of all rows and outputs in the units of train_Y.
        """
        self.eval()
        targets = self.train_targets
        with torch.no_grad(), exact_solves():
            evidence = self._log_evidence()
            outcome = getattr(self, "outcome_transform", None)
            if outcome is not None:
                z = targets.unsqueeze(-1) if self.num_outputs == 1 else targets.mT
                transform = outcome.transform
                evidence = evidence - transform.log_abs_det_jacobian(z, transform(z)).sum()
        return evidence

    def _log_evidence(self) -> Tensor:
        """Log density of the outcomes on the model's scale, a scalar."""
        mll = self._marginal_log_likelihood()
        rows = self.train_inputs
        return mll.evidence(self.forward(*rows), self.train_targets, *rows)

    def posterior(  # type: ignore[override]  # BoTorch's own classes differ among themselves
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`, joint over its points.

        Means, variances, quantiles and densities of many queries are computed in blocks; their
        covariance only where it is asked for, as samples and `joint_log_prob` do, and then
        of the model as it was: one that has changed since raises ValueError.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of y rather than of f. A tensor `[..., q, m]` gives the
                noise variances in squared units of Y.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y.
        """
        owner = type(self).__name__
        check_query(owner, X, self.train_X, missing=takes_missing(self._input_transform))
        outputs = chosen_outputs(owner, output_indices, self.num_outputs)
        outcome = getattr(self, "outcome_transform", None)
        self.eval()
        with exact_solves(), gpt_posterior_settings():
            affine = outcome.of_outputs(outputs) if outcome is not None and outcome.affine else None
            posterior = self._predict(X, outputs, observation_noise, affine)
        if outcome is not None and not outcome.affine:
            posterior = TransformedPosterior(posterior, outcome.of_outputs(outputs))
        return apply_posterior_transform(posterior_transform, posterior, X)

    def leave_one_out(self) -> PredictivePosterior:
        """What each training row's y was expected to be, given all the other rows.

        Hyperparameters stay as they are, and so do the transforms, whose standardisation has seen
        every row: what `set_train_data` without row i and `posterior(observation_noise=True)` give
        at row i, at the cost of one evaluation of the marginal likelihood. Leave-one-out scores are
        `model.leave_one_out().log_prob(model.train_Y)`.

        Returns:
            A posterior `[..., n, m]` of y in units of Y. Only its marginals mean anything: each
            row is given other rows.

        Raises:
            NotImplementedError: the process has no closed form of it.

        Source: Rasmussen & Williams 2006, eq. 5.10-5.12.
        """
        self.eval()
        outcome = getattr(self, "outcome_transform", None)
        rows = self.train_inputs
        with exact_solves(), gpt_posterior_settings():
            prior = self.likelihood(self.forward(*rows), *rows)
            with relative_jitter(prior.lazy_covariance_matrix.diagonal(dim1=-2, dim2=-1)):
                mean, variance = left_out_moments(prior, self.train_targets)
        affine = outcome.transform if outcome is not None and outcome.affine else None
        posterior = self._left_out_posterior(mean, variance, affine)
        if outcome is not None and not outcome.affine:
            posterior = TransformedPosterior(posterior, outcome.transform)
        return posterior

    def sample_path(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> SamplePath:
        """Functions drawn from the posterior of f, for Thompson sampling and pictures.

        Args:
            sample_shape: How many independent ones.
            generator: Source of randomness; torch's global one if None.

        Returns:
            Takes points `[q, d]`, again and again, and returns values `[*sample_shape, q, m]`.

        Raises:
            NotImplementedError: a batch of models, or an outcome transform that is not affine.
        """
        outcome = self._outcome
        if self.train_Y.dim() != 2 or not (outcome is None or outcome.affine):
            raise NotImplementedError(
                f"{type(self).__name__}.sample_path needs one set of rows [n, d] and an affine "
                "outcome transform; posterior(X).rsample() draws at given points in any case."
            )
        return SamplePath(self, sample_shape, generator)

    def _predict(
        self,
        X: Tensor,
        outputs: Sequence[int],
        observation_noise: bool | Tensor,
        transform: AffineTransform | None,
    ) -> PredictivePosterior:
        """Posterior of some outputs; `transform` is from the model's scale to the units of Y."""
        return self._process_posterior(self._conditional(X, outputs, observation_noise), transform)

    def _conditional(
        self, X: Tensor, outputs: Sequence[int], observation_noise: bool | Tensor
    ) -> MultivariateNormal:
        """N(K* K^-1 y, K** - K* K^-1 K*') of some outputs on the model's scale."""
        X = self.transform_inputs(X)
        if self.num_outputs > 1:
            X, _ = add_output_dim(X=X, original_batch_shape=self._input_batch_shape)
        each = self._apply_noise(X, conditional(self, X), observation_noise)
        if self.num_outputs == len(outputs) == 1:
            return each
        mean, covariance = each.mean, each.lazy_covariance_matrix
        if self.num_outputs == 1:
            mean, covariance = mean.unsqueeze(-2), covariance.unsqueeze(-3)
        if len(outputs) == 1:
            return MultivariateNormal(mean[..., outputs[0], :], covariance[..., outputs[0], :, :])
        if list(outputs) != list(range(self.num_outputs)):
            mean, covariance = mean[..., outputs, :], covariance[..., outputs, :, :]
        joint = BlockDiagLinearOperator(covariance)
        return MultitaskMultivariateNormal(mean.mT, joint, interleaved=False)

    @staticmethod
    def _validate_tensor_args(
        X: Tensor, Y: Tensor, Yvar: Tensor | None = None, strict: bool = True
    ) -> None:
        # BoTorch warns about float32 by type; users of this package choose it knowingly.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The model inputs are of type", InputDataWarning)
            SingleTaskGP._validate_tensor_args(X=X, Y=Y, Yvar=Yvar, strict=strict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write data, learnt values and what identifies the kernel to one safetensors file.

        Args:
            path: Target file; replaced in one step.

        Raises:
            NotImplementedError: a batch of models that conditioning made of one.
        """
        if self.train_Y.shape[:-2] != self._hyperparameter_batch:
            raise NotImplementedError(
                f"This batch {tuple(self.train_Y.shape[:-2])} of {type(self).__name__}s was "
                "made by conditioning and cannot be saved; construct one model from the rows "
                "of each and save those."
            )
        tensors = {f"state.{name}": value for name, value in self.state_dict().items()}
        tensors.update(train_X=self.train_X, train_Y=self.train_Y)
        if self.train_Yvar is not None:
            tensors["train_Yvar"] = self.train_Yvar
        if self.train_weights is not None:
            tensors["train_weights"] = self.train_weights
        tensors.update(self._further_tensors(), fingerprint=self._fingerprint())
        write_safetensors_atomically(
            path,
            tensors,
            kind=type(self).__name__,
            description={
                "construction": self._construction(),
                "given": self._given,
                "kernel": describe_module(self.covar_module),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None = None,
        *,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass a kernel (and a likelihood and transforms, if the model was
        given its own) of the same make; their learnt values come from the file.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values; required.
            likelihood: The same as at construction.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no kernel was passed.
        """
        return cls._load(path, kernel, {}, likelihood, input_transform, outcome_transform)

    @classmethod
    def _load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None,
        further: Mapping[str, Any],
        likelihood: Likelihood | None,
        input_transform: Any,
        outcome_transform: Any,
    ) -> Self:
        """`load`, with further arguments of the constructor in place of those in the file."""
        tensors, description = read_safetensors(path, kind=cls.__name__)
        if not isinstance(kernel, Kernel):
            classes = dict(description["kernel"]["classes"])
            raise TypeError(
                f"{cls.__name__}.load needs the kernel as well, since {path} holds values and "
                f"no code; call load(path, kernel) with a {classes['']} that is constructed "
                "like the saved one."
            )
        passed = {
            "likelihood": likelihood is not None,
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }
        check_given(path, passed, description["given"])
        check_module(path, "kernel", kernel, description["kernel"])
        known = tensors.get("train_Yvar")
        later = known is not None and (likelihood is not None or bool(known.isnan().any()))
        if known is not None and not later:
            further = {**further, "train_Yvar": known}
        if likelihood is not None:
            further = {**further, "likelihood": likelihood}
        model = cls(
            tensors["train_X"],
            tensors["train_Y"],
            kernel,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
            **{**description["construction"], **further},
        )
        model._hold(tensors["train_X"], tensors["train_Y"], known, tensors.get("train_weights"))
        model.load_state_dict(tensors_under("state", tensors))
        check_fingerprint(path, "kernel", model._fingerprint(), tensors["fingerprint"])
        model._take_further(tensors)
        return model

    def _construction(self) -> dict[str, Any]:
        """JSON-serialisable arguments of the constructor beyond those of this class."""
        return {}

    def _further_tensors(self) -> dict[str, Tensor]:
        """What else `save` writes, by name."""
        return {}

    def _take_further(self, tensors: Mapping[str, Tensor]) -> None:
        """Take from a file's tensors what `_further_tensors` wrote."""

    def _fingerprint(self) -> Tensor:
        """Kernel values at the first rows: they tell apart what parameter names cannot."""
        with torch.no_grad(), exact_solves():
            rows = self.transform_inputs(self.train_X[..., :FINGERPRINT_ROWS, :])
            return self.covar_module(rows).to_dense()
