"""Names that searches borrow from private parts of Optuna and BoTorch.

`tests/nas/test_compat.py` says what is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botorch.acquisition.multi_objective import logei
from optuna import Study
from optuna.distributions import BaseDistribution

__all__ = ["contains", "database_file", "stop_was_asked", "uncompiled"]


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution can give a value.

    Raises:
        ValueError: a value of the wrong kind.
    """
    return distribution._contains(distribution.to_internal_repr(value))


def stop_was_asked(study: Study) -> bool:
    """Whether `study.stop()` was called in the latest `study.optimize` of this object."""
    return study._stop_flag


def database_file(study: Study) -> Path | None:
    """The SQLite file that a study is stored in; None where it is in memory or elsewhere."""
    storage: Any = study._storage
    url = getattr(getattr(storage, "_backend", storage), "url", None)
    if url is None:
        return None
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    name = parsed.database or ""
    if parsed.get_backend_name() != "sqlite" or name in ("", ":memory:") or "file:" in name:
        return None
    return Path(name)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Acquisition functions of hypervolume are made without compiling BoTorch's C++ kernel.

    Compilation takes a minute, needs a compiler, and waits without end for a process that was
    killed while it compiled, as workers may be. Where the kernel is loaded already it is used.
    """
    before = logei._load_attempted
    logei._load_attempted = True
    try:
        yield
    finally:
        logei._load_attempted = before
