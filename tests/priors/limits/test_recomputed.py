"""Sums in parts, and averages over heads in them: the same numbers, and little is held."""

import torch
from torch import nn

from priors import InfiniteNetwork, QuasiMonteCarlo
from priors.limits import heads
from priors.limits.recomputed import sum_over_parts

double = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=double, generator=torch.Generator().manual_seed(seed))


def wave(part, a, b):
    return (torch.sin(part[:, None] * a) * b).sum(0)


def test_values_and_gradients_of_both_orders():
    points, a, b = normal(12), normal(3, seed=1), normal(3, seed=2)
    a.requires_grad_()
    b.requires_grad_()
    value = sum_over_parts(wave, points.split(5), (a, b))
    torch.testing.assert_close(value, (torch.sin(points[:, None] * a) * b).sum(0))
    for inputs in ((a, b), (a, b.detach())):
        torch.autograd.gradcheck(lambda *x: sum_over_parts(wave, points.split(5), x), inputs)
        torch.autograd.gradgradcheck(lambda *x: sum_over_parts(wave, points.split(5), x), inputs)


def test_only_the_inputs_are_held():
    points, a, b = normal(1000), normal(3, seed=1).requires_grad_(), normal(3, seed=2)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        sum_over_parts(wave, points.split(10), (a, b))
    assert sum(t.numel() for t in held) == 6


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.embed, self.readout = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = self.embed(x)
        return self.readout(torch.relu(self.attend(h, h, h, need_weights=False)[0]).mean(1))


def test_heads_draw_as_many_as_the_budget_holds(monkeypatch):
    x, sizes, found = normal(4, 6), [], []
    module = Attend()

    def counted(function, parts, inputs):
        sizes.append(max(p.numel() for p in parts))
        return sum_over_parts(function, parts, inputs)

    monkeypatch.setattr(heads, "sum_over_parts", counted)
    for budget in (2**30, 2**20):
        sizes.clear()
        network = InfiniteNetwork(
            module, input_shape=(3, 2), quadrature=QuasiMonteCarlo(512), max_bytes=budget
        ).double()
        kernel = network.ntk(x)
        variances = list(network.parameters())
        weights = torch.autograd.grad(kernel.sum(), variances, allow_unused=True)
        found.append([kernel.detach(), *(w for w in weights if w is not None)])
        assert max(sizes) * heads._BYTES <= budget
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
