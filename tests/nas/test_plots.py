"""Figures of a study: what is drawn, on which axis, and what lies beyond it."""

import math
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from nas import write_report
from nas.studies.plots import (
    _range,
    objective_names,
    plot_hyperparameters,
    plot_pareto_front,
    plot_progress,
    plot_sizes,
)

OPTIMISER = CategoricalDistribution(("sgd", "adam", "adamw with decoupled weight decay"))
RATE = FloatDistribution(1e-4, 1e-2, log=True)
MOMENTUM = FloatDistribution(0.0, 1.0)


def trial(number, value, constraints=None, **attributes):
    """Every third trial has the first optimiser, which alone has a momentum."""
    kind = number % 3
    params = {"optimiser": OPTIMISER.choices[kind], "rate": 10.0 ** (-4 + number % 5 / 2)}
    distributions = {"optimiser": OPTIMISER, "rate": RATE}
    if kind == 0:
        params["momentum"], distributions["momentum"] = 0.5, MOMENTUM
    return create_trial(
        values=value if isinstance(value, tuple) else (value,),
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        constraints=constraints,
    )


@pytest.fixture(autouse=True)
def without_pixels(monkeypatch):
    """Pages are made without rendering their figures, which takes seconds."""
    monkeypatch.setattr("nas.studies.report._png", lambda figure: "pixels")


def made(values, directions=("minimize",), **attributes):
    study = optuna.create_study(directions=list(directions))
    study.add_trials([trial(k, value, **attributes) for k, value in enumerate(values)])
    return study


GOOD = [0.5 + 0.01 * k for k in range(12)]


def by_label(ax):
    return dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))


@pytest.mark.parametrize("bad", [1e6, math.inf])
def test_an_outlier_is_a_triangle_at_the_edge(bad):
    study = made([*GOOD[:6], bad, *GOOD[6:]])
    ax = plot_progress(study).axes[0]
    low, high = ax.get_ylim()
    assert 0.45 < low < 0.5
    assert 0.61 < high < 0.65
    assert ax.get_yscale() == "linear"
    (place,) = by_label(ax)["off the axis"].get_offsets()
    assert tuple(place) == pytest.approx((6, 0.61))
    assert len(by_label(ax)["trial"].get_offsets()) == len(GOOD)


def test_the_good_side_is_never_cut():
    assert _range(np.array([*GOOD, 1e-6]), maximise=False)[0] == 1e-6
    assert _range(np.array([*GOOD, 1e6]), maximise=True) == (0.5, 1e6)
    assert _range(np.array([*GOOD, -1e6]), maximise=True) == (0.5, GOOD[-1])
    assert _range(np.array([]), maximise=True) == (0.0, 1.0)
    assert _range(np.array([1.0, 2.0, 1e9]), maximise=False) == (1.0, 1e9)  # too few to tell


def test_values_over_decades_are_on_a_logarithmic_axis():
    ax = plot_progress(made([10.0 ** (-k / 2) for k in range(12)])).axes[0]
    assert ax.get_yscale() == "log"
    assert "off the axis" not in by_label(ax)


def test_every_kind_of_hyperparameter_has_its_points():
    figure = plot_hyperparameters(made(GOOD))
    momentum, optimiser, rate, bar = figure.axes
    assert momentum.get_xlabel() == "momentum (4 trials)"
    assert optimiser.get_xlabel() == "optimiser"
    assert [text.get_text() for text in optimiser.get_xticklabels()] == [
        "sgd",
        "adam",
        "adamw with\ndecoupled\nweight\ndecay",
    ]
    *medians, points = optimiser.collections
    x, y = points.get_offsets().T
    assert np.round(x).tolist() == [k % 3 for k in range(12)]
    assert y.tolist() == GOOD
    lines = [tuple(segment[0]) for part in medians for segment in part.get_segments()]
    expected = [(k - 0.38, float(np.median(GOOD[k::3]))) for k in range(3)]
    assert sorted(lines) == [pytest.approx(line) for line in expected]
    assert rate.get_xscale() == "log"
    assert not any(text.get_text() for text in rate.get_xticklabels(minor=True))
    assert bar.get_ylabel() == "trial"


def test_long_names_of_categories_are_turned_and_cut():
    study = optuna.create_study()
    names = CategoricalDistribution([f"operation_number_{k}_of_many" for k in range(8)])
    for k in range(8):
        study.add_trial(
            create_trial(value=float(k), params={"o": names.choices[k]}, distributions={"o": names})
        )
    (label, *_) = plot_hyperparameters(study).axes[0].get_xticklabels()
    assert label.get_text() == "operation_number_0_o..."
    assert label.get_rotation() == 40


def test_a_constant_hyperparameter_is_not_drawn():
    study = optuna.create_study()
    one = {"n": IntDistribution(3, 3)}
    study.add_trials([create_trial(value=v, params={"n": 3}, distributions=one) for v in (1, 2)])
    assert plot_hyperparameters(study) is None


