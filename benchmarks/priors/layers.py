"""How good are features that give a layer f(w.x + b) and its kernel as inner products?

Relative Frobenius error of f(W X^T + b) for 1000 standard normal points and 1000 neurons of weight
variance 1 / d and bias variance 0.1, and of its kernel at the points, by number of features: 5
draws, mean and standard error. "universal" has the leading components, "unbiased" random ones of
f to a relative 0.05. Beside them

    exponential   a Fourier series of f, sampled, and random exponential features of every wave
                  (Sehanobish et al. 2024, 2310.13225)
    neurons       a finite network, for the kernel
    best rank     what no product of so many features is under, on these points
    independent   what no unbiased mean of so many independent products is under, on these points

    python -m benchmarks layers            # about a minute
    python -m benchmarks layers --quick    # fewer and smaller
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from priors.gaussian.activations import GELU, ABReLU, Activation
from priors.kernels.random_features import FeatureError, NNGPFeatures, plot_feature_error
from priors.kernels.universal_features import UniversalFeatures

ROOT = Path(__file__).resolve().parents[2]
BIAS_VAR = 0.1
UNBIASED_TOLERANCE = 0.05  # of f; more polynomials would have more variance than they explain


def exponential(f: Activation, z: Tensor, w: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Estimate f(z @ w.T) by m / 2 complex products.

    f, mirrored at both ends of the arguments that occur so as to be periodic and continuous, is a
    sum of waves, cut at UNBIASED_TOLERANCE; exp(i k z.w) = E[phi(z) phi(w)], phi(z) =
    exp(c g.z - c^2 |z|^2 / 2), c^2 = i k.
    """
    end = 1.1 * (z @ w.mT).abs().max()
    grid = torch.arange(-2048, 2048, dtype=z.dtype) / 1024 * end  # one period, -2 to 2 ends
    inside = torch.where(grid.abs() <= end, grid, grid.sign() * 2 * end - grid)
    series = torch.fft.fft(torch.fft.ifftshift(f(inside))) / len(grid)
    # high waves have features of huge variance: as few of them as the tolerance allows
    order = torch.fft.fftfreq(len(grid)).abs().argsort(stable=True)
    energy = series[order].abs().square()
    missing = energy.sum() - energy.cumsum(0)
    series[order[missing.le(UNBIASED_TOLERANCE**2 * energy.sum()).nonzero()[0, 0] + 1 :]] = 0
    waves = torch.fft.fftfreq(len(grid), 1 / 2048, dtype=z.dtype) * math.pi / end
    size = series.abs().sum()
    chosen = torch.multinomial(series.abs(), m // 2, replacement=True, generator=generator)
    g = torch.randn(m // 2, z.shape[-1], generator=generator, dtype=z.dtype)
    square = 1j * waves[chosen]
    balance = (w.norm() / z.norm()).sqrt()

    def features(v: Tensor) -> Tensor:
        return (square.sqrt() * (v @ g.mT) - square * v.square().sum(-1, keepdim=True) / 2).exp()

    phase = series[chosen] / series[chosen].abs() * size / (m // 2)
    return ((features(z * balance) * phase) @ features(w / balance).mT).real


def main(argv: list[str]) -> int:
    """Measure, print, and write JSON and a figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks layers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = [64, 256] if options.quick else [64, 128, 256, 512, 1024]
    n, repeats = (300, 2) if options.quick else (1000, 5)
    cases = [(f, d) for f in (GELU(), ABReLU()) for d in (3, 16)]
    figure = Figure(figsize=(13.0, 6.4), layout="constrained")
    axes = figure.subplots(2, len(cases), sharex=True)
    rows: list[dict[str, Any]] = []
    for column, (f, d) in enumerate(cases):
        name = f"{'GELU' if isinstance(f, GELU) else 'ReLU'}, {d} inputs"
        for row, (what, curves) in enumerate(measure(f, d, n, sizes, repeats).items()):
            for method, curve in curves.items():
                for k, m in enumerate(curve.sizes.tolist()):
                    error, spread = curve.error[k].item(), curve.standard_error[k].item()
                    entry = {"case": name, "of": what, "method": method, "features": m}
                    rows.append({**entry, "error": error, "standard_error": spread})
                    print(f"{name} {what:6s} {method:11s} {m:5d}: {error:9.2e} +- {spread:.0e}")
            plot_feature_error(curves, axes[row, column])
            axes[row, column].set_title(name)
            axes[row, column].set_ylabel(f"relative error of the {what}")
    record = {
        "question": __doc__.splitlines()[0],
        "device": platform.processor() or platform.machine(),
        "threads": 1,
        "seed": 0,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "n": n,
        "unbiased_tolerance": UNBIASED_TOLERANCE,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = "layers_quick" if options.quick else "layers"
    (options.out / f"{file}.json").write_text(json.dumps(record, indent=1) + "\n")
    figure.savefig(options.out / f"{file}.png", dpi=100)
    return 0


@torch.no_grad()
def measure(
    f: Activation, d: int, n: int, sizes: list[int], repeats: int
) -> dict[str, dict[str, FeatureError]]:
    """Errors of the layer and of the kernel by method."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    w = torch.randn(n, d + 1, generator=generator, dtype=torch.float64)
    weight, bias = w[:, :-1] / math.sqrt(d), w[:, -1] * math.sqrt(BIAS_VAR)
    z = torch.cat([X / math.sqrt(d), X.new_full((n, 1), math.sqrt(BIAS_VAR))], -1)
    layer, c = f(z @ w.mT), z @ z.mT
    q = c.diagonal()
    kernel = f.dual(f, q[:, None].expand(n, n), q.expand(n, n), c)
    shared: dict[bool, Any] = {True: None, False: None}
    start = time.perf_counter()

    def ours(m: int, g: torch.Generator, target: str, unbiased: bool) -> UniversalFeatures:
        made = UniversalFeatures(
            d,
            m,
            max_norm=X.norm(dim=-1).max().item(),
            activation=f,
            bias_var=BIAS_VAR,
            unbiased=unbiased,
            target=target,
            tolerance=UNBIASED_TOLERANCE if unbiased else 1e-3,
            expansion=shared[unbiased],
            generator=g,
        )
        shared[unbiased] = made.expansion
        return made

    def gram(features: Tensor) -> Tensor:
        return features @ features.mT

    def neurons(m: int, g: torch.Generator) -> Tensor:
        made = NNGPFeatures(
            d, m, weight_var=[1.0, 1.0], bias_var=[BIAS_VAR, 0.0], activation=f, generator=g
        )
        return gram(made(X))

    estimates: dict[str, dict[str, Callable[[int, torch.Generator], Tensor]]] = {
        "layer": {
            "universal": lambda m, g: ours(m, g, "layer", False).layer(X, weight, bias),
            "unbiased": lambda m, g: ours(m, g, "layer", True).layer(X, weight, bias),
            "exponential": lambda m, g: exponential(f, z, w, m, g),
        },
        "kernel": {
            "universal": lambda m, g: gram(ours(m, g, "kernel", False)(X)),
            "unbiased": lambda m, g: gram(ours(m, g, "kernel", True)(X)),
            "neurons": neurons,
        },
    }
    found: dict[str, dict[str, FeatureError]] = {}
    for what, exact in (("layer", layer), ("kernel", kernel)):
        found[what] = {}
        for method, estimate in estimates[what].items():
            errors = torch.empty(len(sizes), repeats, dtype=torch.float64)
            for k, m in enumerate(sizes):
                for r in range(repeats):
                    drawn = estimate(m, torch.Generator().manual_seed(r))
                    errors[k, r] = (drawn - exact).norm() / exact.norm()
            spread = errors.std(-1) / repeats**0.5
            found[what][method] = FeatureError(torch.tensor(sizes), errors.mean(-1), spread)
        values = torch.linalg.svdvals(exact)
        below = [m for m in sizes if m < n]
        best = torch.stack([values[m:].norm() / values.norm() for m in below])
        excess = (values.sum() / values.norm()).square() - 1
        independent = (excess / torch.tensor(sizes)).sqrt()
        found[what]["best rank"] = FeatureError(torch.tensor(below), best, 0 * best)
        found[what]["independent"] = FeatureError(torch.tensor(sizes), independent, 0 * independent)
    print(f"{time.perf_counter() - start:.0f} s")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
