# Made from docs/pages/guides/extending.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Extending each point
#
# Each part has one place for your own code, and most have a contract: a test class to inherit in your tests.
#
# | to add | do | contract |
# |---|---|---|
# | the limit of a layer or function | `priors.register_layer`, `register_function` | none: compare with the module written in plain layers |
# | an activation | `priors.Nonlinearity`, or a subclass of `priors.Activation` | `priors.testing.ActivationContract` |
# | a kernel, a posterior, a model | GPyTorch's `Kernel`, `PredictivePosterior`, BoTorch's `Model` | `KernelContract`, `PosteriorContract`, `ModelContract` |
# | a prior over tasks | an object with `sample` | `TaskPriorContract` |
# | a likelihood of a network | a subclass of `bayes.Likelihood` | none: compare with the density elsewhere, and draws with the density |
# | an inference method | `run(model, like) -> Draws` | `bayes.testing.InferenceMethodContract`, `SamplerContract` |
# | an acquisition function of an engine | BoTorch's `AcquisitionFunction` on `posterior.log_excess` | none: compare with Monte Carlo |
# | an operation, a space, a sampler | `nas.register_operation`, `nas.spaces.Space` | `nas.testing.OperationContract`, `SpaceContract`, `SamplerContract` |
# | a surrogate, an acquisition of a search | `nas.surrogates.Surrogate`, a callable | `nas.testing.SurrogateContract`, `AcquisitionContract` |
# | a score without training | a callable `(network, X, y) -> float` | `nas.testing.ProxyContract` |
#
# ## The limit of a layer
#
# A rule translates a layer, with the tracer's methods: `call` for modules and functions that have
# rules, `combine` for linear combinations, `activation` for nonlinearities.

# %%
import torch
from torch import nn

from priors import InfiniteNetwork, register_layer


