"""The probe of PFN training on a device, for each shipped network; see `pfn.probe`.

Beside it the rate of floating-point operations in matrix products with the settings chosen (those
of forward and backward, attention written out), as a share of that of a product of two large
matrices on the device in the same precision. Results are printed one by one, for
`benchmarks.accelerator`.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from typing import Any

import torch

import pfn
from benchmarks.pfn.throughput import operations, peak
from pfn.checkpoints.recipes import RECIPES
from pfn.rates import PROBED, Probe
from pfn.training.config import TrainingConfig
from pfn.training.fabric import make_fabric
from pfn.training.state import TrainingState

STEPS = 4  # whose operations are counted


def share_of_peak(name: str, config: TrainingConfig, chosen: Probe, device: torch.device) -> float:
    """With the settings chosen, over the whole time of a step."""
    small = replace(config, compile=False, border_tasks=64, held_out_tasks=1)
    prior = RECIPES[name](gpu=device.type == "cuda").prior
    training = TrainingState(
        prior, small, make_fabric(device, config.precision), None, pfn.load(name)
    )
    count = 0
    for step in range(STEPS):
        training.generator.manual_seed(2 + step)  # sizes that the probe had too
        count += operations(training)
    dtype = torch.bfloat16 if config.precision == "bf16-mixed" else torch.float32
    size = 2048 if device.type == "cpu" else 8192
    per_task = count / STEPS / config.batch
    return per_task * chosen.chosen.tasks_per_second / peak(dtype, device, size)


def main(device_name: str, seconds: float, try_compile: bool, names: list[str]) -> None:
    """Probe the networks in turn, one line of JSON each."""
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's, on what it traces and counts
    for name in names:
        row: dict[str, Any] = {"network": name}
        try:
            recipe = RECIPES[name](gpu=device.type == "cuda")
            found = pfn.probe(
                recipe.prior,
                recipe.config,
                device=device,
                seconds=seconds / len(names),
                try_compile=try_compile and name == names[0],
                initial=pfn.load(name),
                progress=False,
            )
            row |= {
                "config": {field: getattr(found.config, field) for field in PROBED},
                "tasks_per_second": found.chosen.tasks_per_second,
                "drawing": found.chosen.drawing,
                "memory_gib": found.chosen.memory,
                "rates": [vars(rate) for rate in found.rates],
            }
            print("RESULT " + json.dumps(row), flush=True)
            row["share_of_peak"] = share_of_peak(name, found.config, found, device)
        except Exception as error:  # a fault of one network is a result, and the others go on
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        print("RESULT " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "compile", sys.argv[4:])
