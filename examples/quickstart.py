"""The whole path on real data: fit, query, search, report. Run by `make demo`.

`--full` takes five splits, 24 trials and mean-field inference: the figures of
`docs/pages/results.md`, in some minutes.

1. Diabetes (442 patients, 10 features): one multilayer perceptron as two infinite-width kernels,
   three engines on them, and BoTorch's default Gaussian process as the yardstick.
2. The same splits for a pretrained network that infers in one forward pass, and for a Bayesian
   neural network, an ensemble, whose weight prior was matched to a Gaussian process.
3. A Bayesian study of architecture and hyperparameters on handwritten digits, interrupted and
   resumed on the way, against random search.
4. Figures and an HTML report in `out/`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits_study
import matplotlib
import optuna
import torch
from botorch.exceptions import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.models.transforms.input import InputStandardize
from gpytorch.kernels import RBFKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import nas
import pfn
from bayes import (
    BayesianNetwork,
    Comparison,
    DeepEnsemble,
    GaussianProcess,
    MeanField,
    StudentTProcess,
    calibration,
    compare,
    match_functional_prior,
    match_quality,
    plot_predictions,
)
from priors import GaussianProcessPrior, NetworkPrior, NNGPKernel, NTKKernel

OUT = Path("out")
INTERRUPT_AT = 6  # the trial during which the script presses Ctrl-C on itself
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Split = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        num_splits: Of the diabetes data.
        num_trials: Of each search.
        method: Inference in the Bayesian network.
    """

    num_splits: int = 2
    num_trials: int = 10
    method: Any = field(
        default_factory=lambda: DeepEnsemble(num_members=10, num_training_steps=300, progress=False)
    )


def full() -> Sizes:
    """Sizes behind the published table."""
    return Sizes(num_splits=5, num_trials=24, method=MeanField(num_steps=1000, progress=False))


