"""Workers that die: their trials are queued again, and new processes go on."""

import os
import subprocess
import sys
import textwrap
import threading
import types
from concurrent.futures import BrokenExecutor, Executor, Future
from datetime import datetime

import optuna
import pytest
from optuna.trial import TrialState

from nas import SearchError, architecture_of, search, suggest
from nas.spaces import MLPSpace
from nas.studies.presence import WORKER, here, is_gone
from nas.studies.workers import _trial_of
from nas.trials import MAX_RETRIES

SPACE = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))


def size(trial):
    return suggest(trial, SPACE).num_parameters


class Fragile(Executor):
    """Runs jobs in this process; in some calls a worker dies, as one that is killed does.

    Args:
        deaths: Numbers of calls in which the trial is left running, or not begun where the number
            is negative.
        mended: Whether it goes on afterwards, as local processes do.
    """

    def __init__(self, deaths, *, mended=False):
        self.deaths = deaths
        self.mended = mended
        self.broken = False
        self.calls = 0

    def submit(self, job, name):
        if self.broken:
            raise BrokenExecutor("a process in the pool was terminated abruptly")
        future = Future()
        self.calls += 1
        if self.calls in self.deaths:
            study = optuna.load_study(
                study_name=job.study_name, storage=job.storage, sampler=job.sampler
            )
            trial = study.ask()
            trial.set_user_attr(WORKER, here(name))
            job.objective(trial)
        if self.calls in self.deaths or -self.calls in self.deaths:
            self.broken = not self.mended
            future.set_exception(BrokenExecutor("a process was terminated abruptly"))
        else:
            future.set_result(job(name))
        return future


@pytest.fixture
def fragile(monkeypatch):
    def use(*deaths):
        monkeypatch.setattr(
            "nas.studies.workers.LocalProcesses", lambda workers: Fragile(deaths, mended=True)
        )

    return use


def run(path, num_trials, **options):
    options = {"sampler": optuna.samplers.RandomSampler(seed=0), "workers": 2, **options}
    return search(size, SPACE, num_trials=num_trials, storage=path, show_progress=False, **options)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
class TestDeaths:
    def test_the_trial_of_a_dead_worker_runs_again(self, tmp_path, fragile):
        fragile(2)
        with pytest.warns(UserWarning, match="worker process of trial 1 died.* queued again"):
            study = run(tmp_path / "study.db", 4)
        states = [t.state for t in study.trials]
        assert states.count(TrialState.COMPLETE) == 4
        assert states.count(TrialState.FAIL) == 1
        dead = study.trials[1]
        again = next(t for t in study.trials if t.user_attrs.get("requeued_from") == 1)
        assert dead.state == TrialState.FAIL
        assert "died" in dead.user_attrs["error"]
        assert again.params == dead.params
        assert architecture_of(again) == architecture_of(dead)

    def test_a_trial_that_kills_its_workers_is_given_up(self, tmp_path, fragile):
        fragile(1, 3, 4)  # the second runs the other trial
        with pytest.warns(UserWarning, match="worker process of trial .* died") as found:
            study = run(tmp_path / "study.db", 2)
        assert "given up" in str(found[-1].message)
        states = [t.state for t in study.trials]
        assert states.count(TrialState.FAIL) == 1 + MAX_RETRIES
        assert states[1] == TrialState.COMPLETE
        assert len(states) == 2 + MAX_RETRIES

    def test_workers_that_do_not_start(self, tmp_path, fragile):
        fragile(-1, -2, -3, -4)
        with pytest.raises(SearchError, match='`if __name__ == "__main__":`'):
            run(tmp_path / "study.db", 4)

    def test_an_engine_that_breaks(self, tmp_path):
        with (
            pytest.warns(UserWarning, match="queued again"),
            pytest.raises(SearchError, match="Call again with a new engine"),
        ):
            run(tmp_path / "study.db", 4, engine=Fragile((1,)))
        broken = Fragile(())
        broken.broken = True
        with pytest.raises(SearchError, match="engine is broken"):
            run(tmp_path / "study.db", 4, engine=broken)
        study = run(tmp_path / "study.db", 1, engine=Fragile(()))
        assert study.trials[-1].state == TrialState.COMPLETE
        assert study.trials[-1].params == study.trials[0].params


def test_the_trial_of_a_search_that_was_killed_runs_again_at_once(tmp_path):
    """Its process is gone, and no heartbeat need be waited for; a living one is left alone."""
    path = tmp_path / "study.db"
    study = run(path, 2, workers=1)
    gone, living = here(), here()
    gone["started"] = "another process of this number"
    with pytest.warns(UserWarning, match="Heartbeat"):
        lost = study.ask()
    size(lost)
    lost.set_user_attr(WORKER, gone)
    with pytest.warns(UserWarning, match="worker process of trial 2 died"):
        study = run(path, 1, workers=1, sampler=optuna.samplers.RandomSampler(seed=7))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    assert study.trials[3].params == study.trials[2].params
    with pytest.warns(UserWarning, match="Heartbeat"):
        running = study.ask()
    running.set_user_attr(WORKER, living)
    study = run(path, 1, workers=1)
    assert [t.state.name for t in study.trials][4:] == ["RUNNING", "COMPLETE"]


