"""The benchmark of shifted inputs and noisy labels: rows, scores, temperatures; no fit."""

import numpy as np
import pytest
import sklearn.datasets
import torch

from bayes import calibration
from benchmarks import records
from benchmarks.bayes import samplers, shift
from priors.posteriors.categorical import CategoricalPosterior


def test_labels_are_noisy_in_training_alone():
    clean, noisy = shift.rows(0.0, 3), shift.rows(0.1, 3)
    assert torch.equal(clean[0], noisy[0])
    assert int((clean[1] != noisy[1]).sum()) == 30
    assert torch.equal(clean[3], noisy[3])
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    pixels = (clean[2][0] * 6.0 + 4.9).round()
    found = {(*x.tolist(), int(y)) for x, y in zip(pixels, clean[3], strict=True)}
    assert found <= {(*x, int(y)) for x, y in zip(images.tolist(), labels, strict=True)}


def test_images_are_turned_by_their_angle():
    image = np.zeros((1, 8, 8))
    image[0, 1, 2:6] = 1
    turned = shift.turned(image.reshape(1, 64), 90).reshape(8, 8)
    np.testing.assert_allclose(turned, np.rot90(image[0]), atol=1e-12)
    np.testing.assert_allclose(shift.turned(image.reshape(1, 64), 0), image.reshape(1, 64))


def test_scores_are_those_of_the_package():
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(2 * torch.randn(200, 4, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(4, (200,), generator=generator)
    found = shift.scores(p, labels)
    truth = calibration(CategoricalPosterior(p.log()), labels.double().unsqueeze(-1))
    assert found["ece"] == pytest.approx(truth.ece)
    assert found["nll"] == pytest.approx(
        torch.nn.functional.cross_entropy(p.log(), labels).item(), rel=1e-10
    )


def test_the_temperature_is_that_of_the_labels():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits / 1.7, -1), 1, generator=generator)[:, 0]
    found = shift.best_temperature(torch.softmax(logits, -1), labels)
    assert found == pytest.approx(1.7, rel=0.05)


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(method, noise, seed, quick):
        asked.append((method, noise, seed))
        return {key: [float(seed)] * 5 for key in ("accuracy", "nll", "ece")}

    monkeypatch.setattr(shift, "measure", measure)
    path = tmp_path / "found.jsonl"
    told = ["--shift", "--seeds", "2", "--methods", "network", "--out", str(path)]
    assert samplers.main(told) == 0
    assert asked == [("network", noise, seed) for seed in (0, 1) for noise in shift.NOISE]
    assert samplers.main(told) == 0
    assert len(asked) == len(records.read(path)) == 6
    assert "0.500 ± 0.500" in capsys.readouterr().out
