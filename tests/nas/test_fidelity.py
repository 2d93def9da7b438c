"""Levels of fidelity: what they mean in a study, and what they are worth on known functions."""

import functools
import math

import numpy as np
import optuna
import pytest
import torch
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from optuna.trial import TrialState
from torch import Generator

import nas
import nas.trials
from nas import BayesianSampler, Fidelity, architecture_of, importances, suggest
from nas.__main__ import main
from nas.kernels import ArchitectureTable, FidelityKernel, architecture_kernel, dense
from nas.proposals.levels import explained, most_for_its_cost
from nas.spaces import CellSpace, MLPSpace
from nas.spaces.cell import CELL_OPERATIONS
from nas.studies.report import write_report
from nas.surrogates import GraphProcess

SPACE = MLPSpace(4, 2, depth=(1, 3), widths=(8, 16, 32), residual=False)
EPOCHS = Fidelity("epochs", (5, 50), costs=(1, 4))


pytestmark = pytest.mark.usefixtures("quiet_optuna")


def size(trial):
    """Distance of the size from 500; after few epochs on another scale, and far lower."""
    network = suggest(trial, SPACE)
    level = EPOCHS.suggest(trial)
    value = abs(math.log(network.num_parameters / 500))
    return value if level == 50 else 3 * value - 100


def sampler(**options):
    options = {"num_initial": 4, "fidelity": EPOCHS, "hyperparameters": {}, "seed": 0, **options}
    options.setdefault("surrogate", GraphProcess(max_iter=2))  # right, not good
    return BayesianSampler(SPACE, **options)


def run(trials, study=None, objective=size, **options):
    study = study or optuna.create_study(sampler=sampler(**options), study_name="test")
    study.optimize(objective, n_trials=trials)
    return study


def levels(study):
    return [trial.user_attrs["epochs"] for trial in study.trials]


@functools.cache
def twelve_trials():
    """With few candidates."""
    return run(12)


@pytest.mark.usefixtures("few_candidates")
class TestStudy:
    def test_the_best_trial_is_one_that_was_trained_in_full(self):
        """Though each value of few epochs is lower than all others."""
        study = twelve_trials()
        assert set(levels(study)) == {5, 50}
        assert study.best_trial.user_attrs["epochs"] == 50
        assert study.best_value == min(t.value for t in study.trials if t.value > -5)

    @pytest.mark.slow
    def test_fronts_have_trials_that_were_trained_in_full(self):
        def two(trial):
            return size(trial), float(architecture_of(trial).num_parameters)

        study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler())
        study.optimize(two, n_trials=9)
        assert 5 in levels(study)
        assert {t.user_attrs["epochs"] for t in study.best_trials} == {50}

    def test_lower_levels_keep_to_their_share(self):
        spent = {5: 0, 50: 4}  # the next full training counts
        for level in levels(twelve_trials()):
            spent[level] += 1 if level == 5 else 4
            assert spent[5] <= spent[50] or level == 50

    def test_a_candidate_is_screened_once(self):
        study = twelve_trials()
        at_five = [architecture_of(t) for t in study.trials if t.user_attrs["epochs"] == 5]
        assert len(set(at_five)) == len(at_five)

    @pytest.mark.slow
    def test_resuming_gives_the_same_trials(self, tmp_path):
        whole = twelve_trials()
        url = f"sqlite:///{tmp_path / 'study.db'}"
        run(9, optuna.create_study(sampler=sampler(), study_name="other", storage=url))
        resumed = optuna.load_study(study_name="other", storage=url, sampler=sampler())
        run(3, resumed)
        assert levels(resumed) == levels(whole)
        assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]

    def test_a_lost_trial_is_repeated_at_its_level(self):
        study = run(5)
        lost = study.ask()
        suggest(lost, SPACE)
        level = EPOCHS.suggest(lost)
        study.tell(lost, state=TrialState.FAIL)
        assert nas.trials.requeue(study, study.trials[-1])
        again = study.ask()
        assert architecture_of(again) == architecture_of(study.trials[-2])
        assert EPOCHS.suggest(again) == level

    def test_what_is_queued_is_trained_in_full(self):
        study = run(1)
        nas.enqueue(study, SPACE.network([8], "relu"))
        study.enqueue_trial({"depth": 1})
        study.enqueue_trial({}, user_attrs={"epochs": 5})
        assert levels(run(3, study))[1:] == [50, 50, 5]

    def test_ask_and_tell(self):
        study = optuna.create_study(sampler=sampler(), study_name="test")
        for _ in range(9):
            trial = study.ask()
            study.tell(trial, size(trial))
        assert [t.params for t in study.trials] == [t.params for t in twelve_trials().trials[:9]]
        assert levels(study) == levels(twelve_trials())[:9]
        assert study.best_trial.user_attrs["epochs"] == 50

    def test_a_study_goes_on_without_levels(self):
        """Its full trials alone are then known."""
        study = optuna.create_study(study_name="test")
        study.add_trials(twelve_trials().trials)
        study.sampler = sampler(fidelity=None)
        known = []

        class Kept(GraphProcess):
            def fit(self, X, Y, encoder):
                known.append(len(X))
                return super().fit(X, Y, encoder)

        study.sampler.surrogate = Kept(max_iter=2)
        study.sampler.num_initial = 1
        run(1, study)
        assert levels(study)[-1] == 50
        assert known == [levels(study)[:-1].count(50)]

    def test_a_running_screen_keeps_its_candidate_from_full_training(self):
        study = optuna.create_study(study_name="test", sampler=sampler())
        study.add_trials(twelve_trials().trials)
        running = study.ask()
        suggest(running, SPACE)
        EPOCHS.suggest(running)
        other = study.ask()
        assert suggest(other, SPACE) != architecture_of(running)

    @pytest.mark.slow
    def test_importances_and_the_report_see_full_trainings(self, tmp_path):
        study = twelve_trials()
        alone = optuna.create_study()
        alone.add_trials([t for t in study.trials if t.user_attrs["epochs"] == 50])
        assert importances(study) == importances(alone)
        page = write_report(study, tmp_path / "page.html", space=SPACE).read_text()
        assert "complete at a lower fidelity" in page
        assert f"Best trial: {study.best_trial.number}" in page

    def test_pruners_compare_trials_of_one_fidelity(self):
        """Values of few epochs are lower than all others, so the median rule would stop all."""
        study = optuna.create_study(pruner=nas.ParetoPruner(num_startup_trials=2))
        for level in (5, 5, 5, 50, 50):
            study.enqueue_trial({}, user_attrs={"epochs": level})
            trial = study.ask()
            EPOCHS.suggest(trial)
            nas.report_value(trial, 0.1 * trial.number if level == 5 else 20 - trial.number, 1)
            study.tell(trial, 1.0)
        trial = study.ask()
        EPOCHS.suggest(trial)
        nas.report_value(trial, 15.5, 1)
        assert not nas.should_prune(trial)

    def test_an_objective_that_does_not_ask_is_told(self):
        with pytest.warns(UserWarning, match="without asking for the level"):
            run(1, objective=lambda trial: suggest(trial, SPACE).num_parameters)


