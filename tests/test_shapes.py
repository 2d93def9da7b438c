"""Shapes that annotations say are checked in the tests: a wrong one fails, wherever it occurs."""

import pytest
import torch
from jaxtyping import TypeCheckError

from pfn.architecture import ArchitectureConfig, Rows, Targets, Transformer
from pfn.distribution import BarDistribution
from priors.gaussian.activations import Erf
from priors.gaussian.quadrature import gaussian_mean
from priors.gaussian.quadrature.rules import panels


class Reduced(Erf):
    """Forgets the pairs in its closed form."""

    def closed_dual(self, other, q1, q2, c):
        return super().closed_dual(other, q1, q2, c).sum()


def test_a_dual_that_loses_its_pairs():
    q = torch.ones(3, 1)
    with pytest.raises(TypeCheckError, match="return value"):
        Reduced().dual(Reduced(), q, q.mT, q * q.mT)


def test_variances_that_do_not_broadcast():
    with pytest.raises(TypeCheckError, match="q2"):
        Erf().dual(Erf(), torch.ones(3, 1), torch.ones(2, 4), torch.zeros(()))


def test_a_mean_of_integers_and_panels_of_a_matrix():
    with pytest.raises(TypeCheckError, match="'q'"):
        gaussian_mean(torch.tanh, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeCheckError, match="ends"):
        panels(torch.zeros(4, 1))


def test_logits_and_values_of_different_batches():
    bars = BarDistribution(torch.linspace(-1, 1, 5), tail_scale=1.0)
    with pytest.raises(TypeCheckError, match="'y'"):
        bars.log_prob(torch.zeros(3, 5), torch.zeros(2))


def test_rows_whose_parts_do_not_fit():
    X = torch.zeros(2, 3, 1)
    with pytest.raises(TypeCheckError, match="missing"):
        Rows(X, missing=torch.zeros(2, 3))
    with pytest.raises(TypeCheckError, match="noise"):
        Rows(X, noise=torch.zeros(2, 1))


def test_a_layer_that_returns_fewer_tokens(monkeypatch):
    """As attention with a broadcast row would, silently."""
    network = Transformer(ArchitectureConfig(max_features=1, embedding=8, heads=2, layers=1))
    targets = Targets(torch.zeros(2, 3), torch.zeros(2, 2))
    context = network.encode(Rows(torch.zeros(2, 3, 1)), targets)
    norm = network.norm.forward
    monkeypatch.setattr(network.norm, "forward", lambda tokens: norm(tokens)[0])
    with pytest.raises(TypeCheckError, match="_read"):
        network.decode(context, Rows(torch.zeros(2, 4, 1)))
