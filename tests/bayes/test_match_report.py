"""Reports of matches: distances beside the sampling floor, where they fail, pictures."""

import matplotlib as mpl
import pytest
import torch
from gpytorch.kernels import LinearKernel, RBFKernel, ScaleKernel

from bayes import match_report
from priors.functions import GaussianProcessPrior
from priors.networks.finite import NetworkPrior

mpl.use("Agg")


def inputs(n=30, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def linear(variance):
    """A linear network of this weight variance, and the same as a process with variance 1."""
    kernel = LinearKernel()
    kernel.variance = 1.0
    prior = NetworkPrior(torch.nn.Linear(2, 1, bias=False), weight_var=2 * variance)
    return prior, GaussianProcessPrior(kernel)


def test_a_perfect_match_is_within_the_floor():
    prior, target = linear(1.0)
    report = match_report(prior, target, inputs(), num_functions=1000)
    assert report.is_within_floor
    assert "cannot be told apart from the target's with this many draws" in repr(report)
    assert report.tail_ratio == pytest.approx(1.0, abs=0.1)
    assert (report.by_input < 2 * report.floor_by_input.max(0).values).all()


def test_a_match_of_twice_the_deviation():
    """All distances are the deviation that is too much: 1 in units of the target's."""
    prior, target = linear(4.0)
    report = match_report(prior, target, lambda generator: inputs(), num_functions=2000)
    assert report.distance == pytest.approx(1.0, abs=0.1)
    assert not report.is_within_floor
    assert "times what two sets" in str(report)
    assert report.tail_ratio == pytest.approx(2.0, rel=0.1)
    X = report.inputs
    assert len(X) == 60
    truth = X.norm(dim=-1) / X.norm(dim=-1).square().mean().sqrt()
    assert ((report.by_input - truth).abs() < 0.1 * truth + 0.06).all()


def test_it_says_where_the_match_fails():
    """A process that is constant away from the mean of the inputs is not a linear network."""
    prior, _ = linear(1.0)
    kernel = ScaleKernel(RBFKernel())
    report = match_report(prior, GaussianProcessPrior(kernel), inputs(), num_functions=500)
    worst = int(report.by_input.argmax())
    assert f"row {worst}" in str(report)
    figure = report.plot()
    assert len(figure.axes) == 3
    assert [len(ax.lines) for ax in figure.axes] == [8, 8, 2]
    assert report.network_draws.shape == report.target_draws.shape == (8, len(report.line))


def test_what_does_not_sample_functions_is_refused():
    with pytest.raises(TypeError, match="prior over functions"):
        match_report(linear(1.0)[0], RBFKernel(), inputs())
