"""Searches: storage, resuming, failures, interruption, lost workers, several workers."""

import datetime
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.trial import TrialState

from nas import BayesianSampler, StorageError, architecture_of, search, suggest
from nas.spaces import MLPSpace
from nas.studies.storage import open_storage
from nas.surrogates import GraphProcess
from nas.testing import SyntheticObjective
from nas.trials import MAX_RETRIES, requeue

OBJECTIVE = SyntheticObjective()

pytestmark = pytest.mark.usefixtures("few_candidates")


def run(num_trials, objective=OBJECTIVE, **options):
    options = {"seed": 0, "show_progress": False, **options}
    if "sampler" not in options:
        options["sampler"] = BayesianSampler(
            OBJECTIVE.space,
            hyperparameters=OBJECTIVE.hyperparameters,
            num_initial=3,
            seed=options.pop("seed"),
        )
    return search(objective, OBJECTIVE.space, num_trials=num_trials, **options)


def candidates(study):
    """What was evaluated and with what result, in order."""
    done = study.get_trials(states=(TrialState.COMPLETE,))
    return [(architecture_of(t), t.params, t.value) for t in done]


def test_in_memory_with_the_default_sampler():
    study = search(
        OBJECTIVE,
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        num_trials=3,
        seed=1,
        show_progress=False,
    )
    assert isinstance(study.sampler, BayesianSampler)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3


def test_a_second_call_resumes(tmp_path):
    path = tmp_path / "folder" / "study.db"
    run(2, storage=path)
    resumed = run(2, storage=str(path))
    assert len(resumed.trials) == 4
    assert candidates(resumed) == candidates(run(4))
    other = run(1, storage=path, study_name="other")
    assert len(other.trials) == 1


def test_a_trial_that_raises_is_kept_with_its_error():
    def sometimes(trial):
        suggest(trial, OBJECTIVE.space)
        if trial.number == 1:
            raise RuntimeError("out of memory")
        if trial.number == 2:
            return float("nan")
        return OBJECTIVE(trial)

    study = run(5, sometimes)
    states = [t.state for t in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL] + states[3:]
    assert states[3:] == [TrialState.COMPLETE] * 2
    assert study.trials[1].user_attrs["error"] == "RuntimeError: out of memory"
    assert "sometimes" in study.trials[1].user_attrs["traceback"]
    assert "nan" in study.trials[2].user_attrs["error"]
    assert architecture_of(study.trials[1]) in OBJECTIVE.space


@pytest.mark.fast_for("False")
@pytest.mark.parametrize("after_hyperparameters", [False, True])
def test_ctrl_c_loses_nothing(tmp_path, after_hyperparameters):
    """Interrupted and resumed, the study is the one that was never interrupted."""
    interrupted = []

    def once(trial):
        if after_hyperparameters:
            value = OBJECTIVE(trial)
        else:
            suggest(trial, OBJECTIVE.space)
        if trial.number == 3 and not interrupted:
            interrupted.append(trial.number)
            raise KeyboardInterrupt
        return value if after_hyperparameters else OBJECTIVE(trial)

    path = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        run(5, once, storage=path)
    study = run(2, once, storage=path)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 2
    assert study.trials[3].user_attrs["error"] == "KeyboardInterrupt"
    assert study.trials[4].user_attrs["requeued_from"] == 3
    assert candidates(study) == candidates(run(5))


def test_ctrl_c_under_a_sampler_of_optuna(tmp_path):
    def interrupt(trial):
        OBJECTIVE(trial)
        raise KeyboardInterrupt

    options = {"storage": tmp_path / "study.db", "seed": None}
    with pytest.raises(KeyboardInterrupt):
        run(1, interrupt, sampler=optuna.samplers.RandomSampler(seed=0), **options)
    study = run(1, sampler=optuna.samplers.RandomSampler(seed=5), **options)
    lost, again = study.trials
    assert again.params == lost.params
    assert architecture_of(again) == architecture_of(lost)


