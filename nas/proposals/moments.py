"""Joint moments of what models predict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["is_gaussian", "joint_moments"]


def joint_moments(posterior: Any) -> tuple[Tensor, Tensor]:
    """Mean `[..., q]` and covariance `[..., q, q]` over points."""
    gaussian = _joint(posterior)
    if gaussian is None:
        raise TypeError(
            f"This acquisition needs a joint Gaussian posterior; {type(posterior).__name__} has "
            "none. Choose 'logei'."
        )
    return gaussian.mean, gaussian.covariance_matrix


def is_gaussian(posterior: Any) -> bool:
    """Whether a posterior has a joint Gaussian law."""
    return _joint(posterior) is not None


def _joint(posterior: Any) -> Any:
    return getattr(posterior, "mvn", None) or getattr(posterior, "distribution", None)
