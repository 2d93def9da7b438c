"""Several objectives, constraints, failures and costs: against truth, and what is proposed."""

import datetime
import math

import optuna
import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.models import ModelList
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from gpytorch.kernels import MaternKernel
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from torch import Generator

from bayes import GaussianProcess
from nas import BayesianSampler, search, suggest
from nas.encoding.hyperparameters import HyperparameterCube
from nas.encoding.outcomes import winsorised
from nas.history import History
from nas.proposals import acquisitions, volumes
from nas.proposals.fronts import fronts
from nas.proposals.weights import Feasibility, Speed, Success, Weighted
from nas.spaces import MLPSpace
from nas.trials import ARCHITECTURE
from priors.posteriors.acquisition import LogExpectedImprovement

SPACE = MLPSpace(4, 2, depth=(1, 1), widths=(8, 16))
HYPERPARAMETERS = {"x": FloatDistribution(0.0, 1.0)}
BOTH = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]


def process(X, Y, scale=0.3):
    kernel = MaternKernel(nu=2.5).double()
    kernel.lengthscale = scale
    Yvar = torch.full((len(X), 1), 1e-4, dtype=torch.float64)
    return GaussianProcess(
        X, Y[:, None], kernel, train_Yvar=Yvar, input_transform=None, outcome_transform=None
    ).eval()


ROWS = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
QUERIES = torch.tensor([0.1, 0.33, 0.5, 0.77, 1.3], dtype=torch.float64)[:, None, None]


class TestFronts:
    def test_against_the_definition(self):
        Y = torch.randint(0, 6, (40, 3), generator=Generator().manual_seed(0)).double()
        left, number = set(range(40)), 0
        expected = [0] * 40
        while left:
            front = {
                i
                for i in left
                if not any((Y[j] >= Y[i]).all() and (Y[j] > Y[i]).any() for j in left)
            }
            for i in front:
                expected[i] = number
            left, number = left - front, number + 1
        assert fronts(Y).tolist() == expected

    def test_one_objective_is_an_order(self):
        assert fronts(torch.tensor([[3.0], [1.0], [3.0], [-math.inf]])).tolist() == [0, 1, 0, 2]


def hypervolume(points, reference):
    """Of two maximised objectives, by the areas of its steps."""
    area, height = 0.0, reference[1]
    for first, second in sorted(points.tolist(), reverse=True):
        if first > reference[0] and second > height:
            area += (first - reference[0]) * (second - height)
            height = second
    return area


def two_objectives():
    values = torch.stack([ROWS[:, 0], 1 - ROWS[:, 0] ** 2], 1)
    return ModelList(process(ROWS, values[:, 0]), process(ROWS, values[:, 1]))


