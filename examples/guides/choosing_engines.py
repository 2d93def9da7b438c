# Made from docs/pages/guides/choosing-engines.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Choose among engines, or stack them
#
# No engine is best on all data. A [PFN](../glossary.md) is hard to beat where there is noise, an exact Gaussian
# process where there is none, and length scales for each input matter on one table and not on the next. This
# page compares engines, pools them with weights that the data choose, and puts the result behind scikit-learn.
#
# ## Compare
#
# Diabetes: 442 patients, ten measurements, one noisy outcome. A factory makes a fitted model of training rows.

# %%
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from sklearn.datasets import load_diabetes
from torch import nn

import pfn
from bayes import GaussianProcess, StudentTProcess, compare, stack
from priors import NNGPKernel

X, y = load_diabetes(return_X_y=True, scaled=False)
X, Y = torch.tensor(X), torch.tensor(y)[:, None]
order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))
train, test = order[:200], order[200:]
rows = X[train], Y[train], X[test], Y[test]

network = nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 1))
shipped = pfn.load("regression")
engines = {
    "NNGP": lambda X, Y: GaussianProcess(X, Y, NNGPKernel(network, ard_num_dims=10)).fit(),
    "Student t": lambda X, Y: StudentTProcess(X, Y, MaternKernel(2.5, ard_num_dims=10)).fit(),
    "PFN": lambda X, Y: shipped.condition(X, Y, check=False),
}
comparison = compare(engines, [rows], progress=False)
print(comparison.to_pandas()[["rmse", "nlpd", "crps", "coverage", "seconds", "memory"]])

# %% [markdown]
# NLPD is the mean negative log density in nats. CRPS, in units of `Y`, is less harsh on a single bad tail:
# every posterior answers `posterior.crps(Y)`.

# %%
comparison.plot().savefig("scores.png")

# %% [markdown]
# ## Stack
#
# `stack` asks every engine for its density of rows that it has not seen, and pools them with the convex weights
# of greatest mean log score ([Yao et al. 2018](https://arxiv.org/abs/1704.02030)). Exact processes have those
# densities in closed form, `model.leave_one_out()`; any other factory is called again without each of ten parts
# of the rows.

# %%
stacked = stack(engines, *rows[:2], progress=False)
print(stacked)

# %% [markdown]
# The result is a BoTorch model. Its posterior is the mixture: density, quantiles and moments are exact, and
# engines that disagree make it wider.

# %%
with torch.no_grad():
    posterior = stacked.posterior(rows[2], observation_noise=True)
    print("negative log density", -posterior.log_prob(rows[3]).mean().item())
    print("median of the first", posterior.quantile(torch.tensor(0.5))[0].item())
stacked.plot().figure.savefig("weights.png")

# %% [markdown]
# * Leave-one-out scores are of hyperparameters that have seen all rows, which flatters a flexible kernel on few
#   rows; `method="kfold"` fits every engine again for each part.
# * An engine that fails is left out, with a warning.
# * Classifiers are pooled in the same way, by their class probabilities.
#
# Weights of anything else with held-out log scores, such as the members of an ensemble, come from
# `priors.stacking_weights`:

# %%
from priors import stacking_weights

print(stacking_weights(stacked.log_scores))

# %% [markdown]
# ## Behind scikit-learn
#
# `Regressor` and `Classifier` take tables with text, categories and missing values. `model_factory` is any
# factory, the name of an engine, or several of them; without it they stack all engines that suit the table, and
# give a random part of the rows to those with a limit.

# %%
from sklearn.model_selection import cross_val_score

from bayes import Regressor

regressor = Regressor(engines, progress=False).fit(X[train].numpy(), y[train])
mean, std = regressor.predict(X[test].numpy(), return_std=True)
print(regressor.weights_)
print(regressor.predict_quantiles(X[test][:2].numpy(), [0.05, 0.5, 0.95]))
print(cross_val_score(Regressor("Student t"), X[train].numpy(), y[train], cv=3))

# %% [markdown]
# ### Weights of rows
#
# `sample_weight` says how much a row tells beside others: the noise variance of a row is divided by its weight,
# and in classification its log likelihood multiplied. The processes of this package take it; a stack, whose scores
# count every row once, refuses it, and so does an engine that does not know of weights. Without scikit-learn it is
# `train_weights` of the model.

# %%
weights = torch.linspace(0.2, 2.0, 200).numpy()  # later rows were measured more often
weighted = Regressor("Student t").fit(X[train].numpy(), y[train], sample_weight=weights)
print(weighted.predict(X[test][:3].numpy()))

# %% [markdown]
# ## Your own engine
#
# An engine is an object with a name, a kind, limits and a factory. A distribution offers it by an entry point
# of the group `wideprior.engines` and it belongs to the default stack of everybody who has installed it:
#
# ```toml
# [project.entry-points."wideprior.engines"]
# flat = "my_package.engines:flat"
# ```

# %%
from gpytorch.kernels import RBFKernel

from priors.engines import Engine


def factory(X, Y):  # [n, d] and [n, 1], finite and not scaled
    return GaussianProcess(X, Y, ScaleKernel(RBFKernel())).fit()


flat = Engine("flat", "regression", factory, max_rows=2_000)
print(Regressor(flat).fit(X[train].numpy(), y[train]).model_)
