"""A trained network conditioned on data: a BoTorch `Model`.

The model encodes its data set once and answers any number of queries from that encoding.
Posteriors are bar distributions in the units of the user's y, of y or of the noise-free function;
class probabilities in classification. Marginals are read off directly. Joint samples and densities
follow the chain rule: every point is predicted from the context and the points before it, appended
to the encoding one by one; since a network is coherent only as far as it has learnt to be, they
can be averaged over several orders of the points.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.models.transforms.input import InputTransform
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from botorch.utils.types import DEFAULT
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.distributions.transforms import AffineTransform
from torch.utils.checkpoint import checkpoint

from pfn.distribution import BarDistribution
from pfn.network import PFN, Encoding
from priors.posteriors.protocol import PredictivePosterior, leading
from priors.posteriors.transformed import TransformedPosterior, apply_posterior_transform
from priors.posteriors.transforms import (
    check_range,
    make_input_transform,
    make_outcome_transform,
    of_outputs,
)

__all__ = ["BarPosterior", "CategoricalPosterior", "PFNModel"]

_Module = TypeVar("_Module", bound=nn.Module)


class PFNModel(Model):
    """A network conditioned on data; made by `PFN.condition`, whose arguments it takes.

    Attributes:
        train_X: Inputs `[*batch, n, d]`, as given.
        train_Y: Targets `[*batch, n, m]`, as given.
        train_Yvar: Known noise variances of the same shape, NaN where unknown; None for none.
        num_orders: Orders of the points over which joint samples and densities are averaged.
    """

    _rows_at_once = 8192
    _numbers_at_once = 2**26

    def __init__(
        self,
        pfn: PFN,
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
            y = _classes_as_numbers(pfn, y, X)
        if isinstance(train_Yvar, Tensor) and train_Yvar.dim() == X.dim() - 1:
            train_Yvar = train_Yvar.unsqueeze(-1)
        pfn.check(X, y, train_Yvar)
        pfn.warn_beyond_training(X.shape[-2], X.shape[-1])
        if num_orders < 1:
            raise ValueError(f"num_orders must be at least 1, got {num_orders}.")
        _check_categorical(pfn, categorical, X)
        _check_num_classes(pfn, num_classes, y)
        self.train_X, self.train_Y, self.train_Yvar = X, y, train_Yvar
        self.num_orders = num_orders
        self._categorical, self._column_seed = categorical, column_seed
        self._num_classes = num_classes
        self._input = _fitted(None if input_transform is DEFAULT else input_transform, X)
        outcome = None if outcome_transform is DEFAULT else outcome_transform
        self._outcome = make_outcome_transform(outcome, y)
        pfn.warn_outside_range(self._seen(X))
        # Its own weights, in the dtype and on the device of the data, and not trained any more.
        self.pfn = _frozen(pfn, X)
        self.eval()
        self._encode()

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
    def num_outputs(self) -> int:
        """Number of outputs; classes in classification."""
        return self.pfn.architecture.classes or self.train_Y.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of data sets."""
        return self.train_X.shape[:-2]

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
            observation_noise: Whether of the noisy y, or of the function f, where the network's
                tasks had one (else it knows y only, and answers that); or the variances of
                the noise at the queries, `[..., q, m]`, NaN where unknown, for a network that
                knows noise. True takes the mean of the training data's variances where all of
                them are known.
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
        rows = self._transformed(X)
        self.pfn.warn_outside_range(rows)
        chosen = list(range(self.train_Y.shape[-1])) if output_indices is None else output_indices
        if self.pfn.architecture.classes:
            if output_indices is not None:
                raise NotImplementedError(
                    "the classes of a classification network belong together."
                )
            flat = self._flat(rows, [0])
            logits = self._logits(flat, None, noisy=True)
            posterior: Any = CategoricalPosterior(flat.restore(logits)[..., 0, :])
            return posterior if posterior_transform is None else posterior_transform(posterior, X)
        noise = self._query_noise(observation_noise, rows)
        flat = self._flat(rows, list(chosen))
        noisy = observation_noise is not False or not self.pfn.knows_function
        known = None if noise is None else flat.flatten(noise[..., chosen])
        logits = flat.restore(self._logits(flat, known, noisy))
        bars = self.pfn.bars
        assert bars is not None
        posterior = _JointBarPosterior(bars, logits, _Joint(self, flat, known, noisy))
        location, scale = (
            value.reshape(*self.batch_shape, 1, self.train_Y.shape[-1])[..., list(chosen)]
            for value in (self._encoding.location, self._encoding.scale)
        )
        posterior = TransformedPosterior(posterior, AffineTransform(location, scale))
        if self._outcome is not None:
            posterior = TransformedPosterior(posterior, of_outputs(self._outcome, list(chosen)))
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
            noise: Known noise variances of the shape of Y, NaN where unknown; zero for exact
                values of f.
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
        Y = _classes_as_numbers(self.pfn, Y, X)
        given = [X.shape[:-2], Y.shape[:-2], *([] if noise is None else [noise.shape[:-2]])]
        batch = torch.broadcast_shapes(self.batch_shape, *given)
        X, Y = X.expand(*batch, *X.shape[-2:]), Y.expand(*batch, *Y.shape[-2:])
        noise = None if noise is None else noise.expand(*batch, *noise.shape[-2:])
        self.pfn.check(X, Y, noise)
        _check_num_classes(self.pfn, self._num_classes, Y)
        for name, before, after in (("X", self.train_X, X), ("Y", self.train_Y, Y)):
            if after.dtype != before.dtype or after.device != before.device:
                raise TypeError(
                    f"the model was conditioned in {before.dtype} on {before.device} and got "
                    f"{name} in {after.dtype} on {after.device}; convert one of them."
                )
            if after.shape[-1] != before.shape[-1]:
                raise ValueError(
                    f"the model was conditioned on {before.shape[-1]} columns of {name} and got "
                    f"{after.shape[-1]}; they must agree."
                )
        self.pfn.warn_beyond_training(self.train_X.shape[-2] + X.shape[-2])
        k, Yvar = X.shape[-2], noise
        new = copy.copy(self)
        new.train_X = torch.cat([self.train_X.expand(*batch, -1, -1), X], -2)
        new.train_Y = torch.cat([self.train_Y.expand(*batch, -1, -1), Y], -2)
        if self.train_Yvar is not None or Yvar is not None:
            old = self.train_Yvar
            old = torch.full_like(self.train_Y, math.nan) if old is None else old
            Yvar = torch.full_like(Y, math.nan) if Yvar is None else Yvar
            new.train_Yvar = torch.cat([old.expand(*batch, -1, -1), Yvar], -2)
        encoding = self._encoding.select(self._index(batch, list(range(self.train_Y.shape[-1]))))
        most = self.pfn.metadata.get("max_buffer", 0)
        if self._appended + k > most or not (imagined or new._fits(encoding)):
            new._encode()
            return new
        rows, targets, known = _flatten_data(self._seen(X), *self._to_network(Y, Yvar))
        new._encoding = self.pfn.append(encoding, rows, targets, noise_var=known)
        new._appended = self._appended + k
        return new

    def _fits(self, encoding: Encoding) -> bool:
        """Whether the units, and classes, of an encoding of some rows suit all of them."""
        rows, targets, _ = self._data()
        if encoding.num_classes is not None and self._num_classes is None:
            if bool((targets.amax(-1) >= encoding.num_classes).any()):
                return False
        return self.pfn.still_fits(encoding, rows, targets)

    def unlike_the_prior(self) -> str | None:
        """What `pfn.certificate.unlike_the_prior` says of the data."""
        from pfn.certificate import unlike_the_prior

        rows, targets, told = self._data()
        return unlike_the_prior(self.pfn, rows, targets, categorical=told["categorical"])

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
            raise NotImplementedError("fantasies are of regression; this network tells classes.")
        if observation_noise is not None and not isinstance(observation_noise, Tensor):
            raise TypeError(
                "observation_noise holds variances, or is None for the model's own noise; got "
                f"{observation_noise!r}."
            )
        if observation_noise is None:
            observation_noise = self._mean_noise()
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
            idcs: Which ones; outputs are independent, so nothing else changes.

        Raises:
            NotImplementedError: a classification network, whose outputs are one distribution.
        """
        if self.pfn.architecture.classes:
            raise NotImplementedError("the classes of a classification network belong together.")
        m = self.train_Y.shape[-1]
        if any(not -m <= i < m for i in idcs):
            raise ValueError(f"the model has {m} outputs, got the indices {list(idcs)}.")
        index = [i % m for i in idcs]
        new = copy.copy(self)
        new.train_Y = self.train_Y[..., index]
        new.train_Yvar = None if self.train_Yvar is None else self.train_Yvar[..., index]
        new._encoding = self._encoding.select(self._index(self.batch_shape, index))
        new._outcome = None if self._outcome is None else of_outputs(self._outcome, index)
        return new

    def _encode(self) -> None:
        """Encode all rows together."""
        rows, targets, told = self._data()
        if self._num_classes is not None:
            told["num_classes"] = targets.new_full((len(rows),), self._num_classes)
        self._encoding = self.pfn.encode(rows, targets, **told, column_seed=self._column_seed)
        self._appended = 0

    def _data(self) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
        """All rows as flat data sets: inputs, targets, and the network's arguments on them."""
        values = self._to_network(self.train_Y, self.train_Yvar)
        rows, targets, noise = _flatten_data(self._seen(self.train_X), *values)
        kind = None if self._categorical is None else self._categorical.expand(len(rows), -1)
        return rows, targets, {"noise_var": noise, "categorical": kind}

    def _seen(self, X: Tensor) -> Tensor:
        """Inputs of observed rows as the network sees them."""
        return self._transformed(X, "preprocess_transform")

    def _transformed(self, X: Tensor, how: str = "forward") -> Tensor:
        if self._input is None:
            return X
        rows = getattr(self._input, how)(X)
        if rows.shape == X.shape and bool((rows.isnan() & ~X.isnan()).any()):
            raise ValueError(
                "input_transform makes NaN of numbers; if it learns from X, which has missing "
                "values, give it its coefficients, or leave the inputs to the network."
            )
        return rows

    def _mean_noise(self) -> Tensor | None:
        """Mean known noise variance of the training data `[..., 1, m]`; None if some is not."""
        if self.train_Yvar is None:
            return None
        mean = self.train_Yvar.mean(-2, keepdim=True)
        return mean if bool(mean.isfinite().all()) else None

    def _to_network(self, Y: Tensor, Yvar: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self._outcome is None:
            return Y, Yvar
        check_range(self._outcome, Y)
        return self._outcome.inv(Y), None if Yvar is None else Yvar / self._outcome_scale() ** 2

    def _outcome_scale(self) -> Tensor:
        if not isinstance(self._outcome, AffineTransform):
            raise ValueError("noise variances need an outcome_transform that is affine, or none.")
        like = self.train_Y
        return torch.as_tensor(self._outcome.scale, dtype=like.dtype, device=like.device)

    def _check_queries(self, X: Tensor) -> None:
        if X.dtype != self.train_X.dtype:
            raise TypeError(
                f"conditioned in {self.train_X.dtype}, got X in {X.dtype}; convert one of them."
            )
        if X.dim() < 2 or X.shape[-1] != self.train_X.shape[-1]:
            raise ValueError(
                f"X must have shape [..., q, {self.train_X.shape[-1]}], got {tuple(X.shape)}."
            )
        self.pfn.check_finite(X)

    def _query_noise(self, given: bool | Tensor, rows: Tensor) -> Tensor | None:
        """Known variances `[..., q, m]` in the scale after the outcome transform, or None."""
        if given is False:
            return None
        noise = given.to(rows) if isinstance(given, Tensor) else self._mean_noise()
        if noise is None:
            return None
        if not self.pfn.knows_noise or bool((noise < 0).any()):
            raise ValueError(
                "observation_noise holds variances, none negative and NaN where unknown, for a "
                "network that was trained with known noise; else it is True or False."
            )
        batch = torch.broadcast_shapes(rows.shape[:-2], self.batch_shape)
        shape = (*batch, rows.shape[-2], self.train_Y.shape[-1])
        if self._outcome is not None:
            noise = noise / self._outcome_scale() ** 2
        return noise.expand(shape)

    def _index(self, batch: torch.Size, outputs: list[int]) -> Tensor:
        """Which encoded data set serves each of `[*batch, outputs]`, flat."""
        own, m = self.batch_shape, self.train_Y.shape[-1]
        index = torch.arange(own.numel() * m, device=self.train_X.device).reshape(*own, m)
        return index[..., outputs].expand(*batch, len(outputs)).flatten()

    def _flat(self, rows: Tensor, outputs: list[int]) -> _Flat:
        batch = torch.broadcast_shapes(rows.shape[:-2], self.batch_shape)
        return _Flat(rows.expand(*batch, *rows.shape[-2:]), batch, outputs)

    def _logits(self, flat: _Flat, noise: Tensor | None, noisy: bool) -> Tensor:
        """Logits `[B' m', q, K]` of queries, by data set so that each is looked up once."""
        own, m = self.batch_shape, self.train_Y.shape[-1]
        batch, outputs = flat.batch, flat.outputs
        encoding = self._encoding
        if len(outputs) != m:
            encoding = encoding.select(self._index(own, outputs))
        # Dimensions along which queries share a data set, wherever they are, go to their rows.
        aligned = (1,) * (len(batch) - len(own)) + tuple(own)
        shared = [i for i, size in enumerate(aligned) if size == 1]
        apart = [i for i, size in enumerate(aligned) if size != 1]
        order = [*apart, len(batch), *shared, len(batch) + 1]
        shape = [*batch, len(outputs), flat.rows.shape[-2]]
        merged = [
            own.numel() * len(outputs),
            math.prod(shape[i] for i in [*shared, len(shape) - 1]),
        ]

        def by_data_set(value: Tensor) -> Tensor:
            """[B k, q, ...] -> [own k, shared q, ...]"""
            value = value.reshape(*shape, *value.shape[2:])
            value = value.permute(*order, *range(len(order), value.dim()))
            return value.reshape(*merged, *value.shape[len(order) :])

        rows = by_data_set(flat.inputs())
        known = None if noise is None else by_data_set(noise)
        parts = []
        for start in range(0, max(rows.shape[1], 1), self._rows_at_once):
            part = slice(start, start + self._rows_at_once)
            of_y, of_f = self.pfn.decode(
                encoding, rows[:, part], noise_var=None if known is None else known[:, part]
            )
            parts.append(of_y if noisy or of_f is None else of_f)
        logits = torch.cat(parts, dim=1)
        logits = logits.reshape(*(shape[i] for i in order), logits.shape[-1])
        back = [order.index(i) for i in range(len(order))]
        return logits.permute(*back, -1).reshape(
            math.prod(shape[:-1]), *shape[-1:], *logits.shape[-1:]
        )


@dataclass(frozen=True)
class _Flat:
    """Queries of a batch of data sets and outputs as a plain batch, `[B m, q, d]`."""

    rows: Tensor
    batch: torch.Size
    outputs: list[int]

    def inputs(self) -> Tensor:
        q, d = self.rows.shape[-2:]
        m = len(self.outputs)
        return self.rows.unsqueeze(-3).expand(*self.batch, m, q, d).flatten(0, -3)

    def flatten(self, values: Tensor) -> Tensor:
        """[..., *batch, q, m] -> [... B m, q]."""
        return values.mT.flatten(0, -2)

    def restore(self, values: Tensor, lead: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """[lead B m, q, ...] -> [*lead, *batch, q, m, ...]."""
        values = values.reshape(*lead, *self.batch, len(self.outputs), *values.shape[1:])
        at = len(lead) + len(self.batch)
        return values.transpose(at, at + 1)


@dataclass(frozen=True)
class _Joint:
    """The chain rule over the points of queries."""

    model: PFNModel
    flat: _Flat
    noise: Tensor | None
    noisy: bool

    def sample(self, lead: torch.Size, p: Tensor) -> Tensor:
        """Values with conditional probabilities `p` below them, `[*lead, *batch, q, m]` both."""
        orders = torch.arange(lead.numel(), device=p.device)
        values = self._chain(orders, self.flat.flatten(p), None)[0]
        return self.flat.restore(values, lead)

    def log_prob(self, z: Tensor) -> Tensor:
        """Joint log densities of `z` `[*lead, *batch, q, m]`, averaged over orders, `[...]`."""
        flat, repeats = self.flat, self.model.num_orders
        points = torch.Size([*flat.batch, flat.rows.shape[-2], len(flat.outputs)])
        shape = torch.broadcast_shapes(z.shape, points)
        lead = shape[: len(shape) - len(points)]
        z = z.expand(repeats, *shape)
        orders = torch.arange(repeats, device=z.device).repeat_interleave(lead.numel())
        density = self._chain(orders, None, flat.flatten(z))[1]
        total = density.reshape(repeats, *lead, *flat.batch, len(flat.outputs)).sum(-1)
        return total.logsumexp(0) - math.log(repeats)

    def _chain(self, number: Tensor, p: Tensor | None, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and log densities `[L B m, q]`, `[L B m]`; `number` `[L]` chooses the orders."""
        model, flat = self.model, self.flat
        known = p if p is not None else z
        assert known is not None
        copies, q = known.shape
        index = model._index(flat.batch, flat.outputs)
        each = len(index)
        index = index.expand(len(number), -1).flatten()
        X = flat.inputs().expand(len(number), -1, -1, -1).flatten(0, 1)
        noise = None
        if self.noise is not None:
            noise = self.noise.expand(len(number), -1, -1).flatten(0, 1)
        chosen = (number % model.num_orders).repeat_interleave(each)
        orders = _orders(q, model.num_orders, X.device)[chosen]
        # What a copy takes: attention weights, keys and values of its own, and logits.
        context, bars = model._encoding.context, model.pfn.bars
        assert bars is not None
        _, heads, _, width = context.keys[0].shape
        size = 2 * len(context.keys) * heads * (context.length + q + width) + 4 * len(bars.borders)
        step = max(1, model._numbers_at_once // (q * size))
        values, densities = [known.new_empty(0, q)], [known.new_empty(0)]
        for start in range(0, copies, step):
            part = slice(start, start + step)
            inputs = (
                index[part],
                X[part],
                orders[part],
                None if noise is None else noise[part],
                None if p is None else p[part],
                None if z is None else z[part],
            )
            # Gradients would keep what all parts take.
            several = step < copies and torch.is_grad_enabled()
            found = (
                checkpoint(self._chunk, *inputs, use_reentrant=False, preserve_rng_state=False)
                if several
                else self._chunk(*inputs)
            )
            values.append(found[0])
            densities.append(found[1])
        return torch.cat(values), torch.cat(densities)

    def _chunk(
        self,
        index: Tensor,
        X: Tensor,
        order: Tensor,
        noise: Tensor | None,
        p: Tensor | None,
        z: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        pfn, encoding = self.model.pfn, self.model._encoding.select(index)
        bars = pfn.bars
        assert bars is not None
        copies, q, d = X.shape
        found, total = [], X.new_zeros(copies)
        for i in range(q):
            at = order[:, i : i + 1]
            x = X.gather(1, at[..., None].expand(-1, -1, d))
            own = None if noise is None else noise.gather(1, at)
            of_y, of_f = pfn.decode(encoding, x, noise_var=own)
            logits = of_y if self.noisy else of_f
            assert logits is not None
            if z is None:
                assert p is not None
                value = bars.quantile(logits, p.gather(1, at))
            else:
                value = z.gather(1, at)
                total = total + bars.log_prob(logits, value)[:, 0]
            found.append(value)
            if i + 1 < q:
                told = own if self.noisy else torch.zeros_like(value)
                y = encoding.location + encoding.scale * value
                encoding = pfn.append(encoding, x, y, noise_var=told)
        return torch.cat(found, dim=1).gather(1, order.argsort(dim=1)), total


class BarPosterior(PredictivePosterior):
    """Bar distributions as a posterior, independent over points.

    Args:
        bars: The distribution's borders and tails.
        logits: `[..., n, m, K]`.
    """

    def __init__(self, bars: BarDistribution, logits: Tensor) -> None:
        self.bars, self.logits = bars, logits

    @property
    def mean(self) -> Tensor:
        return self.bars.mean(self.logits)

    @property
    def variance(self) -> Tensor:
        return self.bars.variance(self.logits)

    def log_prob(self, Y: Tensor) -> Tensor:
        return self.bars.log_prob(self.logits, Y)

    def cdf(self, Y: Tensor) -> Tensor:
        return self.bars.cdf(self.logits, Y)

    def quantile(self, value: Tensor) -> Tensor:
        return self.bars.quantile(self.logits, leading(value, self.logits[..., 0]))

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return self.bars.log_expected_improvement(self.logits, best, maximize)

    def log_probability_of_improvement(
        self, best_f: Tensor | float, maximize: bool = True
    ) -> Tensor:
        best = torch.as_tensor(best_f, dtype=self.dtype, device=self.device)
        return self.bars.log_probability_of_improvement(self.logits, best, maximize)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        return self.bars.quantile(self.logits, _probabilities(base_samples))

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.logits.shape[:-1]

    @property
    def base_sample_shape(self) -> torch.Size:
        return self._extended_shape()


class _JointBarPosterior(BarPosterior):
    """Bar distributions whose points are dependent through the network."""

    def __init__(self, bars: BarDistribution, logits: Tensor, joint: _Joint) -> None:
        super().__init__(bars, logits)
        self._joint = joint

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        if self.logits.shape[-3] <= 1:
            return super().rsample_from_base_samples(sample_shape, base_samples)
        self._require_appending()
        lead = torch.Size(sample_shape)
        p = _probabilities(base_samples).expand(*lead, *self.logits.shape[:-1])
        return self._joint.sample(lead, p)

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        if self.logits.shape[-3] > 1:
            self._require_appending()
        return self._joint.log_prob(Y)

    def _require_appending(self) -> None:
        if not self._joint.model.pfn.metadata.get("max_buffer"):
            raise NotImplementedError(
                "this network was trained without appended rows and has no joint over points; "
                "train it with TrainingConfig.appended > 0."
            )
        model, points = self._joint.model, self.logits.shape[-3]
        model.pfn.warn_beyond_training(model.train_X.shape[-2] + points - 1)
        most = model.pfn.metadata["max_buffer"]
        if model._appended + points - 1 > most:
            warnings.warn(
                f"This network was trained on up to {most} appended rows, and the joint of "
                f"{points} points appends {model._appended + points - 1}; beyond that it is "
                "extrapolation. Ask for fewer points at once, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )


class CategoricalPosterior(Posterior):
    """Class probabilities, independent over points.

    Args:
        logits: `[..., n, classes]`; -inf for impossible classes.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.log_softmax(-1)

    @property
    def mean(self) -> Tensor:
        """Probabilities, `[..., n, classes]`."""
        return self.logits.exp()

    @property
    def variance(self) -> Tensor:
        """Variances of the class indicators, `[..., n, classes]`."""
        return self.mean * (1 - self.mean)

    def log_prob(self, Y: Tensor) -> Tensor:
        """Log probabilities of classes `Y` `[..., n, 1]`, of the same shape."""
        chosen = nn.functional.one_hot(Y[..., 0].long(), self.logits.shape[-1]).bool()
        return torch.where(chosen, self.logits, 0).sum(-1, keepdim=True)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Class indicators `[*sample_shape, ..., n, classes]`; without gradients."""
        shape = torch.Size([1]) if sample_shape is None else sample_shape
        drawn = Categorical(logits=self.logits.detach()).sample(shape)
        return torch.nn.functional.one_hot(drawn, self.logits.shape[-1]).to(self.logits)

    @property
    def device(self) -> torch.device:
        """Device of the distribution."""
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the distribution."""
        return self.logits.dtype

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape, without points and classes."""
        return self.logits.shape[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size(sample_shape) + self.logits.shape


def _frozen(module: _Module, like: Tensor) -> _Module:
    """`copy.deepcopy(module).to(like).eval().requires_grad_(False)`, several times faster.

    Conditioning copies the network, for a small one as costly as encoding. Attributes that are
    neither tensors nor modules nor dicts are shared: they are never changed.
    """
    new = module.__new__(type(module))
    new.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}

    def own(value: Tensor) -> Tensor:
        value = value.detach()
        floating = value.is_floating_point()
        return value.to(like, copy=True) if floating else value.to(like.device, copy=True)

    for name, parameter in module._parameters.items():
        if parameter is not None:
            new._parameters[name] = nn.Parameter(own(parameter), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            new._buffers[name] = own(buffer)
    for name, child in module._modules.items():
        if child is not None:
            new._modules[name] = _frozen(child, like)
    new.training = False
    return new


def _fitted(input_transform: Any, X: Tensor) -> InputTransform | None:
    """A copy of an input transform that has learnt from X whatever it learns, and never again."""
    made = make_input_transform(input_transform, X)
    if made is None:
        return None
    made = copy.deepcopy(made).to(X).train()
    if X.shape[-2]:
        made(X)
    elif any(getattr(part, "learn_coefficients", False) for part in made.modules()):
        raise ValueError(
            "input_transform learns from X, which has no rows; give it its coefficients, as "
            "Normalize(d, bounds=...) does."
        )
    return made.eval()


def _classes_as_numbers(pfn: PFN, y: Tensor, like: Tensor) -> Tensor:
    """Classes of any number type in the dtype of the inputs."""
    return y.to(like.dtype) if pfn.architecture.classes and not y.is_floating_point() else y


def _check_categorical(pfn: PFN, categorical: Tensor | None, X: Tensor) -> None:
    if categorical is None:
        return
    if categorical.shape != X.shape[-1:]:
        raise ValueError(
            f"categorical must be a mask [{X.shape[-1]}], got {tuple(categorical.shape)}."
        )
    if not pfn.metadata.get("categorical"):
        raise ValueError(
            "this network was trained without categorical columns; leave `categorical` away, or "
            "train it on tasks that have some (`priors.Tabular`)."
        )


def _check_num_classes(pfn: PFN, num_classes: int | None, y: Tensor) -> None:
    if num_classes is None:
        return
    most = pfn.architecture.classes
    least = 1 + (int(y.max()) if y.numel() else 0)
    if not least <= num_classes <= most:
        raise ValueError(
            f"num_classes must lie between {least}, as many as y has, and {most}, as many as the "
            f"network has (none in regression); got {num_classes}."
        )


def _probabilities(base_samples: Tensor) -> Tensor:
    p = torch.special.ndtr(base_samples)
    eps = torch.finfo(p.dtype).eps
    return p.clamp(eps, 1 - eps)


def _orders(q: int, number: int, device: torch.device) -> Tensor:
    """Orders of q points: the given one first, then random ones; `[number, q]`."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(q, device="cpu")]
    orders += [torch.randperm(q, generator=generator, device="cpu") for _ in range(number - 1)]
    return torch.stack(orders).to(device)


def _flatten_data(
    X: Tensor, y: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs as data sets of their own that share inputs: `[B m, n, d]`, `[B m, n]`."""
    batch, (n, d), m = X.shape[:-2].numel(), X.shape[-2:], y.shape[-1]
    rows = X.reshape(batch, n, d).repeat_interleave(m, dim=0)

    def flat(value: Tensor) -> Tensor:
        return value.reshape(batch, n, m).mT.reshape(batch * m, n)

    return rows, flat(y), None if noise is None else flat(noise)
