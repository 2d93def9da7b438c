"""Ensembles of a study: the exact pool of what trials kept, with weights of greatest log score."""

import math

import optuna
import pytest
import torch
from torch import nn

import nas
from nas.studies.ensembles import chosen_members
from nas.studies.keeping import kept_of
from nas.trials import KEPT, requeue

SPACE = nas.spaces.MLPSpace(2, 3, depth=(1, 2), widths=(4, 8))
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 3
VALUES = torch.stack([X[:, 0], X.sum(1)], 1)


def objective(trial, targets=CLASSES, folder=None):
    torch.manual_seed(trial.number)
    network = nas.suggest(trial, SPACE).build()
    outputs = network(X) if targets is CLASSES else network(X)[:, :2]
    nas.keep_predictions(trial, network, outputs, targets, folder=folder)
    return float(trial.number)


def searched(storage, num_trials=4, goal=objective):
    return nas.search(
        goal, SPACE, num_trials=num_trials, storage=storage, show_progress=False,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("study") / "s.db")


def test_it_is_the_linear_pool_of_the_kept_networks(study):
    made = nas.ensemble(study, 3)
    assert len(made.trials) == 3
    assert float(made.weights.sum()) == pytest.approx(1)
    probabilities = sum(
        weight * kept_of(study, study.trials[number]).predictions.softmax(-1)
        for weight, number in zip(made.weights, made.trials, strict=True)
    )
    torch.testing.assert_close(made(X).exp(), probabilities)
    torch.testing.assert_close(made.log_prob(X, CLASSES), probabilities.log()[range(40), CLASSES])


def test_no_convex_weights_score_more(study):
    """Under the prior of the weights, Dirichlet with all parameters 2."""
    made = nas.ensemble(study, 4)
    scores = torch.stack([kept_of(study, t).log_scores for t in study.trials], 1)
    best = made.log_prob(X, CLASSES).sum() + made.weights.log().sum()
    laws = torch.distributions.Dirichlet(torch.ones(4)).sample((2000,))
    others = torch.logsumexp(scores[:, None] + laws.log(), -1).sum(0) + laws.log().sum(-1)
    assert best >= others.max() - 1e-4


def test_one_member_is_the_best_alone(study):
    scores = [float(kept_of(study, t).log_scores.mean()) for t in study.trials]
    made = nas.ensemble(study, 1)
    assert made.trials == (max(range(4), key=scores.__getitem__),)
    assert made.weights.tolist() == [1.0]


def test_saved_and_loaded(study, tmp_path):
    made = nas.ensemble(study, 3)
    made.save(tmp_path / "pool.safetensors")
    again = nas.Ensemble.load(tmp_path / "pool.safetensors")
    assert again.trials == made.trials
    assert torch.equal(again(X), made(X))
    assert not again.training


def test_it_is_one_module(study):
    made = nas.ensemble(study, 3).double()
    assert made(X.double()).dtype == torch.float64
    assert len(dict(made.named_buffers())) == 1


def test_means_are_a_mixture_of_gaussians(tmp_path):
    def regression(trial):
        return objective(trial, targets=VALUES, folder=tmp_path)

    class Two(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x)[:, :2]

        def load_state_dict(self, state, **options):
            return self.network.load_state_dict(state, **options)

    study = searched(None, goal=regression)
    build = lambda trial: Two(nas.architecture_of(trial).build())  # noqa: E731
    made = nas.ensemble(study, 2, build=build, folder=tmp_path)
    density, mean = 0.0, 0.0
    for weight, number in zip(made.weights, made.trials, strict=True):
        outputs = kept_of(study, study.trials[number], folder=tmp_path).predictions
        var = (VALUES - outputs).square().mean(0)
        each = (-((VALUES - outputs) ** 2) / (2 * var)).exp() / (2 * math.pi * var).sqrt()
        density, mean = density + weight * each.prod(1), mean + weight * outputs
    torch.testing.assert_close(made.log_prob(X, VALUES), density.log())
    torch.testing.assert_close(made(X), mean)
    with pytest.raises(ValueError, match="no architecture builds"):
        made.save(tmp_path / "pool")


