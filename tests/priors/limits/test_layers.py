"""Every layer's kernels against finite networks, and their exact properties.

Random networks of finite width are drawn with `NetworkPrior`: the mean of f f^T estimates the NNGP
kernel, that of the empirical tangent kernel the NTK, each with its standard error. Width n biases
them by O(1/n); `BIAS / width` of the largest entry is allowed for, fixed beforehand for all cases.
"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priors import InfiniteNetwork, NetworkPrior, Nonlinearity, QuasiMonteCarlo
from priors.networks.functional_call import call_module

WIDTH = 64
BIAS = 4.0


class Forward(nn.Module):
    """Named layers and a forward given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def dense(d_in=WIDTH, d_out=WIDTH, **options):
    return nn.Linear(d_in, d_out, **options)


def conv_net(*middle, first=None, last=None, features=WIDTH):
    first = nn.Conv2d(2, WIDTH, 3, padding=1) if first is None else first
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if last is None else last
    return nn.Sequential(first, nn.ReLU(), *middle, *last, nn.Linear(features, 4))


def conv(**options):
    return nn.Conv2d(WIDTH, WIDTH, 3, **options)


def recurrent(kind, last=True, **options):
    directions = 2 if options.get("bidirectional") else 1

    def forward(m, x):
        out, _ = m.rnn(x)
        return m.r(out[:, -1] if last else out.mean(1))

    return Forward(
        forward,
        rnn=kind(3, WIDTH, batch_first=True, **options),
        r=nn.Linear(WIDTH * directions, 4),
    )


def cells(kind):
    def forward(m, x):
        h = None
        for t in range(2):
            h = m.cell(x[:, t], h)
        return m.r(h[0] if kind is nn.LSTMCell else h)

    return Forward(forward, cell=kind(3, WIDTH), r=nn.Linear(WIDTH, 4))


def normalised_branches(m, x):
    h = F.relu(m.a(x))
    h = h + F.relu(m.b(m.layer_norm(h)))
    return m.r(F.gelu(m.rms_norm(h) + m.a(x)))


def gated(m, x):
    h = torch.cat([m.a(x).relu(), m.c(x)], -1)
    u, v = m.b(torch.tanh(h)).chunk(2, -1)
    return m.r(u * torch.sigmoid(v))


def correlated_gates(m, x):
    u, v = m.a(x), m.c(x)
    h = u * torch.sigmoid(u + v)
    return m.r(h * v - 0.5 * torch.maximum(u, v))


def skips_after_activation(m, x):
    u = m.a(x)
    h = F.relu(u + F.relu(u) - 0.5) * u
    return m.r(h + m.b(h) * torch.sigmoid(m.b(h)))


def embedded(m, x):
    return m.r(F.relu(m.b(m.e(x.long()) + m.position)).mean(1))


def folded(x):
    return (x - 0.3).abs() - x**2 / 4


def graph(m, x):
    h = F.relu(m.adjacency @ m.a(x))
    return m.r(F.relu(m.adjacency @ m.b(h)).sum(1))


def heads(m, x):
    batch, tokens = x.shape[0], x.shape[1]
    qkv = m.qkv(m.a(x)).reshape(batch, tokens, 3, 16, WIDTH // 16).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    weights = ((q @ k.transpose(-2, -1)) / math.sqrt(WIDTH // 16)).softmax(-1)
    return m.r(F.relu(m.b((weights @ v).transpose(1, 2).flatten(2))).mean(1))


def stacked(m, x):
    h = torch.stack([m.a(x[:, :3]), m.a(x[:, 3:])], 1)
    h = F.relu(m.b(h.transpose(1, 2)[..., 0].unsqueeze(1).repeat(1, 2, 1))) + F.relu(m.b(h))
    return m.r(h.view(h.size(0), -1))


class Positions(Forward):
    def __init__(self, forward, **layers):
        super().__init__(forward, **layers)
        self.position = nn.Parameter(torch.zeros(4, WIDTH))


class Graph(Forward):
    def __init__(self, forward, **layers):
        super().__init__(forward, **layers)
        rows = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.3, 0.4], [0.0, 0.5, 0.5]])
        self.register_buffer("adjacency", rows)


