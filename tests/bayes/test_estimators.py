"""Regressor and Classifier: scikit-learn's own checks, tables, engines, and what is refused."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from botorch.models.model import Model
from gpytorch.kernels import MaternKernel, RBFKernel
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import bayes.engines
from bayes import Classifier, GaussianProcess, Regressor, StackedModel, StudentTProcess
from pfn.engines import classification, regression
from priors import CategoricalPosterior, MixturePosterior
from priors.engines import Engine


def rbf(X, Y):
    return GaussianProcess(X, Y, RBFKernel())


def rough(X, Y):
    return StudentTProcess(X, Y, MaternKernel(0.5))


class Centroids(Model):
    """Class probabilities from distances to the classes' means."""

    def __init__(self, X, Y, scale=1.0):
        super().__init__()
        self.scale = scale
        self.centres = torch.stack([X[Y[:, 0] == k].mean(0) for k in Y.unique()])

    @property
    def num_outputs(self):
        return len(self.centres)

    def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):
        square = (X.unsqueeze(-2) - self.centres).square().sum(-1)
        return CategoricalPosterior(-square / self.scale)


def data(n=40, seed=0):
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, 3))
    return X, np.sin(2 * X[:, 0]) + 0.1 * random.normal(size=n)


@pytest.fixture
def small_engines(monkeypatch):
    """Engines that are fitted in no time, in place of those that are installed."""
    made = {
        "smooth": Engine("smooth", "regression", rbf),
        "rough": Engine("rough", "regression", rough, max_rows=20),
        "narrow": Engine("narrow", "regression", rbf, max_columns=2),
        "special": Engine("special", "regression", rbf, is_default=False),
        "centroids": Engine("centroids", "classification", Centroids, max_classes=3),
    }

    def engines(kind):
        return {name: engine for name, engine in made.items() if engine.kind == kind}

    monkeypatch.setattr("bayes.estimators.engines", engines)
    return made


@pytest.mark.parametrize(
    "estimator",
    [pytest.param(Regressor(rbf), marks=pytest.mark.slow), Classifier(Centroids)],
    ids=["regressor", "classifier"],
)
def test_scikit_learns_own_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks that are skipped
        check_estimator(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        Regressor({"PFN": regression, "Student t": "Student t"}, folds=2),
        Classifier({"PFN": classification}, folds=2),
    ],
    ids=["regressor", "classifier"],
)
def test_scikit_learns_own_checks_of_stacks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(estimator)


def test_predictions_are_those_of_the_model():
    X, y = data()
    made = Regressor(rbf).fit(X, y)
    model = rbf(torch.as_tensor(X), torch.as_tensor(y[:, None])).requires_grad_(False)
    Q, T = data(9, seed=1)
    truth = model.posterior(torch.as_tensor(Q), observation_noise=True)
    mean, std = made.predict(Q, return_std=True)
    np.testing.assert_allclose(mean, truth.mean[:, 0])
    np.testing.assert_allclose(std, truth.variance[:, 0].sqrt())
    quantiles = made.predict_quantiles(Q, [0.2, 0.7])
    expected = truth.quantile(torch.tensor([0.2, 0.7], dtype=torch.float64))[..., 0].T
    np.testing.assert_allclose(quantiles, expected)
    found = made.predict_distribution(Q).log_prob(torch.as_tensor(T[:, None]))[:, 0]
    np.testing.assert_allclose(found, truth.log_prob(torch.as_tensor(T[:, None]))[:, 0])
    np.testing.assert_allclose(made.log_likelihood(Q, T), found)
    with pytest.raises(ValueError, match="probabilities in"):
        made.predict_quantiles(Q, [0.5, 1.0])


def test_the_default_is_the_stack_of_the_engines_that_suit(small_engines):
    X, y = data()
    with pytest.warns(UserWarning, match="'rough' takes 20 rows at most and is given a random"):
        made = Regressor(progress=False).fit(X, y)
    assert isinstance(made.model_, StackedModel)
    assert list(made.weights_) == ["smooth", "rough"]
    assert sum(made.weights_.values()) == pytest.approx(1)
    assert made.model_["rough"].train_X.shape == (20, 3)
    assert made.model_.ways == {"smooth": "leave-one-out", "rough": "10 folds"}
    assert isinstance(made.predict_distribution(X), MixturePosterior)


def test_a_single_engine_is_fitted_once():
    X, y = data()
    rows = []

    def counted(X, Y):
        rows.append(len(X))
        return rbf(X, Y)

    made = Regressor([counted], progress=False).fit(X, y)
    assert rows == [len(X)]
    assert made.weights_ == {"engine 1": 1.0}
    np.testing.assert_allclose(made.predict(X), Regressor(rbf).fit(X, y).predict(X))


def test_text_is_no_target_of_regression():
    X, y = data()
    for text in (["a"] * len(y), np.array(["1.5"] * len(y), dtype=object)):
        with pytest.raises(ValueError, match="needs numbers as y, got the text .* bayes.Class"):
            Regressor(rbf).fit(X, text)


