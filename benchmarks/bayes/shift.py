"""Do classifiers know when they are wrong, where inputs have shifted or labels are noisy?

scikit-learn's 8 x 8 digits: 300 training rows, of whose labels 0, 10 or 20% are replaced by another
class; 500 test rows with right labels, rotated by 0 to 60 degrees. Pixels have mean 0 and variance
1 over all places; a perceptron of 32 ReLU units with weight variances 2 and, so that logits have a
deviation of about 3, 8 (with the default of 1 all fits explain labels by noise), as

* "network": one, trained to the highest posterior; "temperature" its logits over a temperature that
  240 rows trained for and the other 60, as noisy, choose (Guo et al. 2017, 1706.04599);
* "DeepEnsemble" and "LangevinEnsemble": 8, equal numbers of gradients;
* "Laplace, last layer": of the first.

Accuracy, NLL (nats) and the expected calibration error of 15 bins, means and standard errors over
seeds, which draw rows, noise and starts. "minus DeepEnsemble" is paired by seed.

    python -m benchmarks networks --shift            # 5 seeds: 15 minutes of one core
    python -m benchmarks networks --shift --quick    # one seed, few steps
    python -m benchmarks networks --shift --table    # of what is there

A run appends to `--out` and skips what is there.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.optimize
import sklearn.datasets
import torch
from torch import Tensor, nn

from bayes import BayesianNetwork, DeepEnsemble, LangevinEnsemble, Laplace
from bayes.inference import InferenceMethod
from benchmarks import runs
from priors import NetworkPrior

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "shift.jsonl"
NOISE = (0.0, 0.1, 0.2)
ANGLES = (0, 15, 30, 45, 60)
METHODS = ("network", "temperature", "DeepEnsemble", "Laplace, last layer", "LangevinEnsemble")
_MEAN, _STD = 4.9, 6.0  # of the pixels
_TRAIN, _TEST, _HELD_OUT, _MEMBERS = 300, 500, 60, 8


def main(argv: list[str]) -> int:
    """Fit what is missing and print the table."""
    parser = runs.parser_of("networks --shift", __doc__, RESULT)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    options = parser.parse_args(argv)
    wanted = [
        {"method": method, "noise": noise, "seed": seed, "quick": options.quick}
        for seed in range(1 if options.quick else options.seeds)
        for noise in NOISE
        for method in options.methods
    ]
    return runs.carry_out(options, wanted, measure, table)


def rows(noise: float, seed: int) -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor]:
    """Training pixels and noisy labels `[n, 1]`, test pixels by angle, and their labels."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    train, test = order[:_TRAIN], order[_TRAIN : _TRAIN + _TEST]
    noisy = labels[train].copy()
    wrong = generator.permutation(_TRAIN)[: round(noise * _TRAIN)]
    noisy[wrong] = (noisy[wrong] + generator.integers(1, 10, len(wrong))) % 10
    rotated = {a: torch.as_tensor((turned(images[test], a) - _MEAN) / _STD) for a in ANGLES}
    return (
        torch.as_tensor((images[train] - _MEAN) / _STD),
        torch.as_tensor(noisy, dtype=torch.float64).unsqueeze(-1),
        rotated,
        torch.as_tensor(labels[test]),
    )


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Images `[n, 64]` turned by an angle in degrees, linearly interpolated, 0 outside."""
    square = images.reshape(-1, 8, 8)
    return scipy.ndimage.rotate(square, angle, axes=(2, 1), reshape=False, order=1).reshape(-1, 64)


def inference(method: str, seed: int, quick: bool) -> InferenceMethod:
    """What a network is fitted with."""
    common = {"seed": seed, "progress": False}
    steps, few = (50, 8) if quick else (500, 50)
    langevin = LangevinEnsemble(
        num_samples=few,
        num_warmup=few,
        num_chains=_MEMBERS,
        num_training_steps=steps,
        num_steps=5,
        **common,
    )
    trained = steps + 2 * langevin.num_steps * 2 * few
    return {
        "network": DeepEnsemble(1, num_training_steps=trained, **common),
        "temperature": DeepEnsemble(1, num_training_steps=trained, **common),
        "DeepEnsemble": DeepEnsemble(_MEMBERS, num_training_steps=trained, **common),
        "Laplace, last layer": Laplace(
            "last_layer", num_starts=1, num_training_steps=trained, **common
        ),
        "LangevinEnsemble": langevin,
    }[method]


def measure(method: str, noise: float, seed: int, quick: bool) -> dict[str, Any]:
    """Scores by angle of one fit."""
    X, Y, tests, labels = rows(noise, seed)
    temperature = 1.0
    before = time.process_time()
    if method == "temperature":
        model = _fitted(X[_HELD_OUT:], Y[_HELD_OUT:], inference(method, seed, quick))
        held_out = _probabilities(model, X[:_HELD_OUT])
        temperature = best_temperature(held_out, Y[:_HELD_OUT, 0].long())
    else:
        model = _fitted(X, Y, inference(method, seed, quick))
    seconds = time.process_time() - before
    found: dict[str, Any] = {"seconds": seconds, "temperature": temperature}
    scored = {
        a: scores(scaled(_probabilities(model, x), temperature), labels) for a, x in tests.items()
    }
    for key in ("accuracy", "nll", "ece"):
        found[key] = [scored[angle][key] for angle in ANGLES]
    return found


def _fitted(X: Tensor, Y: Tensor, method: InferenceMethod) -> BayesianNetwork:
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    prior = NetworkPrior(module, weight_var={"0": 2.0, "2": 8.0}, bias_var=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence
        model = BayesianNetwork(X, Y, prior, likelihood="categorical", input_transform=None)
        return model.fit(method)


def _probabilities(model: BayesianNetwork, X: Tensor) -> Tensor:
    with torch.no_grad():
        return model.posterior(X).mean


def scaled(probabilities: Tensor, temperature: float) -> Tensor:
    """Of logits over a temperature."""
    return torch.softmax(probabilities.clamp_min(1e-30).log() / temperature, -1)


def best_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """That of the highest likelihood, between 1/20 and 20."""

    def loss(log: float) -> float:
        return scores(scaled(probabilities, float(np.exp(log))), labels)["nll"]

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL and expected calibration error (Guo et al. 2017, equation 3, 15 bins)."""
    confidence, said = probabilities.max(-1)
    right = (said == labels).double()
    of_bin = nn.functional.one_hot((confidence * 15).ceil().long().clamp(1, 15) - 1, 15).double()
    gap = (of_bin * (right - confidence).unsqueeze(-1)).sum(0).abs().sum() / len(labels)
    nll = -probabilities.gather(-1, labels.unsqueeze(-1)).clamp_min(1e-30).log().mean()
    return {"accuracy": float(right.mean()), "nll": float(nll), "ece": float(gap)}


