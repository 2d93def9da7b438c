"""Stacks: their scores by hand, their pool against the members, and what goes wrong."""

import math

import pytest
import torch
from botorch.models.model import Model
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.kernels import MaternKernel, RBFKernel

from bayes import GaussianProcess, StackedModel, StudentTProcess, stack
from bayes.stacking import _parts
from priors import CategoricalPosterior, GaussianPosterior, MixturePosterior
from priors.testing import ModelContract

OWN = {"input_transform": None, "outcome_transform": None}


def data(n=30, m=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    X = 4 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, m, generator=generator, dtype=torch.float64)
    Y = torch.sin(2 * X[:, :1]) + torch.arange(m) + 0.3 * noise
    return X.to(dtype), Y.to(dtype)


def rbf(X, Y):
    return GaussianProcess(X, Y, RBFKernel())


def rough(X, Y):
    return StudentTProcess(X, Y, MaternKernel(0.5))


class Constant(Model):
    """A Gaussian with the mean and deviation of the training outcomes."""

    num_outputs = 1

    def __init__(self, X, Y):
        super().__init__()
        self.mean, self.std = Y.mean(), Y.std()

    def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):
        from gpytorch.distributions import MultivariateNormal

        mean = self.mean.expand(X.shape[:-1])
        eye = torch.eye(X.shape[-2], dtype=X.dtype)
        return GaussianPosterior(MultivariateNormal(mean, self.std**2 * eye))


class Frequencies(Model):
    """Class probabilities that are a power of those of the training outcomes."""

    def __init__(self, X, Y, power):
        super().__init__()
        counts = torch.bincount(Y[:, 0].long()).to(X)
        self.logits = (power * counts.log()).log_softmax(-1)

    @property
    def num_outputs(self):
        return len(self.logits)

    def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):
        return CategoricalPosterior(self.logits.expand(*X.shape[:-1], -1))


class TestStackedModel(ModelContract):
    def make_model(self, dtype):
        X, Y = data(12, dtype=dtype)
        members = {"rbf": rbf(X, Y), "rough": rough(X, Y)}
        return StackedModel(members, torch.tensor([0.3, 0.7], dtype=dtype))

    def make_X(self, dtype):
        return data(6, seed=1, dtype=dtype)[0].reshape(2, 3, 2)


def test_scores_are_those_of_rows_left_out():
    X, Y = data(m=2)
    made = stack({"rbf": rbf, "rough": rough, "fitted": rbf(X, Y)}, X, Y, progress=False)
    assert made.log_scores.shape == (30, 3)
    for k, factory in enumerate((rbf, rough)):
        expected = factory(X, Y).leave_one_out().log_prob(Y).sum(-1)
        torch.testing.assert_close(made.log_scores[:, k], expected)
    torch.testing.assert_close(made.log_scores[:, 2], made.log_scores[:, 0])
    assert set(made.ways.values()) == {"leave-one-out"}


def test_scores_by_folds_are_of_rows_that_the_model_has_not_seen():
    X, Y = data()
    made = stack({"rbf": rbf, "constant": Constant}, X, Y, folds=5, seed=3, progress=False)
    assert made.ways == {"rbf": "leave-one-out", "constant": "5 folds"}
    parts = _parts(Y, 5, 3)
    assert torch.cat(parts).sort().values.tolist() == list(range(30))
    for part in parts:
        rest = torch.tensor([i for i in range(30) if i not in part.tolist()])
        normal = torch.distributions.Normal(Y[rest].mean(), Y[rest].std())
        torch.testing.assert_close(made.log_scores[part, 1], normal.log_prob(Y[part, 0]))
    both = stack({"rbf": rbf, "constant": Constant}, X, Y, method="kfold", progress=False)
    assert set(both.ways.values()) == {"10 folds"}


def test_folds_leave_one_out_as_the_closed_form_does():
    X, Y = data(12)

    def factory(X, Y):
        return GaussianProcess(X, Y, RBFKernel(), **OWN)

    closed = stack([factory], X, Y, progress=False).log_scores
    folds = stack([factory], X, Y, method="kfold", folds=12, progress=False).log_scores
    torch.testing.assert_close(closed, folds)


def test_the_pool_is_the_mixture_of_the_members():
    X, Y = data()
    made = stack({"rbf": rbf, "rough": rough, "constant": Constant}, X, Y, progress=False)
    Q, T = data(7, seed=1)
    posterior = made.posterior(Q, observation_noise=True)
    assert isinstance(posterior, MixturePosterior)
    each = [m.posterior(Q, observation_noise=True) for m in made.models]
    w = made.weights
    assert float(w.sum()) == pytest.approx(1)
    density = sum(wk * p.log_prob(T).exp() for wk, p in zip(w, each, strict=True))
    torch.testing.assert_close(posterior.log_prob(T), density.log())
    torch.testing.assert_close(
        posterior.mean, sum(wk * p.mean for wk, p in zip(w, each, strict=True))
    )
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for probability, value in zip(p, posterior.quantile(p), strict=True):
        torch.testing.assert_close(posterior.cdf(value), probability.expand(7, 1))


