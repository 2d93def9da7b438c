"""Pictures of tasks: every kind of task is drawn, with what its caption says."""

import io
import math
import re

import matplotlib
import pytest
import torch
from gpytorch.kernels import RBFKernel
from matplotlib.figure import Figure
from torch.distributions import Uniform

from priors import (
    FunctionTaskPrior,
    GaussianProcessPrior,
    LearningCurveSize,
    LearningCurveTaskPrior,
    LinearTaskPrior,
    MixtureTaskPrior,
    OptimizationTaskPrior,
    Task,
    TaskSize,
    plot_tasks,
)
from priors.tasks.plots import _explained


class TablePrior:
    """Rows with a categorical feature, missing values and padding; y may be a class."""

    description = "tables"

    def __init__(self, num_classes=None, num_features=4, without_function=False):
        self.num_classes = num_classes
        self.num_features = num_features
        self.without_function = without_function

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        n, d = 40, self.num_features
        X = torch.randn(batch, n, d, generator=generator)
        score = X[..., :2].sum(-1, keepdim=True)
        categorical = torch.zeros(batch, d, dtype=torch.bool)
        if d > 2:
            X[..., 0] = (X[..., 0] > 0).to(X)
            X[..., 1][torch.rand(batch, n, generator=generator) < 0.2] = math.nan
            categorical[:, 0] = True
        y = score
        if self.num_classes:
            y = (score * 3).round().clamp(0, self.num_classes - 1)
        points = torch.ones(batch, n, dtype=torch.bool)
        features = torch.ones(batch, d, dtype=torch.bool)
        points[:, -4:] = False
        features[:, 3:] = False
        return Task(
            X=X,
            y=y,
            f=None if self.num_classes or self.without_function else score,
            noise_var=torch.full((batch,), math.inf if self.num_classes else 0.0),
            num_context=25,
            points=points,
            features=features,
            categorical=categorical,
            num_classes=torch.full((batch,), self.num_classes) if self.num_classes else None,
        )


def functions(d=1):
    inputs = Uniform(torch.zeros(d), torch.ones(d))
    return FunctionTaskPrior(
        GaussianProcessPrior(RBFKernel()), inputs=inputs, num_points=12, noise_var=0.04
    )


KINDS = {
    "one feature": functions(1),
    "three features": functions(3),
    "learning curves": LearningCurveTaskPrior(),
    "no context": LearningCurveTaskPrior(size=LearningCurveSize(num_context=0)),
    "optimisation": OptimizationTaskPrior(),
    "table": TablePrior(),
    "classes": TablePrior(num_classes=3),
    "classes of one feature": TablePrior(num_classes=3, num_features=1),
    "no function": TablePrior(num_features=1, without_function=True),
}


def drawn(figure):
    return [len(ax.collections) + len(ax.lines) for ax in figure.axes if ax.axison]


