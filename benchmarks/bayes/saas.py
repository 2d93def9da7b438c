"""Is our fully Bayesian SAAS process BoTorch's, and what does each cost?

BoTorch 0.18.1's `SaasFullyBayesianSingleTaskGP` is fitted by NumPyro's NUTS, in an environment of
its own (`make saas`); ours by `GaussianProcess.fit(method=ChEES())`, without JAX. 40 rows of 8
inputs in the unit cube, of which two matter, outcomes standardised, and the same prior: its
constant mean, N(0, 1), is here a constant kernel of variance 1, and its noise variance is 1e-4 and
what Gamma(0.9, 10) gives.

Compared are the means of all logarithms of hyperparameters and of the functions at 20 further
inputs, as both models predict them, in Monte Carlo standard errors of both. Chance gives 2 to 3 at
the worst of 30; beyond 4 they are not the same. Effective draws are the smallest, bulk or tail,
over all these quantities; seconds are the processor's, of one thread, compilation included.

"ChEES, short" has 200 iterations of warm-up and 60 draws in place of 512 and 500: about as many
effective draws as BoTorch's fits have.

BoTorch's are `--seeds` fits of one chain each, as its `fit_fully_bayesian_model_nuts` makes them
(dense metric, trees of at most 6 doublings), with 512 iterations of warm-up, which is its default,
and 500 draws, all kept, where the default keeps 16 of 256. JAX compiles in the first of them.

    python -m benchmarks networks --saas            # minutes
    python -m benchmarks networks --saas --table    # of what is there

A run appends to `--out` and skips what is there.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import ConstantKernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior
from torch import Tensor

from bayes import ChEES, GaussianProcess, SaasPrior
from bayes.inference import InferenceMethod
from bayes.inference.chain_statistics import bulk_ess, tail_ess
from benchmarks import records, runs
from benchmarks.bayes import side

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "saas.jsonl"
PYTHON = ROOT / ".venv-saas" / "bin" / "python"
BOTORCH, OURS, SHORT = "BoTorch", "ChEES", "ChEES, short"
LEAST_NOISE = 1e-4
_WARMUP, _DRAWS = 512, 500
# Iterations of warm-up and draws of ours
_LENGTHS = {OURS: (_WARMUP, _DRAWS), SHORT: (200, 60)}


class ShiftedGammaPrior(GammaPrior):
    """Gamma above the least noise variance, as BoTorch's is."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Of noise variances above the least."""
        found: Tensor = super().log_prob(x - LEAST_NOISE)
        return found


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Training inputs `[40, 8]`, outcomes `[40, 1]` of mean 0 and variance 1, inputs `[20, 8]`."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(60, 8, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + 2 * X[:, 3:4].square()
    Y = Y[:40] + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    return X[:40], (Y - Y.mean()) / Y.std(), X[40:]


def ours(X: Tensor, Y: Tensor) -> GaussianProcess:
    """Our process with BoTorch's priors, not yet fitted."""
    mean = ConstantKernel()
    mean.constant = torch.ones(1)
    mean.requires_grad_(False)
    kernel = ScaleKernel(
        MaternKernel(ard_num_dims=X.shape[-1], lengthscale_prior=SaasPrior(0.1)),
        outputscale_prior=GammaPrior(2.0, 0.15),
    )
    likelihood = GaussianLikelihood(
        noise_prior=ShiftedGammaPrior(0.9, 10.0), noise_constraint=GreaterThan(LEAST_NOISE)
    )
    return GaussianProcess(
        X,
        Y,
        (kernel + mean).to(X),
        likelihood=likelihood.to(X),
        input_transform=None,
        outcome_transform=None,
    )


