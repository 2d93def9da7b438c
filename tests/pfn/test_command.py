"""The command line: train, certify, predict, show; and the recipes behind it."""

import dataclasses
import functools
import json
import sys

import pytest
import torch

import pfn
from pfn.__main__ import main
from pfn.checkpoints.recipes import RECIPES

OWN_PRIOR = """
from gpytorch.kernels import RBFKernel
from torch.distributions import Uniform
import torch
from priors import FunctionTaskPrior, GaussianProcessPrior

prior = FunctionTaskPrior(
    GaussianProcessPrior(RBFKernel()),
    inputs=Uniform(torch.zeros(2), torch.ones(2)),
    num_points=40,
    noise_var=0.1,
)
nothing = 3
"""
TINY = {
    "architecture": {"max_features": 2, "embedding": 16, "layers": 1, "heads": 2, "hidden": 16},
    "batch": 4,
    "steps": 5,
    "border_tasks": 40,
    "held_out_tasks": 8,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "ownprior.py").write_text(OWN_PRIOR)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    few = functools.partial(pfn.certify, num_tasks=32)
    for module in ("pfn.__main__", "pfn.checkpoints.recipes"):
        monkeypatch.setattr(f"{module}.certify", few)
    yield tmp_path
    sys.modules.pop("ownprior", None)


def run(*words):
    return main([str(word) for word in words])


def test_a_prior_of_ones_own(folder, capsys):
    words = ["--config", "tiny.json", "--out", "net.safetensors", "--seed", 3]
    assert run("train", "ownprior:prior", *words) == 0
    made = pfn.load("net.safetensors")
    assert made.metadata["training"]["steps"] == 5
    command = "python -m pfn train ownprior:prior --hours 2 --seed 3 --config tiny.json"
    assert made.metadata["command"] == command
    assert made.certificate.reference == "exact"
    assert "nats per query" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (folder / "net.jsonl").read_text().splitlines()]
    assert steps[-1] == 5
    assert run("certify", "net.safetensors", "--prior", "ownprior:prior", "--tasks", 32) == 0
    assert "  32 " in capsys.readouterr().out
    assert run("show", "net.safetensors") == 0
    assert "FunctionTaskPrior" in capsys.readouterr().out


def test_a_prior_in_a_file(folder, capsys):
    words = ["--config", "tiny.json", "--no-certificate"]
    assert run("train", folder / "ownprior.py:prior", *words) == 0
    assert (folder / "runs" / "ownprior_prior.safetensors").exists()
    assert run("train", "missing.py:prior", *words) == 1
    assert "no file missing.py" in capsys.readouterr().err


