"""In-place operations: the kernels are those of the same forward written without them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, UnsupportedOperationError

WIDTH, FEATURES = 256, 3


class Net(nn.Module):
    """Layers a, b, c and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Linear(FEATURES, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)
        self.c = nn.Linear(WIDTH, 1)
        self.block = Block(self.b)
        self.d = nn.Linear(WIDTH // 2, 1)
        self.twice = nn.Linear(2 * FEATURES, WIDTH)
        self.relu, self.elu = nn.ReLU(inplace=True), nn.ELU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True).eval()
        self.register_buffer("shift", torch.ones(()))
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class Block(nn.Module):
    """A residual block whose nonlinearity overwrites its input."""

    def __init__(self, b):
        super().__init__()
        self.b, self.act = b, nn.ReLU(inplace=True)

    def forward(self, h):
        return h + self.b(self.act(h))


def nested(m, x):
    return m.c(m.block(m.a(x)))


def skip(act):
    """A skip of what `act` overwrote."""

    def forward(m, x):
        h = m.a(x)
        return m.c(h + m.b(act(m, h)))

    return forward


def after(statement):
    """The value after a statement whose result is dropped."""

    def forward(m, x):
        h = m.a(x)
        statement(m, h)
        return m.c(h)

    return forward


def augmented(operation):
    """Another name of a value that is overwritten by an augmented assignment."""

    def forward(m, x):
        h = m.a(x)
        y = h
        scope = {"y": y, "g": torch.tanh(m.b(torch.relu(h))), "m": m}
        exec(operation, scope)
        return m.c(torch.relu(h))

    return forward


