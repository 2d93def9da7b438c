"""The Bayesian sampler: contract, quality on a known function, resuming, pending points."""

import functools
import math

import numpy as np
import optuna
import pytest
import torch
from botorch.acquisition import UpperConfidenceBound
from gpytorch.distributions import MultivariateNormal
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from torch import Generator

from nas import Architecture, BayesianSampler, Node, architecture_of, enqueue, suggest
from nas.encoding.candidates import Candidate, VectorEncoder
from nas.encoding.hyperparameters import HyperparameterCube
from nas.proposals.maximisation import maximise
from nas.proposals.pool import Pool
from nas.spaces import CellSpace, MLPSpace, Space
from nas.surrogates.vectors import gaussian_process
from nas.testing import SamplerContract, SyntheticObjective
from priors.posteriors.gaussian import GaussianPosterior

OBJECTIVE = SyntheticObjective()


pytestmark = pytest.mark.usefixtures("quiet_optuna")


def sampler(seed=0, **options):
    options = {"num_initial": 5, "hyperparameters": OBJECTIVE.hyperparameters, **options}
    return BayesianSampler(OBJECTIVE.space, seed=seed, **options)


def run(num_trials, study=None, objective=OBJECTIVE, **options):
    study = study or optuna.create_study(sampler=sampler(**options), study_name="test")
    study.optimize(objective, n_trials=num_trials, catch=(RuntimeError,))
    return study


@pytest.mark.usefixtures("few_candidates")
class TestContract(SamplerContract):
    def make_sampler(self, objective, seed):
        return BayesianSampler(
            objective.space, hyperparameters=objective.hyperparameters, num_initial=6, seed=seed
        )


@pytest.mark.slow
def test_better_than_random_on_a_known_function():
    """Mean best of 30 over 16 seeds against the expected best of 30 random candidates.

    The expectation is over 100 groups of random candidates; the gap must exceed two standard
    errors of the two means together.
    """
    generator = Generator().manual_seed(0)
    cube = HyperparameterCube(OBJECTIVE.hyperparameters)
    values = [
        OBJECTIVE.value(OBJECTIVE.space.random(generator), **cube.random(generator))
        for _ in range(3000)
    ]
    random = np.reshape(values, (100, 30)).min(axis=1)
    ours = np.array([run(30, seed=seed, num_initial=8).best_value for seed in range(16)])
    error = math.hypot(random.std(ddof=1) / 10, ours.std(ddof=1) / 4)
    assert ours.mean() < random.mean() - 2 * error


@functools.cache
def seven_trials():
    """With few candidates."""
    return run(7)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_resuming_gives_the_same_trials(tmp_path, stop):
    """A new sampler on the stored study proposes what would have come, to the last bit."""
    whole = seven_trials()
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run(stop, optuna.create_study(sampler=sampler(), study_name="other", storage=url))
    resumed = optuna.load_study(study_name="other", storage=url, sampler=sampler())
    run(7 - stop, resumed)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]
    assert [architecture_of(t) for t in resumed.trials] == [
        architecture_of(t) for t in whole.trials
    ]


@pytest.mark.usefixtures("few_candidates")
def test_without_a_seed_the_name_of_the_study_decides():
    def values(name):
        study = optuna.create_study(sampler=sampler(seed=None), study_name=name)
        return [t.value for t in run(3, study).trials]

    assert values("one") == values("one")
    assert values("one") != values("two")


def begin(study):
    """Ask for a trial and draw its candidate without finishing it."""
    trial = study.ask()
    OBJECTIVE(trial)
    return trial


@pytest.mark.usefixtures("few_candidates")
def test_a_running_trial_moves_the_next_proposal_away():
    """With nothing learnt in between, only the pending point can tell two proposals apart.

    Both proposals come from the same seed position: the position counts trials, so the second
    study holds a failed trial without a candidate in the place of the running one.
    """
    # Away in the codes that this surrogate compares.
    first, second = run(6, surrogate="vectors"), run(6, surrogate="vectors")
    pending = begin(first)
    second.tell(second.ask(), state=TrialState.FAIL)
    with_pending, without = begin(first), begin(second)
    encoder = VectorEncoder(OBJECTIVE.space, HyperparameterCube(OBJECTIVE.hyperparameters))

    def code(trial):
        values = {name: trial.params[name] for name in OBJECTIVE.hyperparameters}
        return encoder([Candidate.of(architecture_of(trial), values)])[0]

    assert not torch.equal(code(with_pending), code(without))
    away = (code(with_pending) - code(pending)).norm()
    assert away > (code(without) - code(pending)).norm()


