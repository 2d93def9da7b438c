"""The Gaussian process of an infinitely wide network that reads the encoded candidate."""

from __future__ import annotations

from botorch.models.model import Model
from botorch.models.transforms.input import Normalize
from gpytorch.kernels import ScaleKernel
from torch import Tensor, nn

from bayes import GaussianProcess
from nas.surrogates.graphs import fitted
from priors import NNGPKernel

__all__ = ["network_process"]

MAX_ITER = 200


def network_process(train_X: Tensor, train_Y: Tensor, num_architecture: int) -> Model:
    """`GaussianProcess` with the NNGP kernel of a ReLU network of two hidden layers.

    Its variances, a length scale of each column, a scale and the noise are learnt. Without length
    scales improvement is expected in the corners of the cube alone, where such a kernel is largest.

    Args:
        train_X: Encoded points of the unit cube, `[n, d]`.
        train_Y: Standardised targets, `[n, 1]`.
        num_architecture: How many of the columns are the architecture's; all are treated alike.
    """
    columns = train_X.shape[-1]
    # Widths mean nothing to the limit.
    with train_X.device:
        network = nn.Sequential(
            nn.Linear(columns, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)
        )
        kernel = ScaleKernel(NNGPKernel(network, ard_num_dims=columns)).to(train_X)
        # From the centre of the cube, in units of a quarter of its side: about standardised.
        bounds = train_X.new_tensor([[0.375] * columns, [0.625] * columns])
        centred = Normalize(columns, bounds=bounds, center=0.0)
        model = GaussianProcess(
            train_X, train_Y, kernel, input_transform=centred, outcome_transform=None
        )
    return fitted(model.to(train_X), MAX_ITER)