def simple(forward, names="abr", **layers):
    own = {"a": dense(3), "b": dense(), "c": dense(3), "r": dense(WIDTH, 4)}
    return Forward(forward, **{**{name: own[name] for name in names}, **layers})


# name -> (module, shape of one input)
EXACT = {
    "strides, dilation, groups": lambda: (
        conv_net(
            conv(dilation=2, padding=2, groups=2),
            nn.ReLU(),
            first=nn.Conv2d(2, WIDTH, 3, stride=2, padding=1),
        ),
        (2, 8, 8),
    ),
    "circular padding, pooling, flatten": lambda: (
        conv_net(
            nn.AvgPool2d(2),
            conv(),
            nn.GELU(),
            first=nn.Conv2d(2, WIDTH, 3, padding=1, padding_mode="circular"),
            last=[nn.Flatten()],
            features=4 * WIDTH,
        ),
        (2, 8, 8),
    ),
    "conv1d": lambda: (
        nn.Sequential(
            nn.Conv1d(3, WIDTH, 3, padding="same"),
            nn.Tanh(),
            nn.Conv1d(WIDTH, WIDTH, 3),
            nn.ReLU(),
            nn.AvgPool1d(2, padding=1, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(3 * WIDTH, 4),
        ),
        (3, 6),
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(1, WIDTH, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * WIDTH, 4)),
        (1, 3, 3, 3),
    ),
    "upsampling": lambda: (
        conv_net(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(stride=2),
            nn.ReLU(),
            last=[nn.Flatten()],
            features=9 * WIDTH,
        ),
        (2, 4, 4),
    ),
    "nn.RNN": lambda: (recurrent(nn.RNN), (4, 3)),
    "two bidirectional nn.RNN": lambda: (
        recurrent(nn.RNN, last=False, bidirectional=True, num_layers=2, nonlinearity="relu"),
        (2, 3),
    ),
    "concatenation and gating": lambda: (
        simple(gated, "ar", c=dense(3, WIDTH // 2), b=dense(WIDTH + WIDTH // 2, 2 * WIDTH)),
        (3,),
    ),
    "post-activation skips": lambda: (simple(skips_after_activation), (3,)),
    "embedding and positions": lambda: (
        Positions(embedded, e=nn.Embedding(5, WIDTH), b=dense(), r=dense(WIDTH, 4)),
        (4,),
    ),
    "graph": lambda: (Graph(graph, a=dense(2), b=dense(), r=dense(WIDTH, 4)), (3, 2)),
    "stack, repeat, transpose, view": lambda: (simple(stacked, r=dense(2 * WIDTH, 4)), (6,)),
    "user's nonlinearity": lambda: (
        nn.Sequential(dense(3), Nonlinearity(folded), dense(WIDTH, 4)),
        (3,),
    ),
}

# these use quasi-Monte Carlo
SAMPLED = {
    "normalised branches": lambda: (
        simple(normalised_branches, layer_norm=nn.LayerNorm(WIDTH), rms_norm=nn.RMSNorm(WIDTH)),
        (3,),
    ),
    "correlated gates": lambda: (simple(correlated_gates, "acr"), (3,)),
    "nn.LSTM": lambda: (recurrent(nn.LSTM), (3, 3)),
    "nn.GRU": lambda: (recurrent(nn.GRU), (3, 3)),
    "nn.LSTMCell": lambda: (cells(nn.LSTMCell), (2, 3)),
    "nn.GRUCell": lambda: (cells(nn.GRUCell), (2, 3)),
    "attention by hand": lambda: (
        simple(heads, qkv=dense(WIDTH, 3 * WIDTH)),
        (3, 3),
    ),
    "nn.TransformerEncoder": lambda: (
        Forward(
            lambda m, x: m.r(m.t(m.a(x))[:, 0]),
            a=dense(3),
            t=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(
                    WIDTH, 16, WIDTH, dropout=0.0, activation="gelu", batch_first=True
                ),
                2,
                enable_nested_tensor=False,
            ),
            r=dense(WIDTH, 4),
        ),
        (3, 3),
    ),
    "nn.MultiheadAttention, causal": lambda: (
        Forward(
            lambda m, x: m.r(F.relu(m.attend(m.a(x)))[:, -1]),
            a=dense(3),
            attend=Forward(
                lambda m, h: h + m.m(h, h, h, attn_mask=m.mask, need_weights=False)[0],
                m=nn.MultiheadAttention(WIDTH, 16, batch_first=True),
                mask=nn.Buffer(torch.ones(3, 3).triu(1) > 0),
            ),
            r=dense(WIDTH, 4),
        ),
        (3, 3),
    ),
}
CASES = {**EXACT, **SAMPLED}
# gates are dear: one cell in a loop stands for all, and `nn.LSTM` is its cell in a loop (see below)
GATES = ("nn.LSTM", "nn.GRU", "nn.LSTMCell")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in GATES else name for name in sorted(CASES)
]


