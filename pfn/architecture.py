"""The transformer of a prior-data fitted network.

B tasks, n context rows, m query rows, d features, E embedding size, H heads. Keys and values come
from context rows alone and from a few learned "thinking" rows, which also carry location and scale
of the targets. So

* the prediction does not depend on the order of the context rows,
* queries do not see each other, and
* the context is encoded once, into keys and values per layer that every later query reuses.

Rows can be appended to an encoded context: they attend to it and to the rows appended before
them, and leave the rest as it is (Hassan et al. 2025, 2510.09477, call that a buffer). Appending
one by one or together is the same; encoding everything anew is exact order invariance, and the
network is trained to do either.
Copies of an encoding, of which samples and fantasies need thousands, share its keys and values and
have only those of their appended rows for themselves; copies of these share their rows in turn.

Rows become tokens in one of two ways:

* `cell_layers = 0`: features fill the first d of D slots of one vector. Cheap; for priors under
  which features are exchangeable, invariance to their order is learnt.
* `cell_layers > 0`: one token per cell. Layers alternate attention over the points of a column
  (through inducing vectors, Lee et al. 2019, 1810.00825) and over the features of a row, whose
  summary tokens then are the row's token, as in TabICL (Qu et al. 2025, 2502.05564). Columns are
  told apart by random codes, so that invariance to their order is exact in distribution over the
  codes, for any number of features.

With `decoupled_values` attention weights depend on inputs alone and targets pass through the
values (Sharma et al. 2025, 2509.20950), as in the posterior mean of a Gaussian process.

Pre-norm RMSNorm, zero-initialised output projections and a learned log n scale on the attention
logits (Nakanishi 2025, 2501.19399), which keeps attention sharp as the context grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

__all__ = ["CODE_SIZE", "ArchitectureConfig", "Context", "Rows", "Targets", "Transformer"]

CODE_SIZE = 16  # numbers that tell a column apart

_MAY_BE_ZERO = ("thinking_rows", "bars", "classes", "cell_layers", "experts")

# Query, key, value and mask to what is attended to.
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class ArchitectureConfig:
    """Sizes of a `Transformer`.

    Attributes:
        max_features: Feature slots D; with cells, the most features of the training.
        embedding: Embedding size E.
        layers: Transformer blocks over rows.
        heads: Attention heads; divides the embedding size.
        hidden: Width of the feed-forward layers.
        thinking_rows: Learned rows that are always in the context.
        bars: Nodes of the output distribution; 0 for as many as represent the posteriors of the
            prior to 0.003 nats, see `pfn.distribution.choose_num_nodes`.
        classes: Largest number of classes, predicted in place of the bars; 0 for regression.
        cell_layers: Layers over cells before rows are formed; 0 for slots.
        cell_embedding: Embedding size of a cell, a multiple of 16.
        inducing: Inducing vectors of the attention over the points of a column.
        summaries: Summary tokens of a row of cells.
        decoupled_values: Whether attention weights see inputs only.
        log_scaling: Whether attention logits have the learned log n scale.
        experts: Gaussian processes whose predictions the network is told and mixes, see
            `pfn.experts`; 0 for none.
    """

    max_features: int = 10
    embedding: int = 96
    layers: int = 6
    heads: int = 4
    hidden: int = 192
    thinking_rows: int = 8
    bars: int = 256
    classes: int = 0
    cell_layers: int = 0
    cell_embedding: int = 32
    inducing: int = 16
    summaries: int = 4
    decoupled_values: bool = False
    log_scaling: bool = True
    experts: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool):
                continue
            least = 0 if name in _MAY_BE_ZERO else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.thinking_rows == 0:
            raise ValueError("thinking_rows must be at least 1: an empty context attends to them.")
        if self.embedding % self.heads:
            raise ValueError(f"heads {self.heads} must divide embedding {self.embedding}.")
        if self.cell_embedding % 16:
            raise ValueError(f"cell_embedding must be a multiple of 16, got {self.cell_embedding}.")
        if self.classes == 1:
            raise ValueError("classes must be 0, for regression, or at least 2.")
        if self.experts and self.classes:
            raise ValueError("experts are for regression; a network of classes has none.")


@dataclass(frozen=True)
class Rows:
    """Inputs as the network sees them.

    Attributes:
        values: 0 where missing.
        missing: 1 where missing; None where nothing is.
        categorical: 1 where a feature is a category; None where none is.
        codes: Column codes; None with slots.
        noise: Log of the noise variance in squared units of the network, NaN where it is not
            known; None where it is known nowhere.
        advice: What experts say of the rows, see `pfn.experts`; None without experts.
    """

    values: Float[Tensor, "B n d"]
    missing: Shaped[Tensor, "B n d"] | None = None
    categorical: Shaped[Tensor, "B d"] | None = None
    codes: Float[Tensor, "B d 16"] | None = None
    noise: Float[Tensor, "B n"] | None = None
    advice: Float[Tensor, "B n told"] | None = None

    @property
    def channels(
        self,
    ) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B n d"], Float[Tensor, "B n d"]]:
        """Value, whether it is missing, whether it is a category, as numbers."""
        x = self.values
        missing = torch.zeros_like(x) if self.missing is None else self.missing.to(x)
        kind = torch.zeros_like(x[:, :1]) if self.categorical is None else self.categorical[:, None]
        return x, missing, kind.to(x).expand_as(x)


@dataclass(frozen=True)
class Targets:
    """Targets of context rows: numbers in the network's units, or classes."""

    values: Shaped[Tensor, "B n"]
    units: Float[Tensor, "B 2"]
    """Location and log scale of the numbers; log number of classes and 0 for classes."""


