"""Where studies are kept: paths, URLs, passwords, memory, and storages that fail in mid-run."""

import sqlite3

import optuna
import pytest
import sqlalchemy

from nas import StorageError, search, suggest
from nas.__main__ import main
from nas.spaces import MLPSpace
from nas.studies.storage import open_storage, shown

SPACE = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))


def size(trial):
    return suggest(trial, SPACE).num_parameters


def run(storage, num_trials=1, objective=size, **options):
    options = {"sampler": optuna.samplers.RandomSampler(seed=0), "show_progress": False} | options
    return search(objective, SPACE, num_trials=num_trials, storage=storage, **options)


@pytest.mark.fast_for("{x}%20y.db", "a&b=c@d:50%.db")
@pytest.mark.parametrize(
    "name",
    ["run?a.db", "a b#c.db", "{x}%20y.db", "a&b=c@d:50%.db"],
)
def test_a_path_is_the_file_it_says(tmp_path, name):
    for path in (tmp_path / name, str(tmp_path / name)):
        run(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(run(tmp_path / name).trials) == 3


@pytest.mark.parametrize(
    "storage", ["sqlite:///:memory:", "sqlite://", ":memory:", "sqlite:///file::memory:?uri=true"]
)
def test_memory_by_its_sqlite_names(tmp_path, monkeypatch, storage):
    monkeypatch.chdir(tmp_path)
    assert len(run(storage, 2).trials) == 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="storage they can share"):
        run(storage, workers=2)
    with pytest.raises(StorageError, match="in memory"):
        open_storage(storage, must_exist=True)


def test_a_url_of_a_file_that_is_not_there_makes_none(tmp_path):
    url = f"sqlite:///{tmp_path / 'absent.db'}"
    with pytest.raises(StorageError, match="no study storage"):
        open_storage(url, must_exist=True)
    assert not list(tmp_path.iterdir())
    run(url)
    assert [file.name for file in tmp_path.iterdir()] == ["absent.db"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@localhost:1/db",
        "nonsense://user:s3cret@host/db",
        "postgresql://user:s3cret@host:port/db",
        "postgresql://user:s3c@s3cret@localhost:1/db",
        "sqlite:////nowhere/a.db?password=s3cret",
    ],
)
def test_passwords_are_not_shown(url, capsys):
    with pytest.raises(StorageError) as raised:
        open_storage(url, must_exist=True)
    assert "s3c" not in str(raised.value)
    assert main(["status", "--storage", url]) == 1
    assert "s3c" not in capsys.readouterr().err


def test_what_is_shown_of_a_url():
    assert shown("mysql://me:pw@host/db?ssl=1") == "mysql://me:***@host/db?ssl=1"
    assert shown("study.db") == "study.db"


def failing(path, what):
    """An objective in whose second trial the database goes away."""

    def objective(trial):
        value = size(trial)
        if trial.number == 1:
            what(path)
        return value

    return objective


def overwrite(path):
    path.write_bytes(b"something else " * 1000)


def drop(path):
    with sqlite3.connect(path) as database:
        for (table,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            database.execute(f'DROP TABLE "{table}"')
    database.close()


def delete_study(path):
    optuna.delete_study(study_name="search", storage=f"sqlite:///{path}")


@pytest.mark.covering
@pytest.mark.parametrize("what", [overwrite, drop, delete_study])
@pytest.mark.parametrize("fails", [False, True])
def test_a_storage_lost_in_mid_run(tmp_path, what, fails):
    path = tmp_path / "study.db"
    objective = failing(path, what)

    def raising(trial):
        objective(trial)
        if trial.number == 1:
            raise RuntimeError("diverged")
        return 1.0

    with pytest.raises(StorageError, match="'search' cannot be read or written any more: .+"):
        run(path, 3, raising if fails else objective)


@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_that_is_full(tmp_path, fails):
    """From the middle of the second trial on, nothing can be written."""
    storage = open_storage(tmp_path / "study.db")

    def refuse(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            full = sqlite3.OperationalError("database or disk is full")
            raise sqlalchemy.exc.OperationalError(statement, parameters, full)

    def fill(trial):
        value = size(trial)
        if trial.number == 1:
            sqlalchemy.event.listen(storage.engine, "before_cursor_execute", refuse)
            if fails:
                raise RuntimeError("diverged")
        return value

    with pytest.raises(StorageError, match="any more: .*database or disk is full"):
        run(storage, 3, fill)


def test_commands_on_what_is_no_study(tmp_path, capsys):
    path = tmp_path / "study.db"
    run(path)
    for spoil in (drop, overwrite):
        spoil(path)
        assert main(["status", "--storage", str(path)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
