"""Borrowed names: what training uses of torch that is not public there.

Many tensors in one call, as torch's own optimisers do it; `tests/pfn/test_compat.py` says of each
what is relied on.
"""

import torch

__all__ = ["foreach_add_", "foreach_lerp", "foreach_lerp_", "foreach_mul_"]

foreach_add_ = torch._foreach_add_
foreach_lerp = torch._foreach_lerp
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_