@dataclass(frozen=True)
class Context:
    """An encoded context: per layer the keys and values of n rows and T thinking rows.

    Attributes:
        keys: One per layer; only of rows that are not in `shared`, which come first.
        values: Likewise.
        count: Number of context rows.
        mask: True for rows that may be attended to, those of `shared` among them; None if all.
        columns: What queries need of each layer over cells.
        shared: Rows of fewer tasks, which those here are copies of. Thousands of samples or
            fantasies of a data set need not hold it each.
    """

    keys: tuple[Float[Tensor, "B H rows key"], ...]
    values: tuple[Float[Tensor, "B H rows value"], ...]
    count: Float[Tensor, "B 1 1 1"]
    mask: Bool[Tensor, "B 1 1 all"] | None
    columns: tuple[Float[Tensor, "B d I E"], ...]
    shared: tuple[Shared, ...] = ()

    @property
    def length(self) -> int:
        """T + n."""
        return self.keys[0].shape[-2] + sum(part.length for part in self.shared)

    def attention(self, layer: int) -> Attention:
        """Attention to the keys of a layer, those that copies share among them."""
        if not self.shared:
            return F.scaled_dot_product_attention
        return partial(_attend_shared, self.shared, layer)

    def select(self, index: Int[Tensor, " chosen"]) -> Context:
        """The tasks `index`, with repetitions."""
        keys, values = self.keys, self.values
        shared = tuple(part.select(index) for part in self.shared)
        if len(index) > len(self.count) and keys[0].shape[-2]:
            shared = (*shared, Shared(keys, values, index))
            keys, values = (tuple(p[:, :, :0] for p in parts) for parts in (keys, values))
        return Context(
            tuple(key[index] for key in keys),
            tuple(value[index] for value in values),
            self.count[index],
            None if self.mask is None else self.mask[index],
            tuple(column[index] for column in self.columns),
            shared,
        )

    def without_last(self, k: int) -> Context:
        """Without the last k rows, which were appended and are not shared."""
        own = self.keys[0].shape[-2] - k
        return replace(
            self,
            keys=tuple(key[:, :, :own] for key in self.keys),
            values=tuple(value[:, :, :own] for value in self.values),
            count=self.count - k,
            mask=None if self.mask is None else self.mask[..., : self.mask.shape[-1] - k],
        )


