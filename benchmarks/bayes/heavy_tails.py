"""Does a random scale help where the test rows differ, or the training outcomes are wrong?

100 training rows and up to 200 test rows of scikit-learn's diabetes and UCI's yacht, energy and
concrete, drawn anew for every seed; outcomes have mean 0 and variance 1 over the set, so that NLPD
(nats per row) and CRPS of different sets compare. Test outcomes are always right:

* "in distribution": random rows;
* "shift": training rows are from the lower 70% along the first principal component of the inputs
  (upwards or downwards by the seed), test rows from the upper 20%;
* "outliers": 5 to 10 standard deviations are added to or taken from 10% of the training outcomes;
* "shuffled": 30% of the training outcomes are permuted among themselves.

All models have a Matern-5/2 kernel with one length per input and learn by marginal likelihood or
its bound: Gaussian process, Student t process (inverse gamma scale, noise scaled too), scale
mixtures (half-Cauchy and inverse gamma scale, noise outside), GPyTorch's Student-t likelihood (50
inducing points), and BoTorch's relevance pursuit (0, 10, 20 or 30% of outliers, of which it chooses
by its own evidence). Processes of a random scale have the kernel without an output scale. Of each:
RMSE, NLPD, CRPS, coverage of central 90% intervals, processor seconds; means over draws (seeds and
sets) with standard errors, paired by draw where "minus GP". Relevance pursuit takes seven times
as long as all others together: `--models` leaves it out, or adds it to some of the draws.

    python -m benchmarks posteriors --shift --data ../shared/data/uci    # three hours of one core
    python -m benchmarks posteriors --shift --data FOLDER --models GP "t process" \\
        "half-Cauchy scale" "inverse gamma scale" "Student-t noise"      # 15 minutes
    python -m benchmarks posteriors --shift --sets diabetes --seeds 1    # 5 minutes
    python -m benchmarks posteriors --shift --table                      # of what is there

A run appends to `--out` and skips what is there, seed 0 of everything first.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.robust_relevance_pursuit_model import RobustRelevancePursuitSingleTaskGP
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import StudentTLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor
from torch.distributions import InverseGamma
from tqdm import tqdm

from bayes import (
    GaussianProcess,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
)
from benchmarks import records, runs
from priors import HalfCauchyVariance, as_predictive

RESULT = Path(__file__).resolve().parents[1] / "results" / "heavy_tails.jsonl"
SETS = ("diabetes", "yacht", "energy", "concrete")
CONDITIONS = ("in distribution", "shift", "outliers", "shuffled")
METRICS = ("rmse", "nlpd", "crps", "coverage")
GP = "GP"
Case = tuple[str, str, int]
_TRAIN, _TEST = 100, 200
_OUTLIERS = (0.0, 0.1, 0.2, 0.3)


def main(argv: list[str]) -> int:
    """Fit what is missing and print the tables."""
    parser = runs.parser_of("posteriors --shift", __doc__, RESULT, data="uci")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.table:
        if options.data is None and set(options.sets) != {"diabetes"}:
            print("benchmarks posteriors --shift: --data FOLDER of the UCI sets", file=sys.stderr)
            return 2
        _run(options)
    print(table(records.read(options.out)))
    return 0


def _run(options: argparse.Namespace) -> None:
    done = cases(records.read(options.out))
    jobs = [
        (seed, name, condition, missing)
        for seed in range(options.seeds)
        for name in options.sets
        for condition in CONDITIONS
        if (
            missing := [m for m in options.models if m not in done.get((name, condition, seed), ())]
        )
    ]
    for seed, name, condition, models in tqdm(jobs, desc="conditions"):
        found = measure(*rows(options.data, name, condition, seed), models)
        record = {"set": name, "condition": condition, "seed": seed, "scores": found}
        record |= {"torch": version("torch"), "botorch": version("botorch")}
        records.append(options.out, {**record, "machine": platform.machine()})


def cases(found: list[dict[str, Any]]) -> dict[Case, dict[str, dict[str, float]]]:
    """Scores of the models that were run, by set, condition and seed."""
    by_case: dict[Case, dict[str, dict[str, float]]] = {}
    for record in found:
        key = record["set"], record["condition"], record["seed"]
        by_case.setdefault(key, {}).update(record["scores"])
    return by_case


def rows(
    folder: Path | None, name: str, condition: str, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and outcomes, test inputs and outcomes, float64, outcomes `[n, 1]`."""
    if name == "diabetes":
        X, y = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    else:
        assert folder is not None
        with np.load(folder / f"{name}.npz") as file:
            X, y = file["X"].astype(np.float64), file["y"].astype(np.float64).ravel()
    generator = np.random.default_rng(seed)
    X, y = X[:, X.std(0) > 0], (y - y.mean()) / y.std()
    X = (X - X.mean(0)) / X.std(0)
    order = generator.permutation(len(y))
    train, test = order[:_TRAIN], order[_TRAIN:][:_TEST]
    if condition == "shift":
        along = X @ np.linalg.svd(X, full_matrices=False)[2][0] * (1 if seed % 2 else -1)
        place = np.argsort(np.argsort(along, kind="stable"), kind="stable") / len(y)
        train = order[place[order] < 0.7][:_TRAIN]
        test = order[place[order] >= 0.8][:_TEST]
    seen = y[train].copy()
    if condition == "outliers":
        bad = generator.permutation(len(seen))[: len(seen) // 10]
        seen[bad] += generator.choice([-1, 1], len(bad)) * generator.uniform(5, 10, len(bad))
    if condition == "shuffled":
        bad = generator.permutation(len(seen))[: 3 * len(seen) // 10]
        seen[bad] = seen[generator.permutation(bad)]
    inputs, outcomes = torch.as_tensor(X), torch.as_tensor(y[:, None])
    return inputs[train], torch.as_tensor(seen[:, None]), inputs[test], outcomes[test]


def _unscaled(d: int) -> Kernel:
    lengths = LogNormalPrior(math.sqrt(2) + 0.5 * math.log(d), math.sqrt(3))
    return MaternKernel(2.5, ard_num_dims=d, lengthscale_prior=lengths)


def _scaled(d: int) -> Kernel:
    return ScaleKernel(_unscaled(d), outputscale_prior=GammaPrior(2.0, 0.5))


def _gaussian(X: Tensor, Y: Tensor) -> Any:
    return GaussianProcess(X, Y, _scaled(X.shape[-1])).fit(progress=False)


def _student_t(X: Tensor, Y: Tensor) -> Any:
    return StudentTProcess(X, Y, _unscaled(X.shape[-1])).fit(progress=False)


def _half_cauchy(X: Tensor, Y: Tensor) -> Any:
    scale = HalfCauchyVariance(1.0)
    return ScaleMixtureProcess(X, Y, _unscaled(X.shape[-1]), scale=scale).fit(progress=False)


def _inverse_gamma(X: Tensor, Y: Tensor) -> Any:
    scale = InverseGamma(*X.new_tensor([2.0, 2.0]))
    return ScaleMixtureProcess(X, Y, _unscaled(X.shape[-1]), scale=scale).fit(progress=False)


def _student_t_noise(X: Tensor, Y: Tensor) -> Any:
    model = VariationalGaussianProcess(
        X, Y, _scaled(X.shape[-1]), likelihood=StudentTLikelihood(), num_inducing=50
    )
    return model.fit(progress=False)


def _relevance_pursuit(X: Tensor, Y: Tensor) -> Any:
    model = RobustRelevancePursuitSingleTaskGP(
        X, Y, covar_module=_scaled(X.shape[-1]).to(X), mean_module=ZeroMean()
    )
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    return fit_gpytorch_mll(mll, fractions_of_outliers=list(_OUTLIERS)).model


MODELS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    GP: _gaussian,
    "t process": _student_t,
    "half-Cauchy scale": _half_cauchy,
    "inverse gamma scale": _inverse_gamma,
    "Student-t noise": _student_t_noise,
    "relevance pursuit": _relevance_pursuit,
}


def measure(
    X: Tensor, Y: Tensor, Q: Tensor, T: Tensor, models: Sequence[str] = tuple(MODELS)
) -> dict[str, dict[str, float]]:
    """Scores of models by name."""
    found = {}
    for name in models:
        factory = MODELS[name]
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounding and of optimisers
            model = factory(X, Y)
            with torch.no_grad():
                posterior = as_predictive(model.posterior(Q, observation_noise=True))
                at = posterior.cdf(T)
                scores = {
                    "rmse": float((posterior.mean - T).square().mean().sqrt()),
                    "nlpd": float(-posterior.log_prob(T).mean()),
                    "crps": float(posterior.crps(T).mean()),
                    "coverage": float(((at > 0.05) & (at < 0.95)).double().mean()),
                }
        found[name] = {**scores, "seconds": time.process_time() - start}
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Means over seeds and sets by condition, and NLPD and CRPS beside the Gaussian process's."""
    if not found:
        return "nothing is there"
    lines: list[str] = []
    by_case = cases(found)
    for condition in CONDITIONS:
        some = {key: scores for key, scores in by_case.items() if key[1] == condition}
        if not some:
            continue
        lines.append(f"\n{condition}: of {', '.join(sorted({name for name, _, _ in some}))}")
        heads = ("draws", *METRICS, "nlpd minus GP", "crps minus GP", "seconds")
        lines.append(f"  {'':20}" + "".join(f"{head:>18}" for head in heads))
        for model in MODELS:
            of_model = [scores for scores in some.values() if model in scores]
            if not of_model:
                continue
            cells = [_cell([s[model][metric] for s in of_model]) for metric in METRICS]
            both = [scores for scores in of_model if GP in scores]
            for metric in ("nlpd", "crps"):
                cells.append(_cell([s[model][metric] - s[GP][metric] for s in both]))
            seconds = np.mean([s[model]["seconds"] for s in of_model])
            cells = [str(len(of_model)), *cells, f"{seconds:.1f}"]
            lines.append(f"  {model:20}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {error:.3f}"
