import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel

from priors.tasks.stationary import STATIONARY, stationary

KNOWN = {
    "matern12": MaternKernel(0.5),
    "matern32": MaternKernel(1.5),
    "matern52": MaternKernel(2.5),
    "rbf": RBFKernel(),
    "rq": RQKernel(),
}


@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_are_gpytorchs(name, dtype):
    kernel = KNOWN[name].to(dtype)
    kernel.lengthscale = 1.0
    if name == "rq":
        kernel.alpha = 0.7
    x = torch.tensor([[0.0], [1e-3], [0.4], [1.0], [5.0]], dtype=dtype)
    r2 = x.mT.square().repeat(2, 1)
    found = stationary(name, r2, torch.tensor([0.7, 2.0], dtype=dtype))
    torch.testing.assert_close(found[0], kernel(x[:1], x).to_dense().detach()[0])
    if name == "rq":  # each row of its own
        torch.testing.assert_close(found[1], (1 + x[:, 0].square() / 4) ** -2)


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="unknown kernel 'matern72'"):
        stationary("matern72", torch.zeros(1, 2))
    with pytest.raises(ValueError, match="needs its exponent"):
        stationary("rq", torch.zeros(1, 2))
