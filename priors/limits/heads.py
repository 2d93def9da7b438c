"""Averages over infinitely many attention heads.

The logits of one head between query position a and key position b are
G = scale <q_a, k_b> / sqrt(width). Given the layer below, queries and keys of different units
are independent, so over the heads G is centred Gaussian with

    Cov(G_ab(x), G_a'b'(x')) = scale^2 moment(q_a(x), q_a'(x')) moment(k_b(x), k_b'(x')).

With A = softmax(G + mask), values v and moments B of the values, attention has the moment
E[A B A'^T] (Hron et al. 2020, 2006.10540, who leave it for softmax as an expectation). Its tangent
adds the gradient through the logits,

    sum_bb' E[H_bb'] scale^2 (tangent(q, q') moment(k, k') + moment(q, q') tangent(k, k')),
    H = J B J'^T,  J the Jacobian of the softmax.

Most of it is in closed form given w = E[A] and S = E[J], which are a point's own. In

    A = w + S G + R

the parts have Hermite degrees 0, 1 and more in the logits and are uncorrelated, also between
points, so that with c = scale^2 moment(q, q') and in each query of both

    E[A B A'^T] = w B w'^T + c sum_bb'cc' B_bb' S_bc moment(k_c, k'_c') S'_b'c' + E[R B R'^T],
    E[H] = S B S'^T + E[(J - S) B (J' - S')^T].

Only the last terms are integrals over pairs. They are small, unless the logits are large, and so a
few points do; w and S, once for each data point, are averages over all of them.

The logits of a first data point are drawn as L_q Z L_k^T, with the same quasi-Monte Carlo points
for every pair. With joint roots [[L, 0], [C, S]] of the moments of queries, and of keys, of both
points, and with R_k the root of the second point's own keys, its logits given the first's are

    C_q (Z C_k^T + Z' S_k^T) + S_q Z'' R_k^T,

of covariance C_q C_q^T x (C_k C_k^T + S_k S_k^T) + S_q S_q^T x R_k R_k^T, that of its moments. The
draws of a point alone are those of the first point of a pair, and a pair is the mean of both
orders: the kernel is symmetric, and the same at coinciding points as beside them. It is positive
semidefinite within its error: logits of all points drawn together would make it so exactly, and the
kernel of two points depend on the others. Without softmax all is in closed form.

Draws stand last, `[..., Q, K, draws]`, so that nearly all of this is products of small matrices
with long ones. A few pairs and draws are taken at a time, so that they stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, cholesky
from priors.limits.points import Settings
from priors.limits.recomputed import sum_over_parts
from priors.programs.nodes import Attention

__all__ = ["Heads"]

# Share of the points of the rule that pairs get, for what is not in closed form: of averages of
# weights, and of their gradients, in which more is left.
_SHARE, _GRADIENT_SHARE = 1 / 8, 1 / 4
# Most numbers drawn at a time, (Q + Q') (K + K') for a pair: of a size for the processor's cache,
# or for a GPU. And bytes held for each of them: about forty tensors of its size, or of a quarter
# of it, with a gradient.
_CHUNK, _GPU_CHUNK = 2**19, 2**25
_BYTES = 300
# Draws of a pair that are worth taking at a time.
_DRAWS = 256


@dataclass(frozen=True)
class _Low:
    """What a softmax has of low degree in its logits.

    Attributes:
        mean: w = E[A], `[..., Q, K]`.
        slopes: S = E[J], `[..., Q, K, K]`.
    """

    mean: Tensor
    slopes: Tensor

    def swapped(self) -> _Low:
        """Left points as right ones, or right ones as left ones."""
        return _Low(self.mean.transpose(-3, -4), self.slopes.transpose(-4, -5))


class Heads:
    """The heads of an attention on the left and one on the right of pairs of data points.

    Args:
        first: Left attention.
        second: Right attention.
        queries: Moments of the left's queries, of the right's, and of both `[..., Q, Q']`.
        keys: The same for keys; the last is None if their weights are independent.
        mean_field: Moments of queries with keys of the left alone.
        settings: The quadrature, and how much it may hold.
        paired: Whether point i of the left goes with point i of the right.
        symmetric: Whether both sides are the same points and the same attention, and not paired.
    """

    def __init__(
        self,
        first: Attention,
        second: Attention,
        queries: tuple[Tensor, Tensor, Tensor | None],
        keys: tuple[Tensor, Tensor, Tensor | None],
        mean_field: Tensor | None,
        settings: Settings,
        *,
        paired: bool,
        symmetric: bool,
    ) -> None:
        self._first, self._second = first, second
        self._queries, self._keys = queries, keys
        self._mean_field = mean_field
        self._rule: QuasiMonteCarlo = settings.quadrature
        chunk = _CHUNK if queries[0].device.type == "cpu" else _GPU_CHUNK
        self._chunk = min(chunk, settings.max_bytes // _BYTES)
        self._dims = 1 if paired else 2  # of data points
        self._symmetric = symmetric

    def mean_weights(self) -> Tensor:
        """E[A] of the left attention, `[..., queries, keys]`."""
        if self._first.mean_field:
            queries, keys = self._queries[0], self._keys[0]
            logits = self._mean_field
            if logits is None:
                shape = torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
                logits = queries.new_zeros(*shape, queries.shape[-1], keys.shape[-1])
            return self._weights(logits * self._first.scale, self._first, drawn=False)
        if not self._first.softmax:
            return torch.zeros_like(self._queries[0])
        return self._left.mean.to(self._queries[0].dtype)

    def average(self, values: Tensor) -> Tensor:
        """E[A B A'^T] for B = `values` `[..., keys, keys']`."""
        cross = self._cross()
        if not self._first.softmax:
            if cross is None:
                return torch.zeros_like(values)
            query, key = cross
            scale = self._first.scale * self._second.scale
            return scale * query * (key * values).sum((-1, -2), keepdim=True)
        left, right, b = self._left, self._right, values.double()
        value = left.mean @ b @ right.mean.mT
        if cross is not None:
            query, key = (moment.double() for moment in cross)
            scale = self._first.scale * self._second.scale
            value = value + scale * query * _contracted(left.slopes, b, key, right.slopes)
            value = value + self._mean(_rest_of_weights, (b,), _SHARE)
        return value.to(values.dtype)

    def logit_gradient(
        self, values: Tensor, queries: Tensor | None, keys: Tensor | None
    ) -> Tensor | None:
        """The tangent's part through the logits.

        Args:
            values: Moments of the values.
            queries: Tangents of the queries.
            keys: Tangents of the keys.
        """
        cross = self._cross()
        if cross is None:
            return None
        query, key = cross
        assert queries is not None
        assert keys is not None
        scale = self._first.scale * self._second.scale
        if not self._first.softmax:
            return scale * (
                queries * (key * values).sum((-1, -2), keepdim=True)
                + query * (keys * values).sum((-1, -2), keepdim=True)
            )
        b, q, dq, k, dk = (t.double() for t in (values, query, queries, key, keys))
        left, right = self._left.slopes, self._right.slopes
        value = dq * _contracted(left, k, b, right) + q * _contracted(left, dk, b, right)
        value = value + self._mean(_rest_of_gradients, (b, q, dq, k, dk), _GRADIENT_SHARE)
        return scale * value.to(values.dtype)

    @cached_property
    def _left(self) -> _Low:
        """What each left point's softmax has of low degree."""
        return self._low(self._queries[0], self._keys[0], self._first)

    @cached_property
    def _right(self) -> _Low:
        """The same of right points."""
        if self._queries[0] is self._queries[2]:
            return self._left
        if self._symmetric:
            return self._left.swapped()
        return self._low(self._queries[1], self._keys[1], self._second)

    def _low(self, queries: Tensor, keys: Tensor, node: Attention) -> _Low:
        """Averages over the logits of each query.

        A query's own logits have few variables, so that all queries can have the same draws, of a
        low dimension. Mirrored in variables of its own choice, they still err independently.
        """
        scales = node.scale * queries.diagonal(dim1=-2, dim2=-1).double().clamp_min(0).sqrt()
        signs = self._rule.signs(queries.shape[-1], keys.shape[-1], queries)
        roots = scales[..., None, None] * cholesky(keys.double()).unsqueeze(-3) * signs[:, None]

        def total(part: Tensor, roots: Tensor) -> Tensor:
            weights = self._weights(roots @ part.mT, node, drawn=True)
            return weights @ weights.mT

        points = self._rule.normals(keys.shape[-1], queries)
        products = self._over_draws(total, points, [(roots, 3)], trailing=3)
        mean = products.sum(-1)  # the weights of a query sum to 1
        return _Low(mean, torch.diag_embed(mean) - products)

    def _cross(self) -> tuple[Tensor, Tensor] | None:
        """Moments of the two sides' queries and keys; None if the heads are independent."""
        query, key = self._queries[2], self._keys[2]
        if query is None or key is None:
            return None
        return query, key

    def _weights(self, logits: Tensor, node: Attention, *, drawn: bool) -> Tensor:
        """Attention weights of logits `[..., Q, K]`, or of draws of them `[..., Q, K, draws]`."""
        if node.mask is not None:
            mask = node.mask.tensor(logits)
            logits = logits + (mask.unsqueeze(-1) if drawn else mask)
        return logits.softmax(-2 if drawn else -1) if node.softmax else logits

    def _mean(
        self, term: Callable[..., Tensor], of_pairs: tuple[Tensor, ...], share: float
    ) -> Tensor:
        """Average over the draws of a function of both sides' logits and weights.

        Args:
            term: Sum over the draws, from what `_Side` holds of the left and of the right and from
                what follows.
            of_pairs: Moments and tangents.
            share: Of the points of the rule.
        """
        if self._queries[0] is self._queries[2]:  # a data point with itself
            return self._of_order(term, of_pairs, share, alone=True)
        value = self._of_order(term, of_pairs, share)
        if self._symmetric:  # the other order is that of the pair (j, i)
            return (value + value.transpose(-1, -2).transpose(-3, -4)) / 2
        return (value + self._of_order(term, of_pairs, share, swapped=True)) / 2

    def _of_order(
        self,
        term: Callable[..., Tensor],
        of_pairs: tuple[Tensor, ...],
        share: float,
        *,
        alone: bool = False,
        swapped: bool = False,
    ) -> Tensor:
        """The average where the first point's logits depend on the first draws alone.

        Args:
            term: As of `_mean`.
            of_pairs: Moments and tangents.
            share: As of `_mean`.
            alone: Whether the second point is the first itself.
            swapped: Whether the right point is the first.
        """
        q, k = self._queries, self._keys
        first, second = self._first, self._second
        low = self._left, self._right
        if swapped:
            q, k = _swapped(q), _swapped(k)
            first, second = second, first
            low = low[1], low[0]
        rows, columns = q[0].shape[-1], k[0].shape[-1]
        more_rows, more_columns = q[1].shape[-1], k[1].shape[-1]
        shapes = [(rows, columns), (rows, more_columns), (more_rows, more_columns)]
        # of the first points alone, whatever they are paired with
        own = [(low[0].mean, 2), (low[0].slopes, 3)]
        own += [(cholesky(moment[0].double()), 2) for moment in (q, k)]
        others = []
        if not alone:
            others = [(low[1].mean, 2), (low[1].slopes, 3)]
            others += [(_lower_root(moment), 2) for moment in (q, k)]
            others.append((cholesky(k[1].double()), 2))

        def total(points: Tensor, *inputs: Tensor) -> Tensor:
            mean, slopes, queries, keys = inputs[:4]
            rest = inputs[4 + len(others) :]
            draws = _blocks(points, shapes)
            logits = first.scale * (keys.unsqueeze(-3) @ _mixed(queries, draws[0]))
            weights = self._weights(logits, first, drawn=True)
            one = two = _Side(logits, weights, _Low(mean, slopes))
            if others:
                mean, slopes, both, both_keys, other_keys = inputs[4 : 4 + len(others)]
                shared = both_keys.unsqueeze(-3) @ torch.cat(draws[:2], -2)
                below = other_keys.unsqueeze(-3) @ draws[2]
                logits = _mixed(both[..., :rows], shared) + _mixed(both[..., rows:], below)
                logits = second.scale * logits
                weights = self._weights(logits, second, drawn=True)
                two = _Side(logits, weights, _Low(mean, slopes))
            return term(two, one, *rest) if swapped else term(one, two, *rest)

        variables = sum(height * width for height, width in shapes)
        points = self._rule.normals(variables, q[0], multiple=share)
        return self._over_draws(total, points, [*own, *others, *((t, 2) for t in of_pairs)])

    def _over_draws(
        self,
        total: Callable[..., Tensor],
        points: Tensor,
        inputs: list[tuple[Tensor, int]],
        *,
        trailing: int = 2,
    ) -> Tensor:
        """Average over draws, a few draws of a few pairs of data points at a time.

        Args:
            total: Sum over draws, from points and inputs.
            points: `[draws, variables]`.
            inputs: Tensors, and how many of their dimensions trail those of the data points.
            trailing: The same of the result.
        """
        dims = self._dims
        leading = [t.shape[: t.dim() - after] for t, after in inputs]
        shape = torch.broadcast_shapes(*leading)
        batch, pairs = shape[:-dims].numel(), shape[-dims:].numel()
        rows, columns = (m[0].shape[-1] + m[1].shape[-1] for m in (self._queries, self._keys))
        each = batch * rows * columns
        some = max(1, self._chunk // (each * min(_DRAWS, len(points))))
        few = max(1, self._chunk // (each * min(some, pairs)))
        parts = points.split(few)

        def over_parts(*inputs: Tensor) -> Tensor:
            return sum_over_parts(total, parts, inputs)

        return _in_blocks(over_parts, inputs, dims, some, trailing) / len(points)


@dataclass(frozen=True)
class _Side:
    """Draws of one side's logits and weights `[..., Q, K, draws]`, and what is known of them."""

    logits: Tensor
    weights: Tensor
    low: _Low

    def rest(self) -> Tensor:
        """R, the parts of degree 2 and more."""
        return self.weights - self.low.mean.unsqueeze(-1) - self.low.slopes @ self.logits


def _rest_of_weights(left: _Side, right: _Side, b: Tensor) -> Tensor:
    """Sum over draws of R B R'^T."""
    return _summed(_times(left.rest(), b), right.rest())


def _rest_of_gradients(
    left: _Side, right: _Side, b: Tensor, q: Tensor, dq: Tensor, k: Tensor, dk: Tensor
) -> Tensor:
    """Sum over draws of (dq sum_bb' k_bb' + q sum_bb' dk_bb') ((J - S) B (J' - S')^T)_bb'."""
    one, two = left.weights, right.weights
    draws = one.shape[-1]
    known = left.low.slopes, right.low.slopes
    # sums of the Jacobians J_cb = A_c (delta_cb - A_b), and how far they are from what is known
    sums = [torch.diag_embed(a.sum(-1)) - a @ a.mT for a in (one, two)]
    far = draws * known[0] - sums[0]
    lb, br = _times(one, b), _times(two, b.mT)
    by_draw = two.movedim(-1, -3).mT
    of_b = lb.movedim(-1, -3) @ by_draw

    def contracted(x: Tensor) -> Tensor:
        lx, xr = _times(one, x), _times(two, x.mT)
        of_x = lx.movedim(-1, -3) @ by_draw
        drawn = (
            _summed(_times(one, x * b) - lx * lb, two)
            - _summed(one, br * xr)
            + (of_b * of_x).sum(-3)
        )
        ends = _contracted(far, x, b, known[1]) - _contracted(known[0], x, b, sums[1])
        return drawn + ends

    return dq * contracted(k) + q * contracted(dk)


def _contracted(left: Tensor, x: Tensor, b: Tensor, right: Tensor) -> Tensor:
    """sum_bb' x_bb' (S B S'^T)_bb' for S `[..., Q, K, K]` of each query, `[..., Q, Q']`."""
    inner = x.mT.unsqueeze(-3) @ left @ b.unsqueeze(-3)
    return inner.flatten(-2) @ right.flatten(-2).mT


def _in_blocks(
    function: Callable[..., Tensor],
    inputs: Sequence[tuple[Tensor, int]],
    dims: int,
    most: int,
    trailing: int,
) -> Tensor:
    """A function of pairs of data points, of a few pairs at a time.

    Args:
        function: Of tensors that broadcast.
        inputs: Tensors, and how many of their dimensions trail those of the data points.
        dims: Dimensions of data points, whose blocks are made.
        most: Pairs of a block.
        trailing: Dimensions of the result behind those of the data points.
    """
    if dims == 0:
        return function(*(tensor for tensor, _ in inputs))
    number = max(tensor.shape[-after - dims] for tensor, after in inputs)
    size = min(number, max(1, math.isqrt(most) if dims > 1 else most))
    found = []
    for start in range(0, number, size):
        block = [
            (t if t.shape[d] == 1 else t.narrow(d, start, min(size, number - start)), after)
            for t, after, d in ((t, after, -after - dims) for t, after in inputs)
        ]
        found.append(_in_blocks(function, block, dims - 1, most // size, trailing))
    return found[0] if len(found) == 1 else torch.cat(found, -trailing - dims)


def _blocks(points: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Z, Z' and Z'' of points `[draws, variables]`, each `[queries, keys, draws]`."""
    parts = points.mT.split([rows * columns for rows, columns in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _swapped(blocks: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The blocks of both sides in the other order."""
    left, right, cross = blocks
    return right, left, None if cross is None else cross.mT


def _mixed(queries: Tensor, draws: Tensor) -> Tensor:
    """Roots `[..., Q, q]` times draws `[..., q, K, draws]`."""
    return (queries @ draws.flatten(-2)).unflatten(-1, draws.shape[-2:])


def _times(weights: Tensor, matrix: Tensor) -> Tensor:
    """Weights `[..., Q, K, draws]` times a matrix `[..., K, L]`, `[..., Q, L, draws]`."""
    return matrix.mT.unsqueeze(-3) @ weights


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """Sum over draws and keys of products, `[..., Q, Q']`."""
    return left.flatten(-2) @ right.flatten(-2).mT


def _lower_root(blocks: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    """The rows that belong to the second points of a root of the moments of both, in float64."""
    first, second, cross = (None if b is None else b.double() for b in blocks)
    assert first is not None
    assert second is not None
    shape = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    if cross is None:
        cross = first.new_zeros(first.shape[-1], second.shape[-1])
    first, second, cross = (b.expand(*shape, *b.shape[-2:]) for b in (first, second, cross))
    joint = torch.cat([torch.cat([first, cross], -1), torch.cat([cross.mT, second], -1)], -2)
    return cholesky(joint)[..., first.shape[-1] :, :]
