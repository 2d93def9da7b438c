"""Missing and categorical inputs and correlated outputs, against dense algebra."""

import math

import pytest
import torch
from botorch.models.kernels import CategoricalKernel
from botorch.models.transforms.input import InputStandardize
from gpytorch.kernels import IndexKernel, RBFKernel
from torch import nn

from bayes import GaussianProcess, ScaleMixtureProcess, StudentTProcess
from priors import HalfCauchyVariance, MissingInputs, NNGPKernel

OFF = {"outcome_transform": None}


def mixture(*args, **given):
    return ScaleMixtureProcess(*args, scale=HalfCauchyVariance(), **given)


PROCESSES = [GaussianProcess, StudentTProcess, mixture]


def rows(n=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = 3 + 2 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return X, torch.sin(X.sum(-1, keepdim=True))


def with_gaps():
    X, Y = rows()
    X[1, 0] = X[4, 0] = X[4, 2] = torch.nan
    return X, Y


def by_hand(X, like):
    """Standardised by the values that are there, gaps at 0, indicators of columns 0 and 2."""
    columns = []
    for j in range(3):
        there = like[:, j][~like[:, j].isnan()]
        columns.append(((X[:, j] - there.mean()) / there.std()).nan_to_num(0.0))
    return torch.stack([*columns, X[:, 0].isnan().double(), X[:, 2].isnan().double()], -1)


@pytest.mark.parametrize("process", PROCESSES)
def test_missing_inputs_are_imputed_and_told(process, tmp_path):
    X, Y = with_gaps()
    queries = rows(4, seed=1)[0]
    queries[0, 0] = queries[1, 1] = queries[2, 2] = torch.nan
    transform = MissingInputs(X)
    assert transform.num_columns == 5
    model = process(X, Y, RBFKernel(ard_num_dims=5), input_transform=transform)
    plain = process(by_hand(X, X), Y, RBFKernel(ard_num_dims=5), input_transform=None)
    expected = plain.posterior(by_hand(queries, X))
    found = model.posterior(queries)
    assert torch.allclose(found.mean, expected.mean)
    assert torch.allclose(found.variance, expected.variance)
    more = model.condition_on_observations(queries, Y[:4])
    every = plain.condition_on_observations(by_hand(queries, X), Y[:4])
    assert torch.allclose(more.posterior(X).mean, every.posterior(by_hand(X, X)).mean)
    gap = queries.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.posterior(gap).mean.sum(), gap)
    assert slope.isfinite().all()
    if process is StudentTProcess:
        before = model.log_marginal_likelihood()
        assert model.fit().log_marginal_likelihood() > before
    if process is not mixture:
        model.save(tmp_path / "model")
        back = process.load(
            tmp_path / "model", RBFKernel(ard_num_dims=5), input_transform=MissingInputs(X)
        )
        assert torch.equal(back.posterior(queries).mean, model.posterior(queries).mean)


@pytest.mark.parametrize("process", PROCESSES)
def test_missing_inputs_are_refused_without_a_treatment(process):
    X, Y = with_gaps()
    with pytest.raises(ValueError, match="3 NaN.*MissingInputs"):
        process(X, Y, RBFKernel())
    complete = process(*rows(), RBFKernel())
    with pytest.raises(ValueError, match="row"):
        complete.posterior(X)
    taken = process(X, Y, RBFKernel(), input_transform=MissingInputs(X))
    infinite = X.clone()
    infinite[0, 0] = math.inf
    with pytest.raises(ValueError, match="row 0"):
        taken.posterior(infinite)
    with pytest.raises(ValueError, match="NaN"):
        taken.condition_on_observations(X, torch.nan * Y)
    with pytest.raises(ValueError, match="shape"):
        MissingInputs(X[None])


@pytest.mark.parametrize("process", PROCESSES)
def test_a_categorical_column_beside_a_network(process):
    """Codes are compared, not measured: standardising them changes nothing."""
    X, Y = rows(12)
    X[:, 2] = torch.arange(12) % 3
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    kernel = NNGPKernel(net, active_dims=(0, 1)) * CategoricalKernel(active_dims=[2])
    model = process(X, Y, kernel, **OFF)
    Z = (X - X.mean(0)) / X.std(0)
    K = NNGPKernel(net)(Z[:, :2]).to_dense().detach()
    width = kernel.kernels[1].lengthscale.item()
    K = K * torch.exp(-(X[:, 2:] != X[:, 2:].T).double() / width)
    truth = torch.linalg.solve(K + 0.1 * torch.eye(12), Y)
    found = model.posterior(X)
    if process is not mixture:
        assert torch.allclose(found.mean, K @ truth, atol=1e-6)
    recoded = X.clone()
    recoded[:, 2] = torch.tensor([40.0, -1.0, 7.0]).double()[X[:, 2].long()]
    other = process(recoded, Y, kernel, **OFF).posterior(recoded)
    assert torch.allclose(found.mean, other.mean)
    assert torch.allclose(found.variance, other.variance)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch, of GPyTorch's IndexKernel
@pytest.mark.parametrize("process", PROCESSES)
def test_correlated_outputs_as_rows_with_a_task(process):
    """Intrinsic coregionalisation: B kron K and the noise, with an output missing somewhere."""
    X, _ = rows(8)
    tasks = IndexKernel(num_tasks=2, rank=1, active_dims=[3])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tasks.covar_factor.copy_(torch.tensor([[1.0], [0.8]]))
        tasks.raw_var.zero_()
    long = torch.cat([torch.cat([X, torch.full((8, 1), float(k)).double()], -1) for k in (0, 1)])
    y = torch.randn(16, 1, generator=generator, dtype=torch.float64)
    kernel = RBFKernel(active_dims=[0, 1, 2]) * tasks
    keep = [k for k in range(16) if k != 11]
    transform = InputStandardize(4, indices=[0, 1, 2])
    transform(long[keep])
    transform.eval()
    model = process(long[keep], y[keep], kernel, input_transform=transform, **OFF)
    Z = (X - long[keep, :3].mean(0)) / long[keep, :3].std(0)
    B = tasks.covar_matrix.to_dense().double().detach()
    K = torch.kron(B, torch.exp(-0.5 * torch.cdist(Z, Z).square() / math.log(2) ** 2))
    C = K[keep][:, keep] + 0.1 * torch.eye(15)
    found = model.posterior(long)
    if process is GaussianProcess:
        truth = K[:, keep] @ torch.linalg.solve(C, y[keep])
        assert torch.allclose(found.mean, truth, atol=1e-6)
        normal = torch.distributions.MultivariateNormal(torch.zeros(15).double(), C)
        evidence = normal.log_prob(y[keep, 0]).item()
        assert model.log_marginal_likelihood().item() == pytest.approx(evidence, rel=1e-6)
    assert found.variance[11] > found.variance[3]
