"""Long benchmarks in pieces: parallel processes, and results that survive an interruption.

Every finished piece is one line of JSON; a run starts with the lines that are there. The file is
named by the code that made it, the benchmark's and what predictions pass through, and by the
versions of the libraries under it, so that other code starts anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import pfn
import priors
from benchmarks.pfn.common import ROOT

__all__ = ["cache_file", "describe", "network_file", "run"]

Task = tuple[str | float, ...]

_OF_PRIORS = "posteriors"  # the room that predictions pass through
_LIBRARIES = ("torch", "gpytorch", "botorch", "scikit-learn")


def network_file(name_or_path: str) -> tuple[str, str]:
    """Path of a network, and the start of the SHA-256 of its file.

    Within the folder of the run the path is relative: it is part of what identifies a piece, and
    another checkout has the same.
    """
    path = Path(name_or_path)
    if not path.exists():
        path = Path(pfn.__file__).parent / "checkpoints" / f"{name_or_path}.safetensors"
    pfn.load(path if path.exists() else name_or_path)  # fails early, with a message that helps
    path, here = path.resolve(), Path.cwd()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return str(path.relative_to(here) if path.is_relative_to(here) else path), digest


def describe(path: str, digest: str) -> dict[str, Any]:
    """Which network it was; tasks and seconds of all its trainings, the command of the last one."""
    network = pfn.load(path)
    return {
        "file": Path(path).name,
        "sha256": digest,
        "command": network.metadata.get("command"),
        "tasks": network.tasks_seen,
        "seconds": network.training_seconds,
    }


def cache_file(name: str, *sources: str, networks: bool = True) -> Path:
    """Where the pieces of a benchmark are kept, for this content of its source files.

    Args:
        name: Of the benchmark.
        sources: Its files.
        networks: Whether the pieces depend on the code of networks.
    """
    files = [*map(Path, sources)]
    if networks:
        files += sorted(Path(pfn.__file__).parent.rglob("*.py"))
        files += sorted((Path(priors.__file__).parent / _OF_PRIORS).glob("*.py"))
    parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    parts += [_version(library) for library in _LIBRARIES]
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return ROOT / "runs" / f"pfn-{name}" / f"{digest[:12]}.jsonl"


def run(
    function: Callable[..., dict[str, Any]],
    tasks: Sequence[Task],
    cache: Path,
    processes: int = 1,
) -> dict[Task, dict[str, Any]]:
    """`function(*task)` for every task that the cache lacks; all results by task.

    Args:
        function: A module's function; its result must be JSON.
        tasks: Arguments; they identify a result.
        cache: File of JSON lines; finished tasks are appended one by one.
        processes: How many at a time; each computes on one thread.
    """
    found = _read(cache)
    missing = [task for task in tasks if task not in found]
    cache.parent.mkdir(parents=True, exist_ok=True)
    if cache.exists() and not cache.read_bytes().endswith(b"\n"):  # cut off by an interruption
        with cache.open("a") as file:
            file.write("\n")
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), mininterval=5) as progress:

        def keep(task: Task, result: dict[str, Any]) -> None:
            found[task] = result
            with cache.open("a") as file:
                file.write(json.dumps({"task": task, "result": result}) + "\n")
            progress.update()

        if processes > 1 and len(missing) > 1:
            with ProcessPoolExecutor(
                processes, mp_context=get_context("spawn"), initializer=_one_thread
            ) as pool:
                futures = {pool.submit(function, *task): task for task in missing}
                for future in as_completed(futures):
                    keep(futures[future], future.result())
        else:
            for task in missing:
                progress.set_postfix_str(" ".join(str(word) for word in task[:3]))
                keep(task, function(*task))
    return {task: found[task] for task in tasks}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _one_thread() -> None:
    torch.set_num_threads(1)


def _read(cache: Path) -> dict[Task, dict[str, Any]]:
    found = {}
    for line in cache.read_text().splitlines() if cache.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half a line
            continue
        found[tuple(record["task"])] = record["result"]
    return found
