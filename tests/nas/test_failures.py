"""What must not pass for success: objectives that fail, return nonsense or leave the program."""

import asyncio
import html
import math
import re
import time

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from nas import SearchError, search, suggest, write_report
from nas.__main__ import main
from nas.encoding.outcomes import half_rank
from nas.spaces import MLPSpace
from nas.studies.evaluation import MAX_EQUAL_FAILURES
from nas.trials import seconds_of

SPACE = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))
SCRIPT = """
import sys
from nas import suggest
from nas.spaces import MLPSpace
space = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))
def broken(trial):
    raise RuntimeError(f"no data in trial {trial.number}")
def fine(trial):
    return suggest(trial, space).num_parameters
pairs = [("rate", 1.0)]
"""


def size(trial):
    return suggest(trial, SPACE).num_parameters


def run(objective, num_trials=1, **options):
    options = {"sampler": optuna.samplers.RandomSampler(seed=0), "show_progress": False} | options
    return search(objective, SPACE, num_trials=num_trials, **options)


def after(calls, then):
    """Fine for some calls, then something else."""
    count = 0

    def objective(trial):
        nonlocal count
        count += 1
        value = size(trial)
        return value if count <= calls else then(trial)

    return objective


def diverge(trial):
    raise RuntimeError(f"loss {trial.number} is too large")


def test_a_search_whose_trials_all_fail_alike_stops():
    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(SearchError, match="failed in the same way.*RuntimeError: loss 4 is"):
        run(after(0, diverge), 20, storage=storage)
    study = optuna.load_study(study_name="search", storage=storage)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * MAX_EQUAL_FAILURES


def memory(trial):
    raise MemoryError("too large a network")


def different(trial):
    if trial.number % 2:
        raise KeyError("x")
    raise RuntimeError("diverged")


@pytest.mark.parametrize(
    "objective",
    [after(1, diverge), after(0, memory), after(0, different), after(0, lambda t: math.nan)],
)
def test_failures_that_the_candidate_may_explain_do_not_stop_it(objective):
    study = run(objective, 7)
    assert len(study.trials) == 7
    assert [t.state for t in study.trials][1:] == [TrialState.FAIL] * 6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "TypeError: The objective returned None; is its return"),
        ((0.5, 1.0), r"TypeError: The objective must return one number, got \(0.5, 1.0\)"),
        ([0.5], "must return one number, got"),
        ("high", "must return one number, got 'high'"),
        (1j, "must return one number, got 1j"),
    ],
)
def test_values_that_are_no_number(value, message):
    error = run(after(0, lambda trial: value)).trials[0].user_attrs["error"]
    assert re.search(message, error)


@pytest.mark.parametrize("status", [0, 3, "no data"])
def test_an_objective_that_leaves_the_program_is_a_failed_trial(status):
    def leave(trial):
        if trial.number:
            return size(trial)
        raise SystemExit(status)

    study = run(leave, 2)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert (
        f"SystemExit: the objective left the program with status {status!r}"
        in (study.trials[0].user_attrs["error"])
    )


def test_other_interruptions_leave_no_trial_running():
    storage = optuna.storages.InMemoryStorage()

    def cancelled(trial):
        raise asyncio.CancelledError("by another task")

    with pytest.raises(asyncio.CancelledError):
        run(cancelled, storage=storage)
    study = optuna.load_study(study_name="search", storage=storage)
    assert [t.state for t in study.trials] == [TrialState.FAIL]
    assert "CancelledError: by another task" in study.trials[0].user_attrs["error"]