def inputs(shape, n=3, tokens=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        return torch.randint(0, 5, (n, math.prod(shape)), generator=generator).double()
    return torch.randn(n, math.prod(shape), dtype=torch.float64, generator=generator)


def network(name, **options):
    torch.manual_seed(0)
    module, shape = CASES[name]()
    x = inputs(shape, tokens="embedding" in name)
    made = InfiniteNetwork(
        module.double().eval(), weight_var=1.5, bias_var=0.1, input_shape=shape, **options
    )
    return made, x


def finite_networks(network, x, count, tangents=0):
    """Monte Carlo means and standard errors of f f^T and of the empirical tangent kernel.

    The former of `count` networks, the latter of `tangents` of them, since it varies less.
    """
    prior = NetworkPrior(network)
    std = {name: s.double() for name, s in prior.parameter_std().items()}
    points = x.reshape(len(x), *prior.program.input_shape)
    drawn = prior.draw(torch.Size([count]), generator=torch.Generator().manual_seed(1))
    # torch has no batched form of these
    unbatched = any(isinstance(m, nn.RNNBase | nn.LSTMCell) for m in prior.module.modules())

    def outputs(parameters):
        return torch.func.functional_call(prior.module, parameters, (points,))

    def product(parameters):
        f = outputs(parameters)
        return f @ f.mT / f.shape[-1]

    def tangent(parameters):
        _, pullback = torch.func.vjp(lambda p: outputs(p)[:, 0], parameters)
        gradients = [pullback(unit)[0] for unit in torch.eye(len(x), dtype=x.dtype)]
        return sum(j @ j.mT for j in (rows(gradients, name) for name in std))

    def rows(gradients, name):
        return torch.stack([g[name].flatten() for g in gradients]) * std[name]

    found = []
    for function, some in ((product, count), (tangent, tangents)):
        parameters = {name: p[:some].to(x) for name, p in drawn.items()}
        if some == 0:
            continue
        if unbatched:
            each = [function({k: p[i] for k, p in parameters.items()}) for i in range(some)]
            values = torch.stack(each)
        else:
            values = torch.vmap(function, randomness="different", chunk_size=50)(parameters)
        found.append((values.mean(0), values.std(0) / some**0.5))
    return found


@pytest.mark.fast_for(
    "attention by hand",
    "circular padding, pooling, flatten",
    "concatenation and gating",
    "conv3d",
    "correlated gates",
    "graph",
    "nn.GRUCell",
    "nn.MultiheadAttention, causal",
    "nn.TransformerEncoder",
    "normalised branches",
    "stack, repeat, transpose, view",
    "two bidirectional nn.RNN",
    "user's nonlinearity",
)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_against_finite_networks(name):
    made, x = network(name, quadrature=QuasiMonteCarlo(512))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap of sdpa
        kernels = made.kernels(x)
        errors = made.quadrature_error(x, replicates=4)
        if name in EXACT:
            assert all((e == 0).all() for e in errors)
        else:
            assert all((e > 0).any() for e in errors)
        found = finite_networks(made, x, 300, tangents=100)
    for kernel, quadrature, (mean, error) in zip(kernels, errors, found, strict=True):
        scale = kernel.abs().max()
        allowed = 4.5 * error + quadrature + BIAS / WIDTH * scale
        assert ((mean - kernel).abs() < allowed).all()
        assert (allowed < 0.6 * scale).all()


# one layer whose limit is sampled for all
FEW = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in SAMPLED and name != "nn.MultiheadAttention, causal"
    else name
    for name in sorted(CASES)
]


