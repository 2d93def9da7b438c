"""The common base of variational Gaussian processes: data, inducing points, bound, predictions.

    f_1, ..., f_k ~ GP(0, k), y | f ~ likelihood; q(f) = p(f | v) q(v), v at M inducing points

(Titsias 2009; Hensman et al. 2013, 2015). The bound is maximised over q(v) by natural gradients at
every value of the hyperparameters (`whitened_gaussian`), and over the hyperparameters by L-BFGS
with q(v) at its optimum, where the bound's total derivative is the partial one. So there is one
optimiser fewer to tune, and a Gaussian likelihood gives the collapsed bound. Many rows are taken in
minibatches, with natural gradients for q(v) and Adam for the rest (Salimbeni et al. 2018,
1803.09151).

q(v) belongs to hyperparameters and rows: where those have changed it is computed anew at the next
prediction, as an exact process factorises anew.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from typing import Any, Self

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors import Posterior
from gpytorch.kernels import Kernel
from linear_operator import to_dense, to_linear_operator
from linear_operator.operators import LinearOperator
from torch import Tensor, nn

from bayes.caching import Snapshot
from bayes.checks import (
    check_query,
    check_training_data,
    check_weights,
    chosen_outputs,
    warn_about_scale,
)
from bayes.description import (
    FINGERPRINT_ROWS,
    check_fingerprint,
    check_given,
    check_module,
    describe_module,
    describe_values,
)
from bayes.log_priors import log_priors
from bayes.noise import LessNoise
from bayes.one_data_set import OneDataSet
from bayes.processes.deferred_covariance import DeferredCovariance
from bayes.processes.fitting import Stopped, Watch, maximise
from bayes.processes.marginal_likelihood import exact_solves
from bayes.transformed_model import described
from bayes.variational.bound import Bound, rows_at_once
from bayes.variational.inducing_points import InducingPoints
from bayes.variational.latent import Latent
from bayes.variational.laws import Law
from bayes.variational.natural_ascent import improved
from bayes.variational.projection import factor, project
from bayes.variational.stochastic import StochasticAscent
from bayes.variational.whitened_gaussian import Factorised, WhitenedGaussian
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import apply_posterior_transform
from priors.posteriors.transforms import (
    DEFAULT,
)
from priors.random_state import seeded
from priors.representation import as_data, count

__all__ = ["VariationalProcess"]

# Rows times numbers for each, up to which a fit looks at all rows at once.
_WHOLE = 2**24
_BATCH, _STEPS = 1024, 2000
# Natural gradient steps within a fit and afterwards, and nats per row at which they end.
_INNER_STEPS, _INNER_TOLERANCE = 20, 1e-8
_FINAL_STEPS, _FINAL_TOLERANCE = 200, 1e-13
# Queries whose covariance is computed with their marginals.
_JOINT_QUERIES, _JOINT_NUMBERS = 512, 2**24


class VariationalProcess(OneDataSet, gpytorch.Module):
    """Base of the models, which document the arguments and give the law of the outcomes."""

    _doubles = ("q_linear", "q_precision")

    train_X: Tensor
    train_Y: Tensor
    train_weights: Tensor | None
    q_linear: Tensor
    q_precision: Tensor
    law: Law

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        likelihood: Any,
        num_inducing: int,
        inducing_points: Tensor | None,
        learn_inducing_points: bool,
        input_transform: Any,
        outcome_transform: Any,
        train_weights: Tensor | None = None,
    ) -> None:
        """See the classes for the arguments."""
        super().__init__()
        owner = type(self).__name__
        if isinstance(train_Y, Tensor) and isinstance(train_X, Tensor):
            if not train_Y.is_floating_point():
                train_Y = train_Y.to(train_X)  # class numbers and counts are often integers
        check_training_data(owner, train_X, train_Y)
        if train_X.dim() != 2:
            raise ValueError(
                f"{owner} takes one data set [n, d], got train_X of shape {tuple(train_X.shape)}."
            )
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"{owner} needs a gpytorch kernel, got {type(kernel).__name__}; "
                "priors.NNGPKernel(module) makes one of a torch module."
            )
        if kernel.batch_shape:
            raise ValueError(
                f"{owner} takes one kernel for all functions, got one of batch shape "
                f"{tuple(kernel.batch_shape)}."
            )
        if num_inducing < 1:
            raise ValueError(f"{owner} needs num_inducing >= 1, got {num_inducing}.")
        if input_transform is None:
            warn_about_scale(owner, train_X, kernel)
        self._given = described(input_transform, outcome_transform)
        self.law = self._make_law(likelihood, train_Y)
        self.law.check_outcomes(train_Y, "train_Y")
        if not self.law.real_valued:
            if outcome_transform is not DEFAULT and outcome_transform is not None:
                raise ValueError(
                    f"{owner} with this likelihood is a model of classes, counts or shares, which "
                    "are not transformed; omit outcome_transform."
                )
            outcome_transform = None
        self._set_transforms(train_X, train_Y, input_transform, outcome_transform, kernel)
        self.covar_module = copy.deepcopy(kernel).to(train_X)
        self.register_buffer("train_X", train_X, persistent=False)
        self.register_buffer("train_Y", train_Y, persistent=False)
        if train_weights is not None:
            train_weights = check_weights(owner, train_weights, train_Y)
        self.register_buffer("train_weights", train_weights, persistent=False)
        self.inducing = self._placed(num_inducing, inducing_points, learn_inducing_points)
        size = torch.Size([self.law.num_functions, len(self.inducing.points)])
        q = WhitenedGaussian.prior(size, train_X.device)
        self.register_buffer("q_linear", q.linear)
        self.register_buffer("q_precision", q.precision)
        self._settled_under: Snapshot | None = None
        self.eval()

    def _make_law(self, likelihood: Any, train_Y: Tensor) -> Law:
        raise NotImplementedError

    def _placed(self, number: int, given: Tensor | None, learn: bool) -> InducingPoints:
        """The inducing points: those given, all rows, or those that say most of the others."""
        if given is not None:
            owner, d = type(self).__name__, self.train_X.shape[-1]
            if given.dim() != 2 or given.shape[-1] != d or len(given) == 0:
                raise ValueError(
                    f"{owner} needs inducing_points [M, {d}] in the units of train_X, got shape "
                    f"{tuple(given.shape)}."
                )
            check_query(owner, given, self.train_X)
            return InducingPoints(self.transformed_inputs(given).detach(), learn)
        rows = self.transformed_inputs(self.train_X)
        return InducingPoints.among(rows, self.covar_module, number, learn)

    def __repr__(self) -> str:
        """Data, inducing points and the present values of the hyperparameters."""
        data = as_data(self.train_X, self.num_outputs)
        head = f"{type(self).__name__}({data}; {count(self.num_inducing, 'inducing point')})"
        own = [
            f"{name}: {', '.join(f'{v:.3g}' for v in value.detach().flatten().tolist())}"
            for name, value in self.law.values().items()
        ]
        if not own:
            own = describe_values(self.law)
        return "\n  ".join([head, *describe_values(self.covar_module), *own])

    @property
    def num_outputs(self) -> int:
        """Number of outputs; classes in classification."""
        return self.law.num_outputs

    @property
    def num_inducing(self) -> int:
        """M."""
        return len(self.inducing.points)

    @property
    def inducing_points(self) -> Tensor:
        """The inducing points `[M, d]` in the units of train_X."""
        return self.inducing.untransformed(self.input_transform)

    def targets(self) -> Tensor:
        """Outcomes on the model's scale, `[n, m]`."""
        return self.transformed_outcomes(self.train_Y)

    def fit(
        self,
        *,
        num_restarts: int = 0,
        max_iter: int | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Maximise the bound times priors over kernel, likelihood and inducing points.

        From the present values. Stopped by a limit or by Ctrl-C, it keeps the best so far and
        warns.

        Args:
            num_restarts: Further starts from draws of the hyperparameters' priors; not with
                minibatches.
            max_iter: Iterations of the optimiser for each start; with minibatches steps, 2,000 if
                None.
            timeout: Seconds after which no evaluation is started.
            progress: Show a bar; None shows it if more than ten seconds are expected.
            batch_size: Rows of a minibatch; if None, all rows at once where they are few (for 200
                inducing points and one column up to some 60,000), otherwise up to 1,024.
            seed: Seed of restarts and minibatches; the global generator is left as it was.

        Returns:
            The model itself.

        Raises:
            ValueError: a negative number, or restarts of a model without priors.
            botorch.exceptions.ModelFittingError: no start has a finite bound; says which
                hyperparameter ran away.
        """
        if num_restarts < 0 or (max_iter is not None and max_iter < 1):
            raise ValueError(
                f"fit needs num_restarts >= 0 and max_iter >= 1, got {num_restarts} and {max_iter}."
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"fit needs batch_size >= 1, got {batch_size}.")
        n = len(self.train_X)
        if batch_size is None:
            numbers = self.num_inducing + self.law.num_nodes * self.law.num_functions
            batch_size = n if n * numbers <= _WHOLE else min(_BATCH, max(64, _WHOLE // numbers))
        if not any(parameter.requires_grad for parameter in self.parameters()):
            self.settle()
            return self
        whole = batch_size >= n
        steps = _STEPS if max_iter is None else max_iter
        approach = self.law.approach
        less_noise = LessNoise.beside(
            self.law.noise_level,
            n,
            None if approach is None else lambda: self._objective(approach),
        )
        starts = 1 + (less_noise is not None) + num_restarts
        watch = Watch(
            type(self).__name__,
            device=self.train_X.device,
            timeout=timeout,
            progress=progress,
            num_starts=starts if whole else max(1, steps // 50),
            reasons=lambda: [],
        )
        with exact_solves():
            if whole:
                with seeded(seed, self.train_X.device):
                    maximise(
                        self,
                        self._objective,
                        watch,
                        num_restarts=num_restarts,
                        max_iter=max_iter,
                        less_noise=less_noise,
                    )
            else:
                self._climb(watch, batch_size, steps, seed)
        self._settled_under = None
        self.settle()
        return self

    def _objective(self, law: Law | None = None) -> Tensor:
        """Bound at the best q(v), and log priors, nats per row; the gradient holds q(v) fixed.

        Args:
            law: In place of the model's own.
        """
        law = self.law if law is None else law
        X = self.transformed_inputs(self.train_X)
        root = factor(self.covar_module, self.inducing.points)
        rows = project(self.covar_module, self.inducing.points, root, X)
        fixed = rows.detach()
        bound = Bound(
            law,
            self.targets(),
            self.num_inducing,
            lambda part: fixed[part],
            self.train_weights,
        )
        with torch.no_grad():
            at = self._improve(bound, _INNER_STEPS, _INNER_TOLERANCE)
        Y = self.targets().double()
        total = self.weighed(law.expected_log_prob(Y, *at.marginals(rows))).sum()
        total = total - at.divergence(law.inverse_scale()) - law.divergence()
        return (total + law.log_prior() + log_priors(self)) / len(Y)

    def weighed(self, values: Tensor, index: Any = ...) -> Tensor:
        """Values of rows times their weights.

        Args:
            values: `[n]`, of those of the index.
            index: Of rows.
        """
        weights = self.train_weights
        return values if weights is None else values * weights[index][..., 0].to(values)

    def _log_priors(self) -> Tensor | float:
        return self.law.log_prior() + log_priors(self)

    def _climb(self, watch: Watch, batch_size: int, steps: int, seed: int) -> None:
        """Stochastic ascent; see `StochasticAscent`."""
        ascent = StochasticAscent(self, batch_size, steps, seed)
        try:
            for _ in range(steps):
                watch.before()
                watch.after(ascent.step())
        except Stopped as stop:
            warnings.warn(
                f"The fit of {watch.owner} was stopped by {stop} after {watch.evaluations} of "
                f"{steps} steps; it keeps the hyperparameters so far.",
                stacklevel=3,
            )
        finally:
            watch.close()
            ascent.finish()

    def _improve(self, bound: Bound, max_steps: int, tolerance: float) -> Factorised:
        """Move q(v) to the optimum of the bound, and keep it."""
        q, at, _, _ = improved(
            WhitenedGaussian(self.q_linear, self.q_precision),
            bound.inverse_scale,
            bound,
            max_steps=max_steps,
            tolerance=tolerance * len(self.train_X),
        )
        self.q_linear, self.q_precision = q.linear.detach(), q.precision.detach()
        return at

    def _bound(self) -> Bound:
        """The bound at the present hyperparameters, without a gradient."""
        with torch.no_grad():
            X = self.transformed_inputs(self.train_X)
            Z = self.inducing.points
            root = factor(self.covar_module, Z)
            return Bound(
                self.law,
                self.targets(),
                len(Z),
                lambda part: project(self.covar_module, Z, root, X[part]),
                self.train_weights,
            )

    def settle(self) -> None:
        """Bring q(v) to its optimum for the present hyperparameters, unless it is there."""
        parts = self._parts()
        if self._settled_under is not None and self._settled_under.holds(parts):
            return
        with torch.no_grad(), exact_solves():
            self._improve(self._bound(), _FINAL_STEPS, _FINAL_TOLERANCE)
        self._settled_under = Snapshot(self._parts())

    def evidence_lower_bound(self) -> Tensor:
        """The bound on the log density of the outcomes at the present hyperparameters.

        To decide among kernels of the same data and likelihood; without priors.

        Returns:
            A scalar in nats, of all rows in the units of train_Y.
        """
        self.settle()
        with torch.no_grad(), exact_solves():
            bound = self._bound()
            at = WhitenedGaussian(self.q_linear, self.q_precision).factorised(bound.inverse_scale)
            assert at is not None
            value = self.train_X.new_tensor(bound(at)[0], dtype=torch.float64)
            value = value - self.law.divergence()
            if self.outcome_transform is not None:
                z, transform = self.targets(), self.outcome_transform.transform
                jacobian = transform.log_abs_det_jacobian(z, transform(z)).expand_as(z).double()
                value = value - self.weighed(jacobian.sum(-1)).sum()
        return value

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of outcomes rather than of what they scatter about:
                functions, rates or class probabilities.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y; of classes, `mean` are their probabilities
            `[..., q, classes]`, of each query by itself: samples of several queries do not depend
            on each other as those of the process do.

        Raises:
            NotImplementedError: noise variances as a tensor.
        """
        owner = type(self).__name__
        check_query(owner, X, self.train_X)
        if isinstance(observation_noise, Tensor):
            raise NotImplementedError(
                f"{owner} has the noise of its likelihood; pass observation_noise=True, or use "
                "GaussianProcess for known variances."
            )
        outputs = chosen_outputs(owner, output_indices, self.num_outputs)
        outputs = [k % self.num_outputs for k in outputs]
        with exact_solves():
            latent = self.latent(X)
            ask = self.law.outcomes if observation_noise else self.law.noise_free
            posterior = self._in_units_of_y(ask(latent, outputs), outputs)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def latent(self, X: Tensor) -> Latent:
        """The functions at queries `[..., q, d]`, on the model's scale; for s = 1 of a scale s."""
        self.settle()
        inputs, Z = self.transformed_inputs(X), self.inducing.points
        root = factor(self.covar_module, Z)
        with torch.no_grad():
            inverse_scale = float(self.law.inverse_scale())
        at = WhitenedGaussian(self.q_linear, self.q_precision).factorised(inverse_scale)
        assert at is not None
        flat = inputs.reshape(-1, inputs.shape[-1])
        size = rows_at_once(len(Z), self.law)
        parts = [
            at.marginals(project(self.covar_module, Z, root, some)) for some in flat.split(size)
        ]
        mean, variance = (
            torch.cat(each).reshape(*X.shape[:-1], -1).to(X) for each in zip(*parts, strict=True)
        )
        variance = variance.clamp_min(torch.finfo(X.dtype).tiny)
        unchanged = Snapshot(self._parts())

        def covariance() -> LinearOperator:
            if not unchanged.holds(self._parts()):
                raise ValueError(
                    f"The covariance of these {X.shape[-2]} queries was not computed yet, and the "
                    f"{type(self).__name__} has changed since: call posterior(X) again."
                )
            with exact_solves():
                return to_linear_operator(self._joint(inputs, root, at).to(X))

        queries = X.shape[-2]
        few = queries <= _JOINT_QUERIES and variance.numel() * queries <= _JOINT_NUMBERS
        if queries == 1:
            joint = to_linear_operator(variance.mT.unsqueeze(-1))
        elif few:
            joint = covariance()
        else:
            joint = DeferredCovariance(variance.mT, covariance=covariance)
        return Latent(mean, variance, joint)

    def _joint(self, inputs: Tensor, root: Tensor, at: Factorised) -> Tensor:
        """Covariances `[..., k, q, q]` of each function, float64."""
        Z = self.inducing.points
        flat = inputs.reshape(-1, inputs.shape[-1])
        weights = project(self.covar_module, Z, root, flat).weights
        weights = weights.unflatten(0, inputs.shape[:-1]).unsqueeze(-3)
        prior = to_dense(self.covar_module(inputs)).double().unsqueeze(-3)
        spread = weights @ at.half
        return prior - weights @ weights.mT + spread @ spread.mT

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Self:
        """A model of these rows and further ones; hyperparameters and inducing points stay.

        q(v) is computed anew, in the cost of a few passes over all rows.

        Args:
            X: Inputs, `[n', d]`.
            Y: Outcomes, `[n', m]`.
            **kwargs: Ignored.

        Raises:
            TypeError: another dtype than the model's.
            ValueError: shapes disagree, values are not finite or none that the likelihood gives.
            NotImplementedError: a batch of further rows.
        """
        if isinstance(Y, Tensor) and not Y.is_floating_point():
            Y = Y.to(self.train_Y)
        self._check_further_rows(X, Y, self.train_X, self.train_Y)
        self.law.check_outcomes(Y, "Y")
        new = copy.deepcopy(self)
        new.train_X, new.train_Y = torch.cat([self.train_X, X]), torch.cat([self.train_Y, Y])
        if self.train_weights is not None:
            new.train_weights = torch.cat([self.train_weights, X.new_ones(len(X), 1)])
        new._settled_under = None
        return new

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write data, learnt values and what identifies the kernel to one safetensors file.

        Args:
            path: Target file; replaced in one step.
        """
        self.settle()
        tensors = {f"state.{name}": value for name, value in self.state_dict().items()}
        tensors.update(train_X=self.train_X, train_Y=self.train_Y)
        if self.train_weights is not None:
            tensors["train_weights"] = self.train_weights
        tensors["fingerprint"] = self._fingerprint()
        write_safetensors_atomically(
            path,
            tensors,
            kind=type(self).__name__,
            description={
                "given": self._given,
                "likelihood": self._describe_likelihood(),
                "kernel": describe_module(self.covar_module),
            },
        )

    def _describe_likelihood(self) -> Any:
        raise NotImplementedError

    @classmethod
    def _read(
        cls, path: str | os.PathLike[str], kernel: Kernel | None, passed: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save` wrote, after checks of what was passed besides."""
        tensors, description = read_safetensors(path, kind=cls.__name__)
        if not isinstance(kernel, Kernel):
            classes = dict(description["kernel"]["classes"])
            raise TypeError(
                f"{cls.__name__}.load needs the kernel as well, since {path} holds values and no "
                f"code; call load(path, kernel) with a {classes['']} that is constructed like the "
                "saved one."
            )
        check_given(path, described(**passed), description["given"])
        check_module(path, "kernel", kernel, description["kernel"])
        return tensors, description

    def _take(self, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> Self:
        """Take the state of a file, and check that the kernel is that of the file."""
        self.load_state_dict(tensors_under("state", tensors))
        check_fingerprint(path, "kernel", self._fingerprint(), tensors["fingerprint"])
        self._settled_under = Snapshot(self._parts())
        return self

    def _fingerprint(self) -> Tensor:
        """Kernel values at the first rows: they tell apart what parameter names cannot."""
        with torch.no_grad(), exact_solves():
            rows = self.transformed_inputs(self.train_X[:FINGERPRINT_ROWS])
            return to_dense(self.covar_module(rows))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state as `torch.nn.Module` does.

        Args:
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            Missing and unexpected names.
        """
        self._settled_under = None
        return nn.Module.load_state_dict(self, *args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._settled_under = None
        return self

    def _parts(self) -> dict[str, nn.Module]:
        """What q(v) belongs to, besides the rows."""
        names = ("covar_module", "law", "inducing", "input_transform", "outcome_transform")
        found = {name: getattr(self, name) for name in names}
        return {name: part for name, part in found.items() if part is not None}
