"""Joint samples and densities of a network's predictions, by the chain rule.

Every point is predicted from the context and the points before it, appended to the encoding one
by one; since a network is coherent only as far as it has learnt to be, they can be averaged over
several orders of the points.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pfn.distribution import BarDistribution
from pfn.network import Encoding, Network
from pfn.posteriors import BarPosterior, probabilities
from pfn.queries import Queries

__all__ = ["Joint", "JointBarPosterior"]


@dataclass(frozen=True)
class Joint:
    """The chain rule over the points of queries.

    Attributes:
        network: Predicts every point.
        encoding: Of the data sets.
        queries: Their points.
        noise: Known noise variances, `[B m, q]`, or None.
        noisy: Whether of y, or of the function.
        num_orders: Orders of the points over which densities are averaged.
        num_rows: Rows of a data set, `num_appended` of them appended to an encoding.
        num_appended: Likewise.
        numbers_at_once: What may be held at once; more is done in parts.
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

    def sample(self, lead: torch.Size, p: Tensor) -> Tensor:
        """Values with conditional probabilities `p` below them, `[*lead, *batch, q, m]` both."""
        orders = torch.arange(lead.numel(), device=p.device)
        values = self._chain(orders, self.queries.flatten(p), None)[0]
        return self.queries.restore(values, lead)

    def log_prob(self, z: Tensor) -> Tensor:
        """Joint log densities of `z` `[*lead, *batch, q, m]`, averaged over orders, `[...]`."""
        queries, repeats = self.queries, self.num_orders
        points = torch.Size([*queries.batch, queries.rows.shape[-2], len(queries.outputs)])
        shape = torch.broadcast_shapes(z.shape, points)
        lead = shape[: len(shape) - len(points)]
        z = z.expand(repeats, *shape)
        orders = torch.arange(repeats, device=z.device).repeat_interleave(lead.numel())
        density = self._chain(orders, None, queries.flatten(z))[1]
        total = density.reshape(repeats, *lead, *queries.batch, len(queries.outputs)).sum(-1)
        return total.logsumexp(0) - math.log(repeats)

    def _chain(self, number: Tensor, p: Tensor | None, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and log densities `[L B m, q]`, `[L B m]`; `number` `[L]` chooses the orders."""
        queries = self.queries
        known = p if p is not None else z
        assert known is not None
        copies, q = known.shape
        index = queries.index()
        each = len(index)
        index = index.expand(len(number), -1).flatten()
        X = queries.inputs().expand(len(number), -1, -1, -1).flatten(0, 1)
        noise = None
        if self.noise is not None:
            noise = self.noise.expand(len(number), -1, -1).flatten(0, 1)
        chosen = (number % self.num_orders).repeat_interleave(each)
        orders = _orders(q, self.num_orders, X.device)[chosen]
        # What a copy takes: attention weights, keys and values of its own, and logits.
        context, bars = self.encoding.context, self.network.bars
        assert bars is not None
        _, heads, _, width = context.keys[0].shape
        size = 2 * len(context.keys) * heads * (context.length + q + width) + 4 * len(bars.borders)
        step = max(1, self.numbers_at_once // (q * size))
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
        network, encoding = self.network, self.encoding.select(index)
        bars = network.bars
        assert bars is not None
        copies, q, d = X.shape
        found, total = [], X.new_zeros(copies)
        for i in range(q):
            at = order[:, i : i + 1]
            x = X.gather(1, at[..., None].expand(-1, -1, d))
            own = None if noise is None else noise.gather(1, at)
            of_y, of_f = network.decode(encoding, x, noise_var=own)
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
                encoding = network.append(encoding, x, y, noise_var=told)
        return torch.cat(found, dim=1).gather(1, order.argsort(dim=1)), total


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
                "this network was trained without appended rows and has no joint over points; "
                "train it with TrainingConfig.appended > 0."
            )
        points, most = self.logits.shape[-3], coverage.max_buffer
        coverage.warn_beyond_training(joint.num_rows + points - 1)
        if joint.num_appended + points - 1 > most:
            warnings.warn(
                f"This network was trained on up to {most} appended rows, and the joint of "
                f"{points} points appends {joint.num_appended + points - 1}; beyond that it is "
                "extrapolation. Ask for fewer points at once, or silence this with "
                "warnings.filterwarnings('ignore', 'This network').",
                stacklevel=4,
            )


def _orders(q: int, number: int, device: torch.device) -> Tensor:
    """Orders of q points: the given one first, then random ones; `[number, q]`."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(q, device="cpu")]
    orders += [torch.randperm(q, generator=generator, device="cpu") for _ in range(number - 1)]
    return torch.stack(orders).to(device)
