# Made from docs/pages/guides/own-prior.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # A network for your own prior
#
# A prior-data fitted network ([PFN](../glossary.md)) is a transformer trained on data sets drawn from a prior,
# each with some rows hidden. The minimiser of its loss is the posterior predictive of that prior ([Müller et
# al. 2022](https://arxiv.org/abs/2112.10510)), so that Bayesian inference on a new data set becomes one forward
# pass. This guide goes the whole way with a prior of your own: state it, look at it, train, measure, use.
#
# ## State it
#
# A prior over functions, together with inputs and noise, is a prior over [tasks](../glossary.md). This one is
# the infinite limit of a small network, with the unit interval as inputs.

# %%
import torch
from torch import nn
from torch.distributions import Uniform

from priors import FunctionTaskPrior, GaussianProcessPrior, NNGPKernel, plot_tasks

network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
kernel = NNGPKernel(network, weight_var={"0": 20.0, "2": 1.0}, bias_var={"0": 5.0, "2": 0.1})
prior = FunctionTaskPrior(
    GaussianProcessPrior(kernel),
    inputs=Uniform(torch.zeros(1), torch.ones(1)),
    num_points=48,
    noise_var=0.05,
)
plot_tasks(prior).savefig("tasks.png")

# %% [markdown]
# Look at the picture before you train: the network will expect nothing else.
#
# ## Train
#
# `time_limit` is in seconds, and chooses the size of the network by what the machine can train in that time.
# Two minutes on one CPU core give a rough network (0.1 nats per query from the exact posterior, on a
# prior with one input, lengthscale 0.2 and noise variance 0.01), an hour a good one; with `device="cuda"`
# minutes are enough. Where the prior knows its exact posterior, as here, the gap to it is measured at the end.

# %%
import pfn

config = pfn.TrainingConfig(targets="raw", time_limit=120)  # targets in the units of the prior
trained = pfn.train(prior, config=config)
print(trained)

# %% [markdown]
# ## Measure
#
# `certify` compares the network with exact inference, where the prior allows it, on tasks that it was not
# trained on. The [gap](../glossary.md) is the expected loss in log density per query, in nats; 0 is exact.

# %%
certificate = pfn.certify(trained, prior, context_sizes=(2, 5, 15), num_tasks=64)
print(certificate)

# %% [markdown]
# See [Certificates](../explanations/certificates.md) for the meaning of the columns.
#
# ## Use
#
# The [certificate](../glossary.md) is stored with the network, in one file without code.

# %%
trained.certificate = certificate
trained.save("mine.safetensors")

task = prior.sample(1, generator=torch.Generator().manual_seed(3))
X, y = task.X[0, :15], task.y[0, :15]
model = pfn.load("mine.safetensors").condition(X, y)

from bayes import plot_posterior

grid = torch.linspace(0, 1, 100)[:, None]
plot_posterior(model, grid, observation_noise=False).figure.savefig("posterior.png")

# %% [markdown]
# `model` is a BoTorch model: `posterior(X)` with densities, quantiles and joint samples,
# `condition_on_observations`, `fantasize`, acquisition functions. Joint samples are drawn point by point, each
# given those before it; this network was trained on up to 32 such points, and warns beyond.
#
# ## Any prior at all
#
# Any object with a `sample` method that draws tasks is a prior; see [Extending each
# point](extending.md#a-prior-over-tasks). `priors` has building blocks (`RandomKernelTaskPrior`,
# `NetworkTaskPrior`, `TreeTaskPrior`, `CausalTaskPrior`, `MixtureTaskPrior`, `Tabular`), and the recipes of
# the shipped networks in `pfn/checkpoints/recipes.py` are compositions of them.
#
# From the command line, with a prior in a file of yours:
#
# ```console
# python -m pfn train priors.py:my_prior --minutes 30 --out mine.safetensors
# python -m pfn certify mine.safetensors --prior priors.py:my_prior
# python -m pfn show mine.safetensors
# ```
#
# ### Images from few examples
#
# `StrokeTaskPrior` is a prior of quite another kind: N-way K-shot tasks whose classes are drawings of random pen
# strokes, and whose rows are small images of them, each drawn anew.

# %%
from priors import StrokeTaskPrior

strokes = StrokeTaskPrior(pixels=8, ways=5)
task = StrokeTaskPrior(shots=5).sample(1)
print(strokes.description)
print(task)

# %% [markdown]
# `python examples/few_shot_digits.py` trains a small network on such tasks for 40 minutes on one core, and asks it
# which of five handwritten digits an image shows, given one or five images of each; how well it does is in
# [Results](../results.md#few-shot-images).
#
# ## The shipped networks
#
# `pfn.load` has four networks:
#
# | name | tasks | rows, columns |
# |---|---|---|
# | `regression` | tables with real, categorical and missing values | 512, 20 |
# | `classification` | the same, up to ten classes | 512, 20 |
# | `bo` | smooth functions on the unit cube, with little or no noise | 128, 10 |
# | `learning-curve` | losses of trainings over epochs, for early stopping | 256 |
#
# A row of `learning-curve` is one point of one training curve: the first column is the time,
# `priors.log_time(step, num_steps)`, the others are the hyperparameters of the training, scaled to [0, 1],
# which identify the curve; the target is the value of the curve, in [0, 1]. Rows come in any order.
# `predict_curve` makes these rows of one curve and answers in its own units:

# %%
rest = pfn.predict_curve([1, 2, 4, 8], [0.41, 0.55, 0.66, 0.72], at=[50, 100], maximum=100)
print(rest.mean[:, 0], rest.variance.sqrt()[:, 0])

# %% [markdown]
# A shipped network can be fitted to one data set of yours, of 20 rows or more, by
# `network.finetune(X, y)`, which takes up to a minute; a fifth of the rows judges whether it helped.
