"""A network for a prior of one's own: state it, look at it, train, measure, use.

    python examples/own_prior_pfn.py [--minutes 2]

The prior is a Gaussian process on the unit interval with a known kernel, whose exact posterior is
known too: the certificate says how many nats per point the network loses against it. Figures go to
out/. Two minutes on one CPU core; longer training brings the gap down further.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from matplotlib.figure import Figure
from torch import Tensor

import pfn
from bayes import GaussianProcess
from priors import FunctionTaskPrior, GaussianPosterior, GaussianProcessPrior, plot_tasks
from priors.tasks.task import Task

NOISE_VAR = 0.01


def kernel() -> ScaleKernel:
    """Unit variance, length scale 0.3."""
    made = ScaleKernel(RBFKernel())
    made.base_kernel.lengthscale, made.outputscale = 0.3, 1.0
    return made


def exact(task: Task) -> GaussianPosterior:
    """The exact posterior of y, by the package's own Gaussian process with fixed parameters."""
    n = task.num_context
    X, y = task.X.double(), task.y.double()
    noise = torch.full_like(y[:, :n], NOISE_VAR)
    model = GaussianProcess(
        X[:, :n],
        y[:, :n],
        kernel().to(X),
        train_Yvar=noise,
        input_transform=None,
        outcome_transform=None,
    )
    return model.posterior(X[:, n:], observation_noise=True)


def main() -> None:
    """Train, certify, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    out = Path("out")
    out.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    prior = FunctionTaskPrior(
        GaussianProcessPrior(kernel()),
        inputs=torch.distributions.Uniform(torch.zeros(1), torch.ones(1)),
        num_points=64,
        noise_var=NOISE_VAR,
    )
    plot_tasks(prior).savefig(out / "own_prior_tasks.png")

    sizes = pfn.ArchitectureConfig(max_features=1, embedding=64, layers=4, hidden=128)
    config = pfn.TrainingConfig(
        architecture=sizes, targets="raw", steps=10**6, time_limit=60 * options.minutes
    )
    network = pfn.train(prior, config=config)
    network.certificate = pfn.certify(network, prior, context_sizes=(2, 5, 20, 40), reference=exact)
    network.save(out / "own_prior.safetensors")
    print(network)

    task = prior.sample(1, generator=torch.Generator().manual_seed(3))
    X, y = task.X[0, :8], task.y[0, :8]
    model = network.condition(X, y)
    grid = torch.linspace(0, 1, 200)[:, None]
    posterior = model.posterior(grid)
    low, high = (posterior.quantile(torch.tensor(p)) for p in (0.05, 0.95))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(grid[:, 0], low[:, 0], high[:, 0], alpha=0.2, label="90% of f")
    axes.plot(grid, posterior.mean, label="mean")
    draws: Tensor = model.posterior(grid[::8]).rsample(torch.Size([4]))
    axes.plot(grid[::8].numpy(), draws[..., 0].T.numpy(), lw=0.7, color="C2")
    axes.plot(X, y, "k.", label="data")
    axes.set(xlabel="x", ylabel="y", title="Posterior in one forward pass, joint samples in green")
    axes.legend()
    figure.savefig(out / "own_prior_posterior.png")


if __name__ == "__main__":
    main()