def drawn(model, rows, number, generator):
    """Joint draws of the values at some rows, `[number, n, objectives]`."""
    draws = []
    for one in model.models:
        joint = one.posterior(rows).mvn
        noise = torch.randn(number, len(rows), generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(joint.covariance_matrix + 1e-9 * torch.eye(len(rows)))
        draws.append((joint.mean + noise @ factor.mT).detach())
    return torch.stack(draws, -1)


class TestVolume:
    """What a candidate is expected to add to the volume that a front dominates."""

    @pytest.mark.parametrize("pending", [None, torch.tensor([[0.9]], dtype=torch.float64)])
    def test_against_draws(self, monkeypatch, pending):
        """The mean gain over joint draws of the known and the new point, within 5 errors and 5%."""
        monkeypatch.setattr(volumes, "NUM_FRONTS", 512)
        model = two_objectives()
        found = acquisitions.HYPERVOLUME["lognei"](model, ROWS, pending, 0)
        assert isinstance(found, volumes.ExpectedVolume)
        reference = volumes.reference_of(model, ROWS).tolist()
        known = ROWS if pending is None else torch.cat([ROWS, pending])
        generator = Generator().manual_seed(1)
        for query in QUERIES[[1, 4]]:
            gains = torch.tensor(
                [
                    hypervolume(draw, reference) - hypervolume(draw[:-1], reference)
                    for draw in drawn(model, torch.cat([known, query]), 400, generator)
                ]
            )
            error = float(gains.std() / len(gains) ** 0.5)
            value = found(query[None]).exp().item()
            assert abs(value - gains.mean()) < 5 * error + 0.05 * gains.mean()

    @pytest.mark.parametrize("objectives", [2, 3])
    def test_over_a_known_front_as_botorch(self, objectives):
        """Its closed form of Yang et al. 2019 over the same boxes."""
        generator = Generator().manual_seed(objectives)
        values = torch.randn(6, objectives, generator=generator, dtype=torch.float64)
        model = ModelList(*(process(ROWS, column) for column in values.T))
        reference = volumes.reference_of(model, ROWS)
        mean = model.posterior(ROWS).mean
        boxes = NondominatedPartitioning(reference, Y=mean)
        expected = ExpectedHypervolumeImprovement(model, reference.tolist(), boxes)(QUERIES)
        found = volumes.PlugInVolume(model, ROWS)(QUERIES).exp()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)

    def test_fronts_of_several_sizes(self):
        """Boxes of three objectives are padded, those of two come in a batch."""
        generator = Generator().manual_seed(0)
        values = torch.randn(5, 7, 3, generator=generator, dtype=torch.float64)
        reference = torch.full((3,), -1.0, dtype=torch.float64)
        mean = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
        deviation = torch.rand(4, 3, generator=generator, dtype=torch.float64)
        together = volumes._log_gain(mean, deviation, *volumes._boxes(values, reference)).exp()
        apart = [
            volumes._log_gain(one[None], deviation, *volumes._boxes(y[None], reference)).exp()
            for one, y in zip(mean, values, strict=True)
        ]
        torch.testing.assert_close(together, torch.stack(apart).mean(0))

    def test_far_candidates_keep_their_order(self):
        reference = torch.zeros(2, dtype=torch.float64)
        boxes = volumes._boxes(torch.ones(1, 1, 2, dtype=torch.float64), reference)
        means = torch.tensor([-30.0, -20.0, -10.0, 0.0, 50.0], dtype=torch.float64)
        deviation = torch.ones(5, 2, dtype=torch.float64)
        found = volumes._log_gain(means[None, :, None].expand(1, 5, 2), deviation, *boxes)
        assert bool((found.diff() > 0).all())
        torch.testing.assert_close(found[-1].exp().item(), 50.0**2 - 1)

    @pytest.mark.parametrize("objectives", [2, pytest.param(3, marks=pytest.mark.slow)])
    def test_the_screen_keeps_the_best(self, monkeypatch, objectives):
        """Of 10 random problems the best of 24 screened candidates has 95% of what the best of 200
        has, but for one at most."""
        monkeypatch.setattr(volumes, "NUM_SCREENED", 24)
        kept = []
        for case in range(10):
            generator = Generator().manual_seed(case)
            rows = torch.rand(12, 3, generator=generator, dtype=torch.float64)
            pool = torch.rand(200, 1, 3, generator=generator, dtype=torch.float64)
            values = torch.randn(12, objectives, generator=generator, dtype=torch.float64)
            model = ModelList(*(process(rows, column, 0.7) for column in values.T))
            with torch.no_grad():
                all_of_them = volumes.ExpectedVolume(model, rows[:10], rows[10:], case)
                screen = volumes.PlugInVolume(model, rows[:10], rows[10:])
                few = volumes.Screened(all_of_them, screen)(pool)
                assert int(few.isfinite().sum()) == 24
                kept.append(float((few.max() - all_of_them(pool).max()).exp()))
        assert sum(share >= 0.95 for share in kept) >= 9


def test_winsorised_is_affine_but_for_outliers():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, -math.inf, math.nan, -1e9], dtype=torch.float64)
    found = winsorised(values)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.mean().item() + 1, 1.0)
    torch.testing.assert_close(found.std(correction=0).item(), 1.0)
    gaps = found[1:5] - found[:4]
    torch.testing.assert_close(gaps, gaps[:1].expand(4))
    assert found[5] == found[6] == found[7] < found[0]
    plain = winsorised(values[:5])
    torch.testing.assert_close(plain, (values[:5] - 2) / 2**0.5)
    torch.testing.assert_close(winsorised(values[:5] * 1e300), plain)
    assert winsorised(torch.full((3,), 2.0)).tolist() == [0.0] * 3
    assert winsorised(torch.full((3,), -math.inf)).tolist() == [0.0] * 3


