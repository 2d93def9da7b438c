"""Contract tests for operations, spaces and samplers, to be inherited by the tests of new ones.

    class TestMySpace(SpaceContract):
        def make_space(self): return MySpace()
        def make_input(self): return torch.randn(2, 64)

pytest collects the methods of the subclass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from torch import Generator, Tensor

from nas.architectures.architecture import Architecture, Node
from nas.architectures.operations import Shape, build_operation
from nas.spaces import FlatSpace, MLPSpace, Space
from nas.trials import architecture_of, suggest

__all__ = ["OperationContract", "SamplerContract", "SpaceContract", "SyntheticObjective"]


class SyntheticObjective:
    """A known function over multilayer perceptrons and two hyperparameters, minimum 0.

    The best network has depth 3, GELU and about 30,000 parameters, the best learning rate falls
    with depth, the optimizer should be "adam". It costs nothing, and it can be pickled.

    Attributes:
        space: The space it is defined on.
        hyperparameters: Its hyperparameters.
    """

    def __init__(self) -> None:
        self.space = MLPSpace(64, 10)
        self.hyperparameters = {
            "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
            "optimizer": CategoricalDistribution(("adam", "sgd")),
        }

    def __call__(self, trial: optuna.Trial) -> float:
        """Value of the candidate of a trial."""
        architecture = suggest(trial, self.space)
        learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        optimizer = trial.suggest_categorical("optimizer", ("adam", "sgd"))
        return self.value(architecture, learning_rate, optimizer)

    def value(self, architecture: Architecture, learning_rate: float, optimizer: str) -> float:
        """Value of a candidate."""
        choice = self.space.to_parameters(architecture)
        best_rate = -2.0 - 0.3 * choice["depth"]
        return (
            (math.log10(learning_rate) - best_rate) ** 2
            + 0.2 * abs(choice["depth"] - 3)
            + 0.5 * (choice["activation"] != "gelu")
            + 0.3 * (optimizer != "adam")
            + 0.2 * abs(math.log(architecture.num_parameters / 30_000))
        )


class OperationContract:
    """What every operation must satisfy, ours and those of `nas.register_operation`.

    Attributes:
        operation: Its label.
        shapes: Shapes of its inputs, without the batch.
        arguments: What is chosen for it.
    """

    operation: str
    shapes: tuple[Shape, ...]
    arguments: dict[str, Any] = {}

    def test_output_has_the_shape_that_was_said(self) -> None:
        """For a batch of inputs, with gradients."""
        module, shape = build_operation(self.operation, self.shapes, self.arguments)
        inputs = [torch.randn(2, *size, requires_grad=True) for size in self.shapes]
        output = module(*inputs)
        assert output.shape == (2, *shape)
        output.sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())

    def test_rows_of_a_batch_do_not_see_each_other(self) -> None:
        """When the network is used, not trained."""
        module, _ = build_operation(self.operation, self.shapes, self.arguments)
        module.eval()
        inputs = [torch.randn(3, *size) for size in self.shapes]
        alone = torch.cat([module(*(x[i : i + 1] for x in inputs)) for i in range(3)])
        assert torch.allclose(module(*inputs), alone, atol=1e-5)

    def test_it_stands_in_an_architecture(self) -> None:
        """Stored as JSON, built, counted."""
        if len(set(self.shapes)) > 1:
            return  # an architecture has one input
        reads = [0] * len(self.shapes)
        node = Node.of(self.operation, *reads, **self.arguments)
        made = Architecture((Architecture.input(self.shapes[0]), node))
        again = Architecture.from_json(made.to_json())
        assert again == made
        built = sum(parameter.numel() for parameter in again.build().parameters())
        assert made.num_parameters == built


class SpaceContract(ABC):
    """What every space must satisfy."""

    num_draws = 20

    @abstractmethod
    def make_space(self) -> Space:
        """The space under test."""

    @abstractmethod
    def make_input(self) -> Tensor:
        """A batch of inputs for its networks."""

    def draws(self) -> list[Architecture]:
        """Members to test with."""
        generator = Generator().manual_seed(0)
        space = self.make_space()
        return [space.random(generator) for _ in range(self.num_draws)]

    def test_draws_are_members_and_differ(self) -> None:
        """Random members belong to the space and are not all the same."""
        space, draws = self.make_space(), self.draws()
        assert all(architecture in space for architecture in draws)
        assert len(set(draws)) > 1

    def test_the_generator_decides(self) -> None:
        """Equal generators give equal draws."""
        assert self.draws() == self.draws()

    def test_others_are_not_members(self) -> None:
        """Another graph and another type are outside."""
        other = Architecture((Architecture.input((7,)), Node.of("linear", 0, out_features=1)))
        assert other not in self.make_space()
        assert "architecture" not in self.make_space()

    def test_json_round_trip(self) -> None:
        """JSON gives back the same architecture, with the same hash and text."""
        for architecture in self.draws():
            again = Architecture.from_json(architecture.to_json())
            assert again == architecture
            assert hash(again) == hash(architecture)
            assert again.to_json() == architecture.to_json()

    def test_encodings(self) -> None:
        """Encodings lie in the unit cube of one dimension and are reproducible."""
        space = self.make_space()
        codes = [space.encode(architecture) for architecture in self.draws()]
        assert len({code.shape for code in codes}) == 1
        for architecture, code in zip(self.draws(), codes, strict=True):
            assert code.dtype == torch.float64
            assert bool(((code >= 0) & (code <= 1)).all())
            assert torch.equal(space.encode(architecture), code)

    def test_neighbours(self) -> None:
        """Neighbours are other members, each once."""
        space = self.make_space()
        for architecture in self.draws()[:5]:
            neighbours = space.neighbours(architecture)
            assert neighbours
            assert architecture not in neighbours
            assert len(set(neighbours)) == len(neighbours)
            assert all(neighbour in space for neighbour in neighbours)

    def test_edits_stay_inside(self) -> None:
        """Mutations, crossings and steps are members, and the generator decides them."""
        space, draws = self.make_space(), self.draws()[:3]
        for one, two in zip(draws, draws[1:], strict=False):
            edits = []
            for _ in range(2):
                generator = Generator().manual_seed(1)
                mutated = space.mutate(one, generator)
                edits.append(
                    [mutated, space.crossover(one, two, generator), *space.steps(one, 3, generator)]
                )
            assert edits[0] == edits[1]
            assert all(architecture in space for architecture in edits[0])
            assert len(edits[0]) <= 5

    def test_networks_run_and_learn(self) -> None:
        """A built network maps the input to finite outputs, with gradients."""
        x = self.make_input()
        for architecture in self.draws()[:3]:
            network = architecture.build()
            y = network(x)
            assert y.shape[0] == x.shape[0]
            assert bool(y.isfinite().all())
            y.square().sum().backward()
            last = list(network.parameters())[-1]
            assert last.grad is not None
            assert bool(last.grad.abs().sum() > 0)

    def test_descriptors_count_the_built_network(self) -> None:
        """The number of parameters is that of the network."""
        for architecture in self.draws()[:3]:
            count = sum(p.numel() for p in architecture.build().parameters())
            assert architecture.descriptors()["num_parameters"] == count

    def test_flat_parameters_round_trip(self) -> None:
        """In a flat space the parameters give back the architecture."""
        space = self.make_space()
        for architecture in self.draws() if isinstance(space, FlatSpace) else []:
            assert isinstance(space, FlatSpace)
            values = space.to_parameters(architecture)
            assert set(values) == set(space.parameters())
            assert space.from_parameters(values) == architecture


class SamplerContract(ABC):
    """What every sampler of architectures must satisfy, on `SyntheticObjective`."""

    num_trials = 8

    @abstractmethod
    def make_sampler(self, objective: SyntheticObjective, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler under test for the objective's space and hyperparameters."""

    def run(self, num_trials: int, **options: Any) -> optuna.Study:
        """A study of the synthetic objective."""
        objective = SyntheticObjective()
        study = optuna.create_study(
            sampler=self.make_sampler(objective, seed=3), study_name="contract", **options
        )
        study.optimize(objective, n_trials=num_trials)
        return study

    def test_trials_carry_their_architecture(self) -> None:
        """Each trial has an architecture, its descriptors, its parameters, hyperparameters."""
        objective = SyntheticObjective()
        for trial in self.run(self.num_trials).trials:
            architecture = architecture_of(trial)
            assert architecture in objective.space
            assert architecture is not None
            assert trial.user_attrs["num_parameters"] == architecture.num_parameters
            assert set(objective.hyperparameters) <= set(trial.params)
            flat = {name: trial.params[name] for name in objective.space.parameters()}
            assert objective.space.from_parameters(flat) == architecture

    def test_the_seed_decides(self) -> None:
        """The same study twice is the same."""
        first, second = self.run(self.num_trials), self.run(self.num_trials)
        assert [t.value for t in first.trials] == [t.value for t in second.trials]

    def test_no_candidate_twice(self) -> None:
        """Candidates differ."""
        trials = self.run(self.num_trials).trials
        keys = {(architecture_of(t), tuple(sorted(t.params.items()))) for t in trials}
        assert len(keys) == len(trials)

    def test_global_randomness_is_left_alone(self) -> None:
        """The global random state of torch is as it was."""
        before = torch.get_rng_state()
        self.run(self.num_trials)
        assert torch.equal(torch.get_rng_state(), before)

    def test_maximisation_mirrors_minimisation(self) -> None:
        """Maximising the negative gives the same trials."""
        objective = SyntheticObjective()
        mirrored = optuna.create_study(
            sampler=self.make_sampler(objective, seed=3),
            study_name="contract",
            direction="maximize",
        )
        mirrored.optimize(lambda trial: -objective(trial), n_trials=self.num_trials)
        values = [-t.value for t in mirrored.trials if t.value is not None]
        assert values == [t.value for t in self.run(self.num_trials).trials]

    def test_failures_do_not_stop_it(self) -> None:
        """Studies with raising, infinite and nan trials continue."""
        objective = SyntheticObjective()
        study = optuna.create_study(sampler=self.make_sampler(objective, seed=3))

        def sometimes(trial: optuna.Trial) -> float:
            value = objective(trial)
            if trial.number % 4 == 1:
                raise RuntimeError("diverged")
            return (value, math.inf, math.nan)[trial.number % 3]

        study.optimize(sometimes, n_trials=self.num_trials + 4, catch=(RuntimeError,))
        states = [trial.state for trial in study.trials]
        assert states.count(TrialState.FAIL) > 0
        assert states.count(TrialState.COMPLETE) > 0
