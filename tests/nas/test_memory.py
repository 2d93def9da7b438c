"""What a sampler keeps between proposals, which must never change them."""

import pickle

import optuna
import pytest
import torch
from torch import Generator

from nas import BayesianSampler, suggest
from nas.encoding.candidates import Candidate
from nas.encoding.hyperparameters import HyperparameterCube
from nas.kernels.motifs import MotifStore
from nas.proposals import pool as pools
from nas.proposals.memory import Learnt, Memory, num_learnt_from
from nas.proposals.pool import Pool
from nas.spaces import CellSpace, MLPSpace
from nas.surrogates.graphs import GraphProcess

CELLS = CellSpace(num_cells=1, channels=4, image_size=8)


def draws(number, seed=0):
    generator = Generator().manual_seed(seed)
    return [CELLS.random(generator) for _ in range(number)]


def test_hyperparameters_are_learnt_again_with_each_fifth_more_trials():
    assert [num_learnt_from(finished, 8) for finished in (1, 7, 8, 9, 10)] == [1, 7, 8, 9, 10]
    assert [num_learnt_from(finished, 8) for finished in range(11, 20)] == [
        *(10, 12, 12, 14, 14, 16, 16, 16, 19)
    ]
    for finished in (50, 200, 1000):
        assert finished / 1.2 < num_learnt_from(finished, 8) + 1 <= finished + 1


def test_a_pool_is_the_same_however_it_grew(monkeypatch):
    for name, value in (("NUM_FIRST", 3), ("NUM_PER_TRIAL", 2), ("MAX_POOL", 20)):
        monkeypatch.setattr(pools, name, value)
    slowly, at_once = Pool(CELLS, 5), Pool(CELLS, 5)
    for trials in range(8):
        slowly.first(trials)
    assert not slowly.is_whole
    assert slowly.first(8) == at_once.first(8)
    assert slowly.first(2) == at_once.first(8)[: len(slowly.first(2))]
    assert len(at_once.first(1000)) <= 20
    assert Pool(CELLS, 6).first(8) != at_once.first(8)


def test_all_of_a_small_space_is_in_the_pool():
    space = MLPSpace(4, 2, depth=(1, 2), widths=(8, 16), activations=("relu",), residual=False)
    pool = Pool(space, 0)
    assert pool.is_whole
    assert set(pool.first(0)) == set(space.members(100))


def test_a_fit_is_kept_for_the_same_data_only():
    memory, made = Memory(CELLS), []

    def learn():
        made.append(Learnt(None, ()))
        return made[-1]

    candidates = [Candidate(graph) for graph in draws(3)]
    again = [Candidate(graph) for graph in draws(3)]
    assert memory.learnt((candidates, [1.0]), learn) is memory.learnt((again, [1.0]), learn)
    memory.learnt((candidates, [2.0]), learn)
    memory.learnt((candidates[:2], [2.0]), learn)
    assert len(made) == 3


def test_membership_is_remembered():
    memory = Memory(CELLS)
    other = CellSpace(num_cells=2, channels=4, image_size=8).random(Generator().manual_seed(0))
    for _ in range(2):
        assert memory.is_member(draws(1)[0])
        assert not memory.is_member(other)


def test_features_do_not_depend_on_what_else_is_stored():
    some, others = draws(6), draws(30, seed=1)
    small, large = MotifStore(), MotifStore()
    large.numbers(others)
    few, many = torch.tensor(small.numbers(some)), torch.tensor(large.numbers(some))
    for level in range(small.num_levels):
        alone = small.gram(level, few.numpy(), few.numpy())
        assert (alone == large.gram(level, many.numpy(), many.numpy())).all()
        pairs = small.pairs(level, few.numpy(), few.flip(0).numpy())
        assert pairs == pytest.approx(alone[range(6), range(5, -1, -1)], abs=1e-15)


def test_a_process_of_more_rows_keeps_what_it_learnt():
    """Equal to conditioning a process with these hyperparameters on all rows, by a dense solve."""
    candidates = [Candidate(graph) for graph in dict.fromkeys(draws(14))]
    surrogate, cube = GraphProcess(), HyperparameterCube({})
    encoder = surrogate.encoder(CELLS, cube, candidates[:8])
    X = encoder(candidates)
    Y = torch.linspace(-1.0, 1.0, len(X), dtype=torch.float64)[:, None]
    earlier = surrogate.fit(X[:8], Y[:8], encoder)
    learnt = {name: value.clone() for name, value in earlier.state_dict().items()}
    model = surrogate.refit(X[:-1], Y[:-1], encoder, earlier)
    assert model.state_dict().keys() == learnt.keys()
    for name, value in learnt.items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        gram = model.covar_module(X).to_dense()
        noise = model.likelihood.noise * torch.eye(len(X) - 1, dtype=torch.float64)
        expected = gram[-1, :-1] @ torch.linalg.solve(gram[:-1, :-1] + noise, Y[:-1])
        found = model.posterior(X[-1:]).mean[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("few_candidates")
def test_a_sampler_that_remembers_proposes_as_a_new_one():
    def sampler():
        return BayesianSampler(CELLS, hyperparameters={}, num_initial=3, seed=2)

    def run(renewed):
        study = optuna.create_study(sampler=sampler(), study_name="one")
        for _ in range(7):
            study.optimize(lambda trial: suggest(trial, CELLS).num_parameters, n_trials=1)
            if renewed == "new":
                study.sampler = sampler()
            elif renewed == "sent":
                study.sampler = pickle.loads(pickle.dumps(study.sampler))
        return [trial.params for trial in study.trials]

    kept = run("")
    assert run("new") == kept
    assert run("sent") == kept
