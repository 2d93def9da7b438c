"""A trained network in a larger architecture that answers as before.

Small networks learn the first things faster, large ones learn more in the end, and what a small one
knows need not be learnt again (Chen et al. 2016, Net2Net, 1511.05641; Shen et al. 2022, Staged
training for transformer language models, 2203.06211). New parts are drawn as in an untrained
network, except for what they would write into the rest:

* new entries of the residual stream are written by nobody at first, so they are 0; root mean
  squares over the longer stream are smaller by sqrt(E / E'), which the weights of the norms undo;
* new attention heads and hidden units are read by nobody at first;
* new blocks are behind the others, and a fresh block writes nothing.

Experts (`pfn.experts`) where there were none are the exception: the old answer and theirs begin
with half of the weight each, which is better than either, and the stream is told nothing of them at
first.

All of them have gradients, because only one side of each is 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pfn.architecture import ArchitectureConfig, Transformer

__all__ = ["grown"]

# What the axes of each parameter are. E is the residual stream that is read, e that is written; A
# the entries of heads, K those of keys and then of values, H hidden units, a and h these where they
# are read; X inputs; "=" may not differ. New entries of e, a and h are 0.
_AXES = {
    "embed_x.0.weight": "HX",
    "embed_x.0.bias": "H",
    "embed_x.2.weight": "eh",
    "embed_x.2.bias": "e",
    "embed_y.weight": "e=",
    "embed_y.bias": "e",
    "embed_units.weight": "e=",
    "embed_units.bias": "e",
    "embed_noise.weight": "e=",
    "embed_noise.bias": "e",
    "embed_advice.0.weight": "H=",
    "embed_advice.0.bias": "H",
    "embed_advice.2.weight": "eh",
    "embed_advice.2.bias": "e",
    "query_token": "e",
    "thinking": "=e",
    "query.weight": "AE",
    "key_value.weight": "KE",
    "attended.weight": "ea",
    "hidden.weight": "HE",
    "hidden.bias": "H",
    "out.weight": "eh",
    "out.bias": "e",
    "head_y.weight": "=E",
    "head_y.bias": "=",
    "head_f.weight": "=E",
    "head_f.bias": "=",
    "mix_y.weight": "=E",
    "mix_y.bias": "=",
    "mix_f.weight": "=E",
    "mix_f.bias": "=",
}
_MAY_GROW = ("max_features", "embedding", "layers", "heads", "hidden")


def grown(
    values: Mapping[str, Tensor], old: ArchitectureConfig, new: ArchitectureConfig
) -> dict[str, Tensor]:
    """State of a `Transformer` of the architecture `new` that answers like that of `old`.

    Args:
        values: State of the old `Transformer`, on the CPU.
        old: Its architecture; the number of bars is taken from the values.
        new: Larger in `max_features`, `embedding`, `layers`, `heads` or `hidden`, or with experts.
            A head keeps its size, embedding / heads.

    Raises:
        ValueError: the architectures differ in something else, or something is smaller.
    """
    _check(old, new)
    fresh = Transformer(new, len(values["head_y.weight"])).state_dict()
    found: dict[str, Tensor] = {}
    for name, value in fresh.items():
        base = re.sub(r"^blocks\.\d+\.", "", name)
        start = values.get(name)
        if start is None:  # of a new block, or of experts
            unheard = name.startswith("embed_advice.2")
            found[name] = torch.zeros_like(value) if unheard else value
        elif "norm" in base:
            ratio = (old.embedding / new.embedding) ** 0.5
            found[name] = torch.cat([ratio * start, value[len(start) :].to(start)])
        elif base == "log_scale":
            found[name] = torch.cat([start, value[len(start) :].to(start)])
        else:
            axes = "=e" if base == "embed_y.weight" and new.classes else _AXES[base]
            found[name] = _placed(start, value.to(start), axes, old, new)
    # Its last column reads d / D.
    found["embed_x.0.weight"][: old.hidden, -1] *= new.max_features / old.max_features
    return found


def _placed(
    start: Tensor, fresh: Tensor, axes: str, old: ArchitectureConfig, new: ArchitectureConfig
) -> Tensor:
    """The old values among fresh ones, which neither write to nor are read by the old parts."""
    kept = [_kept(axis, size, old, new) for axis, size in zip(axes, start.shape, strict=True)]
    result = fresh.clone()
    for dim, axis in enumerate(axes):
        if axis in "eah":
            added = torch.ones(fresh.shape[dim], dtype=torch.bool)
            added[kept[dim]] = False
            result.index_fill_(dim, added.nonzero()[:, 0], 0.0)
    result[torch.meshgrid(*kept, indexing="ij")] = start
    return result


def _kept(axis: str, size: int, old: ArchitectureConfig, new: ArchitectureConfig) -> Tensor:
    """Where the old entries of an axis are among the new ones."""
    index = torch.arange(size)
    if axis == "K":  # values come behind all keys
        index = torch.where(index < old.embedding, index, index + new.embedding - old.embedding)
    elif axis == "X":  # three channels of D slots, and one number
        channel, slot = index // old.max_features, index % old.max_features
        index = channel * new.max_features + slot
    return index


def _check(old: ArchitectureConfig, new: ArchitectureConfig) -> None:
    for name, before in vars(old).items():
        after = getattr(new, name)
        if name == "bars" or after == before or (name == "experts" and before == 0):
            continue
        if name not in _MAY_GROW or after < before:
            raise ValueError(
                f"A network with {name}={before} cannot be continued with {name}={after}; only "
                f"{', '.join(_MAY_GROW)} may grow, experts be added, and the number of bars change."
            )
    if old.embedding * new.heads != new.embedding * old.heads:
        raise ValueError(
            f"A larger network keeps the size of its heads, {old.embedding // old.heads}: with "
            f"embedding={new.embedding} it needs heads={new.embedding * old.heads // old.embedding}"
            f", got {new.heads}."
        )
    if old.cell_layers or old.decoupled_values:
        raise ValueError(
            "Networks of cells and networks with decoupled values cannot become larger; train one "
            "from the start."
        )
