"""Is a weight prior that is matched to a Gaussian process worth it where rows are few?

Networks of 50 tanh units as `BayesianNetwork`, with 30, 100 and 300 training rows of scikit-learn's
diabetes and UCI's concrete, energy, yacht and power-plant (200 of yacht's 308, which leave test
rows). "fixed" has N(0, 1) for all whitened weights and biases (variances 1), as the published
baseline; "matched" the variances whose functions resemble an RBF process of length scale sqrt(2 D)
and variance 1 (Tran et al. 2022) at training rows and in the box that they span. The same splits,
test rows, sampler and seeds; the noise variance is learnt.

"digits" is another kind of target: a perceptron of 100 ReLU units for 10 indicators of the class
(regression, standardised), matched to the NNGP kernel of a convolutional network on scikit-learn's
8 x 8 digits.

Scores are those of 16 chains of ChEES, `--draws` each after a warm-up as long: NLL (nats per value,
in units of Y), RMSE, and R-hat and effective draws of the predictions. "matched minus fixed" is
paired by split, with a 95% interval (Student t over splits).

    python -m benchmarks networks --priors --data FOLDER            # 10 splits: hours on one core
    python -m benchmarks networks --priors --data FOLDER --draws 100 --rows 100    # a part
    python -m benchmarks networks --priors --data FOLDER --quick    # a split of 30 rows of each
    python -m benchmarks networks --priors --table                  # of what is there

A run appends to `--out` and skips what is there, split 0 of everything first, few rows before many.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import sklearn.datasets
import torch
from gpytorch.kernels import RBFKernel
from torch import Tensor, nn

from bayes import BayesianNetwork, ChEES, match_functional_prior, report
from bayes.functional_prior import TrainingBox
from benchmarks import runs
from benchmarks.bayes.problems import regression_tables, split
from benchmarks.pfn.datasets import Table
from priors import GaussianProcessPrior, NetworkPrior, NNGPKernel

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "matched_priors.jsonl"
SETS = ("diabetes", "concrete", "energy", "yacht", "power-plant", "digits")
ROWS = (30, 100, 300)
PRIORS = ("fixed", "matched")
_MOST = {"yacht": 200}


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = runs.parser_of("networks --priors", __doc__, RESULT, data="uci")
    parser.add_argument("--splits", type=int, default=10, help="random splits of each set (10)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, choices=ROWS, default=list(ROWS))
    parser.add_argument("--draws", type=int, default=300, help="of a chain, and its warm-up (300)")
    parser.add_argument("--quick", action="store_true", help="one split of 30 rows, 30 draws")
    options = parser.parse_args(argv)
    draws = 30 if options.quick else options.draws
    wanted = [
        {"set": name, "rows": size, "split": number, "prior": prior, "draws": draws}
        for number in range(1 if options.quick else options.splits)
        for size in ([30] if options.quick else options.rows)
        for name in options.sets
        for prior in PRIORS
    ]
    tables = functools.cache(lambda: regression_tables(runs.folder(options)))

    def run(**told: Any) -> dict[str, Any]:
        name, size, number = told["set"], told["rows"], told["split"]
        if name == "digits":
            data = digits(size, number)
        else:
            cut = split(tables()[name], min(size, _MOST.get(name, size)), number)
            data = cut.train_X, cut.train_Y, cut.test_X, cut.test_Y
        return measure(name, told["prior"], *data, seed=number, draws=draws)

    return runs.carry_out(options, wanted, run, table)


def digits(rows: int, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A split of the digits, inputs in [0, 1], indicators of the class as outcomes."""
    X, y = sklearn.datasets.load_digits(return_X_y=True)
    table = Table("digits", X / 16.0, y.astype(np.float64))
    cut = split(table, rows, number)
    one, two = (nn.functional.one_hot(Y[:, 0].long(), 10) for Y in (cut.train_Y, cut.test_Y))
    return cut.train_X, one.double(), cut.test_X, two.double()


