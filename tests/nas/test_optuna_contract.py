"""Optuna's own contract tests of samplers, with the model from the start and by default."""

import optuna
import pytest
from botorch.models import SingleTaskGP
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from torch import Generator

from nas import BayesianSampler
from nas.spaces import MLPSpace
from nas.trials import ARCHITECTURE

SPACE = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))


pytestmark = pytest.mark.usefixtures("quiet_optuna")


@pytest.mark.covering
@pytest.mark.filterwarnings("ignore:The objective returned without calling nas.suggest")
class TestDefault(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: BayesianSampler(SPACE, seed=0)


def unfitted(X, Y, num_architecture):
    """The model at its prior: what the contract asks does not depend on the fit."""
    return SingleTaskGP(X, Y, outcome_transform=None).eval()


class WithArchitectures(BayesianSampler):
    """The contract's objectives call no `suggest`; here each trial has an architecture."""

    def before_trial(self, study, trial):
        architecture = self.space.random(Generator().manual_seed(trial.number))
        study._storage.set_trial_user_attr(trial._trial_id, ARCHITECTURE, architecture.to_json())


@pytest.mark.usefixtures("few_candidates")
class TestModelFromTheFirstTrial(TestDefault):
    @pytest.fixture
    def sampler(self):
        return lambda: WithArchitectures(SPACE, surrogate=unfitted, num_initial=1, seed=0)


def test_the_model_is_asked_in_the_contract():
    asked = []

    def surrogate(X, Y, num_architecture):
        asked.append(len(X))
        return unfitted(X, Y, num_architecture)

    sampler = WithArchitectures(SPACE, surrogate=surrogate, num_initial=1, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 10), n_trials=3)
    assert asked == [1, 2]
