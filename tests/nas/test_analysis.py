"""What a surrogate says of a study, and the figures of it and of the cost."""

import math
import sys
from datetime import datetime, timedelta

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

import nas
from nas.encoding.candidates import Candidate
from nas.spaces import Grammar, op, sequence
from nas.spaces.cell import cell_string
from nas.studies.analysis import Calibration, fit_study
from nas.studies.dashboard import summary
from nas.studies.model_plots import plot_calibration, plot_importances, plot_motif_effects
from nas.studies.timeline import lanes_of, plot_cost, plot_timeline

KINDS = ("relu", "tanh", "gelu")
SPACE = Grammar(
    (8,),
    {
        "network": sequence("layer", "layer", "layer", op("linear", out_features=3)),
        "layer": [sequence(op("linear", out_features=8), op(name)) for name in KINDS],
    },
    output_shape=(3,),
)
START = datetime(2026, 1, 1)


def grown(value, number=24):
    study = optuna.create_study(sampler=nas.BayesianSampler(SPACE))
    generator = torch.Generator().manual_seed(0)
    for k in range(number):
        network, rate = SPACE.random(generator), (k * 0.618) % 1
        study.add_trial(
            create_trial(
                value=value(network, rate),
                params={"rate": rate, "kind": "a"},
                distributions={
                    "rate": FloatDistribution(0.0, 1.0),
                    "kind": CategoricalDistribution(("a", "b")),
                },
                user_attrs={"architecture": network.to_json(), **network.descriptors()},
            )
        )
    return study


@pytest.fixture(scope="module")
def study():
    """Less is better; each tanh costs 1, and so does the rate."""
    return grown(lambda network, rate: network.operation_counts().get("tanh", 0) + 0.5 * rate)


@pytest.fixture(scope="module")
def model(study):
    return fit_study(study)


class TestEffects:
    def test_the_motif_that_costs_is_found(self, model):
        effects = {effect.motif: effect for effect in model.effects()}
        tanh = effects["tanh"]
        assert tanh.effect + 3 * tanh.std < 0
        # one more costs 1, in deviations of the values
        assert min(effects.values(), key=lambda e: e.effect).motif in ("tanh", "linear > tanh")
        assert effects["relu"].effect > 0
        tried = {c.architecture for c in model.candidates}
        assert tanh.count == sum("tanh" in str(architecture) for architecture in tried)

    def test_what_takes_the_place_of_another_is_said_once(self, model):
        """Of either sign: of two such motifs one goes with good values, the other with bad."""
        effects = model.effects()
        sizes = [(round(abs(e.effect), 9), round(e.std, 9)) for e in effects]
        assert len(set(sizes)) == len(effects)

    def test_moments_are_those_of_a_slope_of_the_posterior(self, model):
        """Against draws of the function, and numpy's least squares on each."""
        effect = next(e for e in model.effects() if e.motif == "gelu")
        graphs = list(dict.fromkeys(c.architecture for c in model.candidates))
        counts = [graph.operation_counts() for graph in graphs]
        number = np.array([each.get("gelu", 0) for each in counts])
        total = np.array([sum(each.values()) for each in counts])
        design = np.stack([np.ones(len(total)), total, number], 1)
        with torch.no_grad():
            torch.manual_seed(0)
            best = model.candidates[int(model.model.train_Y.argmax())].hyperparameters
            rows = model.encoder([Candidate(graph, best) for graph in graphs])
            draws = model.model.posterior(rows).rsample(torch.Size([4000]))[..., 0].numpy()
        slopes = np.linalg.lstsq(design, draws.T, rcond=None)[0][2]
        error = slopes.std() / len(slopes) ** 0.5
        assert abs(slopes.mean() - effect.effect) < 4 * error
        assert slopes.std() == pytest.approx(effect.std, rel=0.06)

    def test_too_few_trials(self):
        with pytest.raises(ValueError, match="at least 8 complete trials"):
            nas.motif_effects(grown(lambda network, rate: rate, number=5))

    def test_worse_values_are_better_when_maximised(self):
        one = grown(
            lambda network, rate: network.operation_counts().get("tanh", 0) + 0.1 * rate, 10
        )
        other = optuna.create_study(direction="maximize", sampler=one.sampler)
        other.add_trials(one.trials)
        low = {e.motif: e.effect for e in nas.motif_effects(one)}
        high = {e.motif: e.effect for e in nas.motif_effects(other)}
        assert low["tanh"] < 0 < high["tanh"]


def test_left_out_values_are_those_of_a_dense_solve(model):
    """Rasmussen & Williams 2006, eq. 5.12, from the covariance of the fitted process."""
    with torch.no_grad():
        process = model.model
        rows = model.encoder(model.candidates)
        covariance = process.covar_module(rows).to_dense().numpy()
        covariance = covariance + float(process.likelihood.noise) * np.eye(len(covariance))
        mean = process.mean_module(rows).numpy()
    inverse, values = np.linalg.inv(covariance), process.train_Y[:, 0].numpy()
    expected = values - inverse @ (values - mean) / inverse.diagonal()
    found = model.calibration()
    np.testing.assert_allclose(found.mean, expected, atol=1e-5)
    np.testing.assert_allclose(found.std, inverse.diagonal() ** -0.5, rtol=1e-5)


def test_coverage_and_rank_correlation():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    mean = values + torch.tensor([0.0, 1.64, -1.65, 0.0]).double()
    found = Calibration(values, mean, torch.ones(4).double())
    assert found.coverage == 0.75
    assert found.rank_correlation == pytest.approx(0.8)