class TestWeights:
    def test_feasibility_is_a_gaussian_probability(self):
        """Of the warped value, with its border at 0."""
        values = torch.tensor([-3.0, -1.0, -0.5, 0.5, 1.0, 50.0], dtype=torch.float64)
        weight = Feasibility(process, ROWS, values)
        warped = values.sign() * (1 + values.abs() / 1.0).log()
        model = process(ROWS, (warped - warped.mean()) / warped.std(correction=0))
        posterior = model.posterior(QUERIES)
        border = -warped.mean() / warped.std(correction=0)
        normal = torch.distributions.Normal(posterior.mean, posterior.variance.sqrt())
        expected = normal.cdf(border)[:, 0, 0]
        torch.testing.assert_close(weight.log(QUERIES).exp(), expected)

    def test_a_constraint_on_one_side_of_its_border(self):
        inside = Feasibility(process, ROWS, torch.full((6,), -2.0, dtype=torch.float64))
        assert bool((inside.log(QUERIES) > math.log(0.2)).all())
        at_border = Feasibility(process, ROWS, torch.zeros(6, dtype=torch.float64))
        assert bool(at_border.log(QUERIES).isfinite().all())

    def test_success_where_trials_failed(self):
        failed = torch.tensor([False, False, False, True, True, True])
        probability = Success(process, ROWS, failed).log(ROWS[:, None]).exp()
        torch.testing.assert_close(probability, torch.where(failed, 1 / 8, 7 / 8).double())
        far = Success(process, ROWS, failed).log(torch.tensor([[[50.0]]]).double()).exp()
        torch.testing.assert_close(far, torch.tensor([0.5]).double())

    def test_speed_is_one_over_the_mean_of_a_log_normal(self):
        seconds = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
        weight = Speed(process, ROWS, seconds)
        logs = seconds.log()
        posterior = process(ROWS, (logs - logs.mean()) / logs.std(correction=0)).posterior(QUERIES)
        place = logs.mean() + logs.std(correction=0) * posterior.mean[:, 0, 0]
        spread = logs.std(correction=0) * posterior.variance[:, 0, 0].sqrt()
        mean = torch.distributions.LogNormal(place, spread).mean
        torch.testing.assert_close(weight.log(QUERIES), -mean.log())

    def test_constrained_improvement_is_a_product(self):
        improvement = LogExpectedImprovement(process(ROWS, ROWS[:, 0]), 0.5)
        weight = Success(process, ROWS, ROWS[:, 0] > 0.5)
        found = Weighted(improvement, [weight, weight])(QUERIES).exp()
        expected = improvement(QUERIES).exp() * weight.log(QUERIES).exp() ** 2
        torch.testing.assert_close(found, expected)

    def test_a_bound_keeps_its_order(self):
        bound = acquisitions.UpperConfidenceBound(process(ROWS, ROWS[:, 0] - 3))

        class Constant:
            def log(self, X):
                return torch.zeros(len(X), dtype=torch.float64)

        found = Weighted(bound, [Constant()])(QUERIES)
        assert found.argsort().tolist() == bound(QUERIES).argsort().tolist()


def add(study, x, values=None, *, state=TrialState.COMPLETE, constraints=None, seconds=1.0, **more):
    graph = SPACE.random(Generator().manual_seed(int(1000 * x)))
    trial = optuna.trial.create_trial(
        state=state,
        values=values,
        params={"x": x},
        distributions=HYPERPARAMETERS,
        user_attrs={ARCHITECTURE: graph.to_json(), **more.pop("user_attrs", {})},
        constraints=constraints,
        **more,
    )
    if state.is_finished():
        trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=seconds)
    study.add_trial(trial)


class TestHistory:
    def test_what_each_state_tells(self):
        study = optuna.create_study(directions=["minimize", "maximize"])
        add(study, 0.1, [1.0, 5.0], constraints={"size": 3.0}, seconds=2.0)
        add(study, 0.2, [2.0, 7.0], constraints={"size": -1.0, "time": 0.5})
        add(study, 0.3, state=TrialState.FAIL)
        add(study, 0.4, state=TrialState.PRUNED)
        curve = {"curve": {"1": [9.0, 9.0], "3": [0.5, 6.0]}}
        add(study, 0.5, state=TrialState.PRUNED, user_attrs=curve)
        history = History(study.trials, SPACE, HyperparameterCube(HYPERPARAMETERS), BOTH)
        assert history.failed == [False, False, True, False, False]
        assert history.num_finished == 4
        assert history.values[:2] == [[-1.0, 5.0], [-2.0, 7.0]]
        assert all(math.isnan(value) for value in history.values[2])
        assert history.values[3] == [-math.inf] * 2
        assert history.values[4] == [-1.0, 6.0]  # at most the middle of the complete ones
        assert history.constraints["size"][:2] == [3.0, -1.0]
        assert math.isnan(history.constraints["time"][0])
        assert history.violations == [3.0, 0.5, 0.0, 0.0, 0.0]
        assert history.seconds[:2] == [2.0, 1.0]
        assert math.isnan(history.seconds[3])


