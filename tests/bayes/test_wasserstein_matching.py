"""The dual Wasserstein distance, and the defects of the published program that it must not have."""

import math

import pytest
import torch
from gpytorch.kernels import LinearKernel, RBFKernel

from bayes.functional_prior import TrainingBox, WassersteinMatching, match_functional_prior
from bayes.functional_prior.wasserstein import dual_distance, train_critic
from priors.functions import GaussianProcessPrior
from priors.networks.finite import NetworkPrior

SMALL = WassersteinMatching(critic_width=20, critic_steps=60)


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_distance_of_a_shift():
    """W_1 of a distribution and itself moved by m is |m|, the critic's slope times the way."""
    shift = torch.tensor([1.5, -2.0], dtype=torch.float64)  # of length 2.5
    p, q = normals(1000, 2) + shift, normals(1000, 2, seed=1)
    found = dual_distance(SMALL, p, q, torch.Generator().manual_seed(0))
    assert found == pytest.approx(2.5, rel=0.2)


def test_a_critic_does_not_learn_its_functions_by_heart():
    """Two sets of draws of one process in R^100 are told apart only by a critic of one bag."""
    X = normals(100, 8)
    process = GaussianProcessPrior(RBFKernel())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        f, g = process.sample(X, torch.Size([2, 1500]), generator=generator)[..., 0].float()
    settings = WassersteinMatching(critic_width=50, critic_steps=60)
    pool = slice(0, 1000), slice(1000, 1500)
    bag = slice(0, 32)

    def apart(learnt, judged):
        critic = train_critic(settings, f[learnt], g[learnt], torch.Generator().manual_seed(1))
        return (critic(f[judged]).mean() - critic(g[judged]).mean()).item()

    # in units of the functions' norm, 10
    assert apart(bag, bag) > 3.0
    assert abs(apart(*pool)) < 1.0


def test_no_critic_depends_on_the_one_before():
    """An optimiser that outlived its critic would make the second's steps shorter."""
    p, q = normals(500, 3) + 1, normals(500, 3, seed=1)
    critics = [train_critic(SMALL, p, q, torch.Generator().manual_seed(4)) for _ in range(2)]
    for one, other in zip(*(critic.parameters() for critic in critics), strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad


def test_critics_are_lipschitz():
    p, q = normals(2000, 2) + 1, normals(2000, 2, seed=1)
    critic = train_critic(SMALL, p, q, torch.Generator().manual_seed(0))
    between = ((p + q) / 2).float().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between)
    assert float(slope.norm(dim=-1).mean()) == pytest.approx(1.0, abs=0.1)


def test_measurement_points_lie_in_the_box_of_the_training_rows():
    X = normals(50, 3)
    box = TrainingBox(X, num_points=60)
    points = box(torch.Generator().manual_seed(0))
    assert points.shape == (60, 3)
    assert ((points >= X.min(0).values) & (points <= X.max(0).values)).all()
    rows = (points[:, None] == X).all(-1).any(-1)
    assert int(rows.sum()) == 42
    assert not torch.equal(points, box(torch.Generator().manual_seed(1)))
    assert len(TrainingBox(X[:5], num_points=20)(torch.Generator())) == 20
    with pytest.raises(ValueError, match="share"):
        TrainingBox(X, share=1.5)


@pytest.mark.slow
def test_the_variance_of_a_linear_network_is_found():
    """The optimum is exact: both priors are w x with normal w."""
    kernel = LinearKernel()
    kernel.variance = 4.0
    start = NetworkPrior(torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False)), weight_var=1.0)
    method = WassersteinMatching(
        num_iterations=30,
        learning_rate=0.1,
        critic_steps=300,
        critic_learning_rate=0.08,
        critic_width=16,
        critic_pool=512,
    )
    X = torch.tensor([[1.0]], dtype=torch.float64)
    state = torch.random.get_rng_state()
    matched = match_functional_prior(
        start, GaussianProcessPrior(kernel), lambda generator: X, method=method
    )
    assert torch.equal(state, torch.random.get_rng_state())
    found = math.log(matched.variances.weight_var["0"].item() / 4.0)
    assert abs(found) < 0.5  # from 1.4
    assert not any(p.requires_grad and p.grad is not None for p in matched.parameters())
