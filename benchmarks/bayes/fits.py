"""Fits of exact processes with kernels of networks.

python -m benchmarks fits --stress ...    # whether random fits end well, see `stress`
"""

from __future__ import annotations

import sys

from benchmarks.bayes import stress


def main(argv: list[str]) -> int:
    """Pass the options on to the chosen benchmark."""
    if "--stress" not in argv:
        print("usage: python -m benchmarks fits --stress [options]", file=sys.stderr)
        return 2
    return stress.main([a for a in argv if a != "--stress"])
