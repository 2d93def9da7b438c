"""A trained network as an inference engine: context in, BoTorch `Model` out.

`PFN.condition` encodes a data set once; the model it returns answers any number of queries from
that encoding. Posteriors are bar distributions, in the units of the user's y, of y or of the
noise-free function; points are independent given the context (marginals, no joint density).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from pfn.architecture import ArchitectureConfig, Context, Transformer
from pfn.distribution import BarDistribution
from priors.files import read_safetensors, write_safetensors_atomically
from priors.posterior import PredictivePosterior, TransformedPosterior, leading
from priors.transforms import DEFAULT, make_input_transform, make_outcome_transform

if TYPE_CHECKING:
    from pfn.certificate import Certificate

__all__ = ["PFN", "BarPosterior", "PFNModel", "load"]

# Context rows that the prior's location and scale count for.
_PRIOR_ROWS = 1.0


@dataclass(frozen=True)
class Encoding:
    """Encoded contexts and the units `[B, 1]` of their targets."""

    context: Context
    location: Tensor
    scale: Tensor


class PFN(nn.Module):
    """A network with its bar distribution and what is known about it.

    Args:
        architecture: Sizes of the network.
        borders: Borders of the bars, `[bars + 1]`, in units of the standardised target.
        tail_scale: Scale of the tails in the same units.
        tail_index: Index of the tails.
        prior_location: Mean of y under the prior.
        prior_scale: Standard deviation of y under the prior.
        metadata: How it was trained, its certificate, ...; plain JSON values.
    """

    def __init__(
        self,
        architecture: ArchitectureConfig,
        borders: Tensor,
        *,
        tail_scale: float,
        tail_index: float = 5.0,
        prior_location: float = 0.0,
        prior_scale: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = Transformer(architecture)
        self.bars = BarDistribution(borders, tail_scale=tail_scale, tail_index=tail_index)
        self.prior_location, self.prior_scale = float(prior_location), float(prior_scale)
        self.metadata = dict(metadata or {})

    def encode(self, X: Tensor, y: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode contexts: inputs `[B, n, d]`, raw targets `[B, n]`, mask `[B, n]` or None."""
        location, scale = self.units(y, mask)
        units = torch.cat([location, scale.log()], dim=-1)
        z = (y - location) / scale
        return Encoding(self.network.encode(X, z, units, mask), location, scale)

    def units(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and scale `[B, 1]` in which the network sees the targets `[B, n]`.

        Mean and standard deviation of the context shrunk towards the prior's, which count for
        one row; so an empty context has the prior's. Both are inputs of the network, which
        therefore still knows the raw targets.
        """
        weight = torch.ones_like(y) if mask is None else mask.to(y)
        count = weight.sum(-1, keepdim=True) + _PRIOR_ROWS
        location = ((y * weight).sum(-1, keepdim=True) + _PRIOR_ROWS * self.prior_location) / count
        squares = ((y - location).square() * weight).sum(-1, keepdim=True)
        return location, ((squares + _PRIOR_ROWS * self.prior_scale**2) / count).sqrt()

    def condition(
        self,
        X: Tensor,
        y: Tensor,
        *,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
    ) -> PFNModel:
        """Condition on a data set, or on a batch of them.

        Args:
            X: Inputs `[..., n, d]`; n may be 0.
            y: Targets `[..., n, m]`, or `[..., n]` for one output; outputs are inferred one by
                one.
            input_transform: `DEFAULT` standardises by the rows of X, None is off (for a network
                trained on a fixed prior), or a BoTorch `InputTransform`.
            outcome_transform: `DEFAULT` standardises by the rows of y, None is off, or an
                elementwise `torch.distributions` transform from the network's scale to y's.

        Raises:
            TypeError: not floating-point tensors of one dtype.
            ValueError: shapes disagree, values are not finite, or there are more features than
                the network has slots.
        """
        y = y.unsqueeze(-1) if y.dim() == X.dim() - 1 else y
        self._check(X, y)
        self._warn_beyond_training(X.shape[-2])
        if X.shape[-2] == 0:  # nothing to standardise by
            input_transform = None if input_transform is DEFAULT else input_transform
            outcome_transform = None if outcome_transform is DEFAULT else outcome_transform
        return PFNModel(
            self,
            X,
            y,
            make_input_transform(input_transform, X),
            make_outcome_transform(outcome_transform, y),
        )

    @property
    def max_context(self) -> int | float:
        """Most context rows seen in training; infinite where that is not recorded."""
        return self.metadata.get("max_context", float("inf"))

    @property
    def certificate(self) -> Certificate | None:
        """The measured distance to the exact posterior, if it was measured."""
        from pfn.certificate import Certificate

        values = self.metadata.get("certificate")
        return None if values is None else Certificate.from_json(values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, sizes and metadata to one safetensors file, atomically."""
        description = {
            "architecture": asdict(self.architecture),
            "tail_scale": self.bars.tail_scale,
            "tail_index": self.bars.tail_index,
            "prior_location": self.prior_location,
            "prior_scale": self.prior_scale,
            "targets": "standardised by mean and standard deviation of the context, shrunk "
            "towards the prior's by one row; both are inputs of the network",
            "metadata": self.metadata,
        }
        write_safetensors_atomically(path, self.state_dict(), kind="PFN", description=description)

    def _warn_beyond_training(self, rows: int) -> None:
        if rows > self.max_context:
            warnings.warn(
                f"This network was trained on up to {self.max_context} context rows and got "
                f"{rows}; beyond that its predictions are extrapolation. Condition on a subset, or "
                "silence this with warnings.filterwarnings('ignore', 'This network').",
                stacklevel=3,
            )

    def _check(self, X: Tensor, y: Tensor) -> None:
        for name, value in (("X", X), ("y", y)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {value!r:.60}.")
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"{name} has NaN or infinite values; remove or impute those rows first."
                )
        if X.dim() < 2 or X.shape[:-1] != y.shape[:-1] or y.shape[-1] == 0:
            raise ValueError(
                f"condition needs X [..., n, d] and y [..., n, m] with the same rows, got "
                f"{tuple(X.shape)} and {tuple(y.shape)}."
            )
        if X.dtype != y.dtype or X.device != y.device:
            raise TypeError(
                f"X is {X.dtype} on {X.device} and y {y.dtype} on {y.device}; they must agree."
            )
        slots = self.architecture.max_features
        if not 1 <= X.shape[-1] <= slots:
            raise ValueError(
                f"X has {X.shape[-1]} features; this network takes 1 to {slots}. Select features, "
                "or train a network with more slots."
            )


class PFNModel(Model):
    """A network conditioned on data; made by `PFN.condition`.

    Attributes:
        train_X: Inputs `[*batch, n, d]`, as given.
        train_Y: Targets `[*batch, n, m]`, as given.
    """

    _rows_at_once = 8192

    def __init__(
        self, pfn: PFN, X: Tensor, y: Tensor, input_transform: Any, outcome_transform: Any
    ) -> None:
        super().__init__()
        self.train_X, self.train_Y = X, y
        self._input, self._outcome = input_transform, outcome_transform
        # Its own weights, in the dtype and on the device of the data, and not trained any more.
        self.pfn = copy.deepcopy(pfn).to(X).eval().requires_grad_(False)
        rows = X if input_transform is None else input_transform(X)
        targets = y if outcome_transform is None else outcome_transform.inv(y)
        batch, (n, d), m = X.shape[:-2].numel(), X.shape[-2:], y.shape[-1]
        # Outputs are data sets of their own that share their inputs: [B * m, ...].
        rows = rows.reshape(batch, n, d).repeat_interleave(m, dim=0)
        targets = targets.reshape(batch, n, m).mT.reshape(batch * m, n)
        self._encoding = self.pfn.encode(rows, targets)

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return self.train_Y.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch of data sets."""
        return self.train_X.shape[:-2]

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> PredictivePosterior | Posterior:
        """Posterior at `X` `[..., q, d]`, whose batch broadcasts with that of the data sets.

        Args:
            X: Queries, in units of the training inputs.
            output_indices: Outputs to return; all if None.
            observation_noise: Whether of the noisy y, or of the function f.
            posterior_transform: Applied last.

        Returns:
            A posterior `[..., q, m]` in units of y, differentiable in X.

        Raises:
            TypeError: another dtype than the training data's, or noise given as a tensor.
            ValueError: another number of features.
        """
        if not isinstance(observation_noise, bool):
            raise TypeError("observation_noise must be True or False: the network infers noise.")
        if X.dtype != self.train_X.dtype:
            raise TypeError(
                f"conditioned in {self.train_X.dtype}, got X in {X.dtype}; convert one of them."
            )
        if X.dim() < 2 or X.shape[-1] != self.train_X.shape[-1]:
            raise ValueError(
                f"X must have shape [..., q, {self.train_X.shape[-1]}], got {tuple(X.shape)}."
            )
        logits = self._logits(X if self._input is None else self._input(X), observation_noise)
        location, scale = (
            value.reshape(*self.batch_shape, 1, self.num_outputs)
            for value in (self._encoding.location, self._encoding.scale)
        )
        affine = AffineTransform(location, scale)
        outcome = self._outcome
        if output_indices is not None:
            index = list(output_indices)
            logits = logits[..., index, :]
            affine = AffineTransform(location[..., index], scale[..., index])
            if isinstance(outcome, AffineTransform):
                loc, scale = _columns(outcome.loc, index), _columns(outcome.scale, index)
                outcome = AffineTransform(loc, scale)
        posterior: PredictivePosterior = BarPosterior(self.pfn.bars, logits)
        posterior = TransformedPosterior(posterior, affine)
        if outcome is not None:
            posterior = TransformedPosterior(posterior, outcome)
        if posterior_transform is not None:
            return posterior_transform(posterior=posterior, X=X)
        return posterior

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> PFNModel:
        """A model with further observations, under the same transforms.

        Args:
            X: Inputs `[..., n', d]`; further batch dimensions give a batch of models.
            Y: Targets `[..., n', m]`.
            kwargs: BoTorch's `noise` is refused: the network infers the noise.

        Raises:
            NotImplementedError: noise variances are given.
            TypeError: another dtype or device than the model's.
            ValueError: rows or columns disagree, or values are not finite.
        """
        if kwargs.get("noise") is not None:
            raise NotImplementedError("this network infers the noise; it takes no noise variances.")
        self.pfn._check(X, Y)
        old, new = (self.train_X, self.train_Y), (X, Y)
        for name, before, after in zip(("X", "Y"), old, new, strict=True):
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
        self.pfn._warn_beyond_training(self.train_X.shape[-2] + X.shape[-2])
        batch = torch.broadcast_shapes(self.batch_shape, X.shape[:-2])
        rows, targets = (
            torch.cat(
                [old.expand(*batch, *old.shape[-2:]), new.expand(*batch, *new.shape[-2:])], -2
            )
            for old, new in ((self.train_X, X), (self.train_Y, Y))
        )
        return PFNModel(self.pfn, rows, targets, self._input, self._outcome)

    def _logits(self, X: Tensor, noisy: bool) -> Tensor:
        """Logits `[..., q, m, K + 2]` at transformed queries `[..., q, d]`."""
        own, m = self.batch_shape, self.num_outputs
        batch = torch.broadcast_shapes(X.shape[:-2], own)
        q, d = X.shape[-2:]
        # Queries of one data set stand in one row of the network's batch: [B, L * q, d].
        rows = X.expand(*batch, q, d).reshape(-1, own.numel(), q, d).transpose(0, 1)
        rows = rows.reshape(own.numel(), -1, d).repeat_interleave(m, dim=0)
        parts = [
            self.pfn.network.decode(self._encoding.context, part)[0 if noisy else 1]
            for part in rows.split(self._rows_at_once, dim=1)
        ]
        logits = torch.cat(parts, dim=1).unflatten(0, (own.numel(), m)).unflatten(2, (-1, q))
        return logits.permute(2, 0, 3, 1, 4).reshape(*batch, q, m, -1)


class BarPosterior(PredictivePosterior):
    """Bar distributions as a posterior, independent over points.

    Args:
        bars: The distribution's borders and tails.
        logits: `[..., n, m, K + 2]`.
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
        return self.bars.log_prob(*self._with(Y))

    def cdf(self, Y: Tensor) -> Tensor:
        return self.bars.cdf(*self._with(Y))

    def quantile(self, value: Tensor) -> Tensor:
        return self.bars.quantile(self.logits, leading(value, self.logits[..., 0]))

    def log_expected_improvement(self, best_f: Tensor | float, maximize: bool = True) -> Tensor:
        best = torch.as_tensor(best_f).to(self.logits)
        return self.bars.log_expected_improvement(*self._with(best), maximize)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        p = torch.special.ndtr(base_samples)
        eps = torch.finfo(p.dtype).eps
        return self.bars.quantile(self.logits, p.clamp(eps, 1 - eps))

    def _with(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(values.shape, self.logits.shape[:-1])
        return self.logits.expand(*shape, -1), values.expand(shape)


def load(name_or_path: str | os.PathLike[str]) -> PFN:
    """Load a shipped network by name, or one of your own from its file.

    Args:
        name_or_path: A shipped name, such as "regression", or the path of a file that
            `PFN.save` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: the file is damaged, foreign, or does not hold what it describes.
    """
    path = Path(name_or_path)
    folder = Path(__file__).parent / "checkpoints"
    shipped = folder / f"{name_or_path}.safetensors"
    if not path.exists() and not shipped.exists():
        names = sorted(file.stem for file in folder.glob("*.safetensors"))
        raise FileNotFoundError(
            f"{str(name_or_path)!r} is neither a file nor a shipped network; shipped are {names}."
        )
    tensors, description = read_safetensors(path if path.exists() else shipped, kind="PFN")
    try:
        pfn = PFN(
            ArchitectureConfig(**description["architecture"]),
            tensors["bars.borders"],
            tail_scale=description["tail_scale"],
            tail_index=description["tail_index"],
            prior_location=description["prior_location"],
            prior_scale=description["prior_scale"],
            metadata=description["metadata"],
        )
        pfn.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name_or_path} does not hold the network it describes: {error}"
        ) from error
    return pfn.eval()


def _columns(value: Any, index: list[int]) -> Any:
    """The columns of a transform's parameter; a number or a single column serves all."""
    return value[..., index] if isinstance(value, Tensor) and value.shape[-1:] != (1,) else value
