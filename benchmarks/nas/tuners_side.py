"""SMAC and Syne Tune, asked for one candidate after another in an environment of their own.

Imports nothing of this package. The first line of standard input says, as JSON, which method, the
space (for each parameter its categories, or how many ordered places), the number of queries and a
seed; each answer is a line with the candidate and the processor seconds that it took, and each
further line of input the loss that was seen of it.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


def smac(
    space: dict[str, Any], queries: int, seed: int
) -> tuple[Callable[[], Any], Callable[[Any, float], None]]:
    """SMAC's facade for mixed spaces: random forests, from a Sobol design; each asked once."""
    from ConfigSpace import Categorical, ConfigurationSpace, Integer
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory import TrialValue

    parameters = [
        Integer(name, (0, each - 1)) if isinstance(each, int) else Categorical(name, each)
        for name, each in space.items()
    ]
    scenario = Scenario(
        ConfigurationSpace(space=parameters, seed=seed),
        deterministic=True,
        n_trials=queries,
        seed=seed,
        output_directory=tempfile.mkdtemp(),
    )
    facade = HyperparameterOptimizationFacade(
        scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=logging.ERROR
    )

    def tell(info: Any, loss: float) -> None:
        facade.tell(info, TrialValue(cost=loss))

    return facade.ask, tell


def conformal(
    space: dict[str, Any], queries: int, seed: int
) -> tuple[Callable[[], Any], Callable[[Any, float], None]]:
    """Syne Tune's conformal quantile regression (Salinas et al. 2023, 2305.03623)."""
    from syne_tune.config_space import choice, randint
    from syne_tune.optimizer.baselines import CQR
    from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler

    config_space = {
        name: randint(0, each - 1) if isinstance(each, int) else choice(each)
        for name, each in space.items()
    }
    scheduler = AskTellScheduler(
        CQR(config_space, metric="loss", do_minimize=True, random_seed=seed)
    )

    def tell(trial: Any, loss: float) -> None:
        scheduler.tell(trial, {"loss": loss})

    return scheduler.ask, tell


METHODS = {"smac": smac, "syne-tune-cqr": conformal}


def main() -> None:
    """Answer until as many queries are told."""
    told = json.loads(sys.stdin.readline())
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print is no answer
    ask, tell = METHODS[told["method"]](told["space"], told["queries"], told["seed"])
    for _ in range(told["queries"]):
        start = time.process_time()
        asked = ask()
        chosen = {name: asked.config[name] for name in told["space"]}
        line = {"chosen": chosen, "seconds": time.process_time() - start}
        # numbers of NumPy become Python's
        print(json.dumps(line, default=lambda value: value.item()), file=answers, flush=True)
        tell(asked, float(sys.stdin.readline()))


if __name__ == "__main__":
    main()