def quantities(model: GaussianProcess, method: InferenceMethod, test_X: Tensor) -> Tensor:
    """Fit, and what is compared, `[chains, draws, k]`.

    Logarithms of output scale, length scales and noise, then functions at `test_X`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, which is compared
        model.fit(method=method, num_draws=10**9)
    assert model.draws is not None
    chains = model.draws.samples["position"].shape[:2]
    drawn = model.hyperparameter_draws()
    scales = "kernel.kernels.0."
    with torch.no_grad():
        posterior: Any = model.posterior(test_X)
        parts = [
            drawn[f"{scales}outputscale"].reshape(-1, 1).log(),
            drawn[f"{scales}base_kernel.lengthscale"].flatten(1).log(),
            (drawn["likelihood.noise_covar.noise"].reshape(-1, 1) - LEAST_NOISE).log(),
            posterior.components.mean.squeeze(-1),
        ]
    return torch.cat(parts, -1).unflatten(0, chains)


def summary(values: Tensor) -> dict[str, Any]:
    """Means of `[chains, draws, k]`, their standard errors and the fewest effective draws."""
    bulk = bulk_ess(values)
    return {
        "effective": float(torch.minimum(bulk, tail_ess(values)).min()),
        "means": values.mean((0, 1)).tolist(),
        "errors": (values.flatten(0, 1).std(0) / bulk.sqrt()).tolist(),
        "draws": values.shape[:2].numel(),
    }


def main(argv: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = runs.parser_of("networks --saas", __doc__, RESULT)
    parser.add_argument("--seeds", type=int, default=4, help="of BoTorch's fits, a chain each (4)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not options.table:
        _run(options)
    print(table(records.read(options.out)))
    return 0


def _run(options: argparse.Namespace) -> None:
    done = {record["method"] for record in records.read(options.out)}
    X, Y, test_X = problem()
    for name, (warmup, draws) in _LENGTHS.items():
        if name in done:
            continue
        method = ChEES(num_chains=16, num_warmup=warmup, num_samples=draws, progress=False)
        before = time.process_time()
        values = quantities(ours(X, Y), method, test_X)
        seconds = time.process_time() - before
        _keep(options.out, name, values, [seconds], version("torch"))
    if BOTORCH not in done and not PYTHON.exists():
        print(f"{BOTORCH} is left out: `make saas` makes its environment", file=sys.stderr)
    elif BOTORCH not in done:
        told = {
            "train_X": X.tolist(),
            "train_Y": Y.tolist(),
            "test_X": test_X.tolist(),
            "seeds": options.seeds,
            "warmup": _WARMUP,
            "draws": _DRAWS,
        }
        found = side.answer(BOTORCH, PYTHON, "saas_side.py", told)
        values = torch.tensor(found["values"], dtype=torch.float64)
        _keep(options.out, BOTORCH, values, found["seconds"], found["versions"])


def _keep(out: Path, method: str, values: Tensor, seconds: list[float], versions: str) -> None:
    record = {"method": method, **summary(values), "seconds": seconds, "versions": versions}
    records.append(out, {**record, "machine": platform.machine()})


def distances(found: list[dict[str, Any]], name: str) -> Tensor | None:
    """Of our means to BoTorch's in standard errors of both, `[k]`; None without both."""
    one, other = (next((r for r in found if r["method"] == m), None) for m in (name, BOTORCH))
    if one is None or other is None:
        return None
    means, errors = (torch.tensor([r[key] for r in (one, other)]) for key in ("means", "errors"))
    return (means[0] - means[1]).abs() / errors.square().sum(0).sqrt()


def table(found: list[dict[str, Any]]) -> str:
    """Costs, and how far means are from each other."""
    lines = [f"{'':13}{'draws':>8}{'effective':>11}{'a second':>10}  seconds of each fit"]
    for record in found:
        each = ", ".join(f"{seconds:.1f}" for seconds in record["seconds"])
        lines.append(
            f"{record['method']:13}{record['draws']:8d}{record['effective']:11.0f}"
            f"{record['effective'] / sum(record['seconds']):10.1f}  {each}"
        )
    for name in _LENGTHS:
        if (far := distances(found, name)) is not None:
            lines.append(
                f"{name}: means differ by at most {float(far.max()):.1f} standard errors, "
                f"{len(far)} of them"
            )
    return "\n".join(lines)
