"""Attention whose queries and keys are features: logits are moments, and scales are read."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, UnsupportedOperationError

TOKENS, FEATURES = 3, 2
SHAPE = (TOKENS, FEATURES)
UNITS = 16  # of the output, over which products are averaged too


class Net(nn.Module):
    """An embedding e, maps q and k, a readout r and a forward given as a function."""

    def __init__(self, forward, width=256):
        super().__init__()
        self.e, self.r = nn.Linear(FEATURES, width), nn.Linear(width, UNITS)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.function = forward

    def forward(self, x):
        return self.r(self.function(self, x)[:, 0])


def inputs(n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, TOKENS * FEATURES, generator=generator, dtype=torch.float64)


def features_with_themselves(m, x):
    h = torch.relu(m.e(x))
    return torch.softmax(h @ h.mT / h.size(-1), -1) @ h


def features_and_their_images(m, x):
    h = torch.relu(m.e(x))
    return torch.softmax(torch.relu(m.q(h)) @ torch.relu(m.k(h)).mT / h.size(-1), -1) @ h


def features_and_preactivations(m, x):
    g = m.e(x)
    return torch.softmax(g @ torch.relu(g).mT / g.size(-1), -1) @ torch.tanh(g)


def linear_attention(m, x):
    h = m.e(x)
    weights = torch.relu(m.q(torch.relu(h))) @ torch.relu(m.k(torch.relu(h))).mT / h.size(-1)
    return weights @ h


def stronger(m, x):
    h = torch.relu(m.e(x))
    return torch.softmax(3.0 * (h @ h.mT) / h.size(-1), -1) @ h


def scaled_before(m, x):
    h = torch.relu(m.e(x))
    return torch.softmax((h / h.size(-1)) @ h.mT, -1) @ h


def odd_features(m, x):
    h = torch.relu(m.e(x))
    q, k = torch.tanh(m.q(h)), torch.tanh(m.k(h))
    return torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), -1) @ h


MEAN_FIELD = {
    f.__name__: f
    for f in (
        features_with_themselves,
        features_and_their_images,
        features_and_preactivations,
        linear_attention,
        stronger,
        scaled_before,
    )
}


def network(forward, width=256):
    module = Net(forward, width)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = InfiniteNetwork(module, weight_var=1.5, bias_var=0.1, input_shape=SHAPE)
    for name in "qk":
        if name not in made.program.weights:
            delattr(module, name)
    return made


@pytest.mark.fast_for("features_with_themselves", "features_and_preactivations", "linear_attention")
@pytest.mark.parametrize("name", MEAN_FIELD)
def test_kernels_are_those_of_wide_networks(name):
    x = inputs()
    made = network(MEAN_FIELD[name], width=400)
    draws = (
        NetworkPrior(made)
        .sample(x.float(), torch.Size([150]), generator=torch.Generator().manual_seed(1))
        .double()
    )
    products = draws @ draws.mT / UNITS
    error = products.std(0) / len(draws) ** 0.5
    exact = made.nngp(x)
    # logits fluctuate by 1 / sqrt(width), which changes the kernel by a few per width
    allowed = 4 * error + 8 / 400 * exact.abs().max()
    assert ((products.mean(0) - exact).abs() < allowed).all()


def test_logits_are_the_moments_of_features():
    # one layer of ReLU features h: logits and values have the moment K of h (Cho & Saul 2009)
    x = inputs().double()
    made = network(features_with_themselves)
    flat = x.view(-1, FEATURES)
    c = 1.5 * flat @ flat.T / FEATURES + 0.1
    size = c.diagonal().sqrt()
    size = size[:, None] * size
    angle = (c / size).clamp(-1, 1).acos()
    moments = size * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    moments = moments.view(3, TOKENS, 3, TOKENS).movedim(2, 1)
    own = moments[torch.arange(3), torch.arange(3)].softmax(-1)
    mixed = torch.einsum("ib,ijbc,jc->ij", own[:, 0], moments, own[:, 0])
    torch.testing.assert_close(made.nngp(x), 1.5 * mixed + 0.1)


@pytest.mark.covering
@pytest.mark.parametrize("width", [4, 9, 64])
@pytest.mark.parametrize(
    "forward", [stronger, scaled_before, features_with_themselves, odd_features]
)
def test_kernels_do_not_depend_on_the_width(forward, width):
    x = inputs()
    torch.testing.assert_close(network(forward, width).nngp(x), network(forward, 256).nngp(x))


def test_odd_features_have_logits_of_heads():
    x = inputs()
    network(odd_features).nngp(x)

    def shrunk(m, x):
        h = torch.relu(m.e(x))
        q, k = torch.tanh(m.q(h)), torch.tanh(m.k(h))
        return torch.softmax(q @ k.mT / q.size(-1), -1) @ h

    with pytest.warns(UserWarning, match="averages uniformly"):
        InfiniteNetwork(Net(shrunk), input_shape=SHAPE)


def relu_heads(m, x):
    h = m.e(x)
    return F.scaled_dot_product_attention(torch.relu(m.q(h)), torch.relu(m.k(h)), h)


def one_vector(m, x):
    h = torch.relu(m.e(x))
    return torch.softmax(h @ h.mT / math.sqrt(h.size(-1)), -1) @ h


def tied_below(m, x):
    h = m.e(x)
    return torch.softmax(torch.tanh(h) @ h.mT / math.sqrt(h.size(-1)), -1) @ h


def by_hand(scale):
    def forward(m, x):
        h = m.e(x)
        return torch.softmax(m.q(h) @ m.k(h).mT * scale, -1) @ h

    return forward


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (relu_heads, "both have a mean.*grow with the width"),
        (one_vector, "tied.*grow with the width"),
        (tied_below, "tied.*grow with the width"),
        (by_hand(3 / 256), "scaled by 0.01172 at width 256.*size"),
        (by_hand(1.0), "how this depends on the width"),
        (by_hand(0.1), "how this depends on the width"),
    ],
)
def test_what_is_refused(forward, message):
    for kind in (InfiniteNetwork, NetworkPrior):
        with pytest.raises(UnsupportedOperationError, match=message):
            kind(Net(forward), input_shape=SHAPE)


@pytest.mark.parametrize("scale", [1 / 16, 256**-0.5])
def test_the_plain_scale_is_known_by_its_value(scale):
    x = inputs()

    def sized(m, x):
        h = m.e(x)
        return torch.softmax(m.q(h) @ m.k(h).mT * h.size(-1) ** -0.5, -1) @ h

    torch.testing.assert_close(network(by_hand(scale)).nngp(x), network(sized).nngp(x))
