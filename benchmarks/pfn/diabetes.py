"""Is the shipped network any good on real data it has never seen?

Task: scikit-learn's diabetes (442 rows, 10 features), random 80/20 splits, every model with inputs
and targets standardised by the training rows. Competitors: predicting the training mean with the
training deviation, and BoTorch's default Gaussian process fitted by marginal likelihood. The
training part has 353 rows, the network was trained on up to 256: both all rows and the first 256
are tried.

    python -m benchmarks pfn            # 20 splits, about half a minute on one core
    python -m benchmarks pfn --quick    # 3 splits
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import botorch
import sklearn
import torch
from botorch.exceptions import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.models.transforms.input import InputStandardize
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.operators import DiagLinearOperator
from sklearn.datasets import load_diabetes
from torch import Tensor

import pfn
from bayes import compare
from priors import GaussianPosterior

ROOT = Path(__file__).resolve().parents[2]


class TrainingMean:
    """Predicts every target by mean and deviation of the training targets."""

    def __init__(self, train_X: Tensor, train_Y: Tensor) -> None:
        self.mean, self.var = train_Y.mean(), train_Y.var()

    def posterior(self, X: Tensor, observation_noise: bool = False) -> GaussianPosterior:
        """The same Gaussian at every row."""
        size = X.shape[:-1]
        variance = DiagLinearOperator(self.var.expand(size))
        return GaussianPosterior(MultivariateNormal(self.mean.expand(size), variance))


def botorch_default(train_X: Tensor, train_Y: Tensor) -> SingleTaskGP:
    """BoTorch's default model on the same transforms."""
    transform = InputStandardize(d=train_X.shape[-1])
    model = SingleTaskGP(
        train_X, train_Y, input_transform=transform, outcome_transform=Standardize(m=1)
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def main(argv: list[str] | None = None) -> int:
    """Run the splits, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pfn", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="3 splits")
    parser.add_argument("--splits", type=int, help="number of random splits (20)")
    parser.add_argument("--network", default="regression", help="shipped name or file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    num_splits = options.splits or (3 if options.quick else 20)
    warnings.filterwarnings("ignore", category=InputDataWarning)
    warnings.filterwarnings("ignore", message="This network was trained on up to")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)

    network = pfn.load(options.network).to(device)
    rows_X, rows_y = (
        torch.tensor(v, device=device) for v in load_diabetes(return_X_y=True, scaled=False)
    )
    splits = []
    for seed in range(num_splits):
        order = torch.randperm(len(rows_y), generator=torch.Generator().manual_seed(seed)).to(
            device
        )
        train, test = order[:353], order[353:]
        splits.append((rows_X[train], rows_y[train, None], rows_X[test], rows_y[test, None]))
    models: dict[str, Any] = {
        "PFN, all rows": network.condition,
        "PFN, 256 rows": lambda X, Y: network.condition(X[:256], Y[:256]),
        "BoTorch SingleTaskGP": botorch_default,
        "training mean": TrainingMean,
    }
    comparison = compare(models, splits)
    print(comparison)
    differences = {}
    for other in ("BoTorch SingleTaskGP", "training mean"):
        mean, error = comparison.difference("PFN, all rows", other)
        differences[other] = {"nlpd_difference": mean, "standard_error": error}
        print(f"PFN, all rows - {other}: {mean:+.4f} ± {error:.4f} nats per row")
    record = {
        "benchmark": "shipped regression network on diabetes",
        "command": "python -m benchmarks pfn " + " ".join(argv or []),
        "splits": num_splits,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "botorch": botorch.__version__,
            "sklearn": sklearn.__version__,
        },
        "device": f"{device}, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "network": network.metadata.get("training"),
        "table": comparison.records(),
        "pfn_minus": differences,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "pfn_diabetes_quick" if options.quick else "pfn_diabetes"
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
