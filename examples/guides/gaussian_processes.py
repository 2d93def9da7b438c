# Made from docs/pages/guides/gaussian-processes.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Fit a Gaussian process from a network
#
# An infinitely wide network with random weights is a Gaussian process with a known kernel: the
# [NNGP](../glossary.md) kernel for the network at initialisation, the neural tangent kernel
# ([NTK](../glossary.md)) for the network trained by gradient descent. Here both are ordinary GPyTorch
# kernels, made from an ordinary module.
#
# ## Data in their own units
#
# Diabetes: 442 patients, ten measurements in units of their own, one outcome. Nothing has to be scaled by
# hand: `GaussianProcess` standardises inputs and outputs and answers in the units of `Y`.

# %%
import torch
from sklearn.datasets import load_diabetes

X, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True, scaled=False))
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = order[:200], order[200:]
train_X, train_Y, test_X, test_Y = X[train], y[train, None], X[test], y[test, None]
print(train_X[0].numpy(), train_Y[0].item())

# %% [markdown]
# ## State the prior, fit, predict

# %%
from torch import nn

from bayes import GaussianProcess
from priors import NNGPKernel


def perceptron(activation):
    return nn.Sequential(
        nn.Linear(10, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 1)
    )


kernel = NNGPKernel(perceptron(nn.ReLU()), ard_num_dims=10)
model = GaussianProcess(train_X, train_Y, kernel).fit()
print(model)

# %% [markdown]
# * `ard_num_dims=10` gives every input a length scale, by which it is divided: an input that does not matter
#   gets a large one. Omit it where all columns are alike.
# * All variances are learnt. `weight_var` and `bias_var` are their starting values: with `None`, the default,
#   weights start at 1 (2 behind a rectifier) and biases at 0.1. A number is a starting value too, except
#   that 0 stays 0.
# * Weak log-normal priors keep variances and length scales from diverging where the data do not identify
#   them.
# * One noise variance per output is learnt, down to a millionth of the outcomes' variance (1e-4 in float32). Known
#   noise is `train_Yvar=`, and `likelihood=` takes a GPyTorch likelihood with a prior and a floor of your own.

# %%
with torch.no_grad():
    posterior = model.posterior(test_X, observation_noise=True)
    low, high = posterior.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    print("RMSE", (posterior.mean - test_Y).square().mean().sqrt().item())
    print("negative log density", -posterior.log_prob(test_Y).mean().item())
    print(
        "share within the 90% interval", ((low < test_Y) & (test_Y < high)).double().mean().item()
    )

# %% [markdown]
# ## Which network?
#
# `log_marginal_likelihood()` is the [evidence](../glossary.md) in nats, in the units of `Y` and without the
# hyperparameters' priors. It therefore compares networks, activations, NNGP with NTK, and kernels with and
# without a length scale for each input ([relevance](../glossary.md)).

# %%
from priors import NTKKernel

for name, kernel in {
    "ReLU": NNGPKernel(perceptron(nn.ReLU()), ard_num_dims=10),
    "GELU": NNGPKernel(perceptron(nn.GELU()), ard_num_dims=10),
    "GELU without relevance": NNGPKernel(perceptron(nn.GELU())),
    "NTK of GELU": NTKKernel(perceptron(nn.GELU()), ard_num_dims=10),
}.items():
    candidate = GaussianProcess(train_X, train_Y, kernel).fit()
    with torch.no_grad():
        density = candidate.posterior(test_X, observation_noise=True).log_prob(test_Y).mean()
        evidence = candidate.log_marginal_likelihood()
    print(f"{name:24s} evidence {evidence.item():8.1f}   test log density {density.item():.3f}")

# %% [markdown]
# ## Look before you fit
#
# `plot_prior` shows what an architecture implies before it has seen data: sample paths, correlation by
# distance, and the spectrum.

# %%
from priors import InfiniteNetwork, plot_prior

prior = InfiniteNetwork(perceptron(nn.ReLU()), bias_var=0.1)
plot_prior(prior).savefig("prior.png")

# %% [markdown]
# ## Any architecture
#
# The forward is traced with `torch.fx`. Residual and gated branches, layers called in a loop, shared layers,
# convolutions, recurrent networks and attention need no changes. Rows are flat, as in GPyTorch and BoTorch;
# `input_shape` gives the shape of one input. Engines standardise what meets the same weights together: all pixels of a
# channel, a token feature at all positions.

