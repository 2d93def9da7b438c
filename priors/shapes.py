"""Types that say shapes, of tensors in Gaussian expectations.

For the type checker, and for the tests, in which calls are checked against annotations. jaxtyping
is not needed at run time: import from here, as from jaxtyping, under TYPE_CHECKING alone.
"""

from jaxtyping import Float
from torch import Tensor

__all__ = ["Part", "Whole"]

Part = Float[Tensor, "*#pairs"]
"""Variances or covariances of pairs, which broadcast with the others of a call."""

Whole = Float[Tensor, "*pairs"]
"""Of the shape to which all parts broadcast."""