def test_minutes_without_a_certificate_and_resumed_with_the_probed_batch(
    folder, monkeypatch, capsys
):
    """A probe is taken once: a resumed training goes on with what it chose."""
    calls = []

    def probe(prior, config, **options):
        calls.append(options["device"].type)
        chosen = pfn.Rate(12, "32-true", False, 100.0, 0.1, None)
        return pfn.Probe((chosen,), chosen, dataclasses.replace(config, batch=12, held_out_batch=4))

    monkeypatch.setattr("pfn.__main__.probe", probe)
    words = ["--config", "tiny.json", "--out", "net.safetensors", "--minutes", 1, "--probe"]
    words += ["--no-certificate", "--save-every", 0.001]
    assert run("train", "ownprior:prior", *words) == 0
    made = pfn.load("net.safetensors")
    assert made.certificate is None
    assert made.metadata["command"] == (
        "python -m pfn train ownprior:prior --minutes 1 --config tiny.json"
    )
    assert made.metadata["training"]["tasks"] == 60
    assert "tasks/s" in capsys.readouterr().err
    assert run("train", "ownprior:prior", *words, "--resume") == 0
    assert calls == ["cpu"]
    assert run("train", "ownprior:prior", "--hours", 1, "--device", "cuda") == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_first_process_certifies_and_writes(folder, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    words = ["--config", "tiny.json", "--out", "net.safetensors"]
    assert run("train", "ownprior:prior", *words) == 0
    assert not (folder / "net.safetensors").exists()
    assert capsys.readouterr().out == ""


def test_a_prior_of_few_rows_gets_a_certificate_of_few(folder, capsys):
    text = OWN_PRIOR.replace("num_points=40", "num_points=7")
    (folder / "ownprior.py").write_text(text)
    words = ["--config", "tiny.json", "--out", "v1.2"]
    assert run("train", "ownprior:prior", *words) == 0
    made = pfn.load("v1.2")
    assert list(made.certificate.by_context) == [0]
    assert (folder / "v1.2.training").exists()
    assert (folder / "v1.2.jsonl").exists()
    capsys.readouterr()
    words = ["--prior", "ownprior:prior", "--tasks", 8, "--context", 2, 3]
    assert run("certify", "v1.2", *words) == 0
    assert "coherence: order" in capsys.readouterr().out
    # The network that it started from is not its recipe.
    made.metadata["command"] = "python -m pfn train own:prior --hours 2 --initial regression"
    made.save("v1.2")
    assert run("certify", "v1.2") == 1
    assert "'v1.2' is neither one of" in capsys.readouterr().err


def test_rows_without_a_target_are_predicted(folder, capsys):
    words = ["--config", "tiny.json", "--out", "net.safetensors", "--no-certificate"]
    run("train", "ownprior:prior", *words)
    capsys.readouterr()
    (folder / "data.csv").write_text("a,b,y\n0.1,0.2,1\n0.5,0.1,\n0.7,0.9,3\n0.3,0.3,\n")
    words = ["--network", "net.safetensors", "--members", 1]
    assert run("predict", "data.csv", "--target", "y", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "row,mean,std,5%,95%"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "4"]
    model = pfn.load("net.safetensors").condition(
        torch.tensor([[0.1, 0.2], [0.7, 0.9]]).double(), torch.tensor([1.0, 3.0]).double()
    )
    at = torch.tensor([[0.5, 0.1]]).double()
    mean = model.posterior(at, observation_noise=True).mean.item()
    assert float(lines[1].split(",")[1]) == pytest.approx(mean, rel=1e-5)


def test_predictions_are_made_in_double_precision(folder, capsys):
    """Targets of which single precision sees the first digits only."""
    y = [1e8 + value for value in (0.0, 1.0, 0.5, 2.0)]
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(y))
    (folder / "data.csv").write_text(f"a,y\n{rows}1.5,\n")
    assert run("predict", "data.csv", "--target", "y", "--members", 1) == 0
    std = float(capsys.readouterr().out.splitlines()[1].split(",")[2])
    X = torch.arange(4.0, dtype=torch.float64)[:, None]
    model = pfn.load("regression").condition(X, torch.tensor(y, dtype=torch.float64) - 1e8)
    at = torch.tensor([[1.5]], dtype=torch.float64)
    exact = model.posterior(at, observation_noise=True).variance.sqrt().item()
    assert std == pytest.approx(exact, rel=1e-4)


def test_spreadsheets_mark_their_files(folder, capsys):
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        (folder / "data.csv").write_text("y,a\n1,0.1\n,0.5\n3,0.7\n", encoding=encoding)
        assert run("predict", "data.csv", "--target", "y", "--members", 1) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a,y\n1,2,3\n4,5,\n", "several columns named a;"),
        ("a,y,y\n1,2,3\n4,5,\n", "several columns named y;"),
        ("a,b,y\n1,2,3\n1,2\n1,2,\n", "line 3 of data.csv has more or fewer cells than the 3"),
        ("a,b,y\n1,2,3,4\n1,2,\n", "line 2 of data.csv has more or fewer cells"),
        ('a,b,y\n1,"2\n",3\n1,2,\n1,2,3,\n', "line 5 of data.csv has more"),
        ("a,b\n1,2\n", "no column 'y'"),
        ("a,b,y\n1,2,3\n", "data.csv must have rows with a value in 'y'"),
    ],
)
def test_unusable_tables(folder, capsys, text, message):
    (folder / "data.csv").write_text(text)
    assert run("predict", "data.csv", "--target", "y") == 1
    assert message in capsys.readouterr().err


