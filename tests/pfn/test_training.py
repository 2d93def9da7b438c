"""Training and certificates: resuming, learning, and the gap to an exact posterior."""

import json
from dataclasses import replace

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel
from linear_operator.operators import DiagLinearOperator

from pfn import ArchitectureConfig, Certificate, TrainingConfig, certify, train
from pfn.checkpoints.regression import RegressionTaskPrior, certificate
from priors import GaussianPosterior, GaussianProcessPrior
from priors.tasks import FunctionTaskPrior, Task

TINY = ArchitectureConfig(
    max_features=2, embedding=16, layers=2, heads=2, hidden=16, thinking_rows=2, bars=24
)
NOISE_VAR = 0.05


def fixed_gp(num_points=24, lengthscale=0.3):
    kernel = RBFKernel()
    kernel.lengthscale = lengthscale
    return FunctionTaskPrior(
        GaussianProcessPrior(kernel),
        inputs=torch.distributions.Uniform(torch.zeros(1), torch.ones(1)),
        num_points=num_points,
        noise_var=NOISE_VAR,
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
    def test_equals_the_uninterrupted_run(self, tmp_path):
        class Interrupted(Exception):
            pass

        class Stops:
            """A prior that fails at a given call."""

            def __init__(self, after):
                self.prior, self.left = fixed_gp(), after

            def sample(self, batch, **options):
                self.left -= 1
                if self.left == 0:
                    raise Interrupted
                return self.prior.sample(batch, **options)

        settings = config(steps=12, checkpoint_every=0.0)
        whole = train(fixed_gp(), config=settings, device="cpu", progress=False)
        file = tmp_path / "state.safetensors"
        with pytest.raises(Interrupted):
            train(Stops(after=17), config=settings, device="cpu", checkpoint=file, progress=False)
        resumed = train(
            fixed_gp(), config=settings, device="cpu", checkpoint=file, resume=True, progress=False
        )
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.metadata["training"]["tasks"] == 48

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
    with pytest.raises(ValueError, match="3 features, the network has slots for 2"):
        train(prior, config=config(steps=1), progress=False)


def test_configuration_round_trip():
    settings = config(steps=5, time_limit=3.0)
    assert TrainingConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(ValueError, match="steps"):
        TrainingConfig(steps=0)


def test_padded_tasks_train_like_their_rows():
    """Padding changes neither the loss nor its gradient."""
    from pfn.training import _Loss, _Told

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
    loss = _Loss(made)
    for a, b in zip(loss(replace(task, points=points), _Told()), loss(short, _Told()), strict=True):
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
        measured = certify(made, fixed_gp(), num_tasks=8, progress=False, num_queries=4)
        assert measured.reference == "none"
        again = Certificate.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False)))
        assert str(again) == str(measured)
        assert "calibration only" in str(measured)

    def test_sizes_that_no_task_has(self):
        made = train(fixed_gp(), config=config(steps=1), device="cpu", progress=False)
        with pytest.raises(ValueError, match="ask for smaller"):
            certify(made, fixed_gp(), context_sizes=[100], num_tasks=4, progress=False)

    def test_shipped_prior_oracle_is_calibrated(self):
        """Standardised residuals of the oracle are standard normal, as for an exact posterior."""
        prior = RegressionTaskPrior(num_context=12)
        generator = torch.Generator().manual_seed(0)
        scores = []
        for _ in range(12):
            task = prior.sample(32, generator=generator, dtype=torch.float64)
            posterior = prior.oracle(task)
            z = (task.y[:, 12:] - posterior.mean) / posterior.variance.sqrt()
            scores.append(z[:, 0, 0])  # one query per task: independent over tasks
        z = torch.cat(scores)
        assert abs(z.mean()) < 4 / len(z) ** 0.5
        assert abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5

    def test_shipped_certificate_command(self):
        made = train(
            RegressionTaskPrior(),
            config=config(steps=1, architecture=replace(TINY, max_features=10)),
            device="cpu",
            progress=False,
        )
        measured = certificate(made, num_tasks=32, progress=False)
        assert list(measured.by_context) == [0, 5, 20, 80, 256]
        assert measured.reference == "upper bound"


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