@dataclass(frozen=True)
class Shared:
    """Keys and values of tasks that many others share.

    Attributes:
        keys: Per layer.
        values: Per layer.
        index: Which of them serves each of B tasks.
    """

    keys: tuple[Float[Tensor, "B0 H n key"], ...]
    values: tuple[Float[Tensor, "B0 H n value"], ...]
    index: Int[Tensor, " B"]

    @property
    def length(self) -> int:
        """n."""
        return self.keys[0].shape[-2]

    def select(self, index: Int[Tensor, " chosen"]) -> Shared:
        """For the tasks `index` of the B."""
        return Shared(self.keys, self.values, self.index[index])

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor] | None:
        """Tasks by what they share, and back; None where that differs in number."""
        number = self.index.bincount(minlength=len(self.keys[0]))
        if not bool((number == number[0]).all()):
            return None
        order = self.index.argsort(stable=True)
        return order, order.argsort()

    @cached_property
    def _sorted(self) -> bool:
        """Whether tasks that share something are beside each other."""
        return bool((self.index.diff() >= 0).all())

    def times(
        self, left: Float[Tensor, "B H m k"], right: Float[Tensor, "B0 H k l"]
    ) -> Float[Tensor, "B H m l"]:
        """`left` times the matrices `right` of the index."""
        if self._order is None:
            return left @ right[self.index]
        order, back = self._order
        parts = left if self._sorted else left[order]
        parts = parts.unflatten(0, (len(right), -1)).transpose(1, 2)  # [B0, H, c, m, k]
        found = (parts.flatten(2, 3) @ right).unflatten(2, parts.shape[2:4])
        found = found.transpose(1, 2).flatten(0, 1)
        return found if self._sorted else found[back]


def _attend_shared(
    shared: tuple[Shared, ...],
    layer: int,
    query: Float[Tensor, "B H m key"],
    key: Float[Tensor, "B H n key"],
    value: Float[Tensor, "B H n value"],
    mask: Bool[Tensor, "#B 1 #m all"] | None,
) -> Float[Tensor, "B H m value"]:
    """Attention of queries to what is shared, and then to keys of their own."""
    query = query / query.shape[-1] ** 0.5
    scores = [part.times(query, part.keys[layer].mT) for part in shared]
    together = torch.cat([*scores, query @ key.mT], dim=-1)
    if mask is not None:
        together = together.masked_fill(~mask, -torch.inf)
    *weights, own = together.softmax(-1).split(
        [*(part.length for part in shared), key.shape[-2]], -1
    )
    found = own @ value
    for part, weight in zip(shared, weights, strict=True):
        found = found + part.times(weight, part.values[layer])
    return found


