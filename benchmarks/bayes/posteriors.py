"""How good are the posteriors of this package, and what do they cost? One part a flag.

`python -m benchmarks posteriors --speed ...`: beside plain GPyTorch, see `posterior_speed`.
`python -m benchmarks posteriors --real ...`: real tables and the stack, see `real_posteriors`.
`python -m benchmarks posteriors --shift ...`: shifted rows and wrong outcomes, see `heavy_tails`.
"""

from __future__ import annotations

import importlib
import sys

PARTS = {
    "--real": "benchmarks.bayes.real_posteriors",
    "--shift": "benchmarks.bayes.heavy_tails",
    "--speed": "benchmarks.bayes.posterior_speed",
}


def main(argv: list[str]) -> int:
    """Pass on to the part that is asked for."""
    for part, module in PARTS.items():
        if part in argv:
            return int(importlib.import_module(module).main([a for a in argv if a != part]) or 0)
    print(f"usage: python -m benchmarks posteriors {' | '.join(PARTS)} [options]", file=sys.stderr)
    return 0 if argv[:1] in (["-h"], ["--help"]) else 2
