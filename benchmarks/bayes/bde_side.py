"""bde's side of `benchmarks networks --accuracy`: run by the environment of `make bde`, alone.

Reads rows and settings as JSON from standard input; prints scores and processor seconds. Imports
nothing of this package. Inputs and outcomes are standardised by the training rows, since the
estimator does not; the predictive is the mixture over members and draws, in units of y.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
from bde import BdeRegressor
from scipy import stats
from scipy.special import logsumexp

# As many as one member of `LangevinEnsemble`, with a step of two gradients in both.
_GRADIENTS = 2


def main() -> None:
    """One fit."""
    told = json.load(sys.stdin)
    train_X, train_Y, test_X, test_Y = (
        np.array(told[k], dtype=np.float64) for k in ("train_X", "train_Y", "test_X", "test_Y")
    )
    spread = train_X.std(0)
    spread[spread == 0] = 1.0
    mean, std = train_Y.mean(), train_Y.std()
    inputs = [(X - train_X.mean(0)) / spread for X in (train_X, test_X)]
    model = BdeRegressor(
        n_members=told["members"],
        hidden_layers=[16] * told["depth"],
        seed=told["seed"],
        epochs=told["epochs"],
        patience=None,
        lr=told["learning_rate"],
        warmup_steps=told["warmup_steps"],
        n_samples=told["steps"],
        n_thinning=told["thinning"],
    )
    before = time.process_time()
    model.fit(inputs[0], (train_Y - mean) / std)
    seconds = time.process_time() - before
    # Of the last axis, a softplus makes the second a deviation, as the sampler's likelihood does.
    raw = np.asarray(model.predict(inputs[1], raw=True), dtype=np.float64)
    raw = raw.reshape(-1, len(test_Y), 2)
    centres = mean + std * raw[..., 0]
    scales = std * (np.logaddexp(0, raw[..., 1]) + 1e-6)
    log_prob = logsumexp(stats.norm.logpdf(test_Y, centres, scales), axis=0) - math.log(len(raw))
    found = {
        "nll": float(-log_prob.mean()),
        "rmse": float(np.sqrt(np.mean((centres.mean(0) - test_Y) ** 2))),
        "gradients": float(told["epochs"] + _GRADIENTS * (told["warmup_steps"] + told["steps"])),
        "seconds": seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
