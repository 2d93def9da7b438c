"""How long do BoTorch's acquisition functions take on a network, and on a Gaussian process?

The network `bo` and BoTorch's `SingleTaskGP`, not fitted, on the same rows of a smooth function of
four inputs; one thread. Seconds to construct an acquisition function, and of its value and gradient
at a batch of candidates, the second time: the first one of noisy expected improvement samples the
baseline, which later ones share.

    python -m benchmarks pfn acquisitions             # 20 rows, some minutes
    python -m benchmarks pfn acquisitions --quick     # 8 rows, 16 samples
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import botorch.acquisition as stock
import torch
from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy
from botorch.acquisition.multi_step_lookahead import qMultiStepLookahead
from botorch.models import SingleTaskGP
from botorch.sampling import SobolQMCNormalSampler
from torch import Tensor

import pfn
import priors
from benchmarks.pfn import common
from priors import GaussianApproximation

FEATURES = 4


def functions(
    model: Any, X: Tensor, best: float, samples: int
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Points per candidate set, and what constructs the acquisition function."""

    def sampler(number: int = samples) -> SobolQMCNormalSampler:
        return SobolQMCNormalSampler(torch.Size([number]), seed=0)

    network = not isinstance(model, SingleTaskGP)
    gaussian = GaussianApproximation(model) if network else model
    analytic = priors.LogExpectedImprovement if network else stock.LogExpectedImprovement
    fewer = {"sampler": sampler(), "prune_baseline": False}
    return {
        "LogExpectedImprovement": (1, lambda: analytic(model, best)),
        "qLogExpectedImprovement": (
            2,
            lambda: stock.qLogExpectedImprovement(model, best, sampler()),
        ),
        "qLogNoisyExpectedImprovement": (
            1,
            lambda: stock.qLogNoisyExpectedImprovement(model, X, sampler()),
        ),
        "qLogNoisyExpectedImprovement, not pruned": (
            1,
            lambda: stock.qLogNoisyExpectedImprovement(model, X, **fewer),
        ),
        "qUpperConfidenceBound": (2, lambda: stock.qUpperConfidenceBound(model, 2.0, sampler())),
        "qSimpleRegret": (2, lambda: stock.qSimpleRegret(model, sampler())),
        "qKnowledgeGradient, 8 fantasies": (
            9,
            lambda: stock.qKnowledgeGradient(model, 8, sampler(8)),
        ),
        "qMultiStepLookahead": (
            7,
            lambda: qMultiStepLookahead(model, [1, 1], samplers=[sampler(2), sampler(2)]),
        ),
        "qNegIntegratedPosteriorVariance": (
            1,
            lambda: qNegIntegratedPosteriorVariance(model, torch.rand(64, FEATURES).to(X)),
        ),
        "qLowerBoundMaxValueEntropy": (
            1,
            lambda: qLowerBoundMaxValueEntropy(gaussian, torch.rand(64, FEATURES).to(X)),
        ),
    }


def seconds(make: Callable[[], Any], X: Tensor) -> tuple[float, float]:
    """To construct, and of a value with its gradient."""
    start = time.perf_counter()
    acquisition = make()
    construct = time.perf_counter() - start
    for _ in range(2):
        again = X.clone().requires_grad_()
        start = time.perf_counter()
        torch.autograd.grad(acquisition(again).sum(), again)
    return construct, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Print and write the table."""
    parser = common.parser("acquisitions", __doc__)
    parser.add_argument("--rows", type=int, help="observations (20)")
    parser.add_argument("--samples", type=int, help="Monte Carlo samples (128)")
    parser.add_argument("--candidates", type=int, default=4, help="in a batch (4)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rows = options.rows or (8 if options.quick else 20)
    samples = options.samples or (16 if options.quick else 128)
    X = torch.rand(rows, FEATURES, dtype=torch.float64)
    Y = -(X - 0.4).square().sum(-1, keepdim=True) + 0.1 * torch.sin(9 * X[:, :1])
    models = {"network": pfn.load("bo").condition(X, Y, check=False), "gp": SingleTaskGP(X, Y)}
    found: dict[str, dict[str, list[float]]] = {}
    print(f"{'':42} {'network':>17} {'SingleTaskGP':>17}")
    for name in functions(models["gp"], X, float(Y.max()), samples):
        found[name] = {}
        for kind, model in models.items():
            q, make = functions(model, X, float(Y.max()), samples)[name]
            candidates = torch.rand(options.candidates, q, FEATURES, dtype=torch.float64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name][kind] = list(seconds(make, candidates))
        print(f"{name:42} " + " ".join(f"{a:8.3f} {b:8.3f}" for a, b in found[name].values()))
    results = {"rows": rows, "samples": samples, "candidates": options.candidates}
    print(common.write("acquisitions", options, {**results, "seconds": found}))
    return 0
