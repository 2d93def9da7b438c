"""Learning curves of a user."""

import pytest
import torch

from pfn import load, predict_curve
from priors.tasks.training_curves import log_time

EPOCHS = [1, 2, 4, 8, 16]
VALUES = [0.4, 0.55, 0.66, 0.72, 0.76]


@pytest.fixture(scope="module")
def network():
    return load("learning-curve")


def test_it_is_the_networks_posterior(network):
    found = predict_curve(EPOCHS, VALUES, at=[50, 100], maximum=100, network=network)
    X = log_time(torch.tensor(EPOCHS).double(), 100)[:, None]
    model = network.condition(X, torch.tensor(VALUES).double()[:, None], check=False)
    asked = log_time(torch.tensor([50.0, 100.0]).double(), 100)[:, None]
    torch.testing.assert_close(found.mean, model.posterior(asked, observation_noise=True).mean)
    assert found.mean.shape == (2, 1)


def test_errors_are_mirrored_accuracies(network):
    options = {"at": 100, "maximum": 100, "network": network}
    up = predict_curve(EPOCHS, VALUES, **options)
    down = predict_curve(EPOCHS, [100 - 100 * v for v in VALUES], best=0, worst=100, **options)
    torch.testing.assert_close(down.mean, 100 - 100 * up.mean)
    torch.testing.assert_close(down.variance, 1e4 * up.variance)
    p = torch.tensor(0.1).double()
    torch.testing.assert_close(down.quantile(1 - p), 100 - 100 * up.quantile(p))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": VALUES[:2]}, "one value for each epoch"),
        ({"at": 101}, "must lie in"),
        ({"epochs": [0, 1, 2, 3, 4]}, "must lie in"),
        ({"best": 0.0}, "best another number"),
        ({"values": [float("nan")] * 5}, "finite"),
    ],
)
def test_refusals(network, changes, message):
    options = {"epochs": EPOCHS, "values": VALUES, "at": 100, "maximum": 100, **changes}
    with pytest.raises(ValueError, match=message):
        predict_curve(network=network, **options)


def test_values_beyond_the_bounds_are_told(network):
    options = {"at": 100, "maximum": 100, "network": network}
    with pytest.warns(UserWarning, match=r"takes 4 of 4 values, 1\.4 to 2\.3, .* best=0 of a loss"):
        predict_curve([1, 2, 3, 4], [2.3, 1.9, 1.6, 1.4], **options)
    predict_curve([1, 2, 3, 4], [2.3, 1.9, 1.6, 1.4], best=0.0, worst=2.5, **options)
    predict_curve([1, 2], [-0.02, 0.1], **options)
