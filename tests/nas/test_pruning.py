"""Pruning: curves kept and read, the median rule on fronts, the process of curves against truth."""

import math
import pickle

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from scipy.stats import multivariate_t
from torch import Generator

import nas
from nas import LearningCurvePruner, ParetoPruner, report_value, should_prune
from nas.pruning.curve_process import CurveProcess
from nas.pruning.curves import CURVE, curve_of
from nas.pruning.pruners import FittedCurves

pytestmark = pytest.mark.usefixtures("quiet_optuna")


class TestReports:
    def test_one_objective_is_as_in_optuna(self):
        study = optuna.create_study()
        trial = study.ask()
        report_value(trial, 0.5, 1)
        report_value(trial, [0.4], 2)
        assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.4}
        assert curve_of(study.trials[0]) == {1: [0.5], 2: [0.4]}

    def test_several_are_kept_in_an_attribute(self, tmp_path):
        storage = f"sqlite:///{tmp_path}/study.db"
        study = optuna.create_study(directions=["minimize", "maximize"], storage=storage)
        trial = study.ask()
        report_value(trial, (0.5, 3), 1)
        report_value(trial, torch.tensor([0.25, math.nan]).tolist(), 10)
        report_value(trial, (7.0, 7.0), 1)  # ignored, as in Optuna
        (stored,) = optuna.load_study(study_name=study.study_name, storage=storage).trials
        assert list(curve_of(stored)) == [1, 10]
        assert curve_of(stored)[1] == [0.5, 3.0]
        assert math.isnan(curve_of(stored)[10][1])

    @pytest.mark.parametrize(
        ("values", "step", "error", "message"),
        [
            ((1.0,), 1, ValueError, "got 1 values, but the study has 2 objectives"),
            (1.0, 1, ValueError, "got 1 values, but the study has 2 objectives"),
            ((1.0, 2.0), -1, ValueError, "step must be at least 0, got -1"),
            ((1.0, "x"), 1, ValueError, "x"),
        ],
    )
    def test_wrong_reports(self, values, step, error, message):
        trial = optuna.create_study(directions=["minimize", "minimize"]).ask()
        with pytest.raises(error, match=message):
            report_value(trial, values, step)


def with_curves(directions, *curves):
    """A study whose trials have reported, complete."""
    study = optuna.create_study(directions=directions)
    for curve in curves:
        attributes = {CURVE: {str(step): values for step, values in curve.items()}}
        study.add_trial(optuna.trial.create_trial(values=curve[max(curve)], user_attrs=attributes))
    return study


