"""Members of an ensemble that go through a network together.

One pass of eight small contexts costs fewer calls than eight passes. Members that differ by the
order of their columns alone share what experts know of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfn.estimators.ensemble import Member
from pfn.network import Copies, Encoding, Network

__all__ = ["EncodedGroup", "encode_together"]

_AT_ONCE = 16  # contexts: more save few calls and need memory


@dataclass(frozen=True)
class EncodedGroup:
    """Some members, encoded in one pass.

    Attributes:
        network: What encoded them.
        members: Their numbers in the ensemble, in the order of the contexts.
        views: A member for each data set that they see.
        encoding: Of these data sets; with copies, whose orders of the columns are the members',
            the data sets have the columns in the order given.
    """

    network: Network
    members: list[int]
    views: list[Member]
    encoding: Encoding

    @property
    def units(self) -> list[tuple[Tensor, Tensor]]:
        """Location and scale of each member's targets, `[1]` in double precision."""
        copies = self.encoding.copies
        index = range(len(self.members)) if copies is None else copies.index.tolist()
        location, scale = self.encoding.location.double(), self.encoding.scale.double()
        return [(location[i], scale[i]) for i in index]

    def logits(self, X: np.ndarray) -> Tensor:
        """Of y at queries `[m, d]`, `[members, m, K]`."""
        given = self.encoding.copies is not None
        rows = [view.transformed(X) if given else view.inputs_of(X) for view in self.views]
        queries = _tensor(self.network, np.stack(rows))
        return self.network.decode_one(self.encoding, queries, noisy=True)


def encode_together(
    network: Network,
    members: Sequence[Member],
    X: np.ndarray,
    y: np.ndarray,
    categorical: np.ndarray | None,
) -> list[EncodedGroup]:
    """Encode what members see of a data set, in as few passes as their shapes allow.

    Args:
        network: What encodes them.
        members: All of the ensemble.
        X: Inputs `[n, d]`.
        y: Targets, or numbers of classes, `[n]`.
        categorical: `[d]`; None if the network knows no categories.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, member in enumerate(members):
        by_shape.setdefault((len(member.rows), member.width), []).append(i)
    groups = []
    for alike in by_shape.values():
        for start in range(0, len(alike), _AT_ONCE):
            numbers = alike[start : start + _AT_ONCE]
            some = [members[i] for i in numbers]
            shared = bool(network.architecture.experts) and not network.architecture.cell_layers
            encoded = _encode_in_orders if shared else _encode_apart
            groups.append(
                EncodedGroup(network, numbers, *encoded(network, some, X, y, categorical))
            )
    return groups


def _encode_in_orders(
    network: Network,
    members: list[Member],
    X: np.ndarray,
    y: np.ndarray,
    categorical: np.ndarray | None,
) -> tuple[list[Member], Encoding]:
    """Each data set once, and of it a context for each member that sees it."""
    places: dict[tuple[bytes, int, int, int], int] = {}
    index = [places.setdefault(member.data, len(places)) for member in members]
    views = [members[index.index(place)] for place in range(len(places))]
    inputs = np.stack([view.transformed(X[view.rows]) for view in views])
    device = next(network.parameters()).device
    orders = torch.tensor(np.stack([member.columns for member in members]), device=device)
    kinds = None
    if categorical is not None:
        kinds = torch.tensor(categorical, device=device).expand(len(views), -1)
    encoding = network.encode(
        _tensor(network, inputs),
        _tensor(network, np.stack([view.targets_of(y) for view in views])),
        categorical=kinds,
        copies=Copies(torch.tensor(index, device=device), orders),
    )
    return views, encoding


def _encode_apart(
    network: Network,
    members: list[Member],
    X: np.ndarray,
    y: np.ndarray,
    categorical: np.ndarray | None,
) -> tuple[list[Member], Encoding]:
    """A data set for each member."""
    inputs = _tensor(network, np.stack([m.inputs_of(X[m.rows]) for m in members]))
    kinds, codes, number = None, None, None
    if categorical is not None:
        known = np.stack([member.kinds_of(categorical) for member in members])
        kinds = torch.tensor(known, device=inputs.device)
    if network.architecture.cell_layers:
        d = inputs.shape[-1]
        each = [network.network.codes(d, inputs, seed=member.column_seed) for member in members]
        codes = torch.cat(each)
    if network.architecture.classes:
        classes = [0 if m.classes is None else m.classes.size for m in members]
        number = torch.tensor(classes, device=inputs.device)
    encoding = network.encode(
        inputs,
        _tensor(network, np.stack([member.targets_of(y) for member in members])),
        categorical=kinds,
        num_classes=number,
        codes=codes,
    )
    return members, encoding


def _tensor(network: Network, values: np.ndarray) -> Tensor:
    return torch.as_tensor(values).to(next(network.parameters()))