@pytest.mark.fast_for(
    "circular padding, pooling, flatten",
    "concatenation and gating",
    "conv3d",
    "embedding and positions",
    "graph",
    "nn.MultiheadAttention, causal",
    "nn.RNN",
    "user's nonlinearity",
)
@pytest.mark.parametrize("name", FEW)
def test_diagonal_symmetry_and_blocks(name, monkeypatch):
    made, x = network(name, quadrature=QuasiMonteCarlo(256))
    with torch.no_grad():
        whole = made.kernels(x)
        other = made.kernels(x[:2], x[1:])
        diagonals = made.nngp(x, diag=True), made.ntk(x, diag=True)
        # heads are drawn pair by pair
        slack = [0.0, 0.0]
        if made.program.has_random_heads:
            slack = [e.max().item() for e in made.quadrature_error(x, replicates=2)]
        monkeypatch.setattr("priors.limits.evaluation.Evaluation._block", lambda self, x: 2)
        blocks = made.kernels(x)
    for k in (0, 1):
        torch.testing.assert_close(whole[k], whole[k].mT)
        torch.testing.assert_close(whole[k].diagonal(), diagonals[k])
        scale = whole[k].abs().max().item()
        assert (blocks[k] - whole[k]).abs().max() <= 1e-9 * scale
        # equal points in two tensors: the NTK has a cusp there, and rounding costs its root; of
        # heads the joint covariance is singular there, and the root of its jitter is left
        near = 3e-5 if made.program.has_random_heads else 1e-6
        assert (other[k] - whole[k][:2, 1:]).abs().max() <= near * scale
        assert torch.linalg.eigvalsh(whole[k]).min() > -max(slack[k], 1e-9 * scale)


@pytest.mark.fast_for(
    "circular padding, pooling, flatten",
    "concatenation and gating",
    "embedding and positions",
    "graph",
    "nn.MultiheadAttention, causal",
    "two bidirectional nn.RNN",
    "user's nonlinearity",
)
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_finite(name):
    made, x = network(name, quadrature=QuasiMonteCarlo(64))
    x = torch.cat([x, x[:1]])
    tokens = "embedding" in name
    x.requires_grad_(not tokens)
    value = sum(kernel.sum() for kernel in made.kernels(x))
    wanted = [*made.parameters(), *([] if tokens else [x])]
    for gradient in torch.autograd.grad(value, wanted):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_network_is_its_cell_in_a_loop(kind):
    def loop(m, x):
        h = None
        for t in range(2):
            h = m.rnn(x[:, t], h)
        return m.r(h[0] if kind is nn.LSTM else h)

    cell = nn.LSTMCell if kind is nn.LSTM else nn.GRUCell
    by_hand = Forward(loop, rnn=cell(3, WIDTH), r=nn.Linear(WIDTH, 4))
    options = {"weight_var": 1.5, "bias_var": 0.1, "input_shape": (2, 3)}
    found = [
        InfiniteNetwork(module, quadrature=QuasiMonteCarlo(64), **options)
        for module in (recurrent(kind), by_hand)
    ]
    x = inputs((2, 3), n=2)
    with torch.no_grad():
        for a, b in zip(*(made.kernels(x) for made in found), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.fast_for("circular padding, pooling, flatten", "graph")
@pytest.mark.parametrize("name", ["circular padding, pooling, flatten", "nn.LSTMCell", "graph"])
def test_gradient_by_finite_differences(name):
    made, x = network(name, quadrature=QuasiMonteCarlo(64))
    made = made.double()
    parameters = list(made.parameters())

    def value():
        return sum((kernel * weight).sum() for kernel in made.kernels(x))

    weight = torch.randn(3, 3, dtype=torch.float64)
    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters[:3], gradients[:3], strict=True):
        with torch.no_grad():
            up, down = [], []
            for step, store in ((1e-5, up), (-1e-5, down)):
                parameter += step
                store.append(value())
                parameter -= step
        torch.testing.assert_close((up[0] - down[0]) / 2e-5, gradient, rtol=1e-5, atol=1e-7)


