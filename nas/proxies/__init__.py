"""Scores of a candidate without training it.

A proxy is a callable `proxy(candidate, X, y) -> float` of a network or an architecture and some of
your rows. Those here are by name in `PROXIES`; `ProxyScores` asks several of them about the same
rows, and `BayesianSampler(proxies=...)` takes them for descriptors of the architecture whose weight
is learnt, so that a useless one is switched off.
"""

from nas.proxies.kernel_scores import (
    label_alignment,
    nngp_evidence,
    ntk_condition,
    ntk_evidence,
    predicted_error,
)
from nas.proxies.network_scores import flops, naswot, parameters, synflow
from nas.proxies.scores import PROXIES, Proxy, ProxyScores

__all__ = [
    "PROXIES",
    "Proxy",
    "ProxyScores",
    "flops",
    "label_alignment",
    "naswot",
    "nngp_evidence",
    "ntk_condition",
    "ntk_evidence",
    "parameters",
    "predicted_error",
    "synflow",
]