class Transformer(nn.Module):
    """Rows in; logits of the predictive distributions of the noisy y and of the function f out.

    Args:
        config: Sizes.
        num_logits: Logits of a bar distribution; ignored with classes.
    """

    def __init__(self, config: ArchitectureConfig, num_logits: int | None = None) -> None:
        super().__init__()
        self.config = config
        E, D = config.embedding, config.max_features
        width = E * (2 if config.decoupled_values else 1)
        if config.cell_layers:
            self.cells = _Cells(config)
            self.embed_x: nn.Module = nn.Linear(config.summaries * config.cell_embedding, E)
        else:
            self.embed_x = nn.Sequential(
                nn.Linear(3 * D + 1, config.hidden), nn.GELU(), nn.Linear(config.hidden, E)
            )
        self.embed_y: nn.Module = _target_embedding(config, E)
        self.embed_units, self.embed_noise = nn.Linear(2, E), nn.Linear(2, E)
        self.query_token = nn.Parameter(torch.zeros(E))
        self.thinking = nn.Parameter(torch.randn(config.thinking_rows, width) * 0.02)
        block = _DecoupledBlock if config.decoupled_values else _Block
        self.blocks = nn.ModuleList([block(config) for _ in range(config.layers)])
        self.norm = _RMSNorm(width)
        if config.classes:
            self.head_y = nn.Linear(width, config.classes)
        else:
            num_logits = config.bars if num_logits is None else num_logits
            self.head_y, self.head_f = nn.Linear(width, num_logits), nn.Linear(width, num_logits)
        if config.experts:
            k = config.experts
            self.embed_advice = nn.Sequential(
                nn.Linear(4 * k, config.hidden), nn.GELU(), nn.Linear(config.hidden, E)
            )
            self.mix_y, self.mix_f = nn.Linear(width, 3 * k + 2), nn.Linear(width, 3 * k + 2)
            _zero(self.mix_y, self.mix_f)

    def encode(
        self, rows: Rows, targets: Targets, mask: Bool[Tensor, "B n"] | None = None
    ) -> Context:
        """Encode context rows.

        Args:
            rows: n of them; n may be 0.
            targets: Targets of the same rows.
            mask: False for padding.
        """
        B, n, _ = rows.values.shape
        embedded, columns = self._inputs(rows, targets, mask)
        tokens = self._join(embedded, rows, self.embed_y(_as_input(targets.values, embedded)))
        units = self.embed_units(targets.units)
        thinking = self.thinking + F.pad(units, (tokens.shape[-1] - units.shape[-1], 0))[:, None]
        tokens = torch.cat([thinking, tokens], dim=1)
        if mask is None:
            count = torch.full((B,), float(n), dtype=tokens.dtype, device=tokens.device)
            attend = None
        else:
            count = mask.sum(-1).to(tokens.dtype)
            attend = F.pad(mask, (len(self.thinking), 0), value=True)[:, None, None, :]
        count = count[:, None, None, None]
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            key, value = block.keys_values(tokens)  # type: ignore[operator]
            keys.append(key)
            values.append(value)
            if i + 1 < len(self.blocks):  # the last layer's context rows are read by nobody
                tokens = block(tokens, _Memory(key, value, count, attend))
        return Context(tuple(keys), tuple(values), count, attend, columns)

    def append(self, context: Context, rows: Rows, targets: Targets) -> Context:
        """A context with further rows, which see it and those before them; it is unchanged.

        Args:
            context: Encoded context.
            rows: k further rows.
            targets: Targets of these rows, in the units of the context.
        """
        k = rows.values.shape[1]
        embedded, _ = self._inputs(rows, targets, None, context.columns)
        tokens = self._join(embedded, rows, self.embed_y(_as_input(targets.values, embedded)))
        old = context.length
        causal = torch.ones(k, old + k, dtype=torch.bool, device=tokens.device).tril(old)
        causal = causal[None, None]
        mask = None
        if context.mask is not None:
            mask = F.pad(context.mask, (0, k), value=True)
            causal = causal & mask
        rank = torch.arange(1, k + 1, device=tokens.device, dtype=tokens.dtype)[None, None, :, None]
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            key, value = block.keys_values(tokens)  # type: ignore[operator]
            keys.append(torch.cat([context.keys[i], key], dim=-2))
            values.append(torch.cat([context.values[i], value], dim=-2))
            if i + 1 < len(self.blocks):
                attend = context.attention(i)
                own = keys[-1], values[-1], context.count + rank, causal
                tokens = block(tokens, _Memory(*own, attend))
        return replace(
            context, keys=tuple(keys), values=tuple(values), count=context.count + k, mask=mask
        )

    def decode(
        self, context: Context, rows: Rows
    ) -> tuple[Float[Tensor, "B m y"], Float[Tensor, "B m f"] | None]:
        """Logits of y and of f at m query rows, then how to mix experts; no f with classes."""
        tokens = self._read(context, rows)
        f = None if self.config.classes else self._head(tokens, noisy=False)
        return self._head(tokens, noisy=True), f

    def decode_one(
        self, context: Context, rows: Rows, *, noisy: bool
    ) -> Float[Tensor, "B m nodes"]:
        """Those of y, or of f, alone."""
        return self._head(self._read(context, rows), noisy=noisy or self.config.classes > 0)

    def _head(self, tokens: Float[Tensor, "B m width"], *, noisy: bool) -> Float[Tensor, "B m out"]:
        logits = self.head_y(tokens) if noisy else self.head_f(tokens)
        if not self.config.experts:
            return logits
        return torch.cat([logits, self.mix_y(tokens) if noisy else self.mix_f(tokens)], dim=-1)

    def _read(self, context: Context, rows: Rows) -> Float[Tensor, "B m width"]:
        """What queries have read from the context."""
        embedded, _ = self._inputs(rows, None, None, context.columns)
        tokens = self._join(embedded, rows, self.query_token)
        for i, block in enumerate(self.blocks):
            own = context.keys[i], context.values[i], context.count, context.mask
            tokens = block(tokens, _Memory(*own, context.attention(i)))
        return self.norm(tokens)

    def codes(self, d: int, like: Tensor, *, seed: int = 0) -> Float[Tensor, "1 {d} 16"]:
        """The codes of d columns for a seed; the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        shape, where = (1, d, CODE_SIZE), "cpu"
        codes = torch.randn(shape, generator=generator, dtype=torch.float64, device=where)
        return codes.to(like)

    def _inputs(
        self,
        rows: Rows,
        targets: Targets | None,
        mask: Bool[Tensor, "B n"] | None,
        columns: tuple[Float[Tensor, "B d I Ec"], ...] | None = None,
    ) -> tuple[Float[Tensor, "B n E"], tuple[Float[Tensor, "B d I Ec"], ...]]:
        """Embedding of the inputs, and what later rows need of the columns.

        With cells that of context rows knows the targets.
        """
        x = rows.values
        if self.config.cell_layers:
            cells, columns = self.cells(rows, targets, mask, columns)
            return self.embed_x(cells), columns
        D, d = self.config.max_features, x.shape[-1]
        share = torch.full_like(x[..., :1], d / D)
        parts = [F.pad(part, (0, D - d)) for part in rows.channels]
        return self.embed_x(torch.cat([*parts, share], dim=-1)), ()

    def _join(
        self, embedded: Float[Tensor, "B n E"], rows: Rows, target: Float[Tensor, "... E"]
    ) -> Float[Tensor, "B n width"]:
        """Tokens of rows from the embeddings of their inputs, noise and targets."""
        level = embedded.new_full(embedded.shape[:2], torch.nan)
        level = level if rows.noise is None else rows.noise
        known = ~level.isnan()
        level = level.nan_to_num(0.0).clamp(-12.0, 4.0) / 4
        noise = torch.stack([known.to(level), level * known], dim=-1)
        embedded = embedded + self.embed_noise(noise)
        if rows.advice is not None:
            embedded = embedded + self.embed_advice(rows.advice)
        if not self.config.decoupled_values:
            return embedded + target
        return torch.cat([embedded, target.expand_as(embedded)], dim=-1)


class _RMSNorm(nn.RMSNorm):
    """In the precision of its weights also where the rest is in half of it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class _Memory(NamedTuple):
    """What the rows of a layer attend to."""

    key: Float[Tensor, "B H n key"]
    value: Float[Tensor, "B H n value"]
    size: Float[Tensor, "B 1 #m 1"]  # context rows among them
    mask: Bool[Tensor, "#B 1 #m all"] | None
    attend: Attention = F.scaled_dot_product_attention

    def read(
        self, query: Float[Tensor, "B H m key"], log_scale: Float[Tensor, "H 1 1"]
    ) -> Float[Tensor, "B H m value"]:
        """What queries find; sharper the more rows there are."""
        query = query * (1 + log_scale * torch.log1p(self.size))
        return self.attend(query, self.key, self.value, self.mask)


