# Made from docs/pages/guides/search-results.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # What a search leaves behind
#
# A finished [study](../glossary.md) has more in it than its best trial: what mattered, networks that predict
# better together than the best one alone, and code that builds them.
#
# ## A study that keeps its networks
#
# `nas.keep_predictions` in the objective keeps the weights of each network, and what it predicts for the
# validation rows, in a folder beside the study's file.

# %%
from pathlib import Path

Path("objective.py").write_text("""
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import nas
from nas.spaces import Grammar, op, sequence

SPACE = Grammar(
    (64,),
    {
        "network": sequence("body", op("linear", out_features=10)),
        "body": ["layer", sequence("layer", "body")],
        "layer": [
            sequence(op("linear", out_features=32), op(name)) for name in ("relu", "tanh", "sigmoid")
        ],
    },
    output_shape=(10,),
    max_depth=5,
)
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)


def objective(trial):
    torch.manual_seed(trial.number)
    network = nas.suggest(trial, SPACE).build()
    rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(network(X[:600]), y[:600]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = network(X[600:1000])
    nas.keep_predictions(trial, network, logits, y[600:1000])
    return cross_entropy(logits, y[600:1000]).item()
""")

# %%
import subprocess

subprocess.run(
    r"""
python -m nas search --objective objective.py:objective --space objective.py:SPACE \
    --storage digits.db --trials 12 --seed 0 --no-progress > first.txt 2>&1
python -m nas resume --storage digits.db --trials 4 --no-progress > more.txt 2>&1
python -m nas status --storage digits.db
""",
    shell=True,
    check=True,
)

# %% [markdown]
# `resume` knows the objective, the space and the workers that the study was started with.
#
# ## What mattered
#
# `nas.importances` takes hyperparameters and, in a grammar, descriptors of the networks.

# %%
import optuna

import nas

study = optuna.load_study(study_name="search", storage="sqlite:///digits.db")
for name, share in list(nas.importances(study).items())[:4]:
    print(f"{share:.2f}  {name}")

# %% [markdown]
# `nas.motif_effects` says how many standard deviations of the value one more of an operation is worth, at a
# given number of operations, and how certain that is.

# %%
for effect in nas.motif_effects(study)[:4]:
    print(f"{effect.effect:+.2f} +- {effect.std:.2f}  {effect.motif}")

# %% [markdown]
# Both describe the trials there were: operations that always come together share what they do.
#
# ## One module of several networks
#
# `nas.ensemble` weighs the networks that were trained anyway, by the log score of their pool on the validation
# rows. No training is added.

# %%
from objective import X, y

pool = nas.ensemble(study, 5)
alone = nas.ensemble(study, 1)
print("trials", pool.trials, "weights", [round(w, 2) for w in pool.weights.tolist()])
for name, module in (("best", alone), ("ensemble", pool)):
    print(name, round(-module.log_prob(X[1000:], y[1000:]).mean().item(), 3), "nats on new rows")

# %% [markdown]
# The ensemble is a `torch.nn.Module` that gives log probabilities (means, in a regression), with `save` and
# `nas.Ensemble.load`.
#
# ## Out of the study

# %%
import subprocess

subprocess.run(
    r"""
python -m nas export --storage digits.db --out best --ensemble 5
python -c "import sys; sys.path.insert(0, 'best'); from network import build; print(build())"
""",
    shell=True,
    check=True,
)

# %% [markdown]
# `network.py` holds the architecture as code, its hyperparameters and `build()`, which loads
# `weights.safetensors`. In Python: `nas.export(study, "best")`.
#
# ## The report

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
# One page that needs nothing beside it: progress and cost, the best network as a picture, importances,
# hyperparameters, effects of motifs with their uncertainty, how far the surrogate can be trusted (each trial
# against what the others said of it), when trials ran, and errors. `nas.write_report` takes sections of your own.
#
# `optuna-dashboard digits.db` (`pip install 'wideprior[dashboard]'`) shows the same study live; `nas.annotate(study)`
# writes the best architecture, importances and effects into its note.
