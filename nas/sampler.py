"""Bayesian optimisation over architectures and hyperparameters as an Optuna sampler.

Each proposal is made from the stored trials alone: a surrogate of each objective is conditioned on
what finished, running trials are pending points, and the expected improvement, of several
objectives that of the hypervolume, is maximised, times the learnt probabilities that the
constraints hold and that the trial does not fail. The randomness comes from the seed and the number
of trials before this one that were not lost, so a study that was interrupted and resumed by one
worker goes on as it would have.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gpytorch
import optuna
import torch
from botorch.models import ModelList
from botorch.models.model import Model
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from torch import Generator, Tensor

from nas.checks import check_whole
from nas.earlier import EarlierStudies
from nas.encoding.candidates import Candidate, Encoder
from nas.encoding.conditional import Conditional, Declared, bare, check_conditions
from nas.encoding.hyperparameters import HyperparameterCube
from nas.encoding.outcomes import half_rank, winsorised
from nas.fidelity import Fidelity
from nas.history import History
from nas.proposals.acquisitions import ACQUISITIONS, HYPERVOLUME, SCREENS, Acquisition
from nas.proposals.fronts import fronts
from nas.proposals.levels import explained, most_for_its_cost
from nas.proposals.maximisation import maximise
from nas.proposals.memory import Learnt, Memory, num_learnt_from
from nas.proposals.volumes import Screened
from nas.proposals.weights import Feasibility, Speed, Success, Weight, Weighted
from nas.proxies import ProxyScores
from nas.spaces import FlatSpace, Space
from nas.surrogates import Surrogate, VectorModel, surrogate_of
from nas.trials import (
    DERIVATION,
    FINISHED,
    PROPOSED,
    RELATIVE_ARCHITECTURE,
    RELATIVE_FIDELITY,
    architecture_of,
    columns_of,
    superseded,
    warn_of_ignored,
)
from priors.random_state import seeded

__all__ = ["BayesianSampler"]

# Warning filters, GPyTorch's settings and torch's random state belong to the process, and Optuna
# may run trials in threads.
_ONE_AT_A_TIME = threading.Lock()

Earlier = tuple[list[Candidate], Tensor]
"""Candidates of earlier studies and their targets `[n, objectives]`, standardised in each study."""

NUM_ELITES = 5
NUM_DRAWS = 10  # for a first architecture that was not tried yet
NUM_RECENT = 8  # finished trials that tell which hyperparameters the objective suggests


class BayesianSampler(optuna.samplers.BaseSampler):
    """Proposes architectures and hyperparameters by expected improvement.

    Use it in a study whose objective calls `nas.suggest(trial, space)` for the architecture and
    Optuna's `trial.suggest_*` for the hyperparameters.

    Args:
        space: The search space.
        hyperparameters: Optuna distributions by name, as the objective suggests them, `Conditional`
            where it does so for some candidates only; others that it suggests are drawn uniformly,
            with a warning. None takes those that the latest finished trials have in common, so the
            first trials draw them uniformly, and all trials those that only some have.
        surrogate: `"gp"`, a Gaussian process of graphs: motifs and descriptors, times a kernel of
            hyperparameters; `"network"`, that of an infinitely wide network on encoded candidates;
            `"vectors"`, one of Matern-5/2 on them; `"pfn"`, the network `pfn.load("bo")`;
            `"ensemble"`, small networks on paths of operations. Or a `nas.surrogates.Surrogate`, or
            a callable from encoded data to a fitted BoTorch model (`nas.surrogates.VectorModel`).
        acquisition: `"logei"` (improvement over the best posterior mean at an observed point),
            `"lognei"` (over the best value at observed points, whose uncertainty is integrated
            out; with several objectives both are the hypervolume that the uncertain Pareto front
            gains), `"ucb"` (mean and deviation), `"thompson"` (a draw of the function), `"mes"`
            (what is learnt about the maximum), or a callable
            (`nas.proposals.acquisitions.Acquisition`).
        proxies: Scores of architectures without training (`nas.proxies.ProxyScores`), which
            `"gp"` takes for descriptors with learnt weights. Each new architecture that is looked
            at is scored once, some hundreds for a proposal in a large space.
        num_initial: Finished trials of this space with these hyperparameters before the
            surrogate is used; until then hyperparameters and the parameters of a flat space come
            from a scrambled Sobol sequence. A study whose space or hyperparameters were changed
            continues with the trials that fit, or starts anew.
        cost_aware: Whether to divide by the seconds that a trial is expected to take, learnt from
            the complete ones; the proposals then depend on how fast the machine was.
        warm_start: Earlier studies, read now. What they have in common with this one is learnt, and
            a study that tells nothing loses its weight; their spaces may be others, their
            objectives must be as many. Half of the initial trials are then the best candidates of
            theirs that are in this space. Only `"gp"` reads them.
        fidelity: Levels at which the objective trains, which it asks for by `Fidelity.suggest`. The
            candidate of the largest expected improvement at the full level is trained where a unit
            of cost tells most about its full value (`nas.proposals.levels`), at a lower level only
            once and within `Fidelity.share`. Initial trials are at the lowest level. Only `"gp"`
            reads levels.
        seed: Determines the proposal, together with the position of the trial. If None, the name of
            the study takes its place.
        device: Device on which the surrogate is fitted and candidates are scored, in float64. None
            means the CPU, even where there is a GPU: some dozens of trials are too small a problem
            for one.

    Raises:
        ValueError: an unknown name, a hyperparameter named like a parameter of the space, a
            condition that tells of what nothing has or of itself, or a device that is not there.
        TypeError: a hyperparameter without an Optuna distribution, or an argument of another kind.
    """

    def __init__(
        self,
        space: Space,
        *,
        hyperparameters: Mapping[str, Declared] | None = None,
        surrogate: str | Surrogate | VectorModel = "gp",
        acquisition: str | Acquisition = "logei",
        proxies: ProxyScores | None = None,
        num_initial: int = 8,
        cost_aware: bool = False,
        warm_start: optuna.Study | Sequence[optuna.Study] = (),
        fidelity: Fidelity | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(acquisition, str) and acquisition not in ACQUISITIONS:
            raise ValueError(
                f"acquisition must be one of {sorted(ACQUISITIONS)} or a callable, got "
                f"{acquisition!r}."
            )
        if not (isinstance(acquisition, str) or callable(acquisition)):
            raise TypeError(f"acquisition must be a name or a callable, got {acquisition!r}.")
        for name, value, kind in (
            ("proxies", proxies, ProxyScores),
            ("fidelity", fidelity, Fidelity),
        ):
            if not (value is None or isinstance(value, kind)):
                raise TypeError(f"{name} must be a {kind.__name__} or None, got {value!r}.")
        check_whole(num_initial=num_initial)
        if hyperparameters is not None:
            HyperparameterCube(hyperparameters, space)  # checks the kinds
            check_conditions(hyperparameters, space)
            flat = set(space.parameters()) if isinstance(space, FlatSpace) else set()
            if flat & set(hyperparameters):
                raise ValueError(
                    f"The hyperparameters {sorted(flat & set(hyperparameters))} have the names of "
                    "parameters of the space; rename them."
                )
        self.space = space
        self.hyperparameters = None if hyperparameters is None else dict(hyperparameters)
        self.surrogate = surrogate_of(surrogate, proxies)
        self.acquisition: Acquisition = (
            ACQUISITIONS[acquisition] if isinstance(acquisition, str) else acquisition
        )
        self.earlier = EarlierStudies(
            [warm_start] if isinstance(warm_start, optuna.Study) else warm_start
        )
        if len(self.earlier) and not self.surrogate.reads_studies:
            raise ValueError(
                f"The surrogate {self.surrogate!r} does not read earlier studies; use "
                "surrogate='gp' or leave warm_start out."
            )
        if fidelity is not None and not self.surrogate.reads_fidelities:
            raise ValueError(
                f"The surrogate {self.surrogate!r} does not read fidelities; use surrogate='gp' or "
                "leave fidelity out."
            )
        self.fidelity = fidelity
        self.num_initial = num_initial
        self.cost_aware = cost_aware
        self._memory = Memory(space)
        self.seed = seed
        self.device = _usable("cpu" if device is None else device)

    def __repr__(self) -> str:
        known = "found in trials" if self.hyperparameters is None else sorted(self.hyperparameters)
        names = {function: name for name, function in ACQUISITIONS.items()}
        acquisition = names.get(self.acquisition) or getattr(
            self.acquisition, "__name__", repr(self.acquisition)
        )
        return (
            f"{type(self).__name__}({self.space!r}, hyperparameters={known}, "
            f"surrogate={self.surrogate!r}, acquisition={acquisition}, "
            f"num_initial={self.num_initial}, cost_aware={self.cost_aware}, "
            f"warm_start={len(self.earlier)} studies, fidelity={self.fidelity}, "
            f"seed={self.seed}, device={self.device})"
        )

    def check(self, num_objectives: int) -> None:
        """Raises a `ValueError` unless it can propose for a study of so many objectives."""
        self._acquisition_of(num_objectives)
        self.earlier.check(num_objectives)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The hyperparameters, declared or found in finished trials, and a flat space's own.

        Raises:
            ValueError: the acquisition is for one objective and the study has several, or an
                earlier study has another number of them.
        """
        self.check(len(study.directions))
        trials = study.get_trials(deepcopy=False)
        flat = self._flat_distributions(trials)
        if self.hyperparameters is not None:
            return {**bare(self.hyperparameters), **flat}
        found = _common_parameters(trials)
        own = {DERIVATION, *flat}
        if isinstance(self.space, FlatSpace):
            own |= set(self.space.parameters())
        return {name: found[name] for name in sorted(found) if name not in own} | flat

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal: values by name, and for a space that is not flat the architecture.

        What the trial was queued with is kept.
        """
        columns: dict[str, str] = {}
        if isinstance(self.space, FlatSpace):
            columns = columns_of(self.space, study.get_trials(deepcopy=False))
        flat = set(columns.values())
        cube = self._cube({n: d for n, d in search_space.items() if n not in flat})
        queued = trial.system_attrs.get("fixed_params", {})
        architecture = architecture_of(trial)
        if architecture is not None and architecture not in self.space:
            architecture = None  # `suggest` refuses it
        level = None
        if architecture is not None and cube.contains(queued, architecture):
            proposed: dict[str, Any] = {}
        else:
            candidate = self.propose(study, trial, cube)
            if self.fidelity is not None and architecture is None and not queued:
                level = self.fidelity.levels[-1 - candidate.below]
            proposed = candidate.values
            if architecture is not None:  # which may have other hyperparameters than the proposed
                generator = Generator().manual_seed(self._seed(study, trial.number, "queued"))
                proposed = cube.chosen(architecture, {**proposed, **queued}, generator)
            architecture = architecture or candidate.architecture
        if isinstance(self.space, FlatSpace):
            choice = self.space.to_parameters(architecture)
            proposed |= {columns[n]: value for n, value in choice.items()}
        values = {n: value for n, value in {**proposed, **queued}.items() if n in search_space}
        if not isinstance(self.space, FlatSpace):
            values[RELATIVE_ARCHITECTURE] = architecture.to_json()
        if level is not None:
            values[RELATIVE_FIDELITY] = level
        return values

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A uniform draw for a parameter that the proposal does not cover.

        Warns where hyperparameters were declared and this one was declared otherwise or not.
        """
        self._warn_of_undeclared(study, param_name, param_distribution)
        seed = self._seed(study, self._position(study, trial), param_name)
        cube = HyperparameterCube({param_name: param_distribution})
        return cube.random(Generator().manual_seed(seed))[param_name]

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Warns where a completed trial passed over its architecture, level or queued values."""
        if state == TrialState.COMPLETE:
            warn_of_ignored(trial)
            if self.fidelity is not None and self.fidelity.name not in trial.user_attrs:
                warnings.warn(
                    "The objective returned without asking for the level by Fidelity.suggest("
                    f"trial), so it counts as trained with {self.fidelity.name} = "
                    f"{self.fidelity.full}.",
                    stacklevel=2,
                )

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, cube: HyperparameterCube
    ) -> Candidate:
        """The candidate for a trial, from the other trials of the study.

        Args:
            study: Read, never written.
            trial: The trial that asks.
            cube: The hyperparameters to propose with the architecture. Those that the objective
                was given and has never used are drawn at random, the model does not see them.
        """
        trials = study.get_trials(deepcopy=False)
        lost = superseded(trials)
        others = [t for t in trials if t.number != trial.number and t.number not in lost]
        position = self._position(study, trial)
        seed = self._seed(study, position)
        generator = Generator().manual_seed(seed)
        modelled, unused = _split(cube, others)
        history = History(
            others,
            self.space,
            modelled,
            study.directions,
            is_member=self._memory.is_member,
            fidelity=self.fidelity,
        )
        if history.num_finished < self.num_initial:
            first = self._initial(cube, position, self._seed(study, -1), history, generator)
            return replace(first, below=max(self._affordable(history)))
        found = self._maximise(history, modelled, seed, self._seed(study, -1), generator)
        values = {**found.values, **unused.random(generator)}
        values = cube.chosen(found.architecture, values, generator)
        return replace(Candidate.of(found.architecture, values), below=found.below)

    def _cube(self, distributions: Mapping[str, BaseDistribution]) -> HyperparameterCube:
        """With the conditions that were declared."""
        declared = self.hyperparameters or {}
        return HyperparameterCube(
            {name: declared.get(name, each) for name, each in distributions.items()}, self.space
        )

    def _affordable(self, history: History) -> list[int]:
        """The levels of fidelity that a trial may have, counted from the full one, which may
        always be."""
        if self.fidelity is None:
            return [0]
        spent = [candidate.below for candidate in (*history.observed, *history.pending)]
        levels = range(len(self.fidelity.levels))
        return [below for below in levels if self.fidelity.affords(below, spent)]

    def _maximise(
        self,
        history: History,
        cube: HyperparameterCube,
        seed: int,
        study_seed: int,
        generator: Generator,
    ) -> Candidate:
        """The candidate of the largest acquisition value."""
        with (
            _ONE_AT_A_TIME,
            warnings.catch_warnings(),
            seeded(seed, self.device),
            gpytorch.settings.fast_computations(False, False, False),
        ):
            # Numerical advice from the fit: the proposal stays valid, only less sharp.
            warnings.simplefilter("ignore")
            earlier = self._earlier_rows(cube, history.num_objectives)
            learnt = self._learnt(history, cube, earlier, study_seed)
            encoder = learnt.encoder
            X = encoder(history.observed).to(self.device)
            # Of a candidate that runs at a lower level the full value will be known better.
            pending = None
            if history.pending:
                pending = encoder([replace(c, below=0) for c in history.pending]).to(self.device)
            notice = self.surrogate.notice(X)
            valued = ~torch.tensor(history.failed, device=self.device)
            observed = [
                c for c, failed in zip(history.observed, history.failed, strict=True) if not failed
            ]
            levels = torch.tensor([c.below for c in observed], device=self.device)
            Y = _targets(X.new_tensor(history.values)[valued], levels)
            violations = X.new_tensor(history.violations)[valued]
            feasible = violations == 0
            acquisition = screen = None
            models: list[Model] = []
            if bool(feasible.any()):
                models = self._models(learnt, X[valued], Y, earlier)
                model = models[0] if len(models) == 1 else ModelList(*models)
                make = self._acquisition_of(len(models))
                known = self._known(observed, feasible, encoder)
                with self.device:  # BoTorch makes some tensors on the default device
                    acquisition = make(model, known, pending, seed)
                    screen = SCREENS[make](model, known, pending, seed) if make in SCREENS else None
            weights = self._weights(history, X, encoder)
            if weights or acquisition is None:
                acquisition = Weighted(acquisition, weights)
                screen = None if screen is None else Weighted(screen, weights)
            if screen is not None:
                acquisition = Screened(acquisition, screen)
            pool = self._memory.pool(study_seed)
            found = maximise(
                lambda points: acquisition(points.to(self.device)),
                encoder,
                pool=pool.first(len(X)),
                is_whole=pool.is_whole,
                elites=_elites(observed, Y, violations, levels),
                seen=history.seen,
                generator=generator,
            )
            if self.fidelity is not None and models:
                found = replace(found, below=self._level(found, history, models, encoder))
        if notice is not None:
            warnings.warn(notice, stacklevel=2)
        return found

    def _known(self, observed: list[Candidate], usable: Tensor, encoder: Encoder) -> Tensor:
        """Rows of the usable candidates at the full level: those that were trained there, or all
        where none was."""
        rows = [c for c, use in zip(observed, usable.tolist(), strict=True) if use]
        full = [c for c in rows if c.below == 0]
        return encoder(full or [replace(c, below=0) for c in rows]).to(self.device)

    def _level(
        self, found: Candidate, history: History, models: list[Model], encoder: Encoder
    ) -> int:
        """How many levels below the full one the candidate is to be trained."""
        assert self.fidelity is not None
        rows = [replace(found, below=below) for below in range(len(self.fidelity.levels))]
        allowed = [b for b in self._affordable(history) if b == 0 or rows[b] not in history.seen]
        shares = explained(models, encoder(rows).to(self.device))
        return most_for_its_cost(shares, self.fidelity.costs_below, allowed)

    def _learnt(
        self, history: History, cube: HyperparameterCube, earlier: Earlier, seed: int
    ) -> Learnt:
        """An encoder of the finished trials and, where it is kept, a fit to the first of them."""
        rows = [row for row, failed in enumerate(history.failed) if not failed]
        known, targets = earlier
        if not self.surrogate.refits:
            return Learnt(self._encoder(cube, [*known, *history.observed]), ())
        rows = rows[: num_learnt_from(len(rows), self.num_initial)]
        candidates = [history.observed[row] for row in rows]
        values = [history.values[row] for row in rows]

        def learn() -> Learnt:
            encoder = self._encoder(cube, [*known, *candidates])
            X = encoder([*known, *candidates]).to(self.device)
            levels = torch.tensor([c.below for c in candidates], device=self.device)
            with seeded(seed, self.device):  # whichever proposal it is that learns
                columns = torch.cat([targets.to(X), _targets(X.new_tensor(values), levels)]).T
                models = [self.surrogate.fit(X, y[:, None], encoder) for y in columns]
            return Learnt(encoder, tuple(models))

        return self._memory.learnt((candidates, values, cube.distributions), learn)

    def _encoder(self, cube: HyperparameterCube, rows: list[Candidate]) -> Encoder:
        encoder = self.surrogate.encoder(self.space, cube, rows)
        if self.fidelity is not None:
            encoder.shares = self.fidelity.shares
        return encoder

    def _earlier_rows(self, cube: HyperparameterCube, num_objectives: int) -> Earlier:
        known: list[Candidate] = []
        targets = [torch.zeros(0, num_objectives, dtype=torch.float64, device="cpu")]
        for candidates, values in self.earlier.rows(self.space, cube):
            known += candidates
            if candidates:
                rows = torch.tensor(values, dtype=torch.float64, device="cpu")
                targets.append(_targets(rows, torch.zeros(len(rows), device="cpu")))
            else:
                warnings.warn(
                    "No trial of an earlier study has values for the hyperparameters "
                    f"{sorted(cube.distributions)}, so it does not warm this one.",
                    stacklevel=2,
                )
        return known, torch.cat(targets)

    def _models(self, learnt: Learnt, X: Tensor, Y: Tensor, earlier: Earlier) -> list[Model]:
        """A model of each objective, of all rows with values."""
        encoder, (known, targets) = learnt.encoder, earlier
        if known:
            X, Y = torch.cat([encoder(known).to(X), X]), torch.cat([targets.to(Y), Y])
        columns = [y[:, None] for y in Y.T]
        if not self.surrogate.refits:
            return [self.surrogate.fit(X, y, encoder) for y in columns]
        return [
            self.surrogate.refit(X, y, encoder, earlier)
            for y, earlier in zip(columns, learnt.models, strict=True)
        ]

    def _acquisition_of(self, num_objectives: int) -> Acquisition:
        """What the name stands for with so many objectives."""
        names = {acquisition: name for name, acquisition in ACQUISITIONS.items()}
        name = names.get(self.acquisition)
        if num_objectives == 1 or name is None:
            return self.acquisition
        if name not in HYPERVOLUME:
            raise ValueError(
                f"acquisition={name!r} is for one objective, and the study has {num_objectives}; "
                f"choose one of {sorted(HYPERVOLUME)}."
            )
        return HYPERVOLUME[name]

    def _weights(self, history: History, X: Tensor, encoder: Encoder) -> list[Weight]:
        """What else the candidates are judged by, as far as the trials tell."""

        def fit(rows: Tensor, targets: Tensor) -> Model:
            return self.surrogate.fit(rows, targets[:, None], encoder)

        weights: list[Weight] = []
        for values in history.constraints.values():
            column = X.new_tensor(values)
            told = ~column.isnan()
            if bool(told.any()):
                weights.append(Feasibility(fit, X[told], column[told]))
        failed = torch.tensor(history.failed, device=X.device)
        if bool(failed.any()):
            weights.append(Success(fit, X, failed))
        if self.cost_aware:
            seconds = X.new_tensor(history.seconds)
            told = ~seconds.isnan()
            if bool(told.any()):
                weights.append(Speed(fit, X[told], seconds[told]))
        return weights

    def _initial(
        self,
        cube: HyperparameterCube,
        position: int,
        seed: int,
        history: History,
        generator: Generator,
    ) -> Candidate:
        """Quasi-random, so that each choice is tried early: one that was never tried looks like
        the others to the surrogate. With earlier studies every other one is of their best."""
        if len(self.earlier) and position % 2 == 0:
            best = self._best_of_earlier(cube, history)
            if best is not None:
                return best
        if not isinstance(self.space, FlatSpace):
            tried = {candidate.architecture for candidate in history.seen}
            drawn = (self.space.random(generator) for _ in range(NUM_DRAWS))
            fresh = next((graph for graph in drawn if graph not in tried), None)
            graph = self.space.random(generator) if fresh is None else fresh
            values = cube.quasi_random(position, seed)
            return Candidate.of(graph, cube.chosen(graph, values, None))
        flat = self.space.parameters()
        values = HyperparameterCube({**flat, **cube.distributions}).quasi_random(position, seed)
        architecture = self.space.from_parameters({name: values.pop(name) for name in flat})
        return Candidate.of(architecture, cube.chosen(architecture, values, None))

    def _best_of_earlier(self, cube: HyperparameterCube, history: History) -> Candidate | None:
        """The best candidate of earlier studies that is in this space and was not tried here."""
        known, targets = self._earlier_rows(cube, history.num_objectives)
        for row in targets.sum(1).argsort(descending=True, stable=True).tolist():
            candidate = replace(known[row], study=0)
            if candidate not in history.seen and self._memory.is_member(candidate.architecture):
                return candidate
        return None

    def _flat_distributions(self, trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
        """The parameters of a flat space under the names of the study."""
        if not isinstance(self.space, FlatSpace):
            return {}
        columns = columns_of(self.space, trials)
        return {columns[name]: d for name, d in self.space.parameters().items()}

    def _warn_of_undeclared(
        self, study: optuna.Study, name: str, distribution: BaseDistribution
    ) -> None:
        if self.hyperparameters is None or name == DERIVATION:
            return
        if name in self._flat_distributions(study.get_trials(deepcopy=False)):
            return
        if name not in self.hyperparameters:
            warnings.warn(
                f"The objective suggests the hyperparameter {name!r}, which is not among those "
                f"declared ({sorted(self.hyperparameters)}): it is drawn uniformly and the model "
                "does not see it. Declare it in `hyperparameters`, under the same name.",
                stacklevel=2,
            )
        elif (declared := bare(self.hyperparameters)[name]) != distribution:
            warnings.warn(
                f"The hyperparameter {name!r} is declared as {declared} and "
                f"suggested from {distribution}: proposals outside of it are replaced by uniform "
                "draws. Declare it as the objective suggests it.",
                stacklevel=2,
            )
        elif isinstance(self.hyperparameters[name], Conditional):
            warnings.warn(
                f"The objective suggests the hyperparameter {name!r} for a candidate that does not "
                "meet its condition: it is drawn uniformly and the model does not see it. Suggest "
                "it only where the condition holds.",
                stacklevel=2,
            )

    def _position(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Trials before this one, without those whose place another has taken."""
        lost = superseded(study.get_trials(deepcopy=False))
        return trial.number - sum(number < trial.number for number in lost)

    def _seed(self, study: optuna.Study, position: int, name: str = "") -> int:
        base = study.study_name if self.seed is None else self.seed
        text = f"{base}\0{position}\0{name}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def _targets(values: Tensor, levels: Tensor) -> Tensor:
    """What the surrogate sees of values `[n, objectives]`, each level `[n]` for itself."""
    warp = half_rank if values.shape[1] == 1 else winsorised
    targets = torch.zeros_like(values)
    for level in levels.unique():
        rows = levels == level
        targets[rows] = torch.stack([warp(column) for column in values[rows].T], 1)
    return targets


