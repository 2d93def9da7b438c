"""Every process on small, awkward problems: no NaN, no negative variance."""

import itertools
import warnings
from functools import partial

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayes import (
    DeepKernelMachine,
    GaussianProcess,
    GaussianProcessClassifier,
    GradientDescentEnsemble,
    HeteroscedasticGaussianProcess,
    ScaleMixtureClassifier,
    ScaleMixtureProcess,
    StudentTProcess,
    VariationalGaussianProcess,
    WeightSpaceProcess,
)
from priors import HalfCauchyVariance
from priors.kernels.network import NNGPKernel

EXACT = {
    "exact": GaussianProcess,
    "t": StudentTProcess,
    "scale": partial(ScaleMixtureProcess, scale=HalfCauchyVariance(1.0)),
    "scale with noise": partial(
        ScaleMixtureProcess, scale=HalfCauchyVariance(1.0), scale_noise=True
    ),
    "input noise": partial(HeteroscedasticGaussianProcess, num_noise_points=4),
}

NETWORKS = {
    "trained": GradientDescentEnsemble,
    "stopped": partial(GradientDescentEnsemble, time=2.0, ridge=0.1),
}

LIKELIHOODS = ["gaussian", "student_t", "poisson", "ordinal", "heteroscedastic", "categorical"]
CLASSES = ["softmax", "probit", "dirichlet", "mixture"]
NO_WIDTH = [("scale with noise", "one row"), ("scale with noise", "constant")]
AWKWARD = ["plain", "one row", "constant", "near duplicates", "scales", "tiny", "huge"]


def rows(awkward, seed, n=8):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(1 if awkward == "one row" else n, 2, generator=generator, dtype=torch.float64)
    if awkward == "near duplicates":
        X[1::2] = X[::2] + 1e-9
    if awkward == "scales":
        X = X * torch.tensor([1e-2, 1e2], dtype=torch.float64)
    noise = torch.randn(len(X), 1, generator=generator, dtype=torch.float64)
    Y = X[:, :1].sin() + 0.1 * noise
    if awkward == "constant":
        Y = torch.ones_like(Y)
    return X, Y * {"tiny": 1e-8, "huge": 1e8}.get(awkward, 1.0)


def check(posterior, Y, infinite):
    assert posterior.mean.isfinite().all()
    assert (posterior.variance >= 0).all()
    assert (~posterior.variance.isfinite()).nonzero()[:, 0].tolist() == infinite
    assert posterior.log_prob(Y).isfinite().all()


def predictions(kind, awkward, seed, kernel):
    """Predictions of outcomes at and off the rows, and outcomes there."""
    X, Y = rows(awkward, seed)
    queries = torch.cat([X, X + 0.3, X * 100])
    if kind in LIKELIHOODS:
        if kind == "poisson":
            Y = (Y / Y.abs().max()).exp().mul(3).round()
        elif kind in ("ordinal", "categorical"):
            Y = (Y > 0).double()
        model = VariationalGaussianProcess(X, Y, kernel, likelihood=kind, num_inducing=5)
    elif kind in EXACT:
        model = EXACT[kind](X, Y, kernel)
    elif kind in NETWORKS:
        network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        model = NETWORKS[kind](X, Y, network)
    elif kind == "machine":
        model = DeepKernelMachine(X, Y, layers=2, num_inducing=5)
    elif kind == "features":
        network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        model = WeightSpaceProcess(X, Y, NNGPKernel(network), num_features=20)
    else:
        Y = (Y > 0).double()
        model = (
            ScaleMixtureClassifier(X, Y, kernel, num_inducing=4)
            if kind == "mixture"
            else GaussianProcessClassifier(X, Y, kernel, likelihood=kind, num_inducing=5)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "features":
            model.fit()
        else:
            model.fit(max_iter=2, progress=False)
    if (kind, awkward) in NO_WIDTH:
        with pytest.warns(UserWarning, match="predictions have no width"):
            model.posterior(X)
    return model.posterior(queries, observation_noise=True), Y.repeat(3, 1)


# A half-Cauchy scale has a tail of s^(-3/2), and one row takes s^(-1/2) from it: s has no posterior
# mean, and what the row does not determine has no finite variance.
INFINITE = {("scale", "one row"): [1, 2], ("scale with noise", "one row"): [0, 1, 2]}
OTHERS = ["features", "machine", *NETWORKS]
FAST = ["gaussian", "student_t", "poisson", "probit", *OTHERS, *EXACT]


def check_problem(kind, awkward, seed, kernel):
    posterior, Y = predictions(kind, awkward, seed, kernel)
    check(posterior, Y, INFINITE.get((kind, awkward), []))


def check_one_of_a_thousand(kind, awkward, seed, smooth):
    kernel = ScaleKernel(RBFKernel() if smooth else MaternKernel(nu=0.5))
    check_problem(kind, awkward, seed, kernel)


@pytest.mark.parametrize(("kind", "awkward"), list(itertools.product(FAST, AWKWARD)))
def test_awkward_rows(kind, awkward):
    check_problem(kind, awkward, 0, ScaleKernel(RBFKernel()))


@pytest.mark.parametrize(
    ("kind", "awkward", "seed", "smooth"),
    [("gaussian", "near duplicates", 345, False)],  # inducing points that all but coincide
)
def test_problems_that_were_found(kind, awkward, seed, smooth):
    check_one_of_a_thousand(kind, awkward, seed, smooth)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(
    kind=st.sampled_from([*LIKELIHOODS, *CLASSES, *EXACT, *OTHERS]),
    awkward=st.sampled_from(AWKWARD),
    seed=st.integers(0, 2**20),
    smooth=st.booleans(),
)
def test_a_thousand_small_problems(kind, awkward, seed, smooth):
    check_one_of_a_thousand(kind, awkward, seed, smooth)
