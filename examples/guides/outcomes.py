# Made from docs/pages/guides/outcomes.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Classes, counts, outliers
#
# A `BayesianNetwork` takes any of these outcomes; network, samplers and predictions stay the same.
#
# | outcomes | `likelihood=` | outputs of the network for `m` columns |
# | --- | --- | --- |
# | real numbers | `"gaussian"` | m |
# | the same, with noise that depends on the input | `"heteroscedastic"` | 2m: means, then log noise variances |
# | the same, with outliers | `"student_t"`, or `StudentT(df=4)` | m |
# | both | `"heteroscedastic_student_t"` | 2m: locations, then log squared scales |
# | classes 0, 1, ... | `"categorical"` | one for each class |
# | ordered classes | `"ordinal"` | 1 |
# | counts | `"poisson"` | m: log rates, beyond the mean count |
#
# ## Classification
#
# `train_Y` are class numbers, `[n, 1]`. Near the boundary some labels are wrong.

# %%
import warnings

import torch
from torch import nn

from bayes import BayesianNetwork, ChEES
from priors import NetworkPrior

torch.manual_seed(0)
X = torch.randn(300, 2, dtype=torch.float64)
Y = (X.norm(dim=-1, keepdim=True) + 0.3 * torch.randn(300, 1, dtype=torch.float64) > 1).double()

module = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 2))
prior = NetworkPrior(module, weight_var=4.0, bias_var=1.0)
warnings.filterwarnings("ignore", ".* may not have converged")  # the runs of this page are short
method = ChEES(num_chains=16, num_warmup=120, num_samples=40, max_steps=32, progress=False)
model = BayesianNetwork(X[:100], Y[:100], prior, likelihood="categorical").fit(method)

queries = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
posterior = model.posterior(queries)
print("probabilities", posterior.mean)
print("disagreement of the draws", posterior.variance.sqrt()[:, 1])

# %% [markdown]
# `posterior(X)` are the drawn class probabilities, and `posterior(X, observation_noise=True)` is the class
# itself, with `log_prob` of class numbers. Their `mean` is the same.
#
# Are the probabilities right? `calibration` compares them with how often the predicted class was the true
# one. The error of a calibrated classifier is not 0 either, for so few targets:

# %%
from bayes import calibration

held_out = calibration(model.posterior(X[100:], observation_noise=True), Y[100:], num_levels=10)
print(held_out)
held_out.plot(label="network").figure.savefig("reliability.png")

# %% [markdown]
# `compare` scores classifiers by accuracy, log density, Brier score and calibration error.
#
# ## Outliers
#
# Every tenth value is wrong. Gaussian noise must grow to explain them; with a t likelihood they hardly
# count.

# %%
x = torch.linspace(-2, 2, 60, dtype=torch.float64)[:, None]
clean = torch.sin(2 * x)
y = clean + 0.1 * torch.randn_like(x)
y[::10] += 4.0

small = nn.Sequential(nn.Linear(1, 15), nn.Tanh(), nn.Linear(15, 1))
for likelihood in ("gaussian", "student_t"):
    prior = NetworkPrior(small, weight_var=4.0, bias_var=1.0)
    robust = BayesianNetwork(x, y, prior, likelihood=likelihood).fit(method)
    error = (robust.posterior(x).mean - clean).square().mean().sqrt()
    print(likelihood, "error of the function", error.item())

# %% [markdown]
# ## Counts

# %%
rates = torch.exp(2 + torch.sin(2 * x))
counts = torch.poisson(rates)
prior = NetworkPrior(small, weight_var=4.0, bias_var=1.0)
model = BayesianNetwork(x, counts, prior, likelihood="poisson").fit(method)
here = model.posterior(x[::20], observation_noise=True)
print("true rates", rates[::20, 0])
print("expected  ", here.mean[:, 0])
print("90% of counts in", here.quantile(torch.tensor([0.05, 0.95]).double())[..., 0].T)

# %% [markdown]
# ## Ordered classes
#
# The function of `"ordinal"` is in logits, as those of `"categorical"`: classes that are sure need values far from 0,
# and a prior under which the function is about 1 to 3 is too flat where they are. Let the variances be learnt, or make
# that of the readout larger:

# %%
X = 4 * torch.rand(600, 1, dtype=torch.float64) - 2
below = torch.sigmoid(torch.tensor([-2.0, 2.0]).double() - 4 * torch.sin(2 * X))
shares = torch.cat([below[:, :1], below[:, 1:] - below[:, :1], 1 - below[:, 1:]], dim=-1)
Y = torch.multinomial(shares, 1).double()
known, asked = slice(0, 100), slice(100, None)

print("NLPD of the truth", -shares[asked].gather(1, Y[asked].long()).log().mean().item())
flat = NetworkPrior(small, weight_var=4.0, bias_var=1.0)
wide = NetworkPrior(small, weight_var={"0": 4.0, "2": 40.0}, bias_var=1.0)
for told, law, learn in (("flat", flat, False), ("wide", wide, False), ("learnt", flat, True)):
    model = BayesianNetwork(X[known], Y[known], law, likelihood="ordinal", learn_variances=learn)
    predicted = model.fit(method).posterior(X[asked], observation_noise=True)
    print(f"NLPD, {told}:", -predicted.log_prob(Y[asked]).mean().item())

# %% [markdown]
# ## Weights that are not Gaussian
#
# `WeightPrior` gives layers other laws: `"laplace"` and `"student_t"` weights are mostly small and rarely
# large. A random variance of the readout makes the whole function a scale mixture: with an inverse gamma, wide
# networks approach a [Student t process](heavy-tails.md). `learn_variances=True` draws the layers' variances
# along with the weights, and the length scales of the inputs where the network has some (`ard_num_dims`). All
# of them are priors over functions and go where a `NetworkPrior` does:

# %%
from torch.distributions import InverseGamma

from bayes import WeightPrior

mixture = WeightPrior(prior, weights={"0": "laplace"}, readout_scale=InverseGamma(2.0, 2.0))
print(mixture.sample(x[:3], torch.Size([2])).shape)
model = BayesianNetwork(x, counts, mixture, likelihood="poisson")
print({name: value.mean().item() for name, value in model.fit(method).variances_of_draws().items()})

# %% [markdown]
# ## Draws are functions
#
# A drawn network is a function that can be optimised, as Thompson sampling does. BoTorch's
# `PathwiseThompsonSampling` takes the model itself.

# %%
path = model.sample_path(generator=torch.Generator().manual_seed(0))
grid = torch.linspace(-2, 2, 201, dtype=torch.float64)[:, None]
print("one drawn rate is largest at", grid[path(grid).argmax()].item())

# %% [markdown]
# A few further rows give the draws weights, in place of a new fit; this is how look-ahead acquisition functions
# such as the knowledge gradient work. `effective_draws` says how many are left, and a warning when too few.

# %%
further = model.condition_on_observations(grid[100:101], grid.new_tensor([[9.0]]))
print("effective draws", further.effective_draws.item())
print(
    model.posterior(grid[100:101]).mean.item(), "->", further.posterior(grid[100:101]).mean.item()
)

# %% [markdown]
# A likelihood of your own is a subclass of `bayes.Likelihood`: a density, its noise-free mean, a posterior
# and a sampler of outcomes; `check_outcomes` refuses those that it cannot give.
