"""Contract tests for all that can be added to searches, to be inherited by the tests of new ones.

    class TestMySpace(SpaceContract):
        def make_space(self): return MySpace()
        def make_input(self): return torch.randn(2, 64)

pytest collects the methods of the subclass.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from torch import Generator, Tensor

from nas.architectures.architecture import Architecture, Node
from nas.architectures.operations import Shape, build_operation
from nas.encoding.candidates import Candidate, Encoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.proposals.acquisitions import Acquisition
from nas.proxies import Proxy
from nas.sampler import BayesianSampler
from nas.spaces import FlatSpace, MLPSpace, Space
from nas.surrogates import Surrogate, VectorModel, surrogate_of
from nas.trials import architecture_of, suggest
from priors.random_state import seeded

__all__ = [
    "AcquisitionContract",
    "OperationContract",
    "ProxyContract",
    "SamplerContract",
    "SpaceContract",
    "SurrogateContract",
    "SyntheticObjective",
]


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
            sizes = space.code_sizes()
            assert sizes is None or sum(sizes) == len(space.encode(architecture))


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


@contextmanager
def _without_advice() -> Iterator[None]:
    """Numerical advice is ignored, as in a search."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class SurrogateContract(ABC):
    """What every surrogate must satisfy, on candidates of `SyntheticObjective`."""

    num_candidates = 16

    @abstractmethod
    def make_surrogate(self) -> str | Surrogate | VectorModel:
        """The surrogate under test, as `BayesianSampler` takes it."""

    def candidates(self, num: int, seed: int) -> list[Candidate]:
        """Random candidates."""
        objective, generator = SyntheticObjective(), Generator().manual_seed(seed)
        cube = HyperparameterCube(objective.hyperparameters)
        return [
            Candidate.of(objective.space.random(generator), cube.random(generator))
            for _ in range(num)
        ]

    def fitted(self) -> tuple[Model, Encoder, Tensor, Tensor]:
        """A model fitted to some candidates, what writes rows, and the rows and targets."""
        objective, surrogate = SyntheticObjective(), surrogate_of(self.make_surrogate())
        observed = self.candidates(self.num_candidates, 0)
        cube = HyperparameterCube(objective.hyperparameters)
        encoder = surrogate.encoder(objective.space, cube, observed)
        X = encoder(observed)
        Y = X.new_tensor([[-objective.value(c.architecture, **c.values)] for c in observed])
        Y = (Y - Y.mean()) / Y.std()
        with seeded(0, torch.device("cpu")), _without_advice():
            return surrogate.fit(X, Y, encoder), encoder, X, Y

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """A candidate has the same row alone and among others, in float64."""
        _, encoder, X, _ = self.fitted()
        observed = self.candidates(self.num_candidates, 0)
        assert X.dtype == torch.float64
        assert X.shape[0] == self.num_candidates
        assert torch.equal(torch.cat([encoder([candidate]) for candidate in observed]), X)

    def test_new_candidates_have_a_posterior(self) -> None:
        """Finite, one value each in a batch of them, with a positive variance, and drawn from."""
        model, encoder, _, _ = self.fitted()
        rows = encoder(self.candidates(5, 1))
        with torch.no_grad():
            posterior: Any = model.posterior(rows[:, None])
            draws = model.posterior(rows).rsample(torch.Size([3]))
        assert posterior.mean.shape == (5, 1, 1)
        assert bool(posterior.mean.isfinite().all())
        assert bool((posterior.variance > 0).all())
        assert draws.shape == (3, 5, 1)
        assert bool(draws.isfinite().all())

    def test_better_candidates_are_predicted_better(self) -> None:
        """Means at the training rows follow the targets."""
        model, _, X, Y = self.fitted()
        with torch.no_grad():
            posterior: Any = model.posterior(X[:, None])
        together = torch.stack([posterior.mean[:, 0, 0], Y[:, 0]])
        assert float(torch.corrcoef(together)[0, 1]) > 0.3

    def test_random_state_decides(self) -> None:
        """Two fits with the same random state of torch predict the same."""
        means = []
        for _ in range(2):
            model, encoder, _, _ = self.fitted()
            with torch.no_grad():
                posterior: Any = model.posterior(encoder(self.candidates(5, 1))[:, None])
            means.append(posterior.mean)
        assert torch.equal(*means)

    def test_workers_can_have_it(self) -> None:
        """A copy by pickle is a surrogate."""
        copied = pickle.loads(pickle.dumps(surrogate_of(self.make_surrogate())))
        assert isinstance(copied, Surrogate)

    def test_it_proposes(self) -> None:
        """In a study."""
        objective = SyntheticObjective()
        sampler = BayesianSampler(
            objective.space,
            hyperparameters=objective.hyperparameters,
            surrogate=self.make_surrogate(),
            num_initial=4,
            seed=0,
        )
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=5)
        assert architecture_of(study.trials[-1]) in objective.space


