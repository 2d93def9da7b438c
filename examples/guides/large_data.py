# Made from docs/pages/guides/large-data.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Many rows
#
# An exact Gaussian process factorises the covariance of all rows, O(n³), at every step of its fit. What to do
# instead depends on the number of rows.
#
# | rows | `method=` | hyperparameters from | predictions |
# | --- | --- | --- | --- |
# | up to 2,000 | `"exact"` | all rows | exact |
# | up to 10,000 | `"subset"` | random rows, 2,000 unless `max_rows` | exact, one factorisation: about a minute of one core and 2.5 to 4 GB (by kernel) for 10,000 rows in float64 |
# | beyond | `"inducing"` | all rows, in minibatches | through inducing points |
# | any number, kernel of a fully connected network | `"features"` | random rows; scale and noise from all | linear regression on random features |
#
# `gaussian_process_for` chooses among the first three, fits, and says in a warning what it chose and why:

# %%
import warnings

import torch
from gpytorch.kernels import RBFKernel, ScaleKernel

from bayes import gaussian_process_for

torch.manual_seed(0)
X = torch.randn(2500, 2, dtype=torch.float64)
Y = torch.sin(2 * X[:, :1]) + X[:, 1:].abs() + 0.1 * torch.randn(2500, 1, dtype=torch.float64)
test = torch.randn(200, 2, dtype=torch.float64)
truth = torch.sin(2 * test[:, :1]) + test[:, 1:].abs()

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    options = {"max_iter": 15, "max_rows": 300, "progress": False}
    model = gaussian_process_for(X, Y, ScaleKernel(RBFKernel()), **options)
print(caught[0].message)
print("error of f", (model.posterior(test).mean - truth).square().mean().sqrt())

# %% [markdown]
# A method of your own choice silences it. The parts are there by themselves: `GaussianProcess.fit(max_rows=300)`
# learns from 300 random rows and conditions on all, and so does a `StudentTProcess`.
#
# ## Inducing points

# %%
from bayes import VariationalGaussianProcess

sparse = VariationalGaussianProcess(X, Y, ScaleKernel(RBFKernel()), num_inducing=30)
sparse.fit(batch_size=250, max_iter=150, progress=False)
print(sparse)
print("error of f", (sparse.posterior(test).mean - truth).square().mean().sqrt())

# %% [markdown]
# Without `batch_size` all rows are looked at in each step where they are few enough. Inducing points are chosen
# among the rows by the variance that they leave, and learnt.
#
# ## Random features
#
# `WeightSpaceProcess` is Bayesian linear regression on features: linear in the rows, and further rows are
# conditioned on exactly without looking at those before.

# %%
from torch import nn

from bayes import WeightSpaceProcess
from priors import NNGPKernel

network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
linear = WeightSpaceProcess(X[:2000], Y[:2000], NNGPKernel(network), num_features=400).fit()
linear = linear.condition_on_observations(X[2000:], Y[2000:])
print(linear)
print("error of f", (linear.posterior(test).mean - truth).square().mean().sqrt())
path = linear.sample_path(torch.Size([3]))
print("values of three drawn functions", path(test[:2]).flatten())
