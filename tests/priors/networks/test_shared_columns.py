"""Which columns of flat inputs meet the same weights."""

import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch import nn

from priors import NetworkPrior, NNGPKernel, NTKKernel
from priors.kernels.network import columns_together
from priors.networks.shared_columns import joined, shared_columns


class Read(nn.Module):
    """A layer at some vectors that are made of the input, summed."""

    def __init__(self, vectors, features):
        super().__init__()
        self.vectors = vectors
        self.embed, self.readout = nn.Linear(features, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.readout(sum(torch.relu(self.embed(v)) for v in self.vectors(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.readout = nn.Linear(2, 4), nn.Linear(4, 1)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.embed(x)
        return self.readout(self.attend(h, h, h, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.readout = nn.RNN(2, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.readout(self.cell(x)[0][:, -1])


def convolution(channels, kernel=2):
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    return nn.Sequential(nn.Conv2d(channels, 4, kernel), *head)


def perceptron(features):
    return nn.Sequential(nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 1))


def patches(x):
    """Quarters of a 4 x 4 image, as tokens."""
    tokens = x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(x.shape[0], 4, 4)
    return [tokens[:, k] for k in range(4)]


NETWORKS = {
    "rows": (perceptron(3), None, []),
    "channels": (convolution(2), (2, 2, 2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    "rows made an image": (
        nn.Sequential(nn.Unflatten(1, (1, 2, 3)), convolution(1)),
        (6,),
        [[0, 1, 2, 3, 4, 5]],
    ),
    "an image made rows": (nn.Sequential(nn.Flatten(), perceptron(4)), (1, 2, 2), []),
    "tokens": (Attention(), (3, 2), [[0, 2, 4], [1, 3, 5]]),
    "times": (Recurrent(), (3, 2), [[0, 2, 4], [1, 3, 5]]),
    "patches": (
        Read(patches, 4),
        (4, 4),
        [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]],
    ),
    "twins": (Read(lambda x: [x[:, :2], x[:, 3:]], 2), (5,), [[0, 3], [1, 4]]),
    "overlap": (Read(lambda x: [x[:, :2], x[:, 1:]], 2), (3,), [[0, 1, 2]]),
    "computed": (Read(lambda x: [x[:, :2] ** 2, x[:, 1:]], 2), (3,), []),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_columns_that_meet_the_same_weights(name):
    module, shape, expected = NETWORKS[name]
    assert shared_columns(NetworkPrior(module, input_shape=shape).program) == expected


def test_groups_with_a_common_member_are_one():
    assert joined([[5], [1, 2], [7, 3], [2, 2, 3], []]) == [[1, 2, 3, 7]]
    assert joined([[4, 4]]) == []


def test_columns_of_a_kernel_are_those_of_its_networks():
    image = NNGPKernel(convolution(1), input_shape=(1, 2, 2), active_dims=(6, 2, 3, 4))
    pair = NTKKernel(Read(lambda x: [x[:, :1], x[:, 1:]], 1), input_shape=(2,), active_dims=(0, 5))
    others = RBFKernel(active_dims=(1,)) + NNGPKernel(perceptron(7))
    assert columns_together(image * pair + others) == [[0, 5], [2, 3, 4, 6]]
    assert columns_together(RBFKernel()) == []