def _elites(
    observed: list[Candidate], Y: Tensor, violations: Tensor, levels: Tensor
) -> list[Candidate]:
    """The best candidates of each level, the full one first, as if trained in full."""
    found: dict[Candidate, None] = {}
    for level in levels.unique():
        rows = (levels == level).nonzero()[:, 0]
        order = _best_first(Y[rows], violations[rows])[:NUM_ELITES]
        found |= {replace(observed[row], below=0): None for row in rows[order].tolist()}
    return list(found)


def _best_first(Y: Tensor, violations: Tensor) -> Tensor:
    """Order of the rows: feasible ones by their front, then by the sum of their objectives."""
    place = torch.stack([violations, fronts(Y).to(Y), -Y.sum(1)])
    order = torch.arange(Y.shape[0], device=Y.device)
    for key in reversed(place):
        order = order[key[order].argsort(stable=True)]
    return order


def _usable(device: torch.device | str) -> torch.device:
    """The device, on which a tensor can be made."""
    try:
        return torch.zeros(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {str(device)!r} cannot be used here: {reason}") from error


def _common_parameters(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """What the latest finished trials all suggested, alike.

    Only the latest, so that an objective that was changed is searched as it is now.
    """
    latest = [trial.distributions for trial in trials if trial.state in FINISHED][-NUM_RECENT:]
    if not latest:
        return {}
    return {
        name: distribution
        for name, distribution in latest[-1].items()
        if all(other.get(name) == distribution for other in latest)
    }


def _split(
    cube: HyperparameterCube, trials: Sequence[FrozenTrial]
) -> tuple[HyperparameterCube, HyperparameterCube]:
    """The hyperparameters in use, and those that finished trials were given in vain."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    unused = {}
    for name, distribution in cube.distributions.items():
        alone = HyperparameterCube({name: distribution})  # whether it exists or not
        given = any(alone.contains(trial.user_attrs.get(PROPOSED, {})) for trial in finished)
        if given and not any(alone.contains(trial.params) for trial in finished):
            unused[name] = distribution
    used = {n: d for n, d in cube.declared.items() if n not in unused}
    return HyperparameterCube(used, cube.space), HyperparameterCube(unused)
