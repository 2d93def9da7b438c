"""What predictions keep of the training rows, and when it is out of date.

Factorising the covariance of the rows costs O(n^3), so it is kept from one `posterior` to the
next. GPyTorch forgets it where it is told to; here it is compared with what it was made of,
since hyperparameters change in many ways (a property, `initialize`, an optimiser, a loaded state)
and a factor of other hyperparameters gives numbers that look right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator.operators import LinearOperator
from torch import Tensor, nn

__all__ = ["ExactPredictionStrategy", "Snapshot"]

_PLAIN = bool | int | float | complex | str | None


class Snapshot:
    """The values of everything that modules compute with, at one time.

    Args:
        modules: By name; their parameters, buffers and plain attributes and those of their parts.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._values = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in _values(modules)
        }

    def holds(self, modules: dict[str, nn.Module]) -> bool:
        """Whether nothing has changed since."""
        now = dict(_values(modules))
        return now.keys() == self._values.keys() and all(
            _same(value, self._values[name]) for name, value in now.items()
        )


def _values(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    for root, module in modules.items():
        for path, part in module.named_modules(prefix=root):
            yield path, type(part)
            held = {**vars(part), **part._parameters, **part._buffers}
            for name, value in held.items():
                if name != "training" and (isinstance(value, Tensor) or _is_plain(value)):
                    yield f"{path}.{name}", value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(one) for one in value)
    return isinstance(value, _PLAIN)


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    alike = one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


class ExactPredictionStrategy(DefaultPredictionStrategy):
    """GPyTorch's default one, whose mean is right for every number of batch dimensions."""

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