def test_equal_targets_have_no_scale():
    X, _ = data()
    with pytest.warns(UserWarning, match="All 40 targets are 5: .* intervals mean nothing"):
        Regressor(rbf).fit(X, np.full(40, 5.0))


def test_engines_by_name_and_several(small_engines):
    X, y = data()
    alone = Regressor("special").fit(X, y)
    assert isinstance(alone.model_, GaussianProcess)
    with pytest.raises(AttributeError, match="no stack"):
        alone.weights_  # noqa: B018
    several = Regressor(["special", rough], progress=False).fit(X, y)
    assert list(several.weights_) == ["special", "engine 2"]
    named = Regressor({"a": "special", "b": small_engines["smooth"]}, progress=False).fit(X, y)
    assert list(named.weights_) == ["a", "b"]
    with pytest.raises(ValueError, match="no engine 'nothing' of regression; known are narrow"):
        Regressor("nothing").fit(X, y)
    with pytest.raises(ValueError, match="'narrow' does not suit this table: it takes 2 columns"):
        Regressor("narrow").fit(X, y)
    with pytest.raises(ValueError, match="names the engine 'Matern' more than once"):
        Regressor(["Matern", "Matern"]).fit(X, y)
    with pytest.raises(TypeError, match="model_factory must be None"):
        Regressor(3.0).fit(X, y)


def test_no_engine_that_suits(monkeypatch):
    X, y = data()
    few = {"few": Engine("few", "regression", rbf, max_columns=1)}
    monkeypatch.setattr("bayes.estimators.engines", lambda kind: few)
    with pytest.raises(ValueError, match="no engine of regression suits this table .few: it takes"):
        Regressor().fit(X, y)


def test_classes(small_engines):
    X, y = data(60)
    names = np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]
    made = Classifier(progress=False).fit(X, names)
    assert made.classes_.tolist() == ["high", "low", "middle"]
    p = made.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.exp(made.predict_log_proba(X)), p)
    assert (made.predict(X) == made.classes_[p.argmax(1)]).all()
    assert (made.predict(X) == names).mean() > 0.5
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        Classifier(Centroids).fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="3 classes at most, y has 4"):
        Classifier().fit(X, np.arange(60) % 4)


def test_shipped_networks_take_part():
    X, y = data(30)
    made = Regressor({"PFN": regression, "smooth": rbf}, folds=2, progress=False).fit(X, y)
    assert made.model_.ways == {"PFN": "2 folds", "smooth": "leave-one-out"}
    assert made.predict(X).shape == (30,)
    classes = Classifier({"PFN": classification}, folds=2, progress=False).fit(X, y > 0)
    assert classes.score(X, y > 0) > 0.7


def test_tables_of_mixed_columns():
    X, y = data(30)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame["kind"] = np.where(y > 0.3, "big", np.where(y < -0.3, "small", "middling"))
    frame.loc[3, "a"] = np.nan
    frame.loc[5, "kind"] = None
    made = Regressor(rbf).fit(frame, y)
    assert made.feature_names_in_.tolist() == ["a", "b", "c", "kind"]
    assert made.model_.train_X.shape == (30, 3 + 3 + 1)  # categories, and what is missing of a
    assert np.isfinite(made.predict(frame)).all()
    with pytest.raises(ValueError, match="feature names"):
        made.predict(frame[["b", "a", "c", "kind"]])


def test_weights_of_rows_are_for_factories_that_know_them():
    X, y = data()
    seen = []

    def weighted(X, Y, sample_weight=None):
        seen.append(sample_weight)
        return rbf(X, Y)

    Regressor(weighted).fit(X, y, sample_weight=np.arange(40.0))
    assert torch.equal(seen[0], torch.arange(40, dtype=torch.float64))
    with pytest.raises(TypeError, match="got sample_weight, which this model_factory does not kn"):
        Regressor(rbf).fit(X, y, sample_weight=np.ones(40))
    with pytest.raises(TypeError, match="got sample_weight, which a stack does not know"):
        Regressor([rbf, rough]).fit(X, y, sample_weight=np.ones(40))
    deaf = Engine("deaf", "regression", rbf)
    with pytest.raises(TypeError, match="got sample_weight, which the engine 'deaf' does not know"):
        Regressor(deaf).fit(X, y, sample_weight=np.ones(40))
    for wrong, told in (
        (np.ones(39), r"shape \(39,\)"),
        (-np.ones(40), "-1"),
        (np.full(40, np.nan), "nan"),
        (np.zeros(40), "only zeros"),
    ):
        message = f"needs sample_weight of 40 finite numbers >= 0.* got {told}"
        with pytest.raises(ValueError, match=message):
            Regressor(weighted).fit(X, y, sample_weight=wrong)


