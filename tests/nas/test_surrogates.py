"""Surrogates by name, and what each makes of trials."""

import math

import numpy as np
import optuna
import pytest
import torch
from botorch.models import ModelList
from optuna.distributions import FloatDistribution
from torch import Generator

from bayes import GaussianProcess
from bayes.processes.marginal_likelihood import exact_solves
from nas import BayesianSampler, architecture_of, search, suggest
from nas.encoding.candidates import Candidate, PathEncoder, TableEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels.paths import paths_of
from nas.proposals.acquisitions import ACQUISITIONS, HYPERVOLUME
from nas.spaces import CellSpace, Grammar, MLPSpace, op, residual, sequence
from nas.surrogates import SURROGATES, FittedNetwork, GraphProcess, PathEnsemble, surrogate_of
from nas.surrogates.ensembles import EnsembleModel
from nas.testing import SyntheticObjective
from priors.posteriors.acquisition import GaussianApproximation

OBJECTIVE = SyntheticObjective()
CELLS = CellSpace(num_cells=1, channels=4, image_size=8)


pytestmark = pytest.mark.usefixtures("quiet_optuna")


def candidates(number, seed=0):
    generator = Generator().manual_seed(seed)
    cube = HyperparameterCube({"rate": FloatDistribution(1e-4, 1.0, log=True)})
    found = [Candidate.of(CELLS.random(generator), cube.random(generator)) for _ in range(number)]
    return cube, found


def grammar():
    return Grammar(
        (6,),
        {
            "network": sequence("body", op("linear", out_features=2)),
            "body": ["layer", sequence("layer", "body")],
            "layer": [
                *(sequence(op("linear", out_features=w), op("relu")) for w in (4, 6)),
                residual(op("tanh")),
            ],
        },
        max_depth=6,
    )


def finds(space, **options):
    """A short study of a known function over architectures and a rate."""

    def objective(trial):
        architecture = suggest(trial, space)
        rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
        return abs(architecture.depth - 3) + (rate - 0.1) ** 2

    sampler = BayesianSampler(
        space,
        hyperparameters={"rate": FloatDistribution(1e-3, 1.0, log=True)},
        num_initial=3,
        seed=0,
        **options,
    )
    study = optuna.create_study(sampler=sampler, study_name="known")
    study.optimize(objective, n_trials=4)
    running = study.ask()
    objective(running)
    second = study.ask()
    objective(second)
    return study, running, second


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize(
    "surrogate", ["gp", *(pytest.param(s, marks=pytest.mark.slow) for s in SURROGATES if s != "gp")]
)
@pytest.mark.filterwarnings("ignore:The network 'bo' uses")
def test_every_surrogate_proposes_from_a_grammar(surrogate):
    space = grammar()
    study, running, second = finds(space, surrogate=surrogate)
    for trial in (*study.trials[:4], running, second):
        assert architecture_of(trial) in space
    assert architecture_of(running) != architecture_of(second) or running.params != second.params


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize(
    "acquisition", ["thompson", *(pytest.param(a, marks=pytest.mark.slow) for a in ("mes", "ucb"))]
)
def test_acquisitions_propose_from_a_grammar(acquisition):
    space = grammar()
    study, running, second = finds(space, acquisition=acquisition)
    for trial in (*study.trials[:4], running, second):
        assert architecture_of(trial) in space


@pytest.mark.usefixtures("few_candidates")
def test_a_grammar_study_resumes_with_the_same_proposals(tmp_path):
    space = grammar()

    def objective(trial):
        return abs(suggest(trial, space).depth - 3) + trial.suggest_float("rate", 0, 1)

    def sampler():
        hyperparameters = {"rate": FloatDistribution(0, 1)}
        return BayesianSampler(space, hyperparameters=hyperparameters, num_initial=3, seed=1)

    whole = optuna.create_study(sampler=sampler(), study_name="one")
    whole.optimize(objective, n_trials=5)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(sampler=sampler(), study_name="two", storage=url).optimize(
        objective, n_trials=3
    )
    resumed = optuna.load_study(study_name="two", storage=url, sampler=sampler())
    resumed.optimize(objective, n_trials=2)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]
    assert [architecture_of(t) for t in resumed.trials] == [
        architecture_of(t) for t in whole.trials
    ]


