"""A trained network conditioned on data: a BoTorch `Model`.

The model encodes its data set once and answers any number of queries from that encoding.
Posteriors are bar distributions in the units of the user's y, of y or of the noise-free function;
class probabilities in classification. Marginals are read off directly, and `pfn.joint` has the
dependence between points.

Joint samples pass every point of every sample through the network: a sampler of some 64 makes noisy
expected improvement cheap. BoTorch prunes its baseline by 2,048 samples, for which it gets those of
a Gaussian copula fitted to 128 joint ones (`priors.posteriors.copula`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pfn.coverage import check_data, check_num_classes
from pfn.encoded_observations import EncodedObservations
from pfn.familiarity import unlike_the_prior
from pfn.joint import Joint, JointBarPosterior, Recent
from pfn.network import Network
from pfn.observations import Observations
from pfn.posteriors import CategoricalPosterior
from pfn.transforms import Transforms
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.representation import as_data, count

__all__ = ["PFNModel"]


class PFNModel(Model):
    """A network conditioned on data; made by `PFN.condition`, whose arguments it takes.

    Methods:
        posterior: Predict, `model.posterior(X, observation_noise=True)` for y rather than f.
        condition_on_observations: A model of further rows.
        fantasize: Such models of rows drawn from the posterior.
        subset_output: A model of some outputs.
        unlike_the_prior: Says so if the data are unlike those that the network was trained on.

    Attributes:
        pfn: The network, with weights of its own in the dtype and on the device of the data.
        num_orders: Orders of the points over which joint samples and densities are averaged.

    `train_X`, `train_Y` and `train_Yvar` are the data as given. All else is inherited from
    BoTorch's `Model`.
    """

    _rows_at_once = 8192
    _numbers_at_once = 2**26

    def __init__(
        self,
        network: Network,
        X: Tensor,
        y: Tensor,
        *,
        train_Yvar: Tensor | None,
        categorical: Tensor | None,
        num_classes: int | None,
        input_transform: Any,
        outcome_transform: Any,
        num_orders: int,
        column_seed: int,
    ) -> None:
        super().__init__()
        if isinstance(y, Tensor) and isinstance(X, Tensor):
            y = y.unsqueeze(-1) if y.dim() == X.dim() - 1 else y
            y = _classes_as_numbers(network, y, X)
        if isinstance(train_Yvar, Tensor) and train_Yvar.dim() == X.dim() - 1:
            train_Yvar = train_Yvar.unsqueeze(-1)
        sizes, coverage = network.architecture, network.coverage
        check_data(sizes, coverage, X, y, train_Yvar)
        coverage.warn_of_features(sizes, X.shape[-1])
        coverage.warn_beyond_training(X.shape[-2])
        if num_orders < 1:
            raise ValueError(f"num_orders must be at least 1, got {num_orders}.")
        coverage.check_categorical(categorical, X)
        check_num_classes(sizes, num_classes, y)
        self.num_orders = num_orders
        transforms = Transforms.fitted(input_transform, outcome_transform, X, y)
        data = Observations(X, y, train_Yvar, transforms, categorical)
        coverage.warn_outside_range(transforms.observed(X))
        coverage.warn_outside_targets(transforms.targets(y))
        # Its own weights, in the dtype and on the device of the data, and not trained any more.
        self.pfn = network.frozen_like(X)
        self.training = False  # as all parts of the copy are
        self._encoded = EncodedObservations.together(self.pfn, data, num_classes, column_seed)
        self._recent = Recent()

    def __getattr__(self, name: str) -> Any:
        # What some acquisition functions ask of a Gaussian process.
        if name in ("covar_module", "datapoints", "likelihood", "mean_module"):
            raise AttributeError(
                f"{type(self).__name__} is not a Gaussian process and has no {name!r}. Monte Carlo "
                "acquisition functions, such as qLogExpectedImprovement, take it as it is; those "
                "that need a Gaussian posterior take GaussianApproximation(model)."
            )
        return super().__getattr__(name)

    def __repr__(self) -> str:
        sizes = self.pfn.architecture
        outputs = self.train_Y.shape[-1]
        kind = f"{count(sizes.classes, 'class')} at most" if sizes.classes else "regression"
        weights = count(sum(p.numel() for p in self.pfn.parameters()), "parameter")
        dtype = str(self.train_X.dtype).removeprefix("torch.")
        data = as_data(self.train_X, outputs)
        return f"{type(self).__name__}({data}, {dtype}; {kind}; network of {weights})"

    def train(self, mode: bool = True) -> PFNModel:
        """Stays in evaluation mode: nothing is trained here, and input transforms are fitted."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> PFNModel:
        now = fn(self.train_X)
        if now.dtype != self.train_X.dtype or now.device != self.train_X.device:
            raise NotImplementedError(
                f"the model was conditioned in {self.train_X.dtype} on {self.train_X.device} and "
                f"stays there; condition the network on data in {now.dtype} on {now.device}."
            )
        return self

    @property
    def _data(self) -> Observations:
        return self._encoded.data

    @property
    def train_X(self) -> Tensor:
        """Inputs `[*batch, n, d]`, as given."""
        return self._data.X

    @property
    def train_Y(self) -> Tensor:
        """Targets `[*batch, n, m]`, as given."""
        return self._data.Y

    @property
    def train_inputs(self) -> tuple[Tensor]:
        """`train_X` as GPyTorch's models have it, for acquisition functions that ask for it."""
        return (self.train_X,)

    @property
    def train_Yvar(self) -> Tensor | None:
        """Known noise variances of the same shape, NaN where unknown; None for none."""
        return self._data.Yvar

    @property
    def num_outputs(self) -> int:
        """Number of outputs; classes in classification."""
        return self.pfn.architecture.classes or self.train_Y.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of data sets."""
        return self._data.batch_shape

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X` `[..., q, d]`, whose batch broadcasts with that of the data sets.

        Args:
            X: Queries, in units of the training inputs.
            output_indices: Outputs to return; all if None. Classes have no outputs.
            observation_noise: Whether to predict the noisy y, or the function f where the network's
                tasks had one (otherwise it predicts y); or the variances of
                the noise at the queries, `[..., q, m]`, squared units of y, NaN where unknown,
                for a network that knows noise. True takes the mean of the training data's
                variances where all of them are known.
            posterior_transform: Applied last.

        Returns:
            A posterior `[..., q, m]` in units of y, differentiable in X; class probabilities
            `[..., q, classes]` in classification.

        Raises:
            TypeError: another dtype than the training data's.
            ValueError: another number of features, infinite values, or negative variances.
        """
        self._check_queries(X)
        if not isinstance(observation_noise, Tensor) or observation_noise.dtype == torch.bool:
            observation_noise = bool(observation_noise)
        rows = self._data.transforms.asked(X)
        self.pfn.coverage.warn_outside_range(rows)
        outputs = self._data.outputs if output_indices is None else list(output_indices)
        if self.pfn.architecture.classes:
            if output_indices is not None:
                raise NotImplementedError(
                    "the classes of a classification network cannot be separated."
                )
            queries = self._data.queries(rows, [0])
            logits = self._encoded.logits(
                queries, None, noisy=True, rows_at_once=self._rows_at_once
            )
            posterior: Any = CategoricalPosterior(queries.restore(logits)[..., 0, :])
            return posterior if posterior_transform is None else posterior_transform(posterior, X)
        noise = self._query_noise(observation_noise, rows)
        queries = self._data.queries(rows, outputs)
        noisy = observation_noise is not False or not self.pfn.coverage.function
        known = None if noise is None else queries.flatten(noise[..., outputs])
        logits = queries.restore(
            self._encoded.logits(queries, known, noisy=noisy, rows_at_once=self._rows_at_once)
        )
        bars = self.pfn.bars
        assert bars is not None
        joint = Joint(
            self.pfn,
            self._encoded.encoding,
            queries,
            known,
            noisy,
            num_orders=self.num_orders,
            num_rows=self.train_X.shape[-2],
            num_appended=self._encoded.num_appended,
            numbers_at_once=self._numbers_at_once,
            recent=self._recent,
        )
        posterior = JointBarPosterior(bars, logits, joint)
        posterior = TransformedPosterior(posterior, AffineTransform(*self._encoded.units(outputs)))
        posterior = self._data.transforms.undo(posterior, outputs)
        return apply_posterior_transform(posterior_transform, posterior, X)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> PFNModel:
        """A model with further observations, in the units of this one.

        They are appended to the encoding as long as no more rows are appended than in training,
        and the units of the encoded rows still fit; then everything is encoded anew.

        Args:
            X: Inputs `[..., n', d]`; further batch dimensions give a batch of models.
            Y: Targets `[..., n', m]`.
            noise: Known noise variances of the shape of Y, squared units of Y, NaN where unknown
                (all are without it); zero for exact values of f.
            kwargs: Ignored: BoTorch's fantasies pass sampler arguments.

        Raises:
            TypeError: another dtype or device than the model's.
            ValueError: rows or columns disagree, or values are not finite.
        """
        return self._with_observations(X, Y, noise, imagined=False)

    def _with_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None, *, imagined: bool
    ) -> PFNModel:
        """Imagined observations that are appended keep the units: fantasies are smooth in X."""
        if isinstance(Y, Tensor) and isinstance(X, Tensor):
            Y = _classes_as_numbers(self.pfn, Y, X)
        more = self._data.further(X, Y, noise)
        self._encoded.check(more)
        data = self._data.joined(more)
        self.pfn.coverage.warn_beyond_training(data.X.shape[-2])
        if not imagined:
            self.pfn.coverage.warn_outside_targets(data.transforms.targets(more.Y))
        new = copy.copy(self)
        new._recent = Recent()
        new._encoded = self._encoded.extended(data, more, imagined=imagined)
        return new

    def unlike_the_prior(self) -> str | None:
        """What `pfn.familiarity.unlike_the_prior` says of the data."""
        rows, targets, _ = self._data.flat()
        return unlike_the_prior(self.pfn, rows, targets, categorical=self._data.kinds())

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> PFNModel:
        """Models conditioned on observations drawn from the posterior of y at `X`.

        Args:
            X: Where to observe, `[..., q, d]`; q may be 0.
            sampler: Draws the observations.
            observation_noise: Known noise variances of them, broadcasting with `[..., q, m]`, in
                squared units of y. Without it the mean of the training data's where all of them
                are known, and else noise of unknown variance.
            kwargs: Ignored, as by `condition_on_observations`.

        Returns:
            A model with batch shape `[*sampler.sample_shape, ...]`.

        Raises:
            NotImplementedError: a classification network.
        """
        if self.pfn.architecture.classes:
            raise NotImplementedError(
                "fantasize() supports regression networks only; this is a classification network."
            )
        if observation_noise is not None and not isinstance(observation_noise, Tensor):
            raise TypeError(
                "observation_noise must be a tensor of variances, or None for the model's own "
                f"noise; got {observation_noise!r}."
            )
        if observation_noise is None:
            observation_noise = self._data.mean_noise()
        batch = torch.broadcast_shapes(self.batch_shape, X.shape[:-2])
        noise: bool | Tensor = True if observation_noise is None else observation_noise
        if X.shape[-2] == 0:
            Y = X.new_empty(*sampler.sample_shape, *batch, 0, self.num_outputs)
        else:
            Y = sampler(self.posterior(X, observation_noise=noise))
        known = None if observation_noise is None else observation_noise.expand(Y.shape)
        return self._with_observations(X, Y, known, imagined=True)

    def subset_output(self, idcs: Sequence[int]) -> PFNModel:
        """The model of some outputs only.

        Args:
            idcs: Indices of the outputs, which are independent, so that nothing else changes.

        Raises:
            NotImplementedError: a classification network, whose outputs are one distribution.
        """
        if self.pfn.architecture.classes:
            raise NotImplementedError(
                "the classes of a classification network cannot be separated."
            )
        m = self.train_Y.shape[-1]
        if any(not -m <= i < m for i in idcs):
            raise ValueError(f"the model has {m} outputs, got the indices {list(idcs)}.")
        new = copy.copy(self)
        new._recent = Recent()
        new._encoded = self._encoded.of_outputs([i % m for i in idcs])
        return new

    def _check_queries(self, X: Tensor) -> None:
        if X.dtype != self.train_X.dtype:
            raise TypeError(
                f"conditioned in {self.train_X.dtype}, got X in {X.dtype}; convert one of them."
            )
        if X.dim() < 2 or X.shape[-1] != self.train_X.shape[-1]:
            raise ValueError(
                f"X must have shape [..., q, {self.train_X.shape[-1]}], got {tuple(X.shape)}."
            )
        self.pfn.coverage.check_inputs(X)

    def _query_noise(self, given: bool | Tensor, rows: Tensor) -> Tensor | None:
        """Known variances `[..., q, m]` in the scale after the outcome transform, or None."""
        if given is False:
            return None
        noise = given.to(rows) if isinstance(given, Tensor) else self._data.mean_noise()
        if noise is None:
            return None
        if not self.pfn.coverage.known_noise or bool((noise < 0).any()):
            raise ValueError(
                "observation_noise must be True, False or, for a network that was trained with "
                "known noise, variances: none negative, and NaN where unknown."
            )
        batch = torch.broadcast_shapes(rows.shape[:-2], self.batch_shape)
        shape = (*batch, rows.shape[-2], self.train_Y.shape[-1])
        return self._data.transforms.noise(noise).expand(shape)


def _classes_as_numbers(network: Network, y: Tensor, like: Tensor) -> Tensor:
    """Classes of any number type in the dtype of the inputs."""
    return y.to(like.dtype) if network.architecture.classes and not y.is_floating_point() else y