def test_presence():
    assert not is_gone(here())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone({**here(), "pid": ended.pid})
    assert not is_gone({**here(), "machine": "another", "pid": ended.pid})


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


KILLED = """
import os, signal, warnings
from nas import search, suggest
from nas.spaces import MLPSpace
space = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))
def objective(trial):
    value = suggest(trial, space).num_parameters
    if trial.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
"""
CALL = """
study = search(objective, space, num_trials=3, storage="study.db", workers=2, show_progress=False)
print([t.state.name for t in study.trials])
"""


@pytest.mark.slow
def test_a_killed_process_and_a_script_without_a_guard(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    guarded = KILLED + 'if __name__ == "__main__":' + textwrap.indent(CALL, "    ")
    done = subprocess.run(
        [sys.executable, script(tmp_path, guarded)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'COMPLETE'") == 3
    assert done.stdout.count("'FAIL'") >= 1
    assert "RUNNING" not in done.stdout
    assert "The worker process of trial 1 died" in done.stderr
    done = subprocess.run(
        [sys.executable, script(tmp_path, KILLED + CALL)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "must stand under `if __name__" in done.stderr.splitlines()[-1]


STORM = """
import os, random, signal, threading, time, warnings
from nas import search, suggest
from nas.spaces import MLPSpace
import optuna
space = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))
def objective(trial):
    value = suggest(trial, space).num_parameters
    trial.suggest_float("rate", 0.0, 1.0)
    with open("ran.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.2)
    return value
def kill(stop):
    draws, seen = random.Random(0), 0
    while not stop.wait(0.05):
        ran = open("ran.txt").read().split() if os.path.exists("ran.txt") else []
        if len(ran) >= seen + 5:  # each fifth trial, in it or shortly after
            seen = len(ran)
            time.sleep(draws.uniform(0.0, 0.3))
            try:
                os.kill(int(ran[-1]), signal.SIGKILL)
            except ProcessLookupError:
                pass
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    stop = threading.Event()
    killer = threading.Thread(target=kill, args=(stop,))
    killer.start()
    try:
        search(
            objective, space, num_trials=40, storage="study.db", workers=8, show_progress=False,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
    finally:
        stop.set()
        killer.join()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_of_eight_workers_killed_at_random_no_trial_is_lost_or_doubled(tmp_path):
    done = subprocess.run(
        [sys.executable, script(tmp_path, STORM)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True,
        text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trials = optuna.load_study(
        study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}"
    ).trials
    by_state = {state: [t for t in trials if t.state == state] for state in TrialState}
    assert not by_state[TrialState.RUNNING]
    assert not by_state[TrialState.WAITING]
    assert by_state[TrialState.FAIL]  # some were killed while they had a trial
    again = [t.user_attrs["requeued_from"] for t in trials if "requeued_from" in t.user_attrs]
    assert len(again) == len(set(again))
    failed = {t.number for t in by_state[TrialState.FAIL]}
    assert set(again) <= failed
    given_up = failed - set(again)
    assert len(by_state[TrialState.COMPLETE]) + len(given_up) == 40
    for trial in trials:
        if "requeued_from" in trial.user_attrs and trial.number not in failed:
            before = trials[trial.user_attrs["requeued_from"]]
            assert before.params.items() <= trial.params.items()


def test_the_trial_of_a_living_worker_is_not_taken_for_a_dead_ones(tmp_path):
    """One that has just begun has no name yet; it gets one while the others wait."""
    study = run(tmp_path / "study.db", 1, workers=1)
    since = datetime.now()
    with pytest.warns(UserWarning, match="Heartbeat"):
        begun = study.ask()
    assert _trial_of(study, "dead", since, set()).number == begun.number
    threading.Timer(0.3, begun.set_user_attr, (WORKER, here("living"))).start()
    assert _trial_of(study, "dead", since, {"living"}) is None
    with pytest.warns(UserWarning, match="Heartbeat"):
        orphan = study.ask()
    assert _trial_of(study, "dead", since, {"living"}).number == orphan.number
    assert _trial_of(study, "living", since, set()).number == begun.number


def test_an_objective_from_a_notebook(tmp_path, monkeypatch):
    notebook = types.ModuleType("__main__")
    exec("def objective(trial): return 0.0", notebook.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    options = {"num_trials": 1, "storage": tmp_path / "study.db", "show_progress": False}
    with pytest.raises(TypeError, match="cannot import what a notebook"):
        search(notebook.objective, SPACE, workers=2, **options)
