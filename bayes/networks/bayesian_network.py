"""A neural network with a prior on its weights, conditioned by sampling them.

    eps ~ N(0, 1) per weight, or another law of a `WeightPrior`, weight = prior std * eps
    f = network(x; weights), y ~ likelihood(f), for example f + noise

Weights are sampled whitened (as eps): the posterior's geometry does not depend on the layers'
scales, and the prior of every coordinate is the same. The layer variances stay those of the given
`NetworkPrior` unless they are drawn too (`learn_variances`); `bayes.match_functional_prior` chooses
them to suit a prior over functions.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from torch import Tensor

from bayes.caching import Snapshot
from bayes.checks import check_training_data, check_unit
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
from bayes.inference.draws import checked_method
from bayes.likelihoods import Gaussian, Likelihood, from_description, named
from bayes.networks.density import NetworkPosterior
from bayes.networks.drawn_networks import (
    DrawnNetworks,
    evaluate_in_blocks,
    linearised,
    register_paths,
)
from bayes.networks.inference_data import inference_data
from bayes.networks.predictions import judged, likelihood_draws, predicted
from bayes.networks.reweighted import ReweightedNetwork
from bayes.networks.weight_priors import WeightPrior
from bayes.networks.whitening import Whitening
from bayes.outcome import ElementwiseOutcome
from bayes.outputs import OutputSubset
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically
from priors.networks.finite import NetworkPrior
from priors.networks.shared_columns import shared_columns
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transforms import DEFAULT, fitted_input_transform, make_outcome_transform
from priors.representation import as_data

__all__ = ["BayesianNetwork"]


class BayesianNetwork(Model):
    """A finite network conditioned on data, as a Pyro model and a BoTorch model.

    Args:
        train_X: Inputs, `[n, d]`.
        train_Y: Outcomes, `[n, m]`; of classes their numbers 0, 1, ..., `[n, 1]`.
        prior: Network and layer variances; copied. Its `module` must have finite widths; dropout
            is off. A `WeightPrior` has other laws of the weights.
        likelihood: How outcomes arise from the network's outputs: "gaussian", "heteroscedastic"
            (2m outputs: means, then log noise variances), "student_t",
            "heteroscedastic_student_t" (2m outputs: locations, then log squared scales),
            "categorical" (an output for each class), "ordinal" (one output), "poisson" (log
            rates), or a `Likelihood` with settings, such as `StudentT(df=4)`.
        train_Yvar: Known noise variances of the Gaussian likelihood, `[n, m]`, units of Y squared;
            queries get their mean.
        log_noise_var_prior: `Gaussian(log_noise_var_prior=...)` in short.
        learn_variances: `WeightPrior(prior, learn_variances=True)` in short: layer variances, and
            length scales of the inputs if there are any, are drawn too.
        input_transform: `DEFAULT` standardises by the training rows, columns that meet the same
            weights (the pixels of a channel) together; None applies none; or a BoTorch
            `InputTransform`, copied.
        outcome_transform: `DEFAULT` standardises by the training rows, None applies none; or an
            elementwise `torch.distributions` transform from the model's scale to Y's. Classes
            and counts have none.
        max_bytes: Memory for weights and intermediate values of networks that are evaluated at
            once; predictions themselves have a number per draw, row and output.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes disagree, also with the network, or values are not finite or not those
            of the likelihood.

    Methods:
        fit: Draw weights by `NUTS`, `MeanField` or another method; returns the model.
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        functions_of_draws: The drawn networks' outputs, draw by draw.
        parameters_of_draws: Their weights by name.
        variances_of_draws: Their layer variances, where those are drawn.
        noise_var_of_draws: Their noise variances, where those are Gaussian.
        likelihood_of_draws: Their noise variances, cut points and the like by name.
        to_arviz: Draws, predictions and statistics for ArviZ.
        pyro_model: The joint density, for other inference by Pyro.
        condition_on_observations: A model of further rows, by weights of the draws.
        fantasize: Such models of rows drawn from the posterior.
        sample_path: Drawn networks as functions.
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
        prior: NetworkPrior | WeightPrior,
        *,
        likelihood: str | Likelihood = "gaussian",
        train_Yvar: Tensor | None = None,
        log_noise_var_prior: tuple[float, float] | None = None,
        learn_variances: bool = False,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
        max_bytes: int = 2**30,
    ) -> None:
        super().__init__()
        if max_bytes < 1:
            raise ValueError(f"BayesianNetwork needs max_bytes >= 1, got {max_bytes}.")
        self.max_bytes = max_bytes
        if log_noise_var_prior is not None:
            if likelihood != "gaussian":
                raise ValueError(
                    'log_noise_var_prior needs likelihood="gaussian"; otherwise pass the settings '
                    "to the likelihood, such as Gaussian(log_noise_var_prior=...). Got "
                    f"{likelihood!r}."
                )
            mean, std = log_noise_var_prior
            likelihood = Gaussian((float(mean), float(std)))
        likelihood = named(likelihood)
        if not likelihood.real_valued and isinstance(train_Y, Tensor):
            train_Y = train_Y.to(train_X)  # class numbers and counts are often integers
        check_training_data("BayesianNetwork", train_X, train_Y, train_Yvar)
        if train_X.dim() != 2:
            raise ValueError(
                "BayesianNetwork takes one data set [n, d], got train_X of shape "
                f"{tuple(train_X.shape)}."
            )
        weight_prior = _weight_prior(prior, learn_variances)
        if train_Yvar is not None and not likelihood.takes_variances:
            raise ValueError(
                "train_Yvar are variances of Gaussian noise, which "
                f"{type(likelihood).__name__} does not take; omit one of them."
            )
        if train_Yvar is not None and not bool((train_Yvar > 0).all()):
            raise ValueError(
                "BayesianNetwork needs train_Yvar > 0: without noise no network has a likelihood. "
                "Use a small variance, or an exact process."
            )
        self._given = {
            "input_transform": describe_transform(input_transform),
            "outcome_transform": describe_transform(outcome_transform),
        }
        if not likelihood.real_valued:
            if outcome_transform is not DEFAULT and outcome_transform is not None:
                raise ValueError(
                    f"{type(likelihood).__name__} is a law of class numbers or counts, which are "
                    "not transformed; omit outcome_transform."
                )
            outcome_transform = None
        self.weight_prior = copy.deepcopy(weight_prior)
        self.prior = self.weight_prior.network.to(train_X).requires_grad_(False)
        self.prior.module.to(train_X).eval()
        self.register_buffer("train_X", train_X)
        self.register_buffer("train_Y", train_Y)
        self.register_buffer("train_Yvar", train_Yvar)
        together = shared_columns(self.prior.program)
        self.input_transform = fitted_input_transform(input_transform, train_X, together)
        outcome = make_outcome_transform(outcome_transform, train_Y)
        check_unit("BayesianNetwork", outcome, train_Y)
        self.outcome_transform = (
            None if outcome is None else ElementwiseOutcome(outcome).to(train_X).eval()
        )
        self.draws: Draws | None = None
        self._drawn_under: Snapshot | None = None
        with torch.no_grad():
            inputs = self.transformed_inputs(train_X)
            outputs = self.prior.apply_parameters(
                self.whitening.weights(self.whitening.zeros()), inputs
            )
        self.likelihood = likelihood.fitted_to(train_Y, outputs.shape[-1])

    def __repr__(self) -> str:
        """Data, what was drawn, and the prior's variances."""
        drawn = "not fitted" if self.draws is None else repr(self.draws)
        plain = self.weight_prior.is_gaussian and not self.weight_prior.sites()
        prior = repr(self.prior if plain else self.weight_prior).replace("\n", "\n  ")
        data = as_data(self.train_X, self.train_Y.shape[-1])
        return f"{type(self).__name__}({data}; {drawn})\n  {self.likelihood}\n  {prior}"

    @property
    def num_outputs(self) -> int:
        """Number of outputs; classes in classification."""
        return self.likelihood.num_outputs(self.train_Y.shape[-1])

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def pyro_model(self) -> None:
        """The joint density as a Pyro model.

        Sites are `eps`, all whitened weights in one vector, what else the weights' prior draws
        (`whitened_log_var`, `whitened_log_lengthscale`, `log_readout_scale`), the likelihood's
        unconstrained parameters, such as `log_noise_var`, and `y`, on the model's scale.
        """
        NetworkPosterior(self)()

    def fit(self, method: InferenceMethod | None = None) -> Self:
        """Draw from the posterior of weights and noise.

        Args:
            method: `ChEES(...)`, `LangevinEnsemble(...)`, `MeanField(...)` or another
                `InferenceMethod`; `MeanField()` without.

        Returns:
            The model itself.

        Raises:
            TypeError: `method` is no inference method, but the class of one, for example.

        Warns:
            Where chains have divergences, disagree in what they predict at the training rows or
            have few effective draws there.
        """
        method = MeanField() if method is None else checked_method(type(self).__name__, method)
        draws = method.run(NetworkPosterior(self), self.train_X)
        if draws.log_evidence is not None and self.outcome_transform is not None:
            # of Y in its own units, whatever the scale of the model
            targets, _ = self.targets()
            jacobian = self.outcome_transform.transform.log_abs_det_jacobian(targets, self.train_Y)
            evidence = draws.log_evidence - float(jacobian.sum())
            draws = dataclasses.replace(draws, log_evidence=evidence)
        self._keep(draws)
        if self.draws is not None and self.draws.stats:
            _, f, others = judged(self)
            warn_unless_converged(
                "BayesianNetwork",
                torch.cat([f.flatten(2), *others.values()], dim=-1),
                self.draws.stats,
                smaller_steps=self.draws.smaller_steps,
                members_apart=self.draws.members_apart,
            )
        return self

    def _keep(self, draws: Draws) -> None:
        """Hold draws, and what they were drawn under."""
        self.draws, self._drawn_under = draws, Snapshot(self._parts())

    def _parts(self) -> dict[str, torch.nn.Module]:
        """What gives the draws their meaning."""
        names = ("prior", "input_transform", "outcome_transform")
        found = {name: getattr(self, name) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    def parameters_of_draws(self) -> dict[str, Tensor]:
        """The network's parameters by name, `[chains * draws, *shape]`.

        Those of a linearised `Laplace` stand for functions of the linearised network, see
        `functions_of_draws`, which the network itself does not give. Drawn length scales are not in
        them: the network then sees inputs divided by those of `variances_of_draws`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        samples = self.fitted_draws().samples
        drawn = {name: samples[name].flatten(0, 1) for name in self.weight_prior.sites()}
        return self.weight_prior.weights(samples["eps"].flatten(0, 1), drawn)

    def variances_of_draws(self) -> dict[str, Tensor]:
        """Variances that were drawn, such as "weight_var.0", by name, `[chains * draws]`.

        Of the layers with `learn_variances`, of the readout with a `readout_scale`; also the
        length scales "lengthscale" of a network with `ard_num_dims`, `[chains * draws, k]`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        samples = self.fitted_draws().samples
        drawn = {name: samples[name].flatten(0, 1) for name in self.weight_prior.sites()}
        return self.weight_prior.variances(drawn)

    def functions_of_draws(self, X: Tensor) -> Tensor:
        """Outputs of the drawn networks on the model's scale, `[chains * draws, ..., q, k]`.

        The k outputs are those that the likelihood needs: with a head for the noise twice m.

        Args:
            X: `[..., q, d]`.

        Raises:
            RuntimeError: the model is not fitted.
        """
        draws, inputs = self.fitted_draws(), self.transformed_inputs(X)
        samples = {name: v.flatten(0, 1) for name, v in draws.samples.items()}
        prior, network, eps = self.weight_prior, self.prior, samples["eps"]

        def outputs(some: slice, rows: Tensor) -> Tensor:
            if draws.center is not None:
                return linearised(prior, draws.center, eps[some], rows)
            drawn = {name: samples[name][some] for name in prior.sites()}
            return prior.functions(eps[some], drawn, rows)

        return evaluate_in_blocks(network, outputs, len(eps), inputs, self.max_bytes)

    def noise_var_of_draws(self) -> Tensor:
        """Noise variances on the model's scale, `[chains * draws, m]`.

        Raises:
            RuntimeError: the model is not fitted.
            NotImplementedError: the likelihood has no noise variance of each output.
        """
        draws = self.fitted_draws()
        if not self.likelihood.takes_variances:
            raise NotImplementedError(
                f"{type(self.likelihood).__name__} has no noise variance of each output; see "
                "likelihood_of_draws(), and posterior(X, observation_noise=True).variance."
            )
        _, known = self.targets()
        if known is None:
            return self.likelihood_of_draws()["noise_var"]
        size = draws.samples["eps"].shape[:2].numel()
        return known.mean(0).expand(size, self.num_outputs)

    def likelihood_of_draws(self) -> dict[str, Tensor]:
        """The likelihood's parameters by name, such as "noise_var", `[chains * draws, p]`.

        On the model's scale; none where they are known or where there are none.

        Raises:
            RuntimeError: the model is not fitted.
        """
        found = likelihood_draws(self)
        return self.likelihood.constrained(found) if self.train_Yvar is None else {}

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
            observation_noise: Whether of y, a mixture over draws with a density (of classes and
                counts probabilities), rather than of what is noise-free, the drawn functions,
                rates or class probabilities. A tensor `[..., q, m]` gives the noise variances in
                squared units of Y, with a Gaussian likelihood.
            posterior_transform: Applied last; its result is returned as it is.

        Returns:
            A posterior `[..., q, m]` in units of Y; its `mean` are class probabilities
            `[..., q, classes]` in classification.

        Raises:
            RuntimeError: the model is not fitted.
            ValueError: noise variances for a likelihood that takes none, or some classes only.
        """
        return predicted(self, X, output_indices, observation_noise, posterior_transform)

    def subset_output(self, idcs: Sequence[int]) -> OutputSubset:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs.

        Raises:
            ValueError: an index is out of range.
        """
        return OutputSubset(self, idcs)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> ReweightedNetwork:
        """The model of further rows, by importance weights of the draws.

        For a few rows, as look-ahead acquisition functions have; many say more than the draws can
        tell, of which a warning is given.

        Args:
            X: Inputs, `[..., n, d]`.
            Y: Outcomes, `[..., n, m]`; batches of X and Y broadcast and are those of the result.
            noise: Noise variances in squared units of Y, `[..., n, m]`, with a Gaussian likelihood;
                those of the model if None.
            **kwargs: Ignored.

        Raises:
            RuntimeError: the model is not fitted.
            ValueError: shapes do not fit, or values are not finite, are none that the likelihood
                gives or are impossible under every draw.

        Warns:
            Where few draws are left, or their weights are unreliable.
        """
        return self._with_equal_weights().with_rows(X, Y, noise).checked()

    def fantasize(
        self,
        X: Tensor,
        sampler: MCSampler,
        observation_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> ReweightedNetwork:
        """Models of rows drawn from the predictive distribution, by importance weights.

        Args:
            X: Where to observe, `[..., n, d]`.
            sampler: Draws the outcomes.
            observation_noise: Noise variances in squared units of Y; those of the model if None.
            **kwargs: Ignored.

        Raises:
            NotImplementedError: a classifier.
        """
        return self._with_equal_weights().with_fantasies(X, sampler, observation_noise).checked()

    def sample_path(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: torch.Generator | None = None,
    ) -> DrawnNetworks:
        """Drawn networks as functions, for Thompson sampling.

        `path(X)` are the noise-free values of what was drawn, in units of Y; BoTorch's
        `get_matheron_path_model` and `PathwiseThompsonSampling` take the model itself.

        Args:
            sample_shape: How many.
            generator: Source of randomness.

        Raises:
            RuntimeError: the model is not fitted.
        """
        return self._with_equal_weights().sample_path(sample_shape, generator=generator)

    def _with_equal_weights(self) -> ReweightedNetwork:
        size = self.fitted_draws().samples["eps"].shape[:2].numel()
        return ReweightedNetwork(self, self.train_X.new_zeros(size))

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

        Groups: posterior (parameters of the network and of the likelihood by name, on the model's
        scale), log_likelihood (pointwise, in units of Y), posterior_predictive, observed_data,
        prior and prior_predictive (500 draws), and of Markov chains sample_stats. Rows and outputs
        of `y` are the dimensions `row` and `output`.

        Args:
            seed: Seed of the noise in the predictive groups, and of the draws of the prior.

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
        tensors.update({f"center.{k}": v for k, v in (draws.center or {}).items()})
        tensors["fingerprint"] = self._fingerprint()
        write_safetensors_atomically(
            path,
            tensors,
            kind="BayesianNetwork",
            description={
                "log_evidence": draws.log_evidence,
                "num_gradients": draws.num_gradients,
                "smaller_steps": draws.smaller_steps,
                "members_apart": draws.members_apart,
                "max_bytes": self.max_bytes,
                "likelihood": self.likelihood.description(),
                "weights": self.weight_prior.description(),
                "given": self._given,
                "network": describe_module(self.prior.module),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        prior: NetworkPrior | WeightPrior,
        *,
        likelihood: Likelihood | None = None,
        learn_variances: bool = False,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> Self:
        """Read what `save` wrote.

        The file holds no code: pass a prior of the same module (and the transforms, if the model
        was given its own); layer variances and draws come from the file.

        Args:
            path: The file.
            prior: The same as at construction, with the same learnable layers and any variances.
            likelihood: The same as at construction, if it was of a class of one's own.
            learn_variances: The same as at construction.
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
        weight_prior = _weight_prior(prior, learn_variances)
        check_given(path, weight_prior.description(), description["weights"])
        check_module(path, "network", weight_prior.network.module, description["network"])
        state = tensors_under("state", tensors)
        known = from_description(description["likelihood"])
        if (known is None) == (likelihood is None):
            own = description["likelihood"]["class"]
            raise ValueError(
                f"{path} was saved with the likelihood {own}; "
                + ("pass it to load." if known is None else "load knows it and needs none.")
            )
        model = cls(
            state["train_X"],
            state["train_Y"],
            weight_prior,
            likelihood=likelihood or known or "gaussian",
            train_Yvar=state.get("train_Yvar"),
            input_transform=input_transform,
            outcome_transform=outcome_transform,
            max_bytes=description["max_bytes"],
        )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"The prior passed to load does not fit {path}: {error}") from error
        samples, stats = tensors_under("sample", tensors), tensors_under("stat", tensors)
        model._keep(
            Draws(
                samples,
                stats,
                tensors.get("history"),
                num_gradients=description["num_gradients"],
                center=tensors_under("center", tensors) or None,
                log_evidence=description["log_evidence"],
                smaller_steps=description["smaller_steps"],
                members_apart=description["members_apart"],
            )
        )
        check_fingerprint(path, "network", model._fingerprint(), tensors["fingerprint"])
        return model

    def _fingerprint(self) -> Tensor:
        """Outputs of the last drawn network at the first rows."""
        with torch.no_grad():
            last = {name: value[-1] for name, value in self.parameters_of_draws().items()}
            inputs = self.transformed_inputs(self.train_X[:FINGERPRINT_ROWS])
            return self.prior.apply_parameters(last, inputs)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: input transforms are fitted, and draws are no parameters.

        Args:
            mode: Ignored.
        """
        return super().train(False)

    def _set_transformed_inputs(self) -> None:
        """Nothing to do for BoTorch: inputs are transformed where they are used."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The draws and the module's buffers, not buffers of the model, must follow .to() too.
        held = self._drawn_under is None or self._drawn_under.holds(self._parts())
        super()._apply(fn, recurse)
        self.prior.module._apply(fn)
        draws = self.draws
        if draws is not None:
            center = draws.center
            moved = dataclasses.replace(
                draws,
                samples={name: fn(value) for name, value in draws.samples.items()},
                stats={name: fn(value) for name, value in draws.stats.items()},
                history=None if draws.history is None else fn(draws.history),
                center=None if center is None else {k: fn(v) for k, v in center.items()},
            )
            if held:
                self._keep(moved)
            else:  # out of date before, and after
                self.draws = moved
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


def _weight_prior(prior: NetworkPrior | WeightPrior, learn_variances: bool) -> WeightPrior:
    if isinstance(prior, WeightPrior):
        if learn_variances and not prior.learn_variances:
            raise ValueError("Give learn_variances=True to the WeightPrior itself.")
        return prior
    if not isinstance(prior, NetworkPrior):
        raise TypeError(
            f"BayesianNetwork needs a NetworkPrior, got {type(prior).__name__}; "
            "priors.NetworkPrior(module) makes one of a torch module."
        )
    return WeightPrior(prior, learn_variances=learn_variances)


register_paths(BayesianNetwork)
