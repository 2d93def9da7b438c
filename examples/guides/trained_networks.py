# Made from docs/pages/guides/trained-networks.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Networks that train, and networks that learn features
#
# A Gaussian process with the NNGP kernel is what Bayesian inference makes of an infinitely wide network. Two
# other limits have closed forms of their own: what gradient descent makes of such a network, and what inference
# makes of it when its layers are narrow enough to learn features.
#
# ## Ensembles trained by gradient descent
#
# Take infinitely many copies of a network, start each at random weights, train all of them on the same data. The
# law of their predictions is a Gaussian process ([Lee et al. 2019](https://arxiv.org/abs/1902.06720)), at every
# time of the training, and `GradientDescentEnsemble` is that law: no network is trained.

# %%
import torch
from torch import nn

from bayes import GradientDescentEnsemble

torch.manual_seed(0)
X = torch.rand(30, 1, dtype=torch.float64)
Y = torch.sin(6 * X) + 0.2 * torch.randn_like(X)
query = torch.linspace(-0.2, 1.2, 5, dtype=torch.float64)[:, None]

network = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
ensemble = GradientDescentEnsemble(X, Y, network)
with torch.no_grad():
    for time in (0.0, 0.01, 0.1, 1.0, float("inf")):
        ensemble.time = time
        posterior = ensemble.posterior(query)
        print(time, posterior.mean[1].item(), posterior.variance[1].sqrt().item())

# %% [markdown]
# At time 0 it is the prior; at infinite time without a `ridge` every member goes through every row. One
# eigendecomposition serves all times.
#
# * The loss is half the *sum* of squared errors on the standardised scale: a learning rate of `torch.nn.MSELoss`
#   times 2 / (n m) is the one here. `time * learning_rate` is what matters, as for gradient flow; gradient descent
#   by steps follows the flow while its rate is well below `max_learning_rate`, and diverges above.
# * `ridge` is weight decay towards the initial weights.
# * Parameters with `requires_grad=False` stay as they were drawn. Of a readout that is trained alone, to the end,
#   the ensemble is the noise-free posterior of the Gaussian process with the NNGP kernel; otherwise it is no
#   posterior of any prior. `GaussianProcess(X, Y, NTKKernel(network))` is one with the tangent kernel.
# * What an observation scatters about a member is a noise variance, which only `observation_noise=True` adds.
#
# There is no marginal likelihood of training. `fit` maximises the log density of each row given networks that were
# trained on all others, which has a closed form at every time, over the variances of the layers and the noise, and
# over time and ridge where they are finite and positive: early stopping.

# %%
print("largest step", ensemble.max_learning_rate)
stopped = GradientDescentEnsemble(X, Y, network, time=1.0).fit(max_iter=50, progress=False)
print(stopped)
print("log score of rows left out", stopped.log_score().item())
print(stopped.leave_one_out().quantile(torch.tensor(0.5))[:2])

# %% [markdown]
# ## Deep kernel machines
#
# In an infinitely wide network the features of the hidden layers do not depend on the data. A deep kernel machine
# ([Yang et al. 2023](https://arxiv.org/abs/2108.13097)) scales the outputs along with the width, so that they do.
# Features enter through their Gram matrices alone; these are what is learnt, held at those of the wide network by
# `regularisation`.

# %%
import warnings

from bayes import DeepKernelMachine

inputs = torch.randn(80, 4, dtype=torch.float64)
outcomes = torch.sin(2 * inputs.sum(1, keepdim=True)) + 0.1 * torch.randn(80, 1).double()
machine = DeepKernelMachine(inputs, outcomes, layers=["relu", "relu"], num_inducing=40)
wide = machine.objective()
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The fit of DeepKernelMachine was stopped by max_iter")
    machine.fit(max_iter=30, progress=False)
print(machine)
print("objective of the wide network", wide.item(), "and when fitted", machine.objective().item())
before, after = machine.grams(inputs[:3])
print("representation of three rows", after)

# %% [markdown]
# * `layers` are the hidden layers: a number of ReLU layers, or a list of "relu", "squared exponential", activations
#   such as `nn.GELU()` and `bayes.deep_kernel_machine.gram_kernels.GramKernel`s of your own. One layer is an exact
#   (sparse) Gaussian process, and so is any number with `regularisation=math.inf`.
# * `regularisation` counts outputs: at 1, a single output weighs as much as the prior of a layer; where many outputs
#   share a representation, they move it together. A small one fits noise too, as below; the default is 10. Compare
#   others by rows held out (`bayes.compare`).
# * On 150 rows of sin(3 w'x) + noise in eight inputs (the slow test of the tests) the fitted machine of two ReLU
#   layers has a test RMSE of 0.126 and a negative log density of −0.67 nats, the wide network, its variances fitted
#   too, 0.196 and −0.28.
# * Cost is O(n M²) for each layer and evaluation. By default M is a third of the rows, at most 200: Gram matrices of all
#   rows hold the noise of each.
#
# One noisy outcome, 100 patients of diabetes: at 1 the Gram matrices follow the noise, which is then thought small, and
# intervals are too narrow. At 10 or more the machine is close to the wide network.

# %%
import math
import warnings

from sklearn.datasets import load_diabetes

from bayes import compare

X, y = load_diabetes(return_X_y=True, scaled=False)
X, Y = torch.tensor(X), torch.tensor(y)[:, None]
order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(1))
train, test = order[:100], order[100:300]


def machine_of(nu):
    def made(X, Y):
        machine = DeepKernelMachine(X, Y, layers=2, num_inducing=30, regularisation=nu)
        return machine.fit(max_iter=100, progress=False)

    return made


warnings.filterwarnings("ignore", "The fit of DeepKernelMachine was stopped by max_iter=100")
rows = X[train], Y[train], X[test], Y[test]
held = {f"regularisation {nu}": machine_of(nu) for nu in (1.0, 10.0, math.inf)}
print(compare(held, [rows], progress=False).to_pandas()[["rmse", "nlpd", "coverage"]])

# %% [markdown]
# ## Which of them
#
# | you want | use |
# |---|---|
# | the posterior of a network's prior | `GaussianProcess(X, Y, NNGPKernel(network))` |
# | what an ensemble of such networks would predict when trained, or stopped early | `GradientDescentEnsemble` |
# | features that are learnt from several outputs, without weights | `DeepKernelMachine` |
# | a network of the width that you have | `BayesianNetwork` |
