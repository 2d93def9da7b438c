"""What the benchmarks of networks share: options, and results as JSON with versions and device."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import botorch
import gpytorch
import torch

ROOT = Path(__file__).resolve().parents[2]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks pfn {name}", description=doc)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--quick", action="store_true", help="smaller and fewer, in about a minute")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return made


def device() -> torch.device:
    """The GPU when there is one; on a CPU one thread, which is fastest for small matrices."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def write(name: str, options: argparse.Namespace, results: dict[str, Any], **versions: str) -> Path:
    """Write results with what they depend on; returns the file."""
    record = {
        "benchmark": f"pfn {name}",
        "quick": options.quick,
        "seed": options.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gpytorch": gpytorch.__version__,
            "botorch": botorch.__version__,
            **versions,
        },
        "device": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        **results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"pfn_{name}{'_quick' if options.quick else ''}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path
