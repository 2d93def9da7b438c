"""Training and certificates: resuming, learning, and the gap to an exact posterior."""

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from math import isfinite, isnan

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel
from linear_operator.operators import DiagLinearOperator

from pfn import ArchitectureConfig, Certificate, TrainingConfig, certify, load, train
from pfn.certification import _ece
from pfn.checkpoints.recipes import RECIPES
from pfn.distribution import binning_error
from priors import GaussianPosterior, GaussianProcessPrior, MixtureTaskPrior
from priors.tasks.function_tasks import FunctionTaskPrior
from priors.tasks.task import Task, describe

TINY = ArchitectureConfig(
    max_features=2, embedding=16, layers=2, heads=2, hidden=16, thinking_rows=2, bars=24
)
NOISE_VAR = 0.05


def fixed_gp(num_points=24, lengthscale=0.3, noise_var=NOISE_VAR):
    kernel = RBFKernel()
    kernel.lengthscale = lengthscale
    return FunctionTaskPrior(
        GaussianProcessPrior(kernel),
        inputs=torch.distributions.Uniform(torch.zeros(1), torch.ones(1)),
        num_points=num_points,
        noise_var=noise_var,
    )


def exact(task):
    """The posterior of y under `fixed_gp`, by the textbook formula."""
    n, X, y = task.num_context, task.X.double(), task.y.double()
    K = torch.exp(-(torch.cdist(X, X) ** 2) / (2 * 0.3**2))
    noisy = K[:, :n, :n] + NOISE_VAR * torch.eye(n, dtype=torch.float64)
    gain = torch.linalg.solve(noisy, K[:, :n, n:]).mT
    mean = (gain @ y[:, :n])[..., 0]
    covariance = K[:, n:, n:] - gain @ K[:, :n, n:]
    variance = covariance.diagonal(dim1=-2, dim2=-1) + NOISE_VAR
    return GaussianPosterior(
        MultivariateNormal(mean.to(task.y), DiagLinearOperator(variance.to(task.y)))
    )


def weights(pfn):
    return torch.cat([p.detach().flatten() for p in pfn.state_dict().values()])


def config(**changes):
    return replace(
        TrainingConfig(
            architecture=TINY,
            batch=4,
            border_tasks=40,
            warmup=3,
            held_out_tasks=8,
            evaluate_every=5,
        ),
        **changes,
    )


