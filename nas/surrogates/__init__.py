"""Models of the objective over architectures and hyperparameters, by name or of one's own."""

from nas.proxies import ProxyScores
from nas.surrogates.ensembles import PathEnsemble
from nas.surrogates.fitted_networks import FittedNetwork
from nas.surrogates.graphs import GraphProcess
from nas.surrogates.networks import network_process
from nas.surrogates.surrogate import Surrogate, VectorModel, VectorSurrogate
from nas.surrogates.vectors import gaussian_process

__all__ = [
    "SURROGATES",
    "FittedNetwork",
    "GraphProcess",
    "PathEnsemble",
    "Surrogate",
    "VectorModel",
    "VectorSurrogate",
    "gaussian_process",
    "network_process",
    "surrogate_of",
]

SURROGATES = ("ensemble", "gp", "network", "pfn", "vectors")


def surrogate_of(
    choice: str | Surrogate | VectorModel, proxies: ProxyScores | None = None
) -> Surrogate:
    """The surrogate of a name, a callable or itself.

    Args:
        choice: A name in `SURROGATES`, a surrogate, or a `VectorModel`.
        proxies: Descriptors for `"gp"`.

    Raises:
        ValueError: an unknown name, or proxies for another surrogate.
        TypeError: something else.
    """
    if proxies is not None and choice != "gp":
        raise ValueError(
            f"surrogate 'gp' reads proxies, {choice!r} does not; leave them out, or give your own "
            "surrogate its proxies when you make it."
        )
    match choice:
        case Surrogate():
            return choice
        case "gp":
            return GraphProcess(proxies=proxies)
        case "network":
            return VectorSurrogate(network_process)
        case "pfn":
            return FittedNetwork()
        case "ensemble":
            return PathEnsemble()
        case "vectors":
            return VectorSurrogate(gaussian_process)
        case str():
            raise ValueError(
                f"surrogate must be one of {list(SURROGATES)}, a Surrogate or a callable, got "
                f"{choice!r}."
            )
    kind: object = choice
    if isinstance(kind, type) and issubclass(kind, Surrogate):
        raise TypeError(f"surrogate must be made, {kind.__name__}(...), not the class itself.")
    if not callable(choice):
        raise TypeError(
            f"surrogate must be a name, a Surrogate or a callable, got {type(choice).__name__}."
        )
    return VectorSurrogate(choice)
