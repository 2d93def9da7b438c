"""Many Markov chains as one tensor: what all methods that move in R^d share.

A method says how a run begins, what one iteration of warm-up and one of sampling do to its state,
and what it tells of each draw; here are the loop, the progress bar, the random numbers, the draws
and the checkpoint. A state holds everything that an iteration depends on, the generator's state
included, so a run that is taken up again goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayes.inference.adaptation import State
from bayes.inference.convergence import warn_of_draws
from bayes.inference.draws import SMALLER_STEPS, Draws
from bayes.inference.evaluation import Evaluation
from bayes.inference.graphs import has_compiler
from bayes.inference.log_density import LogDensity
from bayes.inference.pyro_density import density_of
from bayes.inference.settings import check_settings
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically

__all__ = ["ChainMethod", "Kernel"]

_SECONDS_BETWEEN_CHECKPOINTS = 60
# A compilation takes seconds; fewer iterations than these seldom win them back.
_MANY_ITERATIONS = 5000


class Kernel(ABC):
    """One iteration of a method, for one density.

    Args:
        evaluation: Of the density, at the number of chains of the run.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    @abstractmethod
    def start(self, position: Tensor, generator: torch.Generator) -> State:
        """The state at the first positions `[chains, d]`; "position" is among it."""

    @abstractmethod
    def warm_up(self, state: State, done: float, generator: torch.Generator) -> State:
        """The state after an iteration that adapts.

        Args:
            state: Before it.
            done: Share of the warm-up that has passed, in [0, 1).
            generator: Of random numbers.
        """

    def settle(self, state: State) -> State:
        """The state at the end of the warm-up, from which nothing adapts any more."""
        return state

    @abstractmethod
    def sample(
        self, state: State, generator: torch.Generator
    ) -> tuple[State, dict[str, Tensor | float]]:
        """The state after an iteration, and its statistics by ArviZ's names, each `[chains]`."""


@dataclass(frozen=True)
class ChainMethod(ABC):
    """Many Markov chains as one tensor `[chains, d]`.

    Attributes:
        num_samples: Draws kept per chain.
        num_warmup: Iterations before them, which adapt.
        num_chains: Chains, which move and learn together.
        seed: Of all random numbers; the global ones are left alone.
        progress: Whether to show a bar.
        compile: Whether trajectories are compiled by `torch.compile`: seconds at the start, then
            several times faster. None: for 5,000 iterations and more, where there is a compiler.
        checkpoint: A file to which state and draws are written every minute and at the end. If it
            exists, the run goes on from there, bit for bit as if it had not been interrupted; with
            a larger `num_samples` it is continued.
    """

    num_samples: int = 500
    num_warmup: int = 500
    num_chains: int = 16
    seed: int = 0
    progress: bool = True
    compile: bool | None = None
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_settings(self, at_least_one=("num_samples", "num_warmup", "num_chains"))

    @abstractmethod
    def _kernel(self, evaluation: Evaluation) -> Kernel:
        """The iterations of this method."""

    def run(self, model: Callable[[], object] | LogDensity, like: Tensor) -> Draws:
        """Draw from the posterior of a Pyro model, or from a log density.

        Args:
            model: The Pyro model, without arguments and without discrete sites, or a `LogDensity`.
            like: Gives dtype and device.

        Returns:
            Draws with ArviZ's statistics: lp (log density, of the unconstrained position), energy,
            diverging, acceptance_rate, n_steps and step_size, as far as the method has
            them. `num_gradients` counts those of warm-up and sampling, per chain.

        Raises:
            NotImplementedError: the Pyro model has discrete sites, or others without a density.
            ValueError: no start of finite density was found, or the checkpoint is of another run.

        Warns:
            Of divergences, chains that disagree and few effective draws, where what is drawn is
            identified.
        """
        density = density_of(model, like)
        run = _Run(self, density, like)
        run.complete()
        draws = run.draws()
        if density.identified:
            warn_of_draws(self._name, draws)
        return draws

    def _initial(self, density: LogDensity, generator: torch.Generator, like: Tensor) -> Tensor:
        """Where the chains start, `[chains, d]`."""
        return density.start(generator, self.num_chains, like)

    @property
    def _initial_gradients(self) -> int:
        """What the starts cost each chain, as part of the warm-up."""
        return 0

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _smaller_steps(self) -> str:
        """What to do where draws diverge, as `Draws.smaller_steps`."""
        return SMALLER_STEPS

    @property
    def _members_apart(self) -> bool:
        """Whether chains are not meant to meet, as `Draws.members_apart`."""
        return False

    def _compiles(self, device: torch.device) -> bool:
        wanted = self.compile
        if wanted is None:
            return has_compiler(device) and (self.num_warmup + self.num_samples >= _MANY_ITERATIONS)
        if wanted and not has_compiler(device):
            warnings.warn(
                f"{self._name} runs uncompiled: torch.compile needs a C++ compiler (g++, clang++), "
                "and there is none; compile=False silences this.",
                stacklevel=5,
            )
            return False
        return wanted

    def _settings(self) -> dict[str, Any]:
        """What a continued run must share with the one before."""
        free = {"num_samples", "progress", "checkpoint"}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"method": self._name, **{k: v for k, v in fields.items() if k not in free}}


