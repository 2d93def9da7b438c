"""Contract tests for kernels, posteriors and models, ours and those of others.

Subclass in a test module and give the object; pytest (the `dev` extra) collects the rest:

    class TestMyPosterior(PosteriorContract):
        def make_posterior(self, dtype):
            return MyPosterior(...)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from botorch.acquisition import GenericMCObjective, qLogExpectedImprovement
from botorch.sampling.get_sampler import get_sampler
from gpytorch.kernels import Kernel
from torch import Tensor

from priors.posteriors.posterior import PredictivePosterior

__all__ = ["KernelContract", "ModelContract", "PosteriorContract"]

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class KernelContract(ABC):
    """What every kernel must satisfy, beyond GPyTorch's own `BaseKernelTestCase`.

    Attributes:
        num_features: Features of the test points.
    """

    num_features = 3

    @abstractmethod
    def make_kernel(self) -> Kernel:
        """A kernel without batch shape, the same at every call."""

    def points(self, dtype: torch.dtype) -> Tensor:
        """Rows in general position, and the hard ones: twice the same, opposite, zero, scaled."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(6, self.num_features, generator=generator, dtype=torch.float64)
        hard = [rows[:1], -rows[1:2], torch.zeros_like(rows[:1]), 2 * rows[2:3]]
        return torch.cat([rows, *hard]).to(dtype)

    @both_dtypes
    def test_symmetric_and_positive_semidefinite(self, dtype: torch.dtype) -> None:
        """Of all points with themselves, to rounding."""
        kernel, x = self.make_kernel().to(dtype), self.points(dtype)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
        assert matrix.dtype == dtype
        scale = matrix.diagonal().max()
        precision = 100 * torch.finfo(dtype).eps
        assert (matrix - matrix.mT).abs().max() <= precision * scale
        assert torch.linalg.eigvalsh(matrix.double()).min() >= -(precision**0.75) * scale

    def test_diagonal_and_rectangle_agree_with_the_square(self) -> None:
        """`diag=True`, and rows against other rows."""
        kernel, x = self.make_kernel().double(), self.points(torch.float64)
        with torch.no_grad():
            matrix = kernel(x).to_dense()
            assert torch.allclose(kernel(x, diag=True), matrix.diagonal(), rtol=1e-9)
            # A separate tensor for the same points may lose the square root of the precision.
            rectangle = kernel(x[:4], x[2:].clone()).to_dense()
        assert torch.allclose(rectangle, matrix[:4, 2:], rtol=1e-6, atol=1e-6)

    def test_batch_equals_loop(self) -> None:
        """A batch of inputs is as many kernels of each."""
        kernel, x = self.make_kernel().double(), self.points(torch.float64)
        batch = torch.stack([x, 0.5 * x, x.flip(0)])
        with torch.no_grad():
            together = kernel(batch).to_dense()
            for k, rows in enumerate(batch):
                assert torch.allclose(together[k], kernel(rows).to_dense(), rtol=1e-9)

    @both_dtypes
    def test_gradients_are_finite(self, dtype: torch.dtype) -> None:
        """In inputs and parameters, at coincident, opposite and zero rows as well."""
        kernel = self.make_kernel().to(dtype)
        x1 = self.points(dtype).requires_grad_()
        x2 = self.points(dtype).requires_grad_()
        total = kernel(x1).to_dense().sum() + kernel(x1, x2).to_dense().sum()
        wanted = [x1, x2, *(p for p in kernel.parameters() if p.requires_grad)]
        for gradient in torch.autograd.grad(total, wanted, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


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
        shape = posterior._extended_shape()
        quantiles = posterior.quantile(self.probabilities(dtype).reshape(2, 3))
        values = [posterior.mean, posterior.variance, posterior.cdf(quantiles[0, 0])]
        if self.has_density:
            values.append(posterior.log_prob(quantiles[0, 0]))
        for value in values:
            assert value.shape == shape
            assert value.dtype == dtype
        assert quantiles.shape == (2, 3, *shape)
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
        density = torch.stack([posterior.log_prob(y).exp() for y in grid])
        cdf = torch.stack([posterior.cdf(y) for y in grid])
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
            found = posterior.log_probability_of_improvement(best, maximize)
            below = posterior.cdf(best)
            assert found.shape == best.shape
            assert found.dtype == dtype
            expected = 1 - below if maximize else below
            assert torch.allclose(found.exp(), expected, atol=1e-5 if self.has_density else 5e-2)
        span = (best - posterior.quantile(torch.tensor(0.05, dtype=dtype))).abs().amax()
        for far in (best + 1e3 * span, best - 1e3 * span):
            found = posterior.log_probability_of_improvement(far, maximize)
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
                improvement = posterior.log_expected_improvement(best, maximize)
            except NotImplementedError as error:
                pytest.skip(str(error))
            (slope,) = torch.autograd.grad(improvement.sum(), best)
            expected = improvement + (-slope if maximize else slope).log()
            found = posterior.log_probability_of_improvement(best, maximize)
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_samples_follow_the_marginals(self) -> None:
        """The cdf of samples is uniform: mean and variance within 5 standard errors."""
        posterior = self.make_posterior(torch.float64)
        size = 4_000
        with torch.random.fork_rng():
            torch.manual_seed(1)
            samples = posterior.rsample(torch.Size([size]))
        u = torch.stack([posterior.cdf(y) for y in samples])
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
        assert first.shape == posterior._extended_shape(shape)


class ModelContract(ABC):
    """What every model of this package must satisfy as a BoTorch model.

    Attributes:
        tolerance: Relative tolerance of float64 against itself in another batch shape.
    """

    tolerance = 1e-6

    @abstractmethod
    def make_model(self, dtype: torch.dtype) -> Any:
        """A model ready for `posterior`, trained on `[n, d]` rows, the same at every call."""

    @abstractmethod
    def make_X(self, dtype: torch.dtype) -> Tensor:
        """Queries `[b, q, d]` with b, q >= 2."""

    @both_dtypes
    def test_shape_and_dtype_follow_the_query(self, dtype: torch.dtype) -> None:
        """`[b, q, d]` gives `[b, q, m]` in the dtype of the data."""
        model, X = self.make_model(dtype), self.make_X(dtype)
        posterior = model.posterior(X, observation_noise=True)
        assert posterior.mean.shape == (*X.shape[:-1], model.num_outputs)
        assert posterior.mean.dtype == dtype
        assert posterior.device == X.device
        assert posterior.log_prob(posterior.mean).isfinite().all()

    def test_t_batch_equals_loop(self) -> None:
        """Batch elements do not see each other."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        together = model.posterior(X)
        for k, rows in enumerate(X):
            alone = model.posterior(rows)
            assert torch.allclose(together.mean[k], alone.mean, rtol=self.tolerance)
            assert torch.allclose(together.variance[k], alone.variance, rtol=self.tolerance)

    def test_any_number_of_batch_dimensions(self) -> None:
        """`[2, b, q, d]` is two batches, and `batch_shape` is that of the model alone."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        assert isinstance(model.num_outputs, int)
        assert model.batch_shape == torch.Size([])
        wide = torch.stack([X, X.flip(0)])
        posterior, alone = model.posterior(wide), model.posterior(X)
        assert posterior.mean.shape == (*wide.shape[:-1], model.num_outputs)
        assert posterior._extended_shape() == posterior.mean.shape
        assert posterior.batch_shape == wide.shape[:-2]
        assert torch.allclose(posterior.mean[0], alone.mean, rtol=self.tolerance)
        assert torch.allclose(posterior.variance[0], alone.variance, rtol=self.tolerance)

    @pytest.mark.parametrize("observation_noise", [False, True])
    def test_sampler(self, observation_noise: bool) -> None:
        """`get_sampler` knows one, whose samples are the same at every call, batch by batch."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        posterior = model.posterior(X, observation_noise=observation_noise)
        sampler = get_sampler(posterior, torch.Size([4]), seed=0)
        samples = sampler(posterior)
        assert samples.shape == (4, *posterior._extended_shape())
        assert torch.equal(samples, sampler(posterior))
        same = X[:1].expand(3, -1, -1)
        repeated = sampler(model.posterior(same, observation_noise=observation_noise))
        assert torch.allclose(repeated, repeated[:, :1].expand_as(repeated), rtol=self.tolerance)

    def test_monte_carlo_acquisition(self) -> None:
        """BoTorch's samples the model jointly, with gradients and with pending points."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        X = X.requires_grad_()
        acquisition = qLogExpectedImprovement(
            model,
            best_f=float(model.posterior(X).mean.detach().median()),
            sampler=get_sampler(model.posterior(X), torch.Size([8]), seed=0),
            objective=GenericMCObjective(lambda Y, X=None: Y[..., 0]),
            X_pending=X[0, :1].detach() + 0.1,
        )
        value = acquisition(X)
        assert value.shape == X.shape[:1]
        (slope,) = torch.autograd.grad(value.sum(), X)
        assert slope.isfinite().all()
        assert (slope != 0).any()

    def test_noise_widens(self) -> None:
        """Observations vary more than the function."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        noisy = model.posterior(X, observation_noise=True).variance
        assert (noisy > model.posterior(X).variance).all()

    def test_gradient_in_the_query_is_finite(self) -> None:
        """Acquisition functions need it."""
        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        X = X.requires_grad_()
        posterior = model.posterior(X)
        (posterior.mean.sum() + posterior.variance.sum()).backward()
        assert X.grad is not None
        assert X.grad.isfinite().all()
        assert (X.grad != 0).any()

    def test_global_state_is_left_alone(self) -> None:
        """Building and querying moves neither the global generator nor the default dtype."""
        before = torch.random.get_rng_state(), torch.get_default_dtype()
        self.make_model(torch.float64).posterior(self.make_X(torch.float64)).mean.sum()
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert before[1] == torch.get_default_dtype()
