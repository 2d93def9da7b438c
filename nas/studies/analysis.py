"""What the surrogate has learnt from a study: how far it can be trusted, and what motifs do.

A Gaussian process of graphs (`nas.surrogates.GraphProcess`) is fitted to the complete trials, with
values warped as the sampler warps them (`nas.encoding.outcomes.half_rank`): standardised, larger is
better, the worse half by rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gpytorch
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial
from torch import Tensor

from nas.architectures import Architecture
from nas.encoding.candidates import Candidate, Encoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.encoding.outcomes import half_rank
from nas.fidelity import trained_in_full
from nas.kernels.computation import Operation, bodies_of, computation
from nas.spaces import FlatSpace, MLPSpace, Space
from nas.surrogates import GraphProcess
from nas.trials import DERIVATION, architecture_of, signs_of
from priors.random_state import seeded

__all__ = ["Calibration", "MotifEffect", "StudyModel", "fit_study", "motif_effects"]

FEWEST = 8  # trials that a surrogate is fitted to
MOST = 150  # the newest; the fit takes cubic time
LEVEL = 0.9  # of intervals
MAX_ITER = 60


@dataclass(frozen=True)
class Calibration:
    """Values of trials and what the surrogate expected from all the others, standardised.

    Attributes:
        values: Warped values, `[n]`.
        mean: Expected values, `[n]`.
        std: Deviations of the values about them, `[n]`.
    """

    values: Tensor
    mean: Tensor
    std: Tensor

    @property
    def coverage(self) -> float:
        """Share of values inside their 90% intervals."""
        width = math.sqrt(2) * torch.erfinv(torch.tensor(LEVEL, dtype=torch.float64)).item()
        return float(((self.values - self.mean).abs() <= width * self.std).double().mean())

    @property
    def rank_correlation(self) -> float:
        """Spearman's coefficient of expectations and values."""
        from scipy.stats import spearmanr

        return float(spearmanr(self.mean, self.values).statistic)


@dataclass(frozen=True)
class MotifEffect:
    """What one more of a motif goes with, at a given number of operations.

    Attributes:
        motif: An operation, or an operation and what it reads: `linear > relu`.
        effect: Change of the warped value, in its standard deviations; positive is better.
        std: Posterior standard deviation of the effect.
        count: Architectures that have the motif.
    """

    motif: str
    effect: float
    std: float
    count: int


@dataclass(frozen=True)
class StudyModel:
    """A Gaussian process of the complete trials.

    Attributes:
        candidates: What was tried.
        encoder: Writes candidates as rows for the model.
        model: The process, fitted to the warped values.
        hyperparameters: Names of those that it sees beside the architecture.
    """

    candidates: list[Candidate]
    encoder: Encoder
    model: Any
    hyperparameters: tuple[str, ...]

    def calibration(self) -> Calibration:
        """Each trial against what all the others said of it."""
        with torch.no_grad():
            left_out = self.model.leave_one_out()
            mean, variance = left_out.mean[:, 0], left_out.variance[:, 0]
        return Calibration(self.model.train_Y[:, 0].double(), mean, variance.sqrt())

    def effects(self) -> list[MotifEffect]:
        """Of all motifs, the most certain first.

        The function is taken at the architectures that were tried, all with the hyperparameters of
        the best trial. The effect is its slope on the number of the motif, in a least-squares line
        that also has the number of all operations. It is linear in the function, so its posterior
        is Gaussian with moments that are exact.
        """
        architectures = list(dict.fromkeys(c.architecture for c in self.candidates))
        counts = [_motifs(architecture) for architecture in architectures]
        best = self.candidates[int(self.model.train_Y[:, 0].argmax())]
        rows = self.encoder([Candidate(graph, best.hyperparameters) for graph in architectures])
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            posterior = self.model.posterior(rows)
            mean, covariance = posterior.mean[:, 0], posterior.mvn.covariance_matrix
        total = mean.new_tensor([[sum(n for m, n in c.items() if " > " not in m)] for c in counts])
        common = torch.ones_like(total)
        if len(set(total[:, 0].tolist())) > 1:
            common = torch.cat([common, total], 1)
        basis = torch.linalg.qr(common)[0]
        found: dict[tuple[float, ...], MotifEffect] = {}
        for motif in sorted({motif for each in counts for motif in each}, key=_simplest_first):
            number = mean.new_tensor([each.get(motif, 0) for each in counts])
            # What of the number the other columns do not tell (Frisch-Waugh).
            rest = number - basis @ (basis.T @ number)
            size = float(rest.square().sum())
            if size < 1e-6 * len(counts):
                continue
            slope = rest / size
            # Of either sign: of two operations that take each other's place one tells all.
            sign = slope[slope.abs().argmax()].sign()
            key = tuple(round(value, 9) for value in (sign * slope).tolist())
            variance = float(slope @ covariance @ slope)
            effect = MotifEffect(
                motif, float(slope @ mean), math.sqrt(max(variance, 0.0)), int((number > 0).sum())
            )
            found.setdefault(key, effect)  # a longer motif that says the same is left out
        return sorted(found.values(), key=lambda e: -abs(e.effect) / max(e.std, 1e-12))