class TestParetoPruner:
    def test_of_one_objective_is_the_median_rule(self):
        """As Optuna's own, at every place among the others."""
        study = optuna.create_study(direction="maximize")
        values = [3.0, 1.0, 4.0, 1.5, 9.0]
        for value in values:
            study.add_trial(
                optuna.trial.create_trial(value=value, intermediate_values={0: 0.0, 2: value})
            )
        for own in (0.5, 1.2, 2.0, 3.5, 5.0, 10.0):
            trial = optuna.trial.create_trial(
                state=TrialState.RUNNING, intermediate_values={0: 0.0, 2: own}
            )
            trial.number = 77
            optunas = optuna.pruners.MedianPruner(n_startup_trials=1).prune(study, trial)
            assert ParetoPruner().prune(study, trial) == optunas

    @pytest.mark.parametrize(("own", "stopped"), [((0.5, 5.5), False), ((4.5, 4.5), True)])
    def test_on_fronts(self, own, stopped):
        """Three trade-offs, and two trials that all of them beat."""
        study = with_curves(
            ["minimize", "minimize"],
            *({5: values} for values in ([1.0, 5.0], [3.0, 3.0], [5.0, 1.0], [6.0, 6.0])),
            {3: [9.0, 9.0], 6: [7.0, 7.0]},
        )
        trial = study.ask()
        report_value(trial, own, 5)
        assert should_prune(trial) == stopped

    def test_when_it_waits(self):
        study = with_curves(["minimize"] * 2, *[{3: [2.0, 2.0], 5: [1.0, 1.0]}] * 5)
        study.pruner = ParetoPruner(num_startup_trials=6)
        trial = study.ask()
        assert not should_prune(trial)  # nothing reported
        report_value(trial, (9.0, 9.0), 4)
        assert not should_prune(trial)
        study.pruner = ParetoPruner(num_warmup_steps=5)
        assert not should_prune(trial)
        study.pruner = ParetoPruner()
        assert should_prune(trial)
        report_value(trial, (0.0, math.nan), 5)
        assert should_prune(trial)
        study.pruner = optuna.pruners.NopPruner()
        assert not should_prune(trial)

    def test_others_that_did_not_come_as_far_do_not_count(self):
        study = with_curves(["minimize"] * 2, *[{5: [1.0, 1.0]}] * 5)
        trial = study.ask()
        report_value(trial, (9.0, 9.0), 6)
        assert not should_prune(trial)

    def test_pruners_of_one_objective_say_so(self):
        study = with_curves(["minimize"] * 2, {5: [1.0, 1.0]})
        study.pruner = optuna.pruners.HyperbandPruner()
        trial = study.ask()
        report_value(trial, (9.0, 9.0), 6)
        with pytest.raises(NotImplementedError, match="HyperbandPruner reads one objective"):
            should_prune(trial)
        study.pruner = LearningCurvePruner()
        with pytest.raises(NotImplementedError, match="LearningCurvePruner reads one objective"):
            should_prune(trial)

    def test_one_objective_asks_the_studys_pruner(self):
        study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
        trial = study.ask()
        report_value(trial, 0.5, 0)
        assert not should_prune(trial)
        report_value(trial, 1.5, 1)
        assert should_prune(trial)

    def test_in_a_search(self):
        """Pruned trials are told apart, and the sampler reads their curves."""
        space = nas.spaces.MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))

        def objective(trial):
            nas.suggest(trial, space)
            loss = float(trial.number)
            for step in range(3):
                report_value(trial, (loss, loss), step)
                if should_prune(trial):
                    raise optuna.TrialPruned
            return loss, loss

        sampler = optuna.samplers.RandomSampler(seed=0)
        options = {"directions": ["minimize"] * 2, "sampler": sampler, "show_progress": False}
        study = nas.search(objective, space, num_trials=8, **options)
        states = [trial.state for trial in study.trials]
        assert states[:5] == [TrialState.COMPLETE] * 5
        assert TrialState.PRUNED in states[5:]


def curves(num, num_steps, seed=0):
    """Exponential decays to a level of their own."""
    generator = Generator().manual_seed(seed)
    level, height, rate = torch.rand(3, num, 1, generator=generator, dtype=torch.float64)
    steps = torch.arange(num_steps, dtype=torch.float64)
    noise = 0.01 * torch.randn(num, num_steps, generator=generator, dtype=torch.float64)
    return steps, -level - (1 + height) * (-(0.1 + rate) * steps).exp() + noise


class TestCurveProcess:
    def process(self):
        steps, values = curves(5, 7)
        values[1, 3:] = math.nan
        values[2, 5:] = math.nan
        return CurveProcess(steps, values, max_iter=5), values

    def test_likelihood_is_that_of_a_multivariate_t(self):
        process, values = self.process()
        parameters = process.log_parameters
        shape = process.shape(parameters).numpy()
        expected = 0.0
        for row in values:
            k = int((~row.isnan()).sum())
            law = multivariate_t(
                process.common[:k].numpy(), shape[:k, :k], df=parameters[-1].exp().item()
            )
            expected += law.logpdf(row[:k].numpy())
        found = process.log_likelihood(parameters, process.common)
        assert found.item() == pytest.approx(expected, rel=1e-9)

    def test_end_is_the_conditional_law(self):
        """A density of the whole curve over one of its beginning, the last value alone left."""
        process, values = self.process()
        shape = process.shape(process.log_parameters).numpy()
        centre, dof = process.common.numpy(), process.log_parameters[-1].exp().item()
        for k in (0, 2, 6):
            kept = [*range(k), 6]
            joint = multivariate_t(centre[kept], shape[np.ix_(kept, kept)], df=dof)
            begin = values[0, :k].numpy()
            law = process.end(values[0, :k])
            for value in (-1.0, 0.0, 0.4):
                expected = joint.logpdf([*begin, value])
                if k:
                    expected -= multivariate_t(centre[:k], shape[:k, :k], df=dof).logpdf(begin)
                assert law.log_prob(torch.tensor(value).double()).item() == pytest.approx(expected)

    def test_the_fit_is_better_than_its_start(self):
        steps, values = curves(20, 12)
        before = CurveProcess(steps, values, max_iter=0)
        after = CurveProcess(steps, values)
        gain = after.log_likelihood(after.log_parameters, after.common) - before.log_likelihood(
            before.log_parameters, before.common
        )
        assert gain > 50

    def test_intervals_cover_new_curves(self):
        steps, values = curves(60, 12)
        process = CurveProcess(steps, values[:40])
        inside = []
        for row in values[40:]:
            end = process.end(row[:4])
            value = (row[-1] - end.loc) / end.scale
            inside.append(abs(value) < torch.distributions.Normal(0, 1).icdf(torch.tensor(0.975)))
        assert sum(inside) >= 15  # 95% of 20; fewer than 15 in one of 10,000


