"""How much time and memory do predictions at many queries take?

Mean, variance, quantiles and log density of y at 10,000 queries, by an exact process of a ReLU
network (as a Gaussian and a Student t process) and by BoTorch's `SingleTaskGP`, each in a process
of its own with one thread: the median of calls after a first one, and the growth of the peak
resident set over what imports and the model take. Hyperparameters are where they start, which does
not matter here. Goal: the peak of memory within 1.5 times that of `SingleTaskGP`.

    python -m benchmarks fits --queries            # a minute or two
    python -m benchmarks fits --queries --quick    # 2,000 queries
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.priors.kernels import run
from benchmarks.priors.measure import report

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "fits_queries.json"
MODELS = ("SingleTaskGP", "NNGP ReLU ARD", "NTK ReLU ARD", "Student-t NNGP ReLU ARD")
QUESTIONS = ("mean", "variance", "quantile", "log_prob")
_TRAINING_ROWS, _FEATURES = 300, 8


def measure(model: str, question: str, queries: int) -> None:
    """Print time and memory of one question to one model."""
    from benchmarks.bayes.competitors import COMPETITORS
    from benchmarks.bayes.problems import Problem
    from priors.posteriors.gaussian import as_predictive

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(_TRAINING_ROWS + queries, _FEATURES, generator=generator, dtype=torch.float64)
    Y = torch.sin(X[:, :1]) + 0.1 * torch.randn(len(X), 1, generator=generator).double()
    n = _TRAINING_ROWS
    fitted: Any = COMPETITORS[model](Problem(X[:n], Y[:n], X[n:], Y[n:]))
    process = fitted.model.eval()
    levels = torch.tensor([0.05, 0.95], dtype=torch.float64)
    ask: dict[str, Callable[[Any], Tensor]] = {
        "mean": lambda posterior: posterior.mean,
        "variance": lambda posterior: posterior.variance,
        "quantile": lambda posterior: posterior.quantile(levels),
        "log_prob": lambda posterior: as_predictive(posterior).log_prob(Y[n:]),
    }

    def call() -> Tensor:
        with torch.no_grad():
            return ask[question](process.posterior(X[n:], observation_noise=True))

    with torch.no_grad():  # what conditioning caches is not of the queries
        ask[question](process.posterior(X[n : n + 1], observation_noise=True))
    report(call, lambda values: values.flatten()[:3].tolist(), repeats=3)


def main(argv: list[str]) -> int:
    """Measure all, print and write the table; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fits --queries", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="2,000 queries; nothing is written")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one process")
    options = parser.parse_args(argv)
    queries = 2000 if options.quick else 10_000
    rows: list[dict[str, Any]] = []
    for question in QUESTIONS:
        for model in MODELS:
            command = [sys.executable, "-m", "benchmarks.bayes.queries", model, question]
            found = run([*command, str(queries)], 1, options.limit)
            found.pop("values", None)
            row = {"model": model, "question": question, **found}
            first = next(r for r in [*rows, row] if r["question"] == question)
            if "error" not in row and "error" not in first:
                row["time_ratio"] = row["median_s"] / first["median_s"]
                row["memory_ratio"] = row["peak_mib"] / first["peak_mib"]
            rows.append(row)
            print(line(row), flush=True)
    if not options.quick:
        record = {
            "queries": queries,
            "training_rows": _TRAINING_ROWS,
            "features": _FEATURES,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "measured": rows,
        }
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(row.get("memory_ratio", 2.0) > 1.5 for row in rows))


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    text = f"{row['question']:10s} {row['model']:26s}"
    if "error" in row:
        return f"{text} {row['error']}"
    ratios = f"  x {row['time_ratio']:.2f}  x {row['memory_ratio']:.2f}" * ("time_ratio" in row)
    return f"{text} {row['median_s']:8.3f} s {row['peak_mib']:8.0f} MiB{ratios}"


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
