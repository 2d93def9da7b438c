# Made from docs/pages/guides/bayesian-networks.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Bayesian networks and their diagnostics
#
# The same module, with finite widths, as a Bayesian neural network in Pyro.
#
# ## A prior over weights
#
# `NetworkPrior` gives every weight matrix a variance per layer, divided by its fan-in, so that its
# functions approach those of the infinite network as it widens.

# %%
import torch
from torch import nn

from priors import NetworkPrior

torch.manual_seed(0)
X = torch.rand(30, 1, dtype=torch.float64) * 6 - 3
X = X[(X.abs() > 0.8).squeeze(-1)]  # a gap in the middle
Y = torch.sin(2 * X) + 0.1 * torch.randn_like(X)

network = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
prior = NetworkPrior(network, weight_var=4.0, bias_var=1.0)
print(prior.sample(torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None], torch.Size([3])).shape)

# %% [markdown]
# Other packages give every weight N(0, 1), whatever the width. That is a variance of a layer's inputs here,
# `weight_var={"0": 1.0, "2": 20.0}` of this network: a much wider prior, which suits small tables with hardly any noise
# better than variances of 1. `BayesianNetwork(..., learn_variances=True)` draws them with the weights.
#
# ## Sampling

# %%
import warnings

from bayes import BayesianNetwork, ChEES

method = ChEES(num_chains=16, num_warmup=100, num_samples=50, max_steps=32, progress=False)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = BayesianNetwork(X, Y, prior).fit(method)
posterior = model.posterior(X, observation_noise=True)
print("negative log density of the training rows", -posterior.log_prob(Y).mean().item())

# %% [markdown]
# `posterior.log_prob`, `cdf` and `quantile` are those of the mixture over draws, not of a Gaussian with
# its moments.
#
# `ChEES` moves all chains at once; the other [samplers](samplers.md), among them Pyro's `NUTS`, are asked for in
# the same way.
#
# The outcomes here are real numbers with Gaussian noise; [Classes, counts, outliers](outcomes.md) has the others.
#
# ## Have the chains converged?
#
# `fit` warns if they have not. Weights of a network have many equivalent modes, so it compares what the
# chains predict at the training rows. Fifty draws of each chain, which this page can afford, are too few:

# %%
for warning in caught:
    print(warning.message)

# %% [markdown]
# The defaults, more chains and longer ones, take minutes. `to_arviz()` gives ArviZ's
# `InferenceData`, with the parameters by name, the statistics of the sampler and the pointwise log
# likelihood:

# %%
import arviz

data = model.to_arviz()
print(arviz.summary(data, var_names=["noise_var"], kind="diagnostics"))
print("divergent draws:", int(data.sample_stats["diverging"].sum()))

# %% [markdown]
# ## Look at it

# %%
from bayes import plot_posterior

grid = torch.linspace(-4, 4, 200, dtype=torch.float64)[:, None]
plot_posterior(model, grid, num_samples=8).figure.savefig("network.png")

# %% [markdown]
# ## Fast and approximate
#
# Mean-field variational inference takes seconds, but ignores correlations between weights. With few rows its
# predictions are much too wide, as here; use it where rows are many or time is short:

# %%
from bayes import MeanField

quick = BayesianNetwork(X, Y, prior).fit(MeanField(num_steps=500, progress=False))
print("ChEES     ", model.posterior(grid[::50]).variance.sqrt().squeeze(-1))
print("mean field", quick.posterior(grid[::50]).variance.sqrt().squeeze(-1))

# %% [markdown]
# ## Weights that say what you mean about functions
#
# Weights are hard to have beliefs about. `match_functional_prior` chooses their variances so that the
# functions resemble those of a Gaussian process that you do understand.

# %%
from gpytorch.kernels import RBFKernel

from bayes import match_functional_prior, match_quality
from priors import GaussianProcessPrior

target = GaussianProcessPrior(RBFKernel())


def measurement_set(generator):
    return torch.randn(60, 1, generator=generator, dtype=torch.float64)


start = NetworkPrior(nn.Sequential(nn.Linear(1, 50), nn.GELU(), nn.Linear(50, 1)), bias_var=1.0)
matched = match_functional_prior(start, target, measurement_set)
held_out = measurement_set(torch.Generator().manual_seed(1))
for name, candidate in (("before", start), ("matched", matched)):
    print(name, "covariance error", match_quality(candidate, target, held_out).covariance_error)

# %% [markdown]
# Deeper networks, other targets, a report of the match, and one of the chains: [Matched priors](matched-priors.md).
