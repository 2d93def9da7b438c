# Made from docs/pages/guides/search.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Search studies
#
# A [study](../glossary.md) is an Optuna study over architectures and hyperparameters together. A Gaussian
# process over both proposes the next trial.
#
# ## An objective
#
# A study needs a space, the hyperparameters, and a function that trains a candidate and returns a number.
# They go into a file of their own, because worker processes import it.

# %%
from pathlib import Path

Path("objective.py").write_text("""
import torch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import nas

SPACE = nas.spaces.MLPSpace(64, 10, depth=(1, 3), widths=(16, 32, 64))
HYPERPARAMETERS = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}

X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)


def objective(trial):
    network = nas.suggest(trial, SPACE).build()
    rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(30):
        optimizer.zero_grad()
        cross_entropy(network(X[:600]), y[:600]).backward()
        optimizer.step()
    with torch.no_grad():
        return cross_entropy(network(X[600:1000]), y[600:1000]).item()
""")

# %% [markdown]
# ## Run, and continue

# %%
import nas
from objective import HYPERPARAMETERS, SPACE, objective

study = nas.search(
    objective,
    SPACE,
    hyperparameters=HYPERPARAMETERS,
    num_trials=8,
    storage="digits.db",
    seed=0,
)
print(len(study.trials), "trials, best", round(study.best_value, 3))

# %% [markdown]
# The study is stored in `digits.db`. The same call again adds eight trials; after Ctrl-C or a crash, the
# interrupted trials are repeated first.

# %%
study = nas.search(
    objective, SPACE, hyperparameters=HYPERPARAMETERS, num_trials=8, storage="digits.db", seed=1
)
best = study.best_trial
print(len(study.trials), "trials, best", round(study.best_value, 3), best.params)
print(nas.architecture_of(best))

# %% [markdown]
# `nas.plot_architecture(nas.architecture_of(best))` draws it: a figure that notebooks show and `savefig` writes.
#
# ## Several workers
#
# From the command line, with two worker processes:

# %%
import subprocess

subprocess.run(
    r"""
python -m nas search --objective objective.py:objective --space objective.py:SPACE \
    --storage digits.db --trials 4 --workers 2
""",
    shell=True,
    check=True,
)

# %% [markdown]
# `python -m nas resume --storage digits.db --trials 4` goes on with it.
#
# `python -m nas status --storage digits.db` prints the same summary at any time.
#
# In Python, `nas.search(..., workers=2)` does the same; put the call under `if __name__ == "__main__":`, as for
# all process pools. `engine=` takes any `concurrent.futures` executor, for a cluster.
#
# ## Look
#
# The study is Optuna's own, so `trials_dataframe` and its dashboard work. What else is in it (importances,
# ensembles, code of the best, the report): [What a search leaves behind](search-results.md).

# %%
table = study.trials_dataframe(attrs=("number", "value", "params"))
print(table.sort_values("value").head(3).T)

# %%
import subprocess

subprocess.run(
    r"""
python -m nas report --storage digits.db --out report.html
""",
    shell=True,
    check=True,
)

# %% [markdown]
# ## Change your mind
#
# * To add a trial of your own: `study.enqueue_trial({"depth": 2, "activation": "gelu", "learning_rate": 0.01})`
#   for some of the parameters, or `nas.enqueue(study, architecture, hyperparameters)`.
# * If the space or the hyperparameters change, the study continues with the trials that still fit.
# * For another space, surrogate or acquisition: [Search spaces and surrogates](search-spaces.md).
# * For several objectives, constraints, or trials that stop early:
#   [Several objectives, constraints and early stopping](search-objectives.md).
# * For another sampler: `nas.search(..., sampler=optuna.samplers.TPESampler())`.
#
# ## What can go wrong
#
# A trial that raises is recorded with its traceback, and the study continues, unless the first five trials of
# a call fail in the same line: `nas.SearchError` then reports the error. So it does at once if the sampler cannot
# propose. If a worker is killed, its trial is queued again.
