"""Finished trials of earlier studies, from which a new one starts warm.

They are read once, so that a sampler which has them can be sent to workers and a study that is
resumed proposes the same, whatever became of the earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from nas.encoding.candidates import Candidate
from nas.encoding.hyperparameters import HyperparameterCube
from nas.history import History
from nas.spaces import Space
from nas.trials import FINISHED, SCREENED, architecture_of

__all__ = ["EarlierStudies"]

MAX_ROWS = 200  # of one study: the better half of them, and the newest


class EarlierStudies:
    """The trials of studies that came to an end with a value, at the full fidelity.

    Args:
        studies: Earlier studies, of this space or of any other.

    Raises:
        TypeError: something that is no study.
        ValueError: a study without a finished trial that has an architecture.
    """

    def __init__(self, studies: Sequence[optuna.Study]) -> None:
        self._studies: list[tuple[list[FrozenTrial], list[StudyDirection]]] = []
        for study in studies:
            if not isinstance(study, optuna.Study):
                raise TypeError(
                    f"warm_start takes studies, such as optuna.load_study(...), got {study!r}."
                )
            finished = study.get_trials(states=FINISHED)
            kept = [
                trial
                for trial in finished
                if architecture_of(trial) is not None and SCREENED not in trial.constraints
            ]
            if not kept:
                raise ValueError(
                    f"The study {study.study_name!r} cannot warm another: none of its finished "
                    "trials has an architecture. Leave it out of warm_start."
                )
            self._studies.append((kept, list(study.directions)))

    def __len__(self) -> int:
        return len(self._studies)

    def check(self, num_objectives: int) -> None:
        """Raises a `ValueError` unless all have as many objectives."""
        for _, directions in self._studies:
            if len(directions) != num_objectives:
                raise ValueError(
                    f"A study of {num_objectives} objectives cannot start from one of "
                    f"{len(directions)}; give warm_start studies of the same objectives."
                )

    def rows(
        self, space: Space, cube: HyperparameterCube
    ) -> list[tuple[list[Candidate], list[list[float]]]]:
        """Candidates of each study and their values, one for each objective, larger is better.

        Args:
            space: That is searched.
            cube: Trials that lack one of its hyperparameters, or have a value outside, are left
                out; others' further hyperparameters are not looked at.
        """
        found = []
        for number, (trials, directions) in enumerate(self._studies, start=1):
            history = History(trials, space, cube, directions, is_member=lambda _: True)
            kept = _chosen([sum(values) for values in history.values])
            rows = [replace(history.observed[row], study=number) for row in kept]
            found.append((rows, [history.values[row] for row in kept]))
        return found


def _chosen(values: Sequence[float]) -> list[int]:
    """Places of the rows that are kept, in their order."""
    best = sorted(range(len(values)), key=lambda row: -values[row])[: MAX_ROWS // 2]
    kept = set(best)
    for row in reversed(range(len(values))):
        if len(kept) < MAX_ROWS:
            kept.add(row)
    return sorted(kept)
