"""The estimators: scikit-learn's own checks, tables, ensembles, contexts, messages."""

import dataclasses
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from pfn import PFN, ArchitectureConfig, PFNClassifier, PFNRegressor, TrainingConfig, train
from pfn.estimators import _TargetTransform, _YeoJohnson
from priors import Task
from priors.pooling import MixturePosterior

SIZES = ArchitectureConfig(
    max_features=2, embedding=24, layers=2, heads=2, hidden=48, thinking_rows=4, bars=40
)
CELLS = {"cell_layers": 2, "cell_embedding": 16, "inducing": 4, "summaries": 2}


@dataclasses.dataclass(frozen=True)
class SimpleTasks:
    """Linear functions, or blobs of classes, of one or two features."""

    classes: int = 0

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

        def randint(low, high, size=()):
            return torch.randint(low, high, size, generator=generator, device=device)

        d, n = int(randint(1, 3)), 48
        num_context = int(randint(4, 44))
        noise_var = (randn(batch) - 2.5).exp()
        if not self.classes:
            X = randn(batch, n, d)
            f = X @ randn(batch, d, 1)
            y = f + noise_var.sqrt()[:, None, None] * randn(batch, n, 1)
            return Task(X=X, y=y, f=f, noise_var=noise_var, num_context=num_context)
        number = randint(2, self.classes + 1, (batch,))
        uniform = torch.rand(batch, n, generator=generator, device=device)
        y = (uniform * number[:, None]).long()[..., None]
        centres = 1.5 * randn(batch, self.classes, d)
        X = centres.gather(1, y.expand(-1, -1, d)) + 0.4 * randn(batch, n, d)
        y = y.to(X)
        return Task(
            X=X, y=y, f=None, noise_var=noise_var, num_context=num_context, num_classes=number
        )


def trained(classes, steps=400):
    config = TrainingConfig(
        architecture=dataclasses.replace(SIZES, classes=classes),
        inputs="standardised",
        targets="standardised",
        steps=steps,
        appended=0.0,
        known_noise=0.0,
        border_tasks=200,
        held_out_tasks=32,
        average_decay=0.98,
    )
    network = train(SimpleTasks(classes), config=config, device="cpu", progress=False)
    network.metadata["max_context"] = 1_000
    return network


@pytest.fixture(scope="session")
def regression():
    return trained(0)


@pytest.fixture(scope="session")
def classification():
    return trained(4)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_scikit_learn_checks(kind, request):
    network = request.getfixturevalue(kind)
    made = PFNRegressor(network) if kind == "regression" else PFNClassifier(network)
    results = check_estimator(made, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed
