"""Are the infinite-width kernels as fast and as small in memory as neural-tangents'?

Competitor: neural-tangents 0.6.5 on jax 0.5.3, jitted, in an environment of its own that
`make neural-tangents` makes. Both sides run on the same machine in the same run, each case in a
process of its own with the same threads; the first call, with compilation, is reported apart from
the median of the later ones. Memory is the growth of the peak resident set over what imports and
inputs take. Cases: fully connected ReLU depth 3 (NNGP and NTK together); four 3x3 convolutions on
16x16x3 with global average pooling and with Flatten; a self-attention block on 16 tokens; value
and gradient of the marginal likelihood in all variances. Also the ratio of the fully connected
kernels at n = 4000 to one product of two 4000 x 4000 matrices.

Goals: at least 2 times faster on K(X, X), not slower on K(X, Z), memory no higher.

    python -m benchmarks kernels            # all cases, float32 and float64: about 10 minutes
    python -m benchmarks kernels --quick    # the small ones
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from benchmarks.priors.measure import CASES

ROOT = Path(__file__).resolve().parents[2]
THEIRS = ROOT / ".venv-neural-tangents" / "bin" / "python"


def run(command: list[str], threads: int, limit: float) -> dict[str, Any]:
    """Result of one side, or the reason why there is none."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    cores = sorted(os.sched_getaffinity(0))[:threads]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
            cwd=ROOT,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {limit:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            for other in done.stdout.splitlines():
                if other.startswith("BANDWIDTH "):
                    share, rate = other.split()[1:]
                    result |= {"bandwidth_share": float(share), "copy_gb_s": float(rate)}
            return result
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"exit status {done.returncode}: {last[:200]}"}


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference relative to the largest value, of each kernel on its own."""
    pairs = zip(ours, theirs, strict=True)
    return max(
        float(numpy.abs(numpy.array(a) - numpy.array(b)).max() / numpy.abs(numpy.array(b)).max())
        for a, b in pairs
    )


def matmul_seconds(n: int, dtype: torch.dtype, threads: int) -> float:
    """Median seconds of one product of two n x n matrices."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(n, n, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return float(numpy.median(times[1:]))


def main(argv: list[str]) -> int:
    """Run both sides, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="only cases that take seconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one process")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    both = THEIRS.exists()
    if not both:
        print("neural-tangents is not there; `make neural-tangents` installs it. Ours alone:")
    slow = {"fc 4000", "fc 4000 xz", "fc 10000"}
    cases = [c for c in CASES if not (options.quick and c in slow)]
    rows: list[dict[str, Any]] = []
    plan = [
        (case, dtype)
        for case in cases
        for dtype in ("float32", "float64")
        # in single precision the Cholesky factor of this kernel may fail on either side
        if not (case.startswith("likelihood") and dtype == "float32")
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case, dtype in tqdm(plan, desc="cases", leave=False, disable=None):
        repeats = [case, dtype, str(options.repeats)]
        own = [sys.executable, "-m", "benchmarks.priors.ours", *repeats]
        row: dict[str, Any] = {"case": case, "dtype": dtype}
        row["ours"] = run([*own, "cpu"], options.threads, options.limit)
        if both:
            script = str(ROOT / "benchmarks" / "priors" / "theirs.py")
            command = [str(THEIRS), script, *repeats]
            row["theirs"] = run(command, options.threads, options.limit)
        if device != "cpu":
            row["ours_cuda"] = run([*own, device], options.threads, options.limit)
        rows.append(row)
        print(line(row), flush=True)
    products = {
        dtype: matmul_seconds(4000, getattr(torch, dtype), options.threads)
        for dtype in ("float32", "float64")
    }
    for row in rows:
        if row["case"] == "fc 4000" and "median_s" in row["ours"]:
            ratio = row["ours"]["median_s"] / products[row["dtype"]]
            row["ratio_to_matmul"] = ratio
            print(f"fc 4000 {row['dtype']}: {ratio:.2f} times one 4000 x 4000 matrix product")
    record = {
        "question": __doc__.splitlines()[0],
        "device": platform.processor() or platform.machine(),
        "cuda": torch.cuda.get_device_name() if device != "cpu" else None,
        "threads": options.threads,
        "seed": 0,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "neural-tangents": "0.6.5" if both else None,
            "jax": "0.5.3" if both else None,
        },
        "matmul_4000_s": products,
        "cases": rows,
    }
    name = "kernels_quick" if options.quick else "kernels"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    ours, theirs = row["ours"], row.get("theirs")
    text = f"{row['case']:26s} {row['dtype']:8s}"
    if "error" in ours:
        return f"{text} ours: {ours['error']}"
    text += f" ours {ours['median_s']:8.4f} s {ours['peak_mib']:7.0f} MiB"
    if theirs is not None and "error" in theirs:
        text += f"  theirs: {theirs['error']}"
    elif theirs is not None:
        row["speedup"] = theirs["median_s"] / ours["median_s"]
        row["difference"] = difference(_list(ours["values"]), _list(theirs["values"]))
        text += (
            f"  theirs {theirs['median_s']:8.4f} s {theirs['peak_mib']:7.0f} MiB"
            f" (first call {theirs['first_s']:5.2f} s)  {row['speedup']:5.2f} times faster"
            f"  difference {row['difference']:.0e}"
        )
    if "ours_cuda" in row:
        cuda = row["ours_cuda"]
        text += f"  cuda {cuda.get('median_s', cuda)}"
    return text


def _list(values: Any) -> Any:
    return values if isinstance(values[0], list) else [values]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