def test_a_stale_trial_is_queued_again(tmp_path):
    """A worker that died: its trial is running with an old heartbeat."""
    path = tmp_path / "study.db"
    study = run(2, storage=path)
    with pytest.warns(UserWarning, match="Heartbeat"):
        dead = study.ask()
    OBJECTIVE(dead)
    study._storage.record_heartbeat(dead._trial_id)
    with sqlite3.connect(path) as database:
        long_ago = datetime.datetime(2020, 1, 1).isoformat(sep=" ")
        database.execute("UPDATE trial_heartbeats SET heartbeat = ?", (long_ago,))
    database.close()
    study = run(1, storage=path)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    assert study.trials[3].params == study.trials[2].params
    assert architecture_of(study.trials[3]) == architecture_of(study.trials[2])


def test_a_trial_that_kills_its_workers_is_given_up():
    study = run(1)
    for _ in range(MAX_RETRIES + 3):
        requeue(study, study.trials[-1], max_retries=MAX_RETRIES)
        if study.trials[-1].state == TrialState.WAITING:
            study.tell(study.ask(), state=TrialState.FAIL)
    assert len(study.trials) == 1 + MAX_RETRIES


def test_workers_on_an_engine(tmp_path):
    """Two threads, one shared file: all trials are run once, by number and by candidate."""
    with ThreadPoolExecutor(2) as engine:
        study = run(6, storage=tmp_path / "study.db", workers=2, engine=engine)
        assert engine.submit(int, "3").result() == 3  # left open
    assert [t.number for t in study.trials] == list(range(6))
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    keys = {(architecture_of(t), tuple(sorted(t.params.items()))) for t in study.trials}
    assert len(keys) == 6


