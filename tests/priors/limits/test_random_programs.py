"""Random programs, whose kernels are those of wide finite networks and obey exact laws.

hypothesis draws what a network does to its hidden values, step by step: layers, tied ones, branches
that are added, normalisation, windows over positions, attention. Every step ends in a matrix
product, so that the value it leaves is Gaussian in the limit.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from priors import InfiniteNetwork, NetworkPrior
from priors.diagnostics.monte_carlo import monte_carlo_kernels

WIDTH = 96
NETWORKS = 60
BIAS = 4.0  # of finite width, in units of the largest entry over the width
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "sin": torch.sin}
COMMON = ("layer", "tied", "residual", "branches", "correlated", "normalised")
OWN = {"rows": (), "windows": ("window",), "tokens": ("attention",)}
SHAPES = {"rows": (3,), "windows": (2, 4), "tokens": (3, 2)}


class Program(nn.Module):
    """A network of drawn steps; widths `WIDTH`, one output."""

    def __init__(self, mode, steps):
        super().__init__()
        self.mode, self.steps = mode, steps
        self.first, self.last = self._layer(2 if mode != "rows" else 3), nn.Linear(WIDTH, 2)
        self.mapped = nn.ModuleDict()  # what the steps use, and no more
        for index, (step, _) in enumerate(steps):
            if step in ("tied", "correlated", "attention"):
                self.mapped["shared"] = self._layer()
            if step not in ("tied", "correlated"):
                self.mapped[f"layer{index}"] = self._layer(size=3 if step == "window" else 1)
            if step in ("branches", "attention"):
                self.mapped[f"other{index}"] = self._layer()
            if step == "normalised" and mode != "windows":
                self.mapped[f"norm{index}"] = nn.LayerNorm(WIDTH)

    def _layer(self, width=WIDTH, size=1):
        if self.mode == "windows":
            return nn.Conv1d(width, WIDTH, size, padding=size // 2)
        return nn.Linear(width, WIDTH)

    def forward(self, x):
        h = self.first(x)
        for index, (step, name) in enumerate(self.steps):
            h = self._step(step, ACTIVATIONS[name], h, index)
        if self.mode != "rows":
            h = h.mean(2 if self.mode == "windows" else 1)
        return self.last(h)

    def _step(self, step, phi, h, index):
        names = ("shared", f"layer{index}", f"other{index}", f"norm{index}")
        use = {
            name.rstrip("0123456789"): self.mapped[name] for name in names if name in self.mapped
        }
        match step:
            case "tied":
                return use["shared"](phi(h))
            case "residual":
                return h + use["layer"](phi(h))
            case "branches":
                return use["layer"](phi(h)) + use["other"](F.relu(h))
            case "correlated":
                return use["shared"](phi(h)) - 0.5 * use["shared"](h)
            case "normalised" if self.mode != "windows":
                return use["layer"](use["norm"](phi(h)))
            case "attention":
                q, v = use["shared"](h), use["other"](h)
                return use["layer"](F.scaled_dot_product_attention(q, q, v, scale=1 / WIDTH))
            case _:
                return use["layer"](phi(h))


@st.composite
def programs(draw):
    mode = draw(st.sampled_from(sorted(SHAPES)))
    kinds = st.sampled_from(COMMON + OWN[mode])
    steps = st.tuples(kinds, st.sampled_from(sorted(ACTIVATIONS)))
    chosen = tuple(draw(st.lists(steps, min_size=1, max_size=3)))
    torch.manual_seed(0)  # weights do not matter; hypothesis puts the state back
    return Program(mode, chosen)


def limit(module, **options):
    return InfiniteNetwork(
        module, weight_var=1.5, bias_var=0.2, input_shape=SHAPES[module.mode], **options
    )


def points(module, count, seed=0):
    size = torch.Size(SHAPES[module.mode]).numel()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


HEALTH = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=6, derandomize=True, **HEALTH)
@given(programs())
def test_kernels_are_those_of_wide_networks(module):
    check_kernels(module)


@pytest.mark.slow
@settings(max_examples=30, derandomize=True, **HEALTH)
@given(programs())
def test_kernels_of_more_programs_are_those_of_wide_networks(module):
    check_kernels(module)


def check_kernels(module):
    """NNGP and NTK within five standard errors and the bias of the width."""
    x = points(module, 3)
    prior = NetworkPrior(
        module, weight_var=1.5, bias_var=0.2, input_shape=SHAPES[module.mode]
    ).double()
    found = monte_carlo_kernels(
        prior,
        x,
        num_networks=NETWORKS,
        generator=torch.Generator().manual_seed(1),
        progress=False,
    )
    with torch.no_grad():
        nngp, ntk = limit(module).double().kernels(x)
    for exact, value, error in (
        (nngp, found.nngp, found.nngp_error),
        (ntk, found.ntk, found.ntk_error),
    ):
        allowed = 5 * error + BIAS / WIDTH * exact.abs().max()
        assert ((value - exact).abs() <= allowed).all(), module.steps


@settings(max_examples=5, derandomize=True, **HEALTH)
@given(programs())
def test_laws(module):
    """Symmetry, diagonals, blocks, batches, positive eigenvalues."""
    check_laws(module)


@pytest.mark.slow
@settings(max_examples=50, derandomize=True, **HEALTH)
@given(programs())
def test_laws_of_more_programs(module):
    check_laws(module)


def check_laws(module):
    network = limit(module).double()
    x, z = points(module, 5), points(module, 3, seed=1)
    with torch.no_grad():
        whole = network.kernels(x)
        across, back = network.kernels(x, z), network.kernels(z, x)
        diagonals = network.kernels(x, diag=True)
        small = limit(module, max_bytes=1).double().kernels(x)
        batch = network.kernels(torch.stack([x, x.flip(0)]))
    for kind in range(2):
        scale = whole[kind].abs().max()
        close = {"rtol": 1e-9, "atol": 1e-9 * float(scale)}
        torch.testing.assert_close(whole[kind], whole[kind].mT, **close)
        torch.testing.assert_close(across[kind], back[kind].mT, **close)
        torch.testing.assert_close(diagonals[kind], whole[kind].diagonal(), **close)
        torch.testing.assert_close(small[kind], whole[kind], **close)
        torch.testing.assert_close(batch[kind][0], whole[kind], **close)
        torch.testing.assert_close(batch[kind][1], whole[kind].flip(0, 1), **close)
        assert torch.linalg.eigvalsh(whole[kind]).min() > -1e-9 * scale
