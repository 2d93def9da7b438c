"""A trained network as an object: units, encoding of contexts, files.

`PFN.condition` makes a BoTorch `Model` of a data set; `encode`, `append` and `decode` are what it
is made of, and what training uses, so that a network sees the same numbers in both.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pfn.architecture import ArchitectureConfig, Context, Rows, Targets, Transformer
from pfn.distribution import BarDistribution
from priors.files import read_safetensors, write_safetensors_atomically
from priors.posteriors.transforms import DEFAULT, location_scale

if TYPE_CHECKING:
    from botorch.models.model import Model

    from pfn.certificate import Certificate

__all__ = ["PFN", "Encoding", "load"]

# Context rows that the prior's location and scale count for.
_PRIOR_ROWS = 1.0
_WHAT_TO_DO = (
    "Pass `fallback`, repair predictions by `pfn.reweighting.reweight`, train a network on a prior "
    "that fits, or silence this with warnings.filterwarnings('ignore', 'This data set')."
)
_LARGEST = 10.0  # standardised inputs are squashed to this; few context rows make large ones
_INPUTS, _TARGETS = ("raw", "standardised"), ("raw", "given", "standardised")


@dataclass(frozen=True)
class Encoding:
    """Encoded contexts and the units in which the network sees them.

    Attributes:
        context: What queries attend to.
        location: Of the targets, `[B, 1]`; 0 in classification.
        scale: Of the targets, `[B, 1]`; 1 in classification.
        told: What the network is told of the units, or of the number of classes, `[B, 2]`.
        column_location: Of the inputs, `[B, 1, d]`.
        column_scale: Of the inputs, `[B, 1, d]`.
        categorical: `[B, d]` or None.
        codes: Column codes, `[B, d, 16]` or None.
        num_classes: `[B]`, in classification.
        order: Which columns fill the slots, `[D]` at most; None for all of them as given.
    """

    context: Context
    location: Tensor
    scale: Tensor
    told: Tensor
    column_location: Tensor
    column_scale: Tensor
    categorical: Tensor | None
    codes: Tensor | None
    num_classes: Tensor | None = None
    order: Tensor | None = None

    def select(self, index: Tensor) -> Encoding:
        """The data sets `index` `[B']`, with repetitions."""

        def rows(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return Encoding(
            self.context.select(index),
            self.location[index],
            self.scale[index],
            self.told[index],
            self.column_location[index],
            self.column_scale[index],
            rows(self.categorical),
            rows(self.codes),
            rows(self.num_classes),
            self.order,
        )


class PFN(nn.Module):
    """A network with its output distribution and what is known about it.

    Args:
        architecture: Sizes of the network.
        borders: Borders of the bar distribution, in the network's units of the target; None in
            classification.
        tail_scale: Scale of the tails in the same units.
        tail_index: Index of the tails.
        inputs: "raw", for a prior over functions on a fixed domain; or "standardised" by mean
            and standard deviation of the context rows, column by column, and squashed to (-10, 10).
        targets: "raw", in fixed units of the prior; "given", standardised by mean and standard
            deviation of the context shrunk towards the prior's, both inputs of the network,
            which therefore still knows the raw targets (an empty or one-point context has about
            the prior's); "standardised", by mean and deviation of the context alone (one point has
            the prior's deviation, an empty context also its mean), so that predictions follow any
            shift and scale of the targets and the network knows no absolute units.
        prior_location: Mean of y under the prior.
        prior_scale: Standard deviation of y under the prior.
        metadata: How it was trained, its certificate, ...; plain JSON values. "max_context",
            "max_buffer", "missing", "categorical", "known_noise", "function", "exchangeable" and,
            for raw inputs, "input_range" say what the training covered.
    """

    def __init__(
        self,
        architecture: ArchitectureConfig,
        borders: Tensor | None,
        *,
        tail_scale: float = 1.0,
        tail_index: float = 5.0,
        inputs: str = "raw",
        targets: str = "given",
        prior_location: float = 0.0,
        prior_scale: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if inputs not in _INPUTS or targets not in _TARGETS:
            raise ValueError(
                f"inputs must be one of {_INPUTS} and targets one of {_TARGETS}, got {inputs!r} "
                f"and {targets!r}."
            )
        if (borders is None) != bool(architecture.classes):
            raise ValueError("a network has either borders of a bar distribution or classes.")
        self.architecture = architecture
        self.bars: BarDistribution | None = None
        if borders is not None:
            self.bars = BarDistribution(borders, tail_scale=tail_scale, tail_index=tail_index)
        self.network = Transformer(architecture, self.bars.num_logits if self.bars else None)
        self.inputs, self.targets = inputs, targets
        self.prior_location, self.prior_scale = float(prior_location), float(prior_scale)
        self.metadata = dict(metadata or {})

    def encode(
        self,
        X: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        noise_var: Tensor | None = None,
        categorical: Tensor | None = None,
        num_classes: Tensor | None = None,
        codes: Tensor | None = None,
        column_seed: int = 0,
    ) -> Encoding:
        """Encode contexts.

        Args:
            X: Inputs `[B, n, d]`, NaN where missing.
            y: Raw targets `[B, n]`.
            mask: `[B, n]`, False for padding.
            noise_var: Known noise variances `[B, n]`, NaN where unknown; None for none.
            categorical: `[B, d]`, True for categories.
            num_classes: `[B]`, in classification; by default that of the largest class seen.
            codes: Column codes `[B, d, 16]` of a network of cells; by default those of
                `column_seed`.
            column_seed: Seed of the column codes, or of the order in which columns fill slots;
                see `condition`.
        """
        B, _, d = X.shape
        column_location, column_scale = self._column_units(X, mask)
        if self.architecture.cell_layers and codes is None:
            codes = self.network.codes(d, X, seed=column_seed)
        if codes is not None:
            codes = codes.expand(B, -1, -1)
        kind = None if categorical is None else categorical.to(X).expand(B, d)
        if self.architecture.classes:
            location, scale = X.new_zeros(B, 1), X.new_ones(B, 1)
            z = y.long()
            if num_classes is None:
                counted = z if mask is None else z.masked_fill(~mask, 0)
                num_classes = counted.amax(-1) + 1 if z.shape[-1] else z.new_full((B,), 2)
            number = num_classes.to(X).log()
            told = torch.stack([number, torch.zeros_like(number)], dim=-1)
        else:
            location, scale, told = self.units(y, mask)
            z = (y - location) / scale
        empty = Context((), (), scale, None, ())
        order = None if self.architecture.cell_layers else self._order(d, column_seed, X.device)
        columns = (column_location, column_scale, kind, codes)
        encoding = Encoding(empty, location, scale, told, *columns, num_classes, order)
        context = self.network.encode(self._rows(encoding, X, noise_var), Targets(z, told), mask)
        return replace(encoding, context=context)

    def append(
        self, encoding: Encoding, X: Tensor, y: Tensor, *, noise_var: Tensor | None = None
    ) -> Encoding:
        """The encoding with further rows `[B, k, d]`, `[B, k]`, in its units.

        They see the encoded rows and those before them, which stay as they are: exact order
        invariance holds among the rows encoded together, and is learnt for appended ones.
        """
        z = y.long() if self.architecture.classes else (y - encoding.location) / encoding.scale
        rows, targets = self._rows(encoding, X, noise_var), Targets(z, encoding.told)
        return replace(encoding, context=self.network.append(encoding.context, rows, targets))

    def decode(
        self, encoding: Encoding, X: Tensor, *, noise_var: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of y and of f at queries `[B, m, d]`, in the network's units.

        Args:
            encoding: The context.
            X: Queries.
            noise_var: Known variances of the noise in y at the queries, `[B, m]`.
        """
        logits_y, logits_f = self.network.decode(
            encoding.context, self._rows(encoding, X, noise_var)
        )
        if encoding.num_classes is not None:
            classes = torch.arange(self.architecture.classes, device=X.device)
            impossible = classes >= encoding.num_classes[:, None, None]
            logits_y = logits_y.masked_fill(impossible, -torch.inf)
        return logits_y, logits_f

    def units(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Units in which the network sees the targets `[B, n]`.

        Returns:
            Location and scale `[B, 1]`, and what the network is told of them `[B, 2]`.
        """
        first, spread = y.new_zeros(len(y), 1), y.new_ones(len(y), 1)
        if self.targets == "raw":
            location, scale = first + self.prior_location, spread * self.prior_scale
            return location, scale, torch.cat([location, scale.log()], dim=-1)
        weight = torch.ones_like(y) if mask is None else mask.to(y)
        if self.targets == "standardised" and y.shape[1]:
            present = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
            units = location_scale(y[..., None], present[..., None])
            first, spread = (value[..., 0] for value in units)
        z = (y - first) / spread
        count = weight.sum(-1, keepdim=True) + _PRIOR_ROWS
        location = ((z * weight).sum(-1, keepdim=True) + _PRIOR_ROWS * self.prior_location) / count
        squares = ((z - location).square() * weight).sum(-1, keepdim=True)
        scale = ((squares + _PRIOR_ROWS * self.prior_scale**2) / count).sqrt()
        told = torch.cat([location, scale.log()], dim=-1)
        return first + spread * location, spread * scale, told

    def still_fits(self, encoding: Encoding, X: Tensor, y: Tensor) -> bool:
        """Whether all data sets `[B, n, d]`, `[B, n]` have about the units of their encodings.

        Scales within a factor of 2 and locations within one scale. Units are those of the rows
        that were encoded together; rows that were appended may tell of very different ones.
        """
        pairs = [(encoding.column_location, encoding.column_scale, *self._column_units(X, None))]
        if not self.architecture.classes:
            pairs.append((encoding.location, encoding.scale, *self.units(y)[:2]))
        return all(
            bool((((new / scale).log2().abs() <= 1) & ((at - location).abs() <= scale)).all())
            for location, scale, at, new in pairs
        )

    def condition(
        self,
        X: Tensor,
        y: Tensor,
        *,
        train_Yvar: Tensor | None = None,
        categorical: Tensor | None = None,
        num_classes: int | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
        num_orders: int = 1,
        column_seed: int = 0,
        check: bool = True,
        fallback: Callable[[Tensor, Tensor], Model] | None = None,
    ) -> Model:
        """Condition on a data set, or on a batch of them.

        Args:
            X: Inputs `[..., n, d]`; n may be 0; NaN where missing, for a network that was
                trained with missing values.
            y: Targets `[..., n, m]`, or `[..., n]` for one output; outputs are inferred one by
                one. In classification classes 0, 1, ..., in one column, of any number type.
            train_Yvar: Known noise variances, of the shape of y, in squared units of y; NaN where
                unknown.
            categorical: `[d]`, True for columns that hold category numbers, for a network that
                was trained with such.
            num_classes: Number of classes that are possible; by default those up to the largest
                of y. Others have probability 0.
            input_transform: `DEFAULT` or None leave inputs to the network, which standardises
                them itself if it was trained so; or a BoTorch `InputTransform`, of which the model
                keeps a copy; one that learns does so from X, once.
            outcome_transform: `DEFAULT` or None leave targets to the network likewise; or an
                elementwise `torch.distributions` transform from the network's scale to y's.
            num_orders: Orders of the points over which joint samples and joint densities are
                averaged.
            column_seed: Seed of the codes of the columns, for networks of cells: invariance to
                the order of columns is exact in distribution over seeds. For networks of slots
                the seed of a random order in which columns fill the slots, in distribution over
                which invariance is exact as well; 0 is the order given, for which it is learnt as
                far as the prior has it. With more columns than slots the first of that order are
                used.
            check: Whether to compare how well the two halves of each data set predict each other
                with what data sets of the prior do, where the certificate knows that; a data set
                outside the range of 99% of them warns, and of a batch or several outputs more
                than chance puts there. Costs two more encodings.
            fallback: Makes a model of X and y to return instead when data sets are unlike the
                prior, such as `lambda X, y: bayes.GaussianProcess(X, y, kernel).fit()`. For a
                batch it replaces the whole model.

        Returns:
            A `PFNModel`, or what `fallback` makes.

        Raises:
            TypeError: not floating-point tensors of one dtype.
            ValueError: shapes disagree or values are not finite.
        """
        from pfn.inference import PFNModel

        model = PFNModel(
            self,
            X,
            y,
            train_Yvar=train_Yvar,
            categorical=categorical,
            num_classes=num_classes,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
            num_orders=num_orders,
            column_seed=column_seed,
        )
        if check or fallback is not None:
            unlike = model.unlike_the_prior()
            if unlike is not None:
                told = "the model of `fallback` is used." if fallback else _WHAT_TO_DO
                warnings.warn(f"{unlike} {told}", stacklevel=2)
                if fallback is not None:
                    return fallback(X, y)
        return model

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

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """What is recorded of each training that led here, the last one first."""
        found, training = [], self.metadata.get("training")
        while training:
            found.append(training)
            training = training.get("from")
        return found

    @property
    def tasks_seen(self) -> int:
        """Number of tasks in all trainings."""
        return sum(training["tasks"] for training in self.trainings)

    @property
    def training_seconds(self) -> float:
        """Seconds of all trainings."""
        return sum(training["seconds"] for training in self.trainings)

    def __str__(self) -> str:
        trainings = self.trainings
        size = sum(p.numel() for p in self.network.parameters())
        kind = f"{self.architecture.classes} classes" if self.architecture.classes else "regression"
        lines = [
            f"PFN, {kind}, {size:,} parameters; inputs {self.inputs}, targets {self.targets}",
            f"prior: {trainings[0]['prior'] if trainings else 'not recorded'}",
            f"training: {self.tasks_seen:,} tasks in {self.training_seconds:,.0f} s; "
            f"up to {self.max_context} context rows, {self.architecture.max_features} features",
            str(self.certificate or "no certificate"),
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, sizes and metadata to one safetensors file, atomically."""
        description = {
            "architecture": asdict(self.architecture),
            "inputs": self.inputs,
            "targets": self.targets,
            "tail_scale": None if self.bars is None else self.bars.tail_scale,
            "tail_index": None if self.bars is None else self.bars.tail_index,
            "prior_location": self.prior_location,
            "prior_scale": self.prior_scale,
            "metadata": self.metadata,
        }
        write_safetensors_atomically(path, self.state_dict(), kind="PFN", description=description)

    def check(self, X: Tensor, y: Tensor, Yvar: Tensor | None = None) -> None:
        """Refuse data that this network cannot take; see `condition`."""
        for name, value in (("X", X), ("y", y), ("train_Yvar", Yvar)):
            if value is None and name == "train_Yvar":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {value!r:.60}.")
        self.check_finite(X)
        if not bool(y.isfinite().all()):
            raise ValueError("y has NaN or infinite values; remove those rows first.")
        if X.dim() < 2 or X.shape[:-1] != y.shape[:-1] or y.shape[-1] == 0:
            raise ValueError(
                f"condition needs X [..., n, d] and y [..., n, m] with the same rows, got "
                f"{tuple(X.shape)} and {tuple(y.shape)}."
            )
        if X.dtype != y.dtype or X.device != y.device:
            raise TypeError(
                f"X is {X.dtype} on {X.device} and y {y.dtype} on {y.device}; they must agree."
            )
        if X.shape[-1] < 1:
            most = self.architecture.max_features
            raise ValueError(f"X has no features; this network takes 1 to {most}.")
        if Yvar is not None:
            self._check_noise(Yvar, y)
        if self.architecture.classes:
            self._check_classes(y)

    def check_finite(self, X: Tensor) -> None:
        """Refuse inputs that are infinite, or missing where the network does not know missing."""
        missing = self.metadata.get("missing")
        if not bool((X.isfinite() | X.isnan() if missing else X.isfinite()).all()):
            raise ValueError("X has NaN or infinite values; remove or impute those rows first.")

    def warn_beyond_training(self, rows: int, features: int = 0) -> None:
        """Warn if a context is longer or wider than those of the training."""
        most = self.architecture.max_features
        if features > most:
            what = "beyond that its predictions are extrapolation"
            if not self.architecture.cell_layers:
                what = f"it sees {most} of them, those that `column_seed` chooses"
            warnings.warn(
                f"This network was trained on up to {most} features and got {features}; {what}. "
                "Select features, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )
        if rows > self.max_context:
            warnings.warn(
                f"This network was trained on up to {self.max_context} context rows and got "
                f"{rows}; beyond that its predictions are extrapolation. Condition on a subset, or "
                "silence this with warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )

    def warn_outside_range(self, X: Tensor) -> None:
        """Warn if raw inputs are outside those of the training."""
        known = self.metadata.get("input_range")
        if known is None:
            return
        low, high = known
        values = X[X.isfinite()]
        slack = 0.05 * (high - low)
        if values.numel() and not low - slack <= values.min() <= values.max() <= high + slack:
            warnings.warn(
                f"This network was trained on inputs between {low:.3g} and {high:.3g}, in fixed "
                f"units, and got {values.min():.3g} to {values.max():.3g}; outside that its "
                "predictions are extrapolation. Scale the inputs, by `input_transform` say, or "
                "silence this with warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )

    @property
    def knows_noise(self) -> bool:
        """Whether the network was trained to be told noise variances, as far as is recorded."""
        return self.metadata.get("known_noise", True)

    @property
    def exchangeable(self) -> bool:
        """Whether the order of columns means nothing under the prior of the training.

        Where that is not recorded: not of raw inputs, whose columns may be known by their places.
        """
        return self.metadata.get("exchangeable", self.inputs != "raw")

    @property
    def knows_function(self) -> bool:
        """Whether any of its tasks had a noise-free function, as far as is recorded."""
        return self.metadata.get("function", True)

    def _check_noise(self, Yvar: Tensor, y: Tensor) -> None:
        if self.architecture.classes:
            raise ValueError("train_Yvar is for regression; this is a classification network.")
        if not self.knows_noise:
            raise ValueError(
                "this network was trained without known noise variances; leave them away, or train "
                "it with TrainingConfig.known_noise > 0."
            )
        if Yvar.dtype != y.dtype or Yvar.device != y.device:
            raise TypeError(
                f"y is {y.dtype} on {y.device} and its noise variances {Yvar.dtype} on "
                f"{Yvar.device}; they must agree."
            )
        if Yvar.shape != y.shape or bool((Yvar < 0).any()) or bool(Yvar.isinf().any()):
            raise ValueError(
                f"train_Yvar must hold finite variances of shape {tuple(y.shape)}, none negative "
                f"and NaN where unknown; got shape {tuple(Yvar.shape)}."
            )

    def _check_classes(self, y: Tensor) -> None:
        classes = self.architecture.classes
        wrong = (y != y.round()) | (y < 0) | (y >= classes)
        if y.shape[-1] != 1 or bool(wrong.any()):
            raise ValueError(
                f"y must be one column of classes 0 .. {classes - 1} for this network, got shape "
                f"{tuple(y.shape)} with values from {y.min():g} to {y.max():g}."
            )

    def _order(self, d: int, seed: int, device: torch.device) -> Tensor | None:
        """Which columns fill the slots; None for all of them as given. The same on any device."""
        most = self.architecture.max_features
        if seed == 0:
            return torch.arange(most, device=device) if d > most else None
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(d, generator=generator, device="cpu")[:most].to(device)

    def _column_units(self, X: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and scale `[B, 1, d]` of the inputs; 0 and 1 where they are raw or unknown."""
        if self.inputs == "raw" or X.shape[1] == 0:
            zero = X.new_zeros(len(X), 1, X.shape[-1])
            return zero, torch.ones_like(zero)
        present = ~X.isnan()
        return location_scale(X, present if mask is None else present & mask[..., None])

    def _rows(self, encoding: Encoding, X: Tensor, noise_var: Tensor | None) -> Rows:
        absent = X.isnan() if self.metadata.get("missing") else None
        values = (X - encoding.column_location) / encoding.column_scale
        if self.inputs == "standardised":
            values = _LARGEST * torch.tanh(values / _LARGEST)
        if absent is not None:
            values = torch.where(absent, 0, values)
        kind, order = encoding.categorical, encoding.order
        if order is not None:
            values = values[..., order]
            absent, kind = (None if part is None else part[..., order] for part in (absent, kind))
        noise = None
        if noise_var is not None:
            tiny = torch.finfo(noise_var.dtype).tiny  # log 0 would make the scale's gradient NaN
            noise = noise_var.clamp_min(tiny).log() - 2 * encoding.scale.log()
            noise = torch.where(noise_var == 0, -torch.inf, noise)
        return Rows(values, absent, kind, encoding.codes, noise)


def load(name_or_path: str | os.PathLike[str]) -> PFN:
    """Load a shipped network by name, or one of your own from its file.

    Args:
        name_or_path: A shipped name, such as "regression", or the path of a file that
            `PFN.save` wrote. Nothing in the file is executed.

    Returns:
        The network, on the CPU whatever device it was saved on.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: the file is damaged, foreign, or does not hold what it describes.
    """
    path = Path(name_or_path)
    folder = Path(__file__).parent / "checkpoints"
    shipped = folder / f"{name_or_path}.safetensors"
    if not path.is_file() and not shipped.is_file():
        names = sorted(file.stem for file in folder.glob("*.safetensors"))
        raise FileNotFoundError(
            f"{str(name_or_path)!r} is neither a file nor a shipped network; shipped are {names}."
        )
    tensors, description = read_safetensors(path if path.is_file() else shipped, kind="PFN")
    try:
        tails = {}
        if description["tail_scale"] is not None:
            tails = {k: description[k] for k in ("tail_scale", "tail_index")}
        with torch.device("cpu"):
            pfn = PFN(
                ArchitectureConfig(**description["architecture"]),
                tensors.get("bars.borders"),
                inputs=description["inputs"],
                targets=description["targets"],
                prior_location=description["prior_location"],
                prior_scale=description["prior_scale"],
                metadata=description["metadata"],
                **tails,
            )
        pfn.to(next(v.dtype for v in tensors.values() if v.is_floating_point()))
        pfn.load_state_dict(tensors)
    except (KeyError, StopIteration, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name_or_path} does not hold the network it describes: {error}"
        ) from error
    return pfn.eval()