@pytest.mark.usefixtures("few_candidates")
def test_failed_trials_are_not_proposed_again():
    """Where every network with GELU fails, the sampler stops trying them."""

    def no_gelu(trial):
        architecture = suggest(trial, OBJECTIVE.space)
        trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        trial.suggest_categorical("optimizer", ("adam", "sgd"))
        if OBJECTIVE.space.to_parameters(architecture)["activation"] == "gelu":
            raise RuntimeError("diverged")
        return 1.0  # what was not tried yet is most promising, unless it fails

    failed = [t.state == TrialState.FAIL for t in run(11, objective=no_gelu, num_initial=6).trials]
    assert sum(failed[:6]) >= 2
    assert not any(failed[6:])


@pytest.mark.usefixtures("few_candidates")
def test_one_diverged_value_does_not_matter_more_than_its_rank():
    """Proposals after a loss of 1e9 are those after a loss of 1e3."""

    def proposal(worst):
        def diverging(trial):
            value = OBJECTIVE(trial)
            return worst if trial.number == 2 else value

        return begin(run(6, objective=diverging)).params

    assert proposal(1e9) == proposal(1e3)


@pytest.mark.usefixtures("few_candidates")
def test_pruned_trials_count_with_their_last_report():
    def pruned(trial):
        value = OBJECTIVE(trial)
        if trial.number % 2:
            trial.report(value, step=1)
            raise optuna.TrialPruned
        return value

    study = run(9, objective=pruned)
    states = [t.state for t in study.trials]
    assert states.count(TrialState.PRUNED) == 4
    assert all(architecture_of(t) in OBJECTIVE.space for t in study.trials)


@pytest.mark.usefixtures("few_candidates")
def test_hyperparameters_are_found_from_finished_trials():
    """Unknown before the first trial, they are proposed together with the architecture later."""
    study = run(4, hyperparameters=None)
    trial = study.ask()
    suggest(trial, OBJECTIVE.space)
    assert set(trial.relative_params) >= set(OBJECTIVE.hyperparameters)
    assert run(4, study).trials[-1].state == TrialState.COMPLETE


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("acquisition", ["lognei", lambda m, X, P, s: UpperConfidenceBound(m, 1.0)])
def test_other_acquisitions(acquisition):
    study = run(5, acquisition=acquisition)
    begin(study)
    assert architecture_of(begin(study)) in OBJECTIVE.space


@pytest.mark.usefixtures("few_candidates")
def test_a_surrogate_of_ones_own_is_asked_for_its_own_expected_improvement():
    """A model with this package's posterior: its closed form is used, its shapes are as told."""
    asked = []

    class Posterior(GaussianPosterior):
        def log_excess(self, threshold, order, above=True):
            assert order == 1
            asked.append(tuple(self.mean.shape))
            return super().log_excess(threshold, order, above)

    def surrogate(X, Y, num_architecture):
        assert X.shape == (len(Y), num_architecture + 3)  # rate, two choices of optimizer
        assert Y.shape == (len(X), 1)
        model = gaussian_process(X, Y, num_architecture)
        plain = model.posterior

        def posterior(X, **options):
            of = plain(X, **options)
            return Posterior(MultivariateNormal(of.mean[..., 0], of.mvn.covariance_matrix))

        model.posterior = posterior
        return model

    study = run(6, surrogate=surrogate)
    assert len(study.trials) == 6
    assert len(asked) > 2


def test_warnings_and_failed_fits_do_not_stop_a_proposal(monkeypatch):
    from botorch.exceptions import ModelFittingError

    def fails(*args, **options):
        raise ModelFittingError("no luck")

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", fails)
    assert len(run(7).trials) == 7


def test_every_member_of_a_small_space_is_tried_once():
    """Eight networks and no hyperparameters: eight trials try them all; a ninth still runs."""
    space = MLPSpace(4, 2, depth=(1, 2), widths=(8, 16), activations=("relu",), residual=False)
    members = {space.random(g) for g in [Generator().manual_seed(0)] for _ in range(200)}
    study = optuna.create_study(
        sampler=BayesianSampler(space, hyperparameters={}, num_initial=2, seed=0)
    )
    study.optimize(lambda t: suggest(t, space).num_parameters, n_trials=len(members) + 1)
    tried = [architecture_of(t) for t in study.trials]
    assert set(tried) == members
    assert len(set(tried[: len(members)])) == len(members)