@pytest.mark.fast_for("one feature", "learning curves", "table", "classes", "no function")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_drawn(name):
    figure = plot_tasks(KINDS[name], 3, seed=1)
    assert len(figure.axes) == 3
    assert min(drawn(figure)) >= 1
    assert all(re.match(r"\d+ features?, \d+ context", ax.get_title()) for ax in figure.axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    assert file.tell() > 5000


def test_points_are_those_of_the_task():
    prior = functions(1)
    task = prior.sample(1, generator=torch.Generator().manual_seed(3))
    ax = plot_tasks(prior, 1, seed=3).axes[0]
    n = task.num_context
    assert 0 < n < 12
    rings, filled = (c.get_offsets() for c in ax.collections)
    pairs = torch.cat([task.X[0], task.y[0]], -1).double()
    torch.testing.assert_close(torch.as_tensor(filled.data), pairs[:n])
    torch.testing.assert_close(torch.as_tensor(rings.data), pairs[n:])
    assert ax.collections[0].get_facecolor().size == 0
    line = torch.as_tensor(ax.lines[0].get_xydata())
    torch.testing.assert_close(line[:, 0], task.X[0, :, 0].double().sort().values)
    assert ax.get_title() == f"1 feature, {n} context + {12 - n} query rows\nnoise 0.2"


def test_curves_have_a_line_each():
    prior = LearningCurveTaskPrior(size=LearningCurveSize(num_curves=5, num_context=60))
    task = prior.sample(1, generator=torch.Generator().manual_seed(2))
    figure = plot_tasks(prior, 1, seed=2)
    curves = len(task.row_latents["curve"].unique())
    assert len(figure.axes[0].lines) == curves
    assert f"{curves} curve" in figure.axes[0].get_title()


def test_padding_is_left_out_and_missing_values_and_categories_are_said():
    figure = plot_tasks(TablePrior(), 2)
    title = figure.axes[0].get_title()
    assert "3 features, 25 context + 11 query rows" in title
    assert "1 categorical" in title
    assert "% missing" in title
    assert "\n3 classes" not in title
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 36
    labels = {text.get_text() for text in figure.legends[0].texts}
    assert any("categories" in label for label in labels)
    assert any("missing" in label for label in labels)
    names = " ".join(ax.get_xlabel() for ax in figure.axes)
    assert "†" in names
    assert "*" in names
    assert "3 classes" in plot_tasks(TablePrior(num_classes=3), 1).axes[0].get_title()


def test_the_most_informative_feature_is_chosen():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, 1] ** 2  # no correlation
    scores = [float(_explained(column, y)) for column in x.T]
    assert scores[1] > 0.6
    assert max(scores[0], scores[2]) < 0.2
    assert float(_explained(torch.ones(200), y)) == pytest.approx(0)
    classes = (x[:, 2] > 0).double()
    assert float(_explained(classes, classes)) == pytest.approx(1)


def test_the_title_is_in_words():
    assert plot_tasks(LinearTaskPrior(TaskSize(max_features=2)), 1).get_suptitle() == (
        "linear functions, 1-2 features, up\nto 512 context rows"
    )


def test_description_is_the_title():
    assert plot_tasks(TablePrior(), 1).get_suptitle() == "tables"
    parts = MixtureTaskPrior([functions()] * 4)
    for prior, start in ((functions(), "GaussianProcessPrior"), (parts, "mixture of 0.25")):
        figure = plot_tasks(prior, 1)
        lines = figure.get_suptitle().splitlines()
        assert lines[0].startswith(start)
        assert max(map(len, lines)) <= 36
        assert len(" ".join(lines)) <= 300


def test_the_seed_determines_the_picture_and_nothing_is_left_behind():
    before, backend = torch.get_rng_state(), matplotlib.get_backend(auto_select=False)
    one, two, other = (
        plot_tasks(OptimizationTaskPrior(), 2, seed=s).axes[0].get_title() for s in (0, 0, 1)
    )
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)
    assert matplotlib.get_backend(auto_select=False) == backend


def test_a_given_figure_is_used():
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert plot_tasks(functions(), 2, figure=left) is left
    plot_tasks(TablePrior(), 5, figure=right)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert len(left.axes) == 2
    assert len(drawn(right)) == 5


class FunctionsOfOnesOwn:
    def sample(self, X, sample_shape=(), *, generator=None):
        return torch.zeros(*sample_shape, *X.shape[:-1], 1)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (GaussianProcessPrior(RBFKernel()), TypeError, "draws functions, not tasks"),
        (FunctionsOfOnesOwn(), TypeError, "draws functions, not tasks"),
        (GaussianProcessPrior, TypeError, "task prior with sample"),
        ("curves", TypeError, "task prior with sample"),
        (LearningCurveTaskPrior, TypeError, "task prior with sample"),
    ],
)
def test_not_a_task_prior(prior, error, message):
    with pytest.raises(error, match=message):
        plot_tasks(prior)


def test_what_is_drawn_must_be_a_task():
    class Wrong:
        def sample(self, batch, *, generator=None, device=None, dtype=None):
            return torch.zeros(batch)

    with pytest.raises(TypeError, match="must return a Task, got Tensor"):
        plot_tasks(Wrong())


def test_no_panels():
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        plot_tasks(functions(), 0)
