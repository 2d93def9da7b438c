"""How good are random features of the network kernels, and what do they save?

Relative Frobenius error of the NNGP and NTK of a fully connected ReLU network of depth 3 at 500
points of 16 features, by number of features (5 draws, mean and standard error); and Gaussian
process regression on 20000 points, where the exact kernel matrix alone takes 3.2 GB: seconds and
test error, against the exact process on the first 2000 points.

    python -m benchmarks features            # about a minute
    python -m benchmarks features --quick    # fewer and smaller
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from priors import InfiniteNetwork, NNGPKernel, NTKKernel
from priors.kernels.random_features import feature_error, plot_feature_error, random_features

ROOT = Path(__file__).resolve().parents[2]
NOISE_VAR = 0.05


def network() -> InfiniteNetwork:
    """Depth 3, ReLU."""
    layers: list[nn.Module] = []
    for k in range(3):
        layers += [nn.Linear(16 if k == 0 else 8, 8), nn.ReLU()]
    return InfiniteNetwork(nn.Sequential(*layers, nn.Linear(8, 1)), weight_var=2.0, bias_var=0.1)


def data(n: int) -> tuple[Tensor, Tensor]:
    """Standard normal points and a smooth target with noise."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    y = torch.sin(X[:, 0] + X[:, 1]) + 0.5 * X[:, 2] * X[:, 3]
    return X, y + NOISE_VAR**0.5 * torch.randn(n, generator=generator, dtype=torch.float64)


def ridge(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Predictions of the Gaussian process whose kernel is z z^T."""
    gram = z.mT @ z + NOISE_VAR * torch.eye(z.shape[-1], dtype=z.dtype)
    return t @ torch.cholesky_solve((z.mT @ y)[:, None], torch.linalg.cholesky(gram))[:, 0]


def main(argv: list[str]) -> int:
    """Measure, print, and write JSON and a figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks features", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = [64, 256, 1024] if options.quick else [64, 128, 256, 512, 1024, 2048, 4096, 8192]
    large = 4000 if options.quick else 20000
    made = network()
    X, y = data(large + 1000)
    rows: list[dict[str, Any]] = []
    curves = {}
    for kind, kernel in (("nngp", NNGPKernel(made)), ("ntk", NTKKernel(made))):
        curves[kind] = feature_error(
            lambda m, g, kind=kind: random_features(made, m, kind=kind, generator=g),
            kernel,
            X[:500],
            sizes,
        )
        few = 2000
        with torch.no_grad():
            start = time.perf_counter()
            own = kernel(X[:few]).to_dense() + NOISE_VAR * torch.eye(few, dtype=X.dtype)
            cross = kernel(X[large:], X[:few]).to_dense()
            mean = cross @ torch.linalg.solve(own, y[:few])
            exact_s = time.perf_counter() - start
        exact = {
            "kind": kind,
            "exact_n": few,
            "exact_s": exact_s,
            "exact_mse": mse(mean, y[large:]),
        }
        print(f"{kind}: exact at n = {few}: {exact_s:.2f} s, test mse {exact['exact_mse']:.3f}")
        for k, size in enumerate(sizes):
            generator = torch.Generator().manual_seed(0)
            features = random_features(made, size, kind=kind, generator=generator)
            row = {
                "kind": kind,
                "features": size,
                "error": curves[kind].error[k].item(),
                "standard_error": curves[kind].standard_error[k].item(),
            }
            if size <= 2048:
                with torch.no_grad():
                    start = time.perf_counter()
                    z = features(X[:large])
                    row["features_s"] = time.perf_counter() - start
                    mean = ridge(z, y[:large], features(X[large:]))
                    row["regression_s"] = time.perf_counter() - start
                    row["mse"] = mse(mean, y[large:])
            rows.append({**row, **exact})
            text = f"{kind} {size:5d} features: error {row['error']:.4f}"
            text += f" +- {row['standard_error']:.4f}"
            if "mse" in row:
                text += f", n = {large}: {row['regression_s']:.2f} s, test mse {row['mse']:.3f}"
            print(text, flush=True)
    name = "features_quick" if options.quick else "features"
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "question": __doc__.splitlines()[0],
        "device": platform.processor() or platform.machine(),
        "threads": 1,
        "seed": 0,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "n": large,
        "rows": rows,
    }
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    axes = plot_feature_error(curves)
    axes.figure.savefig(options.out / f"{name}.png", dpi=120)
    return 0


def mse(mean: Tensor, y: Tensor) -> float:
    """Mean squared error."""
    return (mean - y).square().mean().item()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
