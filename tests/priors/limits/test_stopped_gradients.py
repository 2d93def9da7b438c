"""What stops gradients inside a forward: the tangent kernel respects or refuses it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, UnsupportedOperationError

WIDTH, FEATURES = 384, 3


class Net(nn.Module):
    """Layers a, b, c, where b is applied twice, or a forward given as a function."""

    def __init__(self, forward=None, width=WIDTH):
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.c, self.function = nn.Linear(width, 1), forward

    def forward(self, x):
        if self.function is not None:
            return self.function(self, x)
        return self.c(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))))


def points(n=3):
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(module, names):
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    return module


@pytest.mark.covering
@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize(
    "names",
    [("c.weight", "c.bias"), ("a.weight",), ("b.bias", "c.weight"), ("a.bias", "b.weight")],
)
def test_only_trained_parameters_count(names, standard):
    x = points()
    kind = "standard" if standard else "ntk"
    module = trained(Net(), names)
    network = InfiniteNetwork(module, weight_var=1.6, bias_var=0.2, parameterization=kind)
    prior = NetworkPrior(network)
    scale = dict.fromkeys(names, 1.0) if standard else prior.parameter_std()
    drawn = prior.draw(torch.Size([60]), generator=torch.Generator().manual_seed(1))

    def kernel(weights):
        chosen = {name: weights[name].double() for name in names}
        rest = {name: w.double() for name, w in weights.items() if name not in names}
        of = torch.func.jacrev(lambda p: prior.apply_parameters({**rest, **p}, x)[:, 0])(chosen)
        flat = torch.cat([(of[name] * scale[name]).flatten(1) for name in names], 1)
        return flat @ flat.T

    draws = torch.stack([kernel({k: w[i] for k, w in drawn.items()}) for i in range(60)])
    error = draws.std(0) / len(draws) ** 0.5
    exact = network.ntk(x)
    # corrections of finite width are of relative order depth / width
    assert ((draws.mean(0) - exact).abs() < 4 * error + 8 / WIDTH * exact.abs().max()).all()
    assert not torch.allclose(exact, InfiniteNetwork(Net(), weight_var=1.6, bias_var=0.2).ntk(x))
    torch.testing.assert_close(network.ntk(x).diagonal(), network.ntk(x, diag=True))


def test_parts_add_up_to_the_whole():
    x = points(4)
    every = {n for n, _ in Net().named_parameters()}
    some = {"a.weight", "b.bias"}
    whole, one, two = (
        InfiniteNetwork(trained(Net(width=4), names), weight_var=1.6, bias_var=0.2)
        for names in (every, some, every - some)
    )
    torch.testing.assert_close(one.ntk(x) + two.ntk(x), whole.ntk(x))
    torch.testing.assert_close(one.nngp(x), whole.nngp(x))


def test_embeddings_may_be_frozen():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 1))
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    module[0].weight.requires_grad_(False)
    network = InfiniteNetwork(module, input_shape=(2,))
    torch.testing.assert_close(network.ntk(x), network.nngp(x))  # of the readout alone


def without_grad(m, x):
    with torch.no_grad():
        h = torch.relu(m.a(x))
    return m.c(h)


def inference(m, x):
    with torch.inference_mode():
        h = m.a(x)
    return m.c(torch.relu(h))


@torch.no_grad()
def decorated(m, x):
    return m.c(torch.relu(m.a(x)))


STOPS = {
    "detach": (lambda m, x: m.c(torch.relu(m.a(x)).detach()), "detach"),
    "straight through": (
        lambda m, x: (lambda h: m.c(h + (torch.tanh(h) - h).detach()))(m.a(x)),
        "detach",
    ),
    "weight": (lambda m, x: m.c(F.relu(F.linear(x, m.a.weight.detach(), m.a.bias))), "detach"),
    "no_grad": (without_grad, "no_grad"),
    "inference_mode": (inference, "no_grad"),
    "decorator": (decorated, "no_grad"),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_tangent_kernel_is_refused_where_gradients_stop(name, enabled):
    forward, what = STOPS[name]
    x = points()
    with torch.set_grad_enabled(enabled):
        network = InfiniteNetwork(Net(forward))
        assert network.nngp(x).isfinite().all()
        with pytest.raises(NotImplementedError, match=f"{what}.*stops gradients"):
            network.ntk(x)


def test_what_stops_nothing_is_accepted():
    x = points()
    plain = InfiniteNetwork(Net(lambda m, x: m.c(torch.relu(m.a(2 * x))))).ntk(x)
    of_input = InfiniteNetwork(Net(lambda m, x: m.c(torch.relu(m.a((2 * x).detach())))))
    torch.testing.assert_close(of_input.ntk(x), plain)
    with torch.no_grad():  # the caller's
        torch.testing.assert_close(InfiniteNetwork(of_input.module).ntk(x), plain)


def test_a_network_without_trained_parameters():
    network = InfiniteNetwork(Net().requires_grad_(False))
    network.nngp(points())
    with pytest.raises(NotImplementedError, match="is 0: every parameter"):
        network.ntk(points())


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.parametrize("of", ["", "a"])
def test_hooks_are_refused(register, of):
    module = Net()
    handle = getattr(module.get_submodule(of), register)(lambda *a: None)
    for kind in (InfiniteNetwork, NetworkPrior):
        with pytest.raises(UnsupportedOperationError, match=f"a hook .*module '{of}'"):
            kind(module)
    handle.remove()
    NetworkPrior(module)
