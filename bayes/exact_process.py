"""What the exact Gaussian and Student-t processes share.

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import gpytorch
import linear_operator
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import InputDataWarning
from botorch.models import SingleTaskGP
from botorch.models.utils import add_output_dim, gpt_posterior_settings
from botorch.posteriors import Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from bayes.checks import check_query, check_training_data, chosen_outputs
from bayes.description import describe_module, describe_transform, differing_parts, same_values
from bayes.outcome import ElementwiseOutcome
from priors.files import read_safetensors, write_safetensors_atomically
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.posteriors.transforms import DEFAULT, make_input_transform, make_outcome_transform
from priors.random_state import seeded

__all__ = ["ExactProcess", "JointMarginalLogLikelihood", "exact_solves"]

_FINGERPRINT_ROWS = 8


@contextmanager
def exact_solves() -> Iterator[None]:
    """Cholesky factorisations whatever the size, whatever other imports set globally.

    Importing BoTorch changes GPyTorch's global solver settings; these are the ones this package
    is tested with.
    """
    with ExitStack() as stack:
        for setting in (
            linear_operator.settings.max_cholesky_size(2**31),
            linear_operator.settings.cholesky_max_tries(6),
            linear_operator.settings.fast_computations(
                covar_root_decomposition=False, log_prob=False, solves=False
            ),
            gpytorch.settings.max_eager_kernel_size(2**31),
        ):
            stack.enter_context(setting)
        yield


class JointMarginalLogLikelihood(ExactMarginalLogLikelihood):
    """Log marginal likelihood of all rows and outputs, plus each log prior once, per row.

    GPyTorch's own returns one value per output, each with all priors added, so that the priors of
    a kernel shared by m outputs count m times.
    """

    def forward(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """The objective, a scalar, in nats per row.

        Args:
            function_dist: Prior of f at the training rows, `[..., n]` with outputs as batch.
            target: Outcomes on the model's scale, of the same shape.
            *params: Passed to the likelihood.
            **kwargs: Passed to the likelihood.
        """
        prior = self.likelihood(function_dist, *params, **kwargs)
        total = self.log_marginal(prior, target)
        for _, module, prior_of_parameter, closure, _ in self.model.named_priors():
            total = total + prior_of_parameter.log_prob(closure(module)).sum()
        return total / function_dist.event_shape.numel()

    def log_marginal(self, prior: MultivariateNormal, target: Tensor) -> Tensor:
        """Log density of the targets, a scalar in nats.

        Args:
            prior: Kernel matrix with the noise on its diagonal, `[..., n]`.
            target: Outcomes, `[..., n]`.
        """
        return prior.log_prob(target).sum()


class ExactProcess(SingleTaskGP, ABC):
    """An exactly conditioned process; subclasses are the models to use.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`, any number of columns.
        kernel: Prior covariance of f; copied, so the learnt values are in `covar_module`. It is
            used as it is: wrap it in `gpytorch.kernels.ScaleKernel` for a learnt output scale.
        train_Yvar: Known noise variances, `[..., n, m]`, units of Y squared. Without them a
            single noise variance per output is learnt.
        likelihood: A GPyTorch Gaussian likelihood to use instead, copied.
        input_transform: `DEFAULT` standardises by the training rows, None is off, or a BoTorch
            `InputTransform`.
        outcome_transform: `DEFAULT` standardises by the training rows, None is off, or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree or values are not finite.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        train_Yvar: Tensor | None = None,
        likelihood: Likelihood | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        owner = type(self).__name__
        check_training_data(owner, train_X, train_Y, train_Yvar)
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"{owner} needs a gpytorch kernel, got {type(kernel).__name__}; "
                "priors.NNGPKernel(module) makes one of a torch module."
            )
        if train_Yvar is not None and likelihood is not None:
            raise ValueError(f"{owner} takes train_Yvar or a likelihood, not both.")
        outcome = make_outcome_transform(outcome_transform, train_Y)
        super().__init__(
            train_X,
            train_Y,
            train_Yvar,
            likelihood=copy.deepcopy(likelihood),
            covar_module=copy.deepcopy(kernel),
            mean_module=ZeroMean(),
            outcome_transform=None if outcome is None else ElementwiseOutcome(outcome),
            input_transform=make_input_transform(input_transform, train_X),
        )
        self.eval()
        # Buffers, so that they move with the model; `save` writes them by themselves.
        self.register_buffer("train_X", train_X, persistent=False)
        self.register_buffer("train_Y", train_Y, persistent=False)
        self.register_buffer("train_Yvar", train_Yvar, persistent=False)
        self._given = {
            "likelihood": likelihood is not None,
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }

    @abstractmethod
    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        """What `fit` maximises."""

    @abstractmethod
    def _process_posterior(self, gaussian: MultivariateNormal) -> PredictivePosterior:
        """Posterior of the process, given the Gaussian that conditioning the kernel gives."""

    def fit(self, *, seed: int = 0) -> Self:
        """Maximise the marginal likelihood over kernel and noise, from the present values.

        Args:
            seed: Of the restarts from the hyperparameters' priors, made only when the optimiser
                fails; the global generator is left as it was.

        Returns:
            The model itself.

        Raises:
            botorch.exceptions.ModelFittingError: every attempt failed.
        """
        from botorch.fit import fit_gpytorch_mll  # with BoTorch's optimisers, slow to load
        from botorch.optim.closures import get_loss_closure_with_grads
        from botorch.optim.utils import get_parameters

        objective = self._marginal_log_likelihood()
        parameters = get_parameters(objective, requires_grad=True)
        if parameters:
            # A closure of our own: BoTorch would otherwise fit each output's kernel separately.
            closure = get_loss_closure_with_grads(objective, parameters)
            with exact_solves(), seeded(seed, self.train_X.device), warnings.catch_warnings():
                # Jitter on the way is no news; where it matters in the end, `posterior` warns.
                warnings.simplefilter("ignore", NumericalWarning)
                fit_gpytorch_mll(objective, closure=closure)
        self.eval()
        return self

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`, joint over its points.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all without it.
            observation_noise: Whether of y rather than of f. A tensor `[..., q, m]` gives the
                noise variances, on the model's scale as in BoTorch.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y.
        """
        owner = type(self).__name__
        check_query(owner, X, self.train_X)
        outputs = chosen_outputs(owner, output_indices, self.num_outputs)
        outcome = getattr(self, "outcome_transform", None)
        with exact_solves(), gpt_posterior_settings():
            gaussians = self._conditional_gaussians(X, observation_noise)
            gaussians = [_rescaled(gaussians[k], outcome, k % self.num_outputs) for k in outputs]
            if len(gaussians) == 1:
                joint = gaussians[0]
            else:
                joint = MultitaskMultivariateNormal.from_independent_mvns(gaussians)
            posterior = self._process_posterior(joint)
        if outcome is not None and not outcome.affine:
            posterior = TransformedPosterior(posterior, outcome.of_outputs(outputs))
        return apply_posterior_transform(posterior_transform, posterior, X)

    def _conditional_gaussians(
        self, X: Tensor, observation_noise: bool | Tensor
    ) -> list[MultivariateNormal]:
        """Per output, N(K* K^-1 y, K** - K* K^-1 K*') on the model's scale."""
        self.eval()
        X = self.transform_inputs(X)
        if self.num_outputs == 1:
            return [self._apply_noise(X, self(X), observation_noise)]
        X, dim = add_output_dim(X=X, original_batch_shape=self._input_batch_shape)
        joint = self._apply_noise(X, self(X), observation_noise)
        mean, covariance = joint.mean, joint.lazy_covariance_matrix
        return [
            MultivariateNormal(mean.select(dim, k), covariance[(slice(None),) * dim + (k,)])
            for k in range(self.num_outputs)
        ]

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
            NotImplementedError: the model was conditioned on further observations.
        """
        if self.train_targets.shape[-1] != self.train_Y.shape[-2]:
            raise NotImplementedError(
                f"This {type(self).__name__} was conditioned on further observations and cannot "
                "be saved; construct one from all rows."
            )
        tensors = {f"state.{name}": value for name, value in self.state_dict().items()}
        tensors.update(train_X=self.train_X, train_Y=self.train_Y)
        if self.train_Yvar is not None:
            tensors["train_Yvar"] = self.train_Yvar
        tensors["fingerprint"] = self._fingerprint()
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
        kernel: Kernel,
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
            kernel: As at construction, with any parameter values.
            likelihood: As at construction.
            input_transform: As at construction.
            outcome_transform: As at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
        """
        tensors, description = read_safetensors(path, kind=cls.__name__)
        passed = {
            "likelihood": likelihood is not None,
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }
        for name, value in passed.items():
            if value != description["given"][name]:
                raise ValueError(
                    f"{path} was saved with {name} {description['given'][name]}, load got "
                    f"{value}; pass the same as at construction (True: one of your own)."
                )
        differences = differing_parts(describe_module(kernel), description["kernel"])
        if differences:
            raise ValueError(f"{path} was saved with another kernel: {'; '.join(differences)}.")
        model = cls(
            tensors["train_X"],
            tensors["train_Y"],
            kernel,
            train_Yvar=tensors.get("train_Yvar"),
            likelihood=likelihood,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
            **description["construction"],
        )
        state = {
            name.removeprefix("state."): value
            for name, value in tensors.items()
            if name.startswith("state.")
        }
        model.load_state_dict(state, keep_transforms=False)
        model.eval()
        if not same_values(model._fingerprint(), tensors["fingerprint"]):
            raise ValueError(
                f"The kernel passed to load has the parameters of the one in {path}, but other "
                "values: pass the same architecture, activations and transforms."
            )
        return model

    def _construction(self) -> dict[str, Any]:
        """JSON-serialisable arguments of the constructor beyond those of this class."""
        return {}

    def _fingerprint(self) -> Tensor:
        """Kernel values at the first rows: they tell apart what parameter names cannot."""
        with torch.no_grad(), exact_solves():
            rows = self.transform_inputs(self.train_X[..., :_FINGERPRINT_ROWS, :])
            return self.covar_module(rows).to_dense()


def _rescaled(
    gaussian: MultivariateNormal, outcome: ElementwiseOutcome | None, output: int
) -> MultivariateNormal:
    """The Gaussian in units of Y, where the outcome transform is affine."""
    if outcome is None or not outcome.affine:
        return gaussian
    transform = outcome.of_outputs([output])
    assert isinstance(transform, AffineTransform)
    loc, scale = transform.loc, transform.scale
    assert isinstance(loc, Tensor)  # as buffers of the outcome transform are
    assert isinstance(scale, Tensor)
    loc, scale = loc.squeeze(-1), scale.squeeze(-1)
    covariance = gaussian.lazy_covariance_matrix * scale.square().unsqueeze(-1)
    return MultivariateNormal(loc + scale * gaussian.mean, covariance)
