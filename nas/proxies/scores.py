"""Several proxies of many architectures, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from nas.architectures import Architecture
from nas.proxies import kernel_scores, network_scores
from nas.proxies.candidates import Candidate

__all__ = ["PROXIES", "Proxy", "ProxyScores"]

Proxy = Callable[[Candidate, Tensor, Tensor], float]
"""`(network or architecture, X [n, *input_shape], y)` to a score."""

PROXIES: dict[str, Proxy] = {
    "flops": network_scores.flops,
    "label_alignment": kernel_scores.label_alignment,
    "naswot": network_scores.naswot,
    "nngp_evidence": kernel_scores.nngp_evidence,
    "ntk_condition": kernel_scores.ntk_condition,
    "ntk_evidence": kernel_scores.ntk_evidence,
    "parameters": network_scores.parameters,
    "predicted_error": kernel_scores.predicted_error,
    "synflow": network_scores.synflow,
}


class ProxyScores:
    """Scores of architectures on some of the user's rows, each computed once in a process.

    Args:
        proxies: Names in `PROXIES`, or callables of your own (importable ones, if workers are to
            have them).
        X: Inputs, `[n, *input_shape]`.
        y: Classes, integers `[n]`, or numbers `[n]` or `[n, m]`.
        max_rows: Rows that are looked at; of more, so many are drawn.
        seed: Of the draw.

    Attributes:
        names: Of the proxies, in their order.
        X: The rows that are looked at.
        y: Their targets.

    Raises:
        ValueError: an unknown name, none at all, or rows and targets of different number.
    """

    def __init__(
        self,
        proxies: Sequence[str | Proxy],
        X: Tensor,
        y: Tensor,
        *,
        max_rows: int = 64,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in proxies if isinstance(name, str) and name not in PROXIES]
        if unknown or not proxies or isinstance(proxies, str):
            raise ValueError(
                f"proxies must be a list of names in {sorted(PROXIES)} or callables, got "
                f"{unknown or proxies!r}."
            )
        if len(X) != len(y):
            raise ValueError(f"ProxyScores needs a target for each row, got {len(X)} and {len(y)}.")
        self.proxies = tuple(proxies)
        order = torch.randperm(len(X), generator=Generator().manual_seed(seed))
        rows = order[:max_rows].to(X.device)
        self.X, self.y = X[rows].detach(), y[rows.to(y.device)].detach()
        self._scores: dict[Architecture, tuple[float, ...]] = {}

    def __repr__(self) -> str:
        return f"ProxyScores({list(self.names)}, {len(self.X)} rows)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scores": {}}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the proxies."""
        return tuple(
            proxy if isinstance(proxy, str) else getattr(proxy, "__name__", repr(proxy))
            for proxy in self.proxies
        )

    def __call__(self, architecture: Architecture) -> tuple[float, ...]:
        """The scores; NaN of a proxy that has none, or an infinite one, for this architecture."""
        if architecture not in self._scores:
            self._scores[architecture] = tuple(
                self._score(PROXIES[proxy] if isinstance(proxy, str) else proxy, architecture)
                for proxy in self.proxies
            )
        return self._scores[architecture]

    def _score(self, proxy: Proxy, architecture: Architecture) -> float:
        try:
            score = float(proxy(architecture, self.X, self.y))
        except (ValueError, ArithmeticError, NotImplementedError, RuntimeError):
            return math.nan  # what cannot be scored can be searched all the same
        return score if math.isfinite(score) else math.nan
