"""Search for a multilayer perceptron on the handwritten digits of scikit-learn.

What a study needs, in one file: a space, hyperparameters, and an objective that trains a
candidate for real and returns its validation log loss. The test rows are used once, by
`held_out_loss`, when the search is over.

    python -m nas search --objective examples/digits_study.py:objective \
        --space mlp --in-features 64 --out-features 10 --storage out/digits.db --trials 20
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import optuna
import torch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from nas import Architecture, architecture_of, suggest
from nas.spaces import MLPSpace, Space

SPACE = MLPSpace(64, 10)
HYPERPARAMETERS = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-4, 3.0, log=True),
}
NUM_EPOCHS = 20
BATCH_SIZE = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_REPEATS = 3  # trainings behind one value: at large learning rates one is mostly luck


@dataclass(frozen=True)
class Split:
    """Rows of 64 pixels in [0, 1], standardised with the training mean and deviation."""

    X: Tensor
    y: Tensor


@cache
def digits() -> dict[str, Split]:
    """The fixed split: 1000 rows for training, 397 for validation, 400 for the final test."""
    X, y = load_digits(return_X_y=True)
    rest_X, test_X, rest_y, test_y = train_test_split(
        X / 16, y, test_size=400, random_state=0, stratify=y
    )
    train_X, val_X, train_y, val_y = train_test_split(
        rest_X, rest_y, train_size=1000, random_state=0, stratify=rest_y
    )
    mean, std = train_X.mean(), train_X.std()
    return {
        name: Split(
            torch.tensor((rows - mean) / std, dtype=torch.float32, device=DEVICE),
            torch.tensor(labels, device=DEVICE),
        )
        for name, rows, labels in (
            ("train", train_X, train_y),
            ("validation", val_X, val_y),
            ("test", test_X, test_y),
        )
    }


def train(
    architecture: Architecture, learning_rate: float, weight_decay: float, *, seed: int
) -> nn.Module:
    """Train a candidate on the training rows: AdamW, learning rate falling linearly to zero.

    Args:
        architecture: What to build.
        learning_rate: Initial step size.
        weight_decay: Decoupled decay, multiplied by the learning rate in each step.
        seed: Of the initial weights and of the order of the rows.
    """
    data = digits()["train"]
    X = data.X.reshape(-1, *architecture.input_shape)  # of 64 pixels, or images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build().to(DEVICE)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    num_steps = NUM_EPOCHS * (len(data.y) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for _ in range(NUM_EPOCHS):
        order = torch.randperm(len(data.y), generator=generator).to(DEVICE)
        for rows in order.split(BATCH_SIZE)[: len(data.y) // BATCH_SIZE]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(X[rows]), data.y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def log_loss(network: nn.Module, architecture: Architecture, rows: str) -> float:
    """Mean negative log probability of the true digit on the named rows, in nats."""
    data = digits()[rows]
    with torch.no_grad():
        outputs = network(data.X.reshape(-1, *architecture.input_shape))
        return float(nn.functional.cross_entropy(outputs, data.y))


def mean_loss(
    trial: optuna.Trial | optuna.trial.FrozenTrial,
    rows: str,
    *,
    first_seed: int,
    repeats: int = NUM_REPEATS,
) -> float:
    """Log loss of the candidate of a trial, averaged over trainings, in nats.

    Args:
        trial: It must have its architecture and hyperparameters.
        rows: `"validation"` or `"test"`.
        first_seed: Training seeds count from here.
        repeats: Trainings.
    """
    architecture = architecture_of(trial)
    assert architecture is not None
    learning_rate, weight_decay = (trial.params[name] for name in HYPERPARAMETERS)
    losses = []
    for seed in range(first_seed, first_seed + repeats):
        network = train(architecture, learning_rate, weight_decay, seed=seed)
        losses.append(log_loss(network, architecture, rows))
    return sum(losses) / repeats


def objective(trial: optuna.Trial, space: Space = SPACE, *, repeats: int = NUM_REPEATS) -> float:
    """Mean validation log loss of the candidate of a trial, in nats.

    The training seeds follow from the candidate, so that a trial that is run again gives the
    same value.

    Args:
        trial: The running trial.
        space: Of networks from 64 pixels, or images of 8 by 8, to 10 classes.
        repeats: Trainings.
    """
    architecture = suggest(trial, space)
    learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-4, 3.0, log=True)
    key = f"{architecture.to_json()} {learning_rate!r} {weight_decay!r}"
    return mean_loss(trial, "validation", first_seed=zlib.crc32(key.encode()), repeats=repeats)


def held_out_loss(trial: optuna.trial.FrozenTrial) -> float:
    """Mean test log loss of the candidate of a finished trial, trained anew, in nats."""
    return mean_loss(trial, "test", first_seed=0)
