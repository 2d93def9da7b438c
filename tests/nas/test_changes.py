"""Studies whose space or hyperparameters change, and what is declared, queued or forgotten."""

import optuna
import pytest
from botorch.models import SingleTaskGP
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from nas import BayesianSampler, architecture_of, enqueue, search, suggest
from nas.spaces import MLPSpace
from nas.trials import _draw, columns_of, requeue

RATE = FloatDistribution(1e-4, 1e-1, log=True)
NUM_INITIAL = 2


def space(inputs=4, outputs=2, widths=(8, 16), depth=(1, 2)):
    return MLPSpace(inputs, outputs, depth=depth, widths=widths, activations=("relu", "tanh"))


pytestmark = pytest.mark.usefixtures("few_candidates", "quiet_optuna")


class Asked(list):
    """A surrogate at its prior that notes its data."""

    def __call__(self, X, Y, num_architecture):
        self.append(X)
        return SingleTaskGP(X, Y, outcome_transform=None).eval()


def objective(where, suggested):
    def value(trial):
        architecture = suggest(trial, where)
        numbers = [v for v in _draw(trial, suggested).values() if isinstance(v, float)]
        return architecture.num_parameters + sum(numbers)

    return value


def run(num_trials, study, where, suggested, declared, asked=None):
    study.sampler = BayesianSampler(
        where,
        hyperparameters=declared,
        surrogate=Asked() if asked is None else asked,
        num_initial=NUM_INITIAL,
        seed=0,
    )
    study.optimize(objective(where, suggested), n_trials=num_trials)
    return study


def members(study, where):
    return sum(architecture_of(trial) in where for trial in study.trials)


CHANGES = {
    "nothing": (space(), {"rate": RATE}, "all"),
    "added": (space(), {"rate": RATE, "decay": FloatDistribution(0.0, 1.0)}, "none"),
    "renamed": (space(), {"lr": RATE}, "none"),
    "removed": (space(), {}, "all"),
    "moved": (space(), {"rate": FloatDistribution(1.0, 10.0, log=True)}, "none"),
    "widened": (space(), {"rate": FloatDistribution(1e-9, 1e3, log=True)}, "all"),
    "widths": (space(widths=(16, 32)), {"rate": RATE}, "members"),
    "depth": (space(depth=(1, 3)), {"rate": RATE}, "all"),
    "inputs": (space(inputs=5), {"rate": RATE}, "none"),
    "outputs": (space(outputs=3), {"rate": RATE}, "none"),
}


FEW = ("nothing", "renamed", "widened", "widths", "inputs")  # one of each kind


@pytest.mark.fast_for("renamed", "widened", "inputs")
@pytest.mark.parametrize(
    "change",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES],
)
def test_a_changed_search_uses_the_trials_that_fit_or_starts_anew(change):
    where, hyperparameters, usable = CHANGES[change]
    study = optuna.create_study(study_name="changing")
    run(6, study, space(), {"rate": RATE}, {"rate": RATE})
    before = {"all": 6, "none": 0, "members": members(study, where)}[usable]
    asked = Asked()
    run(4, study, where, hyperparameters, hyperparameters, asked)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 10
    assert all(architecture_of(t) in where for t in study.trials[6:])
    expected = [n for n in range(before, before + 4) if n >= NUM_INITIAL]
    assert [len(X) for X in asked] == expected
    if usable == "members":
        assert 0 < before < 6


@pytest.mark.fast_for("renamed", "moved")
@pytest.mark.parametrize("change", ["added", "renamed", "removed", "moved", "inputs"])
def test_undeclared_hyperparameters_are_those_of_the_latest_trials(change):
    where, hyperparameters, _ = CHANGES[change]
    study = optuna.create_study(study_name="changing")
    run(3, study, space(), {"rate": RATE}, None)
    run(9, study, where, hyperparameters, None)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 12
    trial = study.ask()
    suggest(trial, where)
    found = {n: d for n, d in trial.relative_search_space.items() if n in hyperparameters}
    assert found == hyperparameters
    assert set(trial.relative_search_space) == {*where.parameters(), *hyperparameters}