def diabetes_splits(number: int) -> list[Split]:
    """Random 80/20 splits in raw units: every model standardises by its training rows."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    rows_X = torch.tensor(X, dtype=torch.float64, device=DEVICE)
    rows_y = torch.tensor(y, dtype=torch.float64, device=DEVICE)[:, None]
    splits = []
    for seed in range(number):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        train, test = order[: int(0.8 * len(y))], order[int(0.8 * len(y)) :]
        splits.append((rows_X[train], rows_y[train], rows_X[test], rows_y[test]))
    return splits


def perceptron() -> nn.Module:
    """Two hidden layers. An infinite-width kernel does not see the 128, only the architecture."""
    return nn.Sequential(
        nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )


def nngp(train_X: Tensor, train_Y: Tensor) -> GaussianProcess:
    kernel = NNGPKernel(perceptron(), weight_var=1.5, bias_var=0.1)
    return GaussianProcess(train_X, train_Y, kernel).fit()


def ntk(train_X: Tensor, train_Y: Tensor) -> GaussianProcess:
    kernel = NTKKernel(perceptron(), weight_var=1.5, bias_var=0.1)
    return GaussianProcess(train_X, train_Y, kernel).fit()


def student_t(train_X: Tensor, train_Y: Tensor) -> StudentTProcess:
    kernel = NNGPKernel(perceptron(), weight_var=1.5, bias_var=0.1)
    return StudentTProcess(train_X, train_Y, kernel).fit()


def botorch_default(train_X: Tensor, train_Y: Tensor) -> SingleTaskGP:
    model = SingleTaskGP(
        train_X,
        train_Y,
        input_transform=InputStandardize(d=train_X.shape[-1]),
        outcome_transform=Standardize(m=1),
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def matched_weight_prior() -> NetworkPrior:
    """One hidden layer whose weight prior gives the functions of an RBF Gaussian process."""
    target = GaussianProcessPrior(RBFKernel())
    target.kernel.lengthscale = (2 * 10) ** 0.5
    network = nn.Sequential(nn.Linear(10, 50), nn.GELU(), nn.Linear(50, 1))
    start = NetworkPrior(network, weight_var=1.0, bias_var=1.0)

    def measurement_set(generator: torch.Generator) -> Tensor:
        return torch.randn(100, 10, generator=generator, dtype=torch.float64)

    matched = match_functional_prior(start, target, measurement_set)
    held_out = measurement_set(torch.Generator().manual_seed(10**6))
    before, after = (match_quality(p, target, held_out).covariance_error for p in (start, matched))
    print(f"weight prior matched to an RBF prior: covariance error {before:.2f} -> {after:.2f}")
    return matched.to(DEVICE)


def regression(splits: list[Split], method: Any) -> tuple[Comparison, dict[str, list[Any]]]:
    """Steps 1 and 2: the table, and the fitted models by name."""
    network = pfn.load("regression").to(DEVICE)
    weight_prior = matched_weight_prior()
    factories: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "GaussianProcess, NNGP kernel": nngp,
        "GaussianProcess, NTK kernel": ntk,
        "StudentTProcess, NNGP kernel": student_t,
        "BoTorch SingleTaskGP": botorch_default,
        "PFN, one forward pass": network.condition,
        "BayesianNetwork, matched prior": lambda X, Y: BayesianNetwork(X, Y, weight_prior).fit(
            method
        ),
    }
    fitted: dict[str, list[Any]] = {name: [] for name in factories}

    def recorded(name: str) -> Callable[[Tensor, Tensor], Any]:
        def make(train_X: Tensor, train_Y: Tensor) -> Any:
            fitted[name].append(factories[name](train_X, train_Y))
            return fitted[name][-1]

        return make

    return compare({name: recorded(name) for name in factories}, splits), fitted


def regression_figures(splits: list[Split], fitted: dict[str, list[Any]]) -> list[Figure]:
    """Predictive intervals of two engines on one split, calibration of all on all splits."""
    _, _, test_X, test_Y = splits[0]
    intervals = Figure(figsize=(11, 3.8), layout="constrained")
    shown = ("StudentTProcess, NNGP kernel", "PFN, one forward pass")
    for axes, name in zip(intervals.subplots(1, 2, sharey=True), shown, strict=True):
        posterior = fitted[name][0].posterior(test_X, observation_noise=True)
        plot_predictions(posterior, test_Y, ax=axes)
        axes.set_title(name)
    coverage = Figure(figsize=(11, 6.4), layout="constrained")
    for axes, (name, models) in zip(coverage.subplots(2, 3).flat, fitted.items(), strict=True):
        parts = [
            calibration(model.posterior(X, observation_noise=True), Y)
            for model, (_, _, X, Y) in zip(models, splits, strict=True)
        ]
        pooled = type(parts[0])(
            pit=torch.cat([part.pit for part in parts]),
            nominal=parts[0].nominal,
            empirical=torch.stack([part.empirical for part in parts]).mean(0),
        )
        pooled.plot(axes)
        axes.set_title(f"{name}\nmean error {pooled.error:.3f}", fontsize=10)
    return [intervals, coverage]


def interrupted(trial: optuna.Trial) -> float:
    """The objective, with somebody pressing Ctrl-C in the middle of one trial."""
    if trial.number == INTERRUPT_AT:
        raise KeyboardInterrupt
    return digits_study.objective(trial)


def digits_search(num_trials: int) -> tuple[optuna.Study, optuna.Study]:
    """Step 3: the Bayesian study, interrupted and resumed, and random search."""
    storage = OUT / "digits.db"
    storage.unlink(missing_ok=True)
    common: dict[str, Any] = {
        "space": digits_study.SPACE,
        "hyperparameters": digits_study.HYPERPARAMETERS,
        "storage": storage,
    }
    try:
        nas.search(interrupted, num_trials=num_trials, study_name="bayesian", seed=0, **common)
    except KeyboardInterrupt:
        stopped = optuna.load_study(study_name="bayesian", storage=f"sqlite:///{storage}")
        done = len(stopped.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
        print(f"interrupted in trial {INTERRUPT_AT}: {done} finished trials are in {storage}")
    study = nas.search(
        digits_study.objective,
        num_trials=num_trials - done,
        study_name="bayesian",
        seed=0,
        **common,
    )
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    print(f"resumed: {len(finished)} finished trials, the interrupted one repeated, none lost")
    random = nas.search(
        digits_study.objective,
        num_trials=num_trials,
        study_name="random",
        sampler=optuna.samplers.RandomSampler(seed=0),
        **common,
    )
    return study, random


def search_figure(studies: dict[str, optuna.Study]) -> Figure:
    """Best validation log loss so far, by finished trial."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, study in studies.items():
        trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        values = torch.tensor([trial.value for trial in trials]).cummin(0).values
        axes.step(range(1, len(values) + 1), values, where="post", label=name)
    axes.set(xlabel="finished trials", ylabel="best validation log loss", yscale="log")
    axes.legend(frameon=False)
    return figure


