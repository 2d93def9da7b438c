"""Studies that begin with what earlier ones found, in the same space and in another."""

import math
import pickle

import gpytorch
import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import Generator

from nas import BayesianSampler, architecture_of, search, suggest
from nas.encoding.candidates import Candidate, TableEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import CodeKernel, StudyKernel
from nas.kernels.motifs import MotifStore
from nas.kernels.table import ArchitectureTable
from nas.spaces import CellSpace, MLPSpace
from nas.surrogates import GraphProcess

SPACE = MLPSpace(8, 2, depth=(1, 3), widths=(4, 8, 16))
OTHER = MLPSpace(8, 2, depth=(2, 4), widths=(8, 32))
RATE = {"rate": FloatDistribution(1e-4, 1.0, log=True)}


pytestmark = pytest.mark.usefixtures("quiet_optuna")


def value(trial, space=SPACE):
    architecture = suggest(trial, space)
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    return (math.log(architecture.num_parameters) - 5) ** 2 + (math.log10(rate) + 2) ** 2


def random_study(space=SPACE, trials=12, seed=0, objective=value, **options):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed), **options)
    study.optimize(lambda trial: objective(trial, space), n_trials=trials)
    return study


def warmed(earlier, trials, **options):
    sampler = BayesianSampler(
        SPACE, hyperparameters=RATE, warm_start=earlier, seed=0, **{"num_initial": 4, **options}
    )
    study = optuna.create_study(sampler=sampler)
    study.optimize(value, n_trials=trials)
    return study


def test_the_kernel_of_studies_is_a_coregionalisation_of_rank_one():
    kernel = StudyKernel(2).double()
    kernel.initialize(
        raw_correlation=kernel.raw_correlation_constraint.inverse_transform(
            torch.tensor([0.5, 0.8], dtype=torch.float64)
        )
    )
    x = torch.tensor([[0.0], [1.0], [2.0], [1.0]], dtype=torch.float64)
    r = np.array([1.0, 0.5, 0.8, 0.5])
    same = x.numpy() == x.numpy().T
    expected = np.where(same, 1.0, np.outer(r, r))
    torch.testing.assert_close(kernel(x).to_dense(), torch.from_numpy(expected))
    torch.testing.assert_close(kernel(x, diag=True), torch.ones(4, dtype=torch.float64))
    assert np.linalg.eigvalsh(expected).min() > -1e-12


