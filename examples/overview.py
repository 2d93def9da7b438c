"""One prior, and what each engine makes of it: the picture of the README.

    python examples/overview.py [docs/pages/assets/overview.png]

A network with one hidden layer is stated once. The panels: functions drawn from its infinite limit;
the Gaussian process and the Student t process conditioned on a few points; the finite network, by
NUTS; and a network pretrained on another prior, in one forward pass.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import pfn
from bayes import NUTS, BayesianNetwork, GaussianProcess, StudentTProcess, plot_posterior
from priors import GaussianProcessPrior, NetworkPrior, NNGPKernel


def main() -> None:
    """Fit four engines, draw five panels."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/overview.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    network = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    start = {"weight_var": 9.0, "bias_var": 4.0}
    generator = torch.Generator().manual_seed(4)
    X = 4 * torch.rand(30, 1, generator=generator, dtype=torch.float64) - 2
    X = X[((X - 0.6).abs() > 0.5).squeeze(-1)]  # a gap
    noise = torch.randn(X.shape, generator=generator, dtype=torch.float64)
    Y = torch.sin(2.5 * X) + 0.3 * X + 0.1 * noise
    grid = torch.linspace(-2.6, 2.6, 160, dtype=torch.float64)[:, None]

    figure = Figure(figsize=(13, 2.7), layout="constrained")
    panels = figure.subplots(1, 5, sharex=True, sharey=True)
    kernel = NNGPKernel(network, **start)
    functions = GaussianProcessPrior(kernel).sample(grid, torch.Size([7]), generator=generator)
    panels[0].plot(grid, functions.detach().reshape(7, -1).T / functions.std().detach(), lw=0.9)
    models = {
        "GaussianProcess": GaussianProcess(X, Y, kernel).fit(),
        "StudentTProcess": StudentTProcess(X, Y, kernel).fit(),
        "BayesianNetwork": BayesianNetwork(X, Y, NetworkPrior(network, **start)).fit(
            NUTS(num_samples=150, num_warmup=150, num_chains=1, max_tree_depth=6, progress=False)
        ),
        "PFN, one forward pass": pfn.load("regression").condition(X, Y),
    }
    for axes, (name, model) in zip(panels[1:], models.items(), strict=True):
        plot_posterior(model, grid, ax=axes).set_title(name)
        axes.get_legend().remove()
    panels[0].set(title="the prior: functions drawn", ylabel="y", xlabel="x", ylim=(-3.2, 3.2))
    for axes in panels[1:]:
        axes.set_ylabel("")
    panels[1].legend(loc="lower right", fontsize=7)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
