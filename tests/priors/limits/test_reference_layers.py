"""Layers and nonlinearities against stored values of neural-tangents (see the file's `source`)."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from priors import InfiniteNetwork, Nonlinearity
from priors.gaussian.activations import Gabor, Gaussian, RectifiedPower

REFERENCE = json.loads(Path(__file__).with_name("reference_layers.json").read_text())["cases"]
WIDTH = 6


class Forward(nn.Module):
    """Layers a, b, c, d, r and a forward given as a function."""

    def __init__(self, forward, d=4, widths=(WIDTH, WIDTH, WIDTH, WIDTH)):
        super().__init__()
        a, b, c, r = widths
        self.a, self.b, self.c = nn.Linear(d, a), nn.Linear(a, b), nn.Linear(a, c)
        self.r = nn.Linear(r, 1)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def images(*, middle=(), last="gap", size=6, conv=None, **options):
    conv = {"padding": 1} if conv is None else conv
    head = [nn.Flatten(), nn.Linear(WIDTH * size**2, 1)]
    if last == "gap":
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 1)]
    return nn.Sequential(
        nn.Conv2d(2, WIDTH, 3, **{**conv, **options}),
        nn.ReLU(),
        *middle,
        nn.Conv2d(WIDTH, WIDTH, 3, **conv),
        nn.ReLU(),
        *head,
    )


class GlobalSum(nn.Module):
    def forward(self, x):
        return x.sum((2, 3))


class ChannelNorm(nn.Module):
    """LayerNorm over channels alone, which come first."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def concat(m, x):
    h = torch.relu(m.a(x))
    return m.r(torch.cat([torch.relu(m.b(h)), torch.erf(m.c(h))], -1))


def product(m, x):
    h = torch.relu(m.a(x))
    return m.r(m.b(h) * torch.erf(m.c(h)))


def activation(function):
    layer = Nonlinearity(function)
    return lambda: nn.Sequential(nn.Linear(4, WIDTH), layer, nn.Linear(WIDTH, 1))


class Function(nn.Module):
    """A nonlinearity as it stands in an ordinary forward."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


circular = {"padding": 1, "padding_mode": "circular"}
pool = (nn.AvgPool2d(2),)
NETWORKS = {
    # "SAME" with stride 2 pads at the end alone
    "conv_stride2_gap": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), *images(stride=2, padding=0)
    ),
    "conv_stride2_flatten": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), *images(stride=2, padding=0, last="flatten", size=3)
    ),
    "conv_valid_gap": lambda: images(conv={}),
    "conv_valid_flatten": lambda: images(conv={}, last="flatten", size=2),
    "conv_circular_gap": lambda: images(conv=circular),
    "conv_circular_flatten": lambda: images(conv=circular, last="flatten"),
    "conv_avgpool_gap": lambda: images(middle=pool),
    "conv_avgpool_flatten": lambda: images(middle=pool, last="flatten", size=3),
    "conv_globalsum": lambda: nn.Sequential(*images()[:4], GlobalSum(), nn.Linear(WIDTH, 1)),
    "conv_layernorm": lambda: nn.Sequential(
        nn.Conv2d(2, WIDTH, 3, padding=1),
        ChannelNorm(),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        ChannelNorm(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 1),
    ),
    "conv_layernorm_all": lambda: nn.Sequential(
        nn.Conv2d(2, WIDTH, 3, padding=1),
        nn.LayerNorm((WIDTH, 6, 6)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36 * WIDTH, 1),
    ),
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(3, WIDTH, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * WIDTH, 1)
    ),
    "dropout_train": lambda: nn.Sequential(
        nn.Linear(4, WIDTH),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(WIDTH, 1),
    ),
    "concat": lambda: Forward(concat, widths=(6, 3, 2, 5)),
    "product": lambda: Forward(product),
    "standard_512": lambda: nn.Sequential(
        nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
    ),
    "fc_sign": lambda: Function(torch.sign),
    "fc_rectified2": lambda: Function(lambda x: torch.relu(x) ** 2),
    "fc_gaussian": activation(Gaussian()),
    "fc_gabor": activation(Gabor()),
    "fc_monomial2": lambda: Function(torch.square),
    "fc_monomial3": lambda: Function(lambda x: x**3),
    "fc_polynomial": lambda: Function(lambda x: 0.5 + x - 0.3 * x**2 + 0.1 * x**3),
    "fc_exp": lambda: Function(lambda x: torch.exp(0.5 * x)),
    "fc_sigmoid_like": lambda: Function(lambda x: torch.erf(x / 2.4020563531719796) / 2 + 0.5),
}


def test_all_stored_cases_are_tested():
    assert set(NETWORKS) == set(REFERENCE)
    assert RectifiedPower(2) in [
        factor.function
        for node in InfiniteNetwork(NETWORKS["fc_rectified2"]()).program.nodes
        for factor in getattr(node, "factors", ())
    ]


@pytest.mark.parametrize("case", sorted(REFERENCE))
def test_reference_values(case):
    stored = {k: torch.tensor(v, dtype=torch.float64) for k, v in REFERENCE[case].items()}
    shape = (3, 5) if case == "conv1d" else (2, 6, 6) if case.startswith("conv") else (4,)
    standard = case.startswith("standard")
    network = InfiniteNetwork(
        NETWORKS[case]().train(),
        weight_var=1.44,
        bias_var=0.01,
        input_shape=shape,
        parameterization="standard" if standard else "ntk",
    )
    assert math.prod(shape) == stored["x1"].shape[-1]
    with torch.no_grad():
        found = dict(zip(("nngp", "ntk"), network.kernels(stored["x1"], stored["x2"]), strict=True))
        own = network.kernels(stored["x1"])
        found |= dict(zip(("nngp_self", "ntk_self"), own, strict=True))
    for name, value in found.items():
        if name in stored:  # theirs loses the root of the precision on the NTK's diagonal
            rtol = 1e-7 if name == "ntk_self" else 1e-9
            torch.testing.assert_close(value, stored[name], rtol=rtol, atol=1e-12)
