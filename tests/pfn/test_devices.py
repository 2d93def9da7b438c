"""Networks on the GPU against the CPU."""

from itertools import product

import pytest
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.optim import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler

import pfn
from priors import LogExpectedImprovement, RandomKernelTaskPrior, TailCompression

CPU = torch.device("cpu")
NETWORKS = ["regression", "bo"]


@pytest.fixture(scope="module")
def shipped():
    found = {name: pfn.load(name) for name in [*NETWORKS, "classification"]}
    for network in found.values():
        network.metadata.pop("certificate", None)  # these few rows are not to be judged
    return found


def data(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    Y = (4 * X[:, :1]).sin() + X[:, 1:]
    return X.to(device, dtype), Y.to(device, dtype)


def test_bar_distribution(agrees, device):
    def compute(device, dtype):
        generator = torch.Generator().manual_seed(0)
        borders = torch.linspace(-3, 3, 11, dtype=dtype)
        bars = pfn.BarDistribution(borders, tail_scale=0.6).to(device)
        logits = torch.randn(4, 11, generator=generator).to(device, dtype)
        y = torch.linspace(-4, 4, 4, dtype=dtype, device=device)
        yield from (bars.mean(logits), bars.variance(logits))
        yield from (bars.log_prob(logits, y), bars.cdf(logits, y))
        yield bars.quantile(logits, torch.tensor([[0.1], [0.9]], dtype=dtype, device=device))
        for order, above in product((0, 1), (True, False)):
            yield bars.log_excess(logits, y, order, above)

    agrees(compute)
    bars = pfn.BarDistribution(torch.linspace(-3, 3, 11), tail_scale=0.6).to(device)
    logits = torch.zeros(4, 11, device=device)
    assert bars.rsample(logits, torch.Size([2])).device == device


def answers(posterior, Y):
    yield from (posterior.mean, posterior.variance, posterior.log_prob(Y), posterior.cdf(Y))
    yield posterior.quantile(torch.tensor([0.1, 0.7]))
    yield posterior.joint_log_prob(Y)
    base = torch.linspace(-1, 1, 2 * Y.numel()).reshape(2, *Y.shape).to(Y)
    yield posterior.rsample_from_base_samples(torch.Size([2]), base)


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks(agrees, device, shipped, name):
    def compute(device, dtype):
        (X, Y), network = data(device, dtype), shipped[name]
        Q, y = X[:3] + 0.01, Y[:3]
        # wherever the network is, and with the columns in another order
        for where, seed in ((CPU, 0), (device, 1)):
            model = network.to(where).condition(X, Y, num_orders=2, column_seed=seed)
            yield from answers(model.posterior(Q, observation_noise=True), y)
        yield from (model.posterior(Q).mean, LogExpectedImprovement(model, 0.6)(Q[:, None]))
        grown = model.condition_on_observations(Q[:1], y[:1])
        fantasies = model.fantasize(Q[:2], SobolQMCNormalSampler(torch.Size([2]), seed=0))
        yield from (grown.posterior(Q).mean, fantasies.posterior(Q).mean)
        tails = network.condition(X, Y, outcome_transform=TailCompression(Y))
        yield from (tails.posterior(Q).mean, tails.posterior(Q).log_excess(Y.max(), 1))
        yield qLogExpectedImprovement(model, 0.6, SobolQMCNormalSampler(torch.Size([4]), seed=0))(
            Q[:, None]
        )

    agrees(compute)
    X, Y = data(device)
    posterior = shipped[name].condition(X, Y).posterior(X[:3] + 0.01)
    assert posterior.rsample(torch.Size([2])).device == device


def test_classification(agrees, device, shipped):
    def compute(device, dtype):
        X, Y = data(device, dtype)
        model = shipped["classification"].condition(X, (Y[:, 0] > 0.5).long())
        posterior = model.posterior(X + 0.01)
        yield from (posterior.mean, posterior.variance, posterior.log_prob((Y > 0.5).long()))

    agrees(compute)
    X, Y = data(device)
    drawn = shipped["classification"].condition(X, (Y > 0.5).long()).posterior(X).rsample()
    assert drawn.device == device


def test_acquisition_is_optimised_on_the_device(device, shipped):
    X, Y = data(device)
    model = shipped["bo"].condition(X, Y)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=X.dtype, device=device)
    acquisition = LogExpectedImprovement(model, Y.max())
    candidate, value = optimize_acqf(acquisition, bounds, 1, 2, 8, options={"maxiter": 5})
    assert candidate.device == value.device == device


