"""The distribution of a network and those of its experts, mixed into one.

Expert k of a row has the density t_k at node b_j, up to a constant, of a Student t law with df
degrees of freedom about m_k whose squared scale is s_kj = s_k + w_j^2, w_j what the node can show:

    log t_kj = -(df + 1) / 2 log(1 + u^2 / (df s_kj)) - log(s_kj) / 2,   u = b_j - m_k.

Times the areas of the nodes and normalised over them these are probabilities p_kj, mixed with the
network's own. Forward and backward pass are written out, a block of rows at a time: with three
experts and 1,600 nodes autograd's intermediates cost a third of a training step. With
D = df s_kj + u^2,

    d log t / d m = (df + 1) u / D,   d log t / d s = df (u^2 / s - 1) / (2 D),
    d log t / d df = -log(1 + u^2 / (df s)) / 2 + (df + 1) u^2 / (2 df D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfn.distribution import BarDistribution
from pfn.experts import Advice

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["mixed"]

_NUMBERS_AT_ONCE = 2**17  # that a core's cache holds


def mixed(
    bars: BarDistribution, outputs: Float[Tensor, "B m out"], advice: Advice, *, noisy: bool
) -> Float[Tensor, "B m nodes"]:
    """Logits of the mixture of a network's own distribution and of its corrected experts.

    Expert k is a Student t law about mean + a_k deviations, of scale exp(b_k) deviations; where
    that is narrow beside the nodes it is widened to what they can show. Differentiable once.

    Args:
        bars: The nodes.
        outputs: Logits of the own distribution; then k + 1 weights, the own one's first, k shifts
            a, k log scales b, and one number for the degrees of freedom.
        advice: The experts.
        noisy: Whether of noisy targets or of the function.
    """
    number = advice.mean.shape[-1]
    outputs = outputs.to(advice.mean)  # half precision could not tell nodes apart
    own, weight, shift, log_scale, degrees = outputs.split(
        [bars.num_logits, number + 1, number, number, 1], dim=-1
    )
    log_std = (advice.log_std if noisy else advice.log_std_f).clamp(-12.0, 6.0)
    std = log_std.exp()
    scale2 = (std * (3 * torch.tanh(log_scale / 3)).exp()).square()
    df = 3 + torch.exp(3 + 3 * torch.tanh(degrees / 3))
    prior = torch.cat([torch.zeros_like(weight[..., :1]), advice.log_weight.clamp_min(-30.0)], -1)
    log_weight = (weight + prior).log_softmax(-1)
    nodes = bars.borders.to(own)
    gaps = nodes.diff()
    width = 0.4 * torch.cat([gaps[:1], torch.maximum(gaps[1:], gaps[:-1]), gaps[-1:]])
    values = own.log_softmax(-1), log_weight, advice.mean + shift * std, scale2, df
    rows = [value.flatten(0, -2) for value in values]
    found = _Mixture.apply(*rows, nodes, width.square(), bars.areas(nodes).log())
    return found.reshape(own.shape)


class _Mixture(torch.autograd.Function):
    """Log probabilities of the nodes; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        own: Float[Tensor, "N nodes"],
        log_weight: Float[Tensor, "N k+1"],
        mean: Float[Tensor, "N k"],
        scale2: Float[Tensor, "N k"],
        df: Float[Tensor, "N 1"],
        nodes: Float[Tensor, " nodes"],
        width2: Float[Tensor, " nodes"],
        log_area: Float[Tensor, " nodes"],
    ) -> Float[Tensor, "N nodes"]:
        parts = own.new_empty(len(own), log_weight.shape[-1], len(nodes))
        found = torch.empty_like(own)
        for at in _blocks(parts):
            s = scale2[at, :, None] + width2
            freedom = df[at, :, None]
            density = (nodes - mean[at, :, None]).square_().div_(s).div_(freedom)
            density = density.log1p_().mul_(-0.5 * (freedom + 1))
            density = density.add_(s.log_(), alpha=-0.5).add_(log_area)
            part = parts[at]
            part[:, 0] = own[at]
            part[:, 1:] = density.log_softmax(-1)
            part += log_weight[at, :, None]
            found[at] = part.logsumexp(1)
        ctx.save_for_backward(parts, found, log_weight, mean, scale2, df, nodes, width2)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "N nodes"]) -> tuple[Tensor | None, ...]:
        parts, found, log_weight, mean, scale2, df, nodes, width2 = ctx.saved_tensors
        to_own = torch.empty_like(found)
        to_weight, to_mean, to_scale2, to_df = (
            torch.empty_like(value) for value in (log_weight, mean, scale2, df)
        )
        for at in _blocks(parts):
            part = parts[at]
            share = (part - found[at, None]).exp_().mul_(gradient[at, None])
            total = share.sum(-1)
            to_own[at], to_weight[at] = share[:, 0], total
            # Of the unnormalised log densities.
            slope = (part[:, 1:] - log_weight[at, 1:, None]).exp_().mul_(total[:, 1:, None])
            slope = torch.sub(share[:, 1:], slope, out=slope)
            s = scale2[at, :, None] + width2
            freedom = df[at, :, None]
            u = nodes - mean[at, :, None]
            squares = u.square()
            each = slope / torch.addcmul(squares, s, freedom)  # slope / D
            more = freedom[..., 0] + 1
            to_mean[at] = more * (each * u).sum(-1)
            ratio = squares.div_(s)
            excess = torch.mul(ratio, each, out=u)
            to_scale2[at] = 0.5 * freedom[..., 0] * (excess - each).sum(-1)
            of_squares = excess.mul_(s).sum(-1)
            of_logs = ratio.div_(freedom).log1p_().mul_(slope).sum(-1)
            change = 0.5 * (more / freedom[..., 0] * of_squares - of_logs)
            to_df[at] = change.sum(-1, keepdim=True)
        return to_own, to_weight, to_mean, to_scale2, to_df, None, None, None


def _blocks(parts: Float[Tensor, "N k nodes"]) -> list[slice]:
    """Of rows; all of them on a device whose memory is fast and whose calls are not."""
    length = len(parts)
    if parts.device.type == "cpu":
        length = max(1, _NUMBERS_AT_ONCE // parts[0].numel()) if length else 1
    return [slice(start, start + length) for start in range(0, len(parts), max(length, 1))]
