"""Parameters, constants and the raw input beside hidden units, against finite networks and by hand.

Monte Carlo as in `test_layers`: standard errors over networks, and a bias of the order 1 / width.
"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, UnsupportedOperationError
from priors.diagnostics.monte_carlo import monte_carlo_kernels

WIDTH, NETWORKS, BIAS = 96, 50, 4.0


class Net(nn.Module):
    """Named layers and parameters, and a forward given as a function."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def dense(inputs=WIDTH, outputs=WIDTH):
    return nn.Linear(inputs, outputs)


def free(*shape):
    return nn.Parameter(torch.zeros(*shape))


def points(shape, n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, math.prod(shape), generator=generator, dtype=torch.float64)


def limit(module, shape, **options):
    chosen = {"weight_var": 1.5, "bias_var": 0.1, "input_shape": shape, **options}
    return InfiniteNetwork(module.double().eval(), **chosen)


def images(m, x):
    """A vision transformer's embedding: patches, class token, positions, one linear block."""
    h = m.patches(x).flatten(2).transpose(1, 2)
    h = torch.cat([m.token.expand(x.shape[0], -1, -1), h], dim=1)
    h = h + m.positions[:, : h.size(1)]
    return m.r(m.norm(h + m.scale * m.b(F.gelu(m.c(m.norm(h)))))[:, 0])


class Attention(nn.Module):
    def __init__(self, width, heads, keys=None, normalised=False, grouped=False):
        super().__init__()
        self.heads, self.keys, self.size = heads, keys or heads, width // heads
        self.scale, self.grouped = self.size**-0.5, grouped
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, self.keys * self.size) for _ in range(2))
        self.norm = nn.LayerNorm(self.size) if normalised else nn.Identity()

    def forward(self, x):
        batch, tokens, _ = x.shape
        q = self.norm(self.q(x).view(batch, tokens, self.heads, self.size).transpose(1, 2))
        k, v = (
            f(x).view(batch, tokens, self.keys, self.size).transpose(1, 2) for f in (self.k, self.v)
        )
        k = self.norm(k)
        if self.grouped:
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            if 1 < self.keys < self.heads:
                times = self.heads // self.keys
                k = k[:, :, None].expand(batch, self.keys, times, tokens, self.size)
                k = k.reshape(batch, self.heads, tokens, self.size)
                v = v.repeat_interleave(times, 1)
            mixed = torch.softmax((q * self.scale) @ k.transpose(-2, -1), -1) @ v
        return self.o(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.size))


def attending(**options):
    return Net(
        lambda m, x: m.r(m.attend(m.a(x))[:, 0]),
        a=dense(2, 64),
        attend=Attention(64, 16, **options),
        r=dense(64, 4),
    )


def causal(m, x):
    h = F.relu(m.a(F.pad(x, (2, 0))))
    return m.r(F.relu(m.b(F.pad(h, (4, 0))))[..., -1])


def padded(layer):
    return Net(
        lambda m, x: m.r(F.relu(m.b(F.relu(m.pad(m.a(x))))).mean((2, 3))),
        a=nn.Conv2d(2, WIDTH, 1),
        pad=layer,
        b=nn.Conv2d(WIDTH, WIDTH, 2),
        r=dense(WIDTH, 4),
    )


def two_resolutions(m, x):
    h = F.relu(m.a(x))
    whole, half = (F.relu(m.b(y)) for y in (h, F.avg_pool2d(h, 2)))
    return m.r(whole.mean((2, 3)) + half.mean((2, 3)))


def chosen(m, x):
    u, v = m.a(x), m.c(x)
    h = torch.where((u > v) & (u > 0), u, 0.5 * v)
    return m.r(F.relu(m.b(h + h.masked_fill(v < 0, 0.0))))


def steps(m, x):
    h = m.a(x)
    return m.r(F.relu(m.b(h.gt(0.5).to(h.dtype) + (h > 0) * h)))


def time_first(m, x):
    h = m.rnn(m.a(x.transpose(0, 1)))[0]
    return m.r(h.mean(0))


def axial(m, x):
    rows, columns = m.p[:, None].expand(2, 2, -1), m.q[None].expand(2, 2, -1)
    return m.r(F.relu(m.b(m.a(x) + torch.cat([rows, columns], -1).flatten(0, 1))).mean(1))