def test_the_kernel_of_codes():
    space = CellSpace(num_cells=1, channels=4, image_size=8)
    generator = Generator().manual_seed(0)
    graphs = [space.random(generator) for _ in range(5)]
    stranger = SPACE.random(generator)
    code = lambda graph: space.encode(graph) if graph in space else None  # noqa: E731
    table = ArchitectureTable([*graphs, stranger], store=MotifStore(code=code))
    kernel = CodeKernel(table).double()
    weights = torch.rand(30, generator=generator, dtype=torch.float64)
    kernel.initialize(raw_weights=kernel.raw_weights_constraint.inverse_transform(weights))
    x = torch.arange(6, dtype=torch.float64)[:, None]
    codes = torch.stack([space.encode(graph) for graph in graphs]).numpy()
    distance = (np.abs(codes[:, None] - codes) * weights.numpy()).sum(-1)
    expected = np.zeros((6, 6))
    expected[:5, :5] = np.exp(-distance)  # nothing is said of one from another space
    torch.testing.assert_close(kernel(x).to_dense(), torch.from_numpy(expected))
    torch.testing.assert_close(kernel(x, diag=True), torch.from_numpy(expected.diagonal().copy()))
    later = space.random(generator)
    number = table.numbers([later])[0]
    row = kernel(torch.tensor([[float(number)]], dtype=torch.float64), x).to_dense()
    away = (np.abs(space.encode(later).numpy() - codes) * weights.numpy()).sum(-1)
    torch.testing.assert_close(row[0, :5], torch.from_numpy(np.exp(-away)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The fit of DenseProcess was stopped")
@pytest.mark.parametrize("alike", [True, False])
def test_what_studies_have_in_common_is_learnt(alike):
    """The correlation rises where an earlier study agrees, and falls where it does not."""
    generator = Generator().manual_seed(1)
    graphs = list(dict.fromkeys(SPACE.random(generator) for _ in range(24)))
    candidates = [Candidate(graph, (), 1) for graph in graphs] + [Candidate(g) for g in graphs]
    encoder = TableEncoder(SPACE, HyperparameterCube({}), candidates)
    X = encoder(candidates)
    assert X[:, -1].tolist() == [1.0] * len(graphs) + [0.0] * len(graphs)
    sizes = torch.tensor([math.log(g.num_parameters) for g in graphs], dtype=torch.float64)
    depths = torch.tensor([float(g.depth) for g in graphs], dtype=torch.float64)
    earlier, own = (sizes, sizes if alike else (depths - 2).square())
    Y = torch.cat([(y - y.mean()) / y.std() for y in (earlier, own)])[:, None]
    with gpytorch.settings.fast_computations(False, False, False):
        model = GraphProcess().fit(X, Y, encoder)
    kernel = next(m for m in model.modules() if isinstance(m, StudyKernel))
    correlation = float(kernel.correlation.detach())
    assert correlation > 0.8 if alike else correlation < 0.7


@pytest.mark.usefixtures("few_candidates")
class TestSampler:
    def test_half_of_the_first_trials_are_the_best_of_earlier_ones(self):
        earlier = random_study()
        study = warmed([earlier], 4)
        best = sorted(earlier.trials, key=lambda trial: trial.value)
        for number, rank in ((0, 0), (2, 1)):
            assert architecture_of(study.trials[number]) == architecture_of(best[rank])
            assert study.trials[number].params["rate"] == best[rank].params["rate"]
        assert study.best_value <= earlier.best_value

    @pytest.mark.slow
    def test_a_study_of_another_space_with_failures_and_other_hyperparameters(self):
        def sometimes(trial, space):
            trial.suggest_float("more", 0.0, 1.0)
            if trial.number % 3 == 0:
                return math.nan
            return value(trial, space)

        earlier = random_study(OTHER, objective=sometimes)
        study = warmed([earlier, random_study()], 6)
        assert all(architecture_of(trial) in SPACE for trial in study.trials)

    @pytest.mark.slow
    def test_workers_and_resumed_studies_have_it(self):
        study = warmed([random_study()], 5)
        sampler = pickle.loads(pickle.dumps(study.sampler))
        again = optuna.create_study(sampler=sampler)
        again.optimize(value, n_trials=5)
        assert [t.params for t in again.trials] == [t.params for t in study.trials]

    @pytest.mark.slow
    def test_several_objectives(self):
        def both(trial, space=SPACE):
            loss = value(trial, space)
            return loss, architecture_of(trial).num_parameters

        options = {"directions": ["minimize", "minimize"]}
        earlier = random_study(objective=both, **options)
        sampler = BayesianSampler(
            SPACE, hyperparameters=RATE, warm_start=[earlier], num_initial=2, seed=0
        )
        study = optuna.create_study(sampler=sampler, **options)
        study.optimize(both, n_trials=3)
        assert len(study.trials) == 3
        with pytest.raises(ValueError, match="1 objectives cannot start from one of 2"):
            warmed([earlier], 1)

    def test_a_search_takes_one_study(self):
        earlier = random_study()
        study = search(
            value, SPACE, hyperparameters=RATE, num_trials=1, warm_start=earlier,
            show_progress=False,
        )  # fmt: skip
        assert study.best_value == earlier.best_value


def test_what_cannot_warm_a_study():
    earlier = random_study(trials=1)
    with pytest.raises(TypeError, match="warm_start takes studies"):
        BayesianSampler(SPACE, warm_start=[3])
    with pytest.raises(ValueError, match="none of its finished trials has an architecture"):
        BayesianSampler(SPACE, warm_start=[optuna.create_study()])
    with pytest.raises(ValueError, match="does not read earlier studies"):
        BayesianSampler(SPACE, surrogate="vectors", warm_start=[earlier])
    with pytest.raises(ValueError, match="warm_start and fidelity apply to the default sampler"):
        search(value, SPACE, num_trials=1, warm_start=earlier, sampler=earlier.sampler)


@pytest.mark.usefixtures("few_candidates")
def test_hyperparameters_that_no_earlier_trial_has():
    sampler = BayesianSampler(
        SPACE,
        hyperparameters={"momentum": FloatDistribution(0.0, 1.0)},
        warm_start=[random_study(trials=2)],
        num_initial=1,
        seed=0,
    )
    study = optuna.create_study(sampler=sampler)
    with pytest.warns(UserWarning, match=r"values for the hyperparameters \['momentum'\]"):
        study.optimize(
            lambda t: suggest(t, SPACE).depth + t.suggest_float("momentum", 0.0, 1.0), n_trials=2
        )


@pytest.mark.slow
def test_an_informative_study_finds_the_best_sooner():
    """Twenty pairs of runs; the mean difference of the best of 6 trials has an interval below 0."""
    gains = []
    for seed in range(20):
        earlier = random_study(trials=25, seed=100 + seed)
        values = []
        for warm in ([], [earlier]):
            sampler = BayesianSampler(SPACE, hyperparameters=RATE, warm_start=warm, seed=seed)
            study = optuna.create_study(sampler=sampler)
            study.optimize(lambda t: value(t) * 3 + 1, n_trials=6)
            values.append(study.best_value)
        gains.append(values[1] - values[0])
    gains = np.array(gains)
    assert gains.mean() + 2.09 * gains.std(ddof=1) / 20**0.5 < 0
