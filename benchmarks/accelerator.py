"""One command that fills minutes on an accelerator: does all run there, how fast, and train.

In this order, each within a limit of its own, and what a part leaves over goes to those behind it:

* tests: `pytest -m gpu`, in at most 30% of the time;
* kernels: those of `benchmarks kernels` and a fit of an exact Gaussian process, beside the CPU, in
  at most 12%;
* probe: tasks per second of PFN training, the share of the time that drawing tasks takes, the share
  of the device's rate in matrix products, in at most 15%;
* train: the shipped networks from their present weights, with the settings that the probe chose, in
  the order given, as many as there is time for and for equal times. Each is saved every minute.

Whatever is done is in FOLDER at once, so that a run that is killed loses one minute:
`accelerator.json`, the table `accelerator.txt` and the networks, at most seven files. A part that
fails or runs out of time is told in the table; the exit status is 0 all the same, and 1 only where
nothing could be run. Networks are not certified here: `python -m pfn certify FILE --out FILE`.

    python -m benchmarks accelerator --minutes 7 --out FOLDER
    python -m benchmarks accelerator --minutes 2 --out FOLDER --device cpu   # a rehearsal
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "kernels", "probe", "train")
SHARES = {"tests": 0.3, "kernels": 0.12, "probe": 0.15}
NETWORKS = ("regression", "bo", "classification", "learning-curve")
START = 20.0  # seconds that a training takes before its first step and after its last one
LEAST = 5.0  # seconds of training that are worth it
WORKERS = 6  # that run tests at once, where pytest-xdist is there
_WORDS = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
_OUTCOME = re.compile(rf"^(\S+::\S.*?) {_WORDS}|^\[gw\d+\].*?{_WORDS} (\S+::.*?)\s*$")


class Run:
    """What was done so far, on disk after every change.

    Args:
        out: Folder for the results.
        device: "cuda" or "cpu".
        seconds: Of the whole run.
    """

    def __init__(self, out: Path, device: str, seconds: float) -> None:
        self.out, self.device = out, device
        self.started = time.monotonic()
        self.ends = self.started + seconds
        self.record: dict[str, Any] = {
            "question": (__doc__ or "").splitlines()[0],
            "device": device,
            "minutes": seconds / 60,
            "versions": {"python": platform.python_version()},
            "parts": {},
        }
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - time.monotonic()

    def part(self, name: str) -> dict[str, Any]:
        """The record of a part, made when it begins."""
        return self.record["parts"].setdefault(name, {"rows": []})  # type: ignore[no-any-return]

    def write(self) -> None:
        """Both files."""
        self.record["seconds"] = round(time.monotonic() - self.started, 1)
        for name, text in (
            ("accelerator.json", json.dumps(self.record, indent=1) + "\n"),
            ("accelerator.txt", table(self.record) + "\n"),
        ):
            partial = self.out / f".{name}.partial"
            partial.write_text(text)
            partial.replace(self.out / name)


def follow(command: list[str], limit: float, heard: Callable[[str], None]) -> str:
    """Run a command, hand on its lines as they come, and end it when its time is over.

    Returns:
        "done", "out of time", or the exit status with the last line.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10"},
        start_new_session=True,
    )
    last = ""

    def read() -> None:
        nonlocal last
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                last = line.strip() or last
                print(line, end="", flush=True)
                heard(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        status = process.wait(timeout=max(0.0, limit))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        _end(process)
        reader.join(timeout=5)
    return "done" if status == 0 else f"exit status {status}: {last[:200]}"


def _end(process: subprocess.Popen[str]) -> None:
    """The command with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue


def results(run: Run, rows: list[dict[str, Any]], *keys: str) -> Callable[[str], None]:
    """Takes lines that begin with RESULT as rows; one replaces an earlier one of the same keys."""

    def heard(line: str) -> None:
        if not line.startswith("RESULT "):
            return
        row = json.loads(line.removeprefix("RESULT "))
        rows[:] = [old for old in rows if any(old[key] != row[key] for key in keys)]
        rows.append(row)
        run.write()

    return heard


def tests(run: Run, limit: float) -> None:
    """The tests marked `gpu`."""
    part = run.part("tests")
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"\bgpu\b|\bdevice\b", path.read_text())
    )
    outcomes: dict[str, list[str]] = {}
    tail: list[str] = []

    def heard(line: str) -> None:
        tail.append(line)
        del tail[:-300]
        found = _OUTCOME.match(line)
        if found:
            word, test = found[2] or found[3], found[1] or found[4]
            outcomes.setdefault(word.lower(), []).append(test)
            part["counts"] = {name: len(which) for name, which in outcomes.items()}
            part["failed"] = outcomes.get("failed", []) + outcomes.get("error", [])
            run.write()

    # Warnings of other versions of the libraries are no faults of ours, and must not end a test.
    options = ["-m", "gpu", "-vv", "--tb=short", "-W", "default", "-p", "no:cacheprovider"]
    options.append("--continue-on-collection-errors")
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    part["status"] = follow([sys.executable, "-m", "pytest", *options, *files], limit, heard)
    if part["status"].startswith("exit status 5"):  # no test has the mark
        part["status"] = "done"
    if part.get("failed"):
        part["output"] = "\n".join(tail)


def kernels(run: Run, limit: float) -> None:
    """Kernels and a fit, beside the CPU."""
    part = run.part("kernels")
    command = [sys.executable, "-m", "benchmarks.priors.devices", run.device]
    part["status"] = follow(command, limit, results(run, part["rows"], "case", "dtype"))


def probe(run: Run, limit: float, networks: list[str], try_compile: bool) -> None:
    """Rates of training."""
    part = run.part("probe")
    command = [sys.executable, "-m", "benchmarks.pfn.device_rates", run.device]
    command += [f"{0.6 * limit:.0f}", "compile" if try_compile else "eager", *networks]
    part["status"] = follow(command, limit, results(run, part["rows"], "network"))


def train(run: Run, networks: list[str], state: Path) -> None:
    """Continue the networks in turn; what one does not use goes to the others."""
    part = run.part("train")
    probed = {row["network"]: row for row in run.part("probe")["rows"] if "config" in row}
    statuses = []
    for index, name in enumerate(networks):
        row: dict[str, Any] = {"network": name}
        part["rows"].append(row)
        possible = min(len(networks) - index, int(run.left // (START + LEAST)))
        if possible < 1:
            row["status"] = f"left out: {run.left:.0f} s were left, {START + LEAST:.0f} are needed"
            continue
        slot = run.left / possible
        out = run.out / f"{name}.safetensors"
        command = [sys.executable, "-m", "pfn", "train", name, "--initial", name]
        command += ["--minutes", f"{(slot - START) / 60:.4g}", "--device", run.device]
        command += ["--out", str(out), "--state", str(state), "--save-every", "60"]
        command += ["--no-certificate"]
        if name in probed:
            settings = state / f"{name}.settings.json"
            settings.write_text(json.dumps(probed[name]["config"]))
            command += ["--config", str(settings), "--no-probe"]
        run.write()
        # Not to the end of its slot: where starting takes longer, fewer networks are trained.
        row["status"] = follow(command, run.left, lambda line: None)
        row |= learnt(state / f"{name}.jsonl")
        row["file"] = out.name if out.exists() else None
        statuses.append(row["status"])
        run.write()
    part["status"] = "done" if set(statuses) <= {"done", "out of time"} else "see the rows"


def learnt(log: Path) -> dict[str, Any]:
    """Of the log of a training: tasks, seconds, held-out losses before and after."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    losses = [line["held_out"] for line in lines if "held_out" in line]
    steps = [line for line in lines if "tasks" in line]
    found: dict[str, Any] = {"tasks": 0, "seconds": 0.0}
    if steps:
        last = steps[-1]
        found = {"tasks": last["tasks"], "seconds": round(last["seconds"], 1)}
        found |= {"steps": last["step"], "skipped": last["skipped"]}
        found["tasks_per_second"] = last["tasks"] / max(last["seconds"], 1e-9)
    if losses:
        found |= {"held_out_before": losses[0], "held_out_after": min(losses)}
    return found


def table(record: dict[str, Any]) -> str:
    """All results as text."""
    parts = record["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    name = record.get("name", record["device"])
    lines = [f"{name}; {versions}; {record['seconds']:.0f} of {60 * record['minutes']:.0f} s"]
    for part in parts:
        lines += ["", f"{part}: {parts[part].get('status', 'in progress')}"]
        match part:
            case "tests":
                counts = parts[part].get("counts", {})
                told = ", ".join(f"{count} {which}" for which, count in sorted(counts.items()))
                lines.append(f"  {told or 'none ran'}")
                lines += [f"  failed: {test}" for test in parts[part].get("failed", [])]
            case "kernels":
                lines.append(f"  {'':26} {'':8} {'device s':>10} {'CPU s':>10} ratio difference")
                lines += [_kernel_line(row) for row in parts[part]["rows"]]
            case "probe":
                lines += [_probe_line(row) for row in parts[part]["rows"]]
            case "train":
                lines += [_train_line(row) for row in parts[part]["rows"]]
    return "\n".join(lines)


def _kernel_line(row: dict[str, Any]) -> str:
    start = f"  {row['case']:26} {row['dtype']:8}"
    if "error" in row:
        return f"{start} {row['error']}"
    ratio = row["cpu_s"] / row["device_s"]
    return (
        f"{start} {row['device_s']:10.4f} {row['cpu_s']:10.4f} {ratio:5.1f} {row['difference']:.0e}"
    )


def _probe_line(row: dict[str, Any]) -> str:
    start = f"  {row['network']:15}"
    if "config" not in row:
        return f"{start} {row['error']}"
    config = row["config"]
    text = (
        f"{start} {row['tasks_per_second']:9.1f} tasks/s, {row['drawing']:.0%} of the time drawing,"
        f" batch {config['batch']}, {config['precision']}{', compiled' * config['compile']}"
    )
    if "share_of_peak" in row:
        text += f", {row['share_of_peak']:.1%} of peak"
    if row["memory_gib"] is not None:
        text += f", {row['memory_gib']:.1f} GiB"
    return text + (f"; {row['error']}" if "error" in row else "")


def _train_line(row: dict[str, Any]) -> str:
    text = f"  {row['network']:15}"
    if row.get("seconds"):
        text += (
            f" {row['tasks']:,} tasks in {row['seconds']:.0f} s ({row['tasks_per_second']:.0f}/s), "
            f"{row['skipped']} of {row['steps']} steps left out"
        )
    if "held_out_before" in row:
        text += f", held-out {row['held_out_before']:.4f} to {row['held_out_after']:.4f}"
    return f"{text} ({row.get('status', 'in progress')})"


def main(argv: list[str]) -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accelerator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, required=True, help="of the whole run")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and networks")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="the GPU when there is one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compile", action="store_true", help="let the probe try torch.compile")
    options = parser.parse_args(argv)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes:g}")

    import torch

    there = torch.cuda.is_available()
    device = options.device or ("cuda" if there else "cpu")
    if device == "cuda" and not there:
        parser.error("--device cuda: torch finds no CUDA device; leave it out, or say --device cpu")
    if device == "cpu":  # one is fastest for small matrices, and least disturbed by others' work
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    total = 60 * options.minutes
    run = Run(options.out.resolve(), device, total)
    run.record["versions"]["torch"] = torch.__version__
    run.record["name"] = torch.cuda.get_device_name() if device == "cuda" else _processor()
    run.record["networks"] = options.networks
    # Long enough to use the whole time where a part before it is not asked for or ends early.
    share = {name: SHARES.get(name, 0.0) for name in options.parts}
    scale = 1.0 if "train" in options.parts else 1 / sum(share.values())
    with tempfile.TemporaryDirectory() as state:
        for name in PARTS:
            if name not in options.parts:
                continue
            limit = min(run.left, scale * share[name] * total)
            run.part(name)
            run.write()
            if run.left <= 0:
                run.part(name)["status"] = "no time was left"
            elif name == "tests":
                tests(run, limit)
            elif name == "kernels":
                kernels(run, limit)
            elif name == "probe":
                probe(run, limit, options.networks, options.compile)
            else:
                train(run, options.networks, Path(state))
            run.write()
    print("\n" + table(run.record))
    return 0


def _processor() -> str:
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