@pytest.mark.parametrize("values", [[], [0.5]])
def test_with_one_trial_or_none_there_is_nothing_to_compare(values, tmp_path):
    study = made(values, num_parameters=10, depth=2)
    assert plot_hyperparameters(study) is None
    assert plot_sizes(study) is None
    assert plot_progress(study).axes[0].get_xlabel() == "trial"
    assert "<h2>Hyperparameters" not in write_report(study, tmp_path / "r.html").read_text()


def test_all_failed(tmp_path):
    study = optuna.create_study()
    for number in range(12):
        failed = create_trial(state=optuna.trial.TrialState.FAIL)
        failed.user_attrs["error"] = "ValueError: <no>" if number else "RuntimeError: " + "x" * 300
        study.add_trial(failed)
    ax = plot_progress(study).axes[0]
    assert by_label(ax)["failed"].get_xdata().tolist() == list(range(12))
    assert ax.get_yticks().tolist() == []
    page = write_report(study, tmp_path / "report.html").read_text()
    assert page.count("ValueError: &lt;no&gt;") == 1
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1 more" in page
    assert '<td class="long">RuntimeError: xxx' in page
    assert "<b>none</b>" in page


@pytest.mark.parametrize("directions", [("minimize", "minimize"), ("maximize", "minimize")])
def test_pareto_front(directions, tmp_path):
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    pairs = [(1, 5), (2, 2), (5, 1), (3, 3), (4, 6), (2, 1e9)]
    values = [(signs[0] * a, signs[1] * b) for a, b in pairs]
    study = made(values, directions)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["error", "cost"])
    assert objective_names(study) == ["error", "cost"]
    ax = plot_pareto_front(study).axes[0]
    drawn = by_label(ax)
    x, y = drawn["Pareto front"].get_data()
    assert sorted(zip(x, y, strict=True)) == sorted(values[:3])
    steps = "steps-post" if directions[0] == "minimize" else "steps-pre"
    assert drawn["Pareto front"].get_drawstyle() == steps
    assert len(drawn["trial"].get_xdata()) == 2
    assert drawn["off the axis"].get_ydata().tolist() == [6]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("error", "cost")
    page = write_report(study, tmp_path / "report.html").read_text()
    assert f"to {directions[0]} error and minimize cost" in page
    assert "<b>3</b><span>trials on the Pareto front" in page
    assert "Hyperparameters: cost" in page
    assert page.count(" best") == 3


def test_three_objectives_have_a_panel_for_each_pair():
    figure = plot_pareto_front(made([(1, 2, 3), (3, 2, 1)], ["minimize"] * 3))
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == [
        ("objective 1", "objective 2"),
        ("objective 1", "objective 3"),
        ("objective 2", "objective 3"),
    ]
    assert plot_pareto_front(made([], ["minimize"] * 2)) is None


def limited(values, sizes):
    """Trials whose size must be at most 5."""
    study = optuna.create_study()
    for number, (value, size) in enumerate(zip(values, sizes, strict=True)):
        constraints = {"size": size - 5.0}
        study.add_trial(trial(number, value, constraints, num_parameters=size, depth=2))
    return study


def test_the_best_is_a_feasible_one():
    study = limited([3.0, 1.0, 2.0, 0.5], [4, 8, 5, 9])
    (ax,) = plot_progress(study).axes
    (line,) = (line for line in ax.lines if line.get_label() == "best so far")
    assert line.get_ydata().tolist() == [3.0, 3.0, 2.0, 2.0]
    ax, _ = plot_sizes(study).axes
    (ring,) = (points for points in ax.collections if points.get_label() == "best")
    (faint,) = (points for points in ax.collections if points.get_label() == "infeasible")
    assert faint.get_offsets().tolist() == [[8.0, 1.0], [9.0, 0.5]]
    assert ring.get_offsets().tolist() == [[5.0, 2.0]]
    assert study.best_trial.number == 2


def test_without_a_feasible_trial_none_is_the_best():
    study = limited([3.0, 1.0], [6, 8])
    (ax,) = plot_progress(study).axes
    assert "best so far" not in [line.get_label() for line in ax.lines if len(line.get_ydata())]
    ax, _ = plot_sizes(study).axes
    assert "best" not in [points.get_label() for points in ax.collections]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("share", ["one", "all"])
def test_a_report_of_infinite_values(direction, value, share, tmp_path):
    values = [value] * 9 if share == "all" else [1.0, value, *map(float, range(2, 9))]
    study = made(values, (direction,), num_parameters=5, depth=2)
    write_report(study, tmp_path / "report.html")


@pytest.mark.parametrize("number", [9, 10])
def test_few_trials_have_no_importances(number, tmp_path):
    path = write_report(made([float(k) for k in range(number)]), tmp_path / "report.html")
    assert ("PED-ANOVA" in path.read_text()) is (number == 10)
