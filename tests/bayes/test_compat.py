"""Names borrowed from Pyro and BoTorch: each exists and does what we rely on."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.models.utils import gpt_posterior_settings
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator.operators import DiagLinearOperator
from torch.fx.experimental.proxy_tensor import make_fx

from bayes.caching import ExactPredictionStrategy
from bayes.compat import (
    ComparesNow,
    RecordingNUTS,
    mean_acceptance,
    one_fake_mode,
    potential_energy,
    rows_of_plate,
)
from bayes.processes.marginal_likelihood import exact_solves


@pytest.fixture
def chain():
    """What the sampler says of every draw of x ~ N(1, 2^2), with the draw."""

    def model():
        pyro.sample("x", dist.Normal(torch.tensor(1.0).double(), torch.tensor(2.0).double()))

    told = []

    def record(kernel, samples, stage, step):
        if stage.startswith("Sample"):
            told.append((potential_energy(kernel), mean_acceptance(kernel), float(samples["x"])))

    with torch.random.fork_rng(), pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        kernel = pyro.infer.NUTS(model)
        pyro.infer.MCMC(
            kernel, num_samples=20, warmup_steps=10, hook_fn=record, disable_progbar=True
        ).run()
    return told


def test_potential_energy_last(chain):
    law = torch.distributions.Normal(1.0, 2.0)
    for energy, _, x in chain:
        assert energy == pytest.approx(-law.log_prob(torch.tensor(x).double()).item())


def test_mean_accept_prob(chain):
    """A running mean over the draws since the warm-up, so that each draw's can be told."""
    sums = [0.0] + [mean * (step + 1) for step, (_, mean, _) in enumerate(chain)]
    each = [after - before for before, after in zip(sums, sums[1:], strict=False)]
    assert all(-1e-9 <= one <= 1 + 1e-9 for one in each)
    assert len({round(one, 9) for one in each}) > 5