def test_a_queued_derivation_is_run_as_it_is():
    from nas import enqueue

    space = grammar()
    study = optuna.create_study(sampler=BayesianSampler(space, seed=0))
    wanted = space.random(Generator().manual_seed(5))
    enqueue(study, wanted, space=space)
    study.optimize(lambda trial: suggest(trial, space).depth, n_trials=1)
    assert architecture_of(study.trials[0]) == wanted


def test_every_member_of_a_small_grammar_is_tried_once():
    space = Grammar(
        (4,),
        {
            "network": sequence("layer", "layer"),
            "layer": [op("linear", out_features=w) for w in (2, 3)],
        },
    )
    sampler = BayesianSampler(space, hyperparameters={}, num_initial=2, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda t: suggest(t, space).num_parameters, n_trials=4)
    assert {architecture_of(t) for t in study.trials} == set(space.members(10))


def test_paths_of_a_cell_by_hand():
    text = "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    paths = paths_of(CELLS.from_string(text))
    cell = {path for path in paths if path[0] == "input" and "stem" not in path}
    assert cell == {
        ("input",),
        ("input", "nor_conv_1x1", "avg_pool_3x3", "nor_conv_3x3"),
    }


def test_rows_of_encoders():
    cube, some = candidates(6)
    table = TableEncoder(CELLS, cube, some)
    X = table(some)
    assert X.shape == (6, 2)
    assert [table.table.store.architectures[int(n)] for n in X[:, 0]] == [
        c.architecture for c in some
    ]
    paths = PathEncoder(CELLS, cube, some)
    X = paths(some)
    assert X.shape == (6, len(paths.paths) + 30 + 1)
    varying = X[:, : len(paths.paths)]
    assert bool((varying.std(0) > 0).all())


@pytest.mark.filterwarnings("ignore:The fit of DenseProcess was stopped")
def test_predictions_of_single_points_are_those_of_the_process():
    """Means and variances against the joint posterior, evidence against GPyTorch's."""
    cube, some = candidates(20)
    surrogate = GraphProcess(max_iter=5)
    encoder = surrogate.encoder(CELLS, cube, some[:12])
    X = encoder(some)
    Y = torch.randn(12, 1, generator=Generator().manual_seed(1), dtype=torch.float64)
    model = surrogate.fit(X[:12], Y, encoder)
    joint, single = model.posterior(X), model.posterior(X[:, None])
    torch.testing.assert_close(single.mean[:, 0], joint.mean)
    torch.testing.assert_close(single.variance[:, 0], joint.variance)
    apart = torch.stack([torch.cat([each[None], X[:5]]) for each in X[5:]])  # as acquisitions ask
    for noisy in (False, True):
        ours = model._conditional(apart, [0], noisy)
        theirs = GaussianProcess._conditional(model, apart, [0], noisy)
        torch.testing.assert_close(ours.mean, theirs.mean)
        torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix)
    further = torch.ones(2, 1, dtype=torch.float64)
    other = model.condition_on_observations(X[12:14], further)
    with torch.no_grad():
        before = model.posterior(X[:, None]).mean
        model.likelihood.noise = 2.0
        after = model.posterior(X[:, None]).mean[:, 0]
        torch.testing.assert_close(after, model.posterior(X).mean)
        assert (after - before[:, 0]).abs().max() > 1e-3
        single, joint = other.posterior(X[:, None]).mean[:, 0], other.posterior(X).mean
        torch.testing.assert_close(single, joint)
        model.set_train_data(X[:6], Y[:6], strict=False)
        single, joint = model.posterior(X[:, None]).mean[:, 0], model.posterior(X).mean
        torch.testing.assert_close(single, joint)
    objective = model._marginal_log_likelihood()
    with exact_solves():
        expected = GaussianProcess._objective(model.train(), objective)
        torch.testing.assert_close(model._objective(objective), expected)


