"""Benchmarks of many runs, each of which is a line of JSON: those that are there are not run again.

A run is told by what it was asked for, such as its method and its seed, which its line repeats
before what was measured. The same command may be started several times, for as many cores: each
takes runs that no other has begun.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmarks import records

__all__ = ["RESULTS", "carry_out", "folder", "parser_of"]

RESULTS = Path(__file__).resolve().parent / "results"
Record = dict[str, Any]


def parser_of(
    command: str, doc: str | None, out: Path, *, data: str | None = None
) -> argparse.ArgumentParser:
    """The options that all of them have.

    Args:
        command: What stands behind `python -m benchmarks`.
        doc: What `--help` says.
        out: Where results are kept unless `--out` says otherwise.
        data: The folder of WIDEPRIOR_DATA that is read, "uci" or "nas"; None reads none.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {command}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if data is not None:
        at = os.environ.get("WIDEPRIOR_DATA")
        usual = None if at is None else Path(at) / data
        tables = "UCI sets, NAME.npz" if data == "uci" else "the tables"
        parser.add_argument("--data", type=Path, default=usual, help=f"folder of {tables}")
    parser.add_argument("--out", type=Path, default=out, help="file of results, JSON lines")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.set_defaults(command=command)
    return parser


def folder(options: argparse.Namespace) -> Path:
    """Where the data are.

    Raises:
        FileNotFoundError: nothing was said, or it is no folder.
    """
    at: Path | None = options.data
    if at is None or not at.is_dir():
        raise FileNotFoundError("--data FOLDER of the tables is needed, or WIDEPRIOR_DATA.")
    return at


def carry_out(
    options: argparse.Namespace,
    wanted: Iterable[Record],
    measure: Callable[..., Record],
    report: Callable[[list[Record]], str],
    packages: Sequence[str] = ("torch",),
) -> int:
    """Run what is missing and print what is there.

    Args:
        options: Of a `parser_of`.
        wanted: What tells each run from the others, in the order in which they run.
        measure: Takes that as keyword arguments and returns what is kept of the run.
        report: From all lines of the file to a text.
        packages: Whose versions a line bears.

    Returns:
        The exit status, 2 where data are missing.
    """
    torch.set_num_threads(1)
    if not options.table:
        missing = [run for run in wanted if not _is_there(run, options.out)]
        made_with = {"machine": platform.machine(), "versions": {p: version(p) for p in packages}}
        try:
            for run in tqdm(missing, desc="runs"):
                with _claim(run, options.out) as claimed:
                    if claimed and not _is_there(run, options.out):
                        records.append(options.out, {**run, **measure(**run), **made_with})
        except FileNotFoundError as error:
            print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
            return 2
    print(report(records.read(options.out)))
    return 0


def _is_there(run: Record, out: Path) -> bool:
    return any(run.items() <= each.items() for each in records.read(out))


@contextmanager
def _claim(run: Record, out: Path) -> Iterator[bool]:
    """Whether no other process is at this run; the system lets go of it when the process ends."""
    about = json.dumps([str(out.resolve()), run], sort_keys=True)
    name = f"wideprior-run-{hashlib.sha256(about.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
