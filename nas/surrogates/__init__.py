"""Models of the objective over architectures and hyperparameters, by name or of one's own."""

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


def surrogate_of(choice: str | Surrogate | VectorModel) -> Surrogate:
    """The surrogate of a name, a callable or itself.

    Raises:
        ValueError: an unknown name.
        TypeError: something else.
    """
    match choice:
        case Surrogate():
            return choice
        case "gp":
            return GraphProcess()
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
    if not callable(choice):
        raise TypeError(
            f"surrogate must be a name, a Surrogate or a callable, got {type(choice).__name__}."
        )
    return VectorSurrogate(choice)