class _Block(nn.Module):
    """Attention from any rows to context rows, then a feed-forward layer; both residual."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        E = config.embedding
        self.heads = config.heads
        self.norm_attention, self.norm_hidden = _RMSNorm(E), _RMSNorm(E)
        self.query, self.key_value = nn.Linear(E, E, bias=False), nn.Linear(E, 2 * E, bias=False)
        self.attended = nn.Linear(E, E, bias=False)
        self.hidden, self.out = nn.Linear(E, config.hidden), nn.Linear(config.hidden, E)
        self.log_scale = _log_scale(config)
        _zero(self.attended, self.out)

    def keys_values(
        self, tokens: Float[Tensor, "B n width"]
    ) -> tuple[Float[Tensor, "B H n key"], Float[Tensor, "B H n value"]]:
        key, value = self.key_value(self.norm_attention(tokens)).chunk(2, dim=-1)
        return _split(key, self.heads), _split(value, self.heads)

    def forward(
        self, tokens: Float[Tensor, "B n width"], memory: _Memory
    ) -> Float[Tensor, "B n width"]:
        query = _split(self.query(self.norm_attention(tokens)), self.heads)
        attended = memory.read(query, self.log_scale)
        tokens = tokens + self.attended(attended.transpose(1, 2).flatten(2))
        return tokens + self.out(F.gelu(self.hidden(self.norm_hidden(tokens))))


class _DecoupledBlock(nn.Module):
    """The same on two streams of E, of inputs alone and of targets.

    Attention weights come from the first stream, whose values come from it alone; those of the
    second come from both.
    """

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        E = config.embedding
        self.heads, self.width = config.heads, E
        self.norm_attention, self.norm_hidden = _RMSNorm(E), _RMSNorm(E)
        self.norm_both, self.norm_both_hidden = _RMSNorm(2 * E), _RMSNorm(2 * E)
        self.query, self.key_value = nn.Linear(E, E, bias=False), nn.Linear(E, 2 * E, bias=False)
        self.value_both = nn.Linear(2 * E, E, bias=False)
        self.attended = nn.Linear(E, E, bias=False)
        self.attended_both = nn.Linear(E, E, bias=False)
        self.hidden, self.out = nn.Linear(E, config.hidden), nn.Linear(config.hidden, E)
        self.hidden_both = nn.Linear(2 * E, config.hidden)
        self.out_both = nn.Linear(config.hidden, E)
        self.log_scale = _log_scale(config)
        _zero(self.attended, self.attended_both, self.out, self.out_both)

    def keys_values(
        self, tokens: Float[Tensor, "B n width"]
    ) -> tuple[Float[Tensor, "B H n key"], Float[Tensor, "B H n value"]]:
        inputs = self.norm_attention(tokens[..., : self.width])
        key, value = self.key_value(inputs).chunk(2, dim=-1)
        both = self.value_both(self.norm_both(tokens))
        parts = [_split(part, self.heads) for part in (value, both)]
        return _split(key, self.heads), torch.cat(parts, dim=-1)

    def forward(
        self, tokens: Float[Tensor, "B n width"], memory: _Memory
    ) -> Float[Tensor, "B n width"]:
        inputs, targets = tokens.chunk(2, dim=-1)
        query = _split(self.query(self.norm_attention(inputs)), self.heads)
        attended = memory.read(query, self.log_scale)
        first, second = (part.transpose(1, 2).flatten(2) for part in attended.chunk(2, dim=-1))
        inputs, targets = inputs + self.attended(first), targets + self.attended_both(second)
        both = self.norm_both_hidden(torch.cat([inputs, targets], dim=-1))
        targets = targets + self.out_both(F.gelu(self.hidden_both(both)))
        inputs = inputs + self.out(F.gelu(self.hidden(self.norm_hidden(inputs))))
        return torch.cat([inputs, targets], dim=-1)


class _Cells(nn.Module):
    """Cells to summaries of rows, by attention over points and features in turn."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        E = config.cell_embedding
        self.embed = nn.Sequential(nn.Linear(3, 2 * E), nn.GELU(), nn.Linear(2 * E, E))
        self.embed_code = nn.Linear(CODE_SIZE, E)
        self.embed_y = _target_embedding(config, E)
        self.query_token = nn.Parameter(torch.zeros(E))
        self.summaries = nn.Parameter(torch.randn(config.summaries, E) * 0.02)
        self.layers = nn.ModuleList([_CellLayer(config) for _ in range(config.cell_layers)])
        self.norm = _RMSNorm(E)

    def forward(
        self,
        rows: Rows,
        targets: Targets | None,
        mask: Bool[Tensor, "B n"] | None,
        columns: tuple[Float[Tensor, "B d I Ec"], ...] | None,
    ) -> tuple[Float[Tensor, "B n summaries"], tuple[Float[Tensor, "B d I Ec"], ...]]:
        """Summaries of the rows; `columns` None for the set of context rows."""
        x = rows.values
        B, n, d = x.shape
        cells = self.embed(torch.stack(rows.channels, dim=-1))
        assert rows.codes is not None
        cells = cells + self.embed_code(rows.codes)[:, None]  # [B, n, d, E]
        target = self.query_token
        if targets is not None:
            target = self.embed_y(_as_input(targets.values, x))[:, :, None]
        cells = cells + target
        cells = torch.cat([self.summaries.expand(B, n, -1, -1), cells], dim=2)
        found = []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, _CellLayer)
            column = layer.columns(cells, mask) if columns is None else columns[i]
            found.append(column)
            cells = layer(cells, column)
        summaries = self.norm(cells[:, :, : len(self.summaries)])
        return summaries.flatten(2), tuple(found)


