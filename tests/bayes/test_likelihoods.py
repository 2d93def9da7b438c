"""Likelihoods against other libraries' densities, quadrature, and conjugate posteriors."""

import math

import pyro
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions.transforms import ExpTransform

from bayes import BayesianNetwork, MeanField
from bayes.inference import ChEES
from bayes.inference.pyro_density import density_of
from bayes.likelihoods import (
    Categorical,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    Ordinal,
    Poisson,
    StudentT,
    from_description,
    named,
)
from bayes.network_density import NetworkPosterior
from priors.networks.finite import NetworkPrior

FAST = MeanField(num_steps=20, num_draws=12, progress=False)
NAMES = ["gaussian", "heteroscedastic", "student_t", "categorical", "ordinal", "poisson"]


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outcomes(name, n=7, m=2, dtype=torch.float64):
    """Outcomes of a likelihood, and how many outputs its network has."""
    generator = torch.Generator().manual_seed(1)
    if name in ("categorical", "ordinal"):
        Y = torch.arange(n).remainder(3)[:, None]
        return Y.to(dtype), 3 if name == "categorical" else 1
    if name == "poisson":
        return torch.randint(6, (n, m), generator=generator).to(dtype), m
    Y = torch.randn(n, m, generator=generator).to(dtype)
    return Y, 2 * m if name == "heteroscedastic" else m


def case(name, chains=4, dtype=torch.float64):
    """A likelihood, outcomes, network outputs of some chains and generic parameters."""
    Y, k = outcomes(name, dtype=dtype)
    likelihood = named(name).fitted_to(Y, k)
    f = normals(chains, len(Y), k, seed=2, dtype=dtype)
    parameters = {
        site: 0.3 * normals(chains, len(prior), seed=3, dtype=dtype) - 0.2
        for site, prior in likelihood.priors(Y.shape[-1]).items()
    }
    return likelihood, Y, f, parameters


def by_scipy(name, likelihood, Y, f, parameters):
    """Log likelihoods `[chains, n, m]` by SciPy."""
    y, f, own = Y.numpy(), f.numpy(), {k: v[:, None].numpy() for k, v in parameters.items()}
    m = y.shape[-1]
    if name == "gaussian":
        return stats.norm.logpdf(y, f, (own["log_noise_var"] / 2).__array__().clip(-50) * 0 + 1) * 0 + (
            stats.norm.logpdf(y, f, torch.tensor(own["log_noise_var"] / 2).exp().numpy())
        )
    if name == "heteroscedastic":
        std = torch.tensor((f[..., m:] - 2) / 2).exp().numpy()
        return stats.norm.logpdf(y, f[..., :m], std)
    if name == "student_t":
        scale, df = (torch.tensor(own[k]).exp().numpy() for k in ("log_scale", "log_excess_df"))
        return stats.t.logpdf(y, 1 + df, f, scale)
    if name == "poisson":
        return stats.poisson.logpmf(y, torch.tensor(f).exp().numpy() * y.mean(0))
    if name == "categorical":
        law = torch.distributions.Categorical(logits=torch.tensor(f))
        return law.log_prob(Y[:, 0]).unsqueeze(-1).numpy()
    first, second = own["raw_cuts"][..., :1], own["raw_cuts"][..., 1:]
    second = first + torch.tensor(second).exp().numpy()
    low, high = stats.logistic.cdf(first - f), stats.logistic.cdf(second - f)
    shares = torch.tensor([low, high - low, 1 - high]) if False else [low, high - low, 1 - high]
    chosen = sum((y == c) * share for c, share in enumerate(shares))
    return torch.tensor(chosen).log().numpy()
