"""Contract tests for ways to draw from a posterior, ours and those of others.

Subclass in a test module and give the method; pytest (the `dev` extra) collects the rest:

    class TestMySampler(InferenceMethodContract):
        def make_method(self, seed):
            return MySampler(num_samples=500, seed=seed)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes.inference import Draws, InferenceMethod

__all__ = ["InferenceMethodContract"]


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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._first = None

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
        return self.make_method(seed).run(model, torch.zeros(1, dtype=dtype))

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

    def test_a_seed_determines_the_draws(self) -> None:
        """And another one changes them."""
        first = self.first.samples["theta"]
        assert torch.equal(first, self.draws(0).samples["theta"])
        assert not torch.equal(first, self.draws(1).samples["theta"])

    def test_global_state_is_left_alone(self) -> None:
        """Neither the random numbers nor the parameters of the user are touched."""
        with pyro.get_param_store().scope():
            mine = pyro.param("theta", torch.tensor([7.0]))
            before = torch.random.get_rng_state()
            self.draws()
            assert torch.equal(before, torch.random.get_rng_state())
            assert list(pyro.get_param_store().keys()) == ["theta"]
            assert torch.equal(pyro.param("theta"), mine)
