"""The command that fills minutes on an accelerator: limits, what is kept, the table."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import Run, follow, learnt, results, table, train
from pfn import load

ROOT = Path(accelerator.__file__).resolve().parents[1]


def python(text):
    return [sys.executable, "-c", text]


def test_a_command_ends_with_its_time_and_all_that_it_started(tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w').close()"
    text = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}])"
    heard = []
    started = time.monotonic()
    status = follow(python(text + "; print('here', flush=True); time.sleep(60)"), 2, heard.append)
    assert status == "out of time"
    assert heard == ["here"]
    assert time.monotonic() - started < 20
    time.sleep(4)
    assert not mark.exists()


def test_what_a_command_says_of_its_end():
    assert follow(python("print(1)"), 60, lambda line: None) == "done"
    status = follow(python("print('why'); raise SystemExit(3)"), 60, lambda line: None)
    assert status == "exit status 3: why"


def test_results_are_on_disk_as_they_come(tmp_path, capsys):
    run = Run(tmp_path, "cpu", 60)
    heard = results(run, run.part("kernels")["rows"], "case")
    row = {"case": "fc", "dtype": "float32", "device_s": 1.0, "cpu_s": 2.0, "difference": 1e-7}
    heard("some warning")
    heard("RESULT " + json.dumps(row))
    heard("RESULT " + json.dumps({**row, "device_s": 0.5}))
    kept = json.loads((tmp_path / "accelerator.json").read_text())["parts"]["kernels"]["rows"]
    assert [row["device_s"] for row in kept] == [0.5]
    assert " 4.0 1e-07" in (tmp_path / "accelerator.txt").read_text()


def test_networks_are_trained_in_order_as_far_as_time_goes(tmp_path, monkeypatch):
    """Settings of the probe are passed on; what a training leaves over goes to the next."""
    commands = []

    def instead(command, limit, heard):
        commands.append((command, limit))
        state = Path(command[command.index("--state") + 1])
        name = command[command.index("train") + 1]
        lines = [
            {"step": 0, "seconds": 0.0, "held_out": 1.5},
            {"step": 40, "loss": 1.0, "tasks": 800, "seconds": 4.0, "skipped": 1},
            {"step": 40, "seconds": 4.0, "held_out": 1.25},
        ]
        (state / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return "done"

    monkeypatch.setattr(accelerator, "follow", instead)
    run = Run(tmp_path / "out", "cpu", 60)
    config = {"batch": 64, "precision": "32-true", "compile": False}
    rate = {"network": "bo", "config": config, "tasks_per_second": 99.0, "drawing": 0.25}
    run.part("probe")["rows"].append({**rate, "memory_gib": None, "share_of_peak": 0.5})
    train(run, ["bo", "regression", "classification"], tmp_path)
    (first, limit), (second, _), _ = commands
    assert 58 < limit <= 60
    minutes = [float(command[command.index("--minutes") + 1]) for command, _ in commands]
    assert all(8 < 60 * each < 10.1 for each in minutes[:2])  # two of them have time to start
    assert 38 < 60 * minutes[2] < 40.1
    assert json.loads(Path(first[first.index("--config") + 1]).read_text()) == config
    assert "--no-probe" in first
    assert "--config" not in second
    assert first[first.index("--initial") + 1] == "bo"
    run.write()
    text = table(run.record)
    assert "99.0 tasks/s, 25% of the time drawing, batch 64, 32-true, 50.0% of peak" in text
    assert "800 tasks in 4 s (200/s), 1 of 40 steps left out, held-out 1.5000 to 1.2500" in text
    for seconds in (10, 0, -60):  # a part before may have ended late
        late = Run(tmp_path / "late", "cpu", seconds)
        train(late, ["bo", "regression"], tmp_path)
        assert all("left out" in row["status"] for row in late.part("train")["rows"])


def test_a_log_that_ends_early(tmp_path):
    assert learnt(tmp_path / "none.jsonl") == {"tasks": 0, "seconds": 0.0}


def test_options_are_checked(capsys, tmp_path):
    with pytest.raises(SystemExit):
        accelerator.main(["--minutes", "0", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        accelerator.main(["--minutes", "1", "--out", str(tmp_path), "--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_two_minutes_on_a_cpu_from_a_tree_of_tracked_files(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: what is tracked is not known")
    tree, out = tmp_path / "tree", tmp_path / "out"
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "benchmarks", "accelerator", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--minutes", "2", "--out", str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((out / "accelerator.json").read_text())
    parts = record["parts"]
    assert record["seconds"] < 130
    assert not parts["tests"].get("failed")
    assert parts["tests"]["counts"]["skipped"] > 20  # on a CPU, each with a reason
    assert len(parts["kernels"]["rows"]) >= 2
    assert all("error" not in part for name in parts for part in parts[name]["rows"])
    assert parts["train"]["rows"][0]["tasks"] > 0
    network = load(out / "regression.safetensors")
    assert len(network.trainings) > len(load("regression").trainings)
    assert (out / "accelerator.txt").read_text().strip() in done.stdout
    assert len(list(out.iterdir())) <= 7
