"""Studies whose surrogate is on the GPU."""

import optuna
import pytest
import torch

from nas import BayesianSampler, architecture_of, search
from nas.testing import SyntheticObjective
from priors.random_state import seeded

OBJECTIVE = SyntheticObjective()


def fitted_on(device, found):
    """The default surrogate, which notes where its data lie."""
    from nas.surrogates.vectors import gaussian_process

    def surrogate(X, Y, num_architecture):
        found.update((X.device, Y.device, X.dtype))
        model = gaussian_process(X, Y, num_architecture)
        assert {p.device for p in model.parameters()} == {device}
        return model

    return surrogate


@pytest.mark.parametrize("acquisition", ["logei", "lognei"])
def test_a_study_with_its_surrogate_on_the_device(device, acquisition):
    found = set()
    sampler = BayesianSampler(
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        surrogate=fitted_on(device, found),
        acquisition=acquisition,
        num_initial=3,
        seed=0,
        device=device,
    )
    with seeded(1, device):
        expected = torch.rand(2, device=device), torch.rand(2)
    with seeded(1, device):
        study = search(
            OBJECTIVE, OBJECTIVE.space, num_trials=4, sampler=sampler, show_progress=False
        )
        assert torch.equal(torch.rand(2, device=device), expected[0])
        assert torch.equal(torch.rand(2), expected[1])
    assert found == {device, torch.float64}
    assert all(architecture_of(trial) in OBJECTIVE.space for trial in study.trials)
    running = study.ask()  # a pending point for the next proposal
    search(OBJECTIVE, OBJECTIVE.space, num_trials=1, sampler=sampler, show_progress=False)
    study.tell(running, state=optuna.trial.TrialState.FAIL)


def test_the_surrogate_is_on_the_cpu_unless_told_otherwise():
    found = set()
    sampler = BayesianSampler(
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        surrogate=fitted_on(torch.device("cpu"), found),
        num_initial=2,
        seed=0,
    )
    search(OBJECTIVE, OBJECTIVE.space, num_trials=3, sampler=sampler, show_progress=False)
    assert found == {torch.device("cpu"), torch.float64}


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize(
    ("surrogate", "acquisition"),
    [
        ("gp", "mes"),
        pytest.param("gp", "thompson", marks=pytest.mark.slow),
        pytest.param("network", "ucb", marks=pytest.mark.slow),
        pytest.param("pfn", "logei", marks=pytest.mark.slow),
        pytest.param("ensemble", "logei", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The network 'bo' uses")
def test_surrogates_by_name_on_the_device(device, surrogate, acquisition):
    sampler = BayesianSampler(
        OBJECTIVE.space,
        hyperparameters=OBJECTIVE.hyperparameters,
        surrogate=surrogate,
        acquisition=acquisition,
        num_initial=3,
        seed=0,
        device=device,
    )
    study = search(OBJECTIVE, OBJECTIVE.space, num_trials=4, sampler=sampler, show_progress=False)
    running = study.ask()
    OBJECTIVE(running)
    assert architecture_of(study.ask()) is None  # not asked for yet
    assert architecture_of(running) in OBJECTIVE.space
