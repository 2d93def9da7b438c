"""One run of Bayesian optimisation of a test function: what `benchmarks pfn surrogate` repeats.

Apart from the summary and the figure, so that finished runs survive changes of those.
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache
from typing import Any

import torch
from botorch.exceptions import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.optim.initializers import initialize_q_batch
from botorch.test_functions import (
    Ackley,
    Branin,
    Hartmann,
    Levy,
    Rosenbrock,
    SixHumpCamel,
    SyntheticTestFunction,
)
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

import pfn
from priors import LogExpectedImprovement, TailCompression
from priors.posteriors.transforms import DEFAULT

__all__ = [
    "FUNCTIONS",
    "GP",
    "INITIAL",
    "METHODS",
    "MODELS",
    "NETWORK",
    "NETWORKS",
    "optimise",
    "problem",
    "propose",
]

NETWORK, PLAIN_NETWORK = "network", "network, plain"
GP, EXACT_GP, TAIL_GP = "SingleTaskGP", "noise-free GP", "GP, tail"
NETWORKS = (NETWORK, PLAIN_NETWORK)
MODELS = (*NETWORKS, GP, TAIL_GP, EXACT_GP)
METHODS = (*MODELS, "sobol", "random")
INITIAL = 10

# Functions to minimise, and their minima to more digits than BoTorch's.
FUNCTIONS = {
    "branin": (lambda: Branin(), 0.39788735772973816),
    "camel": (lambda: SixHumpCamel(), -1.031628453489877),
    "rosenbrock4": (lambda: Rosenbrock(dim=4), 0.0),
    "levy4": (lambda: Levy(dim=4), 0.0),
    "ackley5": (lambda: Ackley(dim=5, bounds=[(-5.0, 10.0)] * 5), 0.0),
    "hartmann6": (lambda: Hartmann(dim=6), -3.322368011415515),
}

# Starts of the maximisation of the acquisition function, for both models.
_SPREAD, _NEAR, _NEAR_STD, _STARTS, _STEPS = 512, 64, 0.05, 8, 50


def problem(name: str) -> tuple[SyntheticTestFunction, float]:
    """The function to maximise, in double precision, and its maximum."""
    make, minimum = FUNCTIONS[name]
    function = make().to(torch.float64)
    function.negate = True
    return function, -minimum


def optimise(
    name: str, method: str, seed: int, evaluations: int, network: str, version: str
) -> dict[str, Any]:
    """One run; the arguments identify the result, `version` the network's file.

    Returns:
        "regrets" of the best value after each evaluation, and CPU "seconds" of each proposal.
    """
    warnings.filterwarnings("ignore", category=BotorchWarning)
    warnings.filterwarnings("ignore", category=NumericalWarning)
    warnings.filterwarnings("ignore", message="Optimization failed")  # from one of the starts
    warnings.filterwarnings("ignore", message="This network")
    function, maximum = problem(name)
    lower, upper = function.bounds
    d = function.dim

    def evaluate(X: Tensor) -> Tensor:
        return function(lower + (upper - lower) * X)[:, None]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        X = SobolEngine(d, scramble=True, seed=seed).draw(INITIAL, dtype=torch.float64)
        Y, seconds = evaluate(X), []
        if method == "sobol":  # the same sequence goes on
            engine = SobolEngine(d, scramble=True, seed=seed)
            Y = evaluate(engine.draw(evaluations, dtype=torch.float64))
        elif method == "random":
            rest = torch.rand(evaluations - INITIAL, d, dtype=torch.float64)
            Y = torch.cat([Y, evaluate(rest)])
        else:
            for step in range(evaluations - INITIAL):
                start = time.process_time()
                model, values = fitted(method, X, Y, network)
                proposed = propose(model, X, values, seed=1000 * seed + step)
                seconds.append(time.process_time() - start)
                X, Y = torch.cat([X, proposed]), torch.cat([Y, evaluate(proposed)])
    regrets = maximum - Y[:, 0].cummax(0).values
    return {"regrets": regrets.tolist(), "seconds": seconds}


def propose(model: Model, X: Tensor, Y: Tensor, *, seed: int) -> Tensor:
    """The point `[1, d]` of largest log expected improvement.

    Gradient ascent from 8 starts, which are drawn by their values from a Sobol sequence and from
    points near the best one.
    """
    acquisition = LogExpectedImprovement(model, best_f=Y.max())
    d = X.shape[-1]
    spread = SobolEngine(d, scramble=True, seed=seed).draw(_SPREAD, dtype=X.dtype)
    best = X[Y[:, 0].argmax()]
    near = (best + _NEAR_STD * torch.randn(_NEAR, d, dtype=X.dtype)).clamp(0, 1)
    raw = torch.cat([spread, near])[:, None]
    with torch.no_grad():
        values = acquisition(raw)
    starts, _ = initialize_q_batch(raw, values, _STARTS)
    proposed, _ = optimize_acqf(
        acquisition,
        bounds=torch.stack([torch.zeros(d), torch.ones(d)]).to(X),
        q=1,
        num_restarts=_STARTS,
        batch_initial_conditions=starts,
        options={"maxiter": _STEPS, "batch_limit": _STARTS},
    )
    return proposed.detach()


def fitted(method: str, X: Tensor, Y: Tensor, network: str) -> tuple[Model, Tensor]:
    """A model of the data, and the values of the data in its units."""
    if method in NETWORKS:
        # What is unlike the network's prior does not warn at every step.
        transform = TailCompression(Y) if method == NETWORK else DEFAULT
        return _load(network).condition(X, Y, outcome_transform=transform, check=False), Y
    noise = None
    if method == EXACT_GP:  # told that there is no noise: 1e-6 of the variance
        noise = torch.full_like(Y, 1e-6) * Y.var()
    if method == TAIL_GP:  # expected improvement is the same in both units but for a factor
        Y = TailCompression(Y).inv(Y)
    model = SingleTaskGP(X, Y, noise, outcome_transform=Standardize(m=1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model, Y


@lru_cache(maxsize=1)
def _load(network: str) -> pfn.PFN:
    return pfn.load(network)