def test_blocks_with_gradients_equal_one_block(monkeypatch):
    module = nn.Sequential(dense(3), nn.ReLU(), dense(), nn.GELU(), dense(WIDTH, 1))
    made = InfiniteNetwork(module, bias_var=0.1, max_bytes=2**12).double()
    x = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)

    def gradients():
        nngp, ntk = made.kernels(x)
        value = (nngp * ntk).sum()
        return value, *torch.autograd.grad(value, [x, *made.parameters()])

    monkeypatch.setattr("priors.limits.evaluation._CACHE_BLOCK", 2**20)
    made.max_bytes = 2**30
    whole = gradients()
    monkeypatch.setattr("priors.limits.evaluation._CACHE_BLOCK", 100)
    parts = gradients()  # kept
    made.max_bytes = 2**12
    again = gradients()  # recomputed in the backward pass
    for a, b, c in zip(whole, parts, again, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_blocks_on_several_devices_equal_one():
    module = nn.Sequential(dense(3), nn.ReLU(), dense(WIDTH, 1))
    x, z = torch.randn(700, 3), torch.randn(300, 3)
    made = InfiniteNetwork(module, bias_var=0.1)
    spread = InfiniteNetwork(module, bias_var=0.1, devices=["cpu", "cpu"])
    with torch.no_grad():
        for arguments in ((x,), (x, z)):
            for a, b in zip(made.kernels(*arguments), spread.kernels(*arguments), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(CASES))
def test_cuda_agrees_with_cpu(name):
    made, x = network(name, quadrature=QuasiMonteCarlo(256))
    with torch.no_grad():
        expected = made.kernels(x)
        for a, b in zip(made.cuda().kernels(x.cuda()), expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-9)


def test_buffers_follow_the_inputs(monkeypatch):
    def checked(module, tensors, x):
        assert {t.device for t in tensors.values()} == {x.device}
        assert "adjacency" in tensors
        return call_module(module, tensors, x)

    monkeypatch.setattr("priors.networks.finite.call_module", checked)
    module = Graph(graph, a=dense(2), b=dense(), r=dense(WIDTH, 4))
    prior = NetworkPrior(module, input_shape=(3, 2))
    assert prior.sample(torch.rand(5, 6, device="meta")).is_meta  # stands in for a GPU
    assert module.adjacency.device.type == "cpu"


def test_position_embeddings_are_learnt_positions():
    def table(m, x):
        return m.r(F.relu(m.b(m.e(x.long()) + m.p(torch.arange(4, device=x.device)))).mean(1))

    layers = {"e": nn.Embedding(5, WIDTH), "b": dense(), "r": dense(WIDTH, 4)}
    options = {"weight_var": 1.5, "bias_var": 0.1, "input_shape": (4,)}
    made = InfiniteNetwork(Forward(table, p=nn.Embedding(4, WIDTH), **layers), **options)
    expected = InfiniteNetwork(Positions(embedded, **layers), **options)
    x = inputs((4,), tokens=True)
    with torch.no_grad():
        for a, b in zip(made.kernels(x), expected.kernels(x), strict=True):
            torch.testing.assert_close(a, b)


# Properties and closed forms ---------------------------------------------------------------------


def test_translations_of_a_circular_network_with_global_pooling():
    module = conv_net(
        conv(padding=1, padding_mode="circular"),
        nn.ReLU(),
        first=nn.Conv2d(2, WIDTH, 3, padding=1, padding_mode="circular"),
    )
    made = InfiniteNetwork(module, weight_var=2.0, bias_var=0.1, input_shape=(2, 4, 4))
    x = inputs((2, 4, 4))
    rolled = x.view(3, 2, 4, 4).roll((1, 2), (2, 3)).reshape(3, -1)
    with torch.no_grad():
        for a, b in zip(made.kernels(x), made.kernels(rolled, x), strict=True):
            torch.testing.assert_close(a, b)


def test_permutations_of_tokens():
    x = inputs((3, 3))
    pooled = Forward(
        lambda m, x: m.r(m.t(m.a(x)).mean(1)),
        a=dense(3),
        t=nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, dropout=0.0, batch_first=True),
        r=dense(WIDTH, 1),
    )
    made = InfiniteNetwork(pooled, weight_var=1.5, bias_var=0.1, input_shape=(3, 3))
    order = torch.tensor([2, 0, 1])
    moved = x.view(3, 3, 3)[:, order].reshape(3, 9)
    with torch.no_grad():
        error = made.quadrature_error(x)[0].max()
        assert (made.nngp(x) - made.nngp(moved)).abs().max() < 8 * error