def measure(
    name: str,
    prior: str,
    train_X: Tensor,
    train_Y: Tensor,
    test_X: Tensor,
    test_Y: Tensor,
    *,
    seed: int,
    draws: int,
) -> dict[str, float]:
    """Scores of a network with one of the priors."""
    start, target = network(name, train_X.shape[-1])
    # Pixels that are always 0 would be divided by 0: the digits stay as they are.
    plain = {"input_transform": None} if name == "digits" else {}
    scaled = train_X
    if not plain:
        scaled = (train_X - train_X.mean(0)) / train_X.std(0).clamp_min(1e-12)
    before = time.process_time()
    if prior == "matched":
        start = match_functional_prior(
            start, target, TrainingBox(scaled), num_sets=2, seed=seed, progress=False
        )
    matching = time.process_time() - before
    method = ChEES(draws, draws, 16, seed=seed, progress=False, compile=False, max_steps=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is recorded
        model = BayesianNetwork(train_X, train_Y, start, **plain).fit(method)
        page = report(model)
    with torch.no_grad():
        posterior = model.posterior(test_X, observation_noise=True)
        nll = -posterior.log_prob(test_Y).mean()
        mean = posterior.mean
    found = {
        "nll": float(nll),
        "rmse": float((mean - test_Y).square().mean().sqrt()),
        "r_hat": float(page.r_hat.max()),
        "effective": float(torch.minimum(page.bulk_ess, page.tail_ess).min()),
        "diverging": float(page.diverging or 0),
        "matching_seconds": matching,
        "seconds": time.process_time() - before,
    }
    if name == "digits":
        found["accuracy"] = float((mean.argmax(-1) == test_Y.argmax(-1)).double().mean())
    return found


def network(name: str, features: int) -> tuple[NetworkPrior, GaussianProcessPrior]:
    """The network with variances 1, and the process that it is to resemble."""
    if name == "digits":
        module = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        convolution = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 1),
        )  # fmt: skip
        return (
            NetworkPrior(module, weight_var=1.0, bias_var=1.0),
            GaussianProcessPrior(NNGPKernel(convolution, input_shape=(1, 8, 8))),
        )
    module = nn.Sequential(nn.Linear(features, 50), nn.Tanh(), nn.Linear(50, 1))
    kernel = RBFKernel()
    kernel.lengthscale = math.sqrt(2 * features)
    return NetworkPrior(module, weight_var=1.0, bias_var=1.0), GaussianProcessPrior(kernel)


def table(found: list[dict[str, Any]]) -> str:
    """Means by set and rows, the paired difference of NLL with its 95% interval, and the goal."""
    lines = [
        f"{'set':12} {'rows':>4} draws splits  NLL fixed  matched  {'matched - fixed':>24}"
        "  RMSE ratio  R-hat  seconds"
    ]
    better: dict[tuple[int, int], list[str]] = {}
    for name, rows, draws in dict.fromkeys((r["set"], r["rows"], r["draws"]) for r in found):
        some = [r for r in found if (r["set"], r["rows"], r["draws"]) == (name, rows, draws)]
        by_prior = {p: {r["split"]: r for r in some if r["prior"] == p} for p in PRIORS}
        both = sorted(set(by_prior["fixed"]) & set(by_prior["matched"]))
        if not both:
            continue
        values = {
            p: {k: np.array([by_prior[p][n][k] for n in both]) for k in ("nll", "rmse", "seconds")}
            for p in PRIORS
        }
        difference = values["matched"]["nll"] - values["fixed"]["nll"]
        low, high = interval(difference)
        if high < 0:
            better.setdefault((rows, draws), []).append(name)
        ratio = values["matched"]["rmse"].mean() / values["fixed"]["rmse"].mean()
        seconds = np.mean([v["seconds"].mean() for v in values.values()])
        lines.append(
            f"{name:12} {rows:4d} {draws:5d} {len(both):6d} {values['fixed']['nll'].mean():10.3f} "
            f"{values['matched']['nll'].mean():8.3f}  {difference.mean():+7.3f} "
            f"[{low:+.3f}, {high:+.3f}]  {ratio:10.2f} {max(r['r_hat'] for r in some):6.2f} "
            f"{seconds:8.1f}"
        )
    for (rows, draws), names in sorted(better.items()):
        lines.append(
            f"{rows} rows, {draws} draws: below zero with 95% on {len(names)}, {', '.join(names)}"
        )
    return "\n".join(lines)


def interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Of the mean of paired differences, by Student's t; without end of a single one."""
    if len(differences) < 2:
        return -math.inf, math.inf
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    far = float(scipy.stats.t.ppf((1 + level) / 2, len(differences) - 1))
    return float(differences.mean() - far * error), float(differences.mean() + far * error)
