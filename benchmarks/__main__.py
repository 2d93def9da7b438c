"""Run a benchmark: `python -m benchmarks NAME [options]`; `NAME --help` lists its options."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "accelerator": "benchmarks.accelerator",
    "duals": "benchmarks.priors.duals",
    "expectations": "benchmarks.priors.expectations",
    "features": "benchmarks.priors.features",
    "fits": "benchmarks.bayes.fits",
    "kernels": "benchmarks.priors.kernels",
    "layers": "benchmarks.priors.layers",
    "networks": "benchmarks.bayes.samplers",
    "pfn": "benchmarks.pfn.run",
    "posteriors": "benchmarks.bayes.posteriors",
    "search": "benchmarks.nas.run",
    "structure": "benchmarks.structure",
}


def main(argv: list[str]) -> int:
    """Call the named benchmark with the other arguments and return its exit status."""
    if not argv or argv[0] not in BENCHMARKS:
        known = " | ".join(sorted(BENCHMARKS))
        print(f"usage: python -m benchmarks {known} [options]", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    return int(importlib.import_module(BENCHMARKS[argv[0]]).main(argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
