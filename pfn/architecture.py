"""The transformer of a prior-data fitted network.

One token per row. B tasks, n context rows, m query rows, D features at most, E embedding size,
H heads. Keys and values come from context rows alone and from a few learned "thinking" rows, which
also carry location and scale of the targets. So

* the prediction does not depend on the order of the context rows,
* queries do not see each other, and
* the context is encoded once, into keys and values per layer that every later query reuses.

Features fill the first d of D slots: the network is not invariant to their order by
construction, but it is trained on priors under which features are exchangeable. Pre-norm RMSNorm,
zero-initialised output projections and a learned log n scale on the attention logits (Nakanishi
2025, 2501.19399), which keeps attention sharp as the context grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ArchitectureConfig", "Context", "Transformer"]


@dataclass(frozen=True)
class ArchitectureConfig:
    """Sizes of a `Transformer`.

    Attributes:
        max_features: Feature slots D.
        embedding: Embedding size E.
        layers: Transformer blocks.
        heads: Attention heads; divides the embedding size.
        hidden: Width of the feed-forward layers.
        thinking_rows: Learned rows that are always in the context.
        bars: Bars of the output distribution between its tails.
    """

    max_features: int = 10
    embedding: int = 96
    layers: int = 6
    heads: int = 4
    hidden: int = 192
    thinking_rows: int = 8
    bars: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < (0 if name == "thinking_rows" else 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.thinking_rows == 0:
            raise ValueError("thinking_rows must be at least 1: an empty context attends to them.")
        if self.embedding % self.heads:
            raise ValueError(f"heads {self.heads} must divide embedding {self.embedding}.")


@dataclass(frozen=True)
class Context:
    """An encoded context: per layer the keys and values `[B, H, T + n, E / H]`.

    Attributes:
        keys: One per layer.
        values: One per layer.
        log_count: Logarithm of 1 + the number of context rows, `[B, 1, 1, 1]`.
        mask: `[B, 1, 1, T + n]`, True for rows that may be attended to; None if all.
        num_features: Features of the rows.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    log_count: Tensor
    mask: Tensor | None
    num_features: int


class Transformer(nn.Module):
    """Rows in, logits of a bar distribution out, for the noisy y and for the function f.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        self.config = config
        E = config.embedding
        self.embed_x = nn.Sequential(
            nn.Linear(config.max_features + 1, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, E),
        )
        self.embed_y, self.embed_units = nn.Linear(1, E), nn.Linear(2, E)
        self.query_token = nn.Parameter(torch.zeros(E))
        self.thinking = nn.Parameter(torch.randn(config.thinking_rows, E) * 0.02)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(E)
        self.head_y = nn.Linear(E, config.bars + 2)
        self.head_f = nn.Linear(E, config.bars + 2)

    def encode(self, X: Tensor, y: Tensor, units: Tensor, mask: Tensor | None = None) -> Context:
        """Encode context rows.

        Args:
            X: `[B, n, d]`, d at most D; n may be 0.
            y: Standardised targets `[B, n]`.
            units: Location and log scale by which they were standardised, `[B, 2]`.
            mask: `[B, n]`, False for padding.
        """
        B, n, d = X.shape
        tokens = self._rows(X) + self.embed_y(y[..., None])
        thinking = self.thinking + self.embed_units(units)[:, None]
        tokens = torch.cat([thinking, tokens], dim=1)
        T = len(self.thinking)
        if mask is None:
            count = torch.full((B,), float(n), dtype=X.dtype, device=X.device)
            attend = None
        else:
            count = mask.sum(-1).to(X.dtype)
            attend = F.pad(mask, (T, 0), value=True)[:, None, None, :]
        log_count = torch.log1p(count)[:, None, None, None]
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            key, value = block.keys_values(tokens)
            keys.append(key)
            values.append(value)
            if i + 1 < len(self.blocks):  # the last layer's context rows are read by nobody
                tokens = block(tokens, key, value, log_count, attend)
        return Context(tuple(keys), tuple(values), log_count, attend, d)

    def decode(self, context: Context, X: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of y and of f at query rows `[B, m, d]`, each `[B, m, K + 2]`."""
        tokens = self._rows(X) + self.query_token
        for block, key, value in zip(self.blocks, context.keys, context.values, strict=True):
            tokens = block(tokens, key, value, context.log_count, context.mask)
        tokens = self.norm(tokens)
        return self.head_y(tokens), self.head_f(tokens)

    def _rows(self, X: Tensor) -> Tensor:
        """Embedding of the inputs alone, `[B, n, E]`; slots beyond d are zero."""
        D, d = self.config.max_features, X.shape[-1]
        share = torch.full_like(X[..., :1], d / D)
        return self.embed_x(torch.cat([F.pad(X, (0, D - d)), share], dim=-1))


class _Block(nn.Module):
    """Attention from any rows to context rows, then a feed-forward layer; both residual."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        E = config.embedding
        self.heads = config.heads
        self.norm_attention, self.norm_hidden = nn.RMSNorm(E), nn.RMSNorm(E)
        self.query, self.key_value = nn.Linear(E, E, bias=False), nn.Linear(E, 2 * E, bias=False)
        self.attended = nn.Linear(E, E, bias=False)
        self.hidden, self.out = nn.Linear(E, config.hidden), nn.Linear(config.hidden, E)
        self.log_scale = nn.Parameter(torch.zeros(config.heads, 1, 1))
        for layer in (self.attended, self.out):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.out.bias)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(self.norm_attention(tokens)).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(
        self, tokens: Tensor, key: Tensor, value: Tensor, log_count: Tensor, mask: Tensor | None
    ) -> Tensor:
        query = self._split(self.query(self.norm_attention(tokens)))
        query = query * (1 + self.log_scale * log_count)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.attended(attended.transpose(1, 2).flatten(2))
        return tokens + self.out(F.gelu(self.hidden(self.norm_hidden(tokens))))

    def _split(self, tokens: Tensor) -> Tensor:
        """[B, n, E] -> [B, H, n, E / H]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
