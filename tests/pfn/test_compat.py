"""Names borrowed from torch: each exists and does what we rely on."""

import torch

from pfn.compat import foreach_add_, foreach_lerp, foreach_lerp_, foreach_mul_, is_transformed


def pair():
    return [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]


def test_foreach_lerp():
    found = list(foreach_lerp(pair(), [torch.ones(2), torch.ones(1, 1)], 0.25))
    torch.testing.assert_close(found, [torch.tensor([1.0, 1.75]), torch.tensor([[2.5]])])


def test_foreach_lerp_in_place():
    values = pair()
    foreach_lerp_(values, [torch.zeros(2), torch.zeros(1, 1)], 0.5)
    torch.testing.assert_close(values, [torch.tensor([0.5, 1.0]), torch.tensor([[1.5]])])


def test_foreach_mul_in_place():
    values = pair()
    foreach_mul_(values, 2.0)
    torch.testing.assert_close(values, [torch.tensor([2.0, 4.0]), torch.tensor([[6.0]])])


def test_foreach_add_in_place():
    values = pair()
    foreach_add_(values, pair(), alpha=-2.0)
    torch.testing.assert_close(values, [torch.tensor([-1.0, -2.0]), torch.tensor([[-3.0]])])


def test_tensors_of_transforms_are_told_apart():
    assert not is_transformed(torch.ones(2, requires_grad=True) * 2)
    seen = []
    torch.func.grad(lambda x: (seen.append(is_transformed(x)), x.sum())[1])(torch.ones(2))
    torch.func.vmap(lambda x: (seen.append(is_transformed(x)), x)[1])(torch.ones(2))
    assert seen == [True, True]
