"""Classification with Gaussian processes, and with processes of random scale."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import BernoulliLikelihood
from torch import Tensor
from torch.distributions import Distribution, InverseGamma
from torch.distributions.transforms import AffineTransform

from bayes.checks import check_query, check_training_data, check_weights, chosen_outputs
from bayes.description import (
    check_fingerprint,
    check_given,
    check_module,
    describe_module,
    describe_transform,
)
from bayes.likelihoods import Categorical
from bayes.likelihoods.categorical import num_classes_of
from bayes.processes.gaussian_process import GaussianProcess
from bayes.variational.laws import Law, class_posterior, predicted_classes
from bayes.variational.scaled_classes import ScaledClassesLaw
from bayes.variational.variational_gaussian_process import VariationalGaussianProcess
from bayes.variational.variational_process import VariationalProcess
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.transformed import apply_posterior_transform
from priors.posteriors.transforms import DEFAULT
from priors.representation import as_distribution

__all__ = ["GaussianProcessClassifier", "ScaleMixtureClassifier"]

_LIKELIHOODS = ("softmax", "probit", "dirichlet")
# From labels of which many are wrong to labels that are sure.
_ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01)
_FIRST_ALPHA = 0.1


class GaussianProcessClassifier(Model):
    """Class probabilities from Gaussian processes.

    * "softmax": P(y = c) is proportional to exp(f_c), a function for each class; variational.
    * "probit": two classes, P(y = 1) = Phi(f), one function; variational, predictions closed.
    * "dirichlet": exact regression on transformed labels, each with a known noise, whose
      exponentials are the gammas of a Dirichlet (Milios et al. 2018, 1805.10915, eq. 5-6); O(n^3),
      and by far the quickest for few rows. The less is added to the labels, the surer they are:
      0.01 takes every label for right, and follows those that are wrong.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Class numbers 0, 1, ..., `[n, 1]`.
        kernel: Prior covariance of every function; copied. Wrap it in
            `gpytorch.kernels.ScaleKernel` so that the size of the functions is learnt: how sharp
            the probabilities become.
        likelihood: "softmax", "probit" or "dirichlet".
        num_classes: One more than the largest in train_Y if None.
        num_inducing: Inducing points of the variational ones, at most.
        inducing_points: Where to put them instead, `[M, d]` in the units of train_X.
        alpha: Of "dirichlet": what is added to the labels, 0 < alpha <= 1. If None, `fit` chooses
            among 1, 0.3, 0.1, 0.03 and 0.01 by the log probability of each row's class given the
            other rows, in closed form; three fits or four in place of one.
        train_weights: Weights of the rows, `[n]`, > 0: of their log likelihoods; of "dirichlet"
            what the label counts.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, outcomes are no class numbers, or another likelihood.

    Attributes:
        process: The model of the functions: a `VariationalGaussianProcess`, or a
            `GaussianProcess` of the transformed labels, another one after each `fit` that chooses
            alpha.
        alpha: That of the process; 0.1 before it is chosen.

    Methods:
        fit: Learn the kernel, and alpha; returns the model.
        posterior: Predict class probabilities, `[..., q, classes]`.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    train_X: Tensor
    train_Y: Tensor
    train_weights: Tensor | None

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        likelihood: str = "softmax",
        num_classes: int | None = None,
        num_inducing: int = 200,
        inducing_points: Tensor | None = None,
        alpha: float | None = None,
        train_weights: Tensor | None = None,
        input_transform: Any = DEFAULT,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        if likelihood not in _LIKELIHOODS:
            raise ValueError(
                f"{owner} takes likelihood={' or '.join(map(repr, _LIKELIHOODS))}, got "
                f"{likelihood!r}; VariationalGaussianProcess takes any other."
            )
        if alpha is not None and not 0 < alpha <= 1:
            raise ValueError(
                f"{owner} needs 0 < alpha <= 1, got {alpha}; omit it, and fit chooses one."
            )
        train_Y, classes = class_labels(owner, train_X, train_Y, num_classes)
        self.kind, self.num_classes = likelihood, classes
        self.alpha = _FIRST_ALPHA if alpha is None else alpha
        self._chooses_alpha = alpha is None and likelihood == "dirichlet"
        self.register_buffer("train_X", train_X, persistent=False)
        self.register_buffer("train_Y", train_Y, persistent=False)
        if train_weights is not None:
            train_weights = check_weights(owner, train_weights, train_Y)
        self.register_buffer("train_weights", train_weights, persistent=False)
        self._given = {"input_transform": describe_transform(input_transform)}
        self.process: VariationalGaussianProcess | GaussianProcess
        if likelihood == "dirichlet":
            if inducing_points is not None:
                raise ValueError(f'{owner}(likelihood="dirichlet") is exact: no inducing_points.')
            self.process = self._regression(self.alpha, kernel, input_transform)
            return
        if likelihood == "probit" and classes != 2:
            raise ValueError(
                f'{owner}(likelihood="probit") is for two classes, got {classes}; use "softmax" or '
                '"dirichlet".'
            )
        self.process = VariationalGaussianProcess(
            train_X,
            train_Y,
            kernel,
            likelihood=Categorical(classes) if likelihood == "softmax" else BernoulliLikelihood(),
            num_inducing=num_inducing,
            inducing_points=inducing_points,
            train_weights=train_weights,
            input_transform=input_transform,
        )

    def __repr__(self) -> str:
        """The likelihood, and the model of the functions."""
        inner = repr(self.process).replace("\n", "\n  ")
        return f"{type(self).__name__}({self.kind}, {self.num_classes} classes)\n  {inner}"

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self.num_classes

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def fit(self, **options: Any) -> Self:
        """Learn the kernel, and the inducing points or alpha.

        Args:
            **options: `max_iter`, `timeout`, `progress`, `num_restarts`, `seed`, and more; see the
                `fit` of `process`. Where alpha is chosen, the timeout is for all fits together.

        Returns:
            The model itself.
        """
        if self._chooses_alpha:
            self._fit_with_alpha(options)
        else:
            self.process.fit(**options)
        return self

    def _fit_with_alpha(self, options: dict[str, Any]) -> None:
        """Fit with the present alpha, then with others as long as rows left out gain by it.

        Each fit has the same start. One that starts where that of a larger alpha has ended stays
        near it: on iris and wine that cost 0.1 nats.
        """
        timeout = options.pop("timeout", None)
        start = time.monotonic()
        kernel = self.process.covar_module
        transform = getattr(self.process, "input_transform", None)

        def fitted(alpha: float) -> tuple[float, float, GaussianProcess]:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - start))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the rows' scale, told when the model was made
                process = self._regression(alpha, kernel, transform)
            process.fit(timeout=left, **options)
            return self._left_out_score(process), alpha, process

        best = fitted(self.alpha)
        first = _ALPHAS.index(self.alpha)
        for others in (_ALPHAS[first + 1 :], _ALPHAS[:first][::-1]):
            for alpha in others:
                if timeout is not None and time.monotonic() - start >= timeout:
                    break
                found = fitted(alpha)
                if found[0] <= best[0]:
                    break
                best = found
            if best[1] != _ALPHAS[first]:
                break
        _, self.alpha, self.process = best

    def _left_out_score(self, process: GaussianProcess) -> float:
        """Mean log probability of each row's class given the other rows, by their weights.

        Of classes, and not of the transformed labels, whose densities differ in unit and noise from
        one alpha to another.
        """
        with torch.no_grad():
            label = process.leave_one_out()
            assert process.train_Yvar is not None
            variance = (label.variance - process.train_Yvar).clamp_min(0)
            classes = predicted_classes(label.mean, variance, range(self.num_classes))
            log_probs = classes.log_prob(self.train_Y).flatten()
        if self.train_weights is None:
            return float(log_probs.mean())
        weights = self.train_weights.flatten()
        return float((weights * log_probs).sum() / weights.sum())

    def _regression(self, alpha: float, kernel: Kernel, input_transform: Any) -> GaussianProcess:
        """The process of the labels that an alpha gives."""
        Z, noise = _dirichlet_regression(self.train_Y, self.num_classes, alpha, self.train_weights)
        # one unit for all classes, so that they have the same prior
        location = Z.mean(0, keepdim=True)
        unit = (Z - location).square().mean().sqrt().clamp_min(1e-3).expand_as(location).clone()
        return GaussianProcess(
            self.train_X,
            Z,
            kernel,
            train_Yvar=noise,
            input_transform=input_transform,
            outcome_transform=AffineTransform(location, unit),
        )

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Class probabilities at `X`.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Classes to return; all if None, as with observation noise.
            observation_noise: Whether of the class itself, with `log_prob` of class numbers, rather
                than of the probabilities, whose spread is how little is known. The `mean` of both
                are the predictive probabilities.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, classes]`, of each query by itself.
        """
        if isinstance(self.process, VariationalGaussianProcess):
            return self.process.posterior(X, output_indices, observation_noise, posterior_transform)
        owner = type(self).__name__
        check_query(owner, X, self.train_X)
        if isinstance(observation_noise, Tensor):
            raise NotImplementedError(f"{owner} has classes, which have no noise variances.")
        outputs = chosen_outputs(owner, output_indices, self.num_classes)
        latent = self.process.posterior(X)
        assert isinstance(latent, GaussianPosterior)
        ask = predicted_classes if observation_noise else class_posterior
        found = ask(latent.mean, latent.variance, outputs)
        return apply_posterior_transform(posterior_transform, found, X)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write data, learnt values and what identifies the kernel to one safetensors file.

        Args:
            path: Target file; replaced in one step.
        """
        if isinstance(self.process, VariationalGaussianProcess):
            self.process.settle()
        tensors = {f"state.{name}": v for name, v in self.process.state_dict().items()}
        tensors.update(train_X=self.train_X, train_Y=self.train_Y)
        if self.train_weights is not None:
            tensors["train_weights"] = self.train_weights
        tensors["fingerprint"] = self.process._fingerprint()
        write_safetensors_atomically(
            path,
            tensors,
            kind=type(self).__name__,
            description={
                "given": self._given,
                "construction": {
                    "likelihood": self.kind,
                    "num_classes": self.num_classes,
                    "alpha": self.alpha,
                },
                "chooses_alpha": self._chooses_alpha,
                "kernel": describe_module(self.process.covar_module),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel,
        *,
        input_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values.
            input_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
        """
        tensors, description = read_safetensors(path, kind=cls.__name__)
        passed = {"input_transform": describe_transform(input_transform)}
        check_given(path, passed, description["given"])
        check_module(path, "kernel", kernel, description["kernel"])
        points = tensors.get("state.inducing.points")
        model = cls(
            tensors["train_X"],
            tensors["train_Y"],
            kernel,
            inducing_points=None
            if points is None
            else tensors["train_X"][:1].expand(len(points), -1),
            train_weights=tensors.get("train_weights"),
            input_transform=input_transform,
            **description["construction"],
        )
        model._chooses_alpha = description["chooses_alpha"]
        if isinstance(model.process, VariationalGaussianProcess):
            model.process._take(path, tensors)
            return model
        model.process.load_state_dict(tensors_under("state", tensors))
        check_fingerprint(path, "kernel", model.process._fingerprint(), tensors["fingerprint"])
        return model

    def _set_transformed_inputs(self) -> None:
        """Nothing to do for BoTorch: the process transforms them."""


class ScaleMixtureClassifier(VariationalProcess):
    """Classes by softmax of functions with a common random scale.

    f_c | s ~ GP(0, s k) for every class c, s ~ `scale`: the limit of a network whose readout has a
    random variance (Lee et al. 2021). Variational: q(s) is an inverse gamma, q(f | s) Gaussian
    through inducing points; f is then multivariate t. With a very narrow `scale` it is the
    `GaussianProcessClassifier`. The scale is shared by all rows: it says how large the functions
    are, and cannot discount one wrong label.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Class numbers 0, 1, ..., `[n, 1]`.
        kernel: Prior covariance of every function for s = 1; copied.
        scale: Prior of s, a distribution on the positive reals; `InverseGamma(2, 2)` if None.
        num_classes: One more than the largest in train_Y if None.
        num_inducing: Inducing points, at most; all rows where they are fewer.
        inducing_points: Where to put them instead, `[M, d]` in the units of train_X.
        learn_inducing_points: Whether `fit` moves them too, unless all rows are taken.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, or outcomes are no class numbers.

    Methods:
        fit: Learn kernel, q(s) and inducing points; returns the model.
        posterior: Predict class probabilities, `[..., q, classes]`.
        evidence_lower_bound: The bound, to decide among kernels and scales.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        kernel: Kernel,
        *,
        scale: Distribution | None = None,
        num_classes: int | None = None,
        num_inducing: int = 200,
        inducing_points: Tensor | None = None,
        learn_inducing_points: bool = True,
        input_transform: Any = DEFAULT,
    ) -> None:
        owner = type(self).__name__
        if scale is None:
            scale = InverseGamma(
                torch.tensor(2.0, dtype=torch.float64, device="cpu"),
                torch.tensor(2.0, dtype=torch.float64, device="cpu"),
            )
        if not isinstance(scale, Distribution) or scale.batch_shape or scale.event_shape:
            raise TypeError(
                f"{owner} needs scale as a torch distribution of one positive number, got {scale}."
            )
        train_Y, classes = class_labels(owner, train_X, train_Y, num_classes)
        super().__init__(
            train_X,
            train_Y,
            kernel,
            likelihood=(Categorical(classes), scale),
            num_inducing=num_inducing,
            inducing_points=inducing_points,
            learn_inducing_points=learn_inducing_points,
            input_transform=input_transform,
            outcome_transform=DEFAULT,
        )

    def _make_law(self, likelihood: Any, train_Y: Tensor) -> Law:
        classes, scale = likelihood
        return ScaledClassesLaw(classes, scale, train_Y)

    @property
    def scale_posterior(self) -> InverseGamma:
        """q(s), of the variance s of the functions in units of the kernel."""
        assert isinstance(self.law, ScaledClassesLaw)
        return self.law.scale_posterior

    def _describe_likelihood(self) -> Any:
        assert isinstance(self.law, ScaledClassesLaw)
        return {"classes": self.num_outputs, "scale": as_distribution(self.law.scale)}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kernel: Kernel | None = None,
        *,
        scale: Distribution | None = None,
        input_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            kernel: The same as at construction, with any parameter values; required.
            scale: The same as at construction.
            input_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
            TypeError: no kernel was passed.
        """
        passed = {"input_transform": input_transform, "outcome_transform": DEFAULT}
        tensors, description = cls._read(path, kernel, passed)
        assert kernel is not None
        saved = description["likelihood"]
        points = tensors["state.inducing.points"]
        model = cls(
            tensors["train_X"],
            tensors["train_Y"],
            kernel,
            scale=scale,
            num_classes=saved["classes"],
            inducing_points=tensors["train_X"][:1].expand(len(points), -1),
            input_transform=input_transform,
        )
        if model._describe_likelihood() != saved:
            raise ValueError(f"{path} was saved with scale={saved['scale']}; pass the same.")
        return model._take(path, tensors)


def class_labels(
    owner: str, train_X: Any, train_Y: Any, num_classes: int | None
) -> tuple[Tensor, int]:
    """Class numbers in the dtype of the inputs, and the number of classes.

    Raises:
        TypeError: something is not a tensor.
        ValueError: shapes disagree, or outcomes are no class numbers below `num_classes`.
    """
    if isinstance(train_Y, Tensor) and isinstance(train_X, Tensor):
        train_Y = train_Y.to(train_X)  # class numbers are often integers
    check_training_data(owner, train_X, train_Y)
    likelihood = Categorical(num_classes)
    likelihood.check_outcomes(train_Y, "train_Y")
    classes = num_classes_of(owner, train_Y) if num_classes is None else num_classes
    if classes < 2:
        raise ValueError(f"{owner} needs 2 or more classes, got num_classes={classes}.")
    return train_Y, classes


def _dirichlet_regression(
    Y: Tensor, classes: int, alpha: float, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Targets and noise variances, each `[n, C]`, of log-normals with the moments of gammas.

    A gamma of concentration a has mean a and variance a: log-normal with variance log(1 / a + 1)
    and mean log a minus half of it.
    """
    indicator = torch.nn.functional.one_hot(Y[:, 0].long(), classes).to(Y)
    counts = indicator if weights is None else weights * indicator
    concentration = counts + alpha
    variance = (1 / concentration + 1).log()
    return concentration.log() - variance / 2, variance
