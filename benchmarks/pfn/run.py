"""The benchmarks of prior-data fitted networks: `python -m benchmarks pfn [NAME ...] [options]`.

mimicry     gap to the exact posterior of Gaussian, Student t and network priors; scaling; coherence
linear      in-context linear regression: ridge, and one step of gradient descent
speed       against marginal likelihood, NUTS and HMC at equal data; break-even with training
real        real data sets against scikit-learn's models
throughput  training tasks per second and latency, against the transformer of `pfns`
acquisitions  seconds of BoTorch's acquisition functions, beside SingleTaskGP
surrogate   Bayesian optimisation of test functions against SingleTaskGP
rows        more rows than a network was trained on, and a minute of fine-tuning
curves      forecasts of real learning curves against a Gaussian process and the last value, and of
            curves of the priors of LC-PFN and FT-PFN against MCMC
collinear   columns that are nearly the same, with and without whitened members
linear_member  a logistic regression in an ensemble of classification, on tasks of its prior
recipes     what holds small networks back at low noise, one change of the recipe at a time

Without a name all of them run, one after the other; options go to each.
"""

from __future__ import annotations

import importlib

NAMES = (
    "mimicry",
    "linear",
    "speed",
    "real",
    "throughput",
    "acquisitions",
    "surrogate",
    "rows",
    "curves",
    "collinear",
    "linear_member",
    "recipes",
)


def main(argv: list[str]) -> int:
    """Run the named benchmarks, or all; the number of those that failed."""
    if "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    names, options = argv[:count] or list(NAMES), argv[count:]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; known are {', '.join(NAMES)}")
        return 2
    failed = 0
    for name in names:
        print(f"== {name}")
        failed += bool(importlib.import_module(f"benchmarks.pfn.{name}").main(options))
    return failed
