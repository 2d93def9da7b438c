"""Learning curves drawn by the packages of other people's networks of curves.

Run by `python -m benchmarks pfn curves --parts priors` with the interpreter of `make curve-priors`:
their packages have no place among ours. Both are MIT-licensed; neither has weights in its wheel.

Domhan    lcpfn 0.1.3, `sample_from_prior`: one curve of 100 epochs at a time, its smooth part
          and with noise (Adriaensen et al. 2023, LC-PFN)
FT-PFN    ifbo 0.4.1, `get_batch`: points of many curves, of settings of d hyperparameters, with
          the time as a share of the training (Rakotoarison et al. 2024)
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from ifbo.priors.ftpfn_prior import get_batch  # type: ignore[import-not-found]
from lcpfn.domhan_prior import sample_from_prior  # type: ignore[import-not-found]

ROWS = 1000  # of a task of FT-PFN, as it was trained


def main(wanted: dict[str, Any]) -> None:
    """Draw and write one file of arrays."""
    source = np.random.RandomState(wanted["seed"])
    curves = [sample_from_prior(source, wanted["epochs"])() for _ in range(wanted["curves"])]
    drawn = {"domhan": np.array([noisy for _, noisy in curves])}
    np.random.seed(wanted["seed"])
    torch.manual_seed(wanted["seed"])
    for shown in wanted["shown"]:
        for index in range(wanted["tasks"]):
            d = 1 + index % wanted["hyperparameters"]
            task = get_batch(
                1, ROWS, d + 2, shown, hyperparameters={"hp_dim": d}, device=torch.device("cpu")
            )
            # a number of the curve, the time, and the hyperparameters
            drawn[f"x_{shown}_{index}"] = task.x[: shown + wanted["queries"], 0].numpy()
            drawn[f"y_{shown}_{index}"] = task.y[: shown + wanted["queries"], 0].numpy()
    np.savez_compressed(wanted["file"], **drawn)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