# %%
import torch.nn.functional as F


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 32, 3, padding=1)
        self.inner = nn.Conv2d(32, 32, 3, padding=1)
        self.readout = nn.Linear(32 * 64, 1)

    def forward(self, x):  # [batch, 1, 8, 8]
        h = self.convolution(x)
        h = h + self.inner(F.relu(h))
        return self.readout(F.relu(h).flatten(1))


network = InfiniteNetwork(Residual(), input_shape=(1, 8, 8))
images = torch.rand(5, 64, dtype=torch.float64)
with torch.no_grad():
    nngp, ntk = network.kernels(images)
print(nngp.shape, ntk.shape)
print(network.costs())

# %% [markdown]
# Costs: closed forms are cheap, among them perceptrons with ReLU, GELU, erf or sine, and convolutions up to
# `Flatten`. Smooth activations without a closed form (tanh, SiLU, softplus) are interpolated to 1e-10. Pooling
# compares all pairs of positions. Attention costs milliseconds with logits scaled by 1/d and tied queries and
# keys; scaled by 1/sqrt(d), as in `nn.MultiheadAttention`, heads stay random in the limit and need quasi-Monte
# Carlo for each pair of inputs. `costs()` names the expensive parts of a network, and `quadrature_error(X)`
# bounds the error of quasi-Monte Carlo.
#
# ## Stop, restart, look at what was learnt

# %%
kernel = NNGPKernel(perceptron(nn.GELU()), ard_num_dims=10)
model = GaussianProcess(train_X, train_Y, kernel)
model.fit(num_restarts=3, timeout=120, seed=0)  # the best of three starts
print(model.log_marginal_likelihood().item())
print(model.covar_module.variances)  # the kernel was copied; yours is as it was

# %% [markdown]
# A fit that is stopped, by its `timeout`, `max_iter` or Ctrl-C, keeps the best hyperparameters so far and
# warns. A fit that is expected to take longer than ten seconds shows a progress bar; one that takes minutes
# of work, on a CPU processor time, says why.
#
# ## Columns of other kinds
#
# **Missing inputs** are refused unless you say how to treat them. `MissingInputs` puts a gap at its column's mean
# and adds a column that tells of it; the kernel sees both.

# %%
from priors import MissingInputs

holes = torch.rand(30, 2, dtype=torch.float64)
response = torch.sin(4 * holes[:, :1]) + holes[:, 1:]
holes[::5, 1] = torch.nan
treated = MissingInputs(holes)
net = nn.Sequential(nn.Linear(treated.num_columns, 64), nn.ReLU(), nn.Linear(64, 1))
partial = GaussianProcess(holes, response, NNGPKernel(net), input_transform=treated).fit()
print(partial.posterior(torch.tensor([[0.5, torch.nan]], dtype=torch.float64)).mean.item())

# %% [markdown]
# **Categories** as codes get BoTorch's `CategoricalKernel` on their column, beside a network's kernel on the others;
# it compares codes, so that their numbers do not matter.

# %%
from botorch.models.kernels import CategoricalKernel

coded = torch.rand(30, 3, dtype=torch.float64)
coded[:, 2] = torch.arange(30) % 3
level = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)[coded[:, 2].long()][:, None]
net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
product = NNGPKernel(net, active_dims=(0, 1)) * CategoricalKernel(active_dims=[2])
mixed = GaussianProcess(coded, coded[:, :1] + level, product).fit()
print(mixed.covar_module.kernels[1].lengthscale.item())

# %% [markdown]
# **Outputs that are correlated** are rows with a task column (intrinsic coregionalisation, B kron K), which may
# lack any of them; only the columns that are numbers are standardised.

# %%
from botorch.models.transforms.input import InputStandardize
from gpytorch.kernels import IndexKernel

torch.sparse.check_sparse_tensor_invariants.disable()  # or torch warns of IndexKernel's gradient
place = torch.rand(20, 2, dtype=torch.float64)
task = (torch.arange(20) % 2).double()[:, None]
long = torch.cat([place, task], dim=-1)
outcome = torch.sin(5 * place[:, :1]) * (1 + task)
transform = InputStandardize(3, indices=[0, 1])
tasks = NNGPKernel(net, active_dims=(0, 1)) * IndexKernel(num_tasks=2, rank=1, active_dims=[2])
joint = GaussianProcess(long, outcome, tasks, input_transform=transform).fit()
print(joint.covar_module.kernels[1].covar_matrix.to_dense())