def test_two_objectives_and_levels_from_the_command_line(tmp_path, capsys):
    script = tmp_path / "levels.py"
    script.write_text(
        "import nas\n"
        "SPACE = nas.spaces.MLPSpace(4, 2, depth=(1, 2), widths=(8, 16))\n"
        "EPOCHS = nas.Fidelity('epochs', (5, 50), costs=(1, 4))\n"
        "def objective(trial):\n"
        "    network = nas.suggest(trial, SPACE)\n"
        "    return 1 / EPOCHS.suggest(trial), network.num_parameters\n"
    )
    options = ["--storage", str(tmp_path / "study.db"), "--no-progress", "--trials"]
    started = [
        "search", "--objective", f"{script}:objective", "--space", f"{script}:SPACE",
        "--fidelity", f"{script}:EPOCHS", "--direction", "minimize", "minimize", "--seed", "0",
    ]  # fmt: skip
    assert main([*started, *options, "4"]) == 0
    assert "of these   4 at a lower fidelity" in capsys.readouterr().out
    assert main(["resume", *options, "1"]) == 0
    printed = capsys.readouterr().out
    assert "study      search (minimize, minimize)" in printed
    assert "complete   5" in printed


def test_other_samplers_train_in_full():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(size, n_trials=3)
    assert levels(study) == [50, 50, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (50,)}, "two or more"),
        ({"levels": (50, 5)}, "increasing"),
        ({"levels": (0, 5)}, "positive"),
        ({"levels": (5, 50), "costs": (1, 1)}, "costs must be 2 increasing"),
        ({"levels": (5, 50), "share": 1.0}, "share"),
    ],
)
def test_wrong_levels(options, message):
    with pytest.raises(ValueError, match=message):
        Fidelity("epochs", **options)


def test_unknown_levels_and_surrogates_are_refused():
    study = optuna.create_study()
    study.enqueue_trial({}, user_attrs={"epochs": 7})
    with pytest.raises(ValueError, match="none of the levels"):
        EPOCHS.suggest(study.ask())
    with pytest.raises(ValueError, match="does not read fidelities"):
        sampler(surrogate="vectors")
    with pytest.raises(ValueError, match="fidelity apply to the default sampler only"):
        nas.search(size, SPACE, num_trials=1, sampler=sampler(), fidelity=EPOCHS)