@pytest.mark.parametrize("scale", [1e160, 1e-160, 1e300, 1e-300])
def test_targets_in_any_unit(scale):
    """The warp does not depend on the unit, also where squares overflow or vanish."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, -1.0, -9.0, -math.inf], dtype=torch.float64)
    torch.testing.assert_close(half_rank(values * scale), half_rank(values), rtol=1e-12, atol=0)


def test_one_huge_target_leaves_the_others_apart():
    values = [0.1, 0.2, 0.3, 0.4]
    warped = half_rank(torch.tensor([*values, -1e160], dtype=torch.float64))
    milder = half_rank(torch.tensor([*values, -1.0], dtype=torch.float64))
    torch.testing.assert_close(warped, milder, rtol=1e-12, atol=0)
    best = half_rank(torch.tensor([*values, 1e160], dtype=torch.float64))
    assert best.argmax() == 4
    assert bool(best.isfinite().all())


def test_hyperparameters_must_be_a_dictionary():
    with pytest.raises(TypeError, match="must be a dictionary .* got list"):
        run(size, hyperparameters=[("rate", FloatDistribution(0.0, 1.0))])


def test_a_stored_study_of_other_directions_is_refused():
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="search", directions=["minimize"] * 2)
    with pytest.raises(ValueError, match="is to minimize and minimize, but this call"):
        run(size, storage=storage)


@pytest.fixture
def script(tmp_path, request):
    path = tmp_path / f"failing_{abs(hash(request.node.name))}.py"
    path.write_text(SCRIPT)
    return path


def command(script, storage, *more, objective="fine", trials=1):
    return [
        "search", "--objective", f"{script}:{objective}", "--space", f"{script}:space",
        "--storage", str(storage), "--trials", str(trials), "--seed", "0", "--no-progress", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("trials", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_command_whose_trials_all_fail_does_not_exit_with_zero(script, tmp_path, capsys, trials):
    path = tmp_path / "study.db"
    assert main(command(script, path)) == 0
    assert main(command(script, path, objective="broken", trials=trials)) == 1
    printed = capsys.readouterr()
    assert "RuntimeError: no data in trial" in printed.out + printed.err
    assert printed.err.startswith("nas search: ")
    assert printed.err.count("\n") == 1


def test_hyperparameters_of_the_command_must_be_a_dictionary(script, tmp_path, capsys):
    more = ("--hyperparameters", f"{script}:pairs")
    assert main(command(script, tmp_path / "study.db", *more)) == 1
    assert "must be a dictionary" in capsys.readouterr().err


def test_an_unwritable_report(script, tmp_path, capsys):
    path = tmp_path / "study.db"
    main(command(script, path))
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        capsys.readouterr()
        assert main(["report", "--storage", str(path), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"nas report: Cannot write the report {out}: ")
        assert error.count("\n") == 1


def test_status_and_report_of_several_objectives(tmp_path, capsys):
    path = tmp_path / "study.db"
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="two", directions=["minimize", "maximize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    study.optimize(lambda t: (size(t), t.number), n_trials=3)
    capsys.readouterr()
    assert main(["status", "--storage", str(path), "--study", "two"]) == 0
    printed = capsys.readouterr().out
    assert "two (minimize, maximize)" in printed
    assert printed.count("best  ") == len(study.best_trials)
    out = tmp_path / "r.html"
    assert main(["report", "--storage", str(path), "--study", "two", "--out", str(out)]) == 0
    page = out.read_text()
    assert "Pareto front" in page
    assert page.count(" best") == len(study.best_trials)


def test_a_report_of_huge_values(tmp_path):
    study = run(lambda t: size(t) * (1e160 if t.number % 2 else -1e305), 4)
    page = html.unescape(write_report(study, tmp_path / "r.html").read_text())
    assert "<td>-1.14e+307</td>" in page


class _Unable(optuna.samplers.RandomSampler):
    """Which proposes for three trials, each time after a fifth of a second."""

    def sample_relative(self, study, trial, search_space):
        time.sleep(0.2)
        if trial.number == 3:
            raise RuntimeError("nothing left to propose")
        return {}


def test_a_sampler_that_cannot_propose_ends_the_search():
    """Whatever trials may fail with, and however many were fine before."""
    study = optuna.create_study(study_name="unable")
    with pytest.raises(SearchError, match="for trial 3, .*: RuntimeError: nothing left"):
        search(
            size,
            SPACE,
            num_trials=9,
            storage=study._storage,
            study_name="unable",
            sampler=_Unable(seed=0),
            show_progress=False,
        )
    *fine, last = study.trials
    assert [trial.state for trial in fine] == [TrialState.COMPLETE] * 3
    assert last.state == TrialState.FAIL
    assert "nothing left" in last.user_attrs["traceback"]


def test_seconds_of_a_trial_are_not_those_of_its_proposal():
    study = run(size, 3, sampler=_Unable(seed=0))
    for trial in study.trials:
        assert trial.duration.total_seconds() >= 0.2
        assert seconds_of(trial) < 0.1