def test_another_kind_of_hyperparameter_is_refused_by_name():
    """Optuna fixes the kind of a parameter, and the choices of a categorical, for a study."""
    storage = optuna.storages.InMemoryStorage()
    options = {"storage": storage, "show_progress": False}
    search(objective(space(), {"rate": RATE}), space(), num_trials=1, **options)
    for other in (CategoricalDistribution((0.1, 0.2)), IntDistribution(1, 2)):
        with pytest.raises(ValueError, match="'rate' is stored as FloatDistribution"):
            search(
                objective(space(), {"rate": other}),
                space(),
                hyperparameters={"rate": other},
                num_trials=1,
                **options,
            )


def test_declared_and_suggested_kinds_that_differ():
    other = FloatDistribution(1e-4, 1e-1)
    study = search(
        objective(space(), {"rate": other}),
        space(),
        hyperparameters={"rate": RATE},
        num_trials=1,
        show_progress=False,
    )
    error = study.trials[0].user_attrs["error"]
    assert "different log configuration" in error
    assert "as `hyperparameters` declares it" in error


def test_declared_and_suggested_ranges_that_do_not_meet():
    study, asked = optuna.create_study(), Asked()
    other = FloatDistribution(1.0, 10.0, log=True)
    with pytest.warns(UserWarning, match="'rate' is declared as .* suggested from"):
        run(5, study, space(), {"rate": other}, {"rate": RATE}, asked)
    assert all(1.0 <= t.params["rate"] <= 10.0 for t in study.trials)
    architecture = len(space().encode(architecture_of(study.trials[0])))
    assert {X.shape[1] for X in asked} == {architecture}  # the declared rate is not modelled


def test_a_hyperparameter_declared_under_another_name():
    study, asked = optuna.create_study(), Asked()
    declared = {"learning_rate": RATE, "decay": RATE}
    with pytest.warns(UserWarning, match=r"suggests the hyperparameter 'rate', which is not"):
        run(5, study, space(), {"rate": RATE, "decay": RATE}, declared, asked)
    architecture = len(space().encode(architecture_of(study.trials[0])))
    assert [X.shape for X in asked] == [(n, architecture + 1) for n in (2, 3, 4)]


def test_a_conditional_hyperparameter_keeps_its_proposed_value():
    """Trials that do not use it stay in the model, at the value that they were given."""
    study, asked = optuna.create_study(), Asked()
    declared = {"rate": RATE, "momentum": FloatDistribution(0.0, 1.0)}

    def value(trial):
        architecture = suggest(trial, space())
        if trial.number % 2:
            trial.suggest_float("momentum", 0.0, 1.0)
        return architecture.num_parameters + trial.suggest_float("rate", 1e-4, 1e-1, log=True)

    study.sampler = BayesianSampler(
        space(), hyperparameters=declared, surrogate=asked, num_initial=2, seed=0
    )
    study.optimize(value, n_trials=5)
    assert [len(X) for X in asked] == [2, 3, 4]


def test_an_objective_that_takes_no_architecture():
    study = optuna.create_study(sampler=BayesianSampler(space(), num_initial=1, seed=0))
    with pytest.warns(UserWarning, match=r"without calling nas\.suggest"):
        study.optimize(lambda t: t.suggest_float("x", 0.0, 1.0), n_trials=3)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    with pytest.warns(UserWarning, match=r"without calling nas\.suggest"):
        search(
            lambda trial: trial.suggest_float("x", 0.0, 1.0),
            space(),
            num_trials=1,
            sampler=optuna.samplers.RandomSampler(seed=0),
            show_progress=False,
        )


