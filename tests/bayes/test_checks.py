"""What users pass by mistake is refused with what to do instead."""

import inspect
import pydoc
import re

import pandas
import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch import nn

from bayes import BayesianNetwork, GaussianProcess, MeanField, StudentTProcess
from bayes.processes.exact_process import ExactProcess
from priors import NetworkPrior, NNGPKernel

MODELS = [GaussianProcess, StudentTProcess, BayesianNetwork]
every_model = pytest.mark.parametrize("model", MODELS)
every_process = pytest.mark.parametrize("model", MODELS[:2])


def data(n=6, columns=2):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    return X, X.sum(-1, keepdim=True)


def make(model, X, Y):
    if model is not BayesianNetwork:
        return model(X, Y, RBFKernel())
    columns = X.shape[-1] if isinstance(X, torch.Tensor) else 2
    prior = NetworkPrior(nn.Linear(columns, 1), weight_var=1.0, bias_var=1.0)
    made = model(X, Y, prior)
    return made.fit(MeanField(num_steps=2, num_draws=4))


def advice(error, **names):
    """What the code in the message gives, evaluated as a user would."""
    (code,) = re.findall(r"((?:torch\.|X\b|train_[XY]\b)[\w.]*\(.*\)|X\[None\])", str(error.value))
    return eval(code, {"torch": torch, **names})


@every_model
@pytest.mark.parametrize("kind", [pandas.DataFrame, lambda table: table.numpy()])
def test_tables_and_arrays(model, kind):
    X, Y = data()
    with pytest.raises(TypeError, match="train_X as a float32 or float64 tensor") as error:
        make(model, kind(X), Y)
    torch.testing.assert_close(advice(error, train_X=kind(X)), X)
    with pytest.raises(TypeError, match="train_Y as a float32 or float64 tensor") as error:
        make(model, X, kind(Y))
    torch.testing.assert_close(advice(error, train_Y=kind(Y)), Y)
    made = make(model, X, Y)
    with pytest.raises(TypeError, match=r"was trained in torch\.float64 and got X as") as error:
        made.posterior(kind(X))
    torch.testing.assert_close(advice(error, X=kind(X)), X)


@every_model
def test_a_column_of_a_table(model):
    X, Y = data()
    column = pandas.DataFrame(Y.numpy(), columns=["y"])["y"]
    with pytest.raises(TypeError, match="got Series") as error:
        make(model, X, column)
    values = advice(error, train_Y=column)
    with pytest.raises(ValueError, match="makes one column") as error:
        make(model, X, values)
    torch.testing.assert_close(advice(error, train_Y=values), Y)


@every_model
def test_other_dtypes(model):
    X, Y = data()
    made = make(model, X, Y)
    for other in (X.float(), X.long()):
        with pytest.raises(TypeError, match="got X as torch") as error:
            made.posterior(other)
        assert made.posterior(advice(error, X=other)).mean.dtype == torch.float64


@every_model
def test_images_for_rows(model):
    images = torch.randn(6, 1, 2, 3, dtype=torch.float64)
    Y = images.flatten(1).sum(-1, keepdim=True)
    with pytest.raises(ValueError, match=r"input_shape=\(1, 2, 3\) for the kernel or") as error:
        make(model, images, Y)
    made = make(model, images.flatten(1), Y)
    with pytest.raises(ValueError, match="makes a row of each image") as error:
        made.posterior(images)
    torch.testing.assert_close(advice(error, X=images), images.flatten(1))


@every_model
def test_one_query_without_a_row(model):
    X, Y = data()
    made = make(model, X, Y)
    with pytest.raises(ValueError, match=r"expected \[\.\.\., q, 2\]") as error:
        made.posterior(X[0])
    torch.testing.assert_close(advice(error, X=X[0]), X[:1])


@pytest.mark.covering
@every_model
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_queries_that_are_not_finite_are_named(model, value):
    X, Y = data()
    made = make(model, X, Y)
    Q = X.clone()
    Q[3, 1] = value
    with pytest.raises(ValueError, match=r"got X with NaN or infinite values in row 3; remove"):
        made.posterior(Q)
    batch = torch.stack([X, Q])
    with pytest.raises(ValueError, match=r"in row \[1, 3\]; remove"):
        made.posterior(batch)
    Q[:] = value
    with pytest.raises(ValueError, match=r"in rows 0, 1, 2 and 3 more; remove"):
        made.posterior(Q)


@every_process
def test_modules_for_kernels(model, tmp_path):
    X, Y = data()
    with pytest.raises(TypeError, match=r"needs a gpytorch kernel, got Linear; priors\.NNGPKernel"):
        model(X, Y, nn.Linear(2, 1))
    path = tmp_path / "model.safetensors"
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model(X, Y, NNGPKernel(network)).save(path)
    for arguments in ((), (network,)):
        with pytest.raises(TypeError, match=r"load\(path, kernel\) with a NNGPKernel that is"):
            model.load(path, *arguments)
    model.load(path, NNGPKernel(network))


@every_model
def test_help_lists_the_arguments_that_the_model_takes(model):
    text = pydoc.render_doc(model, renderer=pydoc.plaintext)
    documented = re.search(r"Args:\n(.*?)\n \|  \n \|  Raises:", text, re.DOTALL).group(1)
    names = re.findall(r"^ \|      (\w+):", documented, re.MULTILINE)
    assert sorted(names) == sorted(inspect.signature(model).parameters)
    assert "covar_module" not in names


def test_arguments_are_documented_where_users_look():
    assert "Args:" not in ExactProcess.__doc__
    assert "Args:" in GaussianProcess.__doc__