def test_the_better_engine_has_the_weight():
    X, Y = data(60)
    made = stack({"constant": Constant, "rbf": rbf}, X, Y, progress=False)
    assert float(made.weights[1]) > 0.8
    assert made["rbf"] is made.models[1]
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    made = stack({"constant": Constant, "rbf": rbf}, X, noise, progress=False)
    assert float(made.weights[0]) > 0.5


def test_classes_are_pooled_as_probabilities():
    X, _ = data(40)
    Y = (X[:, :1] > 1.5).double() + (X[:, :1] > 3.9)
    engines = {
        "frequencies": lambda X, Y: Frequencies(X, Y, 1.0),
        "extreme": lambda X, Y: Frequencies(X, Y, 8.0),
    }
    made = stack(engines, X, Y, folds=4, progress=False)
    posterior = made.posterior(X[:5])
    each = torch.stack([m.posterior(X[:5]).mean for m in made.models])
    torch.testing.assert_close(posterior.mean, (made.weights[:, None, None] * each).sum(0))
    assert float(made.weights[0]) > 0.8
    assert made.num_outputs == 3


def test_a_class_that_a_part_lacks_has_probability_zero_there():
    X, _ = data(20)
    Y = torch.zeros(20, 1, dtype=torch.float64)
    Y[:8] = 1
    Y[3] = 2  # once: the models of the other parts have two classes
    made = stack([lambda X, Y: Frequencies(X, Y, 1.0)], X, Y, folds=4, progress=False)
    assert float(made.log_scores[3]) == -math.inf
    assert made.posterior(X).mean.shape == (20, 3)


def test_an_engine_that_fails_is_told_and_left_out():
    X, Y = data()

    def broken(X, Y):
        raise ArithmeticError("no luck")

    with pytest.warns(UserWarning, match="leaves out 'broken', which failed with ArithmeticError"):
        made = stack({"broken": broken, "rbf": rbf}, X, Y, progress=False)
    assert made.names == ["rbf"]
    assert made.failures == {"broken": "ArithmeticError: no luck"}
    assert "broken left out: ArithmeticError: no luck" in repr(made)
    with (
        pytest.warns(UserWarning, match="leaves out"),
        pytest.raises(RuntimeError, match="no luck"),
    ):
        stack({"broken": broken}, X, Y, progress=False)


def test_an_improper_score_is_a_failure():
    X, Y = data()

    class Bad(Constant):
        def __init__(self, X, Y):
            super().__init__(X, Y)
            self.mean = self.mean * math.nan

    with pytest.warns(UserWarning, match="NaN or infinite at"):
        made = stack({"bad": Bad, "rbf": rbf}, X, Y, progress=False)
    assert made.names == ["rbf"]


def test_what_cannot_be_weighed_is_refused():
    X, Y = data()
    with pytest.raises(ValueError, match="a fitted Constant has no leave_one_out"):
        stack({"plain": Constant(X, Y)}, X, Y)
    with pytest.raises(ValueError, match="no leave_one_out of these rows"):
        stack({"others": rbf(X[:20], Y[:20])}, X, Y)
    with pytest.raises(ValueError, match="fitted model, which K folds cannot fit again"):
        stack({"fitted": rbf(X, Y)}, X, Y, method="kfold")
    with pytest.raises(ValueError, match="method=None it is scored by folds"):
        stack({"constant": Constant}, X, Y, method="loo")
    with pytest.raises(ValueError, match="'loo', 'kfold' or None"):
        stack({"rbf": rbf}, X, Y, method="other")
    with pytest.raises(TypeError, match="a BoTorch model or a factory"):
        stack({"number": 3}, X, Y)
    with pytest.raises(ValueError, match="at least one engine"):
        stack({}, X, Y)
    with pytest.raises(ValueError, match="weight"):
        StackedModel({"rbf": rbf(X, Y)}, torch.ones(2))


def test_further_rows_and_fantasies():
    X, Y = data()
    made = stack({"rbf": rbf, "rough": rough}, X[:20], Y[:20], progress=False)
    more = made.condition_on_observations(X[20:], Y[20:])
    Q = data(4, seed=2)[0]
    each = [m.condition_on_observations(X[20:], Y[20:]) for m in made.models]
    expected = StackedModel(dict(zip("ab", each, strict=True)), made.weights)
    torch.testing.assert_close(more.posterior(Q).mean, expected.posterior(Q).mean)
    sampler = SobolQMCNormalSampler(torch.Size([3]), seed=0)
    assert made.fantasize(Q, sampler).posterior(Q).mean.shape == (3, 4, 1)


def test_outputs():
    X, Y = data(m=3)
    made = stack([rbf, rough], X, Y, progress=False)
    assert made.names == ["rbf", "rough"]
    part = made.subset_output([2, 0]).posterior(X[:4])
    torch.testing.assert_close(part.mean, made.posterior(X[:4]).mean[:, [2, 0]])


def test_it_shows_weights_and_draws_them():
    X, Y = data()
    made = stack({"a": rbf, "b": rough, "c": Constant}, X, Y, progress=False)
    text = repr(made)
    assert text.startswith("StackedModel(3 models)")
    assert "weight" in text
    assert "leave-one-out" in text
    assert "10 folds" in text
    ax = made.plot()
    assert len(ax.patches) == 3
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(widths)