def table_of(comparison: Comparison, num_splits: int) -> nas.Section:
    """The comparison as a section of the report."""
    return nas.Section(
        "Diabetes",
        f"{num_splits} random 80/20 splits, the same for every row; RMSE in units of y, NLPD in "
        "nats per patient, with standard errors; seconds to fit and predict.",
        columns=["model", "RMSE", "±", "NLPD", "±", "90% coverage", "seconds"],
        rows=[
            [
                row["model"], row["rmse"], row["rmse_error"], row["nlpd"], row["nlpd_error"],
                row["coverage"], row["seconds"],
            ]
            for row in comparison.records()
        ],
    )  # fmt: skip


def main() -> None:
    """Run everything and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="sizes behind the published table")
    sizes = full() if parser.parse_args().full else Sizes()
    started = time.perf_counter()
    matplotlib.use("Agg")
    # Matrices here have a few hundred rows: more threads would mostly wait for each other.
    torch.set_num_threads(1)
    # BoTorch asks for inputs in the unit cube; standardised ones are what every row here gets.
    warnings.filterwarnings("ignore", category=InputDataWarning)
    # 353 training rows, 97 more than the network was trained on; all are used.
    warnings.filterwarnings("ignore", message="This network was trained on up to 256")
    OUT.mkdir(exist_ok=True)
    print(f"running on {DEVICE}\n\n1-2. Diabetes: six engines, {sizes.num_splits} splits")
    splits = diabetes_splits(sizes.num_splits)
    comparison, fitted = regression(splits, sizes.method)
    print(f"\n{comparison}\n")
    intervals, coverage = regression_figures(splits, fitted)

    print("3. Digits: architecture and hyperparameters")
    study, random = digits_search(sizes.num_trials)
    losses = {
        name: digits_study.held_out_loss(s.best_trial)
        for name, s in (("Bayesian", study), ("random", random))
    }
    for name, loss in losses.items():
        print(f"held-out log loss of the best by validation, {name} search: {loss:.4f}")

    progress = search_figure({"Bayesian": study, "random": random})
    figures = {"intervals": intervals, "calibration": coverage, "search": progress}
    for name, figure in figures.items():
        figure.savefig(OUT / f"{name}.png", dpi=120)
    report = nas.write_report(
        study,
        OUT / "report.html",
        extra_sections=[
            nas.Section(
                "Against random search",
                f"{sizes.num_trials} trials each. One pair of runs is an anecdote; "
                "python -m benchmarks search has twenty.",
                columns=["search", "best validation log loss", "held-out log loss"],
                rows=[
                    ["Bayesian", study.best_value, losses["Bayesian"]],
                    ["random", random.best_value, losses["random"]],
                ],
                figures=[progress],
            ),
            table_of(comparison, sizes.num_splits),
            nas.Section("Predictive intervals", figures=[intervals]),
            nas.Section("Calibration", figures=[coverage]),
        ],
    )
    print(f"\nfigures and report: {report}   ({time.perf_counter() - started:.0f} seconds)")


if __name__ == "__main__":
    main()
