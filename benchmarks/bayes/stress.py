"""Does every fit end well? Random problems: data, networks of every kind, both exact engines.

Rows are drawn from a folder of data sets, or made up where there is none; networks are perceptrons
of every activation and depth 1 to 6, with residuals, with LayerNorm, convolutions and attention on
small images. A fit ends well where it ends in `--limit` processor seconds, raises nothing, no
hyperparameter has run away, and its predictions are finite and no worse than the mean of the
outcomes by more than a fifth.

    python -m benchmarks fits --stress --data FOLDER     # 200 problems, an hour
    python -m benchmarks fits --stress --quick           # 20, made-up rows, minutes

A run appends to `--out` and skips what is there.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bayes import GaussianProcess, StudentTProcess
from bayes.processes.exact_process import ExactProcess
from bayes.processes.fitting import runaway_values
from benchmarks import records
from benchmarks.bayes.limits import NotEnded, Stopwatch, processor_limit
from priors import NNGPKernel, Nonlinearity, NTKKernel
from priors.gaussian.activations import Erf, Sine

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "fits_stress.jsonl"

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "gelu": nn.GELU,
    "erf": lambda: Nonlinearity(Erf()),
    "sine": lambda: Nonlinearity(Sine()),
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
# Without a closed form; deep networks of them take minutes where expectations are integrated.
NUMERICAL = ("tanh", "sigmoid", "softplus", "silu", "mish")
KINDS = ("perceptron", "residual", "layer norm", "convolution", "attention")
SHARES = (0.6, 0.15, 0.1, 0.1, 0.05)
WIDTH = 4
WELL, NOT_ENDED = "well", "not ended"


class Residual(nn.Module):
    """Blocks x + activation(Linear x) between two linear layers."""

    def __init__(self, inputs: int, depth: int, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(activation, nn.Linear(WIDTH, WIDTH)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[n, 1]`."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.readout(h)


class Attention(nn.Module):
    """The quarters of a small image as tokens that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[n, 1]`."""
        h = self.embed(x)
        return self.readout(torch.relu(self.attend(h, h, h, need_weights=False)[0]).mean(1))


@dataclass(frozen=True)
class Problem:
    """Data and a model to fit.

    Attributes:
        description: What it is, for a report.
        model: Not fitted yet.
        test_X: Other rows.
        test_Y: Their outcomes.
    """

    description: str
    model: ExactProcess
    test_X: Tensor
    test_Y: Tensor


def random_problem(seed: int, tables: dict[str, tuple[np.ndarray, np.ndarray]]) -> Problem:
    """Problem number `seed`, on rows of one of the tables, or made-up rows without any."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(KINDS, p=SHARES))
    name = str(rng.choice(sorted(ACTIVATIONS)))
    depth = int(rng.integers(1, 7))
    if name in NUMERICAL or kind == "attention":
        depth = min(depth, 3)
    rows = int(rng.integers(50, 101 if name in NUMERICAL or kind == "attention" else 301))
    if kind == "attention":  # all draws for every pair of rows: ten seconds at 30
        rows = int(rng.integers(10, 21))
    scales, bias = bool(rng.random() < 0.5), bool(rng.random() < 0.8)
    if kind in ("convolution", "attention"):
        X, y = _images(rng, rows + 100)
        module, shape, features = _of_images(kind, name, depth)
        source = "made-up images"
    else:
        source = str(rng.choice(sorted(tables))) if tables else "made-up rows"
        X, y = tables[source] if tables else _rows(rng, rows + 100)
        features, shape = X.shape[-1], None
        module = _of_rows(kind, name, depth, features, bias)
    chosen = rng.permutation(len(y))
    train, test = chosen[:rows], chosen[rows : rows + 100]
    kernel = rng.choice([NNGPKernel, NTKKernel])(
        module, input_shape=shape, ard_num_dims=features if scales else None
    )
    process = rng.choice([GaussianProcess, StudentTProcess])
    X, y = torch.tensor(X, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)[:, None]
    description = (
        f"{process.__name__} on {rows} rows of {source}, {type(kernel).__name__} of a {kind} of "
        f"depth {depth}, {name}{', biases' if bias else ''}{', length scales' if scales else ''}"
    )
    return Problem(description, process(X[train], y[train], kernel), X[test], y[test])


def verdict(problem: Problem, limit: float) -> str:
    """Fit it; `WELL`, `NOT_ENDED`, or what went wrong.

    Args:
        problem: The data and the model.
        limit: Processor seconds of the fit.
    """
    model, Y = problem.model, problem.test_Y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with processor_limit(limit):
                model.fit(progress=False)
            posterior = model.posterior(problem.test_X, observation_noise=True)
            rmse = float((posterior.mean - Y).square().mean().sqrt())
            finite = bool(posterior.log_prob(Y).isfinite().all())
            finite &= bool(model.log_marginal_likelihood().isfinite())
        except NotEnded:
            return NOT_ENDED
        except Exception as error:  # reported: the benchmark's question
            return f"{type(error).__name__}: {str(error)[:200]}"
    far = runaway_values(model.covar_module)
    if far:
        return f"ran away: {far[0]}"
    if not finite:
        return "not finite"
    if rmse > 1.2 * float((Y - model.train_Y.mean()).square().mean().sqrt()):
        return f"RMSE {rmse:.3g}, worse than the mean"
    return WELL


def _of_rows(kind: str, name: str, depth: int, features: int, bias: bool) -> nn.Module:
    if kind == "residual":
        return Residual(features, depth, ACTIVATIONS[name]())
    layers: list[nn.Module] = []
    for k in range(depth):
        layers.append(nn.Linear(WIDTH if k else features, WIDTH, bias=bias))
        if kind == "layer norm":
            layers.append(nn.LayerNorm(WIDTH))
        layers.append(ACTIVATIONS[name]())
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1, bias=bias))


def _of_images(kind: str, name: str, depth: int) -> tuple[nn.Module, tuple[int, ...], int]:
    """The network, the shape of its inputs and how many length scales they have."""
    if kind == "attention":
        return Attention(), (4, 4), 4
    layers: list[nn.Module] = []
    for k in range(min(depth, 2)):
        layers += [nn.Conv2d(WIDTH if k else 1, WIDTH, 2), ACTIVATIONS[name]()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(1)), (1, 4, 4), 1


def _rows(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of different scales, some irrelevant, one constant now and then."""
    features = int(rng.integers(1, 10))
    X = rng.standard_normal((count, features)) * 10.0 ** rng.uniform(-3, 3, features)
    X += 10.0 ** rng.uniform(-3, 3, features)
    z = (X - X.mean(0)) / X.std(0)
    weights = rng.standard_normal((features, 3)) * 10.0 ** rng.uniform(-2, 0.3, (features, 1))
    f = np.sin(z @ weights).sum(-1) + (z @ weights[:, 0]).clip(0)
    if features > 1 and rng.random() < 0.2:
        X[:, 0] = 3.0
    noise = 10.0 ** rng.uniform(-3, 0)
    return X, 10.0 ** rng.uniform(-3, 3) * (f + noise * rng.standard_normal(count))


def _images(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright spots on noise; the outcome depends on where they are and how bright."""
    X = 0.3 * rng.random((count, 4, 4))
    i, j, height = rng.integers(0, 4, count), rng.integers(0, 4, count), 1 + rng.random(count)
    X[np.arange(count), i, j] += height
    y = np.sin(i + 1.0) * height + 0.5 * j + 0.1 * rng.standard_normal(count)
    return X.reshape(count, -1), y


def read_tables(folder: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and outcomes of every `.npz` file with arrays X and y, by name."""
    if folder is None:
        return {}
    tables = {}
    for path in sorted(folder.glob("*.npz")):
        stored = np.load(path)
        tables[path.stem] = stored["X"], stored["y"].reshape(-1)
    if not tables:
        raise ValueError(f"{folder} holds no .npz files with X and y.")
    return tables


def main(argv: list[str]) -> int:
    """Fit those that are missing, print failures and counts; 1 where there are failures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fits --stress", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, help="folder of .npz files with X and y")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--quick", action="store_true", help="20 problems; nothing is written")
    parser.add_argument("--limit", type=float, default=120.0, help="processor seconds of a fit")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results, JSON lines")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    tables = read_tables(options.data)
    count = 20 if options.quick else options.problems
    made_with = {
        "data": sorted(tables) or "made up",
        "limit": options.limit,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    found = [] if options.quick else records.read(options.out)
    if found and made_with not in found:
        print(f"{options.out} was not made with {made_with}; give another --out", file=sys.stderr)
        return 2
    if not found and not options.quick:
        records.append(options.out, made_with)
    there = {record["problem"] for record in found if "problem" in record}
    missing = [k for k in range(options.first, options.first + count) if k not in there]
    for seed in tqdm(missing, desc="problems", disable=None):
        problem, watch = random_problem(seed, tables), Stopwatch()
        record = {"problem": seed, "verdict": verdict(problem, options.limit)}
        record |= {"seconds": round(watch.seconds, 1)}
        if record["verdict"] != WELL:
            record["what"] = problem.description
            tqdm.write(f"{seed}: {problem.description}: {record['verdict']}", file=sys.stdout)
        found.append(record)
        if not options.quick:
            records.append(options.out, record)
    ended = [record for record in found if "problem" in record]
    kinds = Counter(r["verdict"] if r["verdict"] in (WELL, NOT_ENDED) else "badly" for r in ended)
    seconds = sum(record["seconds"] for record in ended)
    print(f"{dict(kinds)} of {len(ended)} problems in {seconds:.0f} processor seconds")
    return int(kinds[WELL] < len(ended))
