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

The logits of a first data point are drawn as L_q Z L_k^T, with the same quasi-Monte Carlo points
for every pair. With joint roots [[L, 0], [C, S]] of the moments of queries, and of keys, of both
points, and with R_k the root of the second point's own keys, its logits given the first's are

    C_q (Z C_k^T + Z' S_k^T) + S_q Z'' R_k^T,

of covariance C_q C_q^T x (C_k C_k^T + S_k S_k^T) + S_q S_q^T x R_k R_k^T, that of its moments. The
draws of a point alone are those of the first point of a pair, and a pair is the mean of both
orders: the kernel is symmetric, and the same at coinciding points as beside them. It is positive
semidefinite within its error: logits of all points drawn together would make it so exactly, and the
kernel of two points depend on the others. Without softmax all is in closed form.

Draws stand between queries and keys, `[..., Q, draws, K]`, so that nearly all of this is products
of large matrices: of all pairs with all draws, or of all draws and keys of a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from priors.gaussian.quasi_monte_carlo import QuasiMonteCarlo, cholesky
from priors.limits.points import Settings
from priors.limits.recomputed import sum_over_parts
from priors.programs.nodes import Attention

__all__ = ["Heads"]

# Most numbers in the logits of the points drawn at a time, and bytes held for each of them: about
# forty tensors of the size of the logits, or of a quarter of it, with a gradient.
_CHUNK = 2**20
_BYTES = 300


class Heads:
    """The heads of an attention on the left and one on the right of pairs of data points.

    Args:
        first: Left attention.
        second: Right attention.
        queries: Moments of the left's queries, of the right's, and of both `[..., Q, Q']`.
        keys: The same for keys; the last is None if their weights are independent.
        mean_field: Moments of queries with keys of the left alone.
        settings: The quadrature, and how much it may hold.
        symmetric: Whether both sides are the same points and the same attention.
    """

    def __init__(
        self,
        first: Attention,
        second: Attention,
        queries: tuple[Tensor, Tensor, Tensor | None],
        keys: tuple[Tensor, Tensor, Tensor | None],
        mean_field: Tensor | None,
        settings: Settings,
        symmetric: bool,
    ) -> None:
        self._first, self._second = first, second
        self._queries, self._keys = queries, keys
        self._mean_field = mean_field
        self._rule: QuasiMonteCarlo = settings.quadrature
        self._chunk = min(_CHUNK, settings.max_bytes // _BYTES)
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
        return self._mean(lambda left, right: left.sum(-2), (), single=True)

    def average(self, values: Tensor) -> Tensor:
        """E[A B A'^T] for B = `values` `[..., keys, keys']`."""
        if not self._first.softmax:
            cross = self._cross()
            if cross is None:
                return torch.zeros_like(values)
            query, key = cross
            scale = self._first.scale * self._second.scale
            return scale * query * (key * values).sum((-1, -2), keepdim=True)

        def term(left: Tensor, right: Tensor, b: Tensor) -> Tensor:
            return _summed(_times(left, b), right)

        return self._mean(term, (values.double(),))

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

        def term(
            left: Tensor, right: Tensor, b: Tensor, q: Tensor, dq: Tensor, k: Tensor, dk: Tensor
        ) -> Tensor:
            contracted = self._contraction(left, right, b)
            return scale * (dq * contracted(k) + q * contracted(dk))

        of_pairs = tuple(t.double() for t in (values, query, queries, key, keys))
        return self._mean(term, of_pairs)

    @staticmethod
    def _contraction(left: Tensor, right: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
        """x -> sum_bb' x_bb' H_bb', H = J B J'^T, J_cb = A_c (delta_cb - A_b), per query pair."""
        by_draw = right.transpose(-2, -3).mT
        lb, br = _times(left, b), _times(right, b.mT)
        of_b = lb.transpose(-2, -3) @ by_draw

        def contracted(x: Tensor) -> Tensor:
            lx, xr = _times(left, x), _times(right, x.mT)
            of_x = lx.transpose(-2, -3) @ by_draw
            return (
                _summed(_times(left, x * b) - lx * lb, right)
                - _summed(left, br * xr)
                + (of_b * of_x).sum(-3)
            )

        return contracted

    def _cross(self) -> tuple[Tensor, Tensor] | None:
        """Moments of the two sides' queries and keys; None if the heads are independent."""
        query, key = self._queries[2], self._keys[2]
        if query is None or key is None:
            return None
        return query, key

    def _weights(self, logits: Tensor, node: Attention, *, drawn: bool) -> Tensor:
        """Attention weights of logits `[..., Q, K]`, or of draws of them."""
        if node.mask is not None:
            mask = node.mask.tensor(logits)
            logits = logits + (mask.unsqueeze(-2) if drawn else mask)
        return logits.softmax(-1) if node.softmax else logits

    def _mean(
        self,
        term: Callable[..., Tensor],
        of_pairs: tuple[Tensor, ...],
        *,
        single: bool = False,
    ) -> Tensor:
        """Average over the draws of a function of both sides' weights `[..., Q, draws, K]`.

        Args:
            term: Sum over the draws, from the weights of the left and of the right and from what
                follows.
            of_pairs: Moments and tangents.
            single: Whether both sides have the same heads.
        """
        q = self._queries
        if single or q[0] is q[2]:  # a data point with itself
            return self._of_order(term, of_pairs, None)
        shape = torch.broadcast_shapes(q[0].shape[:-2], q[1].shape[:-2])
        value = self._of_order(term, of_pairs, shape)
        if self._symmetric:  # the other order is that of the pair (j, i)
            return (value + value.transpose(-1, -2).transpose(-3, -4)) / 2
        return (value + self._of_order(term, of_pairs, shape, swapped=True)) / 2

    def _of_order(
        self,
        term: Callable[..., Tensor],
        of_pairs: tuple[Tensor, ...],
        shape: torch.Size | None,
        *,
        swapped: bool = False,
    ) -> Tensor:
        """The average where the first point's logits depend on the first draws alone.

        Args:
            term: As of `_mean`.
            of_pairs: Moments and tangents.
            shape: Of the pairs; None: the left points with themselves.
            swapped: Whether the right point is the first.
        """
        q, k = self._queries, self._keys
        first, second = self._first, self._second
        if swapped:
            q, k = _swapped(q), _swapped(k)
            first, second = second, first
        rows, columns = q[0].shape[-1], k[0].shape[-1]
        # of the first points alone, whatever they are paired with
        roots = [cholesky(q[0].double()), cholesky(k[0].double())]
        if shape is not None:
            roots += [
                cholesky(_joint(q, shape))[..., rows:, :],
                cholesky(_joint(k, shape))[..., columns:, :],
                cholesky(k[1].double()),
            ]

        def total(points: Tensor, *inputs: Tensor) -> Tensor:
            (queries, keys, *others), rest = inputs[: len(roots)], inputs[len(roots) :]
            own, right, below = _blocks(points, rows, columns, q[1], k[1])
            logits = _times(_mixed(queries, own), keys.mT)
            one = two = self._weights(logits * first.scale, first, drawn=True)
            if others:
                both, both_keys, other_keys = others
                shared = _times(torch.cat([own, right], -1), both_keys.mT)
                logits = _mixed(both[..., :rows], shared)
                logits = logits + _mixed(both[..., rows:], _times(below, other_keys.mT))
                two = self._weights(logits * second.scale, second, drawn=True)
            return term(two, one, *rest) if swapped else term(one, two, *rest)

        more_rows, more_columns = q[1].shape[-1], k[1].shape[-1]
        variables = rows * columns + (rows + more_rows) * more_columns
        points = self._rule.normals(variables, q[0])
        pairs = q[0].shape[:-2] if shape is None else shape
        each = (rows + more_rows) * (columns + more_columns)
        few = max(1, self._chunk // max(1, pairs.numel() * each))
        whole = sum_over_parts(total, points.split(few), (*roots, *of_pairs))
        return (whole / len(points)).to(q[0].dtype)


def _blocks(
    points: Tensor, rows: int, columns: int, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Z, Z' and Z'' of points `[draws, variables]`, each `[queries, draws, keys]`."""
    more_rows, more_columns = queries.shape[-1], keys.shape[-1]
    sizes = [rows * columns, rows * more_columns, more_rows * more_columns]
    own, right, below = points.split(sizes, -1)
    return (
        own.unflatten(-1, (rows, columns)).transpose(0, 1),
        right.unflatten(-1, (rows, more_columns)).transpose(0, 1),
        below.unflatten(-1, (more_rows, more_columns)).transpose(0, 1),
    )


def _swapped(blocks: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The blocks of both sides in the other order."""
    left, right, cross = blocks
    return right, left, None if cross is None else cross.mT


def _mixed(queries: Tensor, draws: Tensor) -> Tensor:
    """Roots `[..., Q, q]` times draws `[..., q, draws, K]`."""
    return (queries @ draws.flatten(-2)).unflatten(-1, draws.shape[-2:])


def _times(weights: Tensor, matrix: Tensor) -> Tensor:
    """Weights `[..., Q, draws, K]` times a matrix `[..., K, L]`."""
    return (weights.flatten(-3, -2) @ matrix).unflatten(-2, weights.shape[-3:-1])


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """Sum over draws and keys of products, `[..., Q, Q']`."""
    return left.flatten(-2) @ right.flatten(-2).mT


def _joint(blocks: tuple[Tensor, Tensor, Tensor | None], shape: torch.Size) -> Tensor:
    """[[own left, cross], [cross^T, own right]] in float64."""
    left, right, cross = (None if b is None else b.double() for b in blocks)
    assert left is not None
    assert right is not None
    if cross is None:
        cross = left.new_zeros(left.shape[-1], right.shape[-1])
    left = left.expand(*shape, *left.shape[-2:])
    right = right.expand(*shape, *right.shape[-2:])
    cross = cross.expand(*shape, *cross.shape[-2:])
    return torch.cat([torch.cat([left, cross], -1), torch.cat([cross.mT, right], -1)], -2)
