"""Results that predictions keep for the training rows, and when they are out of date.

Factorising the covariance of the rows costs O(n^3), so it is kept from one `posterior` to the
next. GPyTorch forgets it where it is told to; here it is compared with what it was made of,
since hyperparameters change in many ways (a property, `initialize`, an optimiser, a loaded state)
and a factor of other hyperparameters gives numbers that look right.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import gpytorch
import torch
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator import to_dense
from linear_operator.operators import AddedDiagLinearOperator, LinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.memoize import cached, clear_cache_hook
from torch import Tensor, nn

__all__ = ["ExactPredictionStrategy", "Snapshot"]

_PLAIN = {bool, int, float, complex, str}
_OTHERS = {type(None), dict, OrderedDict, set}  # what torch's modules hold besides


class Snapshot:
    """The values of everything that modules compute with, at one time.

    Args:
        modules: By name; their parameters, buffers and plain attributes and those of their parts.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._values = [
            value.detach().clone() if isinstance(value, Tensor) else value
            for value in _values(modules)
        ]

    def holds(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether nothing has changed since."""
        now = _values(modules)
        return len(now) == len(self._values) and all(map(_same, now, self._values))


def _values(modules: Mapping[str, nn.Module]) -> list[Any]:
    """Classes, names and values, in an order that is the same as long as nothing is replaced."""
    found: list[Any] = []
    for root, module in modules.items():
        found.append(root)
        for part in module.modules():
            found.append(type(part))
            for held in (part._parameters, part._buffers, vars(part)):
                for name, value in held.items():
                    kind = type(value)  # not isinstance: this runs at every prediction
                    if kind in _PLAIN:
                        if name != "training":
                            found += (name, value)
                    elif kind not in _OTHERS and (isinstance(value, Tensor) or _is_plain(value)):
                        found += (name, value)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    alike = one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


class ExactPredictionStrategy(DefaultPredictionStrategy):
    """GPyTorch's default one, right for every number of batch dimensions, from one factorisation.

    It holds C^-1 y and the root L^-T of C^-1, C = L L' the covariance of the rows with their noise.
    Where no gradient passes neither C nor L are kept.
    """

    @property
    def mean_cache(self) -> Tensor:
        """C^-1 (y - mean), `[..., n]`."""
        return self._kept()[0]

    @property
    def covar_cache(self) -> Tensor:
        """L^-T, `[..., n, n]`."""
        return self._kept()[1]

    @cached(name="kept")
    def _kept(self) -> tuple[Tensor, Tensor]:
        follow = torch.is_grad_enabled() and gpytorch.settings.detach_test_caches.off()
        covariance = self.lik_train_train_covar
        with torch.set_grad_enabled(follow):
            factor = psd_safe_cholesky(to_dense(covariance) if follow else _values_of(covariance))
            if not follow:  # outputs and batches see the prior's through operators of their own
                _forget_values(self.train_prior_dist.lazy_covariance_matrix)
            offset = (self.train_labels - self.train_prior_dist.mean).unsqueeze(-1)
            weights = torch.cholesky_solve(offset, factor).squeeze(-1)
            eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            eye = eye.repeat(*factor.shape[:-2], 1, 1).mT
            into = None if follow else eye
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False, out=into)
        return weights, inverse.mT

    def exact_predictive_mean(
        self, test_mean: Tensor, test_train_covar: Tensor | LinearOperator
    ) -> Tensor:
        """Posterior means `[..., q]`, K* K^-1 y beyond the prior mean.

        Args:
            test_mean: Prior means, `[..., q]`.
            test_train_covar: K*, `[..., q, n]`.
        """
        product = test_train_covar @ self.mean_cache.unsqueeze(-1)
        return test_mean + product.squeeze(-1)


def _values_of(covariance: LinearOperator) -> Tensor:
    """The matrix, of which the operator keeps nothing; no more than two of its size at a time."""
    if isinstance(covariance, AddedDiagLinearOperator):
        of_kernel = to_dense(covariance._linear_op).expand(covariance.shape).clone()
        _forget_values(covariance)
        of_kernel.diagonal(dim1=-2, dim2=-1).add_(covariance._diag_tensor.diagonal())
        return of_kernel
    values = to_dense(covariance)
    _forget_values(covariance)
    return values


def _forget_values(operator: LinearOperator) -> None:
    """Drop the matrices that an operator and its parts have evaluated to."""
    clear_cache_hook(operator)
    for part in operator._args:
        if isinstance(part, LinearOperator):
            _forget_values(part)
