"""Kronecker factors of the curvature: against full matrices where they are exact."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes import BayesianNetwork, Laplace
from bayes.inference.laplace import _curvature_root
from bayes.networks.density import NetworkPosterior
from priors import NetworkPrior

pytest.importorskip("curvlinops")
pytestmark = pytest.mark.usefixtures("without_graphs")  # fits are of a few steps

double = torch.float64
QUIET = {"num_starts": 1, "num_training_steps": 50, "progress": False}


def data(n=20, d=3, outputs=1):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=double)
    return X, X[:, :1] + 0.3 * torch.randn(n, outputs, generator=generator, dtype=double)


def position_of(model):
    generator = torch.Generator().manual_seed(1)
    return NetworkPosterior(model).log_density().start(generator, 1, model.train_X)[0]


def precision_of(model, position):
    """I + J' L J of the whitened weights, by automatic differentiation of the outputs."""
    posterior = NetworkPosterior(model)
    number = posterior.num_weights

    def outputs(eps):
        return posterior.functions(torch.cat([eps, position[number:]]))

    jacobian = torch.func.jacrev(outputs)(position[:number]).detach()
    curvature = posterior.likelihood_curvature(outputs(position[:number]).detach(), position)
    inner = torch.einsum("nkd,nkl,nle->de", jacobian, curvature.detach(), jacobian)
    return torch.eye(number, dtype=double) + inner


def kronecker_of(model, position):
    """The precision that the factors say."""
    posterior = NetworkPosterior(model)
    roots = _curvature_root(posterior, posterior.functions(position).detach(), position)
    precision = torch.eye(posterior.num_weights, dtype=double)
    for layer in posterior.kronecker_factors(position, roots):
        where = layer.places.flatten()
        block = torch.kron(layer.outputs, layer.inputs)
        precision[where.unsqueeze(-1), where] += block
        _, log_det = torch.linalg.slogdet(block + torch.eye(len(block), dtype=double))
        assert layer.log_det == pytest.approx(log_det.item(), rel=1e-10)
    return precision


@pytest.mark.parametrize("bias_var", [0.4, 0.0])
@pytest.mark.parametrize("outputs", [1, 2])
def test_factors_of_a_linear_layer_are_exact(outputs, bias_var):
    X, Y = data(outputs=outputs)
    prior = NetworkPrior(nn.Linear(3, outputs), weight_var=1.7, bias_var=bias_var)
    model = BayesianNetwork(X, Y, prior)
    position = position_of(model)
    torch.testing.assert_close(kronecker_of(model, position), precision_of(model, position))


def test_factors_of_one_row_are_exact_within_layers():
    # an expectation over one row and one output is a product
    X, Y = data(n=1)
    Y = torch.ones_like(Y)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    prior = NetworkPrior(module, weight_var={"0": 1.5, "2": 2.0, "4": 0.7}, bias_var=0.3)
    model = BayesianNetwork(X, Y, prior, likelihood="poisson", input_transform=None)
    position = position_of(model)
    found, truth = kronecker_of(model, position), precision_of(model, position)
    sizes = list(model.whitening.sizes().values())
    start = 0
    for layer in range(3):
        end = start + sizes[2 * layer] + sizes[2 * layer + 1]
        torch.testing.assert_close(found[start:end, start:end], truth[start:end, start:end])
        assert (found[start:end, end:] == 0).all()
        start = end


def test_a_convolution_whose_patches_are_one_row_is_exact():
    # a kernel as large as the image is a linear layer
    X, Y = data(n=15, d=8)
    prior = NetworkPrior(
        nn.Sequential(nn.Conv2d(2, 1, 2), nn.Flatten(), nn.Linear(1, 1)),
        bias_var={"0": 0.5, "2": 0.0},
        input_shape=(2, 2, 2),
    )
    model = BayesianNetwork(X, Y, prior)
    position = position_of(model)
    truth = precision_of(model, position)[:9, :9]
    torch.testing.assert_close(kronecker_of(model, position)[:9, :9], truth)


def test_draws_have_the_covariance_of_their_factors():
    X, Y = data(outputs=2)
    known = torch.full_like(Y, 0.1)  # unknown noise depends on the structure
    model = BayesianNetwork(X, Y, NetworkPrior(nn.Linear(3, 2)), train_Yvar=known)
    fitted = {
        structure: model.fit(Laplace(structure=structure, num_draws=4000, **QUIET)).draws
        for structure in ("full", "kronecker")
    }
    full, found = (torch.cov(draws.samples["eps"][0].mT) for draws in fitted.values())
    torch.testing.assert_close(found, full, atol=0.05, rtol=0.2)
    evidence = {name: draws.log_evidence for name, draws in fitted.items()}
    assert evidence["kronecker"] == pytest.approx(evidence["full"], abs=1e-6)


def test_the_last_layer_alone():
    X, Y = data()
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    model = BayesianNetwork(X, Y, NetworkPrior(module), train_Yvar=torch.full_like(Y, 0.1))
    full, found = (
        model.fit(Laplace("last_layer", structure, num_draws=4000, **QUIET)).draws.samples["eps"]
        for structure in ("full", "kronecker")
    )
    assert (found[0, :, :20].std(0) < 1e-12).all()
    torch.testing.assert_close(found.var((0, 1)), full.var((0, 1)), atol=1e-12, rtol=0.2)


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for _ in range(2):
            x = torch.tanh(self.again(x))
        return self.last(x)


def test_what_has_no_factors_is_refused():
    X, Y = data()
    method = Laplace(structure="kronecker", **QUIET)
    with pytest.raises(NotImplementedError, match="not 'again'; take structure"):
        BayesianNetwork(X, Y, NetworkPrior(Looped())).fit(method)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(NotImplementedError, match="needs a network with layers"):
        method.run(model, torch.zeros(1))
