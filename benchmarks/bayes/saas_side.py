"""BoTorch's side of `benchmarks networks --saas`: run by the environment of `make saas`, alone.

Reads rows and settings as JSON from standard input; prints what is compared, of every draw, and
processor seconds. Imports nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import torch
from botorch.fit import fit_fully_bayesian_model_nuts
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP


def main() -> None:
    """A fit for each seed."""
    torch.set_num_threads(1)
    told = json.load(sys.stdin)
    X, Y, test_X = (
        torch.tensor(told[k], dtype=torch.float64) for k in ("train_X", "train_Y", "test_X")
    )
    values, seconds = [], []
    for seed in range(told["seeds"]):
        before = time.process_time()
        model = SaasFullyBayesianSingleTaskGP(X, Y)
        fit_fully_bayesian_model_nuts(
            model,
            warmup_steps=told["warmup"],
            num_samples=told["draws"],
            thinning=1,
            disable_progbar=True,
            seed=seed,
        )
        with torch.no_grad():
            functions = model.posterior(test_X).mean  # of each draw
        seconds.append(time.process_time() - before)
        kernel, draws = model.covar_module, told["draws"]
        # The noise as drawn: the model holds it without the least noise that its likelihood adds.
        parts = [
            kernel.outputscale.reshape(draws, 1).log(),
            kernel.base_kernel.lengthscale.reshape(draws, -1).log(),
            model.likelihood.noise.reshape(draws, 1).log(),
            functions.reshape(draws, -1),
        ]
        values.append(torch.cat(parts, -1).tolist())
    versions = ", ".join(f"{name} {version(name)}" for name in ("botorch", "numpyro", "jax"))
    print(json.dumps({"values": values, "seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    main()
