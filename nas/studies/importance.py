"""Which hyperparameters and which traits of the architecture the values of a study depend on.

Optuna's evaluators assess parameters. The networks of a grammar have none, so their descriptors
(sizes and counts of operations) are assessed as if they were parameters of the trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from nas.fidelity import trained_in_full
from nas.studies.evaluation import quiet
from nas.trials import DERIVATION, architecture_of, signs_of

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator

__all__ = ["importances"]

QUANTILE = 0.1  # the best trials, whose parameters are compared with those of all
FEWEST = 5  # of them, below which their density means little
WIDE = 100.0  # a descriptor over a larger range of positive values is taken by its logarithm


def importances(
    study: optuna.Study,
    *,
    objective: int = 0,
    evaluator: BaseImportanceEvaluator | None = None,
    descriptors: Sequence[str] | None = None,
) -> dict[str, float]:
    """Shares of hyperparameters and of descriptors of the architecture in the values of a study.

    What does not vary among the complete trials is left out. Descriptors depend on each other (a
    deeper network has more parameters), so a trait that matters may share its importance with
    others.

    Args:
        study: With at least two complete trials of different values.
        objective: Which one, where there are several.
        evaluator: Of `optuna.importance`. None takes `PedAnovaImportanceEvaluator`, which compares
            the best tenth of the trials, or the best five where these are more, with all of them
            (Watanabe et al. 2023, 2304.10255). `FanovaImportanceEvaluator` shares out the variance
            of the values (Hutter et al. 2014), needs scikit-learn and passes over conditional
            hyperparameters.
        descriptors: Numeric user attributes to assess beside the parameters. None takes
            `num_parameters`, `depth`, `flops` and the number of each operation (`count_linear`)
            where architectures come from a grammar; in a flat space its parameters say it all.

    Returns:
        Name to importance, the largest first; each is at least 0 and they sum to 1. A descriptor
        with the name of a parameter is called `name (architecture)`.

    Raises:
        ValueError: too few trials, all values alike, nothing that varies, or a descriptor that the
            trials lack.
    """
    trials = [trial for trial in trained_in_full(study) if not math.isnan(trial.values[objective])]
    if len({trial.values[objective] for trial in trials}) < 2:
        raise ValueError(
            "importances needs at least two complete trials of different values, got "
            f"{len(trials)} trials."
        )
    sign = -signs_of(study.directions)[objective]  # the study made here minimises
    described = [_descriptors(trial, descriptors) for trial in trials]
    with quiet(True):
        shadow = optuna.create_study()
    distributions = _distributions(trials, described)
    parameters = {name for trial in trials for name in trial.params} - {DERIVATION}
    assessed: set[str] = set()
    for trial, traits in zip(trials, described, strict=True):
        own: dict[str, BaseDistribution] = {
            name: d
            for name, d in trial.distributions.items()
            if name != DERIVATION and not d.single()
        }
        values: dict[str, Any] = {name: trial.params[name] for name in own}
        for name, distribution in distributions.items():
            column = f"{name} (architecture)" if name in parameters else name
            own[column], values[column] = distribution, traits[name]
        assessed.update(own)
        shadow.add_trial(
            create_trial(value=sign * trial.values[objective], params=values, distributions=own)
        )
    if not assessed:
        raise ValueError(
            "importances found nothing that varies among the complete trials: suggest "
            "hyperparameters, or name numeric user attributes in descriptors."
        )
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if evaluator is None:
        share = min(max(QUANTILE, FEWEST / len(trials)), 0.5)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    found = get_param_importances(shadow, evaluator=evaluator)
    order = sorted(found, key=lambda name: (-found[name], name))
    return {name: float(found[name]) for name in order}


def _descriptors(trial: FrozenTrial, names: Sequence[str] | None) -> dict[str, float]:
    """Values by name, of the names that are given or of the descriptors of a grammar's network."""
    if names is None:
        architecture = architecture_of(trial)
        if architecture is None or architecture.derivation is None:
            return {}
        counts = architecture.operation_counts()
        return {
            **architecture.descriptors(),
            **{f"count_{name}": number for name, number in counts.items()},
        }
    for name in names:
        value = trial.user_attrs.get(name)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(
                f"Trial {trial.number} has no finite number as user attribute {name!r} (it has "
                f"{value!r}); leave it out of descriptors, or set it in every trial."
            )
    return {name: trial.user_attrs[name] for name in names}


def _distributions(
    trials: Sequence[FrozenTrial], described: Sequence[dict[str, float]]
) -> dict[str, BaseDistribution]:
    """Over the values that each descriptor has; those of one value are left out."""
    names = sorted({name for traits in described for name in traits})
    found: dict[str, BaseDistribution] = {}
    for name in names:
        for traits in described:
            if name.startswith("count_"):
                traits.setdefault(name, 0)
        values = [traits[name] for traits in described if name in traits]
        low, high = min(values), max(values)
        if low == high or len(values) < len(trials):
            continue
        log = low > 0 and high > WIDE * low
        if all(float(value).is_integer() for value in values) and not log:
            found[name] = IntDistribution(int(low), int(high))
        else:
            found[name] = FloatDistribution(float(low), float(high), log=log)
    return found
