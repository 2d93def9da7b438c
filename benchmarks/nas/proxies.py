"""Do scores without training order networks as training does, and better than their size?

Task: digits, the space, split and training of `examples/digits_study.py` at fixed hyperparameters.
Random networks of the space are trained once each; the rank correlation of each proxy with minus
the validation log loss, and its 95% interval by bootstrap over networks. The sign of a proxy says
which way it goes: the evidence, NASWOT and the flow should be positive, the condition number and
the predicted error negative. Parameters and FLOPs are the control.

    python -m benchmarks search proxies            # 50 networks
    python -m benchmarks search proxies --quick    # 8 networks

Each network is one line of a file under `runs/`, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from benchmarks.commands import command
from benchmarks.nas.digits import ROOT, load_study
from nas.proxies import PROXIES, ProxyScores

LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
NUM_ROWS = 64


def run_network(seed: int) -> dict[str, Any]:
    """Validation log loss in nats, scores and their CPU seconds of one random network."""
    study_file = load_study()
    rows = study_file.digits()
    graph = study_file.SPACE.random(torch.Generator().manual_seed(seed))
    start = time.process_time()
    network = study_file.train(graph, LEARNING_RATE, WEIGHT_DECAY, seed=seed)
    result: dict[str, Any] = {
        "seed": seed,
        "validation": study_file.log_loss(network, "validation"),
        "cpu_seconds": {"training": time.process_time() - start},
    }
    for name in PROXIES:
        scores = ProxyScores([name], rows["train"].X, rows["train"].y, max_rows=NUM_ROWS)
        start = time.process_time()
        (result[name],) = scores(graph)
        result["cpu_seconds"][name] = time.process_time() - start
    return result


def interval(scores: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """95% of the rank correlation by 2,000 bootstrap samples of the networks."""
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    found = [spearmanr(scores[rows], values[rows]).statistic for rows in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def main(argv: list[str] | None = None) -> int:
    """Train and score the networks, write JSON, print the correlations."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks search proxies", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="8 networks")
    parser.add_argument("--networks", type=int, help="how many (50)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    number = options.networks or (8 if options.quick else 50)
    torch.set_num_threads(1)
    lines = ROOT / "runs" / "search-proxies" / "networks.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.touch()
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    done = {result["seed"] for result in results}
    for seed in tqdm([seed for seed in range(number) if seed not in done], desc="networks"):
        results.append(run_network(seed))
        with lines.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    results = sorted(results, key=lambda result: result["seed"])[:number]
    values = -np.array([result["validation"] for result in results])
    seconds = {
        name: float(np.median([result["cpu_seconds"][name] for result in results]))
        for name in ("training", *PROXIES)
    }
    summary: dict[str, Any] = {}
    print(f"{'proxy':<16} {'Spearman':>8}   95% interval      CPU seconds")
    for name in PROXIES:
        scores = np.array([result[name] for result in results])
        known = np.isfinite(scores)
        rank = float(spearmanr(scores[known], values[known]).statistic)
        low, high = interval(scores[known], values[known])
        summary[name] = {
            "spearman": rank, "low": low, "high": high, "missing": int((~known).sum()),
            "cpu_seconds": seconds[name],
        }  # fmt: skip
        print(f"{name:<16} {rank:>8.2f}   [{low:+.2f}, {high:+.2f}]   {seconds[name]:>10.4f}")
    print(f"one training: {seconds['training']:.2f} CPU seconds")
    record = {
        "benchmark": "scores without training against validation log loss on digits",
        "command": command("search proxies", argv),
        "networks": number,
        "rows": NUM_ROWS,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "training_cpu_seconds": seconds["training"],
        "summary": summary,
        "runs": results,
    }
    name = "search_proxies_quick" if options.quick else "search_proxies"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0
