# Made from docs/pages/guides/search-spaces.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Search spaces and surrogates
#
# A search needs to know which networks there are, and how to learn from the ones that were tried. Both are
# arguments; this page shows what can be passed.
#
# ## A grammar of your own
#
# A grammar says how networks are put together. A rule gives the options of a symbol; a string is a symbol,
# `op` an operation.

# %%
import torch

import nas
from nas.spaces import Grammar, branches, op, residual, sequence

space = Grammar(
    (16,),
    {
        "network": sequence("body", op("linear", out_features=3)),
        "body": ["layer", (0.5, sequence("layer", "body"))],
        "layer": [
            *(sequence(op("linear", out_features=w), op("relu")) for w in (16, 32)),
            residual(op("tanh"), "square"),
            branches("square", "square", join=op("product")),
        ],
        "square": op("linear", out_features=16),
    },
    output_shape=(3,),
)
generator = torch.Generator().manual_seed(0)
network = space.random(generator)
print(network)
print(network.num_parameters, "parameters,", round(space.log_probability(network), 2), "nats")

# %% [markdown]
# Shapes are known at every choice, so only networks that build are drawn: behind a layer of 32 features a
# residual layer of 16 is not an option. A pair `(weight, part)` makes an option more or less likely, and
# `max_depth` bounds the recursion.

# %%
print(space.mutate(network, generator))
print(space.crossover(network, space.random(generator), generator))

# %% [markdown]
# `nas.plot_architecture(network)` draws a network. `spaces.cell(graph, count)` repeats a graph of your own, and
# `nas.register_operation` adds an operation.
#
# ## Grammars that are there
#
# | space | networks |
# |---|---|
# | `ResNetSpace` | residual stages: widths, numbers and kinds of blocks |
# | `TransformerSpace` | heads by depth at a fixed total, a feed-forward width for each layer |
# | `Einspace` | from fundamental operations up, Ericsson et al. 2024 |
# | `CellSpace`, `MLPSpace` | choices of a fixed list of parameters, which Optuna's own samplers search too |

# %%
transformers = nas.spaces.TransformerSpace(8, 16, 3, total_heads=4, widths=(16, 32))
print(transformers.random(generator))

# %% [markdown]
# Architectures are equal, and hash alike, if their graphs are isomorphic, whatever the order of their nodes.
#
# ## Hyperparameters that only some candidates have
#
# A momentum goes with one optimizer, a dropout with networks that have something to drop. `nas.Conditional` declares
# when a hyperparameter exists: by values of another hyperparameter, of a parameter of a flat space or of a descriptor
# (`num_parameters`, `depth`, `flops`, `count_linear` and so on), or by any function of the architecture.

# %%
from optuna.distributions import CategoricalDistribution, FloatDistribution

from nas import Conditional

hyperparameters = {
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd")),
    "momentum": Conditional(FloatDistribution(0.0, 0.99), {"optimizer": "sgd"}),
    "dropout": Conditional(FloatDistribution(0.0, 0.5), lambda network: network.depth > 2),
}


def conditional(trial):
    network = nas.suggest(trial, space)
    value = abs(trial.suggest_float("rate", 1e-4, 1e-1, log=True) - 0.01)
    if trial.suggest_categorical("optimizer", ("adam", "sgd")) == "sgd":
        value += abs(trial.suggest_float("momentum", 0.0, 0.99) - 0.9)
    if network.depth > 2:
        value += trial.suggest_float("dropout", 0.0, 0.5)
    return value


study = nas.search(
    conditional, space, hyperparameters=hyperparameters, num_trials=10, seed=0, show_progress=False
)
print(study.best_params)

# %% [markdown]
# To the Gaussian process candidates without a hyperparameter are all alike in it, and as far from each that has it,
# whatever its value (the arc kernel of Swersky et al. 2014). A hyperparameter that is declared without a condition is
# proposed for every candidate. One that is not declared is drawn uniformly, with a warning, and no model sees it; without
# `hyperparameters=`, so are those that the latest trials did not all suggest, without one.
#
# ## Surrogates and acquisitions

# %%
def objective(trial):
    network = nas.suggest(trial, space)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return abs(network.depth - 3) + abs(rate - 0.01)


sampler = nas.BayesianSampler(
    space,
    hyperparameters={"rate": FloatDistribution(1e-4, 1e-1, log=True)},
    surrogate="gp",
    acquisition="lognei",
    num_initial=5,
    seed=0,
)
study = nas.search(objective, space, num_trials=8, sampler=sampler, show_progress=False)
print(round(study.best_value, 3), nas.architecture_of(study.best_trial))

# %% [markdown]
# | `surrogate` | model |
# |---|---|
# | `"gp"` | Gaussian process: motifs and paths of the graph (Weisfeiler-Lehman), a trend and curves in sizes and counts, times hyperparameters |
# | `"network"` | Gaussian process of an infinitely wide network on the encoded candidate |
# | `"vectors"` | Gaussian process with a Matern kernel on the encoded candidate |
# | `"pfn"` | the network `pfn.load("bo")`, on as many columns and trials as it was trained for |
# | `"ensemble"` | small networks that read the paths of operations |
#
# A callable `(train_X, train_Y, num_architecture) -> Model` makes any BoTorch model a surrogate.
#
# `"gp"` learns its hyperparameters again with each fifth more trials, and a proposal in between conditions on all
# trials with those that it has. They are of the first trials alone, so a search that is resumed proposes the same.
#
# | `acquisition` | what is looked for |
# |---|---|
# | `"logei"`, `"lognei"` | improvement, over the best estimate or over the uncertain best |
# | `"ucb"` | a large mean plus deviation |
# | `"thompson"` | the maximum of one draw of the function |
# | `"mes"` | what tells most about the maximum |
#
# Kernels of graphs can be used alone: `nas.kernels.ArchitectureTable` numbers architectures, and
# `nas.kernels.architecture_kernel` is a GPyTorch kernel of the numbers.
