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
# ## What it cannot do
#
# A scale mixture learns *one* scale for all rows. It does not discount a single bad `y`: an outlier widens the
# intervals everywhere. Against outliers, clean the data or use a
# [likelihood with heavy tails](outcomes.md#outliers).
