"""The benchmark of networks on small tables: what is run, splits, tables; no fit."""

import numpy as np
import pytest
import torch

from benchmarks import records
from benchmarks.bayes import network_accuracy, samplers


@pytest.fixture
def data(tmp_path):
    """A folder with a set of 10 rows, the last of which is split 0's test."""
    mask = np.packbits(np.eye(10, dtype=bool)[::-1], axis=-1)
    X, y = np.arange(20.0).reshape(10, 2), np.arange(10.0)
    np.savez(tmp_path / "yacht.npz", X=X, y=y, test_mask=mask)
    return tmp_path


def test_splits_are_those_of_the_file(data):
    train_X, train_Y, test_X, test_Y = network_accuracy.split(data / "yacht.npz", 0)
    assert test_Y.tolist() == [[9.0]]
    assert test_X.tolist() == [[18.0, 19.0]]
    assert train_Y[:, 0].tolist() == list(range(9))
    assert train_X.dtype == torch.float64


def test_what_is_there_is_not_run_again(data, monkeypatch, capsys):
    asked = []

    def measure(method, rows, members, seed, quick, depth):
        asked.append((method, len(rows[0]), members, seed))
        return {"nll": float(seed), "rmse": 1.0, "gradients": None, "seconds": 2.0}

    monkeypatch.setattr(network_accuracy, "measure", measure)
    path = data / "found.jsonl"
    told = ["--accuracy", "--data", str(data), "--sets", "yacht", "--splits", "2"]
    told += ["--methods", "LowRank", "--members", "3", "--out", str(path)]
    assert samplers.main(told) == 0
    assert asked == [("LowRank", 9, 3, 0), ("LowRank", 9, 3, 1)]
    assert samplers.main(told) == 0
    assert len(asked) == len(records.read(path)) == 2
    assert "0.500 ± 0.500" in capsys.readouterr().out
    assert samplers.main(["--accuracy", "--data", str(data / "nowhere")]) == 2
    assert "--data" in capsys.readouterr().err


def test_airfoil_comes_with_its_competitor(data, monkeypatch):
    """Standardised by the training rows, a fifth for the test; no row twice."""
    folder = data / "lib" / "python3" / "site-packages" / "bde" / "data"
    folder.mkdir(parents=True)
    lines = ["a,b,target"] + [f"{i},{i % 3},{2 * i}" for i in range(10)]
    (folder / "airfoil.csv").write_text("\n".join(lines))
    monkeypatch.setattr(network_accuracy, "BDE", data / "bin" / "python")
    train_X, train_Y, test_X, test_Y = network_accuracy.airfoil(0)
    assert (len(train_X), len(test_X)) == (8, 2)
    assert sorted(torch.cat([train_X, test_X])[:, 0].tolist()) == list(range(10))
    assert float(train_Y.mean()) == pytest.approx(0, abs=1e-12)
    assert float(train_Y.std(correction=0)) == pytest.approx(1)
    both = torch.cat([train_X, test_X])[:, :1], torch.cat([train_Y, test_Y])
    slopes = both[1].diff(dim=0) / both[0].diff(dim=0)
    assert float(slopes.std()) < 1e-9
    depth = network_accuracy.prior(5, 4).module
    assert sum(isinstance(layer, torch.nn.Linear) for layer in depth) == 5


def test_ensembles_have_equal_gradients():
    some = network_accuracy.methods(8, 0, False)
    langevin, deep = some["LangevinEnsemble"], some["DeepEnsemble"]
    steps = langevin.num_steps * (langevin.num_warmup + langevin.num_samples)
    # a step of the integrator has two
    assert deep.num_training_steps == langevin.num_training_steps + 2 * steps