def test_the_fitted_network_gets_what_it_was_trained_for():
    """Of 150 trials 128: the 64 best and the newest others; of 12 columns the 10 that matter."""
    surrogate = FittedNetwork()
    generator = Generator().manual_seed(0)
    X = torch.rand(150, 12, generator=generator, dtype=torch.float64)
    X[:, 5] = 0.5
    Y = X[:, :1] + 0.5 * X[:, 11:] + 1e-3 * X[:, 3:4]
    rows = surrogate.chosen_rows(Y)
    assert len(rows) == 128
    best = set(Y[:, 0].argsort(descending=True)[:64].tolist())
    rest = [row for row in rows.tolist() if row not in best]
    assert best <= set(rows.tolist())
    assert rest == [row for row in range(150) if row not in best][-64:]
    columns = surrogate.chosen_columns(X, Y)
    assert len(columns) == 10
    assert {0, 11} <= set(columns.tolist())
    assert 5 not in columns
    notice = surrogate.notice(X)
    assert "10 columns" in notice
    assert "128 trials" in notice
    assert surrogate.notice(X[:100, :10]) is None


@pytest.mark.usefixtures("few_candidates")
def test_the_fitted_network_says_what_it_leaves_out():
    sampler = BayesianSampler(
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        surrogate="pfn",
        num_initial=4,
        seed=0,
    )
    study = optuna.create_study(sampler=sampler)
    with pytest.warns(UserWarning, match="10 columns that correlate most"):
        study.optimize(OBJECTIVE, n_trials=5)


def test_an_ensemble_knows_what_it_has_seen_and_what_it_has_not():
    torch.manual_seed(0)
    X = torch.rand(40, 2, dtype=torch.float64) * 0.5
    Y = torch.sin(6 * X[:, :1])
    Y = (Y - Y.mean()) / Y.std()
    model = PathEnsemble().fit(X, Y, None)
    assert isinstance(model, EnsembleModel)
    inside = model.posterior(X)
    assert (inside.mean - Y).square().mean().sqrt() < 0.3
    far = model.posterior(torch.tensor([[3.0, 3.0]], dtype=torch.float64))
    assert far.variance > 4 * inside.variance.mean()
    noisy = model.posterior(X, observation_noise=True)
    assert bool((noisy.variance > inside.variance).all())
    batch = model.posterior(X[:6].reshape(3, 2, 2))
    assert batch.mean.shape == (3, 2, 1)
    torch.testing.assert_close(batch.mean.reshape(-1), inside.mean[:6, 0])


def test_the_posterior_of_an_ensemble_has_the_covariance_of_its_members():
    """Covariance of the members' means, by numpy."""
    import numpy as np

    X = torch.rand(5, 3, dtype=torch.float64)
    model = EnsembleModel(X, 4, 8)
    means, _ = model.heads(X)
    expected = np.cov(means.detach().numpy().T) + 1e-4 * np.eye(5)
    covariance = model.posterior(X).mvn.covariance_matrix.detach().numpy()
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)


def test_what_is_no_surrogate():
    with pytest.raises(ValueError, match="surrogate must be one of"):
        surrogate_of("forest")
    with pytest.raises(TypeError, match="got int"):
        surrogate_of(3)


def test_a_network_does_not_stay_in_corners():
    """A kernel that grows with the distance from the centre expects most of what is farthest."""
    rate = FloatDistribution(1e-4, 1e-1, log=True)
    space = MLPSpace(8, 2, depth=(1, 2), widths=(4, 8))

    def objective(trial):
        suggest(trial, space)
        return abs(math.log10(trial.suggest_float("rate", 1e-4, 1e-1, log=True)) + 3)

    hyperparameters = {"rate": rate}
    sampler = BayesianSampler(
        space, hyperparameters=hyperparameters, surrogate="network", num_initial=6, seed=0
    )
    study = search(objective, space, hyperparameters=hyperparameters, num_trials=14,
                   sampler=sampler, show_progress=False)  # fmt: skip
    assert np.median([trial.value for trial in study.trials[-6:]]) < 0.3


def test_the_moments_of_a_fitted_network_stand_for_joint_samples():
    """Which it draws one point after another."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    Y = X.sum(-1, keepdim=True)
    model = FittedNetwork()._condition(X, Y, 1)
    acquisition = ACQUISITIONS["lognei"](model, X, None, 0)
    assert isinstance(acquisition.model, GaussianApproximation)
    other = HYPERVOLUME["logei"](ModelList(model, model), X, None, 0)
    assert all(isinstance(one, GaussianApproximation) for one in other.model.models)
    assert bool(torch.isfinite(other(X[:, None] * 0.9)).all())
