"""Names borrowed from private parts of torch.

Many tensors in one call, as torch's own optimisers do it; and whether a tensor is one of
`torch.func`'s. `tests/pfn/test_compat.py` says of each what is relied on.
"""

import torch

__all__ = ["foreach_add_", "foreach_lerp", "foreach_lerp_", "foreach_mul_", "is_transformed"]

foreach_add_ = torch._foreach_add_
foreach_lerp = torch._foreach_lerp
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_
is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
