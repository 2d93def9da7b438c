"""Names that kernels borrow from private parts of torch.

`tests/priors/kernels/test_compat.py` says of each what is relied on.
"""

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TorchDispatchMode", "tree_leaves"]
