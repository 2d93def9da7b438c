"""In-context linear regression: does a network become ridge, and one layer one gradient step?

network    w ~ N(0, I / d), x ~ N(0, I), noise variance 0.1, d = 5, up to 40 context rows, in raw
           units; against Bayesian linear regression, whose mean is ridge. Gap in nats per point
           (target: 0.01). Half the training tasks use only some of the features: with all of them
           in every task the gap was still 0.71 after 1,250 steps (40,000 tasks), near that of the
           prior predictive, a known plateau of in-context regression. With the easier tasks the
           plateau ended between 600 and 1,400 steps (one seed each). Also the root mean square
           difference of the means, for scale beside ridge's own error and least squares'
           difference from ridge.
attention  One layer of linear attention with free weights, trained on the same prior with and
           without noise and on anisotropic inputs, against the closed form of the best
           preconditioned gradient step (`benchmarks.pfn.linear_attention`): matrix entries, the
           blocks that should be 0, and predictions.

    python -m benchmarks pfn linear             # 42 min: 40 for the network
    python -m benchmarks pfn linear --minutes 5
    python -m benchmarks pfn linear --quick     # a minute
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.commands import command
from benchmarks.pfn.common import ROOT, device, parser, write
from benchmarks.pfn.linear_attention import LinearTasks, train_linear_attention
from benchmarks.pfn.mimicry import TRAINING, _costs, _show, about, architecture, gaps, part, trained
from benchmarks.pfn.processes import GaussianTasks, Sizes
from pfn import PFN
from priors.tasks.task import Task

PARTS = ("attention", "network")
FEATURES, NOISE_VAR, CONTEXTS = 5, 0.1, (0, 5, 10, 20, 40)
TASKS = {
    "isotropic, noisy": LinearTasks((1.0,) * FEATURES, 1 / FEATURES, NOISE_VAR, 20),
    "isotropic, noiseless": LinearTasks((1.0,) * FEATURES, 1 / FEATURES, 0.0, 20),
    "anisotropic, noisy": LinearTasks((2.0, 1.5, 1.0, 0.5, 0.25), 1 / FEATURES, NOISE_VAR, 20),
}


def linear_covariance(X: Tensor) -> Tensor:
    """Of w' x with w ~ N(0, I / d)."""
    return X @ X.mT / X.shape[-1]


def linear_prior() -> GaussianTasks:
    """Bayesian linear regression as a Gaussian process."""
    sizes = Sizes(FEATURES, (1.0,), max(CONTEXTS), 24, normal=True, growing=True)
    text = f"linear functions of {FEATURES} standard normal inputs, noise variance {NOISE_VAR}"
    return GaussianTasks(linear_covariance, NOISE_VAR, sizes, description=text)


def ridge(task: Task, penalty: float) -> Tensor:
    """Ridge predictions at the queries, `[B, m]`; minimum-norm least squares at penalty 0."""
    n, X, y = task.num_context, task.X.double(), task.y.double()
    known = X[:, :n]
    if penalty == 0:
        w = torch.linalg.pinv(known) @ y[:, :n]
    else:
        eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
        w = torch.linalg.solve(known.mT @ known + penalty * eye, known.mT @ y[:, :n])
    return (X[:, n:] @ w)[..., 0]


@torch.no_grad()
def means(network: PFN, task: Task) -> Tensor:
    """Predicted means at the queries, `[B, m]`."""
    n = task.num_context
    encoding = network.encode(task.X[:, :n], task.y[:, :n, 0])
    logits, _ = network.decode(encoding, task.X[:, n:])
    assert network.bars is not None
    return (encoding.location + encoding.scale * network.bars.mean(logits)).double()