@pytest.mark.slow
def test_worker_processes(tmp_path):
    study = run(4, storage=tmp_path / "study.db", workers=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4


@pytest.mark.slow
def test_kill_and_resume_across_processes(tmp_path):
    """SIGINT to a real process in the middle of a trial; the command line resumes the study."""
    path, script = tmp_path / "study.db", tmp_path / "slow_objective.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, time
            from nas.testing import SyntheticObjective
            synthetic = SyntheticObjective()
            def objective(trial):
                value = synthetic(trial)
                if trial.number == 2:
                    time.sleep(60 if "HANG" in os.environ else 0)
                return value
            """
        )
    )
    command = [
        *(sys.executable, "-m", "nas", "search", "--objective", f"{script}:objective"),
        *("--space", "mlp", "--in-features", "64", "--out-features", "10"),
        *("--storage", str(path), "--seed", "0", "--no-progress"),
    ]
    hanging = subprocess.Popen(
        [*command, "--trials", "5"],
        env={**os.environ, "HANG": "1"},
        # Shells without job control have what they start in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    states: list[str] = []
    while states.count("RUNNING") != 1 or len(states) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.5)
        if path.exists():
            try:
                study = optuna.load_study(study_name="search", storage=f"sqlite:///{path}")
                trials = [t for t in study.trials if "learning_rate" in t.params]
                states = [t.state.name for t in trials]
            except Exception:  # the tables are still being made
                states = []
    hanging.send_signal(signal.SIGINT)
    assert hanging.wait(timeout=60) == 130
    done = subprocess.run([*command, "--trials", "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{path}").trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    assert trials[3].params == trials[2].params


def test_workers_need_a_picklable_objective(tmp_path):
    with pytest.raises(TypeError, match="importable module"):
        run(1, lambda trial: 0.0, storage=tmp_path / "study.db", workers=2)


def test_the_other_direction_is_refused(tmp_path):
    run(1, storage=tmp_path / "study.db")
    with pytest.raises(ValueError, match="is to minimize, but this call is to maximize"):
        run(1, storage=tmp_path / "study.db", direction="maximize")


def test_unwritable_storage(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="Cannot write the study storage"):
        run(1, storage=tmp_path / "file" / "study.db")
    with pytest.raises(StorageError, match="Cannot write the study storage"):
        run(1, storage=tmp_path)
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(StorageError, match=r"Cannot open the study storage .*text\.db"):
        run(1, storage=tmp_path / "text.db")
    with pytest.raises(StorageError, match=r"a journal has no URL; pass .*JournalStorage"):
        open_storage("journal:///study.log")
    with pytest.raises(StorageError, match="no study storage"):
        open_storage(tmp_path / "absent.db", must_exist=True)


def test_logging_is_left_as_it_was(capfd):
    level = optuna.logging.get_verbosity()
    study = run(2, show_progress=True)
    assert optuna.logging.get_verbosity() == level
    err = capfd.readouterr().err
    assert f"best={study.best_value:.4g}" in err
    assert "Trial 0 finished" not in err


WRONG = [
    ({"num_trials": 0}, ValueError, "num_trials"),
    ({"workers": 0}, ValueError, "workers"),
    ({"direction": "up"}, ValueError, "direction"),
    ({"workers": 2}, ValueError, "storage they can share"),
    ({"sampler": optuna.samplers.RandomSampler(), "seed": 1}, ValueError, "its own"),
    ({"num_trials": "3"}, ValueError, "num_trials must be a whole number of at least 1, got '3'"),
    ({"num_trials": 2.5}, ValueError, "num_trials must be a whole number"),
    ({"num_trials": True}, ValueError, "num_trials must be a whole number"),
    ({"timeout": "3"}, ValueError, "timeout must be a positive number"),
    ({"callbacks": [3]}, TypeError, "callbacks must be functions"),
    ({"sampler": "tpe"}, TypeError, "sampler must be an Optuna BaseSampler"),
    ({"pruner": "median"}, TypeError, "pruner must be an Optuna BasePruner"),
    ({"storage": 3}, TypeError, "storage must be a path"),
    ({"catch": ("x",)}, TypeError, "catch must be a tuple of exception classes"),
    ({"objective": "train"}, TypeError, "objective must be a function of a trial"),
    ({"space": None}, TypeError, "space must be a nas.spaces.Space"),
    ({"space": MLPSpace}, TypeError, "space must be a nas.spaces.Space"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options(options, error, message):
    usual = {"objective": OBJECTIVE, "space": OBJECTIVE.space, "num_trials": 1}
    given = {**usual, "show_progress": False, **options}
    with pytest.raises(error, match=message):
        search(given.pop("objective"), given.pop("space"), **given)


def test_one_callback_needs_no_sequence():
    called = []
    search(
        lambda trial: float(suggest(trial, MLPSpace(4, 2)).depth),
        MLPSpace(4, 2),
        num_trials=2,
        callbacks=lambda study, trial: called.append(trial.number),
        show_progress=False,
    )
    assert called == [0, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"acquisition": 3}, TypeError, "acquisition must be a name or a callable"),
        ({"surrogate": GraphProcess}, TypeError, "not the class itself"),
        ({"proxies": ["a"]}, TypeError, "proxies must be a ProxyScores"),
        ({"fidelity": 3}, TypeError, "fidelity must be a Fidelity"),
        ({"num_initial": 2.5}, ValueError, "num_initial must be a whole number"),
        ({"device": "cuda:99"}, ValueError, "'cuda:99' cannot be used here"),
    ],
)
def test_samplers_of_other_arguments(options, error, message):
    with pytest.raises(error, match=message):
        BayesianSampler(MLPSpace(4, 2), **options)


def test_a_sampler_for_one_objective_is_refused_before_the_first_trial():
    sampler = BayesianSampler(MLPSpace(4, 2), acquisition="ucb")
    with pytest.raises(ValueError, match="'ucb' is for one objective"):
        search(
            lambda trial: (0.0, 0.0),
            MLPSpace(4, 2),
            num_trials=1,
            sampler=sampler,
            directions=["minimize", "minimize"],
        )