def gates(m, x):
    h = m.a(x)
    one, two = h[:, : WIDTH // 2], h[:, WIDTH // 2 :]
    one.sigmoid_()
    return m.d(one * torch.tanh(two))


def plain_gates(m, x):
    one, two = m.a(x).chunk(2, -1)
    return m.d(torch.sigmoid(one) * torch.tanh(two))


def view_before(m, x):
    h = m.a(x)
    v = h.view(-1, 4, WIDTH // 4)
    h.relu_()
    return m.c(v.flatten(1))


def raw(m, x):
    y = x
    x.mul_(3.0)
    return m.c(torch.relu(m.a(y)))


def raw_view(m, x):
    x.view(-1, 1, FEATURES).mul_(3.0)
    return m.c(torch.relu(m.a(x)))


def twice(m, x):
    h = m.a(x)
    v = h.view(-1, WIDTH, 1)
    h.mul_(2.0)
    v.tanh_()
    h += 1.0
    return m.c(h + m.b(v.squeeze(-1)))


def cloned(m, x):
    h = m.a(x)
    g = h.clone().relu_()
    return m.c(h + m.b(g))


CASES = {
    "module": (skip(lambda m, h: m.relu(h)), lambda m, x: _plain(m, x, torch.relu)),
    "elu module": (skip(lambda m, h: m.elu(h)), lambda m, x: _plain(m, x, F.elu)),
    "relu_": (skip(lambda m, h: h.relu_()), lambda m, x: _plain(m, x, torch.relu)),
    "torch.relu_": (skip(lambda m, h: torch.relu_(h)), lambda m, x: _plain(m, x, torch.relu)),
    "F.relu": (skip(lambda m, h: F.relu(h, True)), lambda m, x: _plain(m, x, torch.relu)),
    "F.elu": (skip(lambda m, h: F.elu(h, inplace=True)), lambda m, x: _plain(m, x, F.elu)),
    "F.elu_": (skip(lambda m, h: F.elu_(h)), lambda m, x: _plain(m, x, F.elu)),
    "F.hardtanh": (
        skip(lambda m, h: F.hardtanh(h, -0.5, 0.5, True)),
        lambda m, x: _plain(m, x, lambda h: h.clamp(-0.5, 0.5)),
    ),
    "nested": (nested, lambda m, x: _plain(m, x, torch.relu)),
    "eval dropout": (skip(lambda m, h: m.drop(h)), lambda m, x: _plain(m, x, lambda h: h)),
    "clone": (cloned, lambda m, x: m.c(m.a(x) + m.b(torch.relu(m.a(x))))),
    "dropped": (after(lambda m, h: h.relu_()), lambda m, x: m.c(torch.relu(m.a(x)))),
    "dropped view": (
        after(lambda m, h: h.view(-1, 4, WIDTH // 4).relu_()),
        lambda m, x: m.c(torch.relu(m.a(x))),
    ),
    "add_": (
        after(lambda m, h: h.add_(m.b(torch.tanh(h)), alpha=0.5).relu_()),
        lambda m, x: m.c(torch.relu(m.a(x) + 0.5 * m.b(torch.tanh(m.a(x))))),
    ),
    "sub and div": (
        after(lambda m, h: h.sub_(1.0).div_(2.0).tanh_()),
        lambda m, x: m.c(torch.tanh((m.a(x) - 1.0) / 2.0)),
    ),
    "clamp_": (after(lambda m, h: h.clamp_(min=0.1)), lambda m, x: m.c(m.a(x).clamp(min=0.1))),
    "pow_": (after(lambda m, h: h.pow_(2)), lambda m, x: m.c(m.a(x) ** 2)),
    "square_": (after(lambda m, h: h.square_()), lambda m, x: m.c(m.a(x) ** 2)),
    "transposed": (
        after(lambda m, h: h.unsqueeze(0).transpose(0, 1).relu_()),
        lambda m, x: m.c(torch.relu(m.a(x))),
    ),
    "y *= 2": (augmented("y *= 2"), lambda m, x: m.c(torch.relu(2 * m.a(x)))),
    "y -= 1": (augmented("y -= 1"), lambda m, x: m.c(torch.relu(m.a(x) - 1))),
    "y /= 2": (augmented("y /= 2"), lambda m, x: m.c(torch.relu(m.a(x) / 2))),
    "y += g": (
        augmented("y += g"),
        lambda m, x: m.c(torch.relu(m.a(x) + torch.tanh(m.b(torch.relu(m.a(x)))))),
    ),
    "y **= 2": (augmented("y **= 2"), lambda m, x: m.c(torch.relu(m.a(x) ** 2))),
    "y = y * 2": (augmented("y = y * 2"), lambda m, x: m.c(torch.relu(m.a(x)))),
    "disjoint": (gates, plain_gates),
    "view before": (view_before, lambda m, x: m.c(torch.relu(m.a(x)))),
    "raw input": (raw, lambda m, x: m.c(torch.relu(m.a(3.0 * x)))),
    "view of the raw input": (raw_view, lambda m, x: m.c(torch.relu(m.a(3.0 * x)))),
    "twice": (
        twice,
        lambda m, x: m.c(
            torch.tanh(2 * m.a(x)) + 1.0 + m.b(torch.tanh(2 * m.a(x)) + 1.0)
        ),
    ),
}  # fmt: skip


def _plain(m, x, act):
    h = act(m.a(x))
    return m.c(h + m.b(h))


@pytest.mark.fast_for(
    "module",
    "torch.relu_",
    "F.elu",
    "F.hardtanh",
    "nested",
    "clone",
    "dropped view",
    "add_",
    "pow_",
    "transposed",
    "y -= 1",
    "y **= 2",
    "disjoint",
    "view of the raw input",
    "twice",
)
@pytest.mark.parametrize("name", CASES)
def test_kernels_are_those_of_the_forward_written_out(name):
    inplace, plain = CASES[name]
    x = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = x.clone()
    options = {"weight_var": 1.5, "bias_var": 0.1, "input_shape": (FEATURES,)}
    modules = Net(inplace), Net(plain)
    modules[1].load_state_dict(modules[0].state_dict())
    # the module itself: the two forwards are the same function
    torch.testing.assert_close(modules[0](x.float().clone()), modules[1](x.float()))
    networks = [InfiniteNetwork(m, **options) for m in modules]
    torch.testing.assert_close(networks[0].kernels(x), networks[1].kernels(x))
    assert torch.equal(x, kept)  # the caller's inputs are left alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["module", "raw input", "add_", "disjoint"])
def test_kernels_are_those_of_wide_networks(name):
    x = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = x.clone()
    module = Net(CASES[name][0])
    used = {n.split(".")[0] for n in InfiniteNetwork(module).program.weights}
    for layer in ("a", "b", "c", "d", "twice"):
        if layer not in used:
            delattr(module, layer)
    del module.block
    prior = NetworkPrior(module, weight_var=1.5, bias_var=0.1)
    draws = prior.sample(x, torch.Size([4000]), generator=torch.Generator().manual_seed(2))[..., 0]
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(0) / len(draws) ** 0.5
    kernel = InfiniteNetwork(prior).nngp(x)
    assert ((products.mean(0) - kernel).abs() < 4 * error).all()
    assert torch.equal(x, kept)


def partial(m, x):
    h = m.a(x)
    h[:, : WIDTH // 2].relu_()
    return m.c(h)


def ambiguous(m, x):
    h = m.a(x)
    v = h.reshape(-1, 4, WIDTH // 4)
    v.relu_()
    return m.c(h)


def assigned(m, x):
    h = m.a(x)
    h[:, 0] = 0.0
    return m.c(h)


def through_view(m, x):
    h = m.a(x)
    h.unsqueeze(1).add_(torch.tanh(m.b(h)).unsqueeze(1))
    return m.c(h)


REFUSED = {
    "a part": (partial, "later use of a tensor that relu_ at operation 'relu_'.*only a part"),
    "a copy or a view": (ambiguous, "relu_.*layout of the tensors"),
    "assignment": (assigned, "setitem"),
    "another value through a view": (through_view, "add_"),
    "zero_": (after(lambda m, h: h.zero_()), "zero_ in place"),
    "normal_": (after(lambda m, h: h.normal_()), "normal_ in place"),
    "bernoulli_": (lambda m, x: m.c(torch.relu(m.a(x.bernoulli_(0.5)))), "bernoulli_ in place"),
    "unsqueeze_": (lambda m, x: m.c(torch.relu(m.a(x.unsqueeze_(1)))), "unsqueeze_ in place"),
    "buffer": (after(lambda m, h: m.shift.add_(h)), "on a constant"),
    "out": (after(lambda m, h: torch.add(h, 1.0, out=h)), "out="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    forward, message = REFUSED[name]
    for kind in (InfiniteNetwork, NetworkPrior):
        with pytest.raises(UnsupportedOperationError, match=message):
            kind(Net(forward))


def test_a_shape_cannot_change_in_place():
    def forward(m, x):
        h = m.a(x).unsqueeze(1)
        h.add_(torch.stack([m.b(h[:, 0])] * 2, 1))
        return m.c(h.flatten(1))

    with pytest.raises(ValueError, match="change the shape"):
        InfiniteNetwork(Net(forward), input_shape=(FEATURES,))


def test_logits_are_overwritten_too():
    class Attention(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(FEATURES, 16) for _ in range(3))
            self.out, self.inplace = nn.Linear(16, 1), inplace

        def forward(self, x):
            logits = self.q(x) @ self.k(x).mT
            if self.inplace:
                logits /= 4.0
                logits.add_(torch.tensor([[0.0, -1.0], [0.5, 0.0]]))
            else:
                logits = logits / 4.0 + torch.tensor([[0.0, -1.0], [0.5, 0.0]])
            return self.out((logits.softmax(-1) @ self.v(x)).mean(1))

    x = torch.randn(2, 2 * FEATURES, generator=torch.Generator().manual_seed(0))
    one, two = (InfiniteNetwork(Attention(i), input_shape=(2, FEATURES)) for i in (True, False))
    torch.testing.assert_close(one.kernels(x), two.kernels(x))