def regression(options: argparse.Namespace) -> dict[str, Any]:
    """The network against Bayesian linear regression."""
    prior = linear_prior()
    config = replace(TRAINING, **architecture(max_features=FEATURES))
    network, entries = trained("linear", prior, config, options.minutes, options)
    found = {**about(network, entries), **gaps(network, prior.full(), options)}
    print(f"network: {_show(found['mean'])}; {_costs(found)}", flush=True)
    task = prior.full().sample(
        options.tasks,
        generator=torch.Generator(device()).manual_seed(options.seed + 40_000),
        device=device(),
        dtype=torch.float32,
    )
    found["means"] = {}
    for n in CONTEXTS[1:]:
        asked = part(task, n)
        best = ridge(asked, NOISE_VAR * FEATURES)
        y = asked.y[:, n:, 0].double()
        found["means"][str(n)] = row = {
            "network_from_ridge": _rms(means(network, asked) - best),
            "least_squares_from_ridge": _rms(ridge(asked, 0.0) - best),
            "ridge_error": _rms(best - y),
            "network_error": _rms(means(network, asked) - y),
        }
        gap = found["by_context"][n]
        print(f"n {n:>3}: gap {gap['gap']:.4f} ± {gap['error']:.4f}, {row}", flush=True)
    return found


def attention(options: argparse.Namespace) -> dict[str, Any]:
    """One layer of linear attention against one gradient step."""
    found: dict[str, Any] = {}
    for name, tasks in TASKS.items():
        start = time.perf_counter()
        layer = train_linear_attention(
            tasks, steps=options.steps, batch=options.batch, seed=options.seed
        )
        A, best = layer.preconditioner(), torch.diag(tasks.step_size())
        generator = torch.Generator().manual_seed(options.seed + 50_000)
        X, y, target = tasks.sample(50_000, generator)
        with torch.no_grad():
            own, step, bayes = layer(X, y), tasks.gradient_step(X, y), tasks.ridge(X, y)
        found[name] = row = {
            "seconds": time.perf_counter() - start,
            "diagonal": A.diagonal().tolist(),
            "diagonal_of_gradient_step": best.diagonal().tolist(),
            "relative_error_of_matrix": float((A - best).norm() / best.norm()),
            **layer.other_entries(),
            "prediction_cosine": float(F.cosine_similarity(own, step, dim=0)),
            "prediction_difference": _rms(own - step) / _rms(step),
            "risk": float((own - target).square().mean()),
            "risk_of_gradient_step": float((step - target).square().mean()),
            "risk_of_gradient_step_in_closed_form": float(tasks.risk(best)),
            "risk_of_ridge": float((bayes - target).square().mean()),
        }
        shown = {
            key: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 5)
            for key, value in row.items()
        }
        print(f"{name}: {shown}", flush=True)
    return found


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.double().square().mean()))


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options, with the defaults of `--quick`."""
    made = parser("linear", __doc__)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--minutes", type=float, help="for the network (40)")
    made.add_argument("--tasks", type=int, help="tasks of each measurement (1024)")
    made.add_argument("--steps", type=int, help="for the layer of linear attention (6000)")
    made.add_argument("--batch", type=int, default=1024, help="of the same")
    made.add_argument("--networks", type=Path, default=ROOT / "runs" / "mimicry")
    made.add_argument("--reuse", action="store_true", help="do not train a network that is saved")
    options = made.parse_args(argv)
    usual = {"minutes": (40.0, 0.4), "tasks": (1024, 64), "steps": (6000, 500)}
    for name, values in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.quick])
    return options


def main(argv: list[str] | None = None) -> int:
    """Train, compare, print, write JSON; parts that are not run keep what was found earlier."""
    argv = sys.argv[1:] if argv is None else argv
    options = options_of(argv)
    device()
    path = options.out / f"pfn_linear{'_quick' if options.quick else ''}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    results = {name: earlier[name] for name in PARTS if name in earlier}
    runs = {"attention": attention, "network": regression}
    for name in options.parts:
        results[name] = {"command": command("pfn linear", argv), **runs[name](options)}
    write("linear", options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