@pytest.mark.parametrize("make", [None, optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_flat_parameters_are_parameters_of_the_trial(make):
    """Under every sampler, by the same names, and they give the architecture."""
    study = optuna.create_study(sampler=None if make is None else make(seed=0))
    if make is None:
        run(4, study, space(), {"rate": RATE}, {"rate": RATE})
    else:
        study.optimize(objective(space(), {"rate": RATE}), n_trials=4)
    for trial in study.trials:
        assert set(trial.params) == {*space().parameters(), "rate"}
        flat = {name: trial.params[name] for name in space().parameters()}
        assert space().from_parameters(flat) == architecture_of(trial)
    importances = optuna.importance.get_param_importances(study, evaluator=_variance())
    assert {"depth", "width_1", "rate"} <= set(importances)
    assert objective(space(), {"rate": RATE})(study.best_trial) == study.best_value


def _variance():
    return optuna.importance.PedAnovaImportanceEvaluator()


@pytest.mark.parametrize("make", [None, optuna.samplers.TPESampler])
def test_queued_flat_parameters_decide(make):
    sampler = BayesianSampler(space(), num_initial=1, seed=0) if make is None else make(seed=0)
    study = optuna.create_study(sampler=sampler)
    chosen = {
        "depth": 2, "width_1": 16, "width_2": 8, "activation": "tanh", "residual": True,
        "layer_norm": False,
    }  # fmt: skip
    study.enqueue_trial(chosen)
    study.enqueue_trial({"depth": 1, "activation": "tanh"})
    study.optimize(objective(space(), {}), n_trials=2)
    assert study.trials[0].params == chosen
    assert architecture_of(study.trials[0]) == space().from_parameters(chosen)
    assert study.trials[1].params["depth"] == architecture_of(study.trials[1]).depth - 1 == 1
    assert study.trials[1].params["activation"] == "tanh"


@pytest.mark.parametrize("make", [None, optuna.samplers.RandomSampler])
def test_a_queued_name_that_nothing_suggests(make):
    study = search(
        objective(space(), {}),
        space(),
        num_trials=1,
        sampler=BayesianSampler(space(), seed=0) if make is None else make(seed=0),
        show_progress=False,
    )
    study.enqueue_trial({"widht_1": 16, "depth": 1})
    with pytest.warns(UserWarning, match=r"queued with \['widht_1'\], which .* never suggested"):
        search(
            objective(space(), {}), space(), num_trials=1, storage=study._storage,
            study_name=study.study_name, sampler=study.sampler, show_progress=False,
        )  # fmt: skip


def test_a_trial_may_be_replayed_from_its_parameters():
    chosen = {
        "depth": 2, "width_1": 16, "width_2": 8, "activation": "tanh", "residual": True,
        "layer_norm": False,
    }  # fmt: skip
    value = objective(space(), {})(optuna.trial.FixedTrial(chosen))
    assert value == space().from_parameters(chosen).num_parameters


def test_choices_that_changed_have_names_of_their_own():
    """Optuna refuses other choices under a name that a study has."""
    wider = space(widths=(8, 16, 32))
    study = optuna.create_study()
    for where in (space(), wider):
        study.sampler = optuna.samplers.TPESampler(seed=0)
        study.optimize(objective(where, {}), n_trials=2)
    assert study.trials[2].params["width_1 (2)"] in (8, 16, 32)
    columns = columns_of(wider, study.trials)
    assert columns["width_2"] == "width_2 (2)"
    assert columns["activation"] == "activation"
    assert columns_of(space(), study.trials)["width_2"] == "width_2"
    # Queued by the old name, the choice would be passed over.
    study.enqueue_trial({"width_1": 32})
    with pytest.raises(ValueError, match=r"queued with \['width_1'\].*'width_1 \(2\)'"):
        study.optimize(objective(wider, {}), n_trials=1)
    wanted = wider.network([32, 8], "tanh")
    enqueue(study, wanted, space=wider)
    study.optimize(objective(wider, {}), n_trials=1)
    assert architecture_of(study.trials[-1]) == wanted
    assert study.trials[-1].params["width_1 (2)"] == 32


def test_a_trial_lost_before_the_space_changed_runs_as_it_was():
    study = run(3, optuna.create_study(), space(), {"rate": RATE}, {"rate": RATE})
    requeue(study, study.trials[2])
    wider = space(widths=(8, 16, 32))
    run(1, study, wider, {"rate": RATE}, {"rate": RATE})
    assert architecture_of(study.trials[3]) == architecture_of(study.trials[2])
    assert study.trials[3].params["rate"] == study.trials[2].params["rate"]
    assert {"width_1", "width_1 (2)"} & set(study.trials[3].params) == {"width_1 (2)"}
