"""Kernels of convolutional, recurrent and attention networks in GPyTorch and BoTorch."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from botorch.acquisition import qLogExpectedImprovement, qUpperConfidenceBound
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import nn

from priors import NNGPKernel, NTKKernel, QuasiMonteCarlo
from priors.limits.progress import BlockProgress
from priors.networks.infinite import InfiniteNetwork
from priors.testing import KernelContract

WIDTH = 8


class SelfAttention(nn.Module):
    """Attention scaled by 1/width with tied queries and keys."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.hidden = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.readout = nn.Linear(WIDTH, 1)

    def forward(self, x):
        h = self.embed(x)
        q = self.query(h)
        h = h + F.scaled_dot_product_attention(q, q, self.value(h), scale=1 / WIDTH)
        return self.readout(F.gelu(self.hidden(h)).mean(1))


class Recurrent(nn.Module):
    """The last state of a recurrent network."""

    def __init__(self, kind=nn.RNN):
        super().__init__()
        self.rnn, self.readout = kind(3, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)

    def forward(self, x):
        _, last = self.rnn(x)
        return self.readout((last[0] if isinstance(last, tuple) else last)[-1])


def image_network(*last):
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 2), nn.ReLU(), *last
    )


NETWORKS = {
    "pooling": (
        lambda: image_network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 1)),
        (1, 2, 3),
    ),
    "flatten": (lambda: image_network(nn.Flatten(), nn.Linear(2 * WIDTH, 1)), (1, 2, 3)),
    "attention": (SelfAttention, (2, 3)),
    "recurrent": (Recurrent, (2, 3)),
    "normalised": (
        lambda: nn.Sequential(
            nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        ),
        (6,),
    ),
}


def make(name, kind):
    module, shape = NETWORKS[name]
    return kind(module(), weight_var=1.5, bias_var=0.1, input_shape=shape)


class Contract(KernelContract):
    num_features = 6


for _name in NETWORKS:
    for _kind in (NNGPKernel, NTKKernel):

        class _Case(Contract):
            name, kind = _name, _kind

            def make_kernel(self):
                return make(self.name, self.kind)

        _Case.__name__ = f"Test{_kind.__name__}{_name.capitalize()}"
        globals()[_Case.__name__] = _Case
del _Case, Contract


class TestGatedKernel:
    """The quasi-Monte Carlo of gates is deterministic, so the same points give the same kernel."""

    def test_deterministic_and_differentiable(self):
        network = InfiniteNetwork(
            Recurrent(nn.GRU),
            bias_var=0.1,
            input_shape=(2, 3),
            quadrature=QuasiMonteCarlo(128),
        )
        kernel = NNGPKernel(network)
        x = torch.randn(4, 6, requires_grad=True)
        first, second = kernel(x).to_dense(), kernel(x).to_dense()
        assert torch.equal(first, second)
        (gradient,) = torch.autograd.grad(first.sum(), x)
        assert gradient.isfinite().all()
        torch.linalg.cholesky(first + 1e-3 * torch.eye(4))


@pytest.mark.fast_for("attention-NNGPKernel", "flatten-NTKKernel")
@pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_botorch_model_fits_and_proposes(name, kind):
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(8, 6, dtype=torch.float64, generator=generator)
    Y = (X.sin().sum(-1, keepdim=True) - 3.0) * 2
    model = SingleTaskGP(X, Y, covar_module=make(name, kind).double())
    before = [p.detach().clone() for p in model.covar_module.parameters()]
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 3}})
    assert any(
        not torch.equal(a, b) for a, b in zip(before, model.covar_module.parameters(), strict=True)
    )
    posterior = model.posterior(X[:3].unsqueeze(-3).expand(2, 3, 6))
    assert posterior.mean.shape == (2, 3, 1)
    assert (posterior.variance > 0).all()
    samples = posterior.rsample(torch.Size([5]))
    assert samples.isfinite().all()
    fantasy = model.condition_on_observations(X[:2] + 0.01, Y[:2])
    assert fantasy.posterior(X[:2]).mean.shape == (2, 1)
    bounds = torch.tensor([[0.0] * 6, [1.0] * 6], dtype=torch.float64)
    options = {"bounds": bounds, "num_restarts": 1, "raw_samples": 4, "options": {"maxiter": 2}}
    for acquisition in (
        qLogExpectedImprovement(model, Y.max()),
        qUpperConfidenceBound(model, 0.2),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            candidate, value = optimize_acqf(acquisition, q=2, **options)
        assert candidate.shape == (2, 6)
        assert value.isfinite().all()


class TestCosts:
    def costs(self, module, shape=None):
        return InfiniteNetwork(module, input_shape=shape).costs()

    def test_a_chain_of_closed_forms_is_cheap(self):
        chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU())
        assert self.costs(nn.Sequential(*chain, nn.Linear(4, 1))) == []

    def test_attention_with_random_heads_is_named(self):
        class Attend(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.MultiheadAttention(4, 2, batch_first=True)
                self.e, self.r = nn.Linear(3, 4), nn.Linear(4, 1)

            def forward(self, x):
                h = self.e(x)
                return self.r(self.a(h, h, h, need_weights=False)[0].mean(1))

        first, *_ = self.costs(Attend(), (5, 3))
        assert "nn.MultiheadAttention" in first
        assert "5 tokens" in first
        assert "Cheaper" in first

    def test_pooling_is_named(self):
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)]
        found = self.costs(nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), *pool), (1, 4, 4))
        assert any("9 x 9 pairs of positions" in reason for reason in found)

    @pytest.mark.parametrize(
        ("module", "expected"),
        [(nn.Tanh(), r"\(tanh\): interpolated"), (nn.Hardtanh(), "with kinks.*integration")],
    )
    def test_what_is_done_without_a_closed_form_is_told(self, module, expected):
        (reason,) = self.costs(nn.Sequential(nn.Linear(3, 4), module, nn.Linear(4, 1)))
        assert re.search(expected, reason)

    def progress(self, monkeypatch, times):
        """Of 50 blocks, whose clock tells these times."""
        seconds = ((t, t, t) for t in times)
        monkeypatch.setattr("priors.work_clock.WorkClock._now", lambda _: next(seconds))
        cpu = torch.device("cpu")
        return BlockProgress(50, device=cpu, shown=True, reasons=lambda: ["a slow part"])

    def test_a_first_block_that_makes_tables_is_no_estimate(self, monkeypatch, capsys):
        # made, then the first block after 100 s, the others every 0.1 s
        times = itertools.chain([0.0], itertools.count(100.0, 0.1))
        progress = self.progress(monkeypatch, times)
        for _ in range(50):
            progress.update()  # warnings are errors
        progress.close()
        assert capsys.readouterr().err == ""

    def test_a_long_kernel_shows_a_bar_and_minutes_are_announced(self, monkeypatch, capsys):
        times = itertools.count(0.0, 6.0)
        progress = self.progress(monkeypatch, times)
        progress.update()  # the first is no evidence: it makes what all share
        with pytest.warns(UserWarning, match=r"about 5 minutes(.|\n)*\* a slow part"):
            progress.update()
        progress.close()
        assert "kernel" in capsys.readouterr().err