def prior_process(X, Y, num_architecture):
    """A process of the hyperparameter alone, with what is usually learnt."""
    kernel = MaternKernel(nu=2.5, active_dims=[X.shape[-1] - 1]).double()
    kernel.lengthscale = 0.3
    Yvar = torch.full_like(Y, 1e-3)
    return GaussianProcess(
        X, Y, kernel, train_Yvar=Yvar, input_transform=None, outcome_transform=None
    ).eval()


def proposed(study, **options):
    """The hyperparameter of the next trial."""
    sampler = BayesianSampler(
        SPACE,
        hyperparameters=HYPERPARAMETERS,
        surrogate=prior_process,
        num_initial=4,
        seed=0,
        **options,
    )
    study.sampler = sampler
    trial = study.ask()
    suggest(trial, SPACE)
    return trial.suggest_float("x", 0.0, 1.0)


PLACES = [k / 10 for k in range(11)]


@pytest.mark.usefixtures("few_candidates")
class TestProposals:
    @pytest.fixture(autouse=True)
    def _long_steps(self, few_candidates, monkeypatch):
        monkeypatch.setattr("nas.proposals.maximisation.SCALES", (0.3, 0.2, 0.1))

    @pytest.mark.parametrize("acquisition", ["logei", "lognei", "ucb"])
    def test_a_constraint_is_learnt(self, acquisition):
        study = optuna.create_study(direction="maximize")
        for x in PLACES:
            add(study, x, [x], constraints={"c": x - 0.55})
        assert 0.35 < proposed(study, acquisition=acquisition) < 0.65

    def test_nothing_is_feasible_yet(self):
        study = optuna.create_study(direction="maximize")
        for x in PLACES[4:]:
            add(study, x, [x], constraints={"c": x - 0.3})
        assert proposed(study) < 0.4

    def test_failures_are_learnt(self):
        study = optuna.create_study(direction="maximize")
        for x in PLACES:
            failed = x > 0.55
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            add(study, x, None if failed else [x], state=state)
        assert 0.3 < proposed(study) < 0.75

    def test_dear_candidates_are_left(self):
        study = optuna.create_study(direction="minimize")
        for x in PLACES:
            if not 0.15 < x < 0.25 and not 0.75 < x < 0.85:
                value = min(abs(x - 0.2), abs(x - 0.8) - 0.02)  # the right one is a little better
                add(study, x, [value], seconds=1e4 if x > 0.5 else 1.0)
        assert proposed(study, cost_aware=True) < 0.5
        assert proposed(study) > 0.5

    def test_the_gap_of_a_front_is_filled(self):
        study = optuna.create_study(directions=["minimize", "minimize"])
        for x in (0.0, 0.05, 0.1, 0.9, 0.95, 1.0):
            add(study, x, [x**2, (1 - x) ** 2])
        assert 0.2 < proposed(study) < 0.8

    def test_running_trials_are_known(self):
        study = optuna.create_study(directions=["minimize", "minimize"])
        for x in (0.0, 0.05, 0.1, 0.9, 0.95, 1.0):
            add(study, x, [x**2, (1 - x) ** 2])
        first = proposed(study)
        assert abs(proposed(study) - first) > 0.02

    def test_other_acquisitions_say_that_they_are_for_one(self):
        study = optuna.create_study(directions=["minimize", "minimize"])
        with pytest.raises(ValueError, match=r"'ucb' is for one objective.* \['logei', 'lognei'\]"):
            proposed(study, acquisition="ucb")

    @pytest.mark.slow
    @pytest.mark.parametrize("surrogate", ["gp", "network", "ensemble", "vectors", "pfn"])
    def test_every_surrogate_models_several(self, surrogate):
        study = optuna.create_study(directions=["minimize", "minimize"])
        for x in PLACES[::2]:
            add(study, x, [x**2, (1 - x) ** 2], constraints={"c": x - 0.9})
        sampler = BayesianSampler(
            SPACE, hyperparameters=HYPERPARAMETERS, surrogate=surrogate, num_initial=4, seed=0
        )
        study.sampler = sampler
        trial = study.ask()
        assert suggest(trial, SPACE) in SPACE


