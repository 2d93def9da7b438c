"""What every model must satisfy as a BoTorch model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from botorch.acquisition import GenericMCObjective, qLogExpectedImprovement
from botorch.sampling.get_sampler import get_sampler
from torch import Tensor

from priors.testing.dtypes import both_dtypes

__all__ = ["ModelContract"]


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

        def first(Y: Tensor, X: Tensor | None = None) -> Tensor:
            return Y[..., 0]

        model, X = self.make_model(torch.float64), self.make_X(torch.float64)
        X = X.requires_grad_()
        acquisition = qLogExpectedImprovement(
            model,
            best_f=float(model.posterior(X).mean.detach().median()),
            sampler=get_sampler(model.posterior(X), torch.Size([8]), seed=0),
            objective=GenericMCObjective(first),
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