def sines():
    angles = torch.arange(6.0)[:, None] * torch.exp(-8 * torch.arange(WIDTH) / WIDTH)
    return nn.Buffer(torch.sin(angles)[None])


def simple(forward, features=3, names="abr", **parts):
    own = {"a": dense(features), "b": dense(), "c": dense(features), "r": dense(WIDTH, 4)}
    return Net(forward, **{**{name: own[name] for name in names}, **parts})


# name -> (module, shape of one input)
CASES = {
    "class token, positions, layer scale": lambda: (
        Net(
            images,
            patches=nn.Conv2d(1, WIDTH, 2, stride=2),
            token=free(1, 1, WIDTH),
            positions=free(1, 9, WIDTH),
            scale=nn.Parameter(torch.full((WIDTH,), 0.3)),
            norm=nn.LayerNorm(WIDTH),
            b=dense(),
            c=dense(),
            r=dense(WIDTH, 4),
        ),
        (1, 4, 4),
    ),
    "positions of rows and columns": lambda: (
        simple(axial, 2, p=free(2, WIDTH // 2), q=free(2, WIDTH // 2)),
        (4, 2),
    ),
    "sines": lambda: (
        simple(lambda m, x: m.r(F.relu(m.b(m.a(x) + m.p[:, : x.size(1)])).mean(1)), 2, p=sines()),
        (3, 2),
    ),
    "joined to the input": lambda: (
        simple(
            lambda m, x: m.r(F.relu(m.b(torch.cat([m.a(x), x], -1).tanh()))),
            b=dense(WIDTH + 3),
        ),
        (3,),
    ),
    "added to the input": lambda: (
        simple(
            lambda m, x: m.r(F.relu(m.b(m.n(F.relu(m.a(x)) + x**2)))), WIDTH, n=nn.LayerNorm(96)
        ),
        (WIDTH,),
    ),
    "matrices by hand": lambda: (
        simple(
            lambda m, x: m.r(F.relu(F.relu(m.a(x)) @ m.w + m.v)),
            names="ar",
            w=free(96, 96),
            v=free(96),
        ),
        (3,),
    ),
    "einsum": lambda: (
        simple(
            lambda m, x: m.r(F.relu(torch.einsum("bnd,de->bne", F.relu(m.a(x)), m.w)).mean(1)),
            2,
            names="ar",
            w=free(96, 96),
        ),
        (2, 2),
    ),
    "where": lambda: (simple(chosen, names="abcr"), (3,)),
    "comparisons": lambda: (simple(steps), (3,)),
    "causal convolutions": lambda: (
        Net(
            causal,
            a=nn.Conv1d(2, WIDTH, 3),
            b=nn.Conv1d(WIDTH, WIDTH, 3, dilation=2),
            r=dense(WIDTH, 4),
        ),
        (2, 6),
    ),
    "zero padding": lambda: (padded(nn.ZeroPad2d((1, 0, 2, 0))), (2, 3, 3)),
    "replication": lambda: (padded(nn.ReplicationPad2d((1, 2, 0, 1))), (2, 3, 3)),
    "two resolutions": lambda: (
        Net(
            two_resolutions,
            a=nn.Conv2d(2, WIDTH, 3, padding=1),
            b=nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            r=dense(WIDTH, 4),
        ),
        (2, 4, 4),
    ),
    "time first": lambda: (simple(time_first, 2, names="ar", rnn=nn.RNN(WIDTH, WIDTH)), (3, 2)),
    "one pair of keys and values": lambda: (attending(keys=1), (3, 2)),
    "normalised queries": lambda: (attending(normalised=True), (3, 2)),
    "decoder": lambda: (
        Net(
            lambda m, x: m.r(m.t(m.a(x[:, :2]), m.b(x))[:, 0]),
            a=dense(2, 64),
            b=dense(2, 64),
            t=nn.TransformerDecoderLayer(64, 16, 64, dropout=0.0, batch_first=True),
            r=dense(64, 4),
        ),
        (3, 2),
    ),
}
# in these the gradient of a network does not see the jumps, and networks are dear
WITHOUT_TANGENTS = {"comparisons", "two resolutions", "zero padding", "replication", "decoder"}
WITHOUT_TANGENTS |= {"normalised queries", "one pair of keys and values", "time first"}


@pytest.mark.fast_for(
    "causal convolutions",
    "class token, positions, layer scale",
    "decoder",
    "einsum",
    "matrices by hand",
    "sines",
    "where",
    "zero padding",
)
@pytest.mark.parametrize("name", sorted(CASES))
def test_kernels_are_those_of_wide_networks(name):
    torch.manual_seed(0)
    module, shape = CASES[name]()
    x = points(shape)
    made = limit(module, shape)
    tangents = name not in WITHOUT_TANGENTS
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        kernels = made.kernels(x) if tangents else (made.nngp(x), None)
        found = monte_carlo_kernels(
            NetworkPrior(made).double(),
            x,
            num_networks=NETWORKS if tangents else 4 * NETWORKS,
            generator=torch.Generator().manual_seed(1),
            ntk=tangents,
            progress=False,
        )
    pairs = [(kernels[0], found.nngp, found.nngp_error)]
    if tangents:
        pairs.append((kernels[1], found.ntk, found.ntk_error))
    for kernel, mean, error in pairs:
        size = kernel.abs().max()
        assert ((mean - kernel).abs() < 4.5 * error + BIAS / WIDTH * size).all()
        assert (error < 0.25 * size).all()
        assert torch.linalg.eigvalsh(kernel).min() > -1e-6 * size


# By hand -----------------------------------------------------------------------------------------


def test_a_parameter_has_independent_entries_under_its_own_name():
    # K + v at the same position, K elsewhere; pooling averages both
    module = simple(lambda m, x: m.r((m.a(x) + m.p).mean(1)), 2, "ar", p=free(1, 3, WIDTH))
    made = limit(module, (3, 2), weight_var={"a": 1.5, "p": 0.7, "r": 1.0}, bias_var=0.0)
    x = points((3, 2)).view(3, 3, 2)
    expected = 1.5 * torch.einsum("iad,jbd->ij", x, x) / 2 / 9 + 0.7 / 3
    torch.testing.assert_close(made.nngp(x.flatten(1)).detach(), expected)
    assert list(made.program.weights) == ["a", "p", "r"]
    prior = NetworkPrior(made)
    assert prior.parameter_std()["p"].item() == pytest.approx(math.sqrt(0.7))
    # and the tangent kernel has its gradient: readout's, a's and p's
    weights = 1.5 * torch.einsum("iad,jbd->ij", x, x) / 2 / 9
    torch.testing.assert_close(made.ntk(x.flatten(1)).detach(), expected + weights + 0.7 / 3)


def test_slices_of_a_parameter_are_what_they_are():
    def forward(m, x):
        return m.r((m.a(x) + m.p[:2]).mean(1) + m.p[1] - 0.5 * m.p[2])

    module = simple(forward, 2, "ar", p=free(4, WIDTH))
    made = limit(module, (2, 2), weight_var={"a": 1.0, "p": 1.0, "r": 1.0}, bias_var=0.0)
    x = points((2, 2)).view(3, 2, 2)
    expected = torch.einsum("iad,jbd->ij", x, x) / 2 / 4 + 0.5**2 + 1.5**2 + 0.5**2
    torch.testing.assert_close(made.nngp(x.flatten(1)).detach(), expected)


def test_the_raw_input_counts_with_its_share():
    x = points((3,))
    k = 1.5 * x @ x.mT / 3 + 0.1
    joined = simple(lambda m, x: m.r(torch.cat([x, m.a(x)], -1)), names="a", r=dense(WIDTH + 3, 1))
    share = 3 / (WIDTH + 3)
    expected = 1.5 * (share * x @ x.mT / 3 + (1 - share) * k) + 0.1
    torch.testing.assert_close(limit(joined, (3,)).nngp(x).detach(), expected)
    added = simple(lambda m, x: m.r(x - 2 * m.a(x)), names="r", a=dense(3, 3), r=dense(3, 1))
    expected = 1.5 * (x @ x.mT / 3 + 4 * k) + 0.1
    torch.testing.assert_close(limit(added, (3,)).nngp(x).detach(), expected)


def test_means_of_the_input_meet_means_of_units():
    # (1/n) sum_k relu(u_k) x_k -> E[relu(u)] mean(x)
    module = simple(lambda m, x: m.r(F.relu(m.a(x)) + x), names="r", a=dense(3, 3), r=dense(3, 1))
    x = points((3,))
    q = 1.5 * (x**2).mean(-1) + 0.1
    expected = 1.5 * (q / 2 + 2 * (q / (2 * math.pi)).sqrt() * x.mean(-1) + (x**2).mean(-1)) + 0.1
    torch.testing.assert_close(limit(module, (3,)).nngp(x, diag=True).detach(), expected)
    torch.testing.assert_close(limit(module, (3,)).nngp(x).diagonal().detach(), expected)


@pytest.mark.parametrize(
    ("forward", "gain"),
    [
        (lambda m, x: m.r(m.g * m.a(x)), 0.3),
        (lambda m, x: m.r(m.a(x) / m.g), 0.3),
        (lambda m, x: m.r(m.a(x) * (1 + m.g)), 0.3),
        (lambda m, x: m.r(m.a(x) * (1 + m.g)), 0.0),
        (lambda m, x: m.r(m.a(x) * torch.exp(m.g)), 0.0),
        (lambda m, x: m.r(torch.tanh(m.g) * m.a(x)), 0.5),
        (lambda m, x: m.r(m.a(m.g * x)), 0.1),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (96,)])
def test_gains_are_held_at_their_values(forward, gain, shape):
    module = simple(forward, WIDTH, "ar", g=nn.Parameter(torch.full(shape, gain).double()))
    x = points((WIDTH,))
    made = limit(module, (WIDTH,), bias_var=0.0)
    tried = forward(Net(None, a=lambda x: x, r=lambda x: x, g=torch.tensor(gain).double()), x) / x
    factor = tried.mean()
    torch.testing.assert_close(made.nngp(x).detach(), 1.5**2 * factor**2 * x @ x.mT / WIDTH)
    prior = NetworkPrior(made)
    assert prior.parameter_mean()["g"] == pytest.approx(gain)
    assert prior.parameter_std()["g"] == 0


def test_comparisons_make_known_functions():
    x = points((3,))

    def leaky(m, x):
        h = m.a(x)
        return m.r(torch.where(h > 0, h, 0.1 * h))

    plain = limit(simple(lambda m, x: m.r(F.leaky_relu(m.a(x), 0.1)), names="ar"), (3,))
    made = limit(simple(leaky, names="ar"), (3,))
    for one, two in zip(made.kernels(x), plain.kernels(x), strict=True):
        torch.testing.assert_close(one, two)
    # E[1(u > v) u] with u, v independent and of one variance q is sqrt(q / pi) / 2
    module = simple(lambda m, x: m.r((m.a(x) > m.c(x)) * m.a(x) + m.a(x)), names="acr")
    q = 1.5 * (x**2).mean(-1) + 0.1
    expected = 1.5 * (q / 2 + 2 * q / 2 + q) + 0.1
    found = limit(module, (3,)).nngp(x, diag=True).detach()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_padding_is_that_of_a_convolution():
    def outside(m, x):
        return m.r(F.relu(m.b(F.pad(F.relu(m.a(x)), (2, 0)))).mean(2))

    def inside(m, x):
        h = F.relu(m.a(x))
        return m.r(F.relu(F.conv1d(h, m.b.weight, m.b.bias, padding=2)[..., :-2]).mean(2))

    parts = {"a": nn.Conv1d(2, 8, 1), "b": nn.Conv1d(8, 8, 3), "r": dense(8, 1)}
    x = points((2, 5))
    with torch.no_grad():
        for one, two in zip(
            limit(Net(outside, **parts), (2, 5)).kernels(x),
            limit(Net(inside, **parts), (2, 5)).kernels(x),
            strict=True,
        ):
            torch.testing.assert_close(one, two)


def test_one_convolution_with_two_strides():
    def strided(m, x):
        h = F.relu(m.a(x))
        half = F.conv2d(h, m.b.weight, m.b.bias, stride=2, padding=1)
        return m.r(torch.cat([F.relu(m.b(h)).flatten(1), F.relu(half).flatten(1)], 1))

    def sliced(m, x):
        h = m.b(F.relu(m.a(x)))
        half = h[..., ::2, ::2]
        return m.r(torch.cat([F.relu(h).flatten(1), F.relu(half).flatten(1)], 1))

    parts = {
        "a": nn.Conv2d(2, 8, 1),
        "b": nn.Conv2d(8, 8, 3, padding=1),
        "r": dense(8 * 20, 1),
    }
    x = points((2, 4, 4))
    with torch.no_grad():
        for one, two in zip(
            limit(Net(strided, **parts), (2, 4, 4)).kernels(x),
            limit(Net(sliced, **parts), (2, 4, 4)).kernels(x),
            strict=True,
        ):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("options", [{"keys": 1}, {"keys": 4}, {"keys": 4, "grouped": True}])
def test_shared_keys_have_the_limit_of_separate_ones(options):
    # logits of heads are independent given the keys, since their queries are
    x = points((3, 2))
    with torch.no_grad():
        for one, two in zip(
            limit(attending(**options), (3, 2)).kernels(x),
            limit(attending(), (3, 2)).kernels(x),
            strict=True,
        ):
            torch.testing.assert_close(one, two)


def test_time_first_is_batch_first():
    def encoder(first):
        def forward(m, x):
            h = m.a(x)
            return m.r(m.t(h)[:, 0] if first else m.t(h.transpose(0, 1))[0])

        layer = nn.TransformerEncoderLayer(64, 16, 64, dropout=0.0, batch_first=first)
        return Net(forward, a=dense(2, 64), t=layer, r=dense(64, 1))

    x = points((3, 2))
    with torch.no_grad():
        one, two = (limit(encoder(first), (3, 2)).nngp(x) for first in (False, True))
    torch.testing.assert_close(one, two)


def test_one_head_with_an_axis_of_its_own():
    def forward(axis):
        def attend(m, x):
            h = m.a(x)
            q, k, v = (f(h) for f in (m.q, m.k, m.b))
            if axis:
                q, k, v = (y.view(x.shape[0], 3, 1, WIDTH).transpose(1, 2) for y in (q, k, v))
            mixed = torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), -1) @ v
            return m.r((mixed.transpose(1, 2).flatten(2) if axis else mixed)[:, 0])

        return simple(attend, 2, q=dense(), k=dense())

    x = points((3, 2))
    with torch.no_grad():
        one, two = (limit(forward(axis), (3, 2)).nngp(x) for axis in (False, True))
    torch.testing.assert_close(one, two)


