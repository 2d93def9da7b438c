"""Joint samples and densities of a network's predictions, by the chain rule.

Every point is predicted from the context and the points before it, appended to the encoding one
by one; since a network is coherent only as far as it has learnt to be, they can be averaged over
several orders of the points.

Acquisition functions with a baseline (noisy expected improvement, hypervolumes) ask again and again
for samples that begin with the same points and the same base samples: at every candidate of a
batch, and at every step of an optimiser. Such leading points are sampled once. The candidates share
their rows as the samples share those of the data, and the model remembers them for the next call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pfn.compat import is_transformed
from pfn.distribution import BarDistribution
from pfn.network import Encoding, Network
from pfn.posteriors import BarPosterior, probabilities
from pfn.queries import Queries

__all__ = ["Joint", "JointBarPosterior", "Recent"]

_COPIES = 512  # of a data set that go through the network together, where no gradient is taken


@dataclass(frozen=True)
class Points:
    """Points of copies of data sets, in the network's units.

    Attributes:
        X: Inputs `[C, q, d]`.
        noise: Known noise variances `[C, q]`, or None.
        p: Probabilities below the values to be sampled, `[C, q]`; None for densities.
        z: Values whose density is asked for, `[C, q]`; None for samples.
        order: In which the points are taken, `[C, q]`; None for that given.
    """

    X: Tensor
    noise: Tensor | None = None
    p: Tensor | None = None
    z: Tensor | None = None
    order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.X)

    @property
    def number(self) -> int:
        """q."""
        return self.X.shape[1]

    def of_copies(self, part: slice | Tensor) -> Points:
        """Those of some copies."""
        return self._map(lambda value: value[part])

    def of_numbers(self, part: slice) -> Points:
        """Some of the points of each."""
        return self._map(lambda value: value[:, part])

    def at(self, number: Tensor) -> Points:
        """One of each, by its number `[C, 1]`."""
        X = self.X.gather(1, number[..., None].expand(-1, -1, self.X.shape[-1]))
        rest = (self.noise, self.p, self.z)
        return Points(X, *(None if v is None else v.gather(1, number) for v in rest))

    def _map(self, some: Callable[[Tensor], Tensor]) -> Points:
        parts = {k: None if v is None else some(v) for k, v in vars(self).items()}
        return Points(**parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sampled:
    """Points that were sampled, and appended to copies of an encoding.

    Attributes:
        start: The encoding.
        noisy: Whether values are of y.
        points: What was asked for.
        values: `[C, q]`.
        told: The copies with the points.
    """

    start: Encoding
    noisy: bool
    points: Points
    values: Tensor
    told: Encoding

    def in_common(self, start: Encoding, noisy: bool, points: Points) -> int:
        """How many leading points are those of `points`."""
        own = self.points
        same = start is self.start and noisy == self.noisy and len(own) == len(points)
        if not same or (own.noise is None) != (points.noise is None):
            return 0
        q = min(own.number, points.number)
        assert own.p is not None
        assert points.p is not None
        alike = _same(own.p[:, :q], points.p[:, :q]).all(0)
        alike &= _same(own.X[:, :q], points.X[:, :q]).all(-1).all(0)
        if own.noise is not None and points.noise is not None:
            alike &= _same(own.noise[:, :q], points.noise[:, :q]).all(0)
        return int(alike.long().cumprod(0).sum())

    def first(self, k: int) -> Sampled:
        """Only the first points."""
        told = self.told
        context = told.context.without_last(self.points.number - k)
        points = self.points.of_numbers(slice(k))
        return replace(
            self, points=points, values=self.values[:, :k], told=replace(told, context=context)
        )


@dataclass
class Recent:
    """The leading points that a model sampled last, without gradients."""

    sampled: Sampled | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Joint:
    """The chain rule over the points of queries.

    Attributes:
        network: Predicts every point.
        encoding: Encoding of the data sets.
        queries: Their points.
        noise: Known noise variances, `[B m, q]`, or None.
        noisy: Whether of y, or of the function.
        num_orders: Orders of the points over which densities are averaged.
        num_rows: Rows of a data set, `num_appended` of them appended to an encoding.
        num_appended: Likewise.
        numbers_at_once: What may be held at once; more is done in parts.
        recent: What was sampled last.
    """

    network: Network
    encoding: Encoding
    queries: Queries
    noise: Tensor | None
    noisy: bool
    num_orders: int
    num_rows: int
    num_appended: int
    numbers_at_once: int
    recent: Recent

    def sample(self, lead: torch.Size, p: Tensor) -> Tensor:
        """Values with conditional probabilities below them, `[*lead, *batch, q, m]`.

        Args:
            lead: Shape of the samples.
            p: The probabilities, of the same shape.
        """
        queries, number = self.queries, lead.numel()
        m = len(queries.outputs)
        p = p.reshape(number, *p.shape[len(lead) :])
        shared = self._num_shared(p)
        orders = torch.arange(number, device=p.device)
        most = max(1, self.numbers_at_once // (m * self._numbers_of(shared)))
        parts = []
        for some in orders.split(most if shared else max(number, 1)):
            points = self._points(some, p=queries.flatten(p[some]))
            if not shared:
                parts.append(self._chain(self.encoding, self._index(len(some)), points)[0])
                continue
            each = queries.batch.numel()
            which = torch.arange(len(some) * m, device=p.device).reshape(len(some), 1, m)
            which = which.expand(-1, each, -1).flatten()
            one = torch.arange(len(some) * each * m, device=p.device)
            one = one.reshape(len(some), each, m)[:, 0].flatten()
            with torch.no_grad():
                leading = self._leading(
                    points.of_copies(one).of_numbers(slice(shared)), keep=len(some) == number
                )
            rest = points.of_numbers(slice(shared, None))
            found = self._chain(leading.told, which, rest)[0]
            parts.append(torch.cat([leading.values[which], found], dim=1))
        return queries.restore(torch.cat(parts), lead)

    def log_prob(self, z: Tensor) -> Tensor:
        """Joint log densities of `z` `[*lead, *batch, q, m]`, averaged over orders, `[...]`."""
        queries, repeats = self.queries, self.num_orders
        points = torch.Size([*queries.batch, queries.rows.shape[-2], len(queries.outputs)])
        shape = torch.broadcast_shapes(z.shape, points)
        lead = shape[: len(shape) - len(points)]
        z = z.expand(repeats, *shape)
        orders = torch.arange(repeats, device=z.device).repeat_interleave(lead.numel())
        asked = self._points(orders, z=queries.flatten(z))
        density = self._chain(self.encoding, self._index(len(orders)), asked)[1]
        total = density.reshape(repeats, *lead, *queries.batch, len(queries.outputs)).sum(-1)
        return total.logsumexp(0) - math.log(repeats)

    def _num_shared(self, p: Tensor) -> int:
        """Leading points that are the same in the whole batch, and that no gradient goes to."""
        queries, noise = self.queries, self.noise
        rows = queries.rows.reshape(queries.batch.numel(), *queries.rows.shape[-2:])
        q = rows.shape[1]
        if self.num_orders > 1 or queries.data_sets.numel() > 1 or min(q - 1, p.numel()) < 1:
            return 0
        if is_transformed(rows) or is_transformed(p):  # which have no values to compare
            return 0
        if p.requires_grad and torch.is_grad_enabled():
            return 0
        alike = _same(rows, rows[:1]).all(-1).all(0)
        p = p.reshape(len(p), len(rows), *p.shape[-2:])
        alike &= _same(p, p[:, :1]).all(-1).all(1).all(0)
        if noise is not None:
            noise = noise.unflatten(0, (len(rows), -1))
            alike &= _same(noise, noise[:1]).all(1).all(0)
        # Nothing is to be appended behind the last point.
        number = int(alike[: q - 1].long().cumprod(0).sum())
        return _num_constant(rows, number)

    def _numbers_of(self, rows: int) -> int:
        """What a copy with so many rows of its own holds: keys and values, and logits."""
        context, bars = self.encoding.context, self.network.bars
        assert bars is not None
        _, heads, _, width = context.keys[0].shape
        length = context.length + rows
        return 2 * len(context.keys) * heads * (length + rows * width) + 4 * len(bars.borders)

    def _index(self, number: int) -> Tensor:
        """Which data set serves each of `number` copies of all queries, flat."""
        return self.queries.index().expand(number, -1).flatten()

    def _points(
        self, orders: Tensor, *, p: Tensor | None = None, z: Tensor | None = None
    ) -> Points:
        """The queries, once for each of the numbers of orders `[L]`; `p` and `z` `[L B m, q]`."""
        X, noise = self.queries.inputs(), self.noise
        number, each, q = len(orders), *X.shape[:2]
        order = None
        if self.num_orders > 1:
            chosen = (orders % self.num_orders).repeat_interleave(each)
            order = _orders(q, self.num_orders, X.device)[chosen]
        return Points(
            X.expand(number, -1, -1, -1).flatten(0, 1),
            None if noise is None else noise.expand(number, -1, -1).flatten(0, 1),
            p,
            z,
            order,
        )

    def _leading(self, points: Points, *, keep: bool) -> Sampled:
        """Sampled points, those that were sampled last among them; `keep` for the next time."""
        last, start = self.recent.sampled, self.encoding
        index = torch.tensor(self.queries.outputs, device=points.X.device)  # of one data set
        index = index.repeat(len(points) // len(index))
        known = 0 if last is None else last.in_common(start, self.noisy, points)
        found = last.first(known) if last is not None and known else None
        if known < points.number:
            told = start.select(index) if found is None else found.told
            copies = torch.arange(len(points), device=index.device)
            values, several = [], []
            for some in copies.split(_COPIES):
                value, _, more = self._chunk(
                    told, some, points.of_copies(some).of_numbers(slice(known, None)), True
                )
                values.append(value)
                several.append(more)
            sampled = torch.cat(values)
            if found is not None:
                sampled = torch.cat([found.values, sampled], dim=1)
            found = Sampled(start, self.noisy, points, sampled, _together(told, several))
        assert found is not None
        if keep:
            self.recent.sampled = found
        return found

    def _chain(self, encoding: Encoding, index: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Values and log densities `[C, q]`, `[C]` of copies `index` of the encoding."""
        copies, q = len(points), points.number
        step = max(1, self.numbers_at_once // max(1, self._numbers_of(q)))
        step = max(1, step // max(1, q)) if torch.is_grad_enabled() else min(step, _COPIES)
        values, densities = [points.X.new_empty(0, q)], [points.X.new_empty(0)]
        for start in range(0, copies, step):
            part = slice(start, start + step)
            inputs = encoding, index[part], points.of_copies(part), False
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
        self, encoding: Encoding, index: Tensor, points: Points, last: bool
    ) -> tuple[Tensor, Tensor, Encoding]:
        """Values, log densities, and the copies with the points, the last one too if `last`."""
        network, encoding = self.network, encoding.select(index)
        bars = network.bars
        assert bars is not None
        copies, q = len(points), points.number
        found, total = [], points.X.new_zeros(copies)
        for i in range(q):
            if points.order is None:
                now = points.of_numbers(slice(i, i + 1))
            else:
                now = points.at(points.order[:, i : i + 1])
            logits = network.decode_one(encoding, now.X, noisy=self.noisy, noise_var=now.noise)
            if now.z is None:
                assert now.p is not None
                value = bars.quantile(logits, now.p)
            else:
                value = now.z
                total = total + bars.log_prob(logits, value)[:, 0]
            found.append(value)
            if last or i + 1 < q:
                told = now.noise if self.noisy else torch.zeros_like(value)
                y = encoding.location + encoding.scale * value
                encoding = network.append(encoding, now.X, y, noise_var=told)
        values = torch.cat(found, dim=1)
        if points.order is not None:
            values = values.gather(1, points.order.argsort(dim=1))
        return values, total, encoding


class JointBarPosterior(BarPosterior):
    """Bar distributions whose points are dependent through the network."""

    def __init__(self, bars: BarDistribution, logits: Tensor, joint: Joint) -> None:
        super().__init__(bars, logits)
        self._joint = joint

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        if self.logits.shape[-3] <= 1:
            return super().rsample_from_base_samples(sample_shape, base_samples)
        self._require_appending()
        lead = torch.Size(sample_shape)
        p = probabilities(base_samples).expand(*lead, *self.logits.shape[:-1])
        return self._joint.sample(lead, p)

    def joint_log_prob(self, Y: Tensor) -> Tensor:
        if self.logits.shape[-3] > 1:
            self._require_appending()
        return self._joint.log_prob(Y)

    def _require_appending(self) -> None:
        joint, coverage = self._joint, self._joint.network.coverage
        if not coverage.max_buffer:
            raise NotImplementedError(
                "this network was trained without appended rows and has no joint distribution "
                "over points; train it with TrainingConfig.appended > 0."
            )
        points, most = self.logits.shape[-3], coverage.max_buffer
        coverage.warn_beyond_training(joint.num_rows + points - 1)
        if joint.num_appended + points - 1 > most:
            warnings.warn(
                f"This network was trained on up to {most} appended rows, but the joint "
                f"distribution of {points} points appends {joint.num_appended + points - 1}; "
                "beyond that it is extrapolation. Ask for fewer points at once, or silence "
                "this with warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )


def _orders(q: int, number: int, device: torch.device) -> Tensor:
    """Orders of q points: the given one first, then random ones; `[number, q]`."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(q, device="cpu")]
    orders += [torch.randperm(q, generator=generator, device="cpu") for _ in range(number - 1)]
    return torch.stack(orders).to(device)


def _same(one: Tensor, other: Tensor) -> Tensor:
    """Where numbers are equal, or both missing."""
    return (one == other) | (one.isnan() & other.isnan())


def _together(start: Encoding, parts: list[Encoding]) -> Encoding:
    """Copies of an encoding to which rows were appended in parts, as one."""
    contexts = [part.context for part in parts]
    layers = range(len(contexts[0].keys))
    masks = [context.mask for context in contexts if context.mask is not None]
    context = replace(
        start.context,
        keys=tuple(torch.cat([context.keys[i] for context in contexts]) for i in layers),
        values=tuple(torch.cat([context.values[i] for context in contexts]) for i in layers),
        count=torch.cat([context.count for context in contexts]),
        mask=torch.cat(masks) if masks else None,
    )
    return replace(start, context=context)


def _num_constant(rows: Tensor, number: int) -> int:
    """How many of the first `number` of rows `[B, q, d]` no gradient goes to, from the first on.

    Autograd knows of a tensor only whether anything in it has one. So gradients of a random sum of
    rows are taken with respect to all leaves behind them: they are exactly 0 if none of them
    moves these rows.
    """
    if number == 0 or not (rows.requires_grad and torch.is_grad_enabled()):
        return number
    if rows.grad_fn is None:
        return 0
    leaves, seen, waiting = [], set(), [rows.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        behind = [before for before, _ in node.next_functions if before is not None]
        if not behind:
            leaves.append(torch.autograd.graph.GradientEdge(node, 0))
        waiting += behind
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(rows.shape[1:], generator=generator, dtype=torch.float64).to(rows)

    def constant(k: int) -> bool:
        total = (weights[:k] * rows[:, :k]).sum()
        slopes = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        return not any(slope is not None and bool((slope != 0).any()) for slope in slopes)

    low, high = 0, number
    if constant(number):
        return number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if constant(middle) else (low, middle)
    return low
