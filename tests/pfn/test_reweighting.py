"""Importance weights turn a network's proposals into the exact posterior."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pfn import PFN, ArchitectureConfig, reweight

SIZES = ArchitectureConfig(max_features=1, embedding=16, layers=2, heads=2, hidden=16, bars=61)


@pytest.fixture
def model():
    """A broad proposal that knows nothing: an untrained network with wide nodes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PFN(
            SIZES,
            torch.linspace(-3, 3, 61),
            tail_scale=1.0,
            targets="raw",
            metadata={"max_buffer": 8},
        ).double()
    generator = torch.Generator().manual_seed(1)
    X = torch.rand(6, 1, generator=generator, dtype=torch.float64)
    return network.condition(X, torch.sin(6 * X))


def covariance(X):
    eye = torch.eye(len(X), dtype=X.dtype)
    return torch.exp(-0.5 * (torch.cdist(X, X) / 0.4) ** 2) + 0.04 * eye


def log_density(X, Y):
    return MultivariateNormal(torch.zeros(len(X), dtype=X.dtype), covariance(X)).log_prob(Y)


@pytest.mark.parametrize("q", [1, 2])
def test_reweighted_moments_are_the_exact_ones(model, q):
    Q = torch.tensor([[0.3], [0.45]], dtype=torch.float64)[:q]
    K = covariance(torch.cat([model.train_X, Q]))
    gain = torch.linalg.solve(K[:6, :6], K[:6, 6:]).mT
    mean = gain @ model.train_Y
    exact = K[6:, 6:] - gain @ K[:6, 6:]
    found = reweight(
        model, Q, log_density, num_samples=20_000, generator=torch.Generator().manual_seed(0)
    )
    spread = exact.diagonal().sqrt()[:, None]
    error = spread / found.effective_samples**0.5
    assert found.effective_samples > 100
    assert ((found.mean - mean).abs() < 4 * error).all()
    weights = found.log_weights.exp()
    centred = found.draws[..., 0] - found.mean[:, 0]
    second = torch.einsum("s,si,sj->ij", weights, centred, centred)
    slack = 5 * (2 / found.effective_samples) ** 0.5
    assert ((second - exact).abs() < slack * exact.diagonal().max()).all()
    assert found.pareto_shape < 0.7


def test_proposals_that_miss_the_target_warn(model):
    def elsewhere(X, Y):
        return -((Y[:, -1] - 40) ** 2) * 50

    with pytest.warns(UserWarning, match="Pareto shape"):
        reweight(model, torch.tensor([[0.3]]).double(), elsewhere, num_samples=200)


def test_bad_input(model):
    with pytest.raises(ValueError, match="one data set"):
        reweight(model, torch.zeros(2, 1, 1).double(), log_density)
    Q = torch.zeros(1, 1).double()
    with pytest.raises(ValueError, match=r"must have shape \(8,\), got \(8, 7\)"):
        reweight(model, Q, lambda X, Y: Y, num_samples=8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0, 0, torch.nan], "gave 1 NaN or"),
        ([0.0, 0, torch.inf, torch.nan], "gave 2 NaN or"),
        ([-torch.inf] * 4, "-inf at all 4 proposals"),
    ],
)
def test_densities_without_moments_are_refused(model, values, message):
    with pytest.raises(ValueError, match=message):
        reweight(
            model,
            torch.zeros(1, 1).double(),
            lambda X, Y: torch.tensor(values, dtype=torch.float64),
            num_samples=4,
        )


def test_a_density_of_zero_is_a_weight_of_zero(model):
    """A normal law cut off below zero: the proposals there have no weight."""

    def positive(X, Y):
        return torch.where(Y[:, -1] > 0, -0.5 * Y[:, -1].square(), -torch.inf)

    found = reweight(
        model,
        torch.tensor([[0.3]]).double(),
        positive,
        num_samples=2_000,
        generator=torch.Generator().manual_seed(0),
    )
    assert (found.log_weights.exp()[found.draws[:, 0, 0] < 0] == 0).all()
    half_normal = (2 / torch.pi) ** 0.5
    spread = (1 - half_normal**2) ** 0.5
    assert abs(found.mean.item() - half_normal) < 4 * spread / found.effective_samples**0.5