def test_recording_nuts():
    """The same draws as Pyro's, the steps that the density was asked for, and the energies."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    calls = [0]

    def potential(z):
        calls[0] += 1
        return -law.log_prob(z["x"])

    def run(kind, hook=None):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            sampler = pyro.infer.MCMC(
                kind(potential_fn=potential),
                num_samples=150,
                warmup_steps=60,
                initial_params={"x": torch.zeros(2).double()},
                hook_fn=hook,
                disable_progbar=True,
            )
            sampler.run()
        return sampler.get_samples()["x"]

    told = []

    def record(kernel, samples, stage, step):
        steps, kinetic = kernel.num_leapfrog_steps, kernel.energy - potential_energy(kernel)
        if stage.startswith("Sample"):
            told.append((calls[0], steps, kinetic))
        calls[0] = 0

    drawn = run(RecordingNUTS, record)
    assert torch.equal(drawn, run(pyro.infer.NUTS))
    assert all(asked == steps for asked, steps, _ in told)
    assert len({steps for _, steps, _ in told}) > 1
    # Momenta are standard normal in two dimensions, after every transition too: Exp(1).
    kinetic = torch.tensor([one for *_, one in told], dtype=torch.float64)
    assert (kinetic > 0).all()
    error = kinetic.std() / len(kinetic) ** 0.5
    assert abs(kinetic.mean() - 1) < 4 * error
    assert abs((kinetic < 0.6931).double().mean() - 0.5) < 4 * 0.5 / len(kinetic) ** 0.5


def test_apply_noise():
    parameters = inspect.signature(SingleTaskGP._apply_noise).parameters
    assert list(parameters)[:4] == ["self", "X", "mvn", "observation_noise"]


def test_input_batch_shape():
    X, Y = torch.rand(3, 4, 2, dtype=torch.float64), torch.rand(3, 4, 2, dtype=torch.float64)
    assert SingleTaskGP(X, Y)._input_batch_shape == (3,)


def test_validate_tensor_args():
    """Called in construction, where our override keeps a warning about float32 away."""
    called = []

    class Model(SingleTaskGP):
        @staticmethod
        def _validate_tensor_args(X, Y, Yvar=None, strict=True):
            called.append((X.shape, Y.shape))

    X = torch.rand(4, 2, dtype=torch.float64)
    Model(X, X[:, :1])
    assert set(called) == {((4, 2), (4, 1))}


def test_inputs_in_both_modes():
    """BoTorch calls the pair that `ProcessRows` overrides at every change of mode."""
    called = []

    class Model(SingleTaskGP):
        def _set_transformed_inputs(self):
            called.append("eval")

        def _revert_to_original_inputs(self):
            called.append("train")

    X = torch.rand(4, 2, dtype=torch.float64)
    model = Model(X, X[:, :1])
    for change, last in ((model.eval, "eval"), (model.train, "train"), (model.eval, "eval")):
        change()
        assert called[-1] == last


def test_training_rows_of_a_strategy():
    """GPyTorch makes its strategy of this prior, and keeps one that is there."""
    X = torch.rand(4, 2, dtype=torch.float64)
    model = SingleTaskGP(X, X[:, :1]).eval()
    prior = model._get_train_prior_distribution([X])
    assert torch.allclose(prior.covariance_matrix, model.covar_module(X).to_dense())
    kept = ExactPredictionStrategy([X], prior, model.train_targets, model.likelihood)
    expected = model(X[:2] + 0.1).mean
    model.prediction_strategy = kept
    assert torch.allclose(model(X[:2] + 0.1).mean, expected)
    assert model.prediction_strategy is kept
    model._clear_cache()
    assert model.prediction_strategy is None


def test_prediction_strategy():
    """It predicts from covariances with the rows, and variances from a diagonal prior."""
    X, Xs = torch.rand(10, 2, dtype=torch.float64).split([6, 4])
    model = SingleTaskGP(X, X[:, :1].sin()).eval()
    assert model.prediction_strategy is None
    with torch.no_grad(), exact_solves(), gpt_posterior_settings():
        expected = model(Xs)
        strategy, kernel = model.prediction_strategy, model.covar_module
        assert type(strategy) is DefaultPredictionStrategy
        covariance = kernel(Xs, model.train_inputs[0]).to_dense()
        mean = strategy.exact_predictive_mean(model.mean_module(Xs), covariance)
        prior = DiagLinearOperator(kernel(Xs, diag=True))
        variance = strategy.exact_predictive_covar(prior, covariance).diagonal()
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(variance, expected.variance)


def test_rows_of_a_plate():
    """A site that chooses rows is told from others, and how many it takes."""

    def model():
        with pyro.plate("some", 10, subsample_size=3):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))
        with pyro.plate("all", 4):
            pyro.sample("y", dist.Normal(torch.zeros(4), 1.0))

    nodes = pyro.poutine.trace(model).get_trace().nodes
    found = {name: rows_of_plate(node.get("fn")) for name, node in nodes.items()}
    assert (found["some"], found["all"], found["x"]) == ((10, 3), (4, 4), None)


def test_comparisons_while_tracing():
    """`torch.equal` answers, where tracing alone refuses it."""

    def function(x):
        return x * 2 if torch.equal(x, x + 0) else x * 3

    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="tracing tensor"):
        make_fx(function)(x)
    with ComparesNow():
        graph = make_fx(function)(x)
    assert torch.equal(graph(x), 2 * x)


def test_one_mode_for_all_values_of_a_graph():
    def modes(graph):
        return {id(node.meta["val"].fake_mode) for node in graph.graph.nodes if "val" in node.meta}

    x = torch.randn(4, 3)
    plain = make_fx(lambda x: x.sin().mul(2).sum(-1))(x)
    with one_fake_mode():
        graph = make_fx(lambda x: x.sin().mul(2).sum(-1))(x)
    assert len(modes(plain)) > len(modes(graph)) == 1
    assert [node.target for node in graph.graph.nodes] == [n.target for n in plain.graph.nodes]
    assert graph.graph.find_nodes(op="placeholder")[0].meta["val"].shape == x.shape