def test_the_model_sees_what_the_architecture_does_not_tell(study, model):
    assert model.hyperparameters == ("kind", "rate")
    study = optuna.create_study()  # as loaded from a storage: no space
    study.add_trials(grown(lambda network, rate: rate).trials)
    assert fit_study(study).hyperparameters == ("rate",)
    assert fit_study(study, space=SPACE).hyperparameters == ("kind", "rate")


def test_cells_have_their_standard_string():
    space = nas.spaces.CellSpace(3, image_size=4, channels=2, num_cells=1)
    graph = space.random(torch.Generator().manual_seed(0))
    assert cell_string(graph) == space.to_string(graph)
    assert cell_string(SPACE.random(torch.Generator().manual_seed(0))) is None


class TestFigures:
    def test_effects_are_drawn_with_intervals(self, model):
        effects = model.effects()
        ax = plot_motif_effects(effects).axes[0]
        names = [label.get_text().rpartition("  ")[0] for label in ax.get_yticklabels()]
        assert names == [e.motif for e in sorted(effects, key=lambda e: -e.effect)]
        low, high = ax.get_xlim()
        assert all(
            low < e.effect - 1.64 * e.std and e.effect + 1.64 * e.std < high for e in effects
        )
        assert plot_motif_effects([]) is None

    def test_calibration_shows_all(self, model):
        found = model.calibration()
        ax = plot_calibration(found).axes[0]
        low, high = ax.get_ylim()
        assert low < float((found.mean - 1.64 * found.std).min())
        assert high > float((found.mean + 1.64 * found.std).max())

    def test_importances_beyond_the_last_bar_are_one(self):
        shares = {f"name {k}": (20 - k) / 210 for k in range(20)}
        ax = plot_importances(shares).axes[0]
        assert len(ax.patches) == 14
        assert ax.patches[-1].get_width() == pytest.approx(
            sum((20 - k) / 210 for k in range(13, 20))
        )
        assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(1)


def timed(spans, states=None):
    study = optuna.create_study()
    for k, (start, end) in enumerate(spans):
        state = TrialState.COMPLETE if states is None else states[k]
        trial = create_trial(state=state, value=10.0 - k if state == TrialState.COMPLETE else None)
        trial.datetime_start = START + timedelta(seconds=start)
        trial.datetime_complete = START + timedelta(seconds=end)
        study.add_trial(trial)
    return study


class TestTimeline:
    def test_lanes(self):
        assert lanes_of([(0, 4), (1, 2), (2, 5), (4, 6), (4.5, 7)]) == [0, 1, 1, 0, 2]
        assert lanes_of([]) == []

    def test_bars_are_the_trials(self):
        states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE)
        ax = plot_timeline(timed([(0, 60), (10, 50), (70, 130)], states)).axes[0]
        bars = sorted(
            (b.get_x(), b.get_width(), b.get_y() + b.get_height() / 2) for b in ax.patches
        )
        assert bars == [pytest.approx(bar) for bar in [(0, 1, 0), (1 / 6, 2 / 3, 1), (7 / 6, 1, 0)]]
        assert "minutes" in ax.get_xlabel()
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["complete", "failed"]

    def test_a_night_between_two_calls_is_left_out(self):
        ax = plot_timeline(timed([(0, 10), (10, 20), (40_000, 40_010)])).axes[0]
        assert max(bar.get_x() + bar.get_width() for bar in ax.patches) == pytest.approx(30)
        assert "pause left out" in [t.get_text() for t in ax.get_legend().get_texts()]

    def test_cost_counts_failed_trials_too(self):
        states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE)
        ax = plot_cost(timed([(0, 1), (1, 21), (21, 24)], states)).axes[0]
        (line,) = ax.lines
        assert line.get_xdata().tolist() == [1, 24, 24]
        assert line.get_ydata().tolist() == [10, 8, 8]
        assert plot_cost(timed([(0, 1)], (TrialState.FAIL,))) is None

    def test_nothing_ended(self):
        assert plot_timeline(optuna.create_study()) is None
        assert plot_cost(optuna.create_study()) is None


def test_a_diverged_trial_does_not_spoil_the_cost_axis():
    study = timed([(k, k + 1) for k in range(8)])
    trial = create_trial(value=math.inf)
    trial.datetime_start = START - timedelta(seconds=2)
    trial.datetime_complete = START - timedelta(seconds=1)
    study.add_trial(trial)
    ax = plot_cost(study).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 3]
    assert ax.get_ylim() == pytest.approx((3 - 0.06 * 7, 10 + 0.06 * 7))


class TestNote:
    def test_it_says_what_was_found(self, study, model):
        note = summary(study)
        assert f"### Trial {study.best_trial.number}: value {study.best_value:.4g}" in note
        assert str(nas.architecture_of(study.best_trial)) in note
        shares = nas.importances(study)
        first = max(shares, key=shares.get)
        assert f"| {first} | {shares[first]:.2f} |" in note
        effect = model.effects()[0]
        assert f"| {effect.motif} | {effect.effect:+.2f} | {effect.std:.2f} |" in note

    def test_nothing_yet(self):
        assert summary(optuna.create_study()) == "No trial is complete yet."

    def test_the_dashboard_has_it(self, study):
        dashboard = pytest.importorskip("optuna_dashboard")
        nas.annotate(study)
        assert dashboard.get_note(study) == summary(study)

    def test_without_the_dashboard(self, study, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
        with pytest.raises(ImportError, match=r"pip install 'wideprior\[dashboard\]'"):
            nas.annotate(study)
