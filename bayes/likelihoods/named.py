"""Likelihoods by the names that users give, and from what a file says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes.likelihoods.base import Likelihood
from bayes.likelihoods.categorical import Categorical
from bayes.likelihoods.gaussian import Gaussian, Heteroscedastic
from bayes.likelihoods.ordinal import Ordinal
from bayes.likelihoods.poisson import Poisson
from bayes.likelihoods.student_t import HeteroscedasticStudentT, StudentT

__all__ = ["from_description", "named"]

_NAMED: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic": Heteroscedastic,
    "student_t": StudentT,
    "heteroscedastic_student_t": HeteroscedasticStudentT,
    "categorical": Categorical,
    "ordinal": Ordinal,
    "poisson": Poisson,
}


def named(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of a name, or the one given.

    Raises:
        ValueError: there is none of that name.
        TypeError: it is neither a name nor a likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            "likelihood must be a name or a bayes.Likelihood, such as StudentT(df=4), got "
            f"{likelihood!r}."
        )
    if likelihood not in _NAMED:
        names = ", ".join(map(repr, _NAMED))
        raise ValueError(f"likelihood must be one of {names}, got {likelihood!r}.")
    return _NAMED[likelihood]()


def from_description(description: Mapping[str, Any]) -> Likelihood | None:
    """What `Likelihood.description` described; None for a class of the user's own."""
    known = {kind.__name__: kind for kind in _NAMED.values()}
    kind = known.get(description["class"])
    if kind is None:
        return None
    fields = {name: value for name, value in description.items() if name != "class"}
    return kind(
        **{k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
    )