def table(found: list[dict[str, Any]]) -> str:
    """Means and standard errors over seeds by noise, method and angle."""
    lines = []
    for quick, noise in sorted({(r["quick"], r["noise"]) for r in found}):
        some = [r for r in found if (r["quick"], r["noise"]) == (quick, noise)]
        heads = "".join(f"{f'{angle} degrees':>17}" for angle in ANGLES)
        for key in ("accuracy", "nll", "ece"):
            title = f"{key}, {noise:.0%} noise{' (quick)' if quick else ''}"
            lines.append(f"\n{title:28}seeds{heads}")
            by_method = {
                method: {r["seed"]: np.array(r[key]) for r in some if r["method"] == method}
                for method in METHODS
            }
            for method, by_seed in by_method.items():
                if by_seed:
                    lines.append(_line(method, list(by_seed.values())))
            one, other = by_method["LangevinEnsemble"], by_method["DeepEnsemble"]
            both = sorted(set(one) & set(other))
            if both:
                lines.append(_line("  minus DeepEnsemble", [one[s] - other[s] for s in both]))
    return "\n".join(lines)


def _line(name: str, values: list[np.ndarray]) -> str:
    mean = np.mean(values, 0)
    error = np.std(values, 0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else mean * np.nan
    cells = "".join(f"{f'{m:.3f} ± {e:.3f}':>17}" for m, e in zip(mean, error, strict=True))
    return f"{name:28}{len(values):5d}{cells}"
