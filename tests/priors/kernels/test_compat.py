"""Names borrowed from torch: each exists and does what we rely on."""

import torch

from priors.kernels.compat import TorchDispatchMode, tree_leaves


def test_torch_dispatch_mode():
    """Sees every operation, also those of function transforms."""

    class Record(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.made = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.made.append(result)
            return result

    with Record() as record:
        torch.func.jvp(torch.sin, (torch.zeros(3),), (torch.ones(3),))
    assert any(torch.is_tensor(one) and one.shape == (3,) for one in record.made)
    count = len(record.made)
    torch.ones(2).sin()
    assert len(record.made) == count


def test_tree_leaves():
    first, second = torch.zeros(1), torch.ones(2)
    leaves = tree_leaves([first, {"a": (second, None)}, 3])
    assert leaves[0] is first
    assert leaves[1] is second
    assert leaves[2:] == [None, 3]