class AcquisitionContract(ABC):
    """What every acquisition must satisfy, of a Gaussian process on the unit interval."""

    @abstractmethod
    def make_acquisition(self) -> Acquisition:
        """The acquisition under test, as `BayesianSampler` takes it."""

    def made(self, pending: Tensor | None = None) -> AcquisitionFunction:
        """Of a model of a hill at 0.7."""
        X = torch.tensor([[0.0], [0.2], [0.5], [0.9], [1.0]], dtype=torch.float64)
        Y = -(X - 0.7).square()
        Y = (Y - Y.mean()) / Y.std()
        model = SingleTaskGP(X, Y, torch.full_like(Y, 1e-4), outcome_transform=None).eval()
        with _without_advice():
            return self.make_acquisition()(model, X, pending, 3)

    def values(self, acquisition: AcquisitionFunction, grid: Tensor | None = None) -> Tensor:
        """At some points, or on a grid."""
        with torch.no_grad(), _without_advice():
            return acquisition(self.grid() if grid is None else grid)

    def grid(self) -> Tensor:
        """Points `[21, 1, 1]`."""
        return torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None]

    def test_one_finite_value_for_each_candidate(self) -> None:
        """In float64."""
        values = self.values(self.made())
        assert values.shape == (21,)
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all())

    def test_the_seed_decides(self) -> None:
        """Made twice alike it is the same."""
        assert torch.equal(self.values(self.made()), self.values(self.made()))

    def test_candidates_are_judged_one_by_one(self) -> None:
        """The order of candidates does not depend on the batch they come in."""
        acquisition = self.made()
        together = self.values(acquisition)
        alone = torch.cat([self.values(acquisition, point[None]) for point in self.grid()])
        assert torch.allclose(alone, together, rtol=0.05, atol=0.05)

    def test_what_is_known_to_be_bad_is_not_the_best(self) -> None:
        """The foot of the hill, which was observed."""
        values = self.values(self.made())
        assert float(values[0]) < float(values.max())

    def test_running_trials_stand_out_no_more(self) -> None:
        """The best candidate is not further above the average once it runs."""
        before = self.values(self.made())
        best = int(before.argmax())
        after = self.values(self.made(self.grid()[best]))
        assert bool(after.isfinite().all())
        assert float(after[best] - after.mean()) <= float(before[best] - before.mean()) + 1e-6


class ProxyContract(ABC):
    """What every proxy must satisfy, on multilayer perceptrons and random rows."""

    @abstractmethod
    def make_proxy(self) -> Proxy:
        """The proxy under test, as `nas.proxies.ProxyScores` takes it."""

    def rows(self) -> tuple[Tensor, Tensor]:
        """Inputs and classes."""
        generator = Generator().manual_seed(0)
        return torch.randn(12, 64, generator=generator), torch.arange(12) % 3

    def architectures(self) -> list[Architecture]:
        """Those that are scored."""
        generator = Generator().manual_seed(0)
        return [MLPSpace(64, 10, widths=(8, 16)).random(generator) for _ in range(3)]

    def test_a_number_for_each_architecture(self) -> None:
        """Finite, the same when asked again but for rounding."""
        proxy, (X, y) = self.make_proxy(), self.rows()
        for architecture in self.architectures():
            score = float(proxy(architecture, X, y))
            assert math.isfinite(score)
            assert math.isclose(proxy(architecture, X, y), score, rel_tol=1e-5, abs_tol=1e-7)

    def test_a_module_is_left_as_it_is(self) -> None:
        """Its weights, gradients and mode, and the random state of torch."""
        proxy, (X, y) = self.make_proxy(), self.rows()
        network = self.architectures()[0].build()
        before = copy.deepcopy(network.state_dict())
        state = torch.get_rng_state()
        assert math.isfinite(float(proxy(network, X, y)))
        assert torch.equal(torch.get_rng_state(), state)
        assert network.training
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_precision_hardly_matters(self) -> None:
        """Scores in float64 and float32 agree to a per cent."""
        proxy, (X, y) = self.make_proxy(), self.rows()
        for architecture in self.architectures():
            single, double = (
                float(proxy(architecture, X, y)),
                float(proxy(architecture, X.double(), y)),
            )
            assert math.isclose(single, double, rel_tol=1e-2, abs_tol=1e-3)
