"""Every posterior inside every other, against samples drawn without any of them.

Leaves (a Gaussian, a Student t, bars, a mixture of Gaussians, draws) of two batch elements, three
points and two outputs, seen through transforms and averaged with another kind, to any order up to
a depth of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor
from torch.distributions.transforms import AffineTransform, SigmoidTransform, Transform

from bayes.processes.student_t import StudentTPosterior
from pfn import BarDistribution, BarPosterior
from priors.posteriors.draws import EmpiricalPosterior
from priors.posteriors.gaussian import GaussianPosterior
from priors.posteriors.gaussian_mixture import GaussianMixturePosterior
from priors.posteriors.linear_pool import MixturePosterior
from priors.posteriors.protocol import PredictivePosterior
from priors.posteriors.transformed import TransformedPosterior

SHAPE = (2, 3, 2)
SIZE = 10_000
DF, INDEX = 12.0, 12.0


@dataclass
class Case:
    """A posterior and a sampler of its marginals, `[size, *SHAPE]`, that does not use it."""

    posterior: PredictivePosterior
    draw: Callable[[int, torch.Generator], Tensor]


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def normals(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)


def uniforms(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, *SHAPE, generator=generator, dtype=torch.float64)


def multitask() -> tuple[MultitaskMultivariateNormal, Tensor, Tensor]:
    """Correlated over points, with means and standard deviations of the marginals."""
    mean, root = numbers(*SHAPE, seed=0), numbers(2, 2, 3, 3, seed=1)
    covariance = root @ root.mT + 0.3 * torch.eye(3, dtype=torch.float64)
    parts = [MultivariateNormal(mean[..., k], covariance[:, k]) for k in range(2)]
    variance = covariance.diagonal(dim1=-2, dim2=-1).mT
    return MultitaskMultivariateNormal.from_independent_mvns(parts), mean, variance.sqrt()


def gaussian() -> Case:
    joint, mean, std = multitask()
    return Case(GaussianPosterior(joint), lambda n, g: mean + std * normals(n, g))


def student_t() -> Case:
    joint, mean, std = multitask()

    def draw(n: int, g: torch.Generator) -> Tensor:
        chi = torch.stack([normals(n, g) for _ in range(int(DF))]).square().sum(0)
        return mean + std * normals(n, g) * (DF / chi).sqrt()

    return Case(StudentTPosterior(joint, DF), draw)


def mixture_of_gaussians() -> Case:
    means, stds = 2 * numbers(5, *SHAPE, seed=2), 0.2 + numbers(5, 1, 1, 2, seed=3).abs()
    log_weights = numbers(5, seed=4)

    def draw(n: int, g: torch.Generator) -> Tensor:
        which = chosen(log_weights, n, g)[None]
        mean, std = (
            part.expand(5, *SHAPE)[:, None].expand(5, n, *SHAPE).gather(0, which)[0]
            for part in (means, stds)
        )
        return mean + std * normals(n, g)

    return Case(GaussianMixturePosterior(means, stds.square(), log_weights), draw)


def draws() -> Case:
    values, log_weights = numbers(7, *SHAPE, seed=5), numbers(7, seed=6)

    def draw(n: int, g: torch.Generator) -> Tensor:
        which = chosen(log_weights, n, g)[None]
        return values[:, None].expand(7, n, *SHAPE).gather(0, which)[0]

    return Case(EmpiricalPosterior(values, log_weights), draw)


def bars() -> Case:
    nodes = torch.tensor([-2.0, -1.0, 0.5, 1.0, 2.5], dtype=torch.float64)
    scale, logits = 0.8, numbers(*SHAPE, 5, seed=7)

    def draw(n: int, g: torch.Generator) -> Tensor:
        """A node, one of the two legs of its hat function, and a place on the leg."""
        u = uniforms(n, g).movedim(0, -1).contiguous()
        node = torch.searchsorted(logits.softmax(-1).cumsum(-1), u).clamp(max=4).movedim(-1, 0)
        tail, widths = nodes.new_tensor([torch.inf]), nodes.diff()
        lower, upper = torch.cat([tail, widths])[node], torch.cat([widths, tail])[node]
        areas = [torch.where(leg.isinf(), scale / INDEX, leg / 2) for leg in (lower, upper)]
        down = uniforms(n, g) < areas[0] / (areas[0] + areas[1])
        leg, u = torch.where(down, lower, upper), uniforms(n, g)
        lomax = scale * (u ** (-1 / INDEX) - 1)
        away = torch.where(leg.isinf(), lomax, leg * (1 - u.sqrt()))
        return nodes[node] + torch.where(down, -away, away)

    made = BarDistribution(nodes, tail_scale=scale, tail_index=INDEX)
    return Case(BarPosterior(made, logits), draw)


def chosen(log_weights: Tensor, n: int, g: torch.Generator) -> Tensor:
    below = log_weights.softmax(0).cumsum(0)
    return torch.searchsorted(below, uniforms(n, g)).clamp(max=len(below) - 1)


def seen_through(case: Case, transform: Transform) -> Case:
    return Case(
        TransformedPosterior(case.posterior, transform), lambda n, g: transform(case.draw(n, g))
    )


def pooled(case: Case, other: Case) -> Case:
    log_weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()

    def draw(n: int, g: torch.Generator) -> Tensor:
        first = uniforms(n, g) < 0.3
        return torch.where(first, case.draw(n, g), other.draw(n, g))

    return Case(MixturePosterior([case.posterior, other.posterior], log_weights), draw)


SCALE = torch.tensor([[-0.5, -2.0]], dtype=torch.float64)
LEAVES = {
    "gaussian": gaussian,
    "t": student_t,
    "bars": bars,
    "mixture": mixture_of_gaussians,
    "draws": draws,
}
WRAPPERS: dict[str, Callable[[Case], Case]] = {
    "affine": lambda case: seen_through(case, AffineTransform(1.0, SCALE)),
    "sigmoid": lambda case: seen_through(case, SigmoidTransform()),
    "with mixture": lambda case: pooled(case, mixture_of_gaussians()),
    "with draws": lambda case: pooled(case, draws()),
}
NESTINGS = [
    (leaf, *wrappers)
    for leaf in LEAVES
    for depth in range(3)
    for wrappers in product(WRAPPERS, repeat=depth)
]


def make(nesting: tuple[str, ...]) -> Case:
    case = LEAVES[nesting[0]]()
    for wrapper in nesting[1:]:
        case = WRAPPERS[wrapper](case)
    return case


IN_TWO = ("bars",)  # the leaves that are seen at depth two among the fast tests


@pytest.mark.fast_for(
    "gaussian",
    "gaussian in sigmoid",
    "t",
    "t in affine",
    "t in with mixture",
    "bars",
    "bars in sigmoid",
    "bars in with draws",
    "bars in affine in with mixture",
    "bars in sigmoid in with draws",
    "bars in with mixture in sigmoid",
    "bars in with mixture in with mixture",
    "bars in with draws in affine",
    "bars in sigmoid in sigmoid",
    "mixture",
    "mixture in sigmoid",
    "mixture in with mixture",
    "draws",
    "draws in affine",
    "draws in with draws",
)
@pytest.mark.parametrize(
    "nesting",
    [
        nesting
        if len(nesting) < 3 or nesting[0] in IN_TWO
        else pytest.param(nesting, marks=pytest.mark.slow)
        for nesting in NESTINGS
    ],
    ids=" in ".join,
)
def test_answers_of_a_nesting(nesting):
    case = make(nesting)
    posterior, generator = case.posterior, torch.Generator().manual_seed(8)
    samples = case.draw(SIZE, generator)
    assert posterior.shape == SHAPE
    assert posterior.batch_shape == (2,)

    base = torch.randn(SIZE, *posterior.base_sample_shape, generator=generator).double()
    own = posterior.rsample_from_base_samples(torch.Size([SIZE]), base)
    assert posterior.rsample(torch.Size([3, 2])).shape == (3, 2, *SHAPE)
    mean, variance = posterior.mean, posterior.variance
    for some in (samples, own):
        assert ((mean - some.mean(0)).abs() < 5 * some.std(0) / SIZE**0.5).all()
        squares = (some - mean).square()
        assert ((variance - squares.mean(0)).abs() < 5 * squares.std(0) / SIZE**0.5).all()

    p = torch.tensor([[0.03, 0.3], [0.71, 0.98]], dtype=torch.float64)
    quantiles = posterior.quantile(p)
    assert quantiles.shape == (2, 2, *SHAPE)
    one = posterior.quantile(p[1, 0])
    assert one.shape == SHAPE
    torch.testing.assert_close(one, quantiles[1, 0], rtol=1e-12, atol=1e-12)
    slack = 1e-9 * quantiles.abs()  # a step of the cdf is found to rounding
    at, error = p[..., None, None, None], 5 * (p * (1 - p) / SIZE).sqrt()[..., None, None, None]
    several = samples[:, None, None]
    assert (share(several < quantiles - slack) < at + error).all()
    assert (share(several <= quantiles + slack) > at - error).all()

    Y = quantiles + 0.01
    below = posterior.cdf(Y)
    assert below.shape == Y.shape
    assert ((below - share(several <= Y)).abs() < 5 * 0.5 / SIZE**0.5).all()
    torch.testing.assert_close(posterior.cdf(Y[0, 1]), below[0, 1])

    if not posterior.has_density:
        with pytest.raises(NotImplementedError, match="no density"):
            posterior.log_prob(Y)
        return
    density = posterior.log_prob(Y).exp()
    assert density.shape == Y.shape
    torch.testing.assert_close(posterior.log_prob(Y[0, 1]).exp(), density[0, 1])
    step = 1e-6
    slope = (posterior.cdf(Y + step) - posterior.cdf(Y - step)) / (2 * step)
    torch.testing.assert_close(density, slope, rtol=1e-5, atol=1e-6)


def share(truth: Tensor) -> Tensor:
    return truth.double().mean(0)