# %% [markdown]
# ## Outcomes without noise
#
# A deterministic simulator has none, and the model is better off when it is told: the prior of a learnt noise
# variance has a few parts in a thousand in mind, and with few rows hardly anything in them speaks against it.
# Fits start once more from hardly any noise and keep the better optimum, so that oscillations and fine structure are not
# taken for noise; from few rows the prior still holds them back.
# `train_Yvar=` takes known noise variances in squared units of `Y`; two millionths of the variance of `Y` are as good as
# none (GPyTorch rounds up what is below one).

# %%
from gpytorch.kernels import MaternKernel, ScaleKernel


def simulator(X):
    return torch.sin(3 * X[:, :1]) * X[:, 1:2] + torch.exp(X[:, 2:])


torch.manual_seed(0)
runs, others = torch.rand(40, 3, dtype=torch.float64), torch.rand(200, 3, dtype=torch.float64)
results, truth = simulator(runs), simulator(others)
matern = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=3))
told = {"learnt": {}, "none": {"train_Yvar": torch.full_like(results, 2e-6) * results.var()}}
for noise, options in told.items():
    fitted = GaussianProcess(runs, results, matern, **options).fit()
    with torch.no_grad():
        found = fitted.posterior(others)
        print(noise, "RMSE", (found.mean - truth).square().mean().sqrt().item())
        print("  log density", found.log_prob(truth).mean().item())

# %% [markdown]
# ## Noise that depends on the inputs
#
# `HeteroscedasticGaussianProcess` learns the noise variance as a function of the inputs, a second Gaussian process
# of its logarithm. Hyperparameters are learnt with that process integrated out, by Laplace's approximation, so that noise
# that is the same everywhere is found to be; predictions are those of its most probable value, given which the posterior
# is exact.

# %%
from bayes import HeteroscedasticGaussianProcess

torch.manual_seed(0)
x = 4 * torch.rand(100, 1, dtype=torch.float64) - 2
noise_std = 0.05 + 0.45 * torch.sigmoid(3 * x)
y = torch.sin(3 * x) + noise_std * torch.randn_like(x)
noisy = HeteroscedasticGaussianProcess(x, y, ScaleKernel(MaternKernel(nu=2.5))).fit()
at = torch.tensor([[-1.5], [0.0], [1.5]], dtype=torch.float64)
with torch.no_grad():
    print("learnt", noisy.noise_variance(at).sqrt().flatten())
print("truth ", 0.05 + 0.45 * torch.sigmoid(3 * at).flatten())

# %% [markdown]
# `noise_kernel=` is the prior covariance of the log noise variance. How uncertain the noise itself is does not widen
# the intervals: with few rows, `VariationalGaussianProcess(likelihood="heteroscedastic")` integrates over it.
#
# ## Save and load

# %%
model.save("diabetes.safetensors")
again = GaussianProcess.load(
    "diabetes.safetensors", kernel=NNGPKernel(perceptron(nn.GELU()), ard_num_dims=10)
)
print(torch.equal(again.posterior(test_X).mean, model.posterior(test_X).mean))

# %% [markdown]
# Files hold numbers and names but no code, so the kernel is passed to `load` again.
#
# ## With BoTorch
#
# `GaussianProcess` is a BoTorch `Model`: acquisition functions, `optimize_acqf`, fantasies and
# `condition_on_observations` work as with `SingleTaskGP`.

# %%
from botorch.acquisition import qLogExpectedImprovement
from botorch.optim import optimize_acqf

bounds = torch.stack([train_X.min(0).values, train_X.max(0).values])
acquisition = qLogExpectedImprovement(model, best_f=train_Y.max())
candidates, value = optimize_acqf(acquisition, bounds, q=2, num_restarts=4, raw_samples=64)
print(candidates.shape, value.item())

# %% [markdown]
# `sample_path` draws functions from the posterior for any kernel, to be asked at any points, again and again; one
# step of Thompson sampling is the best point of one of them. BoTorch's own paths need random Fourier features,
# which a network's kernel does not have.

# %%
path = mixed.sample_path(generator=torch.Generator().manual_seed(0))
print(coded[path(coded).argmax()])

# %% [markdown]
# ## Many rows
#
# Exact inference takes time cubic and memory quadratic in the number of rows. Beyond some thousand rows,
# random features of the same network give a kernel of low rank:

# %%
from priors import RandomFeatureKernel, random_features

features = random_features(InfiniteNetwork(perceptron(nn.ReLU()), bias_var=0.1), 512, kind="nngp")
low_rank = GaussianProcess(train_X, train_Y, RandomFeatureKernel(features)).fit()
print(low_rank.posterior(test_X).mean.shape)
