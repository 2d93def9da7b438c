"""A neural network with a prior on its weights, conditioned by sampling them.

    eps ~ N(0, 1) per weight, weight = prior std * eps
    log noise variance ~ N(mean, std), per output
    y = network(x; weights) + noise

Weights are sampled whitened (as eps): the posterior's geometry does not depend on the layers'
scales, and the prior of every coordinate is the same. The layer variances stay those of the given
`NetworkPrior`; `bayes.match_functional_prior` chooses them to suit a prior over functions.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from torch import Tensor

from bayes.caching import Snapshot
from bayes.checks import (
    check_query,
    check_training_data,
    check_unit,
    check_variances,
    chosen_outputs,
)
from bayes.description import (
    FINGERPRINT_ROWS,
    check_fingerprint,
    check_given,
    check_module,
    describe_module,
    describe_transform,
)
from bayes.inference import Draws, InferenceMethod, MeanField
from bayes.inference.convergence import warn_unless_converged
from bayes.inference_data import inference_data
from bayes.network_density import NetworkPosterior
from bayes.outcome import ElementwiseOutcome
from bayes.outputs import OutputSubset
from bayes.whitening import Whitening
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.networks.finite import NetworkPrior
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.posteriors.transforms import DEFAULT, make_input_transform, make_outcome_transform
from priors.representation import as_data

__all__ = ["BayesianNetwork"]

# Of the chains of a sampler, in its warning.
_ROWS_TO_COMPARE = 50


class BayesianNetwork(Model):
    """A finite network conditioned on data, as a Pyro model and a BoTorch model.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`, m the network's number of outputs.
        prior: Network and layer variances; copied. Its `module` must have finite widths; dropout
            is off.
        likelihood: "gaussian": noise with one unknown variance per output.
        train_Yvar: Known noise variances, `[n, m]`, units of Y squared; queries get their mean.
        log_noise_var_prior: Mean and standard deviation of the normal prior of the logarithm of
            the noise variance, on the model's (standardised) scale. The default puts 95% between
            0.7% and 2.6 of the outcome's variance.
        input_transform: `DEFAULT` standardises by the training rows, None applies none; or a
            BoTorch `InputTransform`.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, also with the network, or values are not finite.
        NotImplementedError: another likelihood.

    Methods:
        fit: Draw weights by `NUTS`, `MeanField` or another method; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        functions_of_draws: The drawn networks' outputs, draw by draw.
        parameters_of_draws: Their weights by name.
        noise_var_of_draws: Their noise variances.
        to_arviz: Draws, predictions and statistics for ArviZ.
        pyro_model: The joint density, for other inference by Pyro.
        subset_output: A model of some outputs.
        save: Write to a file.
        load: Read it again.

    All else is inherited from BoTorch's `Model`.
    """

    train_X: Tensor
    train_Y: Tensor
    train_Yvar: Tensor | None

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        prior: NetworkPrior,
        *,
        likelihood: str = "gaussian",
        train_Yvar: Tensor | None = None,
        log_noise_var_prior: tuple[float, float] = (-2.0, 1.5),
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> None:
        super().__init__()
        check_training_data("BayesianNetwork", train_X, train_Y, train_Yvar)
        if train_X.dim() != 2:
            raise ValueError(
                "BayesianNetwork takes one data set [n, d], got train_X of shape "
                f"{tuple(train_X.shape)}."
            )
        if not isinstance(prior, NetworkPrior):
            raise TypeError(
                f"BayesianNetwork needs a NetworkPrior, got {type(prior).__name__}; "
                "priors.NetworkPrior(module) makes one of a torch module."
            )
        if likelihood != "gaussian":
            raise NotImplementedError(
                f'BayesianNetwork supports only likelihood="gaussian", got {likelihood!r}.'
            )
        mean, std = log_noise_var_prior
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(
                f"log_noise_var_prior must be (mean, std) with std > 0, got {log_noise_var_prior}."
            )
        self.log_noise_var_prior = (float(mean), float(std))
        self.prior = copy.deepcopy(prior).to(train_X).requires_grad_(False)
        self.prior.module.to(train_X).eval()
        self.register_buffer("train_X", train_X)
        self.register_buffer("train_Y", train_Y)
        self.register_buffer("train_Yvar", train_Yvar)
        self.input_transform = make_input_transform(input_transform, train_X)
        outcome = make_outcome_transform(outcome_transform, train_Y)
        check_unit("BayesianNetwork", outcome, train_Y)
        self.outcome_transform = (
            None if outcome is None else ElementwiseOutcome(outcome).to(train_X).eval()
        )
        self.draws: Draws | None = None
        self._drawn_under: Snapshot | None = None
        self._given = {
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }
        if self.input_transform is not None:
            self.input_transform.eval()
        with torch.no_grad():
            inputs = self.transformed_inputs(train_X)
            outputs = self.prior.apply_parameters(
                self.whitening.weights(self.whitening.zeros()), inputs
            )
        if outputs.shape != train_Y.shape:
            raise ValueError(
                f"The network gives outputs of shape {tuple(outputs.shape)} for train_Y of shape "
                f"{tuple(train_Y.shape)}; its last layer must have {train_Y.shape[-1]} outputs."
            )

    def __repr__(self) -> str:
        """Data, what was drawn, and the prior's variances."""
        drawn = "not fitted" if self.draws is None else repr(self.draws)
        prior = repr(self.prior).replace("\n", "\n  ")
        return (
            f"{type(self).__name__}({as_data(self.train_X, self.num_outputs)}; {drawn})\n  {prior}"
        )

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.train_Y.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def pyro_model(self) -> None:
        """The joint density as a Pyro model, with sites `eps`, `log_noise_var` and `y`.

        `eps` are all whitened weights in one vector; `y` is on the model's scale.
        """
        zeros = self.whitening.zeros()
        eps = pyro.sample("eps", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
        targets, known = self.targets()
        if known is None:
            mean, std = (
                self.train_Y.new_full((self.num_outputs,), v) for v in self.log_noise_var_prior
            )
            log_noise = pyro.sample("log_noise_var", dist.Normal(mean, std).to_event(1))
            noise_std = (0.5 * log_noise).exp().unsqueeze(-2)
        else:
            noise_std = known.sqrt()
        f = self.prior.apply_parameters(
            self.whitening.weights(eps), self.transformed_inputs(self.train_X)
        )
        pyro.sample("y", dist.Normal(f, noise_std).to_event(2), obs=targets)

    def fit(self, method: InferenceMethod | None = None) -> Self:
        """Draw from the posterior of weights and noise.

        Args:
            method: `ChEES(...)`, `LangevinEnsemble(...)`, `MeanField(...)` or another
                `InferenceMethod`; `MeanField()` without.

        Returns:
            The model itself.

        Warns:
            Where chains have divergences, disagree in what they predict at the training rows or
            have few effective draws there.
        """
        method = MeanField() if method is None else method
        self._keep(method.run(NetworkPosterior(self), self.train_X))
        if self.draws is not None and self.draws.stats:
            warn_unless_converged("BayesianNetwork", self._predicted(), self.draws.stats)
        return self

    def _keep(self, draws: Draws) -> None:
        """Hold draws, and what they were drawn under."""
        self.draws, self._drawn_under = draws, Snapshot(self._parts())

    def _parts(self) -> dict[str, torch.nn.Module]:
        """What gives the draws their meaning."""
        names = ("prior", "input_transform", "outcome_transform")
        found = {name: getattr(self, name) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    def _predicted(self) -> Tensor:
        """Functions at some training rows and the noise, `[chains, draws, k]`."""
        draws = self.fitted_draws()
        some = self.train_X[:: math.ceil(len(self.train_X) / _ROWS_TO_COMPARE)]
        f = self.functions_of_draws(some).flatten(1)
        predicted = torch.cat([f, self.noise_var_of_draws().log()], dim=-1)
        return predicted.unflatten(0, draws.samples["eps"].shape[:2])

    def parameters_of_draws(self) -> dict[str, Tensor]:
        """The network's parameters by name, `[chains * draws, *shape]`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        return self.whitening.weights(self.fitted_draws().samples["eps"].flatten(0, 1))

    def functions_of_draws(self, X: Tensor) -> Tensor:
        """Outputs of the drawn networks on the model's scale, `[chains * draws, ..., q, m]`.

        Args:
            X: `[..., q, d]`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        return self.prior.apply_parameters(self.parameters_of_draws(), self.transformed_inputs(X))

    def noise_var_of_draws(self) -> Tensor:
        """Noise variances on the model's scale, `[chains * draws, m]`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        draws = self.fitted_draws()
        _, known = self.targets()
        if known is None:
            return draws.samples["log_noise_var"].flatten(0, 1).exp()
        size = draws.samples["eps"].shape[:2].numel()
        return known.mean(0).expand(size, self.num_outputs)

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X`: the average over drawn networks.

        Args:
            X: Queries, `[..., q, d]`.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of y, a Gaussian mixture with a density, rather than of f,
                the drawn functions themselves. A tensor `[..., q, m]` gives the noise variances
                in squared units of Y.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y.

        Raises:
            RuntimeError: the model is not fitted.
        """
        check_query("BayesianNetwork", X, self.train_X)
        outputs = chosen_outputs("BayesianNetwork", output_indices, self.num_outputs)
        f = self.functions_of_draws(X)[..., outputs]
        posterior: PredictivePosterior
        if isinstance(observation_noise, Tensor):
            check_variances("BayesianNetwork", observation_noise, self.num_outputs)
            variances = observation_noise.expand(*observation_noise.shape[:-1], self.num_outputs)
            if self.outcome_transform is not None:
                variances = self.outcome_transform.inverse_variances(variances)
            posterior = GaussianMixturePosterior(f, variances[..., outputs])
        elif observation_noise:
            noise = self.noise_var_of_draws()[:, outputs]
            noise = noise.reshape(len(noise), *[1] * (f.dim() - 2), len(outputs))
            posterior = GaussianMixturePosterior(f, noise)
        else:
            posterior = EmpiricalPosterior(f)
        if self.outcome_transform is not None:
            transform = self.outcome_transform.of_outputs(outputs)
            posterior = TransformedPosterior(posterior, transform)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.

        Raises:
            ValueError: an index is out of range.
        """
        return OutputSubset(self, idcs)

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Self:
        """Not supported: the weights would have to be sampled anew.

        Args:
            X: Inputs.
            Y: Outcomes.
            **kwargs: Ignored.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A BayesianNetwork holds draws from its posterior and cannot be conditioned on "
            "further rows; construct one from all rows and call fit(). Exact processes and "
            "PFNs can be conditioned without a fit."
        )

    def fantasize(self, X: Tensor, *args: Any, **kwargs: Any) -> Self:
        """Not supported, for the same reason as `condition_on_observations`.

        Args:
            X: Where to observe.
            *args: Ignored.
            **kwargs: Ignored.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "BayesianNetwork does not support fantasize(), since every fantasy would need a "
            "fit of its own; for look-ahead acquisition functions (such as the knowledge "
            "gradient) use an exact process or a PFN. Others (qLogExpectedImprovement, "
            "qUpperConfidenceBound) work with this model too."
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state as `torch.nn.Module` does; draws made under another one are dropped.

        Args:
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            Missing and unexpected names.
        """
        self.draws = None
        return super().load_state_dict(*args, **kwargs)

    def to_arviz(self, *, seed: int = 0) -> Any:
        """The draws as an `arviz.InferenceData`, for diagnostics and model comparison.

        Groups: posterior (the network's parameters by name, and `noise_var` on the model's
        scale), log_likelihood (pointwise, in units of Y), posterior_predictive, observed_data, and
        with NUTS sample_stats. Rows and outputs of `y` are the dimensions `row` and `output`.

        Args:
            seed: Seed of the noise in posterior_predictive.

        Raises:
            RuntimeError: the model is not fitted.
        """
        return inference_data(self, seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write data, draws and what identifies the network to one safetensors file.

        Args:
            path: Target file; replaced in one step.

        Raises:
            RuntimeError: the model is not fitted.
        """
        draws = self.fitted_draws()
        tensors = {f"state.{name}": value for name, value in self.state_dict().items()}
        tensors.update({f"sample.{name}": value for name, value in draws.samples.items()})
        tensors.update({f"stat.{name}": value for name, value in draws.stats.items()})
        if draws.history is not None:
            tensors["history"] = draws.history
        tensors["fingerprint"] = self._fingerprint()
        write_safetensors_atomically(
            path,
            tensors,
            kind="BayesianNetwork",
            description={
                "log_noise_var_prior": list(self.log_noise_var_prior),
                "given": self._given,
                "network": describe_module(self.prior.module),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        prior: NetworkPrior,
        *,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass a prior of the same module (and the transforms, if the model
        was given its own); layer variances and draws come from the file.

        Args:
            path: The file.
            prior: The same as at construction, with the same learnable layers and any variances.
            input_transform: The same as at construction.
            outcome_transform: The same as at construction.

        Raises:
            ValueError: the file is damaged or of another kind, or what was passed does not fit it.
        """
        tensors, description = read_safetensors(path, kind="BayesianNetwork")
        passed = {
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }
        check_given(path, passed, description["given"])
        check_module(path, "network", prior.module, description["network"])
        state = tensors_under("state", tensors)
        model = cls(
            state["train_X"],
            state["train_Y"],
            prior,
            train_Yvar=state.get("train_Yvar"),
            log_noise_var_prior=description["log_noise_var_prior"],
            input_transform=input_transform,
            outcome_transform=outcome_transform,
        )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"The prior passed to load does not fit {path}: {error}") from error
        samples, stats = tensors_under("sample", tensors), tensors_under("stat", tensors)
        model._keep(Draws(samples, stats, tensors.get("history")))
        check_fingerprint(path, "network", model._fingerprint(), tensors["fingerprint"])
        return model

    def _fingerprint(self) -> Tensor:
        """Outputs of the last drawn network at the first rows."""
        with torch.no_grad():
            last = {name: value[-1] for name, value in self.parameters_of_draws().items()}
            inputs = self.transformed_inputs(self.train_X[:FINGERPRINT_ROWS])
            return self.prior.apply_parameters(last, inputs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The draws and the module's buffers, not buffers of the model, must follow .to() too.
        super()._apply(fn, recurse)
        self.prior.module._apply(fn)
        draws = self.draws
        if draws is not None:
            moved = Draws(
                {name: fn(value) for name, value in draws.samples.items()},
                {name: fn(value) for name, value in draws.stats.items()},
                None if draws.history is None else fn(draws.history),
                draws.num_gradients,
            )
            self._keep(moved)
        return self

    def fitted_draws(self) -> Draws:
        """What `fit` drew.

        Raises:
            RuntimeError: the model is not fitted, or its prior or a transform has changed since.
        """
        if self.draws is None:
            raise RuntimeError("This BayesianNetwork has no posterior yet; call fit() first.")
        if self._drawn_under is not None and not self._drawn_under.holds(self._parts()):
            raise RuntimeError(
                "The prior or a transform of this BayesianNetwork has changed since fit(), so "
                "that its draws are out of date; call fit() again."
            )
        return self.draws

    @property
    def whitening(self) -> Whitening:
        """Between weights and standard normal numbers, under the present variances."""
        return Whitening(self.prior)

    def transformed_inputs(self, X: Tensor) -> Tensor:
        """Inputs on the model's scale."""
        return X if self.input_transform is None else self.input_transform(X)

    def targets(self) -> tuple[Tensor, Tensor | None]:
        """Outcomes and known noise variances on the model's scale."""
        if self.outcome_transform is None:
            return self.train_Y, self.train_Yvar
        return self.outcome_transform(self.train_Y, self.train_Yvar)
