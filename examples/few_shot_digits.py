"""Learn to tell characters from one or five examples of each, without having seen any.

A small network is trained on images of random pen strokes alone (`priors.StrokeTaskPrior`), and is
then asked which of five of scikit-learn's handwritten digits an image shows, given one or five
images of each. Beside it, on the same tasks: the nearest neighbour, logistic regression, and the
shipped network of tables.

    python examples/few_shot_digits.py --minutes 40           # trains, measures, draws
    python examples/few_shot_digits.py --minutes 8            # with a GPU: a larger network
    python examples/few_shot_digits.py --load out/strokes.safetensors

Digits are used for measuring only. Files are written to `out/`.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import pfn
from priors import StrokeTaskPrior, Task

OUT = Path("out")
WAYS, QUERIES = 5, 10
# Probabilities of the classes of queries, `[m, ways]`, from images and classes of a context.
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    """Train or load, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=40.0, help="of training (40)")
    parser.add_argument("--load", type=Path, help="a trained network, in place of training one")
    parser.add_argument("--tasks", type=int, default=100, help="of each number of shots (100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # The network of tables has 20 columns and sees 64 in parts.
    warnings.filterwarnings("ignore", "This network was trained on up to 20 features")
    OUT.mkdir(exist_ok=True)
    network = pfn.load(options.load) if options.load else train(options.minutes).cpu()
    network.save(OUT / "strokes.safetensors")

    slow = "shipped network of tables"  # eight members: a quarter of the tasks, of digits alone
    methods = {
        "trained on strokes": of_network(network),
        "nearest neighbour": of_estimator(lambda: KNeighborsClassifier(1)),
        "logistic regression": of_estimator(lambda: LogisticRegression(max_iter=1000)),
        slow: of_estimator(lambda: pfn.PFNClassifier(check=False)),
    }
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for shots in (1, 5):
        tasks = {
            "strokes": stroke_tasks(shots, options.tasks),
            "digits": digit_tasks(shots, options.tasks),
        }
        for images, drawn in tasks.items():
            ours = scores(methods["trained on strokes"], drawn)
            for name, method in methods.items():
                if name == slow and images == "strokes":
                    continue
                some = drawn[: max(2, len(drawn) // 4)] if name == slow else drawn
                found = scores(method, some)
                ahead = ours["accuracy"][: len(some)] - found["accuracy"]
                row = summary({**found, "behind_the_network": ahead})
                measured.setdefault(f"{images}, {shots}-shot", {})[name] = row
                print(
                    f"{images:8s} {WAYS}-way {shots}-shot  {name:26s} {len(some)} tasks  "
                    f"accuracy {row['accuracy']:.3f} ± {row['accuracy_error']:.3f}, behind by "
                    f"{row['behind_the_network']:.3f} ± {row['behind_the_network_error']:.3f}  "
                    f"log loss {row['log_loss']:.3f} ± {row['log_loss_error']:.3f}",
                    flush=True,
                )
    seen = {"tasks": network.tasks_seen, "seconds": network.training_seconds}
    (OUT / "few_shot_digits.json").write_text(json.dumps({**seen, **measured}, indent=1) + "\n")
    draw(measured, OUT / "few_shot_digits.png")


def train(minutes: float) -> pfn.PFN:
    """A network that has seen 1 to 10 images of each of five classes.

    Half a million parameters, or 1.8 million where a GPU has room for tasks by the hundred.
    """
    gpu = torch.cuda.is_available()
    sizes = {"embedding": 192, "layers": 6} if gpu else {"embedding": 128, "layers": 4}
    config = pfn.TrainingConfig(
        architecture=pfn.ArchitectureConfig(
            max_features=64, classes=WAYS, hidden=2 * sizes["embedding"], **sizes
        ),
        targets="raw",
        batch=512 if gpu else 16,
        held_out_batch=16,
        average_decay=0.995 if gpu else 0.999,
        precision="bf16-mixed" if gpu else "32-true",
        steps=10**6,  # the time limit ends the training
        time_limit=60 * minutes,
        known_noise=0.0,
        appended=0.0,
        held_out_tasks=512,
    )
    return pfn.train(StrokeTaskPrior(ways=WAYS), config=config, log=OUT / "strokes.log")


def digit_tasks(shots: int, count: int, seed: int = 0) -> list[Task]:
    """Tasks of five random digits, intensities in [0, 1]."""
    X, y = load_digits(return_X_y=True)
    draws = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        classes = draws.choice(10, WAYS, replace=False)
        rows = np.array(
            [draws.choice(np.flatnonzero(y == c), shots + QUERIES, replace=False) for c in classes]
        )
        context, queries = rows[:, :shots].ravel(), rows[:, shots:].ravel()
        labels = [np.repeat(np.arange(WAYS), n) for n in (shots, QUERIES)]
        images = torch.tensor(X[np.concatenate([context, queries])] / 16, dtype=torch.float32)
        number = torch.tensor(np.concatenate(labels), dtype=torch.float32)
        tasks.append(
            Task(images[None], number[None, :, None], None, torch.tensor([math.inf]), len(context))
        )
    return tasks


def stroke_tasks(shots: int, count: int) -> list[Task]:
    """Tasks of the prior itself, which the network was not trained on."""
    prior = StrokeTaskPrior(ways=WAYS, shots=shots, queries=QUERIES)
    generator = torch.Generator().manual_seed(10**6 + shots)
    return [prior.sample(1, generator=generator) for _ in range(count)]


def of_network(network: pfn.PFN) -> Method:
    """A network in one forward pass."""

    def predict(X: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
        model = network.condition(torch.tensor(X), torch.tensor(y)[:, None])
        return model.posterior(torch.tensor(queries)).mean.numpy()

    return predict


def of_estimator(make: Callable[[], Any]) -> Method:
    """A classifier of scikit-learn's kind, as it comes."""

    def predict(X: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return make().fit(X, y).predict_proba(queries)

    return predict


def scores(method: Method, tasks: list[Task]) -> dict[str, np.ndarray]:
    """Accuracy and log loss of every task."""
    right, loss = [], []
    for task in tasks:
        n = task.num_context
        X, y = task.X[0].numpy(), task.y[0, :, 0].numpy()
        probability = method(X[:n], y[:n], X[n:])
        truth = y[n:].astype(int)
        right.append((probability.argmax(1) == truth).mean())
        told = probability[np.arange(len(truth)), truth]
        loss.append(-np.log(np.maximum(told, 1e-6)).mean())  # neighbours are sure of themselves
    return {"accuracy": np.array(right), "log_loss": np.array(loss)}


def summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over tasks with their standard errors."""
    means = {name: float(value.mean()) for name, value in values.items()}
    errors = {
        f"{name}_error": float(value.std(ddof=1) / math.sqrt(len(value)))
        for name, value in values.items()
    }
    return {**means, **errors}


def draw(measured: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A task of strokes, a task of digits, and accuracies on digits."""
    figure, axes = plt.subplot_mosaic(
        [["strokes", "digits", "accuracy"]], figsize=(10, 3.2), width_ratios=(1, 1, 2)
    )
    for name, task in {"strokes": stroke_tasks(5, 1)[0], "digits": digit_tasks(5, 1)[0]}.items():
        order = task.y[0, : task.num_context, 0].argsort(stable=True)
        images = task.X[0, order].reshape(WAYS, 5, 8, 8).transpose(1, 2).reshape(8 * WAYS, 40)
        axes[name].imshow(images, cmap="gray_r", vmin=0, vmax=1)
        axes[name].set_title(f"{name}, a class a row", fontsize=9)
        axes[name].axis("off")
    axis = axes["accuracy"]
    for i, shots in enumerate((1, 5)):
        rows = measured[f"digits, {shots}-shot"]
        places = np.arange(len(rows)) + 0.38 * (i - 0.5)
        heights = [row["accuracy"] for row in rows.values()]
        errors = [2 * row["accuracy_error"] for row in rows.values()]
        axis.barh(places, heights, 0.36, xerr=errors, label=f"{shots}-shot")
    axis.set_yticks(np.arange(len(rows)), list(rows), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(1 / WAYS, 1)
    axis.set_xlabel("accuracy on 5 digits, two standard errors")
    axis.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