class Residual(nn.Module):
    """A block whose forward cannot be traced, since it looks at values."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        if x.isnan().any():
            raise ValueError("missing values")
        return x + self.outer(torch.relu(self.inner(x)))


@register_layer(Residual)
def residual(tracer, layer, x):
    hidden = tracer.call(layer.outer, tracer.call(torch.relu, tracer.call(layer.inner, x)))
    return tracer.combine([(1.0, x), (1.0, hidden)])


network = nn.Sequential(nn.Linear(3, 16), Residual(16), nn.Linear(16, 1))
torch.manual_seed(0)
torch.manual_seed(0)
X = torch.randn(4, 3, dtype=torch.float64)
with torch.no_grad():
    nngp, ntk = InfiniteNetwork(network, bias_var=0.1).kernels(X)
print(nngp)

# %% [markdown]
# `priors.UnsupportedOperationError.supported()` lists all layers and functions that have rules.
#
# ## An activation
#
# Any elementwise function is an activation; its Gaussian expectations are computed numerically. A subclass of
# `priors.Activation` may add closed forms.

# %%
from priors import Nonlinearity

snake = Nonlinearity(lambda x: x + torch.sin(x) ** 2)
network = nn.Sequential(nn.Linear(3, 16), snake, nn.Linear(16, 1))
with torch.no_grad():
    print(InfiniteNetwork(network, bias_var=0.1).nngp(X).diagonal())

# %% [markdown]
# ## A prior over tasks
#
# Anything with a `sample` method that returns a `Task` is a prior over [tasks](../glossary.md). This one draws
# sine waves of random frequency.

# %%
from priors import Task, plot_tasks


class Waves:
    """y = sin(w x + phase) + noise, w log-uniform."""

    description = "sine waves on the unit interval"

    def sample(self, batch, *, generator=None, device=None, dtype=None):
        def uniform(*shape):
            return torch.rand(*shape, generator=generator, device=device, dtype=dtype)

        X = uniform(batch, 32, 1)
        frequency = 3 * 10 ** uniform(batch, 1, 1)
        f = torch.sin(frequency * X + 6.28 * uniform(batch, 1, 1))
        noise = torch.randn(f.shape, generator=generator, device=device, dtype=dtype)
        noise_var = torch.full((batch,), 0.01, device=device, dtype=dtype)
        return Task(X=X, y=f + 0.1 * noise, f=f, noise_var=noise_var, num_context=16)


plot_tasks(Waves()).savefig("waves.png")

# %% [markdown]
# Its contract goes into a test module of yours:

# %%
from priors.testing import TaskPriorContract


class TestWaves(TaskPriorContract):
    def make_task_prior(self):
        return Waves()

# %% [markdown]
# ## A search space
#
# A [flat space](../glossary.md), whose members are choices of a fixed list of parameters, needs four methods.
# Optuna's own samplers can search it too. `surrogate="gp"` learns one length scale for each column of `encode`; where a
# choice takes several columns, as one-hot codes do, a fifth method `code_sizes` says how many each has, and they share it.

# %%
from optuna.distributions import CategoricalDistribution

import nas
from nas import Architecture, Node


class Bottleneck(nas.spaces.FlatSpace):
    """64 features through a bottleneck of a chosen width to 10 classes."""

    def parameters(self):
        return {
            "width": CategoricalDistribution((2, 4, 8, 16)),
            "activation": CategoricalDistribution(("relu", "tanh")),
        }

    def from_parameters(self, values):
        chosen = self.checked_parameters(values)
        return Architecture(
            (
                Architecture.input((64,)),
                Node.of("linear", 0, out_features=chosen["width"]),
                Node.of(chosen["activation"], 1),
                Node.of("linear", 2, out_features=10),
            )
        )

    def to_parameters(self, architecture):
        _, narrow, activation, _ = architecture.nodes
        return {"width": dict(narrow.arguments)["out_features"], "activation": activation.operation}

    def encode(self, architecture):
        values = self.to_parameters(architecture)
        width = (2, 4, 8, 16).index(values["width"]) / 3
        return torch.tensor([width, float(values["activation"] == "tanh")], dtype=torch.float64)


space = Bottleneck()
print(space.random(torch.Generator().manual_seed(0)))

# %% [markdown]
# ## An operation of architectures

# %%
class Gated(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gate, self.value = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x):
        return x + torch.sigmoid(self.gate(x)) * self.value(x)


def build(shapes):
    (shape,) = shapes
    return Gated(shape[-1]), shape


nas.register_operation("gated", build, weight_layers=1)

# %% [markdown]
# Put the registration at the top of the module that holds the objective, since worker processes import it.
#
# ## A way to draw from a posterior
#
# An inference method has `run(model, like) -> Draws`: `model` is a Pyro model without arguments whose latent
# sites are real-valued, `like` gives dtype and device. `isolated` leaves the user's random state and Pyro's
# parameters untouched. This one fits independent Gaussians, the mean-field approximation.

# %%
import pyro
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from bayes import BayesianNetwork, isolated
from bayes.inference import Draws
from priors import NetworkPrior


class Independent:
    def __init__(self, num_steps=300, num_draws=200, seed=0):
        self.num_steps, self.num_draws, self.seed = num_steps, num_draws, seed

    def run(self, model, like):
        with isolated(self.seed, like):
            guide = AutoNormal(model, init_scale=0.01)
            descent = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
            for _ in range(self.num_steps):
                descent.step()
            with torch.no_grad():
                draws = [guide() for _ in range(self.num_draws)]
        return Draws({name: torch.stack([d[name] for d in draws])[None] for name in draws[0]}, {})


prior = NetworkPrior(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), bias_var=0.1)
torch.manual_seed(0)
rows = torch.randn(40, 3, dtype=torch.float64)
model = BayesianNetwork(rows, rows.sum(-1, keepdim=True), prior).fit(Independent())
print(model.posterior(X).mean.squeeze(-1), X.sum(-1))

# %% [markdown]
# `bayes.testing.InferenceMethodContract` compares a method with a conjugate posterior.
#
# ## An acquisition function
#
# Everything that predicts is a BoTorch model, so an acquisition function is one of BoTorch's. What its
# posterior answers exactly, for every engine, is `log_excess(threshold, order)`: the probability (0) and the
# expected size (1) of an excess.

# %%
from botorch.acquisition import AcquisitionFunction
from botorch.utils import t_batch_mode_transform

from priors import as_predictive  # also for BoTorch's Gaussian posteriors


class ClearImprovement(AcquisitionFunction):
    """Log probability of being better than the best value by a margin."""

    def __init__(self, model, best_f, margin):
        super().__init__(model)
        self.threshold = best_f + margin

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X):
        return as_predictive(self.model.posterior(X)).log_excess(self.threshold, order=0)[..., 0, 0]


def acquisition(model, observed, pending, seed):
    with torch.no_grad():
        return ClearImprovement(model, model.posterior(observed).mean.max(), margin=0.1)


def objective(trial):
    architecture = nas.suggest(trial, space)
    return float(architecture.num_parameters)


sampler = nas.BayesianSampler(space, acquisition=acquisition, num_initial=4, seed=0)
study = nas.search(objective, space, num_trials=6, sampler=sampler, show_progress=False)
print(study.best_value)

# %% [markdown]
# Its contract, and those of a surrogate and of a proxy, go into a test module of yours:

# %%
from nas.testing import AcquisitionContract, ProxyContract, SurrogateContract


class TestClearImprovement(AcquisitionContract):
    def make_acquisition(self):
        return acquisition


def smallness(network, X, y):
    """Fewer parameters are better."""
    module = network.build() if isinstance(network, Architecture) else network
    return -float(sum(parameter.numel() for parameter in module.parameters()))


class TestSmallness(ProxyContract):
    def make_proxy(self):
        return smallness


class TestVectors(SurrogateContract):
    def make_surrogate(self):
        return "vectors"