def motif_effects(
    study: optuna.Study, *, objective: int = 0, space: Space | None = None
) -> list[MotifEffect]:
    """Which operations, alone and behind others, go with better values, and how certain that is.

    Effects are of the posterior of a Gaussian process of the trials: the slope of the objective on
    the number of a motif, at a given number of operations and the hyperparameters of the best
    trial. Motifs are Weisfeiler-Lehman features of
    level 0 and 1 without arguments, as NAS-BOWL reads them (Ru et al. 2021, 2006.07556, section 4,
    by gradients without uncertainty). They describe what was tried: a motif may stand for what it
    often comes with.

    Args:
        study: With at least eight complete trials.
        objective: Which one, where there are several.
        space: The searched space; None takes that of the study's sampler. Without it categorical
            hyperparameters are not seen.

    Returns:
        The effects, the most certain first, in standard deviations of the value.

    Raises:
        ValueError: fewer complete trials with an architecture, or all of one value.
    """
    model = fit_study(study, objective=objective, space=space)
    if model is None:
        raise ValueError(
            f"motif_effects needs at least {FEWEST} complete trials with architectures, of "
            "different values."
        )
    return model.effects()


def fit_study(
    study: optuna.Study, *, objective: int = 0, space: Space | None = None
) -> StudyModel | None:
    """The process of the newest 150 complete trials; None where there are too few to tell."""
    trials = [trial for trial in trained_in_full(study) if architecture_of(trial) is not None][
        -MOST:
    ]
    sign = signs_of(study.directions)[objective]
    values = torch.tensor([sign * t.values[objective] for t in trials], dtype=torch.float64)
    if len(trials) < FEWEST or len(set(values.tolist())) < 2:
        return None
    space = space or getattr(study.sampler, "space", None)
    cube = HyperparameterCube(_hyperparameters(trials, space))
    candidates = []
    for trial in trials:
        architecture = architecture_of(trial)
        assert architecture is not None
        candidates.append(
            Candidate.of(architecture, {name: trial.params[name] for name in cube.distributions})
        )
    surrogate = GraphProcess(max_iter=MAX_ITER)
    # The table of architectures does not look at the space.
    encoder = surrogate.encoder(space or MLPSpace(1, 1), cube, candidates)
    with seeded(0, torch.device("cpu")):
        model = surrogate.fit(encoder(candidates), half_rank(values)[:, None], encoder)
    return StudyModel(candidates, encoder, model, tuple(cube.distributions))


def _hyperparameters(
    trials: Sequence[FrozenTrial], space: Space | None
) -> dict[str, BaseDistribution]:
    """What all trials suggest alike, without what the architecture tells already."""
    flat = set(space.parameters()) if isinstance(space, FlatSpace) else set()
    return {
        name: distribution
        for name, distribution in trials[-1].distributions.items()
        if name != DERIVATION
        and name.partition(" (")[0] not in flat
        and not distribution.single()
        # Parameters of a flat space are categorical.
        and (space is not None or not isinstance(distribution, CategoricalDistribution))
        and all(trial.distributions.get(name) == distribution for trial in trials)
    }


def _motifs(architecture: Architecture) -> Counter[str]:
    """Operations and pairs of them in the network and its cells, a cell counted once."""
    graphs = [computation(graph.nodes) for graph in (architecture, *bodies_of(architecture))]
    return Counter(motif for graph in graphs for motif in _named(graph))


def _named(graph: Sequence[Operation]) -> list[str]:
    found = []
    for step in graph[1:]:
        found.append(step.name)
        sources = sorted(graph[source].name for source in step.inputs)
        found.append(f"{' + '.join(sources)} > {step.name}")
    return found


def _simplest_first(motif: str) -> tuple[int, str]:
    return len(motif.split()), motif