class TestKernel:
    def test_covariance_is_that_of_the_decays_at_unit_scale(self):
        """Correlation (1 - s + s (b / (b + t + u))^a) over the root of both variances."""
        kernel = FidelityKernel((1.0, 0.3, 0.1)).double()
        kernel.initialize(raw_scales=torch.tensor([0.2, 1.5], dtype=torch.float64))
        shares = np.array([1.0, 0.3, 0.1])
        decay = 0.5 + 0.5 * 0.5 / (0.5 + shares[:, None] + shares)
        scales = np.array([1.0, *np.log1p(np.exp([0.2, 1.5]))])
        root = np.sqrt(np.diag(decay))
        wanted = scales[:, None] * decay / (root[:, None] * root) * scales
        places = torch.arange(3.0, dtype=torch.float64)[:, None]
        found = kernel(places).to_dense().detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        diagonal = kernel(places, diag=True).detach().numpy()
        np.testing.assert_allclose(diagonal, np.diag(found), rtol=1e-6)
        assert np.linalg.eigvalsh(found).min() > 0

    def test_full_rows_are_compared_as_without_levels(self):
        space, generator = CellSpace(10), Generator().manual_seed(0)
        table = ArchitectureTable([space.random(generator) for _ in range(6)])
        X = torch.arange(6.0, dtype=torch.float64)[:, None]
        plain = architecture_kernel(table).double()
        levelled = architecture_kernel(table, shares=(1.0, 0.1)).double()
        full = torch.cat([X, torch.zeros_like(X)], 1)
        low = torch.cat([X, torch.ones_like(X)], 1)
        torch.testing.assert_close(dense(levelled, full, full), dense(plain, X, X))
        both = torch.cat([full, low])
        matrix = dense(levelled, both, both)
        torch.testing.assert_close(matrix, levelled(both).to_dense())
        assert torch.linalg.eigvalsh(matrix).min() > -1e-8
        across = dense(levelled, full, low)
        correlation = levelled.kernels[0].kernels[1].covariance.double()[0, 1]
        torch.testing.assert_close(across, correlation * dense(plain, X, X))


class Known(Model):
    """A model of two levels whose posterior is given: variances 2 and 3, noise 0.5."""

    def posterior(self, X, observation_noise=False, **options):
        covariance = torch.tensor([[2.0, 1.5], [1.5, 3.0]], dtype=torch.float64)
        noise = 0.5 * torch.eye(2, dtype=torch.float64) if observation_noise else 0.0
        return GPyTorchPosterior(MultivariateNormal(X[:, 0], covariance + noise))


def test_explained_is_the_square_of_the_correlation():
    rows = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    wanted = torch.tensor([2.0**2 / (2 * 2.5), 1.5**2 / (2 * 3.5)], dtype=torch.float64)
    torch.testing.assert_close(explained([Known()], rows), wanted)
    torch.testing.assert_close(explained([Known(), Known()], rows), wanted)
    shares = torch.tensor([0.9, 0.2])
    assert most_for_its_cost(shares, (1.0, 0.1), [0, 1]) == 1
    assert most_for_its_cost(shares, (1.0, 0.3), [0, 1]) == 0
    assert most_for_its_cost(shares, (1.0, 0.1), [0]) == 0


CELLS = CellSpace(10, num_cells=1)
BRIEF = Fidelity("epochs", (20, 200))
PROCESS = GraphProcess()  # keeps features of cells from study to study
PAIRS = np.random.default_rng(0).normal(size=(6, 6, 5, 5)) / 15**0.5


def true_value(cell, level, useful):
    """A sum over pairs of edges, of variance 1; few epochs add a deviation of their own."""
    names = CELLS.to_parameters(cell).values()
    places = [CELL_OPERATIONS.index(name) for name in names]
    total = sum(PAIRS[i, j, places[i], places[j]] for j in range(6) for i in range(j))
    if level == BRIEF.full:
        return total
    deviation = np.random.default_rng(places).normal()
    return total + 0.3 * deviation if useful else deviation


def outcome(seed, budget, useful, fidelity):
    """Best value of the full trainings that a budget pays for, and how many these are."""
    own = BayesianSampler(
        CELLS, hyperparameters={}, surrogate=PROCESS, fidelity=fidelity, num_initial=3, seed=seed
    )
    study = optuna.create_study(direction="maximize", sampler=own)
    cost, seen = 0.0, []
    while True:
        trial = study.ask()
        cell = suggest(trial, CELLS)
        level = BRIEF.suggest(trial)
        cost += level / BRIEF.full
        if cost > budget + 1e-9:
            return max(seen), len(seen)
        value = true_value(cell, level, useful)
        if level == BRIEF.full:
            seen.append(value)
        study.tell(trial, value)


@pytest.mark.slow
def test_screens_that_tell_something_find_better_candidates_at_the_same_cost():
    """In the mean over eight seeds; the benchmark of NAS-Bench-201 tells how sure that is."""
    gain = [outcome(s, 6, True, BRIEF)[0] - outcome(s, 6, True, None)[0] for s in range(8)]
    assert np.mean(gain) > 0


@pytest.mark.slow
def test_screens_that_tell_nothing_cost_no_more_than_their_share():
    """Half of the budget is for full trainings, up to one of them, and what is found is no worse
    than with half of the budget and without levels, within two standard errors."""
    seeds = range(5)
    found = [outcome(seed, 10, False, BRIEF) for seed in seeds]
    assert all(full >= 4 for _, full in found)
    gain = np.array([best - outcome(s, 5, False, None)[0] for s, (best, _) in enumerate(found)])
    assert gain.mean() > -2 * gain.std(ddof=1) / math.sqrt(len(gain))
