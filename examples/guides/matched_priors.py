# Made from docs/pages/guides/matched-priors.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Matched priors, and whether to trust the draws
#
# Weights are hard to have beliefs about; functions are not. This guide chooses a network's variances so that
# its functions resemble a prior that you understand, checks how close it came, and judges the chains of the
# fitted network.
#
# ## A target, and a match
#
# Any prior over functions is a target: a Gaussian process, also of an infinite network's kernel, a
# `ScaleMixturePrior`, another `NetworkPrior`, or an object of your own with `sample`. The network may have any
# depth.

# %%
import math

import torch
from gpytorch.kernels import RBFKernel
from torch import nn

from bayes import match_functional_prior
from bayes.functional_prior import MomentMatching, TrainingBox
from priors import GaussianProcessPrior, NetworkPrior

generator = torch.Generator().manual_seed(0)
X = torch.randn(40, 2, generator=generator, dtype=torch.float64)

kernel = RBFKernel()
kernel.lengthscale = math.sqrt(2 * 2)
target = GaussianProcessPrior(kernel)

network = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
start = NetworkPrior(network, weight_var=1.0, bias_var=1.0)
matched = match_functional_prior(start, target, TrainingBox(X, num_points=40))
print(matched.variances)

# %% [markdown]
# Measurement points are a matrix, or a function that draws one: `TrainingBox` takes 70% training rows and
# uniform points in the box that they span. Give them on the scale that the model sees, which is standardised
# by default.
#
# Which method?
#
# * `"moments"`, the default, matches E[f(x) f(x')], by the sliced distance of Gaussians with these moments. With one
#   hidden layer that is a closed form at every width; deeper networks get a sampled correction to the limit. Seconds.
# * `"sliced"` compares draws along random directions, and so sees tails. Take it for targets that are not
#   Gaussian.
# * `"wasserstein"` is the adversarial method of Tran et al. 2022, for comparison. Minutes.
#
# `MomentMatching(...)`, `SlicedMatching(...)` and `WassersteinMatching(...)` have their settings.
#
# ## How close did it come?
#
# `match_report` compares drawn functions at inputs that had no part in the match. Two sets of draws of the
# target itself are some distance apart: that is the floor.

# %%
from bayes import match_quality, match_report

held_out = torch.randn(40, 2, generator=generator, dtype=torch.float64)
for name, prior in (("before", start), ("matched", matched)):
    print(name, match_quality(prior, target, held_out))

report = match_report(matched, target, held_out)
print(report)
report.plot().savefig("match.png")

# %% [markdown]
# A family with a handful of variances cannot become every process: with ReLU in place of tanh, whose functions
# grow with their inputs, the best match to this target is hardly better than constants. Where the report says that the match fails
# far from the mean, inputs out there will be given another prior than the one you meant.
#
# ## Heavy tails
#
# A Student t process has the moments of a Gaussian process, so matching moments misses what makes it one:

# %%
from torch.distributions import InverseGamma

from bayes.functional_prior import SlicedMatching
from priors import ScaleMixturePrior

heavy = ScaleMixturePrior(kernel, InverseGamma(torch.tensor(2.0), torch.tensor(1.0)))
narrow = NetworkPrior(
    nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1)),
    weight_var=1.0,
    bias_var=1.0,
)
for method in (MomentMatching(), SlicedMatching()):
    found = match_functional_prior(narrow, heavy, X, method=method)
    report = match_report(found, heavy, held_out)
    print(f"{type(method).__name__}: distance {report.distance:.3f}, tails {report.tail_ratio:.2f}")

# %% [markdown]
# Narrow networks have heavier tails than wide ones, whose limit is Gaussian. Where the variance of the target is
# infinite, take `SlicedMatching(order=1)`.
#
# ## Can the draws be trusted?

# %%
import warnings

from bayes import BayesianNetwork, ChEES
from bayes import report as convergence

Y = torch.sin(2 * X[:, :1]) + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
small = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 1))
prior = match_functional_prior(NetworkPrior(small, weight_var=1.0, bias_var=1.0), target, X)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the report tells more
    model = BayesianNetwork(X, Y, prior).fit(
        ChEES(num_samples=60, num_warmup=60, num_chains=16, max_steps=32, progress=False)
    )
page = convergence(model)
print(page)
page.plot().savefig("convergence.png")
page.save("convergence.html")

# %% [markdown]
# Judged are function values at the training rows and the noise, not weights: mirrored weights are the same
# function, and chains that sit in mirror images agree. With eight chains and more, groups of four are compared,
# and nested R-hat stands beside R-hat, since short chains differ by chance. Sixty draws, which this page can
# afford, may be too few; the report says so, and what to raise. `convergence(model)` works for a
# `GaussianProcess` with `fit(method=ChEES())` too.
#
# ## With ArviZ

# %%
import arviz

data = model.to_arviz()
print(data.groups())
print(arviz.summary(data, var_names=["noise_var"], kind="diagnostics"))

# %% [markdown]
# The groups `prior` and `prior_predictive` hold draws from before the data, and `log_likelihood` is what
# `arviz.loo` and `arviz.compare` need.