def test_data_elsewhere_is_refused(device, shipped):
    if device == CPU:
        pytest.skip("there is no other device")
    X, Y = data(device)
    model = shipped["regression"].condition(X, Y)
    with pytest.raises(TypeError, match="they must agree"):
        shipped["regression"].condition(X, Y.cpu())
    with pytest.raises(TypeError, match="convert one of them"):
        model.condition_on_observations(X[:1].cpu(), Y[:1].cpu())
    with pytest.raises(NotImplementedError, match="condition the network on data"):
        model.cpu()


def test_files_of_one_device_are_read_on_another(device, shipped, tmp_path):
    network = shipped["regression"]
    network.to(device).save(tmp_path / "there")
    network.cpu().save(tmp_path / "here")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    read = pfn.load(tmp_path / "there")
    assert {t.device for t in read.state_dict().values()} == {CPU}
    X, Y = data(device)
    found = read.to(device).condition(X, Y).posterior(X).mean
    torch.testing.assert_close(found, network.condition(X, Y).posterior(X).mean)


def test_certificate(device, shipped):
    network = shipped["regression"].to(device, torch.float32)
    try:
        found = pfn.certify(
            network,
            RandomKernelTaskPrior(),
            reference=lambda task: network_density(network, task),
            context_sizes=(0, 5),
            num_queries=2,
            num_tasks=4,
            progress=False,
        )
    finally:
        network.cpu()
    assert found.gap == pytest.approx(0, abs=1e-3)
    assert set(found.coherence) >= {"martingale", "order"}


def network_density(network, task):
    """The network's own predictions as the reference: the gap is zero."""
    n = task.num_context
    model = network.condition(task.X[:, :n].double(), task.y[:, :n].double(), check=False)
    return model.posterior(task.X[:, n:].double(), observation_noise=True)


@pytest.mark.filterwarnings("ignore:The largest of 64")
def test_reweighting(device, shipped):
    X, Y = data(device)
    model = shipped["regression"].condition(X, Y)

    def log_density(X, Y):
        assert X.device == Y.device == device
        return -(Y - 1).square().sum(-1) / 8

    found = pfn.reweight(
        model, X[:2] + 0.01, log_density, num_samples=64, generator=torch.Generator().manual_seed(0)
    )
    assert found.mean.device == device
    assert pfn.reweight(model, X[:1], log_density, num_samples=64).mean.device == device


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["PFNRegressor", "PFNClassifier"])
def test_estimators(device, shipped, kind, dtype):
    pytest.importorskip("sklearn")
    X, Y = (value.numpy() for value in data(CPU))
    y = Y[:, 0] if kind == "PFNRegressor" else (Y[:, 0] > 0.5).astype(int)
    name = "regression" if kind == "PFNRegressor" else "classification"
    found = []
    for where in (CPU, device):
        made = getattr(pfn, kind)(
            shipped[name], num_ensemble=2, power_transforms=True, device=where, dtype=dtype
        ).fit(X, y)
        assert next(made.network_.parameters()).device == where
        if kind == "PFNRegressor":
            drawn = made.predict_distribution(X)
            assert drawn.mean.device == drawn.rsample().device == where
            found.append([made.predict(X), made.predict_quantiles(X), made.log_likelihood(X, y)])
        else:
            found.append([made.predict_proba(X), made.predict_log_proba(X)])
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    for here, there in zip(*found, strict=True):
        assert there == pytest.approx(here, rel=tolerance, abs=tolerance)
