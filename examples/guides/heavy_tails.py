# Made from docs/pages/guides/heavy-tails.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Heavy tails: when the scale of the data is not known
#
# A Gaussian process with a fixed kernel is certain of its scale: however large the data turn out to be, the
# width of its intervals depends on the inputs alone. A network whose last layer has an uncertain variance is a
# [scale mixture](../glossary.md) of Gaussian processes. With an inverse gamma variance the mixture is a Student
# t process, exact and in closed form at the cost of a Gaussian process ([Shah et al.
# 2014](https://proceedings.mlr.press/v33/shah14.html); for networks [Lee et al.
# 2021](https://arxiv.org/abs/2106.06529)).
#
# ## Intervals that widen with the data
#
# Both processes below have the same kernel, and the data are three times as large as it expects. We keep the
# kernel fixed and switch the outcome transform off, to see the effect of the scale.

# %%
import torch
from torch import nn

from bayes import GaussianProcess, StudentTProcess, plot_posterior
from priors import NNGPKernel

torch.manual_seed(2)
X = torch.rand(12, 1, dtype=torch.float64) * 4 - 2
Y = 3 * (torch.sin(3 * X) + X)

network = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, 1))
kernel = NNGPKernel(network, weight_var=2.0, bias_var=0.5)
noise = torch.full_like(Y, 0.01)
fixed = {"train_Yvar": noise, "input_transform": None, "outcome_transform": None}
gaussian = GaussianProcess(X, Y, kernel, **fixed)
student = StudentTProcess(X, Y, kernel, concentration=2.0, rate=2.0, **fixed)

far = torch.tensor([[3.0]], dtype=torch.float64)
with torch.no_grad():
    for name, model in (("Gaussian", gaussian), ("Student t", student)):
        posterior = model.posterior(far)
        low, high = posterior.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).flatten()
        print(f"{name:9s} mean {posterior.mean.item():6.2f}   90% from {low:.2f} to {high:.2f}")

# %% [markdown]
# The mean is the same; the interval of the Student t process has adapted to the scale. With few rows its tails
# are heavier too: its degrees of freedom are twice the `concentration` plus the number of rows.

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(9, 3.2), layout="constrained")
grid = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
for axes, (name, model) in zip(
    figure.subplots(1, 2, sharey=True),
    (("Gaussian", gaussian), ("Student t", student)),
    strict=True,
):
    plot_posterior(model, grid, ax=axes, observation_noise=False).set_title(name)
figure.savefig("scales.png")

# %% [markdown]
# ## Fitted
#
# `fit()` maximises the closed-form marginal likelihood; everything else works as for a [Gaussian
# process](gaussian-processes.md): standardised inputs and outputs, saving, BoTorch.

# %%
model = StudentTProcess(X, Y, NNGPKernel(network)).fit()
posterior = model.posterior(grid, observation_noise=True)
print(posterior.mean.shape, posterior.df)
print(model.log_marginal_likelihood().item())

# %% [markdown]
# `posterior.log_prob`, `quantile`, `rsample` and expected improvement are those of the t distribution,
# not of a Gaussian with its moments.
#
# ## Any prior of the scale
#
# `ScaleMixtureProcess` takes any `torch.distributions` prior of the variance, exactly up to a stated error of one
# integral over the scale: a half-Cauchy scale, Burr XII, beta prime, log-normal, mixtures. The noise may be
# outside the mixture, as measurement noise that does not know of the function's scale, or inside it.

# %%
from torch.distributions import InverseGamma, LogNormal

from bayes import ScaleMixtureProcess
from priors import BurrXII, HalfCauchyVariance

mixture = ScaleMixtureProcess(X, Y, kernel, scale=HalfCauchyVariance(1.0), **fixed)
for scale in (
    HalfCauchyVariance(1.0),
    BurrXII(2.0, 1.0),
    LogNormal(0.0, 1.0),
    InverseGamma(2.0, 2.0),
):
    mixture.scale = scale  # the rows are decomposed once, for all of them
    with torch.no_grad():
        posterior = mixture.posterior(far)
        low, high = posterior.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).flatten()
    print(
        f"{type(scale).__name__:19s} 90% from {low:.2f} to {high:.2f}, "
        f"log evidence {mixture.log_marginal_likelihood().item():.2f}, "
        f"error {mixture.scale_posterior().error:.0e}"
    )

# %% [markdown]
# With `learn_scale=True`, `fit()` learns the parameters of the scale prior as well. A variance is infinite where
# it is: one row under a half-Cauchy scale says too little.

# %%
one = ScaleMixtureProcess(
    X[:1],
    Y[:1],
    kernel,
    scale=HalfCauchyVariance(1.0),
    scale_noise=True,
    input_transform=None,
    outcome_transform=None,
)
posterior = one.posterior(far)
print(posterior.variance.item(), posterior.quantile(torch.tensor(0.9)).item())

# %% [markdown]
# ## What it cannot do
#
# A scale mixture learns *one* scale for all rows. It does not discount a single bad `y`: an outlier widens the
# intervals everywhere, and pulls the mean as it pulls that of a Gaussian process. Below one of 25 values is
# wrong. Beside the processes stand two models that are made for it: BoTorch's relevance pursuit, which gives
# single rows noise of their own, and GPyTorch's Student t likelihood, fitted variationally.

# %%
import warnings

import gpytorch
from botorch.fit import fit_gpytorch_mll
from botorch.models.robust_relevance_pursuit_model import RobustRelevancePursuitSingleTaskGP
from gpytorch.kernels import MaternKernel, ScaleKernel

from bayes import VariationalGaussianProcess

torch.manual_seed(0)
x = torch.linspace(-2, 2, 25, dtype=torch.float64)[:, None]
clean = torch.sin(2 * x)
y = clean + 0.1 * torch.randn_like(x)
y[12] += 4.0


def matern():
    return ScaleKernel(MaternKernel(nu=2.5))


robust = RobustRelevancePursuitSingleTaskGP(x, y, covar_module=matern())
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # in BoTorch
    fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(robust.likelihood, robust))

fits = {
    "Gaussian process": GaussianProcess(x, y, matern()).fit(),
    "Student t process": StudentTProcess(x, y, matern()).fit(),
    "scale mixture": ScaleMixtureProcess(
        x, y, MaternKernel(nu=2.5), scale=HalfCauchyVariance(1.0), scale_noise=True
    ).fit(),
    "relevance pursuit": robust,
    "t likelihood": VariationalGaussianProcess(
        x, y, matern(), likelihood=gpytorch.likelihoods.StudentTLikelihood()
    ).fit(),
}
with torch.no_grad():
    found = {}
    for name, model in fits.items():
        posterior = model.posterior(x)
        found[name] = posterior.mean, posterior.variance.sqrt()
print(f"{'':18s} error at the outlier  elsewhere  deviation elsewhere")
others = torch.arange(25) != 12
for name, (mean, deviation) in found.items():
    error = (mean - clean)[:, 0]
    print(
        f"{name:18s} {error[12].abs().item():20.2f} "
        f"{error[others].square().mean().sqrt().item():10.2f} {deviation[others].mean().item():20.2f}"
    )

# %% [markdown]
# The first three either follow the outlier or call all of the data noise, as the marginal likelihood will have
# it: one number for all rows cannot tell which row is wrong. Against outliers, clean the data, use one of the
# last two, or a network with a [likelihood with heavy tails](outcomes.md#outliers). On real rows, and where test
# rows differ from them, see [the results](../results.md#random-scales-under-shift-outliers-and-wrong-outcomes).
