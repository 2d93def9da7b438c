"""The storage of a study, opened from a path or URL, with failures reported in one line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from nas.trials import MAX_RETRIES, requeue

__all__ = ["StorageError", "open_storage", "shown", "storage_errors"]

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120


class StorageError(OSError):
    """The storage of a study cannot be opened or written."""


def open_storage(storage: str | Path | None, *, must_exist: bool = False) -> BaseStorage:
    """An Optuna storage with heartbeats, from a path or URL.

    Args:
        storage: Path of an SQLite file (its folder is made), an Optuna URL, or None for memory.
        must_exist: Refuse a path where no file is.

    Raises:
        StorageError: it cannot be opened; the message says why.
        TypeError: neither a path nor a URL.
    """
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if not isinstance(storage, str | Path):
        raise TypeError(
            f"storage must be a path, an Optuna URL or an Optuna storage, got {storage!r}."
        )
    from sqlalchemy.exc import SQLAlchemyError  # slow to load

    url, file = _place(storage)
    connect = {}
    if url is None:
        if must_exist:
            raise StorageError(
                f"{storage} is in memory and keeps no studies; pass the path of a file or a "
                "database URL."
            )
        return optuna.storages.InMemoryStorage()
    if file is not None:
        _check_file(file, must_exist)
    if url.startswith("sqlite"):
        connect = {"connect_args": {"timeout": 60}}  # seconds to wait for another worker's lock
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
        try:
            return RDBStorage(
                url,
                engine_kwargs=connect,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=_requeue_stale,
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError,
                RuntimeError, AssertionError) as error:  # fmt: skip
            reason = shown((str(error).splitlines() or ["it is not an Optuna database"])[0])
            raise StorageError(
                f"Cannot open the study storage {shown(storage)}: {reason}"
            ) from error


def shown(storage: str | Path | BaseStorage) -> str:
    """A path or URL, or a text with one in it, as messages may show it: without passwords."""
    text = re.sub(r"://([^:/@\s]*):.*@", r"://\1:***@", str(storage))
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s]*", r"\1***", text)


def _place(storage: str | Path) -> tuple[str | None, Path | None]:
    """The URL of a storage, None in memory, and its file where it is in one."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if isinstance(storage, str) and storage.startswith("journal:"):
        raise StorageError(
            f"Cannot open the study storage {storage}: a journal has no URL; pass "
            "optuna.storages.JournalStorage(...) itself."
        )
    if isinstance(storage, str) and "://" in storage:
        try:
            url = make_url(storage)
        except (ArgumentError, ValueError):
            # Without its cause, which may quote the URL with its password.
            raise StorageError(
                f"Cannot open the study storage {shown(storage)}: it is not a database URL."
            ) from None
        name = url.database or ""
        if url.get_backend_name() != "sqlite":
            return storage, None
        if name in ("", ":memory:") or ":memory:" in name or url.query.get("mode") == "memory":
            return None, None
        return storage, None if name.startswith("file:") else Path(name)
    if str(storage) == ":memory:":
        return None, None
    path = Path(storage)
    rendered = URL.create("sqlite", database=str(path.resolve())).render_as_string(False)
    if make_url(rendered).database != str(path.resolve()):
        raise StorageError(f"The path {path} has characters that a URL cannot hold; rename it.")
    return rendered, path


def _check_file(path: Path, must_exist: bool) -> None:
    if must_exist and not path.is_file():
        raise StorageError(f"There is no study storage at {path}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise StorageError(
            f"Cannot write the study storage {path}: {error.strerror}. Give a path in a "
            "folder that you can write to."
        ) from error


def _requeue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    requeue(study, trial, max_retries=MAX_RETRIES)


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Say in one line that the storage fails, whatever it fails in."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        raise StorageError(
            f"The storage of the study {name!r} cannot be read or written any more: {reason}"
        ) from error


def _storage_reason(error: BaseException) -> str | None:
    """What went wrong in the storage, None where the error has another origin.

    Optuna asserts that a failing trial was stored, and looks up studies that may be gone.
    """
    from sqlalchemy.exc import SQLAlchemyError

    found: BaseException | None = None
    link: BaseException | None = error
    while link is not None:
        gone = isinstance(link, KeyError) and "Record does not exist" in str(link)
        if gone or isinstance(link, optuna.exceptions.StorageInternalError | SQLAlchemyError):
            found = link
        link = link.__cause__ or link.__context__
    if found is None:
        return None
    if isinstance(found, KeyError):
        return "the study is not there any more."
    return shown(str(found).splitlines()[0])
