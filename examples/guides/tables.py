# Made from docs/pages/guides/tables.md by `python docs/execution.py --examples`. Run it in its own folder.

# %% [markdown]
# # Tables
#
# `PFNRegressor` and `PFNClassifier` are scikit-learn estimators around the shipped networks: they accept text,
# categories and missing values directly, and nothing is tuned.
#
# ```console
# pip install "wideprior[sklearn]"
# ```
#
# ## Regression

# %%
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import pfn

X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X["sex"] = X["sex"].map({1.0: "first", 2.0: "second"})  # text
X.loc[X.index[::17], "bp"] = np.nan  # missing values
train_X, test_X, train_y, test_y = train_test_split(X, y, train_size=200, random_state=0)

regressor = pfn.PFNRegressor().fit(train_X, train_y)
mean, std = regressor.predict(test_X, return_std=True)
print("RMSE", np.sqrt(np.mean((mean - test_y) ** 2)))
low, high = regressor.predict_quantiles(test_X, [0.05, 0.95]).T
print("share within the 90% interval", np.mean((low < test_y) & (test_y < high)))

# %% [markdown]
# `fit` only encodes the rows. The networks were trained on up to 512 rows of 20 features and warn beyond.
# `score`, pipelines and `cross_val_score` work as with every estimator.
#
# Of more columns `PFNClassifier` shows each member of its ensemble a part: the most informative ones, principal
# components of all, or groups in turn. On scikit-learn's digits, 64 columns and 512 training rows, that is right in 96%
# of the cases (one split), logistic regression in 94%, and the best 20 columns alone in 82%. `PFNRegressor` keeps the
# most informative columns.
#
# Where columns are nearly the same, correlated above 0.9, three of every eight members of `PFNRegressor` see their
# principal components instead, each in units of its own deviation (`whitening=False` turns that off). A target that
# depends on small differences of columns is then within reach:

# %%
random = np.random.RandomState(0)
z = random.randn(120, 2)
X = random.randn(120, 1) + 0.01 * z  # two columns, correlated by 0.9999
y = np.sin(2 * (z[:, 0] - z[:, 1]))
for whitening in (False, True):
    regressor = pfn.PFNRegressor(whitening=whitening).fit(X[:60], y[:60])
    error = np.sqrt(np.mean((regressor.predict(X[60:]) - y[60:]) ** 2))
    print("RMSE", "with" if whitening else "without", "whitened members:", error.round(3))

# %% [markdown]
# ## Classification

# %%
from sklearn.datasets import load_wine

X, y = load_wine(return_X_y=True, as_frame=True)
names = np.array(["barolo", "grignolino", "barbera"])[y]
train_X, test_X, train_y, test_y = train_test_split(X, names, train_size=60, random_state=0)
classifier = pfn.PFNClassifier().fit(train_X, train_y)
print("accuracy", classifier.score(test_X, test_y))
print(classifier.classes_, classifier.predict_proba(test_X.iloc[:1]).round(3))

# %% [markdown]
# An ensemble has a logistic regression of all columns beside the network, with a weight by what both would have said of
# rows that were left out: where the truth is linear the regression knows it and the network has to find it out.
# `linear=False` is the network alone.

# %%
from sklearn.metrics import log_loss

X = random.randn(400, 8)
y = X @ np.linspace(-1, 1, 8) + 0.2 * random.randn(400) > 0
for linear in (False, "auto"):
    made = pfn.PFNClassifier(linear=linear).fit(X[:100], y[:100])
    loss, weight = log_loss(y[100:], made.predict_proba(X[100:])), made.linear_weight_
    print(f"log loss {loss:.3f}, weight of the logistic regression {weight:.2f}")

# %% [markdown]
# ## From the command line
#
# Rows whose target is empty are predicted:

# %%
import pandas

table = train_X.assign(kind=train_y).head(40)
table.loc[table.index[-3:], "kind"] = None
table.to_csv("wine.csv", index=False)

# %%
import subprocess

subprocess.run(
    r"""
python -m pfn predict wine.csv --target kind --out predicted.csv
""",
    shell=True,
    check=True,
)

# %%
print(pandas.read_csv("predicted.csv").iloc[:, :6])

# %% [markdown]
# ## What it was trained to believe
#
# A prediction is only as good as the prior behind it. `python -m pfn show regression` prints the prior of
# a network and how far it is from exact inference; see [Certificates](../explanations/certificates.md).
# Data unlike those the network was trained on cause a warning. If your data are special, state your own
# prior: [A network for your own prior](own-prior.md).