def test_columns_and_targets_of_text(folder, capsys):
    """Categories tell, classes have their names, and the file holds what would be printed."""
    rows = [("red", 1.0, "warm"), ("blue", 2.0, "cold"), ("", 1.5, "cold")] * 8
    lines = ["colour,size,feels", *(f"{a},{b},{c}" for a, b, c in rows)]
    (folder / "data.csv").write_text("\n".join([*lines, "red,1.1,", "blue,,", ""]))
    words = ["predict", "data.csv", "--target", "feels", "--members", 1]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    found = [line.split(",") for line in printed.splitlines()]
    assert found[0] == ["row", "class", "p(cold)", "p(warm)"]
    assert [row[:2] for row in found[1:]] == [["25", "warm"], ["26", "cold"]]
    assert sum(map(float, found[1][2:])) == pytest.approx(1.0, abs=1e-5)
    assert run(*words, "--out", "found.csv") == 0
    assert (folder / "found.csv").read_text() == printed
    assert run(*words, "--network", "regression", "--out", "none.csv") == 1
    assert "'feels' holds text" in capsys.readouterr().err
    assert not (folder / "none.csv").exists()
    # A number is predicted from the category.
    assert run("predict", "data.csv", "--target", "size", "--members", 1) == 0
    mean = float(capsys.readouterr().out.splitlines()[1].split(",")[1])
    assert mean == pytest.approx(2.0, abs=0.2)


def recorded(monkeypatch):
    """Configurations with which `train` was called; nothing is trained."""
    configs = []

    def train(prior, *, config, **options):
        configs.append(config)
        raise RuntimeError("stopped")

    monkeypatch.setattr("pfn.__main__.train", train)
    return configs


def test_a_configuration_changes_what_it_names(folder, monkeypatch):
    configs = recorded(monkeypatch)
    (folder / "deeper.json").write_text(json.dumps({"steps": 7, "architecture": {"layers": 9}}))
    run("train", "regression", "--config", "deeper.json", "--hours", 3)
    usual = RECIPES["regression"]().config
    assert configs[0] == dataclasses.replace(
        usual,
        steps=7,
        time_limit=3 * 3600.0,
        architecture=dataclasses.replace(usual.architecture, layers=9),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": 7}, "changes.json has 'stepps'; known are architecture, inputs"),
        ({"architecture": {"depth": 9}}, "architecture of changes.json has 'depth'; known are max"),
        ({"architecture": 9}, "architecture of changes.json must be a JSON object, got 9"),
        ([7], "changes.json must be a JSON object, got [7]"),
        ({"steps": "many"}, "changes.json: "),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_unusable_configurations(folder, monkeypatch, capsys, changes, message):
    configs = recorded(monkeypatch)
    (folder / "changes.json").write_text(json.dumps(changes))
    assert run("train", "regression", "--config", "changes.json") == 1
    assert message in capsys.readouterr().err
    assert not configs


def test_errors_are_one_line(folder, capsys):
    assert run("train", "ownprior:missing") == 1
    assert "neither one of regression" in capsys.readouterr().err
    assert run("train", "ownprior:nothing") == 1
    assert "not a task prior" in capsys.readouterr().err
    assert run("predict", "none.csv", "--target", "y") == 1
    assert "none.csv" in capsys.readouterr().err
    assert run("show", "no-such-network") == 1
    assert "shipped are" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_tasks_of_a_recipe_fit_its_network(name):
    recipe = RECIPES[name]()
    assert recipe.prior.description
    sizes = recipe.config.architecture
    for seed in range(6):
        task = recipe.prior.sample(3, generator=torch.Generator().manual_seed(seed))
        assert task.X.shape[-1] <= sizes.max_features
        assert (task.num_classes is not None) == (sizes.classes > 0)
        assert task.y.isfinite().all()


@pytest.mark.parametrize(
    "name",
    [n if n == "learning-curve" else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES],
)
def test_the_certificate_of_a_recipe_can_be_measured(name):
    recipe = RECIPES[name]()
    config = dataclasses.replace(recipe.config, steps=1, batch=2, border_tasks=16, held_out_tasks=2)
    made = pfn.train(recipe.prior, config=config, device="cpu", progress=False)
    measured = recipe.certificate(made, num_tasks=2, progress=False)
    assert len(measured.by_context) == len(recipe.certified["context_sizes"])
    gaps = [row.gap for row in measured.by_context.values()]
    assert all((gap == gap) == (recipe.reference is not None) for gap in gaps)
