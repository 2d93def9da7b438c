"""Contract tests for ways to draw from a posterior, ours and those of others.

Subclass in a test module and give the method; pytest (the `dev` extra) collects the rest:

    class TestMySampler(InferenceMethodContract):
        def make_method(self, seed):
            return MySampler(num_samples=500, seed=seed)

A method of many chains that takes constrained sites, log densities and checkpoints subclasses
`SamplerContract` as well.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes.inference import Draws, InferenceMethod, LogDensity

__all__ = ["InferenceMethodContract", "SamplerContract", "moments_in_errors"]


class InferenceMethodContract(ABC):
    """Contract of an inference method, on a conjugate Gaussian model with known posterior.

    y = X theta + noise with theta ~ N(0, 1) and orthogonal columns of X, so that methods of
    independent parameters can be exact as well.

    Attributes:
        effective: Share of the draws that counts as independent, at least.
        bias: Systematic error of means that is allowed, in posterior standard deviations.
        spread: Factor by which standard deviations may be off.
    """

    effective = 0.1
    bias = 0.1
    spread = 1.25

    @abstractmethod
    def make_method(self, seed: int) -> InferenceMethod:
        """The method with settings that take seconds."""

    def problem(self, dtype: torch.dtype) -> tuple[Callable[[], None], Tensor, Tensor]:
        """The model, and mean and standard deviation of its posterior, `[3]` each."""
        generator = torch.Generator().manual_seed(0)
        raw = torch.randn(12, 3, generator=generator, dtype=torch.float64)
        X = torch.linalg.qr(raw)[0] * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        y = torch.randn(12, generator=generator, dtype=torch.float64)
        precision = 1 + X.square().sum(0)
        mean, std = X.mT @ y / precision, precision**-0.5
        X, y = X.to(dtype), y.to(dtype)

        def model() -> None:
            theta = pyro.sample("theta", dist.Normal(X.new_zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(theta @ X.mT, 1.0).to_event(1), obs=y)

        return model, mean, std

    _first: Draws | None = None
    _second: Draws | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._first = cls._second = None

    @property
    def first(self) -> Draws:
        """Those of seed 0, which several tests look at: drawn once for a class."""
        if self._first is None:
            type(self)._first = self.draws()
        assert self._first is not None
        return self._first

    def draws(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Draws:
        """Draws from the posterior of the problem."""
        model, _, _ = self.problem(dtype)
        return _quietly(self.make_method(seed), model, torch.zeros(1, dtype=dtype))

    def test_the_posterior_is_the_conjugate_one(self) -> None:
        """Means within five standard errors and the bias, deviations within the factor."""
        theta = self.first.samples["theta"].double().flatten(0, 1)
        _, mean, std = self.problem(torch.float64)
        error = std / (self.effective * len(theta)) ** 0.5
        assert ((theta.mean(0) - mean).abs() < 5 * error + self.bias * std).all()
        ratio = theta.std(0) / std
        assert (ratio < self.spread).all()
        assert (ratio > 1 / self.spread).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_shapes_and_dtype(self, dtype: torch.dtype) -> None:
        """`[chains, draws, *event]`, in the dtype asked for; statistics by draw."""
        found = self.first if dtype == torch.float64 else self.draws(dtype=dtype)
        theta = found.samples["theta"]
        assert theta.dim() == 3
        assert theta.shape[-1] == 3
        assert theta.dtype == dtype
        assert all(value.shape == theta.shape[:2] for value in found.stats.values())

    def test_global_state_is_left_alone(self) -> None:
        """Neither the random numbers nor the parameters of the user are touched."""
        with pyro.get_param_store().scope():
            mine = pyro.param("theta", torch.tensor([7.0]))
            before = torch.random.get_rng_state()
            type(self)._second = self.draws(1)
            assert torch.equal(before, torch.random.get_rng_state())
            assert list(pyro.get_param_store().keys()) == ["theta"]
            assert torch.equal(pyro.param("theta"), mine)

    def test_a_seed_determines_the_draws(self) -> None:
        """And another one changes them."""
        first = self.first.samples["theta"]
        assert torch.equal(first, self.draws(0).samples["theta"])
        other = self._second or self.draws(1)
        assert not torch.equal(first, other.samples["theta"])


class SamplerContract(ABC):
    """Of Markov chains that take any density over R^d and can be interrupted.

    The method is a frozen dataclass with `num_samples`, `num_warmup` and `checkpoint`.

    Attributes:
        errors: Monte Carlo standard errors that means and mean squares may be off.
        discretisation: Error beside them that is allowed, in posterior standard deviations and
            variances; 0 for exact methods.
        decades: Standard deviations of coordinates are from 10^-decades to 10^decades.
    """

    errors = 4.0
    discretisation = 0.0
    decades = 1.0

    @abstractmethod
    def make_method(self, seed: int) -> Any:
        """The method with settings that take a second."""

    def test_a_correlated_gaussian(self) -> None:
        """Means and covariances."""
        scale = torch.logspace(-self.decades, self.decades, 4, dtype=torch.float64)
        correlation = 0.5 * torch.eye(4, dtype=torch.float64) + 0.5
        covariance = scale.unsqueeze(-1) * correlation * scale
        mean = torch.tensor([1.0, -1.0, 2.0, 30.0], dtype=torch.float64)
        root = torch.linalg.cholesky(covariance)
        precision = torch.cholesky_inverse(root)

        def log_prob(x: Tensor) -> Tensor:
            return -0.5 * ((x - mean) @ precision * (x - mean)).sum(-1)

        draws = _quietly(self.make_method(0), LogDensity(log_prob, 4), mean)
        z = torch.linalg.solve_triangular(root, (draws.samples["x"] - mean).mT, upper=False).mT
        first, second = moments_in_errors(z, 0.0, 1.0, bias=self.discretisation)
        assert float(first.abs().max()) < self.errors
        assert float(second.abs().max()) < self.errors
        product = z[..., :1] * z[..., 1:]
        cross, _ = moments_in_errors(product, 0.0, 1.0, bias=self.discretisation)
        assert float(cross.abs().max()) < self.errors

    def test_constrained_sites(self) -> None:
        """Positive numbers, intervals, simplices and vectors in plates have their own priors."""
        like = torch.zeros(3, dtype=torch.float64)

        def model() -> None:
            pyro.sample("positive", dist.Gamma(like.new_tensor(3.0), like.new_tensor(2.0)))
            pyro.sample("unit", dist.Beta(like.new_tensor(2.0), like.new_tensor(3.0)))
            pyro.sample("simplex", dist.Dirichlet(like.new_tensor([2.0, 3.0, 4.0])))
            with pyro.plate("rows", 3):
                pyro.sample("bounded", dist.Uniform(like - 1, like + 3))

        draws = _quietly(self.make_method(0), model, like).samples
        assert draws["simplex"].shape[2:] == draws["bounded"].shape[2:] == (3,)
        truths = {
            "positive": dist.Gamma(3.0, 2.0),
            "unit": dist.Beta(2.0, 3.0),
            "simplex": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
            "bounded": dist.Uniform(-1.0, 3.0),
        }
        for name, truth in truths.items():
            values = draws[name].reshape(*draws[name].shape[:2], -1)
            mean, variance = (part.double() for part in (truth.mean, truth.variance))
            first, _ = moments_in_errors(values, mean, variance.sqrt(), bias=self.discretisation)
            assert float(first.abs().max()) < self.errors, name

    def test_discrete_sites_are_refused_by_name(self) -> None:
        """There is no gradient to follow."""

        def model() -> None:
            pyro.sample("coin", dist.Bernoulli(torch.tensor(0.5)))

        with pytest.raises(NotImplementedError, match="'coin'"):
            self.make_method(0).run(model, torch.zeros(1))

    def test_an_interrupted_run_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        """Twice as many draws are half of them, saved, loaded, and as many again."""
        density = LogDensity(lambda x: -0.5 * x.square().sum(-1) - (2 * x[:, 0]).cosh(), 3)
        like = torch.zeros(1, dtype=torch.float64)
        method = dataclasses.replace(self.make_method(0), num_samples=10, num_warmup=20)
        once = _quietly(method, density, like)
        path = tmp_path / "run.safetensors"
        half = dataclasses.replace(method, num_samples=5, checkpoint=path)
        _quietly(half, density, like)
        rest = _quietly(dataclasses.replace(half, num_samples=10), density, like)
        assert torch.equal(once.samples["x"], rest.samples["x"])
        for name, value in once.stats.items():
            assert torch.equal(value, rest.stats[name]), name
        with pytest.raises(ValueError, match="seed"):
            dataclasses.replace(half, seed=1).run(density, like)


def moments_in_errors(
    draws: Tensor, mean: Tensor | float, std: Tensor | float, *, bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """How far mean and variance of draws are from the truth, in Monte Carlo standard errors.

    The errors are those of the means of many chains that began apart.

    Args:
        draws: `[chains, draws, k]`, of at least 16 chains.
        mean: True means, broadcasting with `[k]`.
        std: True standard deviations.
        bias: Share of a standard deviation, or of a variance, that is forgiven.

    Returns:
        Of means and of variances about the true mean, `[k]` each.
    """
    z = ((draws - mean) / std).double()
    found = []
    for values, truth in ((z, 0.0), (z.square(), 1.0)):
        each = values.mean(1)
        error = each.std(0) / len(each) ** 0.5
        off = each.mean(0) - truth
        found.append(off.sign() * (off.abs() - bias).clamp_min(0) / error)
    return found[0], found[1]


def _quietly(method: InferenceMethod, model: Any, like: Tensor) -> Draws:
    """Run a method; so few draws need not pass for converged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This run of", UserWarning)
        return method.run(model, like)
