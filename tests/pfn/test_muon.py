"""Muon by batches of matrices: the update of torch's, and what it is meant to be."""

import pytest
import torch
from torch import nn

from pfn.muon import Muon, orthogonalised

SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5), (6, 4)]


def matrices(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def steps(make, parameters, count=4):
    optimiser = make(parameters)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
    return parameters


def test_steps_are_those_of_torch():
    """Which computes them in bfloat16, of three digits."""
    own = steps(lambda p: Muon(p, lr=0.02, weight_decay=0.1), matrices())
    theirs = steps(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1), matrices())
    for a, b, start in zip(own, theirs, matrices(), strict=True):
        moved = (b - start).norm()
        assert moved > 0.05
        assert (a - b).norm() < 0.02 * moved


def test_singular_vectors_stay_and_singular_values_come_near_one():
    matrix = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    for given in (matrix, matrix.mT):
        found = orthogonalised(given[None])[0]
        assert found.shape == given.shape
        values = U.mT @ (found if given is matrix else found.mT) @ V.mT
        torch.testing.assert_close(values, torch.diag(values.diagonal()), atol=1e-8, rtol=0)
        assert 0.6 < values.diagonal().min() < values.diagonal().max() < 1.3


def test_parameters_without_gradient_stay():
    still, moving = matrices()[:1], matrices()[2:3]
    optimiser = Muon([*still, *moving], lr=0.1)
    moving[0].grad = torch.ones_like(moving[0])
    before = [p.detach().clone() for p in (*still, *moving)]
    optimiser.step()
    assert torch.equal(still[0], before[0])
    assert not torch.equal(moving[0], before[1])


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices, got a parameter of shape"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