# Refused -----------------------------------------------------------------------------------------


def normed(norm):
    return Net(
        lambda m, x: m.r(m.b(F.relu(m.a(x)))), a=dense(3), b=norm(dense()), r=dense(WIDTH, 1)
    )


def tied(m, x):
    return m.r(F.linear(F.relu(F.linear(m.a(x), m.w)), m.w.t()))


def by_size(power):
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.r(m.b(h * h.size(-1) ** power))

    return forward


REFUSED = {
    "gate": (
        simple(lambda m, x: m.r(torch.sigmoid(m.g(x)) * m.a(x)), names="ar", g=dense(3, 1)),
        "one unit stays random",
    ),
    "maxout": (
        simple(lambda m, x: m.r(m.a(x).view(-1, 2, 48).amax(1)), names="a", r=dense(48, 1)),
        "amax.*torch.maximum",
    ),
    "maxout by max": (
        simple(lambda m, x: m.r(m.a(x).view(-1, 48, 2).max(-1)[0]), names="a", r=dense(48, 1)),
        "max.*torch.maximum",
    ),
    "transpose": (simple(tied, names="ar", w=free(96, 96)), "with its transpose.*gradient"),
    "weight_norm": (normed(nn.utils.parametrizations.weight_norm), "not independent"),
    "zero gain": (simple(lambda m, x: m.r(m.g * m.a(x)), names="ar", g=free(1)), "vanish"),
    "shared": (
        simple(lambda m, x: m.r((m.a(x) + m.g).mean(1)), 2, "ar", g=free(3, 1)),
        "does not average out",
    ),
    "nonlinear": (
        simple(lambda m, x: m.r(F.relu(m.a(x) + m.s)), names="ar", s=nn.Buffer(torch.rand(96))),
        "different constants added",
    ),
    "scaled by a size": (simple(by_size(-0.5)), r"width\*\*-0.5.*vanish"),
    "grown by a size": (simple(by_size(1)), r"width\*\*1.*grow"),
    "scaled by a number": (
        simple(lambda m, x: m.r(m.a(x) / math.sqrt(WIDTH)), names="ar"),
        r"width\*\*-0.5.*another width than 96",
    ),
    "added at a size": (
        simple(lambda m, x: m.r(F.relu(m.a(x)) + m.a(x) / m.a(x).size(-1)), names="ar"),
        r"sum of hidden units scaled by width\*\*-1",
    ),
    "shifted by a size": (
        simple(lambda m, x: m.r(F.relu(m.a(x)) + 1 / m.a(x).size(-1)), names="ar"),
        "proportional to width",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_reason(name):
    module, message = REFUSED[name]
    shape = (3, 2) if name == "shared" else (3,)
    for kind in (InfiniteNetwork, NetworkPrior):
        with pytest.raises(UnsupportedOperationError, match=message):
            kind(module, input_shape=shape)


TOKENS = {
    "relu attention": lambda m, h: torch.relu(m.q(h) @ m.k(h).mT / h.size(-1)) @ h,
    "abs attention": lambda m, h: (m.q(h) @ m.k(h).mT / h.size(-1)).abs() @ h,
    "mixing": lambda m, h: m.t(h.transpose(1, 2)).transpose(1, 2),
    "batch": lambda m, h: m.attend(h, h, h)[0],
    "weights": lambda m, h: torch.softmax(m.q(h) @ m.k(h).mT / h.size(-1), -1).log() @ h,
}
REASONS = {
    "relu attention": "relu of a product of hidden values.*logits of attention",
    "abs attention": "abs of a product of hidden values.*logits of attention",
    "mixing": "learnt map of positions.*stays finite",
    "batch": "batch_first=False.*would mix the points",
    "weights": "log of attention weights",
}


@pytest.mark.parametrize("name", TOKENS)
def test_what_tokens_may_not_do(name):
    parts = {
        "q": dense(),
        "k": dense(),
        "t": dense(3, 3),
        "attend": nn.MultiheadAttention(WIDTH, 4),
    }
    module = simple(lambda m, x: m.r(TOKENS[name](m, m.a(x))[:, 0]), 2, "ar", **parts)
    with pytest.raises(UnsupportedOperationError, match=REASONS[name]):
        InfiniteNetwork(module, input_shape=(3, 2))


def test_learnt_maps_of_positions_stay_random_at_any_width():
    """Why a mixer of tokens is refused: what it makes of many channels depends on its weights, with
    many hidden units as with few."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(2048, 3, generator=generator)

    def mean_square(hidden):
        first = torch.randn(3, hidden, generator=generator) * (2 / 3) ** 0.5
        last = torch.randn(hidden, generator=generator) / hidden**0.5
        return (torch.relu(channels @ first) @ last).square().mean()

    for hidden in (32, 512):
        values = torch.stack([mean_square(hidden) for _ in range(60)])
        assert abs(values.mean() - 1) < 4 * values.std() / 60**0.5  # of unit variance
        assert values.std() > 0.4  # 1 / sqrt(2048) and 1 / sqrt(hidden) would be below 0.18


def test_a_power_of_the_width_may_cancel():
    def forward(m, x):
        h = F.relu(m.a(x)) / math.sqrt(WIDTH)
        return m.r(m.b(h * math.sqrt(WIDTH)))

    x = points((3,))
    plain = limit(simple(lambda m, x: m.r(m.b(F.relu(m.a(x))))), (3,))
    torch.testing.assert_close(limit(simple(forward), (3,)).nngp(x), plain.nngp(x))
    # at small widths numbers are numbers
    narrow = {"a": dense(3, 4), "r": dense(4, 1)}
    half, whole = (
        limit(Net(lambda m, x, c=c: m.r(c * m.a(x)), **narrow), (3,), bias_var=0.0).nngp(x)
        for c in (0.5, 1.0)
    )
    torch.testing.assert_close(4 * half, whole)
