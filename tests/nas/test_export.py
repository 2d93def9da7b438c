"""A network out of a study, and the commands that resume and export one."""

import importlib.util
import sys

import optuna
import pytest
import torch
from optuna.trial import create_trial

import nas
from nas.__main__ import main
from nas.architectures.operations import OPERATIONS
from nas.studies.export import architecture_code
from nas.trials import _parsed

SCRIPT = """
import torch
import nas
from nas.testing import SyntheticObjective

SPACE = nas.spaces.MLPSpace(4, 2, depth=(1, 2), widths=(4, 8))
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 2

def objective(trial):
    torch.manual_seed(trial.number)
    network = nas.suggest(trial, SPACE).build()
    rate = trial.suggest_float("rate", 0.0, 1.0)
    nas.keep_predictions(trial, network, network(X), Y)
    return torch.nn.functional.cross_entropy(network(X), Y).item()

def plain(trial):
    return float(nas.suggest(trial, SPACE).num_parameters)
"""

OWN_OPERATION = """
import torch
import nas

class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x

nas.register_operation("doubled", lambda shapes: (Doubled(), shapes[0]))
SPACE = nas.spaces.Grammar(
    (3,),
    {"network": nas.spaces.sequence("layer", nas.spaces.op("linear", out_features=2)),
     "layer": [nas.spaces.op("doubled"), nas.spaces.sequence("layer", "layer")]},
    output_shape=(2,),
)

def objective(trial):
    return float(nas.suggest(trial, SPACE).num_parameters)
"""


def imported(path):
    spec = importlib.util.spec_from_file_location(f"exported_{abs(hash(str(path)))}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "exported_objective.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def storage(script):
    """A study of three trials that kept their networks."""
    path = script.with_name("study.db")
    assert main(started(script, path)) == 0
    return path


def started(script, storage, name="objective"):
    return [
        "search", "--objective", f"{script}:{name}", "--space", f"{script}:SPACE",
        "--storage", str(storage), "--trials", "3", "--seed", "0", "--no-progress",
    ]  # fmt: skip


def test_code_of_an_architecture_is_that_architecture():
    space = nas.spaces.CellSpace(3, image_size=4, channels=2, num_cells=2)
    for graph in (
        space.random(torch.Generator().manual_seed(0)),
        nas.spaces.MLPSpace(4, 2, residual=True).random(torch.Generator().manual_seed(1)),
    ):
        names = {"Architecture": nas.Architecture, "Node": nas.Node}
        assert eval(architecture_code(graph), names) == graph


def test_the_best_is_exported_with_its_weights(script, storage, tmp_path, capsys):
    assert (
        main(["export", "--storage", str(storage), "--out", str(tmp_path), "--ensemble", "2"]) == 0
    )
    printed = capsys.readouterr().out.split()
    names = ["network.py", "weights.safetensors", "ensemble.safetensors"]
    assert printed == [str(tmp_path / name) for name in names]
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{storage}")
    exported, given = imported(tmp_path / "network.py"), imported(script)
    network = exported.build()
    loss = torch.nn.functional.cross_entropy(network(given.X), given.Y)
    assert float(loss.detach()) == pytest.approx(study.best_value)
    assert exported.HYPERPARAMETERS == study.best_trial.params
    assert exported.ARCHITECTURE == nas.architecture_of(study.best_trial)
    pool = nas.Ensemble.load(tmp_path / "ensemble.safetensors")
    expected = nas.ensemble(study, 2)
    assert pool.trials == expected.trials
    torch.testing.assert_close(pool(given.X), expected(given.X))


def test_resume_goes_on_from_anywhere(storage, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{storage}")
    before = len(study.trials)
    options = ["--trials", "1", "--no-progress", "--timeout", "1000"]
    assert main(["resume", "--storage", str(storage), *options]) == 0
    assert f"complete   {before + 1}" in capsys.readouterr().out
    assert len(study.trials) == before + 1
    assert set(study.trials[-1].params) == set(study.trials[0].params)


def test_status_has_a_table_of_the_best(storage, capsys):
    assert main(["status", "--storage", str(storage)]) == 0
    lines = capsys.readouterr().out.splitlines()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{storage}")
    heading = next(k for k, line in enumerate(lines) if line.split()[:2] == ["trial", "value"])
    assert lines[heading].split()[4:] == sorted(study.best_trial.params)
    assert lines[heading + 1].split()[0] == str(study.best_trial.number)
    values = [float(line.split()[1]) for line in lines[heading + 1 :]]
    assert values == sorted(values)
    assert len({len(line) for line in lines[heading:]}) == 1


def test_without_weights_the_code_builds_a_fresh_network(script, tmp_path, capsys):
    storage = tmp_path / "plain.db"
    assert main(started(script, storage, "plain")) == 0
    out = tmp_path / "best"
    arguments = ["export", "--storage", str(storage), "--out", str(out)]
    assert main([*arguments, "--trial", "1"]) == 0
    assert "no weights: the trial kept none" in capsys.readouterr().out
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{storage}")
    network = imported(out / "network.py").build()
    assert sum(p.numel() for p in network.parameters()) == study.trials[1].value
    assert main([*arguments, "--trial", "9"]) == 1
    assert "has no complete trial 9" in capsys.readouterr().err
    assert main([*arguments, "--ensemble", "2"]) == 1
    assert "call nas.keep_predictions" in capsys.readouterr().err


def test_what_cannot_be_exported_or_resumed(storage, tmp_path, capsys):
    front = optuna.create_study(directions=["minimize", "minimize"], study_name="two")
    front.add_trial(create_trial(values=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"on the Pareto front: \[0\]"):
        nas.export(front, tmp_path)
    with pytest.raises(ValueError, match="Trial 0 has no architecture"):
        nas.export(front, tmp_path, trial=0)
    with pytest.raises(ValueError, match="no complete trial yet"):
        nas.export(optuna.create_study(), tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert main(["export", "--storage", str(storage), "--out", str(file)]) == 1
    assert "Give --out a folder" in capsys.readouterr().err
    assert main(["export", "--storage", str(storage), "--out", str(tmp_path), "--kept", "x"]) == 1
    assert "pass the folder where it is now" in capsys.readouterr().err
    optuna.create_study(study_name="foreign", storage=f"sqlite:///{storage}")
    assert main(["resume", "--storage", str(storage), "--study", "foreign", "--trials", "1"]) == 1
    assert "was not started by `nas search`" in capsys.readouterr().err


def test_operations_of_the_script_are_known_to_every_command(tmp_path, capsys, monkeypatch):
    """Other processes import what registers them; the registration is undone here meanwhile."""
    script = tmp_path / "own_operation.py"
    script.write_text(OWN_OPERATION)
    storage = tmp_path / "study.db"
    known = dict(OPERATIONS)
    assert main(started(script, storage)) == 0
    for command in (["status"], ["report", "--out", str(tmp_path / "r.html")],
                    ["export", "--out", str(tmp_path / "best")]):  # fmt: skip
        OPERATIONS.clear()
        OPERATIONS.update(known)
        sys.modules.pop("own_operation")
        _parsed.cache_clear()
        assert main([*command, "--storage", str(storage)]) == 0, capsys.readouterr().err
    code = (tmp_path / "best" / "network.py").read_text()
    assert "import own_operation  # noqa: F401  # registers 'doubled'" in code
    OPERATIONS.clear()
    OPERATIONS.update(known)
    sys.modules.pop("own_operation")
    assert imported(tmp_path / "best" / "network.py").build()(torch.ones(1, 3)).shape == (1, 2)
    OPERATIONS.pop("doubled")
