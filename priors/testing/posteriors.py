"""What every posterior must satisfy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from priors.posteriors.protocol import PredictivePosterior
from priors.testing.dtypes import both_dtypes

__all__ = ["PosteriorContract"]


class PosteriorContract(ABC):
    """What every posterior with a density must satisfy.

    Attributes:
        has_density: Whether `log_prob` exists; a set of draws has none.
    """

    has_density = True

    @abstractmethod
    def make_posterior(self, dtype: torch.dtype) -> PredictivePosterior:
        """A posterior `[..., n, m]` of that dtype, the same at every call."""

    def probabilities(self, dtype: torch.dtype) -> Tensor:
        """Probabilities at which quantiles are tested."""
        return torch.tensor([0.001, 0.05, 0.31, 0.5, 0.77, 0.999], dtype=dtype)

    @both_dtypes
    def test_shapes_and_dtypes(self, dtype: torch.dtype) -> None:
        """Moments, quantiles, densities and samples have the documented shapes."""
        posterior = self.make_posterior(dtype)
        shape = posterior.shape
        quantiles = posterior.quantile(self.probabilities(dtype).reshape(2, 3))
        values = [posterior.mean, posterior.variance, posterior.cdf(quantiles[0, 0])]
        if self.has_density:
            values.append(posterior.log_prob(quantiles[0, 0]))
        for value in values:
            assert value.shape == shape
            assert value.dtype == dtype
        assert quantiles.shape == (2, 3, *shape)
        # values may have dimensions before those of the posterior
        assert posterior.cdf(quantiles).shape == quantiles.shape
        if self.has_density:
            assert posterior.log_prob(quantiles).shape == quantiles.shape
        assert posterior.rsample(torch.Size([4, 2])).shape == (4, 2, *shape)
        assert posterior.rsample().shape == (1, *shape)

    @both_dtypes
    def test_quantile_inverts_cdf(self, dtype: torch.dtype) -> None:
        """cdf(quantile(p)) = p."""
        posterior = self.make_posterior(dtype)
        tolerance = 200 * torch.finfo(dtype).eps
        for p in self.probabilities(dtype):
            assert torch.allclose(
                posterior.cdf(posterior.quantile(p)), p, rtol=tolerance, atol=tolerance
            )

    def test_density_integrates_to_one_and_is_the_derivative_of_the_cdf(self) -> None:
        """Trapezia of exp(log_prob) are the increments of cdf and fill the unit."""
        if not self.has_density:
            pytest.skip("no density")
        posterior = self.make_posterior(torch.float64)
        # Fine where the probability is: twenty steps between any two of 101 quantiles.
        p = torch.special.ndtr(torch.linspace(-3.7, 3.7, 101, dtype=torch.float64))
        knots = posterior.quantile(p)
        fractions = torch.arange(20, dtype=torch.float64).reshape(-1, *[1] * (knots.dim() - 1)) / 20
        grid = (knots[:-1, None] + fractions * (knots[1:] - knots[:-1])[:, None]).flatten(0, 1)
        density = torch.cat([posterior.log_prob(part).exp() for part in grid.split(400)])
        cdf = torch.cat([posterior.cdf(part) for part in grid.split(400)])
        area = ((density[1:] + density[:-1]) / 2 * grid.diff(dim=0)).cumsum(0)
        assert torch.allclose(area, cdf[1:] - cdf[0], atol=5e-5)
        assert torch.allclose(area[-1], area.new_tensor(1.0), atol=4e-4)  # the tails beyond 3.7

    @both_dtypes
    @pytest.mark.parametrize("maximize", [True, False])
    def test_probability_of_improvement_is_that_of_the_cdf(
        self, maximize: bool, dtype: torch.dtype
    ) -> None:
        """Finite however small, and the cdf or its complement where those are not small."""
        posterior = self.make_posterior(dtype)
        for p in (0.05, 0.5, 0.9):
            # Between two values of a step function, so that rounding decides nothing.
            best = posterior.quantile(torch.tensor(p, dtype=dtype)) + 1e-3
            found = posterior.log_excess(best, 0, maximize)
            below = posterior.cdf(best)
            assert found.shape == best.shape
            assert found.dtype == dtype
            expected = 1 - below if maximize else below
            assert torch.allclose(found.exp(), expected, atol=1e-5 if self.has_density else 5e-2)
        span = (best - posterior.quantile(torch.tensor(0.05, dtype=dtype))).abs().amax()
        for far in (best + 1e3 * span, best - 1e3 * span):
            found = posterior.log_excess(far, 0, maximize)
            assert not found.isnan().any()
            assert (found <= 1e-5).all()

    @pytest.mark.parametrize("maximize", [True, False])
    def test_improvement_falls_by_its_probability(self, maximize: bool) -> None:
        """The derivative of the expected improvement in the threshold, in the tails as well."""
        posterior = self.make_posterior(torch.float64)
        if not self.has_density:
            pytest.skip("expected improvement and probability are smoothed each by itself")
        for p in (1e-9, 0.01, 0.4, 0.98, 1 - 1e-9):
            best = posterior.quantile(torch.tensor(p, dtype=torch.float64)).detach()
            best.requires_grad_()
            try:
                improvement = posterior.log_excess(best, 1, maximize)
            except NotImplementedError as error:
                pytest.skip(str(error))
            (slope,) = torch.autograd.grad(improvement.sum(), best)
            expected = improvement + (-slope if maximize else slope).log()
            found = posterior.log_excess(best, 0, maximize)
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_samples_follow_the_marginals(self) -> None:
        """The cdf of samples is uniform: mean and variance within 5 standard errors."""
        posterior = self.make_posterior(torch.float64)
        size = 4_000
        with torch.random.fork_rng():
            torch.manual_seed(1)
            samples = posterior.rsample(torch.Size([size]))
        u = torch.cat([posterior.cdf(part) for part in samples.split(400)])
        slack = 0.0 if self.has_density else 0.05  # a step function is uniform up to its steps
        assert ((u.mean(0) - 0.5).abs() < 5 * (1 / 12 / size) ** 0.5 + slack).all()
        assert ((u.var(0) - 1 / 12).abs() < 5 * (1 / 180 / size) ** 0.5 + slack).all()

    def test_base_samples_determine_the_samples(self) -> None:
        """Sample average approximation: same base samples, same samples, batch by batch."""
        posterior = self.make_posterior(torch.float64)
        shape = torch.Size([3])
        base = torch.randn(shape + posterior.base_sample_shape, dtype=torch.float64)
        first = posterior.rsample_from_base_samples(shape, base)
        assert torch.equal(first, posterior.rsample_from_base_samples(shape, base))
        assert first.shape == posterior._extended_shape(shape) == shape + posterior.shape
