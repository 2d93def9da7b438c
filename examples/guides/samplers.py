# Made from docs/pages/guides/samplers.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Samplers
#
# `BayesianNetwork`, any Pyro model, the hyperparameters of a Gaussian process and log densities of your
# own are drawn by the same methods. All chains are one tensor, and gradients run as a flat graph of
# operations rather than through Python, so a hundred chains cost hardly more than one.
#
# | you have | take |
# | --- | --- |
# | a continuous model, up to some hundreds of parameters | `ChEES` |
# | the same, and a single chain or a trajectory length of your own | `HMC` |
# | thousands of parameters | `MCLMC`, or `MCLMC(adjusted=True)` without its small bias |
# | a network with many modes | `LangevinEnsemble` |
# | more rows than a gradient can take | `SGHMC(batch_size=...)` |
# | discrete sites | `NUTS`, Pyro's |
#
# ## A Pyro model

# %%
import pyro
import pyro.distributions as dist
import torch

from bayes import ChEES

y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)


def eight_schools():
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)


method = ChEES(
    num_chains=64, num_warmup=300, num_samples=200, target_accept_prob=0.95, progress=False
)
draws = method.run(eight_schools, y)
print({name: value.mean().item() for name, value in draws.samples.items()})
print(draws.num_gradients, "gradients per chain")

# %% [markdown]
# `run` warns of divergences, of R-hat above 1.01 and of fewer than 400 effective draws. Draws are
# `[chains, draws, *event]`, statistics have ArviZ's names. Members of a `LangevinEnsemble` stay at modes of
# their own and are judged by their halves, not by each other.
#
# Chains start at random, and some starts are far from the mass. `HMC`, `ChEES` and `MCLMC(adjusted=True)`
# take a chain that never moves, or that is still far below the others when most have arrived, to where those are; in
# the first half of the warm-up alone, so what is drawn is not touched by it.
#
# A model with arguments is passed as `functools.partial(model, X, y)`.
#
# `bayes.report(draws)` judges them, and `draws.to_arviz()` gives them to ArviZ.
#
# ## A log density of your own
#
# Positions are rows of `[chains, d]`; the density of every row comes in one call.

# %%
from bayes import LogDensity

banana = LogDensity(lambda x: -0.5 * (x[:, 0] ** 2 + (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2), 2)
draws = ChEES(num_chains=64, num_samples=200, target_accept_prob=0.99, progress=False).run(
    banana, y
)
print(draws.samples["x"].mean((0, 1)))

# %% [markdown]
# ## Hyperparameters of a Gaussian process
#
# With a method, `fit` draws the hyperparameters from their posterior, and every prediction is the average
# of one process for each draw: a BoTorch model as before. `SaasPrior` expects few of many inputs to matter.

# %%
from botorch.acquisition import qLogExpectedImprovement
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.priors import GammaPrior

from bayes import GaussianProcess, SaasPrior

torch.manual_seed(0)
X = torch.rand(20, 8, dtype=torch.float64)
Y = torch.sin(6 * X[:, :1]) + 0.05 * torch.randn(20, 1, dtype=torch.float64)
kernel = ScaleKernel(
    MaternKernel(ard_num_dims=8, lengthscale_prior=SaasPrior()),
    outputscale_prior=GammaPrior(2.0, 0.15),
)
method = ChEES(
    num_chains=16, num_warmup=250, num_samples=200, target_accept_prob=0.9, progress=False
)
model = GaussianProcess(X, Y, kernel).fit(method=method, num_draws=64)
lengthscales = model.hyperparameter_draws()["kernel.base_kernel.lengthscale"]
print(lengthscales.median(0).values)
print(qLogExpectedImprovement(model, Y.max())(X[:4].unsqueeze(-2)))

# %% [markdown]
# ## Seconds instead of minutes
#
# Approximations are `method`s too. They are checked against a sampler most easily by their predictions:

# %%
from torch import nn

from bayes import BayesianNetwork, DeepEnsemble, Laplace, LowRank, MeanField
from priors import NetworkPrior

X = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
Y = torch.sin(2 * X) + 0.1 * torch.randn_like(X)
network = NetworkPrior(nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)))
methods = [
    ChEES(num_chains=32, num_warmup=400, num_samples=200, progress=False),
    Laplace(num_training_steps=500, progress=False),
    DeepEnsemble(num_training_steps=1000, progress=False),
    LowRank(num_steps=1000, progress=False),
    MeanField(num_steps=1000, progress=False),
]
ahead = torch.tensor([[0.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
for method in methods:
    model = BayesianNetwork(X, Y, network, train_Yvar=torch.full_like(Y, 0.01)).fit(method)
    spread = model.posterior(ahead).variance.sqrt().squeeze(-1)
    print(f"{type(method).__name__:12}", [f"{s:.3f}" for s in spread.tolist()])

# %% [markdown]
# | | what it is | keep in mind |
# | --- | --- | --- |
# | `Laplace` | a Gaussian about the highest mode found; predictions of the network linearised there | one mode; `weights="last_layer"`, `structure="kronecker"` (`pip install wideprior[curvature]`) or `"diagonal"` where weights are many |
# | `DeepEnsemble` | modes reached from independent starts | spread comes from the starts alone |
# | `LowRank` | the closest Gaussian whose covariance is a diagonal and `rank` columns | slow where the mode is far from the prior |
# | `MeanField` | the closest independent Gaussians | underfits wide networks on few rows; `likelihood_weight="data"` underfits less, and with `learn_variances=True` learns layer variances and length scales without a grid |
#
# After `fit(Laplace())`, `model.draws.log_evidence` estimates the log marginal likelihood, by which priors
# and architectures can be compared without held-out rows. Unknown noise is where it is largest, and with
# `learn_variances=True` so are the layer variances: the mode of noise and weights together would have too little
# of it, and none where the network can pass through its data. `weights="last_layer"` takes the other layers'
# features for known. Where these fit the training rows too well, as with more weights than rows, its intervals are much
# too narrow; take all weights there.
#
# ## Long runs
#
# `checkpoint="run.safetensors"` writes state and draws every minute and at the end. The same call goes on
# where the file ends, bit for bit as if nothing had happened; with a larger `num_samples` it continues the
# run. `compile=True` turns trajectories into one program each: seconds at the start, several times faster
# after that. It needs a C++ compiler, and is on by itself for 5,000 iterations and more where there is one.