def test_named_engines_take_weights_of_rows():
    X, y = data()
    weights = np.ones(40)
    wrong = [3, 17, 30]
    y[wrong] += 5.0
    right = np.delete(np.arange(40), wrong)
    weights[wrong] = 1e-6
    engine = bayes.engines.process_engine("smooth", lambda d: RBFKernel())
    light = Regressor(engine).fit(X, y, sample_weight=weights)
    assert np.abs(light.predict(X[right]) - y[right]).mean() < 0.2
    assert np.abs(light.predict(X[wrong]) - y[wrong]).min() > 3
    weights[wrong] = 0.0  # as if they were not there
    without = Regressor(engine).fit(X, y, sample_weight=weights)
    alone = Regressor(engine).fit(X[right], y[right])
    np.testing.assert_allclose(without.predict(X), alone.predict(X), rtol=1e-3, atol=1e-3)


def test_named_classifiers_take_weights_of_rows():
    X, _ = data(30)
    y = (X[:, 0] > 0).astype(int)
    weights = np.ones(30)
    y[:5] = 1 - y[:5]
    weights[:5] = 1e-6
    found = Classifier("GP dirichlet").fit(X, y, sample_weight=weights)
    assert (found.predict(X[:5]) != y[:5]).all()


def test_a_fit_that_fails_changes_nothing():
    X, y = data()
    made = Regressor(rbf).fit(X, y)
    before = made.predict(X)
    with pytest.raises(ValueError, match="lacks 1 of 40"):
        made.fit(X, np.where(np.arange(40) == 3, np.nan, y))
    np.testing.assert_array_equal(made.predict(X), before)
    with pytest.raises(NotFittedError):
        Regressor(rbf).predict(X)
    with pytest.raises(ValueError, match="dtype must be"):
        Regressor(rbf, dtype="float16").fit(X, y)


def test_it_is_cloned_pickled_and_cross_validated():
    X, y = data()
    made = clone(Regressor(rbf, dtype="float32")).fit(X, y)
    assert made.predict(X).dtype == np.float32
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.predict(X), made.predict(X))
    assert cross_val_score(Regressor(rbf), X, y, cv=3).mean() > 0


def test_engines_are_pickled():
    X, y = (torch.as_tensor(part) for part in data(15))
    for engine in (regression, classification, *bayes.engines.processes()):
        again = pickle.loads(pickle.dumps(engine))
        assert (again.name, again.kind) == (engine.name, engine.kind)
    model = pickle.loads(pickle.dumps(regression)).factory(X, y[:, None])
    assert model.posterior(X).mean.shape == (15, 1)


def test_engines_of_this_package():
    known = bayes.engines.engines("regression")
    assert {"NNGP GELU", "NNGP ReLU", "NTK GELU", "Matern", "RBF", "Student t"} <= set(known)
    assert "scale mixture" in known
    assert {"GP softmax", "GP dirichlet"} <= set(bayes.engines.engines("classification"))


@pytest.mark.parametrize(
    "number", [pytest.param(k, marks=[pytest.mark.slow] if k < 6 else []) for k in range(8)]
)
def test_processes_learn_on_some_rows_and_know_all(number):
    X, y = (torch.as_tensor(part) for part in data(15))
    model = bayes.engines.processes(fit_rows=10)[number].factory(X, y[:, None])
    assert model.train_X.shape == (15, 3)
    torch.testing.assert_close(model.input_transform.offset[0], X.mean(0))
    whole = bayes.engines.processes(fit_rows=15)[number].factory(X, y[:, None])
    learnt, of_all = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in (model, whole))
    assert not torch.allclose(learnt, of_all)


def test_an_engine_without_noise_weighs_rows_by_known_noise():
    X, y = (torch.as_tensor(part) for part in data(15))
    weights = torch.linspace(0.5, 2.0, 15, dtype=torch.float64)
    engine = bayes.engines.process_engine("smooth", lambda d: RBFKernel(), noise=False)
    model = engine.factory(X, y[:, None], sample_weight=weights)
    noise = model.likelihood.noise
    torch.testing.assert_close(noise * weights, (2e-6 * weights.max()).expand(15))
    constant = engine.factory(X, torch.full_like(y[:, None], 3.0))
    torch.testing.assert_close(constant.posterior(X).mean, torch.full_like(y[:, None], 3.0))


def test_outcomes_without_noise_are_predicted_better_without():
    """40 rows of a deterministic function: noise is learnt, as its prior wants."""
    X = torch.rand(240, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Y = torch.sin(3 * X[:, :1]) * X[:, 1:2] + torch.exp(X[:, 2:])
    density = {}
    for noise in (True, False):
        engine = bayes.engines.process_engine(
            "Matern", lambda d: MaternKernel(2.5, ard_num_dims=d), noise=noise
        )
        posterior = engine.factory(X[:40], Y[:40]).posterior(X[40:], observation_noise=True)
        density[noise] = posterior.log_prob(Y[40:]).mean().item()
    assert density[False] > density[True] + 0.1
