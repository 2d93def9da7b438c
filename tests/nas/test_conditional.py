"""Hyperparameters that only some candidates have: their code, their moves, and what they cost."""

import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Generator

import nas
from nas import BayesianSampler, Conditional, architecture_of, suggest
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels import SharedMaternKernel
from nas.spaces import Grammar, MLPSpace, op, sequence

SPACE = MLPSpace(4, 2, depth=(1, 3), widths=(8, 16), residual=False)
SHALLOW, DEEP = SPACE.network([8], "relu"), SPACE.network([8, 16, 8], "relu")
DECLARED = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd")),
    "momentum": Conditional(FloatDistribution(0.0, 1.0), {"optimizer": "sgd"}),
    "nesterov": Conditional(
        CategoricalDistribution((False, True)), {"optimizer": "sgd", "depth": (2, 3)}
    ),
    "dropout": Conditional(FloatDistribution(0.0, 0.5), lambda network: network.depth > 2),
}
CUBE = HyperparameterCube(DECLARED, SPACE)


pytestmark = pytest.mark.usefixtures("quiet_optuna")


@pytest.mark.parametrize(
    ("network", "optimizer", "names"),
    [
        (SHALLOW, "adam", {"rate", "optimizer"}),
        (SHALLOW, "sgd", {"rate", "optimizer", "momentum"}),
        (DEEP, "adam", {"rate", "optimizer", "dropout"}),
        (DEEP, "sgd", {"rate", "optimizer", "momentum", "nesterov", "dropout"}),
    ],
)
def test_a_candidate_has_what_its_conditions_say(network, optimizer, names):
    every = CUBE.random(Generator().manual_seed(0)) | {"optimizer": optimizer}
    own = CUBE.chosen(network, every, None)
    assert set(own) == names
    assert CUBE.contains(own, network)
    assert all(own[name] == every[name] for name in names)
    missing = {name: own[name] for name in ("rate", "optimizer")}
    drawn = CUBE.chosen(network, missing, Generator().manual_seed(0))
    assert set(drawn) == names
    assert CUBE.contains(missing, network) == (names == {"rate", "optimizer"})


def test_conditions_of_conditions():
    cube = HyperparameterCube(
        {
            "c": Conditional(FloatDistribution(0, 1), {"b": range(3, 5)}),
            "a": CategoricalDistribution((True, False)),
            "b": Conditional(IntDistribution(1, 4), {"a": True}),
        }
    )
    every = {"a": True, "b": 3, "c": 0.5}
    assert cube.chosen(SHALLOW, every, None) == every
    assert cube.chosen(SHALLOW, every | {"b": 2}, None) == {"a": True, "b": 2}
    assert cube.chosen(SHALLOW, every | {"a": False}, None) == {"a": False}


