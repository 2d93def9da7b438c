"""Heavy-tailed priors of a variance against SciPy, dense integration and their own draws."""

import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily

from priors import BetaPrime, BurrXII, HalfCauchyVariance, ScaleMixturePrior

LAWS = {
    "Burr": (BurrXII(1.7, 0.9, 2.5), stats.burr12(1.7, 0.9, scale=2.5)),
    "Burr, light": (BurrXII(3.0, 2.0, 0.1), stats.burr12(3.0, 2.0, scale=0.1)),
    "beta prime": (BetaPrime(0.6, 2.3, 4.0), stats.betaprime(0.6, 2.3, scale=4.0)),
    "beta prime, light": (BetaPrime(5.0, 7.0), stats.betaprime(5.0, 7.0)),
    "half-Cauchy": (HalfCauchyVariance(1.5), stats.betaprime(0.5, 0.5, scale=1.5**2)),
}
P = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)


def wide(law):
    """With parameters in float64."""
    return type(law)(*(getattr(law, name).double() for name in law.arg_constraints))


@pytest.mark.parametrize("name", LAWS)
def test_density_distribution_and_quantiles_against_scipy(name):
    law, truth = wide(LAWS[name][0]), LAWS[name][1]
    x = torch.as_tensor(truth.ppf(P.numpy()))
    assert torch.allclose(law.log_prob(x), torch.as_tensor(truth.logpdf(x.numpy())), rtol=1e-6)
    assert torch.allclose(law.cdf(x), P, rtol=1e-5)
    assert torch.allclose(law.icdf(law.cdf(x)), x, rtol=1e-9)
    exists = {"mean": truth.mean(), "variance": truth.var()}
    for moment, value in exists.items():
        found = getattr(law, moment).item()
        if math.isfinite(value):
            assert found == pytest.approx(value, rel=1e-5)
        else:
            assert not math.isfinite(found)


@pytest.mark.parametrize("name", LAWS)
def test_density_integrates_to_one(name):
    law = wide(LAWS[name][0])
    log_x = torch.linspace(-120, 120, 200_001, dtype=torch.float64)
    density = (law.log_prob(log_x.exp()) + log_x).exp()
    assert torch.trapezoid(density, log_x).item() == pytest.approx(1, abs=1e-8)
    assert law.log_prob(torch.tensor([1e-300, 1e300], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("name", LAWS)
def test_draws(name):
    law, truth = LAWS[name]
    torch.manual_seed(0)
    draws = law.expand(torch.Size([2])).sample(torch.Size([4000]))
    assert draws.shape == (4000, 2)
    assert draws.dtype == torch.float32
    for column in draws.double().T.numpy():
        assert stats.kstest(column, truth.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [BurrXII, BetaPrime, HalfCauchyVariance])
def test_gradients_and_batches(kind):
    names = list(kind.arg_constraints)
    parameters = [torch.tensor([0.8, 2.0], dtype=torch.float64) + k for k in range(len(names))]
    parameters = [parameter.requires_grad_() for parameter in parameters]
    x = torch.tensor([[0.2, 3.0], [1.0, 50.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *p: kind(*p).log_prob(x), (x, *parameters))
    held = [parameter.detach() for parameter in parameters]
    assert torch.autograd.gradcheck(lambda x: kind(*held).cdf(x), x)
    slope = torch.autograd.grad(kind(*held).cdf(x).sum(), x)[0]
    assert torch.allclose(slope, kind(*held).log_prob(x).exp())
    draws = kind(*parameters).rsample(torch.Size([3]))
    assert draws.shape == (3, 2)
    for gradient in torch.autograd.grad(draws.sum(), parameters):
        assert gradient.isfinite().all()
    one = kind(*(parameter[0] for parameter in held))
    assert torch.equal(one.log_prob(x[:, 0]), kind(*held).log_prob(x)[:, 0])
    with pytest.raises(ValueError, match="scale"):
        kind(*(-parameter for parameter in held[:1]), *held[1:]) if len(names) == 1 else kind(
            *held[:-1], -held[-1]
        )
    with pytest.raises(ValueError, match="support"):
        one.log_prob(torch.tensor(-1.0))


def test_mixtures_of_them_are_priors_of_a_scale_mixture():
    parts = BurrXII(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0]), torch.tensor([1.0, 9.0]))
    mixture = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), parts)
    prior = ScaleMixturePrior(RBFKernel(), mixture)
    f, variance = prior.sample_with_scale(
        torch.zeros(1, 1), torch.Size([5000]), generator=torch.Generator().manual_seed(0)
    )
    assert f.shape == (5000, 1, 1)
    truth = lambda x: (  # noqa: E731
        0.3 * stats.burr12(1.0, 2.0).cdf(x) + 0.7 * stats.burr12(4.0, 3.0, scale=9.0).cdf(x)
    )
    assert stats.kstest(variance.numpy().astype(np.float64), truth).pvalue > 1e-3
