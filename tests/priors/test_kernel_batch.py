"""Kernels with hyperparameters of a batch are, kernel by kernel, those of one."""

import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from torch import nn

from priors import NNGPKernel
from priors.kernel_batch import expanded_kernel


def shared():
    part = RBFKernel()
    return part + ScaleKernel(part)


KERNELS = {
    "one": RBFKernel,
    "scaled": lambda: ScaleKernel(MaternKernel(ard_num_dims=2)),
    "sum": lambda: ScaleKernel(MaternKernel(ard_num_dims=2)) + LinearKernel(),
    "product": lambda: RBFKernel(active_dims=(0,)) * ScaleKernel(MaternKernel(active_dims=(1,))),
    "scaled sum of products": lambda: ScaleKernel(
        ScaleKernel(RBFKernel()) * RBFKernel() + shared()
    ),
    "network and another": lambda: (
        NNGPKernel(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        + ScaleKernel(RBFKernel())
    ),
    "a part used twice": shared,
}


@pytest.mark.parametrize("name", KERNELS)
def test_each_of_a_batch_is_the_kernel_with_its_values(name):
    kernel = KERNELS[name]().double()
    before = {name: value.clone() for name, value in kernel.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    batch = expanded_kernel(kernel, torch.Size([3, 2]))
    assert batch.batch_shape == torch.Size([3, 2])
    expanded = dict(batch.named_parameters())
    assert expanded.keys() == before.keys()
    values = {}
    for path, value in before.items():
        assert expanded[path].shape == (3, 2, *value.shape)
        noise = torch.randn(3, 2, *value.shape, generator=generator, dtype=torch.float64)
        values[path] = expanded[path].data = value + 0.5 * noise
    with torch.no_grad():
        found = batch(X).to_dense()
        for path, value in kernel.named_parameters():
            assert torch.equal(value, before[path])  # the kernel itself is as it was
        for place in ((0, 0), (2, 1)):
            for path, value in kernel.named_parameters():
                value.copy_(values[path][place])
            assert torch.allclose(found[place], kernel(X[place[1]]).to_dense(), rtol=1e-10)