def test_those_without_are_one_point_as_far_from_all_that_have_it():
    """Of a number and of a categorical; those that have it differ as they are apart."""
    cube = HyperparameterCube(
        {
            "number": Conditional(FloatDistribution(0.0, 2.0), {"depth": 3}),
            "choice": Conditional(CategoricalDistribution(("x", "y", "z")), {"depth": 3}),
        },
        SPACE,
    )
    assert cube.dimension == 5
    assert cube.sizes == (3, 2)
    torch.testing.assert_close(cube.encode({}), torch.zeros(5, dtype=torch.float64))
    rows = torch.stack(
        [cube.encode({"number": n, "choice": c}) for n in (0.0, 0.5, 1.5, 2.0) for c in "xyz"]
    )
    torch.testing.assert_close(rows[:, 3:].norm(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(rows[:, :3].norm(dim=1), torch.ones(12, dtype=torch.float64))
    apart = (rows[0, 3:] - rows[9, 3:]).norm()
    assert apart == pytest.approx(2 * math.sin(math.pi / 4))  # the chord of a quarter
    kernel = SharedMaternKernel(cube.sizes).double()
    kernel.initialize(raw_lengths=torch.tensor([0.5, 2.0], dtype=torch.float64))
    absent = kernel(cube.encode({})[None], rows).to_dense()
    torch.testing.assert_close(absent, absent[:, :1].expand_as(absent))


def test_shared_length_scales_are_a_matern_kernel_of_scaled_columns():
    from gpytorch.kernels import MaternKernel

    X = torch.rand(6, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    shared = SharedMaternKernel((2, 1)).double()
    shared.initialize(raw_lengths=torch.tensor([0.5, 2.0], dtype=torch.float64).expm1().log())
    plain = MaternKernel(nu=2.5, ard_num_dims=3).double()
    plain.lengthscale = torch.tensor([[0.5, 0.5, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(shared(X).to_dense(), plain(X).to_dense(), atol=1e-6, rtol=0)
    torch.testing.assert_close(shared(X, diag=True), torch.ones(6, dtype=torch.float64))
    matrix = shared.forward(X, X)
    (gradient,) = torch.autograd.grad(matrix.sum(), shared.raw_lengths)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"a": Conditional(FloatDistribution(0, 1), {"rates": 1})}, "tells of 'rates'"),
        ({"a": Conditional(FloatDistribution(0, 1), {"a": 0.5})}, "in a circle"),
        ({"a": Conditional(FloatDistribution(0, 1), {"count_liner": 1})}, "tells of 'count_liner'"),
        (
            {
                "kind": CategoricalDistribution(("sgd", "adam")),
                "a": Conditional(FloatDistribution(0, 1), {"kind": "adamw"}),
            },
            r"is never met: 'kind' is one of \('sgd', 'adam'\), not 'adamw'",
        ),
    ],
)
def test_conditions_of_nothing_or_of_themselves(declared, message):
    with pytest.raises(ValueError, match=message):
        BayesianSampler(SPACE, hyperparameters=declared)


def objective(trial):
    """The momentum of sgd matters, and dropout where there is something to drop."""
    network = suggest(trial, SPACE)
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    value = (math.log10(rate) + 2) ** 2 / 4
    if trial.suggest_categorical("optimizer", ("adam", "sgd")) == "sgd":
        value += 4 * (trial.suggest_float("momentum", 0.0, 1.0) - 0.9) ** 2 - 0.5
        if SPACE.to_parameters(network)["depth"] > 1:
            value += 0.1 * trial.suggest_categorical("nesterov", (False, True))
    if network.depth > 2:
        value += 2 * (trial.suggest_float("dropout", 0.0, 0.5) - 0.1) ** 2 - 0.2
    return value


@pytest.mark.usefixtures("few_candidates")
class TestSearch:
    def study(self, trials, **options):
        options = {"hyperparameters": DECLARED, "num_initial": 4, "seed": 0, **options}
        study = optuna.create_study(sampler=BayesianSampler(SPACE, **options), study_name="test")
        study.optimize(objective, n_trials=trials)
        return study

    @pytest.mark.slow
    def test_they_are_proposed_where_they_are_and_only_there(self):
        """No warning says that one is drawn uniformly; none is proposed in vain."""
        study = self.study(9)
        for trial in study.trials:
            own = CUBE.chosen(architecture_of(trial), trial.params, None)
            assert set(own) == set(trial.params) & set(DECLARED)
            assert set(trial.user_attrs["proposed_hyperparameters"]) == set(own)
        again = self.study(9)
        assert [t.params for t in again.trials] == [t.params for t in study.trials]

    def test_queued_candidates_get_what_they_lack(self):
        study = self.study(0)
        nas.enqueue(study, DEEP, {"optimizer": "sgd"}, space=SPACE)
        study.optimize(objective, n_trials=1)
        assert architecture_of(study.trials[0]) == DEEP
        assert set(study.trials[0].params) >= set(DECLARED)

    def test_one_that_is_suggested_elsewhere_is_drawn_with_a_warning(self):
        study = self.study(0)
        nas.enqueue(study, SHALLOW, {"rate": 0.1, "optimizer": "adam"}, space=SPACE)
        trial = study.ask()
        suggest(trial, SPACE)
        with pytest.warns(UserWarning, match="does not meet its condition"):
            trial.suggest_float("momentum", 0.0, 1.0)

    def test_vectors_read_them_too(self):
        assert len(self.study(6, surrogate="vectors").trials) == 6


@pytest.mark.usefixtures("few_candidates")
def test_conditions_on_the_descriptors_of_a_grammar():
    layers = [op("linear", out_features=4), op("relu")]
    grammar = Grammar((4,), {"network": sequence("layer", "layer"), "layer": layers})
    declared = {"decay": Conditional(FloatDistribution(0, 1), {"count_linear": (1, 2)})}

    def decayed(trial):
        network = suggest(trial, grammar)
        if network.operation_counts().get("linear", 0):
            return trial.suggest_float("decay", 0, 1)
        return 0.5

    study = optuna.create_study(
        sampler=BayesianSampler(grammar, hyperparameters=declared, num_initial=3, seed=1)
    )
    study.optimize(decayed, n_trials=7)
    having = ["linear" in architecture_of(t).operation_counts() for t in study.trials]
    assert ["decay" in t.params for t in study.trials] == having
    assert len(set(having)) == 2


@pytest.mark.slow
def test_better_than_without_conditions_on_a_known_function():
    """Mean best of 20 against that where all are declared to exist always, paired by seed: no worse
    by more than two standard errors, and far below the best that adam has, -0.2."""
    plain = {name: getattr(each, "distribution", each) for name, each in DECLARED.items()}
    cases = {"with": DECLARED, "without": plain}
    best = {}
    for name, declared in cases.items():
        best[name] = []
        for seed in range(4):
            sampler = BayesianSampler(SPACE, hyperparameters=declared, num_initial=6, seed=seed)
            study = optuna.create_study(sampler=sampler)
            study.optimize(objective, n_trials=20)
            best[name].append(study.best_value)
    gain = np.array(best["without"]) - np.array(best["with"])
    assert gain.mean() > -2 * gain.std(ddof=1) / math.sqrt(len(gain))
    assert np.mean(best["with"]) < -0.5