class _Run:
    """A run: how far it is, its state, and what it has drawn."""

    def __init__(self, method: ChainMethod, density: LogDensity, like: Tensor) -> None:
        self.method, self.density, self.like = method, density, like
        self.generator = torch.Generator(like.device)
        self.generator.manual_seed(method.seed)
        self.evaluation = Evaluation(density, compile=method._compiles(like.device))
        self.kernel = method._kernel(self.evaluation)
        self.done = 0  # iterations, those of the warm-up included
        self.state: State = {}
        self.positions: list[Tensor] = []
        self.stats: dict[str, list[Tensor]] = {}
        if method.checkpoint is not None and Path(method.checkpoint).exists():
            self._read(Path(method.checkpoint))
        else:
            position = method._initial(density, self.generator, like)
            self.state = self.kernel.start(position, self.generator)
            self.state["num_gradients"] += method._initial_gradients

    def complete(self) -> None:
        """Warm up and draw what is missing."""
        warmup, total = self.method.num_warmup, self.method.num_warmup + self.method.num_samples
        written, before = time.monotonic(), self.done
        bar = tqdm(
            total=total,
            initial=min(self.done, total),
            desc=self.method._name,
            disable=not self.method.progress,
        )
        with bar, torch.no_grad():
            while self.done < total:
                if self.done < warmup:
                    share = self.done / warmup
                    self.state = self.kernel.warm_up(self.state, share, self.generator)
                    if self.done + 1 == warmup:
                        self.state = self.kernel.settle(self.state)
                        self._check()
                else:
                    self.state, stats = self.kernel.sample(self.state, self.generator)
                    self._keep(stats)
                self.done += 1
                bar.update()
                if self.method.progress and self.done % 20 == 0:
                    bar.set_postfix_str(self._told(), refresh=False)
                if time.monotonic() - written > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._write()
                    written = time.monotonic()
        if self.done > before:
            self._write()

    def draws(self) -> Draws:
        """What was drawn, as the density's sites."""
        count = self.method.num_samples
        position = torch.stack(self.positions[:count], 1)
        with torch.no_grad():
            samples = self.density.constrain(position)
        stats = {name: torch.stack(values[:count], 1) for name, values in self.stats.items()}
        return Draws(
            samples,
            stats,
            num_gradients=self._gradients(),
            smaller_steps=self.method._smaller_steps,
            members_apart=self.method._members_apart,
        )

    def _gradients(self) -> dict[str, int]:
        total, warmup = self.state["num_gradients"], self.state["num_gradients_warmup"]
        return {"warmup": int(warmup), "sampling": int(total - warmup)}

    def _keep(self, stats: Mapping[str, Tensor | float]) -> None:
        position = self.state["position"]
        self.positions.append(position.clone())
        for name, value in stats.items():
            value = torch.as_tensor(value, dtype=position.dtype, device=position.device)
            self.stats.setdefault(name, []).append(value.expand(len(position)).clone())

    def _check(self) -> None:
        self.state["num_gradients_warmup"] = self.state["num_gradients"]
        if not bool(self.state["position"].isfinite().all()):
            raise RuntimeError(
                f"{self.method._name} diverged in its warm-up: its parameters are no longer "
                "finite; start it with smaller steps, or check the density for infinities."
            )

    def _told(self) -> str:
        return f"{'compiled' if self.evaluation.compile else 'eager'}, " + ", ".join(
            f"{name} {math.exp(self.state[key]):.3g}"
            for name, key in (("step", "log_step"), ("length", "log_length"))
            if isinstance(self.state.get(key), float)
        )

    def _write(self) -> None:
        path = self.method.checkpoint
        if path is None:
            return
        # lp tells the model and the data when the run is taken up again.
        lp, _ = self.evaluation(self.state["position"])
        tensors = {"generator": self.generator.get_state(), "lp": lp}
        numbers = {}
        for name, value in self.state.items():
            if isinstance(value, Tensor):
                tensors[f"state.{name}"] = value
            else:
                numbers[name] = value
        if self.positions:
            tensors["positions"] = torch.stack(self.positions, 1)
            tensors |= {f"stat.{k}": torch.stack(v, 1) for k, v in self.stats.items()}
        write_safetensors_atomically(
            path,
            tensors,
            kind="Chains",
            description={
                "settings": self.method._settings(),
                "done": self.done,
                "numbers": {name: float(value).hex() for name, value in numbers.items()},
            },
        )

    def _read(self, path: Path) -> None:
        tensors, description = read_safetensors(path, kind="Chains")
        for name, value in self.method._settings().items():
            found = description["settings"].get(name)
            if found != value:
                raise ValueError(
                    f"The checkpoint {path} is of a run with {name}={found!r}, this one has "
                    f"{value!r}; only num_samples may differ. Remove the file to begin anew."
                )
        self.state = {
            **{k: v.to(self.like.device) for k, v in tensors_under("state", tensors).items()},
            **{k: float.fromhex(v) for k, v in description["numbers"].items()},
        }
        position = self.state["position"]
        if position.shape[-1] != self.density.dimension or position.dtype != self.like.dtype:
            raise ValueError(
                f"The checkpoint {path} is of {position.shape[-1]} numbers in {position.dtype}, "
                f"this model has {self.density.dimension} in {self.like.dtype}."
            )
        lp, _ = self.evaluation(position)
        before = tensors["lp"].to(lp)
        if not torch.allclose(lp, before, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"The checkpoint {path} is of another model or other data: the log density of its "
                "last positions is not what it was. Remove the file to begin anew."
            )
        self.generator.set_state(tensors["generator"])
        self.done = description["done"]
        if "positions" in tensors:
            self.positions = list(tensors["positions"].to(self.like.device).unbind(1))
            self.stats = {
                name: list(value.to(self.like.device).unbind(1))
                for name, value in tensors_under("stat", tensors).items()
            }
