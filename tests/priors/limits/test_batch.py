"""The kernel of a whole batch against its closed form and finite networks."""

import pytest
import torch
from torch import nn

from priors import QuasiMonteCarlo, UnsupportedOperationError, batch_kernel, batch_kernel_error
from priors.gaussian.activations import ABReLU
from priors.limits.batch import homogeneous_batch_norm


def batch(n=4, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def replicated(module, x, seeds=8, **options):
    kernels = torch.stack(
        [
            batch_kernel(module, x, quadrature=QuasiMonteCarlo(2**12, s), **options)
            for s in range(seeds)
        ]
    )
    return kernels.mean(0), kernels.std(0) / seeds**0.5


def finite(module, x, count, weight_var, bias_var):
    """Mean and standard error of f f^T over random networks of the module's widths."""
    generator = torch.Generator().manual_seed(1)
    squares = []
    for _ in range(count):
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    fan_in = layer.weight[0].numel()
                    layer.weight.normal_(0, (weight_var / fan_in) ** 0.5, generator=generator)
                    if layer.bias is not None:
                        layer.bias.normal_(0, bias_var**0.5, generator=generator)
            f = module(x)
        squares.append(f @ f.mT / f.shape[-1])
    stacked = torch.stack(squares)
    return stacked.mean(0), stacked.std(0) / count**0.5


def test_relu_has_the_closed_form_of_yang():
    x = batch(5)
    found = homogeneous_batch_norm(ABReLU(), ABReLU(), x @ x.mT / 3, 0.0)
    assert found.trace().item() == pytest.approx(2.5, rel=1e-8)  # half the batch
    module = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8, eps=0.0), nn.ReLU(), nn.Linear(8, 1, bias=False)
    )
    kernel = batch_kernel(module, x, weight_var=1.0, bias_var=0.0)
    torch.testing.assert_close(kernel, found)
    assert (batch_kernel_error(module, x, weight_var=1.0, bias_var=0.0) == 0).all()


@pytest.mark.covering
@pytest.mark.parametrize(("n", "eps"), [(5, 1e-5), (3, 0.3), (2, 0.0), (2, 1e-3)])
@pytest.mark.parametrize("slope", [0.0, -0.4, 1.0])
def test_closed_forms_by_monte_carlo(n, eps, slope):
    x = batch(n)
    phi = ABReLU(slope, 1.0)
    covariance = x @ x.mT / 3 + 0.2
    found = homogeneous_batch_norm(phi, ABReLU(), covariance, eps)
    root = torch.linalg.cholesky(covariance)
    g = torch.Generator().manual_seed(1)
    h = torch.randn(200_000, n, dtype=torch.float64, generator=g) @ root.mT
    h = h - h.mean(-1, keepdim=True)
    y = h / (h.square().mean(-1, keepdim=True) + eps).sqrt()
    products = phi(y)[:, :, None] * torch.relu(y)[:, None, :]
    error = products.std(0) / len(h) ** 0.5
    assert ((products.mean(0) - found).abs() < 4.5 * error + 1e-9).all()


def test_the_stated_error_of_other_nonlinearities_holds():
    x = batch(4)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    options = {"weight_var": 1.0, "bias_var": 0.1}
    truth = batch_kernel(module, x, quadrature=QuasiMonteCarlo(2**15, 99), **options)
    ratios = []
    for seed in range(20):
        rule = QuasiMonteCarlo(2**10, seed)
        kernel = batch_kernel(module, x, quadrature=rule, **options)
        error = batch_kernel_error(module, x, quadrature=rule, **options)
        ratios.append(((kernel - truth).abs() / error)[0, 1])
    assert torch.stack(ratios).median() < 1
    assert (torch.stack(ratios) > 1).sum() <= 1


def test_a_network_that_meets_its_normalised_layer_again():
    class Skip(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b, self.r = (
                nn.Linear(3, width),
                nn.Linear(width, width),
                nn.Linear(width, 8),
            )
            self.first, self.second = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

        def forward(self, x):
            h = self.a(x)
            h = h + self.b(torch.tanh(self.first(h)))
            return self.r(torch.relu(self.second(h)) + 0.5 * h)

    torch.manual_seed(0)
    x, module = batch(), Skip(128).double()
    mean, error = replicated(module, x, weight_var=1.5, bias_var=0.1)
    found, spread = finite(module, x, 400, 1.5, 0.1)
    allowed = 5 * (spread**2 + error**2).sqrt() + 4 / 128 * mean.abs().max()
    assert ((found - mean).abs() < allowed).all()
    assert (allowed < 0.4 * mean.abs().max()).all()


def test_images():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 2, stride=2),
        nn.BatchNorm2d(64),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64, 8),
    ).double()
    x = batch(3, 8)
    mean, error = replicated(module, x, input_shape=(2, 2, 2), weight_var=1.5, bias_var=0.1)
    found, spread = finite(nn.Sequential(nn.Unflatten(1, (2, 2, 2)), module), x, 300, 1.5, 0.1)
    allowed = 5 * (spread**2 + error**2).sqrt() + 4 / 64 * mean.abs().max()
    assert ((found - mean).abs() < allowed).all()
    assert (allowed < 0.5 * mean.abs().max()).all()


def test_errors():
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"at least 2 rows \[B, d\], got \(1, 3\)"):
        batch_kernel(module, batch(1))
    with pytest.raises(UnsupportedOperationError, match=r"call train\(\)"):
        batch_kernel(module.eval(), batch())
    after = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    with pytest.raises(UnsupportedOperationError, match="that of a linear layer"):
        batch_kernel(after, batch())
