"""Which process runs a trial, and whether it still lives.

Optuna's heartbeat finds the trials of dead workers after two minutes, from anywhere. On the machine
where they ran one can look, so that a search that was killed goes on at once.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["WORKER", "here", "is_gone"]

WORKER = "worker"  # the user attribute that names it


def here(job: str = "") -> dict[str, str | int]:
    """This process, as it is kept with a trial.

    Args:
        job: Which job of the process runs the trial.
    """
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "started": _started(pid), "job": job}


def is_gone(worker: dict[str, str | int]) -> bool:
    """Whether it was a process of this machine and has ended; False if that cannot be seen.

    Args:
        worker: What `here` gave.
    """
    if worker.get("machine") != _machine():
        return False
    pid = int(worker["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's, so the number is in use
        pass
    return _started(pid) != worker["started"]


def _machine() -> str:
    """The machine, since it was booted, and the space in which process numbers are unique."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; numbers are used again. Empty if not known.

    A process that has ended and was not yet waited for has not begun.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
