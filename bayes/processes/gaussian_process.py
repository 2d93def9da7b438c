"""Exact Gaussian process regression with any kernel, infinite networks' included.

f ~ GP(0, k), y = f(x) + e, e ~ N(0, noise). Thin on BoTorch's `SingleTaskGP`: a BoTorch model in
every respect, whose posterior also answers for its densities.

Hyperparameters are those of greatest marginal likelihood, or drawn from their posterior: then every
prediction is the average of one Gaussian process for each draw.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors import Posterior
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from bayes.checks import check_query
from bayes.inference import Draws, InferenceMethod
from bayes.inference.convergence import warn_unless_converged
from bayes.inference.draws import checked_method
from bayes.processes.exact_process import ExactProcess
from bayes.processes.hyperparameters import HyperparameterPosterior, Hyperparameters
from bayes.processes.left_out import independent_rows
from bayes.processes.marginal_likelihood import JointMarginalLogLikelihood
from bayes.processes.rows import takes_missing
from priors.kernel_batch import expanded_kernel
from priors.posteriors.batch_mixture import BatchMixturePosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import apply_posterior_transform

__all__ = ["GaussianProcess"]


class GaussianProcess(ExactProcess):
    """A Gaussian process conditioned exactly on data.

    The posterior is a `priors.GaussianPosterior`, joint over points; a non-affine outcome transform
    makes it that Gaussian seen through the transform. `fit()` maximises the marginal likelihood
    over kernel and noise, and `log_marginal_likelihood()` decides among kernels. O(n^3) time,
    O(n^2) memory. `fit(method=ChEES())` draws the hyperparameters from their posterior; the model's
    is then a `BatchMixturePosterior`.

    Args:
        train_X: Inputs, `[..., n, d]`.
        train_Y: Outcomes, `[..., n, m]`, any number of columns.
        kernel: Prior covariance of f; copied, so the learnt values are in `covar_module` and in
            the model's `repr`. It is used as it is: wrap it in `gpytorch.kernels.ScaleKernel` for
            a learnt output scale.
        train_Yvar: Known noise variances, `[..., n, m]`, units of Y squared. Without them a
            single noise variance per output is learnt, from 0.1 on the model's scale, under
            BoTorch's prior LogNormal(-4, 1) and down to 1e-6 (1e-4 in float32).
        train_weights: Weights of the rows, `[..., n]`, > 0: the learnt noise variance of each is
            divided by its weight. That of predictions is of weight 1.
        likelihood: A GPyTorch Gaussian likelihood to use instead, copied.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied. `priors.MissingInputs(train_X)` takes NaN among the inputs.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree or values are not finite.

    Methods:
        fit: Learn kernel and noise, or draw them with `method=`; returns the model.
        hyperparameter_draws: What was drawn, by name.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        log_marginal_likelihood: The evidence, to decide among kernels.
        leave_one_out: Each row's y given all the others.
        sample_path: Functions drawn from the posterior, for any kernel.
        condition_on_observations: A model of further rows, with the hyperparameters as they are.
        fantasize: Such models of rows drawn from the posterior.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    `train_X` and `train_Y` are the data as given. All else is inherited from BoTorch's
    `SingleTaskGP`.
    """

    draws: Draws | None = None
    _drawn: Tensor | None = None
    _members: Sequence[GaussianProcess] = ()  # none yet, or one batch of them

    def fit(
        self, *, method: InferenceMethod | None = None, num_draws: int = 256, **options: Any
    ) -> Self:
        """Maximise marginal likelihood times priors, or draw the hyperparameters.

        Args:
            method: `ChEES()`, `HMC()`, `NUTS()` or another `InferenceMethod`, to draw kernel and
                noise from their posterior; every hyperparameter needs a prior. Without it the
                maximum is found, as `options` say.
            num_draws: Draws that are kept, evenly spaced among those of the method; predictions
                average over all of them, each in the cost of one process.
            **options: Of the maximisation, see `ExactProcess.fit`: `num_restarts`, `max_iter`,
                `timeout`, `progress`, `optimizer_kwargs`, `seed`, `max_rows`.

        Returns:
            The model itself.

        Raises:
            TypeError: options of the maximisation together with a method, or `method` is none.
            ValueError: a hyperparameter has no prior, or the maximisation's errors.

        Warns:
            Of divergences, chains that disagree and few effective draws of the hyperparameters.
        """
        if method is None:
            self._use(None)
            return super().fit(**options)
        checked = checked_method(type(self).__name__, method)
        if options:
            raise TypeError(f"fit(method=) has no option {next(iter(options))!r}.")
        if num_draws < 1:
            raise ValueError(f"fit needs num_draws >= 1, got {num_draws}.")
        target = HyperparameterPosterior(self)
        draws = checked.run(target, self.train_X)
        position = draws.samples["position"]
        if draws.stats:
            warn_unless_converged(
                type(self).__name__,
                target.hyperparameters.constrained(position),
                draws.stats,
                what="hyperparameters",
                smaller_steps=draws.smaller_steps,
                members_apart=draws.members_apart,
            )
        every = position.flatten(0, 1)
        kept = torch.linspace(0, len(every) - 1, min(num_draws, len(every))).round().long()
        self._use(every[kept.to(every.device)])
        self.draws = draws
        return self

    def hyperparameter_draws(self) -> dict[str, Tensor]:
        """The draws over which predictions average, by name, `[draws, *shape]`.

        Names are GPyTorch's, of the values within their constraints: `kernel.lengthscale`.

        Raises:
            RuntimeError: hyperparameters were not drawn.
        """
        if self._drawn is None:
            raise RuntimeError(
                f"The hyperparameters of this {type(self).__name__} are not drawn; call "
                "fit(method=ChEES())."
            )
        target = Hyperparameters(self)
        return {
            slot.name.replace("raw_", ""): slot.transform(self._drawn[:, slot.part]).reshape(
                -1, *slot.shape
            )
            for slot in target.slots
        }

    def posterior(  # type: ignore[override]  # BoTorch's own classes differ among themselves
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`, joint over its points; see `ExactProcess.posterior`.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all without it.
            observation_noise: Whether of y rather than of f, or noise variances `[..., q, m]`.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y, of drawn hyperparameters the average over them.
        """
        if self._drawn is None:
            return super().posterior(X, output_indices, observation_noise, posterior_transform)
        missing = takes_missing(self._input_transform)
        check_query(type(self).__name__, X, self.train_X, missing=missing)
        members = self._member_processes()
        size = len(self._drawn)
        if isinstance(observation_noise, Tensor):
            observation_noise = observation_noise.unsqueeze(-3)
        batch = torch.broadcast_shapes(X.shape[:-2], self.train_Y.shape[:-2])
        each = members.posterior(
            X.unsqueeze(-3).expand(*batch, size, *X.shape[-2:]), output_indices, observation_noise
        )
        assert isinstance(each, PredictivePosterior)
        return apply_posterior_transform(posterior_transform, BatchMixturePosterior(each), X)

    def leave_one_out(self) -> PredictivePosterior:
        """Each training row's y given all the other rows; see `ExactProcess.leave_one_out`.

        Returns:
            A posterior `[..., n, m]`; of drawn hyperparameters the average over the draws, which
            have seen every row.
        """
        if self._drawn is None:
            return super().leave_one_out()
        return BatchMixturePosterior(self._member_processes().leave_one_out())

    def _use(self, drawn: Tensor | None) -> None:
        """Average over these unconstrained hyperparameters `[draws, D]` from now on."""
        self.draws = self._drawn = None
        self._members = ()
        if drawn is None:
            return
        target = Hyperparameters(self)
        parameters = dict(target.parts.named_parameters())
        with torch.no_grad():
            for name, value in target.values(drawn.mean(0, keepdim=True)).items():
                parameters[name].copy_(value[0])
        self._clear_cache()
        self._drawn = drawn

    def _member_processes(self) -> GaussianProcess:
        """One process for each draw, as a batch `[..., draws]`."""
        if self._members:
            return self._members[0]
        assert self._drawn is not None
        size = len(self._drawn)

        def repeated(rows: Tensor) -> Tensor:
            rows = rows.unsqueeze(-3)
            return rows.expand(*rows.shape[:-3], size, *rows.shape[-2:])

        X, Y = repeated(self.train_X), repeated(self.train_Y)
        Yvar = None if self.train_Yvar is None else repeated(self.train_Yvar)
        values = Hyperparameters(self).values(self._drawn)
        outputs = [1] if self.num_outputs > 1 else []
        kernel = expanded_kernel(self.covar_module, torch.Size([size, *outputs]))
        likelihood = None
        if not self._has_fixed_noise:
            likelihood = GaussianLikelihood()
            likelihood.noise_covar = copy.deepcopy(self.likelihood.noise_covar)
            if (noise := values.get("likelihood.noise_covar.raw_noise")) is not None:
                likelihood.noise_covar.raw_noise = torch.nn.Parameter(noise)
        outcome = getattr(self, "outcome_transform", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the rows' scale, told when the model was made
            members = GaussianProcess(
                X,
                Y,
                kernel,
                train_Yvar=Yvar if likelihood is None else None,
                likelihood=likelihood,
                input_transform=copy.deepcopy(getattr(self, "input_transform", None)),
                outcome_transform=None if outcome is None else outcome.transform,
            )
        parameters = dict(members.covar_module.named_parameters())
        for name, value in values.items():
            part, _, name = name.partition(".")
            if part == "kernel":
                value = value.unsqueeze(1) if outputs else value
                parameters[name].data = value
        if likelihood is not None:
            weights = None if self.train_weights is None else repeated(self.train_weights)
            members._hold(X, Y, Yvar, weights)
        members.requires_grad_(False)
        self._members = [members]
        return members

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of `ExactProcess`; draws of the hyperparameters are dropped.

        Args:
            *args: As there.
            **kwargs: As there.

        Returns:
            Missing and unexpected names.
        """
        self._use(None)
        return super().load_state_dict(*args, **kwargs)

    def _condition_on(
        self, X: Tensor, Y: Tensor, Yvar: Tensor | None, weights: Tensor | None
    ) -> None:
        self._members = ()
        super()._condition_on(X, Y, Yvar, weights)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if self._drawn is not None:
            self._drawn = fn(self._drawn)
        return super()._apply(fn, recurse)

    def _further_tensors(self) -> dict[str, Tensor]:
        return {} if self._drawn is None else {"drawn": self._drawn}

    def _take_further(self, tensors: Mapping[str, Tensor]) -> None:
        self._use(tensors.get("drawn"))

    def _marginal_log_likelihood(self) -> JointMarginalLogLikelihood:
        return JointMarginalLogLikelihood(self.likelihood, self)

    def _process_posterior(
        self, gaussian: MultivariateNormal, transform: AffineTransform | None
    ) -> GaussianPosterior:
        return GaussianPosterior(gaussian, transform)

    def _left_out_posterior(
        self, mean: Tensor, variance: Tensor, transform: AffineTransform | None
    ) -> GaussianPosterior:
        return GaussianPosterior(independent_rows(mean, variance, self.num_outputs), transform)