def test_members_that_complete_each_other_share_the_weight():
    """One is right on half of the rows, another on the others, a third is mediocre on all."""
    right, wrong, middle = math.log(0.9), math.log(0.1), math.log(0.3)
    scores = torch.tensor([[right, wrong, middle]] * 500 + [[wrong, right, middle]] * 500).double()
    members, weights = chosen_members(scores, 2)
    assert sorted(members.tolist()) == [0, 1]
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]).double())
    members, weights = chosen_members(scores, 3)
    assert members[2] == 2
    assert weights[2] < 0.01


def test_few_rows_say_little_about_weights():
    """One row that only the first explains, with the prior: the mode of a Dirichlet law (3, 2)."""
    scores = torch.tensor([[0.0, -math.inf]]).double()
    _, weights = chosen_members(scores, 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3]).double(), atol=1e-4, rtol=0)


def test_size_bounds_the_members():
    scores = -torch.rand(200, 12, generator=torch.Generator().manual_seed(1)).double()
    assert len(chosen_members(scores, 50)[0]) == 12
    members, weights = chosen_members(scores, 4)
    assert len(members.unique()) == len(weights) == 4


def test_a_trial_that_runs_again_keeps_anew(tmp_path):
    study = searched(tmp_path / "s.db", num_trials=1)
    requeue(study, study.trials[0])
    assert KEPT in study.trials[0].user_attrs
    assert KEPT not in study.trials[1].user_attrs


def test_refusals(tmp_path):
    network = nn.Linear(2, 3)
    study = optuna.create_study(study_name="../s")
    trial = study.ask()
    with pytest.raises(ValueError, match="not stored in an SQLite file.*pass folder"):
        nas.keep_predictions(trial, network, network(X), CLASSES)
    with pytest.raises(ValueError, match=r"logits \[n, c\]"):
        nas.keep_predictions(trial, network, network(X)[:5], CLASSES, folder=tmp_path)
    with pytest.raises(ValueError, match="classes from 0 to 2 and logits of 2"):
        nas.keep_predictions(trial, network, network(X)[:, :2], CLASSES, folder=tmp_path)
    with pytest.raises(ValueError, match="must be means of their shape"):
        nas.keep_predictions(trial, network, network(X), VALUES, folder=tmp_path)
    with pytest.raises(ValueError, match="No complete trial kept finite predictions"):
        nas.ensemble(study, 3)
    with pytest.raises(ValueError, match="size must be at least 1"):
        nas.ensemble(study, 0)
    nas.keep_predictions(trial, network, network(X), CLASSES, folder=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["..%2Fs"]
    study.tell(trial, 1.0)
    with pytest.raises(ValueError, match="Trial 0 has no architecture; pass build"):
        nas.ensemble(study, 3, folder=tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="pass the folder where it is now"):
        nas.ensemble(study, 3, folder=tmp_path)
    with pytest.raises(ValueError, match="do not fit its network"):
        nas.ensemble(study, 3, folder=tmp_path / "kept", build=lambda trial: nn.Linear(2, 4))
    diverged = study.ask()
    nas.keep_predictions(
        diverged, network, network(X) * math.nan, CLASSES, folder=tmp_path / "kept"
    )
    study.tell(diverged, 2.0)
    made = nas.ensemble(study, 3, folder=tmp_path / "kept", build=lambda trial: nn.Linear(2, 3))
    assert made.trials == (0,)
    other = study.ask()
    nas.keep_predictions(other, network, network(X[1:]), CLASSES[1:], folder=tmp_path / "kept")
    study.tell(other, 3.0)
    with pytest.raises(ValueError, match="Trials 0 and 2 kept predictions of different rows"):
        nas.ensemble(study, 3, folder=tmp_path / "kept")