def test_linear_attention_has_its_closed_form():
    # K' = s^2 <K, K> K + b, Theta' = s^2 (2 <K, Theta> K + <K, K> (Theta + 4 K)) + b
    # (Hron et al. 2020), for one weight variance w in all four matrices: s^2 = w^4
    def forward(m, x):
        h = m.a(x)
        logits = m.q(h) @ m.k(h).transpose(-2, -1) / math.sqrt(WIDTH)
        return m.o(logits @ m.v(h))[:, 1]

    plain = {name: dense(bias=False) for name in "qkvo"}
    attention = Forward(forward, a=dense(3, bias=False), **plain)
    w = 1.3
    made = InfiniteNetwork(attention, weight_var=w, input_shape=(4, 3))
    x = inputs((4, 3)).view(3, 4, 3)
    k = w * torch.einsum("iad,jbd->ijab", x, x) / 3
    squares = (k * k).sum((-1, -2))
    s2 = w**4
    at = (..., 1, 1)
    with torch.no_grad():
        nngp, ntk = made.kernels(x.reshape(3, -1))
    torch.testing.assert_close(nngp, s2 * squares * k[at])
    # one layer below: Theta = K
    torch.testing.assert_close(ntk, s2 * (2 * squares * k[at] + squares * 5 * k[at]))


def test_untied_mean_field_attention_warns_and_averages():
    def forward(m, x):
        h = m.a(x)
        mixed = F.scaled_dot_product_attention(m.q(h), m.k(h), h, scale=1 / WIDTH)
        return m.r(F.relu(m.b(mixed)).mean(1))

    def uniform(m, x):
        h = m.a(x).mean(1, keepdim=True)
        return m.r(F.relu(m.b(h)).mean(1))

    layers = {"q": dense(), "k": dense()}
    x = inputs((3, 3))
    options = {"weight_var": 1.5, "bias_var": 0.1, "input_shape": (3, 3)}
    with pytest.warns(UserWarning, match="averages uniformly"):
        made = InfiniteNetwork(simple(forward, **layers), **options)
    expected = InfiniteNetwork(simple(uniform), **options)
    with torch.no_grad():
        for a, b in zip(made.kernels(x), expected.kernels(x), strict=True):
            torch.testing.assert_close(a, b)


def test_layer_norm_of_a_gaussian_gives_correlations():
    module = nn.Sequential(dense(3), nn.LayerNorm(WIDTH, eps=0.0), dense(WIDTH, 1, bias=False))
    made = InfiniteNetwork(module, weight_var={"0": 2.0, "2": 1.0}, bias_var=0.3)
    x = inputs((3,))
    k = 2 * x @ x.mT / 3 + 0.3
    root = k.diagonal().sqrt()
    torch.testing.assert_close(made.nngp(x).detach(), k / root[:, None] / root[None, :])


