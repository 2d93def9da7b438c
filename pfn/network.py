"""A trained transformer in the units of its data: encoding, appending, decoding.

That is what conditioning is made of, and what training uses, so that a network sees the same
numbers in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pfn.architecture import ArchitectureConfig, Context, Rows, Targets, Transformer
from pfn.certificate import Certificate
from pfn.coverage import Coverage
from pfn.distribution import BarDistribution
from pfn.experts import COMPARED, COMPARED_IN_TRAINING, Advice, Experts
from pfn.frozen import frozen, tensors_of, without_tensors
from pfn.mixing import mixed
from priors.posteriors.standardisation import location_scale

__all__ = ["Copies", "Encoding", "Network"]

# Context rows that the prior's location and scale count for.
_PRIOR_ROWS = 1.0
# Among fewer rows columns of a prior are often constant, and networks know what that means.
_CONSTANT_ROWS = 8
_LARGEST = 10.0  # standardised inputs are squashed to this; few context rows make large ones
_INPUTS, _TARGETS = ("raw", "standardised"), ("raw", "given", "standardised")


@dataclass(frozen=True)
class Copies:
    """Contexts that show the same data sets in several orders of the columns.

    Experts are the same in any order, and are asked once for all copies of a data set.

    Attributes:
        index: Which of B data sets each of C contexts shows, `[C]`.
        orders: In which order its columns fill the slots, `[C, d]`.
    """

    index: Tensor
    orders: Tensor

    def rows(self, rows: Rows) -> Rows:
        """What the contexts see of rows `[B, n, d]`."""
        return Rows(
            self._reordered(rows.values),
            None if rows.missing is None else self._reordered(rows.missing),
            None if rows.categorical is None else self._reordered(rows.categorical),
            rows.codes,
            None if rows.noise is None else rows.noise[self.index],
            None if rows.advice is None else rows.advice[self.index],
        )

    def targets(self, targets: Targets) -> Targets:
        """The targets of the contexts."""
        return Targets(targets.values[self.index], targets.units[self.index])

    def advice(self, advice: Advice) -> Advice:
        """The advice on rows of the contexts."""
        return Advice(**{name: value[self.index] for name, value in vars(advice).items()})

    def _reordered(self, values: Tensor) -> Tensor:
        orders = self.orders if values.dim() == 2 else self.orders[:, None]
        return values[self.index].take_along_dim(orders, -1)


@dataclass(frozen=True)
class Encoding:
    """Encoded contexts and the units in which the network sees them.

    B data sets; as many contexts unless there are copies.

    Attributes:
        context: What queries attend to.
        location: Location of the targets, `[B, 1]`; 0 in classification.
        scale: Scale of the targets, `[B, 1]`; 1 in classification.
        told: Units given to the network, or the number of classes, `[B, 2]`.
        column_location: Location of the inputs, `[B, 1, d]`.
        column_scale: Scale of the inputs, `[B, 1, d]`.
        constant: Columns without two different values, `[B, 1, d]`, see `Network`; None with raw
            inputs.
        silent: Those of them that are not known by their missing values either.
        categorical: `[B, d]` or None.
        codes: Column codes, `[B, d, 16]` or None.
        num_classes: `[B]`, in classification.
        order: Which columns fill the slots, `[D]` at most; None for all of them as given.
        experts: Of a network that has some.
        copies: None for one context of each data set.
    """

    context: Context
    location: Tensor
    scale: Tensor
    told: Tensor
    column_location: Tensor
    column_scale: Tensor
    constant: Tensor | None
    silent: Tensor | None
    categorical: Tensor | None
    codes: Tensor | None
    num_classes: Tensor | None = None
    order: Tensor | None = None
    experts: Experts | None = None
    copies: Copies | None = None

    def select(self, index: Tensor) -> Encoding:
        """The data sets `index` `[B']`, with repetitions; of one context each."""
        assert self.copies is None

        def rows(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return Encoding(
            self.context.select(index),
            self.location[index],
            self.scale[index],
            self.told[index],
            self.column_location[index],
            self.column_scale[index],
            rows(self.constant),
            rows(self.silent),
            rows(self.categorical),
            rows(self.codes),
            rows(self.num_classes),
            self.order,
            None if self.experts is None else self.experts.select(index),
        )


class Network(nn.Module):
    """A transformer with its output distribution, its units and what is known about it.

    Args:
        architecture: Sizes of the network.
        borders: Borders of the bar distribution, in the network's units of the target; None in
            classification.
        tail_scale: Scale of the tails in the same units.
        tail_index: Index of the tails.
        inputs: "raw", for a prior over functions on a fixed domain; or "standardised" by mean
            and standard deviation of the context rows, column by column, and squashed to (-10, 10).
            A column with one value or none in a context of 8 rows or more tells nothing: what
            queries have there is ignored.
        targets: "raw", in fixed units of the prior; "given", standardised by mean and standard
            deviation of the context shrunk towards the prior's, both inputs of the network,
            which therefore still knows the raw targets (an empty or one-point context has about
            the prior's); "standardised", by mean and deviation of the context alone (one point has
            the prior's deviation, an empty context also its mean), so that predictions follow any
            shift and scale of the targets and the network knows no absolute units.
        prior_location: Mean of y under the prior.
        prior_scale: Standard deviation of y under the prior.
        metadata: How it was trained, its certificate, ...; plain JSON values. those of
            `Coverage` say what the training covered.
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
            raise ValueError(
                "a network must have either the borders of a bar distribution or classes."
            )
        self.architecture = architecture
        self.bars: BarDistribution | None = None
        if borders is not None:
            self.bars = BarDistribution(borders, tail_scale=tail_scale, tail_index=tail_index)
        self.network = Transformer(architecture, self.bars.num_logits if self.bars else None)
        self.inputs, self.targets = inputs, targets
        self.prior_location, self.prior_scale = float(prior_location), float(prior_scale)
        self.metadata = dict(metadata or {})
        # Of `frozen_like`: a copy, and which tensors it is of.
        self._last_frozen: tuple[object, Network] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last_frozen": None}

    def frozen_like(self, like: Tensor) -> Network:
        """A copy for inference in the dtype and on the device of `like`, with fixed weights.

        It shares its tensors with the last such copy if they would be equal: copying costs a small
        network as much as encoding does, and one network is conditioned on many data sets.
        """
        tensors = list(tensors_of(self))
        if any(t.is_inference() for t in tensors):  # which do not record changes
            return self._frozen(like)
        # In-place changes raise the version, others move the data.
        state = like.dtype, like.device, [(id(t), t.data_ptr(), t._version) for t in tensors]
        if self._last_frozen is None or self._last_frozen[0] != state:
            self._last_frozen = state, self._frozen(like)
        new = without_tensors(self)
        new._modules.update(self._last_frozen[1]._modules)
        new.training, new._last_frozen = False, None
        return new

    def _frozen(self, like: Tensor) -> Network:
        new = frozen(self, like)
        new._last_frozen = None
        return new

    @property
    def coverage(self) -> Coverage:
        """What the training covered, as far as the metadata record it.

        Columns of raw inputs may be known by their places, if nothing is said of that.
        """
        return Coverage.from_json({"exchangeable": self.inputs != "raw", **self.metadata})

    @property
    def certificate(self) -> Certificate | None:
        """The measured distance to the exact posterior, if it was measured."""
        values = self.metadata.get("certificate")
        return None if values is None else Certificate.from_json(values)

    @certificate.setter
    def certificate(self, measured: Certificate) -> None:
        self.metadata["certificate"] = measured.to_json()

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
        copies: Copies | None = None,
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
                see `PFN.condition`.
            copies: Of a network of slots, contexts of the same data sets with columns in other
                orders, which answer the same queries side by side.
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
        empty = Context((), (), X.new_zeros(B, 1, 1, 1), None, ())
        order = None if self.architecture.cell_layers else self._order(d, column_seed, X.device)
        constant, silent = self._constant(X, mask)
        columns = (column_location, column_scale, constant, silent, kind, codes)
        encoding = Encoding(empty, location, scale, told, *columns, num_classes, order)
        rows = self._rows(encoding, X, noise_var)
        if self.architecture.experts:
            compared = COMPARED_IN_TRAINING if self.training else COMPARED
            with torch.no_grad():
                experts = Experts.of(rows.values, z, self.architecture.experts, mask, compared)
            encoding = replace(encoding, experts=experts)
            rows = replace(rows, advice=experts.own.features(z))
        targets = Targets(z, told)
        if copies is not None:
            rows, targets = copies.rows(rows), copies.targets(targets)
            mask = None if mask is None else mask[copies.index]
        context = self.network.encode(rows, targets, mask)
        return replace(encoding, context=context, copies=copies)

    def append(
        self, encoding: Encoding, X: Tensor, y: Tensor, *, noise_var: Tensor | None = None
    ) -> Encoding:
        """The encoding with further rows `[B, k, d]`, `[B, k]`, in its units.

        They see the encoded rows and those before them, which stay as they are: exact order
        invariance holds among the rows encoded together, and is learnt for appended ones.
        """
        assert encoding.copies is None
        z = y.long() if self.architecture.classes else (y - encoding.location) / encoding.scale
        rows, _ = self._advised(encoding, self._rows(encoding, X, noise_var), z)
        context = self.network.append(encoding.context, rows, Targets(z, encoding.told))
        return replace(encoding, context=context)

    def decode(
        self, encoding: Encoding, X: Tensor, *, noise_var: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of y and of f at queries `[B, m, d]`, in the network's units.

        Args:
            encoding: The contexts.
            X: Queries of the data sets; logits are of each context.
            noise_var: Known variances of the noise in y at the queries, `[B, m]`.
        """
        rows, advice = self._asked(encoding, X, noise_var)
        logits_y, logits_f = self.network.decode(encoding.context, rows)
        if logits_f is not None:
            logits_f = self._mixed(logits_f, advice, noisy=False)
        return self._possible(encoding, self._mixed(logits_y, advice, noisy=True)), logits_f

    def decode_one(
        self, encoding: Encoding, X: Tensor, *, noisy: bool, noise_var: Tensor | None = None
    ) -> Tensor:
        """The logits of y, or of f where the network has them, alone; see `decode`."""
        rows, advice = self._asked(encoding, X, noise_var)
        logits = self.network.decode_one(encoding.context, rows, noisy=noisy)
        return self._possible(encoding, self._mixed(logits, advice, noisy=noisy))

    def _asked(
        self, encoding: Encoding, X: Tensor, noise_var: Tensor | None
    ) -> tuple[Rows, Advice | None]:
        """Queries as the contexts see them, with what experts say of them."""
        rows, advice = self._advised(encoding, self._rows(encoding, X, noise_var))
        copies = encoding.copies
        if copies is None:
            return rows, advice
        return copies.rows(rows), None if advice is None else copies.advice(advice)

    def _advised(
        self, encoding: Encoding, rows: Rows, z: Tensor | None = None
    ) -> tuple[Rows, Advice | None]:
        """Rows behind the encoded ones, with what experts of the encoded ones say of them."""
        if encoding.experts is None:
            return rows, None
        advice = encoding.experts.predict(rows.values)
        return replace(rows, advice=advice.features(z)), advice

    def _mixed(self, outputs: Tensor, advice: Advice | None, *, noisy: bool) -> Tensor:
        """Logits, those of the experts mixed in."""
        if advice is None or self.bars is None:
            return outputs
        return mixed(self.bars, outputs, advice, noisy=noisy)

    def _possible(self, encoding: Encoding, logits: Tensor) -> Tensor:
        """Logits of classes, -inf for impossible ones."""
        if encoding.num_classes is None:
            return logits
        classes = torch.arange(self.architecture.classes, device=logits.device)
        number = encoding.num_classes
        number = number if encoding.copies is None else number[encoding.copies.index]
        impossible = classes >= number[:, None, None]
        return logits.masked_fill(impossible, -torch.inf)

    def units(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Units in which the network sees the targets `[B, n]`.

        Returns:
            Location and scale `[B, 1]`, and their form as an input of the network `[B, 2]`.
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
        for before, now in zip(
            (encoding.constant, encoding.silent), self._constant(X, None), strict=True
        ):
            if before is not None and now is not None and not torch.equal(before, now):
                return False
        return all(
            bool((((new / scale).log2().abs() <= 1) & ((at - location).abs() <= scale)).all())
            for location, scale, at, new in pairs
        )

    def _constant(self, X: Tensor, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Columns without two different values, and those that tell nothing, `[B, 1, d]`."""
        if self.inputs == "raw" or X.shape[1] == 0:
            return None, None
        there = torch.ones_like(X, dtype=torch.bool) if mask is None else mask[..., None]
        present = there & ~X.isnan()
        low = torch.where(present, X, torch.inf).amin(1, keepdim=True)
        high = torch.where(present, X, -torch.inf).amax(1, keepdim=True)
        count, rows = present.sum(1, keepdim=True), there.sum(1, keepdim=True)
        # Without any value low is above high.
        constant = (high <= low) & (rows >= _CONSTANT_ROWS)
        return constant, constant & ((count == 0) | (count == rows))

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
        absent = X.isnan() if self.coverage.missing else None
        values = (X - encoding.column_location) / encoding.column_scale
        if self.inputs == "standardised":
            values = _LARGEST * torch.tanh(values / _LARGEST)
        kind, order = encoding.categorical, encoding.order
        if encoding.constant is not None and encoding.silent is not None:
            # All zeros, as in a slot without a feature.
            values = torch.where(encoding.constant, 0, values)
            absent = None if absent is None else absent & ~encoding.silent
            kind = None if kind is None else torch.where(encoding.silent[:, 0], 0, kind)
        if absent is not None:
            values = torch.where(absent, 0, values)
        if order is not None:
            values = values[..., order]
            absent, kind = (None if part is None else part[..., order] for part in (absent, kind))
        noise = None
        if noise_var is not None:
            tiny = torch.finfo(noise_var.dtype).tiny  # log 0 would make the scale's gradient NaN
            noise = noise_var.clamp_min(tiny).log() - 2 * encoding.scale.log()
            noise = torch.where(noise_var == 0, -torch.inf, noise)
        return Rows(values, absent, kind, encoding.codes, noise)