def test_maximise_finds_the_best_of_a_known_function():
    """The acquisition is a distance to one cell and one rate, both must be reached."""
    space = CellSpace(num_cells=1)
    cube = HyperparameterCube({"rate": FloatDistribution(1e-5, 1.0, log=True)})
    generator = Generator().manual_seed(1)
    pool = Pool(space, 0).first(0)
    target = Candidate.of(space.random(generator), {"rate": 3e-3})
    encoder = VectorEncoder(space, cube)
    goal = encoder([target])[0]
    found = maximise(
        lambda X: -(X[:, 0] - goal).square().sum(-1),
        encoder,
        pool=pool,
        elites=[],
        seen=[],
        generator=generator,
    )
    assert torch.equal(space.encode(found.architecture), space.encode(target.architecture))
    assert abs(math.log10(found.values["rate"] / 3e-3)) < 0.1
    second = maximise(
        lambda X: -(X[:, 0] - goal).square().sum(-1),
        encoder,
        pool=pool,
        elites=[found],
        seen=[found],
        generator=Generator().manual_seed(1),
    )
    assert second != found


@pytest.mark.parametrize("make", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_samplers_of_optuna_draw_the_flat_parameters(make):
    study = run(12, optuna.create_study(sampler=make(seed=0)))
    for trial in study.trials:
        flat = {name: trial.params[name] for name in OBJECTIVE.space.parameters()}
        assert OBJECTIVE.space.from_parameters(flat) == architecture_of(trial)


class Chains(Space):
    """Linear chains of 1 to 4 layers: a space that is not flat."""

    def chain(self, length):
        layers = (Node.of("linear", index, out_features=3) for index in range(length))
        return Architecture((Architecture.input((3,)), *layers))

    def random(self, generator):
        return self.chain(1 + int(torch.randint(4, (), generator=generator)))

    def neighbours(self, architecture):
        lengths = {architecture.depth - 1, architecture.depth + 1}
        return [self.chain(length) for length in sorted(lengths & {1, 2, 3, 4})]

    def encode(self, architecture):
        return torch.tensor([architecture.depth / 4], dtype=torch.float64)

    def __contains__(self, architecture):
        return architecture in [self.chain(length) for length in (1, 2, 3, 4)]


@pytest.mark.parametrize("ours", [True, False])
def test_spaces_that_are_not_flat(ours):
    space = Chains()
    own = BayesianSampler(space, num_initial=2, seed=0)
    study = optuna.create_study(sampler=own if ours else optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda t: abs(suggest(t, space).depth - 3), n_trials=6)
    assert all(architecture_of(t) in space for t in study.trials)
    assert len({architecture_of(t) for t in study.trials}) >= 3
    assert ours != ("derivation" in study.trials[0].params)


@pytest.mark.parametrize("ours", [True, False])
def test_queued_candidates_are_run_as_they_are(ours):
    study = optuna.create_study(
        sampler=sampler() if ours else optuna.samplers.RandomSampler(seed=0)
    )
    wanted = OBJECTIVE.space.network([16, 256, 16], "tanh", residual=True)
    enqueue(study, wanted, {"learning_rate": 0.02}, space=OBJECTIVE.space)
    trial = run(1, study).trials[0]
    assert architecture_of(trial) == wanted
    assert trial.params["learning_rate"] == 0.02
    assert trial.params["width_2"] == 256


def test_a_queued_architecture_must_be_of_the_space():
    study = optuna.create_study(sampler=sampler())
    enqueue(study, MLPSpace(3, 3).network([16], "relu"))
    with pytest.raises(ValueError, match="queued with an architecture that is not in the space"):
        study.optimize(OBJECTIVE, n_trials=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "forest"}, "surrogate must be one of"),
        ({"acquisition": "ei"}, "acquisition must be one of"),
        ({"num_initial": 0}, "num_initial"),
        ({"hyperparameters": {"depth": FloatDistribution(0, 1)}}, r"\['depth'\] have the names"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)