class TestResume:
    @pytest.mark.parametrize(
        ("options", "calls"),
        [
            ({}, 17),
            ({"optimizer": "schedule-free", "accumulate": 2}, 21),
            pytest.param({"optimizer": "adamw"}, 17, marks=pytest.mark.slow),
            pytest.param({"optimizer": "schedule-free"}, 17, marks=pytest.mark.slow),
            pytest.param({"accumulate": 2}, 21, marks=pytest.mark.slow),
        ],
    )
    def test_equals_the_uninterrupted_run(self, tmp_path, options, calls):
        if options.get("optimizer") == "schedule-free":
            pytest.importorskip("schedulefree")

        class Interrupted(Exception):
            pass

        class Stops:
            """A prior that fails at a given call."""

            description = describe(fixed_gp())

            def __init__(self, after):
                self.prior, self.left = fixed_gp(), after

            def sample(self, batch, **options):
                self.left -= 1
                if self.left == 0:
                    raise Interrupted
                return self.prior.sample(batch, **options)

        settings = config(steps=12, checkpoint_every=0.0, **options)
        whole = train(fixed_gp(), config=settings, device="cpu", progress=False)
        file = tmp_path / "state.safetensors"
        with pytest.raises(Interrupted):
            train(
                Stops(after=calls), config=settings, device="cpu", checkpoint=file, progress=False
            )
        resumed = train(
            fixed_gp(), config=settings, device="cpu", checkpoint=file, resume=True, progress=False
        )
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.metadata == {
            **whole.metadata,
            "training": {
                **whole.metadata["training"],
                "seconds": resumed.metadata["training"]["seconds"],
            },
        }
        assert resumed.metadata["training"]["tasks"] == 48 * settings.accumulate

    def test_units_come_from_the_file(self, tmp_path):
        """Not from tasks drawn afresh, which another machine may draw otherwise."""
        file = tmp_path / "state.safetensors"
        options = {"config": config(steps=2), "device": "cpu", "checkpoint": file}
        first = train(fixed_gp(), **options, progress=False)

        class Scaled:
            description = describe(fixed_gp())

            def __repr__(self):
                return repr(fixed_gp())

            def sample(self, batch, **options):
                task = fixed_gp().sample(batch, **options)
                return replace(task, y=100 * task.y, f=100 * task.f)

        class Other(Scaled):
            description = "another one"

        resumed = train(Scaled(), **options, resume=True, progress=False)
        assert resumed.prior_scale == first.prior_scale
        assert resumed.bars.tail_scale == first.bars.tail_scale
        with pytest.raises(ValueError, match="another prior"):
            train(Other(), **options, resume=True, progress=False)

    def test_refuses_another_configuration(self, tmp_path):
        file = tmp_path / "state.safetensors"
        train(fixed_gp(), config=config(steps=1), device="cpu", checkpoint=file, progress=False)
        with pytest.raises(ValueError, match="another configuration"):
            train(
                fixed_gp(),
                config=config(steps=2),
                device="cpu",
                checkpoint=file,
                resume=True,
                progress=False,
            )

    def test_needs_a_file(self):
        with pytest.raises(ValueError, match="needs the checkpoint"):
            train(fixed_gp(), config=config(steps=1), resume=True, progress=False)


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    train(fixed_gp(), config=config(steps=2), device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_time_limit_ends_the_training_and_log_is_written(tmp_path):
    log = tmp_path / "log.jsonl"
    settings = config(steps=10**6, time_limit=0.5)
    made = train(fixed_gp(), config=settings, device="cpu", log=log, progress=False)
    assert made.metadata["training"]["steps"] < 10**6
    made = train(fixed_gp(), config=config(steps=7), device="cpu", log=log, progress=False)
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 7


def test_infinite_targets_stop_the_training():
    class Broken:
        calls = 0

        def sample(self, batch, **options):
            task = fixed_gp().sample(batch, **options)
            self.calls += 1
            return task if self.calls <= 12 else replace(task, y=task.y * float("nan"))

    with pytest.raises(RuntimeError, match="steps in a row were unusable"):
        train(Broken(), config=config(steps=30), device="cpu", progress=False)


def test_too_many_features_are_refused():
    prior = FunctionTaskPrior(
        GaussianProcessPrior(RBFKernel()),
        inputs=torch.distributions.Uniform(torch.zeros(3), torch.ones(3)),
        num_points=4,
        noise_var=0.1,
    )
    with pytest.raises(ValueError, match="3 features, but the network has slots for only 2"):
        train(prior, config=config(steps=1), progress=False)


def test_configuration_round_trip():
    settings = config(steps=5, time_limit=3.0)
    assert TrainingConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(ValueError, match="steps"):
        TrainingConfig(steps=0)


def test_the_same_description_is_not_the_same_prior(tmp_path):
    path = tmp_path / "a.training"
    first, other = fixed_gp(), fixed_gp(lengthscale=0.6)
    assert "lengthscale 0.3" in first.description
    assert first.description != other.description
    train(first, config=config(steps=3), device="cpu", checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="another prior"):
        train(other, config=config(steps=3), checkpoint=path, resume=True, progress=False)

    class Alike:
        description = first.description

        def __repr__(self):
            return repr(other)

        def sample(self, batch, **options):
            return other.sample(batch, **options)

    with pytest.raises(ValueError, match="another prior .its repr"):
        train(Alike(), config=config(steps=3), checkpoint=path, resume=True, progress=False)
    train(first, config=config(steps=3), checkpoint=path, resume=True, progress=False)


def test_a_network_knows_what_its_tasks_had():
    class Bare:
        """Tasks of 5 rows without a function or a noise variance."""

        def sample(self, batch, **options):
            task = fixed_gp(num_points=5).sample(batch, **options)
            return dataclasses.replace(task, f=None, noise_var=task.noise_var * math.inf)

    options = config(steps=40, known_noise=0.5, appended=0.5, max_buffer=16)
    bare = train(Bare(), config=options, device="cpu", progress=False)
    assert not bare.coverage.known_noise
    assert not bare.coverage.function
    assert bare.metadata["max_context"] == bare.metadata["max_buffer"] == 4
    assert bare.metadata["num_features"] == 1
    low, high = bare.metadata["target_range"]
    assert low < -1 < 1 < high
    assert not bare.metadata["exchangeable"]
    whole = train(fixed_gp(num_points=5), config=options, device="cpu", progress=False)
    assert whole.coverage.known_noise
    assert whole.coverage.function
    X = torch.rand(3, 1)
    model = bare.condition(X, X)
    torch.testing.assert_close(
        model.posterior(X).mean, model.posterior(X, observation_noise=True).mean
    )


def test_schedule_free_weights_need_no_held_out_tasks():
    pytest.importorskip("schedulefree")
    found = [
        weights(
            train(
                fixed_gp(),
                config=config(steps=steps, optimizer="schedule-free", held_out_tasks=0),
                device="cpu",
                progress=False,
            )
        )
        for steps in (2, 8)
    ]
    assert not torch.equal(*found)


def test_padding_may_hold_anything_and_mix_with_none():
    class Padded:
        def sample(self, batch, **options):
            task = fixed_gp().sample(batch, **options)
            points = torch.ones(task.X.shape[:2], dtype=torch.bool)
            points[:, 0] = points[:, -1] = False
            parts = {
                name: torch.where(points[..., None], getattr(task, name), math.nan)
                for name in ("X", "y", "f")
            }
            return dataclasses.replace(task, points=points, **parts)

    prior = MixtureTaskPrior([Padded(), fixed_gp()])
    made = train(prior, config=config(steps=5), device="cpu", progress=False)
    assert weights(made).isfinite().all()


def test_padded_tasks_train_like_their_rows():
    """Padding changes neither the loss nor its gradient."""
    from pfn.training.loss import Loss
    from pfn.training.tasks import Batch

    task = fixed_gp(12).sample(3, generator=torch.Generator().manual_seed(0))
    task = replace(task, num_context=6)
    made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
    points = torch.ones(3, 12, dtype=torch.bool)
    points[:, [4, 5, 10, 11]] = False
    keep = [0, 1, 2, 3, 6, 7, 8, 9]
    short = Task(
        X=task.X[:, keep], y=task.y[:, keep], f=task.f[:, keep], noise_var=task.noise_var,
        num_context=4,
    )  # fmt: skip
    loss = Loss(made)
    for a, b in zip(loss(Batch(replace(task, points=points))), loss(Batch(short)), strict=True):
        torch.testing.assert_close(a, b)


class TestCertificate:
    def test_an_untrained_network_is_far_from_the_exact_posterior(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        wide = certify(
            made, fixed_gp(), reference=exact, num_tasks=64, progress=False, num_queries=4
        )
        for row in wide.by_context.values():
            assert row.gap > 2 * row.gap_error > 0  # an untrained network is far off
        exact_nll = {n: row.nll - row.gap for n, row in wide.by_context.items()}
        # an empty context: y ~ N(0, 1 + noise)
        entropy = 0.5 * torch.log(2 * torch.pi * torch.e * torch.tensor(1 + NOISE_VAR)).item()
        assert exact_nll[0] == pytest.approx(entropy, abs=0.25)

    def test_json_and_text(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        few = {"num_tasks": 8, "num_queries": 4, "progress": False}
        measured = certify(made, fixed_gp(), reference=None, **few)
        assert measured.reference == "none"
        again = Certificate.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False)))
        assert str(again) == str(measured)
        assert "calibration only" in str(measured)

    def test_certificates_of_older_files(self):
        values = load("classification").certificate.to_json()
        for name in ("ece", "ece_error", "ece_expected"):
            values.pop(name)
        older = Certificate.from_json(values)
        assert older.ece == older.ece_error == {}
        assert "calibration error" not in str(older)
        few = Certificate.from_json({**values, "ece": {"5": 0.1}, "ece_error": {"5": None}})
        assert math.isnan(few.ece_error[5])
        assert Certificate.from_json(few.to_json()).to_json() == few.to_json()
        assert "5   0.1000      nan" in str(few)

    def test_the_reference_is_that_of_the_prior(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        few = {"num_tasks": 8, "num_queries": 4, "progress": False}
        own = certify(made, fixed_gp(), **few)
        given = certify(made, fixed_gp(), reference=exact, **few)
        assert own.reference == given.reference == "exact"
        for n, row in own.by_context.items():
            assert row.gap == pytest.approx(given.by_context[n].gap, abs=1e-5)

    def test_a_power_of_ten_opens_its_decade(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        for noise_var, decade in ((0.01, "1e-2"), (0.0099, "1e-3"), (0.1, "1e-1")):
            prior = FunctionTaskPrior(
                GaussianProcessPrior(RBFKernel()),
                inputs=torch.distributions.Uniform(torch.zeros(1), torch.ones(1)),
                num_points=24,
                noise_var=noise_var,  # float32 rounds 0.01 down
            )
            found = certify(made, prior, num_tasks=2, num_queries=4, progress=False)
            assert list(found.by_noise) == [decade]

    def test_low_noise_is_shown_apart(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        few = {"num_tasks": 8, "num_queries": 4, "batch": 2, "progress": False}
        little = certify(made, fixed_gp(noise_var=1e-5), **few)
        assert repr(little.low_noise) == repr(little.by_context)
        assert not little.other_noise
        usual = certify(made, fixed_gp(), low_noise_prior=fixed_gp(noise_var=1e-5), **few)
        assert repr(usual.by_context) == repr(certify(made, fixed_gp(), **few).by_context)
        assert {n: row.tasks for n, row in usual.low_noise.items()} == {0: 2, 5: 2, 20: 2}
        assert not usual.other_noise
        mixed = MixtureTaskPrior([fixed_gp(), fixed_gp(noise_var=1e-5)], [0.5, 0.5])
        found = certify(made, mixed, **few)
        for n, row in found.by_context.items():
            low, other = found.low_noise[n], found.other_noise[n]
            assert low.tasks + other.tasks == row.tasks
            mean = (low.tasks * low.nll + other.tasks * other.nll) / row.tasks
            assert mean == pytest.approx(row.nll)
        assert "noise<1e-4" in str(found)
        again = Certificate.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
        assert str(again) == str(found)

    def test_the_calibration_error_is_that_of_its_definition(self):
        generator = torch.Generator().manual_seed(0)
        confidence = torch.rand(500, generator=generator, dtype=torch.float64)
        confidence[:2] = torch.tensor([0.0, 1.0])
        right = (torch.rand(500, generator=generator) < 0.5).double()
        wanted = 0.0
        for low in range(15):
            inside = (confidence >= low / 15) & (confidence < (low + 1) / 15 + (low == 14))
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            wanted += float(gap * inside.double().mean())
        found, _, _ = _ece(confidence, right, torch.arange(500))
        assert found == pytest.approx(wanted)

    def test_the_standard_error_of_the_calibration_error(self):
        """Queries of a batch share whether they are right; the deviation over repetitions."""
        generator = torch.Generator().manual_seed(0)
        batch = torch.arange(60).repeat_interleave(10)

        def repeated(truth):
            found = []
            for _ in range(150):
                confidence = 0.5 + 0.5 * torch.rand(600, generator=generator, dtype=torch.float64)
                shared = torch.rand(60, 1, generator=generator).expand(60, 10)
                own = torch.rand(60, 10, generator=generator)
                same = torch.rand(60, 1, generator=generator) < 0.3
                u = torch.where(same, shared, own).flatten()
                found.append(_ece(confidence, (u < truth(confidence)).double(), batch))
            return torch.tensor(found, dtype=torch.float64)

        # Everywhere 0.2 too confident: the signs of all bins are known.
        ece, error, _ = repeated(lambda confidence: confidence - 0.2).T
        spread = ece.std()
        assert float(error.mean() / spread) == pytest.approx(1, abs=4 / 300**0.5)
        ece, _, expected = repeated(lambda confidence: confidence).T
        close = 4 * float((ece - expected).std()) / 150**0.5
        assert float(expected.mean()) == pytest.approx(float(ece.mean()), abs=close)
        assert float(expected.mean()) > 0.02  # not a comparison of zeros

    def test_tasks_that_the_prior_refuses_have_no_gap(self):
        class Refusing:
            def sample(self, batch, **options):
                return fixed_gp().sample(batch, **options)

            def oracle(self, task):
                raise ValueError("not today")

        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        measured = certify(made, Refusing(), num_tasks=8, num_queries=4, progress=False)
        assert measured.reference == "upper bound"
        assert all(math.isnan(row.gap) for row in measured.by_context.values())

    def test_sizes_that_no_task_has(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        with pytest.raises(ValueError, match="use smaller numbers"):
            certify(made, fixed_gp(), context_sizes=[100], num_tasks=4, progress=False)

    @pytest.mark.parametrize("name", [pytest.param("regression", marks=pytest.mark.slow), "bo"])
    def test_references_of_the_recipes_are_calibrated(self, name):
        """Standardised residuals of the oracle are standard normal, as for an exact posterior."""
        recipe = RECIPES[name]()
        prior = recipe.certified_prior
        prior = prior if hasattr(prior, "sample") else prior(12)
        generator = torch.Generator().manual_seed(0)
        scores = []
        for _ in range(8):
            task = prior.sample(32, generator=generator, dtype=torch.float64)
            n = 12
            rows = list(range(n)) + [task.X.shape[1] - 1]
            part = replace(
                task, X=task.X[:, rows], y=task.y[:, rows], f=task.f[:, rows], num_context=n
            )
            posterior = recipe.reference(part)
            z = (part.y[:, n:] - posterior.mean) / posterior.variance.sqrt()
            scores.append(z[:, 0, 0])  # one query per task: independent over tasks
        z = torch.cat(scores)
        assert abs(z.mean()) < 4 / len(z) ** 0.5
        assert abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5


@pytest.mark.slow
def test_a_minute_of_training_learns_gaussian_process_regression():
    """The gap to the exact posterior shrinks from that of the prior to under 0.1 nats."""
    architecture = ArchitectureConfig(
        max_features=1, embedding=48, layers=4, heads=4, hidden=96, thinking_rows=4, bars=128
    )
    settings = TrainingConfig(architecture=architecture, steps=1500, batch=64, time_limit=60.0)
    prior = fixed_gp(num_points=36)
    options = {"reference": exact, "context_sizes": (5, 20), "num_tasks": 256, "progress": False}
    before = certify(
        train(prior, config=replace(settings, steps=1), device="cpu", progress=False),
        prior,
        **options,
    )
    after = certify(train(prior, config=settings, device="cpu", progress=False), prior, **options)
    assert before.gap > 0.5
    assert after.gap < 0.1
    for row in after.by_context.values():
        assert row.gap > -3 * row.gap_error  # nobody beats the exact posterior


@pytest.fixture(scope="module")
def trained():
    made = train(fixed_gp(), config=config(steps=60), device="cpu", progress=False)
    sizes = {"context_sizes": (0, 16), "num_queries": 4}
    made.certificate = certify(made, fixed_gp(), num_tasks=400, batch=50, progress=False, **sizes)
    return made


class TestUnlikeThePrior:
    def test_scores_of_the_prior_are_usual(self, trained):
        task = fixed_gp().sample(150, generator=torch.Generator().manual_seed(5))
        low, high = trained.certificate.usual_scores(12)
        assert low < high
        outside = 0
        for X, y in zip(task.X[:, :12], task.y[:, :12], strict=True):
            outside += trained.condition(X, y, check=False).unlike_the_prior() is not None
        assert outside <= 6  # 1% expected, up to the error of measured quantiles
        assert trained.certificate.usual_scores(3) is None
        assert trained.certificate.usual_scores(17) is None

    def test_a_foreign_data_set_warns_and_falls_back(self, trained):
        X = torch.rand(12, 1, generator=torch.Generator().manual_seed(0))
        y = 40 * torch.sin(50 * X[:, 0])
        far = "targets between"  # said too
        with (
            pytest.warns(UserWarning, match=far),
            pytest.warns(UserWarning, match="This data set is unlike the prior"),
        ):
            trained.condition(X, y)
        other = object()
        with (
            pytest.warns(UserWarning, match=far),
            pytest.warns(UserWarning, match="fallback"),
        ):
            assert trained.condition(X, y, fallback=lambda X, y: other) is other

    def test_text(self, trained):
        text = str(trained)
        assert "FunctionTaskPrior" in text
        assert "martingale" in text
        assert "240 tasks" in text


def test_a_bracket_is_reported():
    """The exact posterior as upper and, blurred, as lower reference."""
    made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)

    def blurred(task):
        posterior = exact(task)
        return GaussianPosterior(
            MultivariateNormal(
                posterior.mean[..., 0], DiagLinearOperator(1.5 * posterior.variance[..., 0])
            )
        )

    measured = certify(
        made, fixed_gp(), reference=exact, lower_reference=blurred, num_tasks=64, progress=False
    )
    for row in measured.by_context.values():
        # log sqrt(1.5) - (1 - 1/1.5) / 2 is the loss of the blurred one
        loss = 0.5 * torch.tensor(1.5).log().item() - 0.5 * (1 - 1 / 1.5)
        assert row.gap - row.lower == pytest.approx(loss, abs=0.05)
    assert "at least" in str(measured)

    declined = certify(
        made,
        fixed_gp(),
        reference=exact,
        lower_reference=lambda task: blurred(task) if task.num_context < 5 else None,
        lower_tasks=32,
        num_tasks=64,
        progress=False,
    )
    assert isfinite(declined.by_context[0].lower_error)
    assert isnan(declined.by_context[5].lower)
    # on the first tasks only
    assert declined.by_context[0].lower != measured.by_context[0].lower
    assert declined.by_context[0].gap == pytest.approx(measured.by_context[0].gap)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "bo"])
def test_a_recipe_brackets_the_gap(name):
    """A short run of the sampler is below the reference that knows the hyperparameters."""
    recipe = RECIPES[name]()
    brief = replace(recipe.config, steps=1, batch=2, held_out_tasks=2)
    made = train(recipe.prior, config=brief, device="cpu", progress=False)
    small = recipe.certificate(made, num_tasks=4, context_sizes=(5,), progress=False)
    row = small.by_context[5]
    assert small.reference == "upper bound"
    assert isfinite(row.lower)
    assert row.lower < row.gap + 0.1


def test_scores_are_those_of_the_prior_that_users_are_compared_with(trained):
    measure = {"context_sizes": (8, 12), "num_queries": 4, "num_tasks": 32, "progress": False}
    own = certify(trained, fixed_gp(), **measure)
    other = fixed_gp(lengthscale=0.02)  # hardly predictable
    compared = certify(trained, fixed_gp(), score_prior=other, **measure)
    alone = certify(trained, other, **measure)
    assert compared.scores[8][2] < own.scores[8][2]
    assert abs(compared.scores[8][2] - alone.scores[8][2]) < 0.1
    rows = compared.by_context[8], own.by_context[8]  # of other tasks of the same prior
    assert abs(rows[0].gap - rows[1].gap) < 4 * math.hypot(*(row.gap_error for row in rows))
    assert list(compared.scores) == [4, 8]
    sized = certify(trained, lambda n: fixed_gp(), score_prior=lambda n: other, **measure)
    assert sized.scores[8][2] < own.scores[8][2]
    with pytest.raises(ValueError, match="score_prior must be"):
        certify(trained, lambda n: fixed_gp(), score_prior=other, **measure)


def test_columns_are_turned_where_their_order_means_nothing():
    class Tasks:
        """One or three columns; the first one matters, in a place that the network knows."""

        exchangeable = True

        def sample(self, batch, *, generator=None, device=None, dtype=None):
            d = 1 + 2 * int(torch.randint(2, (), generator=generator))
            X = torch.randn(batch, 20, d, generator=generator, dtype=dtype)
            f = X[..., :1]
            y = f + 0.3 * torch.randn(f.shape, generator=generator, dtype=dtype)
            noise_var = torch.full((batch,), 0.09, dtype=dtype)
            return Task(X=X, y=y, f=f, noise_var=noise_var, num_context=12)

    wide = replace(TINY, max_features=3)
    options = config(steps=80, architecture=wide, inputs="standardised")
    network = train(Tasks(), config=options, device="cpu", progress=False)
    measure = {"context_sizes": (10,), "num_queries": 4, "num_tasks": 64, "progress": False}
    found = certify(network, Tasks(), **measure).coherence
    assert found["columns"] > 0.1
    network.network.embed_x[0].weight.data.mul_(0.0)
    assert certify(network, Tasks(), **measure).coherence["columns"] < 1e-5
    network.metadata["exchangeable"] = False
    assert "columns" not in certify(network, Tasks(), **measure).coherence


def test_certificate_of_known_calibration():
    """Coverage and transforms of a network that is exactly right: its own samples as targets."""
    made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)

    class Own:
        def sample(self, batch, *, generator=None, device=None, dtype=None):
            task = fixed_gp().sample(batch, generator=generator, dtype=dtype)
            n, X = 4, task.X
            encoding = made.encode(X[:, :n], task.y[:, :n, 0])
            logits, _ = made.decode(encoding, X[:, n:])
            p = torch.rand(logits.shape[:-1], generator=generator)
            y = encoding.location + encoding.scale * made.bars.quantile(logits, p)
            return replace(task, y=torch.cat([task.y[:, :n], y[..., None]], 1), num_context=n)

    measured = certify(made, Own(), context_sizes=(4,), num_tasks=320, progress=False)
    row = measured.by_context[4]
    for level in (50, 80, 90, 95):
        share = level / 100
        error = (share * (1 - share) / (320 * 16)) ** 0.5
        assert getattr(row, f"coverage{level}") == pytest.approx(share, abs=4 * error)
    pit = torch.tensor(measured.pit[4])
    assert (pit - 0.05).abs().max() < 5 * (0.05 * 0.95 / (320 * 16)) ** 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_compiled_blocks_compute_the_same():
    """A minute of compilation; other sizes of tasks then reuse it."""
    options = config(steps=1, known_noise=0.0, appended=0.0, compile=True)
    compiled = train(fixed_gp(), config=options, device="cpu", progress=False).train()
    plain = copy.deepcopy(compiled)
    assert compiled.network.blocks[0]._compiled_call_impl is not None
    assert plain.network.blocks[0]._compiled_call_impl is None
    for B, n in ((4, 7), (3, 20)):
        generator = torch.Generator().manual_seed(n)
        task = fixed_gp().sample(B, generator=generator, dtype=torch.float32)
        found = []
        for network in (compiled, plain):
            encoding = network.encode(task.X[:, :n], task.y[:, :n, 0])
            logits, _ = network.decode(encoding, task.X[:, n:])
            gradients = torch.autograd.grad(
                logits.square().sum(), list(network.network.blocks.parameters()), allow_unused=True
            )
            found.append([logits, *(g for g in gradients if g is not None)])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