class _CellLayer(nn.Module):
    """Attention over the points of each column, then over the features of each row."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        E = config.cell_embedding
        self.heads, self.skip = E // 16, config.summaries
        self.inducing = nn.Parameter(torch.randn(config.inducing, E) * 0.02)
        self.norm_points, self.norm_inducing = _RMSNorm(E), _RMSNorm(E)
        self.norm_features, self.norm_hidden = _RMSNorm(E), _RMSNorm(E)
        self.gather_query, self.gather = (
            nn.Linear(E, E, bias=False),
            nn.Linear(E, 2 * E, bias=False),
        )
        self.gathered = nn.Linear(E, E, bias=False)
        self.point_query, self.point = nn.Linear(E, E, bias=False), nn.Linear(E, 2 * E, bias=False)
        self.pointed = nn.Linear(E, E, bias=False)
        self.feature, self.featured = nn.Linear(E, 3 * E, bias=False), nn.Linear(E, E, bias=False)
        self.hidden, self.out = nn.Linear(E, 2 * E), nn.Linear(2 * E, E)
        _zero(self.pointed, self.featured, self.out)

    def columns(
        self, cells: Float[Tensor, "B n cells E"], mask: Bool[Tensor, "B n"] | None
    ) -> Float[Tensor, "B d I E"]:
        """What inducing vectors gather from the context's cells."""
        cells = cells[:, :, self.skip :]
        B, n, d, E = cells.shape
        points = self.norm_points(cells).transpose(1, 2).reshape(B * d, n, E)
        own = self.norm_inducing(self.inducing).expand(B * d, -1, -1)
        key, value = self.gather(torch.cat([own, points], dim=1)).chunk(2, dim=-1)
        attend = None
        if mask is not None:
            attend = F.pad(mask, (own.shape[1], 0), value=True)
            attend = attend.repeat_interleave(d, dim=0)[:, None, None, :]
        found = self._attend(self.gather_query(own), key, value, attend)
        return (self.inducing + self.gathered(found)).unflatten(0, (B, d))

    def forward(
        self, cells: Float[Tensor, "B n cells E"], columns: Float[Tensor, "B d I E"]
    ) -> Float[Tensor, "B n cells E"]:
        summaries, cells = cells[:, :, : self.skip], cells[:, :, self.skip :]
        B, n, d, E = cells.shape
        points = self.point_query(self.norm_points(cells)).transpose(1, 2).reshape(B * d, n, E)
        key, value = self.point(self.norm_inducing(columns)).flatten(0, 1).chunk(2, dim=-1)
        found = self.pointed(self._attend(points, key, value))
        cells = cells + found.unflatten(0, (B, d)).transpose(1, 2)
        tokens = torch.cat([summaries, cells], dim=2).flatten(0, 1)  # [B n, S + d, E]
        found = self._attend(*self.feature(self.norm_features(tokens)).chunk(3, dim=-1))
        tokens = tokens + self.featured(found)
        tokens = tokens + self.out(F.gelu(self.hidden(self.norm_hidden(tokens))))
        return tokens.unflatten(0, (B, n))

    def _attend(
        self,
        query: Float[Tensor, "b q E"],
        key: Float[Tensor, "b k E"],
        value: Float[Tensor, "b k E"],
        mask: Bool[Tensor, "b 1 1 k"] | None = None,
    ) -> Float[Tensor, "b q E"]:
        query, key, value = (_split(part, self.heads) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return found.transpose(1, 2).flatten(2)


def _target_embedding(config: ArchitectureConfig, size: int) -> nn.Module:
    return nn.Embedding(config.classes, size) if config.classes else nn.Linear(1, size)


def _as_input(values: Tensor, like: Tensor) -> Tensor:
    """Numbers as a column, classes as indices."""
    return values[..., None].to(like) if values.is_floating_point() else values


def _log_scale(config: ArchitectureConfig) -> nn.Parameter:
    zeros = torch.zeros(config.heads, 1, 1)
    return nn.Parameter(zeros, requires_grad=config.log_scaling)


def _split(tokens: Float[Tensor, "B n E"], heads: int) -> Float[Tensor, "B {heads} n key"]:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _zero(*layers: nn.Linear) -> None:
    """Residual branches start at nothing."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
