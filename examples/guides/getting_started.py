# Made from docs/pages/getting-started.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Getting started
#
# ## Install
#
# Python 3.11 or newer. On a machine without a GPU, install the CPU build of PyTorch first; the default build
# includes CUDA:
#
# ```console
# pip install torch --index-url https://download.pytorch.org/whl/cpu   # CPU only
# pip install "wideprior[sklearn]"
# ```
#
# The distribution is called `wideprior` and installs four packages: `priors` (what you believe before
# data), `bayes` and `pfn` (two ways to condition it on data), and `nas` (deciding what to try next).
#
# ## A Gaussian process from a network
#
# State the prior as an ordinary module. Its infinite-width limit is a Gaussian process whose kernel (the
# [NNGP](glossary.md) kernel) depends on the architecture alone: widths and weights do not matter.

# %%
import torch
from torch import nn

from bayes import GaussianProcess
from priors import NNGPKernel

torch.manual_seed(0)
X = torch.rand(40, 2, dtype=torch.float64) * 10
Y = torch.sin(X[:, :1]) + 0.1 * X[:, 1:] + 0.1 * torch.randn(40, 1, dtype=torch.float64)

network = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
model = GaussianProcess(X, Y, NNGPKernel(network, ard_num_dims=2)).fit()

new_X = torch.tensor([[2.0, 5.0], [8.0, 5.0]], dtype=torch.float64)
with torch.no_grad():
    posterior = model.posterior(new_X, observation_noise=True)
    print("mean", posterior.mean.squeeze(-1))
    print("standard deviation", posterior.variance.sqrt().squeeze(-1))
    print("90% interval", posterior.quantile(torch.tensor([0.05, 0.95]).double()).squeeze(-1).T)

# %% [markdown]
# `print(model)` shows what was learnt: the variances of every layer, a length scale for each
# input, and the noise.

# %%
print(model)

# %% [markdown]
# ## The same question, without any training
#
# A prior-data fitted network ([PFN](glossary.md)) was trained on many small data sets drawn from a prior.
# Conditioning it takes one forward pass, and the answer is the same kind of posterior.

# %%
import pfn

amortised = pfn.load("regression").condition(X, Y)
posterior = amortised.posterior(new_X, observation_noise=True)
print("mean", posterior.mean.squeeze(-1))
print("standard deviation", posterior.variance.sqrt().squeeze(-1))

# %% [markdown]
# The distance of such a network from exact inference is [measured](explanations/certificates.md) and stored
# with it, in `pfn.load("regression").certificate`.
#
# ## A study that can be interrupted
#
# `nas.search` runs an Optuna study over architectures and hyperparameters. A second call with the same storage
# continues where the first one ended.

# %%
import nas
from optuna.distributions import FloatDistribution

space = nas.spaces.MLPSpace(in_features=2, out_features=1)


def objective(trial):
    network = nas.suggest(trial, space).build().double()
    rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (network(X[:30]) - Y[:30]).square().mean()
        loss.backward()
        optimizer.step()
    return (network(X[30:]) - Y[30:]).square().mean().item()


options = {
    "storage": "study.db",
    "hyperparameters": {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)},
}
nas.search(objective, space, num_trials=4, **options)
study = nas.search(objective, space, num_trials=4, **options)  # four more
print(len(study.trials), "trials; the best:", round(study.best_value, 4))
print(nas.architecture_of(study.best_trial))

# %% [markdown]
# ## Where to go next
#
# | you want to | read |
# |---|---|
# | fit a Gaussian process whose prior is a network | [Fit a Gaussian process](guides/gaussian-processes.md) |
# | be robust to scales you did not expect | [Heavy tails](guides/heavy-tails.md) |
# | sample the weights of a network | [Bayesian networks](guides/bayesian-networks.md) |
# | have inference in one forward pass, for a prior of yours | [A network for your own prior](guides/own-prior.md) |
# | predict the columns of a table | [Tables](guides/tables.md) |
# | search architectures | [Search studies](guides/search.md) |
# | add a layer, a task prior, an operation | [Extending each point](guides/extending.md) |