class TestOptions:
    @pytest.mark.parametrize("optimizer", ["adamw", "schedule-free"])
    def test_optimisers(self, optimizer):
        if optimizer == "schedule-free":
            pytest.importorskip("schedulefree")
        settings = config(steps=12, optimizer=optimizer, schedule="constant")
        made = train(fixed_gp(), config=settings, device="cpu", progress=False)
        assert weights(made).isfinite().all()

    def test_accumulated_parts_are_one_batch(self, tmp_path):
        """Two parts of two tasks give the gradient of the four together."""
        pool = fixed_gp().sample(4, generator=torch.Generator().manual_seed(1), dtype=torch.float32)

        class Cycle:
            at = 0

            def sample(self, batch, **options):
                rows = slice(self.at, self.at + batch)
                self.at = (self.at + batch) % 4
                noise = pool.noise_var[rows]
                return replace(
                    pool, X=pool.X[rows], y=pool.y[rows], f=pool.f[rows], noise_var=noise
                )

        norms = []
        for batch, accumulate in ((4, 1), (2, 2)):
            log = tmp_path / f"{batch}.jsonl"
            options = {"known_noise": 0.0, "appended": 0.0, "steps": 1, "warmup": 1}
            settings = config(batch=batch, accumulate=accumulate, **options)
            train(Cycle(), config=settings, device="cpu", log=log, progress=False)
            norms.append(json.loads(log.read_text().splitlines()[0])["norm"])
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    def test_bfloat16(self):
        made = train(
            fixed_gp(), config=config(steps=3, precision="bf16-mixed"), device="cpu", progress=False
        )
        assert weights(made).isfinite().all()
        assert next(made.parameters()).dtype == torch.float32

    def test_held_out_loss_and_gap_are_logged(self, tmp_path):
        log = tmp_path / "log.jsonl"
        settings = config(steps=10)
        train(fixed_gp(), config=settings, device="cpu", log=log, reference=exact, progress=False)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found = [line for line in lines if "held_out" in line]
        assert [line["step"] for line in found] == [5, 10]
        assert all(line["gap"] > 0 for line in found)

    def test_starting_from_a_trained_network(self):
        first = train(fixed_gp(), config=config(steps=5), device="cpu", progress=False)
        second = train(
            fixed_gp(),
            config=config(steps=1, learning_rate=0.0, matrix_learning_rate=0.0),
            device="cpu",
            initial=first,
            progress=False,
        )
        assert torch.equal(weights(first), weights(second))
        assert second.metadata["training"]["from"] == first.metadata["training"]
        assert len(second.trainings) == 2
        assert second.tasks_seen == first.tasks_seen + second.trainings[0]["tasks"]
        for smaller in ({"layers": 1}, {"heads": 2 * TINY.heads}, {"thinking_rows": 3}):
            with pytest.raises(ValueError, match="larger|may grow"):
                train(
                    fixed_gp(),
                    config=config(steps=1, architecture=replace(TINY, **smaller)),
                    device="cpu",
                    initial=first,
                    progress=False,
                )

    def test_nothing_worse_than_the_start_is_kept(self, tmp_path):
        """With a rate that ruins it, the network stays what it was, and its loss is known."""
        first = train(fixed_gp(), config=config(steps=20), device="cpu", progress=False)
        ruin = config(steps=10, learning_rate=10.0, warmup=1, average_decay=0.1, clip=1e9)
        log = tmp_path / "log.jsonl"
        second = train(
            fixed_gp(), config=ruin, device="cpu", initial=first, log=log, progress=False
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
        assert set(found) == {0, 5, 10}
        assert found[0] < min(found[5], found[10])
        assert torch.equal(weights(first), weights(second))

    def test_held_out_tasks_do_not_depend_on_the_batch(self, tmp_path):
        first = train(fixed_gp(), config=config(steps=5), device="cpu", progress=False)
        losses = []
        for batch in (4, 12):
            log = tmp_path / f"{batch}.jsonl"
            wider = config(steps=1, batch=batch, held_out_batch=4)
            train(fixed_gp(), config=wider, device="cpu", initial=first, log=log, progress=False)
            losses.append(json.loads(log.read_text().splitlines()[0])["held_out"])
        assert losses[0] == losses[1]

    def test_held_out_tasks_of_another_prior(self):
        class Counting:
            calls = 0

            def sample(self, batch, **options):
                self.calls += 1
                return fixed_gp().sample(batch, **options)

        own, other = Counting(), Counting()
        steps = config(steps=3)
        train(own, config=steps, held_out_prior=other, device="cpu", progress=False)
        assert other.calls == steps.held_out_tasks // steps.batch
        assert own.calls == 3 + steps.border_tasks // steps.batch

    def test_snapshots_are_what_a_killed_training_leaves(self, tmp_path):
        """A training that fails late has left the network of its last snapshot."""

        class Failing:
            calls = 0

            def sample(self, batch, **options):
                self.calls += 1
                if self.calls > 30:
                    raise KeyboardInterrupt
                return fixed_gp().sample(batch, **options)

        often = config(steps=100, checkpoint_every=0.0)
        path = tmp_path / "network.safetensors"
        with pytest.raises(KeyboardInterrupt):
            train(
                Failing(),
                config=often,
                device="cpu",
                snapshot=path,
                metadata={"command": "mine"},
                progress=False,
            )
        left = load(path)
        assert left.metadata["command"] == "mine"
        assert 10 < left.metadata["training"]["steps"] < 30
        assert left.coverage.max_context > 0
        whole = train(
            fixed_gp(),
            config=replace(often, steps=left.metadata["training"]["steps"]),
            device="cpu",
            snapshot=tmp_path / "whole.safetensors",
            progress=False,
        )
        assert torch.equal(weights(load(tmp_path / "whole.safetensors")), weights(whole))

    def test_starting_from_a_network_with_other_bars(self):
        """It predicts the same densities, where they are smooth at the scale of the bars."""
        still = {"learning_rate": 0.0, "matrix_learning_rate": 0.0}
        coarse, fine = (config(steps=1, architecture=replace(TINY, bars=k)) for k in (100, 160))
        first = train(fixed_gp(), config=coarse, device="cpu", progress=False)
        nodes = first.bars.borders
        with torch.no_grad():
            for head in (first.network.head_y, first.network.head_f):
                frequency = torch.linspace(0.2, 2.0, head.in_features)
                head.weight.copy_(0.1 * torch.sin(frequency * nodes[:, None]))
                head.bias.copy_(-nodes.square() / 2 + first.bars.areas(nodes).log())
        fine = replace(fine, **still)
        second = train(fixed_gp(), config=fine, device="cpu", initial=first, progress=False)
        assert len(second.bars.borders) == 160
        task = fixed_gp().sample(1, generator=torch.Generator().manual_seed(0))
        X, y = task.X[0, :9], task.y[0, :9]
        Q = torch.linspace(0, 1, 5)[:, None]
        grid = torch.linspace(-3, 3, 61)[:, None, None]
        for noisy in (False, True):
            a, b = (
                network.condition(X, y).posterior(Q, observation_noise=noisy).density(grid)
                for network in (first, second)
            )
            assert a.max() > 0.2
            assert (a - b).abs().max() < 0.005

    def test_a_continued_training_sees_other_tasks(self):
        drawn = []

        class Recording:
            def sample(self, batch, **options):
                drawn.append(fixed_gp().sample(batch, **options))
                return drawn[-1]

        once = config(steps=1)
        first = train(Recording(), config=once, device="cpu", progress=False)
        used = drawn[-1].X
        train(Recording(), config=once, device="cpu", progress=False)
        assert torch.equal(drawn[-1].X, used)
        train(Recording(), config=once, device="cpu", initial=first, progress=False)
        assert drawn[-1].X.shape != used.shape or not torch.equal(drawn[-1].X, used)

    def test_large_gradients_are_left_out(self):
        """With the limit just below the usual norm some steps are left out, and some are not."""
        made = train(fixed_gp(), config=config(steps=12, spike=0.9), device="cpu", progress=False)
        assert 0 < made.metadata["training"]["skipped"] < 12

    def test_enough_nodes_for_the_noise_of_the_prior(self):
        """The floor of the binning error under the noise of the tasks is what was asked for."""
        architecture = replace(TINY, bars=0)
        made = train(
            fixed_gp(),
            config=config(
                steps=1, architecture=architecture, targets="raw", batch=50, border_tasks=2000
            ),
            device="cpu",
            progress=False,
        )
        nodes = made.architecture.bars
        assert nodes == len(made.bars.borders) >= 16
        means = torch.linspace(-2, 2, 41, dtype=torch.float64) / made.prior_scale
        sds = torch.full_like(means, NOISE_VAR**0.5 / made.prior_scale)
        weight = torch.softmax(-0.5 * (means * made.prior_scale) ** 2, 0)
        assert (weight * binning_error(made.bars.double(), means, sds)).sum() < 0.006

    def test_bad_values(self):
        with pytest.raises(ValueError, match="optimizer"):
            TrainingConfig(optimizer="sgd")
        with pytest.raises(ValueError, match="share"):
            TrainingConfig(appended=2.0)
        with pytest.raises(ValueError, match="precision"):
            TrainingConfig(precision="16-mixed")


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    """Data-parallel on two CPU processes: one log, one result, twice the tasks."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, torch\n"
        "from lightning_fabric import Fabric\n"
        "from gpytorch.kernels import RBFKernel\n"
        "from pfn import ArchitectureConfig, TrainingConfig, train\n"
        "from priors import FunctionTaskPrior, GaussianProcessPrior\n"
        "fabric = Fabric(accelerator='cpu', devices=2, strategy='ddp')\n"
        "fabric.launch()\n"
        "uniform = torch.distributions.Uniform(torch.zeros(1), torch.ones(1))\n"
        "prior = FunctionTaskPrior(GaussianProcessPrior(RBFKernel()), inputs=uniform,\n"
        "                          num_points=12, noise_var=0.1)\n"
        "sizes = ArchitectureConfig(max_features=1, embedding=16, layers=2, heads=2, hidden=16,\n"
        "                           bars=16)\n"
        "config = TrainingConfig(architecture=sizes, steps=6, batch=4, border_tasks=40)\n"
        "made = train(prior, config=config, fabric=fabric, progress=False,\n"
        "             checkpoint=sys.argv[1])\n"
        "total = sum(float(p.double().sum()) for p in made.parameters())\n"
        "both = fabric.all_gather(torch.tensor(total, dtype=torch.float64))\n"
        "assert both[0] == both[1], both\n"
        "assert made.metadata['training']['tasks'] == 48\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "state.safetensors")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "state.safetensors").exists()


@pytest.mark.slow
def test_processes_of_torchrun_train_together(tmp_path):
    """By themselves, and one of them being late leaves no one waiting for a checkpoint."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, time, torch\n"
        "from gpytorch.kernels import RBFKernel\n"
        "from pfn import ArchitectureConfig, TrainingConfig, train\n"
        "from priors import FunctionTaskPrior, GaussianProcessPrior\n"
        "uniform = torch.distributions.Uniform(torch.zeros(1), torch.ones(1))\n"
        "class Late(FunctionTaskPrior):\n"
        "    def sample(self, batch, **options):\n"
        "        time.sleep(0.02 * int(os.environ['RANK']))\n"
        "        return super().sample(batch, **options)\n"
        "prior = Late(GaussianProcessPrior(RBFKernel()), inputs=uniform, num_points=12,\n"
        "             noise_var=0.1)\n"
        "sizes = ArchitectureConfig(max_features=1, embedding=16, layers=2, heads=2, hidden=16,\n"
        "                           bars=16)\n"
        "config = TrainingConfig(architecture=sizes, steps=40, batch=4, border_tasks=40,\n"
        "                        checkpoint_every=0.05, held_out_tasks=0)\n"
        "made = train(prior, config=config, device='cpu', progress=False, checkpoint=sys.argv[1])\n"
        "assert made.metadata['training']['tasks'] == 2 * 40 * 4\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    run = subprocess.run(
        [*command, str(script), str(tmp_path / "state.safetensors")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_and_certificate_on_a_gpu():
    made = train(fixed_gp(), config=config(steps=3), device="cuda", progress=False)
    found = certify(made, fixed_gp(), context_sizes=(0, 5), num_queries=4, num_tasks=8)
    assert found.scores
    # Not of the values: what is not known is NaN there.
    assert Certificate.from_json(found.to_json()).to_json() == found.to_json()