def both(trial):
    suggest(trial, SPACE)
    x = trial.suggest_float("x", 0.0, 1.0)
    return x, 1 - x


def run(objective=both, num_trials=3, **options):
    sampler = optuna.samplers.RandomSampler(seed=0)
    options = {"sampler": sampler, "show_progress": False} | options
    return search(objective, SPACE, num_trials=num_trials, **options)


class TestSearch:
    def test_several_directions(self, tmp_path):
        options = {"directions": ["minimize", "maximize"], "storage": tmp_path / "study.db"}
        study = run(**options)
        assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
        assert all(len(trial.values) == 2 for trial in study.trials)
        assert len(run(**options, num_trials=1).trials) == 4
        with pytest.raises(ValueError, match="is to minimize and maximize, but this call is to"):
            run(storage=tmp_path / "study.db", direction="maximize")

    def test_a_bar_for_several(self, capsys):
        run(directions=["minimize", "minimize"], show_progress=True)
        assert "front=" in capsys.readouterr().err

    def test_a_bar_without_a_feasible_trial(self, capsys):
        def infeasible(trial):
            trial.set_constraint("c", 1.0)
            return both(trial)[0]

        run(infeasible, show_progress=True)
        assert "best=none" in capsys.readouterr().err

    @pytest.mark.parametrize("value", [1.0, (1.0,), (1.0, 2.0, 3.0), "ab"])
    def test_another_number_of_values(self, value):
        study = run(lambda trial: value, directions=["minimize", "minimize"], num_trials=1)
        assert "TypeError: The objective must return" in study.trials[0].user_attrs["error"]

    def test_a_nan_among_the_values_is_a_failure(self):
        study = run(lambda trial: (1.0, math.nan), directions=["minimize"] * 2, num_trials=1)
        assert study.trials[0].state == TrialState.FAIL
        assert "nan" in study.trials[0].user_attrs["error"]

    def test_callbacks_see_each_trial_and_can_stop(self):
        seen = []

        def stop(study, trial):
            seen.append(trial.number)
            if trial.number == 1:
                study.stop()

        study = run(directions=["minimize"] * 2, num_trials=10, callbacks=[stop])
        assert seen == [0, 1]
        assert len(study.trials) == 2

    def test_what_is_not_caught_ends_the_call(self):
        def broken(trial):
            both(trial)
            raise KeyError("data")

        storage = optuna.storages.InMemoryStorage()
        with pytest.raises(KeyError, match="data"):
            run(broken, storage=storage, catch=(ValueError,))
        (trial,) = optuna.load_study(study_name="search", storage=storage).trials
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["error"] == "KeyError: 'data'"

    def test_time_is_up(self):
        study = run(directions=["minimize"] * 2, num_trials=1000, timeout=1e-9)
        assert len(study.trials) <= 1

    def test_a_pruner(self):
        def report(trial):
            both(trial)
            trial.report(1.0, 0)
            if trial.should_prune():
                raise optuna.TrialPruned
            return 1.0

        pruner = optuna.pruners.ThresholdPruner(upper=0.5)
        study = run(report, pruner=pruner, num_trials=2)
        assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"timeout": 0}, ValueError, "timeout must be a positive number"),
            ({"directions": []}, ValueError, "directions must be a sequence"),
            ({"directions": "minimize"}, ValueError, "directions must be a sequence"),
            ({"directions": ["up"]}, ValueError, "'minimize' or 'maximize', got 'up'"),
            ({"directions": ["minimize"], "direction": "maximize"}, ValueError, "not both"),
            ({"engine": "ray"}, TypeError, "must be a concurrent.futures.Executor.*Ray"),
        ],
    )
    def test_wrong_arguments(self, options, error, message):
        with pytest.raises(error, match=message):
            run(**options)
