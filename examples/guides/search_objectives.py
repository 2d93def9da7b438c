# Made from docs/pages/guides/search-objectives.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Several objectives, constraints and early stopping
#
# A network should be accurate, but also small or quick; a training that goes badly need not be finished, and few
# epochs tell much. This page shows how a [study](../glossary.md) is told.
#
# ## Several objectives
#
# The objective returns one number for each of the `directions`. The sampler models each of them and proposes
# what is expected to extend the Pareto front most: the trials that no other one beats in all objectives.

# %%
import math

import optuna
from optuna.distributions import FloatDistribution

import nas
from nas.spaces import MLPSpace

SPACE = MLPSpace(64, 10, depth=(1, 3), widths=(16, 64, 256))
HYPERPARAMETERS = {"rate": FloatDistribution(1e-4, 1e-1, log=True)}


def error_after(network, rate, epoch):
    """A stand-in for a training: larger networks end lower, a good rate gets there sooner."""
    end = 0.4 / math.log10(network.num_parameters)
    speed = 1 / (1 + (math.log10(rate) + 2) ** 2)
    return end + 0.8 * math.exp(-speed * epoch / 3)


def error_and_size(trial):
    network = nas.suggest(trial, SPACE)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return error_after(network, rate, 20), math.log10(network.num_parameters)


study = nas.search(
    error_and_size,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=12,
    directions=["minimize", "minimize"],
    seed=0,
    show_progress=False,
)
for trial in sorted(study.best_trials, key=lambda trial: trial.values):
    print([round(value, 3) for value in trial.values], nas.architecture_of(trial))

# %% [markdown]
# On the command line that is `--direction minimize minimize`.
#
# `acquisition="logei"` and `"lognei"` both mean log noisy expected hypervolume improvement here; the other names
# are for one objective. With Gaussian surrogates only the front of what was observed is drawn, and what a candidate
# adds to it is exact; that is computed for the 128 candidates of a proposal that are best if each observed point has
# the value expected of it. Of an `acquisition` of your own for several objectives no candidate is left out.
#
# ## Constraints and failures
#
# `trial.set_constraint(name, value)` says by how much a candidate misses a constraint; at most 0 is feasible. A
# trial fails if the objective raises or returns nan, as a diverged training does. Both are learnt, and multiply
# the acquisition as the probabilities that the constraints hold and that the trial does not fail.

# %%
def constrained(trial):
    network = nas.suggest(trial, SPACE)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    trial.set_constraint("parameters", network.num_parameters / 20_000 - 1)
    return math.nan if rate > 0.05 else error_after(network, rate, 20)


study = nas.search(
    constrained,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=12,
    seed=0,
    show_progress=False,
)
best = study.best_trial
print(best.value, best.constraints, [trial.state.name for trial in study.trials].count("FAIL"))

# %% [markdown]
# `BayesianSampler(..., cost_aware=True)` also divides by the seconds that a candidate is expected to take.
#
# ## Begin with what an earlier study found
#
# `nas.search(..., warm_start=earlier)` takes a finished study, or several, `BayesianSampler(..., warm_start=[earlier])`
# likewise. How much they have in common with the new one is learnt from its trials, so a study of something else loses
# its weight. Half of the initial trials are the best candidates of earlier ones. The earlier space may be another one:
# architectures are then compared by their motifs and sizes. Trials without a value for each hyperparameter of the new
# search are left out.
#
# ## Stop a trial early
#
# The objective reports its value now and then, and asks. `LearningCurvePruner` learns from the curves of the
# trials that ended where a curve will end, and stops a trial once its probability to beat the best one is below
# `level`. Any pruner of Optuna can take its place.

# %%
def epochs(trial):
    network = nas.suggest(trial, SPACE)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    for epoch in range(20):
        error = error_after(network, rate, epoch)
        nas.report_value(trial, error, epoch)
        if nas.should_prune(trial):
            raise optuna.TrialPruned
    return error


study = nas.search(
    epochs,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=12,
    pruner=nas.LearningCurvePruner(level=0.05),
    seed=0,
    show_progress=False,
)
run = sum(len(trial.intermediate_values) for trial in study.trials)
print(f"{run} epochs of {20 * len(study.trials)}, best {study.best_value:.3f}")

# %% [markdown]
# `nas.report_value(trial, (error, size), epoch)` and `nas.should_prune(trial)` also work with several objectives,
# which Optuna's own do not. `ParetoPruner`, the default there, stops a trial if at least half of the others were
# on better fronts at the same step; with one objective that is the median rule.
#
# ## Train briefly first
#
# Trainings of a few epochs, or on a part of the data, cost little and tell which candidates deserve a full one.
# `nas.Fidelity` has the levels, the last one full, and the objective asks it at which to train.

# %%
EPOCHS = nas.Fidelity("epochs", (2, 20))


def brief_or_full(trial):
    network = nas.suggest(trial, SPACE)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return error_after(network, rate, EPOCHS.suggest(trial))


study = nas.search(
    brief_or_full,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=24,
    fidelity=EPOCHS,
    seed=0,
    show_progress=False,
)
epochs = [trial.user_attrs["epochs"] for trial in study.trials]
print(epochs.count(2), "brief,", epochs.count(20), "full,", sum(epochs), "epochs in all")
print(study.best_trial.user_attrs["epochs"], round(study.best_value, 3))

# %% [markdown]
# One Gaussian process learns from all levels, each on its own scale, and how alike they are. The candidate that would
# improve most at the full level is trained where a unit of cost removes most of the variance of its full value, at a
# lower level at most once. At most half of the cost, `Fidelity(share=0.5)`, goes to lower levels; `costs=` gives the
# costs where they are not proportional to the levels (on the command line, `--fidelity objective.py:EPOCHS`). Where the
# lower level tells nothing, full trainings follow.
#
# A trial below the full level misses a constraint, `trained in full`, so `study.best_trial`, `best_trials` and Optuna's
# plots pass over it, as do importances and the report. Our pruners compare trials of the same level; Optuna's compare
# all, so report values at the lower level only if its epochs are those of the full training. Queued candidates are
# trained in full, as all are under other samplers.
#
# ## When to stop the search
#
# `timeout=` is in seconds. A callback sees each trial that ended, and may end the search:

# %%
def good_enough(study, trial):
    if trial.value is not None and trial.value < 0.2:
        study.stop()


study = nas.search(
    constrained,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=50,
    timeout=600,
    callbacks=[good_enough],
    seed=1,
    show_progress=False,
)
print(len(study.trials), "trials")