def test_layer_norm_between_two_kinks():
    # E relu((relu(u) - m) / s)^2 with m, s the mean and deviation of relu(u): the second kink
    # lies at u = m, elsewhere for every data point
    module = nn.Sequential(
        dense(3), nn.ReLU(), nn.LayerNorm(WIDTH, eps=0.0), nn.ReLU(), dense(WIDTH, 1, bias=False)
    )
    made = InfiniteNetwork(module, weight_var={"0": 1.5, "4": 1.0}, bias_var=0.1)
    x = inputs((3,), n=6)
    q = 1.5 * (x**2).mean(-1) + 0.1
    mean = (q / (2 * math.pi)).sqrt()
    z = mean / q.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    beyond = q * ((1 + z**2) * (1 - normal.cdf(z)) - z * normal.log_prob(z).exp())
    expected = beyond / (q / 2 - mean**2)
    torch.testing.assert_close(made.nngp(x, diag=True).detach(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(made.nngp(x).diagonal().detach(), expected, rtol=1e-9, atol=0)


def test_dropout_in_training_scales_the_diagonal():
    module = nn.Sequential(dense(3), nn.ReLU(), nn.Dropout(0.2), dense(WIDTH, 4))
    made = InfiniteNetwork(module, weight_var=1.5, bias_var=0.1)
    x = inputs((3,))
    with torch.no_grad():
        training = made.nngp(x)
        plain = InfiniteNetwork(module.eval(), weight_var=1.5, bias_var=0.1).nngp(x)
        ((mean, error),) = finite_networks_in_training(made, x)
    off = ~torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(training[off], plain[off])
    torch.testing.assert_close(training.diagonal() - 0.1, (plain.diagonal() - 0.1) / 0.8)
    assert ((mean - training).abs() < 5 * error).all()


def finite_networks_in_training(made, x):
    made.module.train()
    torch.manual_seed(3)
    return finite_networks(made, x, 2000)


def test_shift_before_relu():
    # E[relu(u + s)^2] = (q + s^2) Phi(s / sqrt q) + s sqrt(q) phi(s / sqrt q)
    module = Forward(lambda m, x: m.r(F.relu(m.a(x) + 0.7)), a=dense(3), r=dense(WIDTH, 1))
    made = InfiniteNetwork(module, weight_var=1.0, bias_var=0.0)
    x = inputs((3,))
    q = (x**2).mean(-1)
    z = 0.7 / q.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = (q + 0.49) * normal.cdf(z) + 0.7 * q.sqrt() * normal.log_prob(z).exp()
    torch.testing.assert_close(made.nngp(x, diag=True).detach(), expected, rtol=1e-7, atol=0)


def test_standard_parametrisation_is_that_of_the_weights_themselves():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1)).double()
    x = inputs((3,))
    made = InfiniteNetwork(module, weight_var=1.5, bias_var=0.1, parameterization="standard")
    with torch.no_grad():
        found = made.ntk(x)
        k0 = x @ x.mT / 3
        inner = InfiniteNetwork(module[:1], weight_var=1.5, bias_var=0.1)
        hidden = InfiniteNetwork(
            module, weight_var={"0": 1.5, "2": 1.0}, bias_var={"0": 0.1, "2": 0.0}
        )
        activations = hidden.nngp(x)
        slopes = (hidden.ntk(x) - activations) / inner.ntk(x)
        expected = 50 * activations + 1 + 1.5 * slopes * (3 * k0 + 1)
    torch.testing.assert_close(found, expected)
    lazy = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(1))
    lazy = InfiniteNetwork(lazy, parameterization="standard")
    with pytest.raises(ValueError, match=r"use nn\.Linear"):
        lazy.ntk(x)
    with pytest.raises(ValueError, match='"ntk" or "standard"'):
        InfiniteNetwork(module, parameterization="other")


def test_too_many_variables_are_refused():
    made = InfiniteNetwork(recurrent(nn.LSTM), input_shape=(12, 3), max_variables=20)
    with pytest.raises(NotImplementedError, match="max_variables=20"):
        made.nngp(inputs((12, 3)))


def test_a_jump_that_meets_its_own_input():
    def forward(m, x):
        u = m.a(x)
        return m.r(torch.sign(u) + 0.5 * u)

    made = InfiniteNetwork(simple(forward), weight_var=1.0, bias_var=0.0)
    x = inputs((3,))
    q = (x**2).mean(-1)
    # E (sign u + u / 2)^2 = 1 + E|u| + q / 4
    expected = 1 + (2 * q / math.pi).sqrt() + q / 4
    torch.testing.assert_close(made.nngp(x, diag=True).detach(), expected)


@pytest.mark.parametrize("name", ["user's nonlinearity", "circular padding, pooling, flatten"])
def test_blocks_on_several_threads_equal_one_and_leave_the_setting(name, monkeypatch):
    made, _ = network(name)
    x = inputs(made.program.input_shape, n=16)
    with torch.no_grad():
        expected = made.kernels(x)
        monkeypatch.setattr("priors.limits.evaluation._CACHE_BLOCK", 300)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(4)
            found = made.kernels(x)
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(before)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_an_error_in_a_block_reaches_the_caller(monkeypatch):
    made, x = network("user's nonlinearity", devices=["cpu", "cpu"])
    monkeypatch.setattr("priors.limits.evaluation._CACHE_BLOCK", 1)
    monkeypatch.setattr("priors.limits.moments.Moments.moment", lambda *a, **k: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        made.nngp(x)
