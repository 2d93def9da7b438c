"""Leave-one-out predictions in closed form against models without the row."""

import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from torch.distributions.transforms import ExpTransform

from bayes.inference.draws import Draws
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.student_t_process import StudentTProcess

PROCESSES = [GaussianProcess, StudentTProcess]
N, D = 9, 2


def rows(*batch, m=1, seed=0, unit=10.0):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.rand(*batch, N, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(*batch, N, m, generator=generator, dtype=torch.float64)
    return X, unit * (torch.sin(X[..., :1]) + X[..., 1:] + 0.3 * noise)


def without(model, i):
    """The model without row i, hyperparameters and transforms as they are."""
    keep = [j for j in range(N) if j != i]
    X, Y, Yvar = model.train_X, model.train_Y, model.train_Yvar
    if Yvar is None:
        other = type(model)(X, Y, model.covar_module)
        other.load_state_dict(model.state_dict())
        other.set_train_data(X[..., keep, :], Y[..., keep, :], strict=False)
        return other.posterior(X[..., [i], :], observation_noise=True)
    own = {"input_transform": model.input_transform, "outcome_transform": None}
    if model._outcome is not None:
        own["outcome_transform"] = model._outcome.transform
    other = type(model)(
        X[..., keep, :],
        Y[..., keep, :],
        model.covar_module,
        train_Yvar=Yvar[..., keep, :],
        **own,
    )
    return other.posterior(X[..., [i], :], observation_noise=Yvar[..., [i], :])


def agree(model, loo, Y):
    for i in range(N):
        truth = without(model, i)
        row = (..., [i], slice(None))
        for ours, theirs in ((loo.mean, truth.mean), (loo.variance, truth.variance)):
            torch.testing.assert_close(ours[row], theirs, rtol=1e-8, atol=1e-8)
        for value in (Y, Y + 3.0):
            torch.testing.assert_close(
                loo.log_prob(value)[row], truth.log_prob(value[row]), rtol=1e-8, atol=1e-8
            )
            torch.testing.assert_close(
                loo.cdf(value)[row], truth.cdf(value[row]), rtol=1e-8, atol=1e-8
            )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("known", [False, True])
def test_each_row_is_predicted_as_by_a_model_without_it(process, m, batch, known):
    X, Y = rows(*batch, m=m)
    Yvar = 1.0 + Y.square() / 10 if known else None
    model = process(X, Y, ScaleKernel(RBFKernel()), train_Yvar=Yvar)
    loo = model.leave_one_out()
    assert loo.mean.shape == Y.shape
    agree(model, loo, Y)


@pytest.mark.parametrize("process", PROCESSES)
def test_rows_through_a_map_that_is_not_affine(process):
    X, Y = rows(unit=0.3)
    Y = Y.exp()
    model = process(X, Y, RBFKernel(), outcome_transform=ExpTransform())
    base = process(X, Y.log(), RBFKernel(), outcome_transform=None)
    theirs = base.leave_one_out().log_prob(Y.log()) - Y.log()
    torch.testing.assert_close(model.leave_one_out().log_prob(Y), theirs)


@pytest.mark.parametrize("process", PROCESSES)
def test_partly_known_noise(process):
    X, Y = rows()
    model = process(X[:6], Y[:6], RBFKernel(), outcome_transform=None, input_transform=None)
    noise = torch.full((3, 1), 2.0, dtype=torch.float64)
    model = model.condition_on_observations(X[6:], Y[6:], noise)
    loo = model.leave_one_out()
    first = process(X[:6], Y[:6], RBFKernel(), outcome_transform=None, input_transform=None)
    other = first.condition_on_observations(X[6:8], Y[6:8], noise[:2])
    truth = other.posterior(X[8:], observation_noise=noise[2:])
    torch.testing.assert_close(loo.log_prob(Y)[8:], truth.log_prob(Y[8:]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_single_row_is_given_the_prior(process):
    X, Y = rows()
    own = {"outcome_transform": None, "input_transform": None}
    model = process(X[:1], Y[:1], RBFKernel(), **own).requires_grad_(False)
    found = model.leave_one_out()
    assert float(found.mean) == pytest.approx(0, abs=1e-12)
    assert float(found.quantile(torch.tensor([0.5], dtype=Y.dtype))) == pytest.approx(0, abs=1e-12)
    expected = 1 + float(model.likelihood.noise)
    scale = found.scale.square() if process is StudentTProcess else found.variance
    assert float(scale) == pytest.approx(expected)  # rate / concentration is 1


class Fixed:
    """Three given hyperparameters for draws."""

    def run(self, model, like):
        position = torch.tensor([[[0.2, -2.0], [-0.3, -1.0], [0.5, -1.5]]], dtype=like.dtype)
        return Draws({"position": position}, {})


def test_drawn_hyperparameters_average_over_their_draws():
    X, Y = rows()
    model = GaussianProcess(X, Y, RBFKernel())
    model.covar_module.register_prior("prior", GammaPrior(3.0, 6.0), "lengthscale")
    model.fit(method=Fixed(), num_draws=3)
    loo = model.leave_one_out()
    assert loo.mean.shape == Y.shape
    average = 0.0
    for lengthscale, noise in zip(*model.hyperparameter_draws().values(), strict=True):
        each = GaussianProcess(X, Y, RBFKernel())
        each.covar_module.lengthscale, each.likelihood.noise = lengthscale, noise
        average = average + each.leave_one_out().log_prob(Y).exp() / 3
    torch.testing.assert_close(loo.log_prob(Y), average.log())


@pytest.mark.parametrize("process", PROCESSES)
def test_gradients_reach_the_hyperparameters(process):
    X, Y = rows()
    model = process(X, Y, RBFKernel())
    model.leave_one_out().log_prob(Y).sum().backward()
    assert float(model.covar_module.raw_lengthscale.grad.abs().sum()) > 0