class TestLearningCurvePruner:
    def study(self, num=8, direction="minimize"):
        steps, values = curves(num, 12)
        sign = -1.0 if direction == "minimize" else 1.0
        study = optuna.create_study(direction=direction)
        for row in sign * values:
            study.add_trial(
                optuna.trial.create_trial(
                    value=float(row[-1]),
                    intermediate_values={int(s): float(v) for s, v in zip(steps, row, strict=True)},
                )
            )
        return study

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_hopeless_trials_stop_and_promising_ones_go_on(self, direction):
        study = self.study(direction=direction)
        best, sign = study.best_value, 1.0 if direction == "minimize" else -1.0
        study.pruner = LearningCurvePruner()
        bad, good = study.ask(), study.ask()
        for step in range(6):
            report_value(bad, best + sign * (1.5 + 0.01 * step), step)
            report_value(good, best + sign * (0.2 - 0.1 * step), step)
        assert should_prune(bad)
        assert not should_prune(good)

    def test_nothing_is_known_yet(self):
        study = self.study(4)
        study.pruner = LearningCurvePruner(num_startup_trials=5)
        trial = study.ask()
        assert not should_prune(trial)
        report_value(trial, 1e6, 3)
        assert not should_prune(trial)
        report_value(trial, math.nan, 4)
        assert should_prune(trial)

    def test_warm_up(self):
        study = self.study()
        study.pruner = LearningCurvePruner(num_warmup_steps=4)
        trial = study.ask()
        report_value(trial, 1e6, 3)
        assert not should_prune(trial)
        report_value(trial, 1e6, 4)
        assert should_prune(trial)

    def test_other_steps_are_interpolated(self):
        fitted = FittedCurves([{0: 0.0, 2: 2.0, 4: 4.0}], [{0: 0.0, 4: 4.0}, {1: 5.0, 3: 7.0}], 1.0)
        rows = [fitted._on_grid(curve).tolist() for curve in ({0: 0.0, 4: 4.0}, {1: 5.0, 3: 7.0})]
        assert rows[0] == [0.0, 2.0, 4.0]
        assert rows[1][:2] == [5.0, 6.0]
        assert math.isnan(rows[1][2])

    def test_many_steps_are_thinned(self):
        curve = {step: 1 / (1 + step) for step in range(0, 5000, 2)}
        fitted = FittedCurves([curve], [curve], -1.0)
        assert len(fitted.steps) <= 64
        assert fitted.steps[-1] == 4998

    def test_the_last_step_is_no_guess(self):
        study = self.study()
        study.pruner = LearningCurvePruner()
        trial = study.ask()
        report_value(trial, study.best_value - 1e-6, 11)
        assert not should_prune(trial)
        trial = study.ask()
        report_value(trial, study.best_value + 1e-6, 11)
        assert should_prune(trial)

    def test_a_copy_by_pickle_decides_alike(self):
        study = self.study()
        study.pruner = LearningCurvePruner(level=0.2)
        trial = study.ask()
        report_value(trial, 1.0, 3)
        first = should_prune(trial)
        study.pruner = pickle.loads(pickle.dumps(study.pruner))
        assert study.pruner.level == 0.2
        assert should_prune(trial) == first

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"level": 0.0}, "level must be a probability"),
            ({"num_startup_trials": 0}, "at least 1"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            LearningCurvePruner(**options)


@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.HyperbandPruner(1, 4, 2), optuna.pruners.SuccessiveHalvingPruner(1, 2)],
)
def test_brackets_of_optuna_under_our_sampler(pruner):
    space = nas.spaces.MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))

    def objective(trial):
        value = float(nas.suggest(trial, space).num_parameters)
        for step in range(1, 5):
            report_value(trial, value / step, step)
            if should_prune(trial):
                raise optuna.TrialPruned
        return value / 4

    study = nas.search(objective, space, num_trials=12, pruner=pruner, show_progress=False)
    states = [trial.state for trial in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
