"""The benchmarks of architecture search: `python -m benchmarks search NAME [options]`.

digits      networks trained for real, against what people use; what runs without a name
lookups     tables of trained networks, against what people use, query for query
grammars    networks of grammars trained for real, in searches that are killed
functions   known functions of networks and hyperparameters, against what people use
oracle      queries to the best cell, calibration, warm starts
pareto      accuracy and latency together, against what people use
overhead    processor seconds for each proposal, as the trials grow
curves      stopping by learning curves, against halving and the median
ensembles   the networks of a study as one, against the best of them
proxies     scores without training, against the accuracy after it
"""

from __future__ import annotations

import importlib

NAMES = (
    "digits",
    "lookups",
    "grammars",
    "functions",
    "oracle",
    "pareto",
    "overhead",
    "curves",
    "ensembles",
    "proxies",
)


def main(argv: list[str]) -> int:
    """Run the named benchmark."""
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    name, options = (argv[0], argv[1:]) if argv[:1] and argv[0] in NAMES else ("digits", argv)
    return int(importlib.import_module(f"benchmarks.nas.{name}").main(options) or 0)
