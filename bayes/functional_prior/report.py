"""What a match achieved, on inputs that had no part in it, beside what chance explains.

Distances between drawn functions are never 0: two sets of draws of the target itself are some way
apart. That floor, from several such pairs, stands beside each distance here.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayes.functional_prior.arguments import checked_network, checked_target
from bayes.functional_prior.measurements import Measurements, Sampler
from bayes.functional_prior.second_moments import functions_of
from bayes.functional_prior.sliced import directions_like, sliced_wasserstein
from priors.figures import BLUE, GREY, ORANGE
from priors.functions import FunctionPrior
from priors.networks.finite import NetworkPrior
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MatchReport", "match_report"]

_FLOORS = 4  # pairs of target draws
_DRAWS = 8  # functions to look at
_GRID = 100  # their points
_TAIL = 0.999
_DIRECTIONS = 128


@dataclass(frozen=True)
class MatchReport:
    """Distances of a network's functions from a target's, and where they are largest.

    Distances are over the root mean square of the target's values.

    Attributes:
        distance: Sliced 2-Wasserstein distance on the held-out measurement sets.
        floor: The same of independent pairs of draws of the target, `[pairs]`.
        inputs: The held-out inputs, `[n, d]`.
        by_input: 2-Wasserstein distance of the values at each of them, `[n]`.
        floor_by_input: The same of pairs of draws of the target, `[pairs, n]`.
        tail_ratio: 99.9% quantile of the network's |f|, over the target's, values of all inputs
            together.
        line: Distance along a line through the inputs, their first principal axis, `[g]`, in
            units of the inputs from their mean.
        network_draws: Functions of the network along the line, `[draws, g]`.
        target_draws: Functions of the target there.
    """

    distance: float
    floor: Tensor
    inputs: Tensor
    by_input: Tensor
    floor_by_input: Tensor
    tail_ratio: float
    line: Tensor
    network_draws: Tensor
    target_draws: Tensor

    @property
    def is_within_floor(self) -> bool:
        """Whether the distance is one that draws of the target themselves have."""
        return self.distance <= float(self.floor.max())

    def __repr__(self) -> str:
        return f"MatchReport({count(len(self.inputs), 'held-out input')})\n{self}"

    def __str__(self) -> str:
        floor = float(self.floor.mean())
        verdict = (
            "the network's functions cannot be told apart from the target's with this many draws"
            if self.is_within_floor
            else f"{self.distance / floor:.1f} times what two sets of target draws differ by"
        )
        worst = int(self.by_input.argmax())
        norms = self._norms()
        far = norms > norms.median()
        lines = [
            f"sliced distance  {self.distance:.3f}, floor {floor:.3f}: {verdict}",
            f"worst input      row {worst}, |x - mean| = {float(norms[worst]):.2f}: distance "
            f"{float(self.by_input[worst]):.3f}, floor "
            f"{float(self.floor_by_input[:, worst].mean()):.3f}",
        ]
        if bool(far.any()):
            near_mean, far_mean = self.by_input[~far].mean(), self.by_input[far].mean()
            lines.append(
                f"near and far     {float(near_mean):.3f} at the inputs nearer to their mean, "
                f"{float(far_mean):.3f} at the others"
            )
        lines.append(
            f"tails            99.9% quantile of |f|: {self.tail_ratio:.2f} times the target's"
        )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draws side by side, and the distance at every held-out input.

        Returns:
            A figure with three axes.
        """
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        axes[1].sharey(axes[0])
        for ax, draws, title, color in (
            (axes[0], self.target_draws, "target", GREY),
            (axes[1], self.network_draws, "network", BLUE),
        ):
            ax.plot(self.line.cpu().numpy(), draws.mT.cpu().numpy(), color=color, linewidth=1)
            ax.set(title=f"functions of the {title}", xlabel="along the inputs' first axis")
        axes[0].set_ylabel("f")
        norms = self._norms().cpu()
        floor = self.floor_by_input.max(0).values.cpu()
        ax = axes[2]
        ax.plot(norms, self.by_input.cpu(), ".", color=ORANGE, label="network to target")
        ax.plot(norms, floor, ".", color=GREY, label="target to target, largest")
        ax.set(
            title="where the match fails",
            xlabel="distance of the input from their mean",
            ylabel="distance of the values there",
            ylim=(0, None),
        )
        ax.legend()
        return figure

    def _norms(self) -> Tensor:
        return (self.inputs - self.inputs.mean(0)).norm(dim=-1)


def match_report(
    network_prior: NetworkPrior,
    target: FunctionPrior,
    X_or_sampler: Tensor | Sampler,
    *,
    num_sets: int = 2,
    num_functions: int = 2048,
    seed: int = 1,
) -> MatchReport:
    """Compare drawn functions of a network and a target at inputs not used for the match.

    Args:
        network_prior: The matched (or any) prior.
        target: Prior over functions.
        X_or_sampler: Held-out inputs `[n, d]`, or a function from a generator to such inputs.
        num_sets: Measurement sets, where they are drawn; distances of single inputs are of all.
        num_functions: Functions of each prior.
        seed: Of measurement sets and functions; another than that of the match.

    Raises:
        TypeError: the prior is no `NetworkPrior`, or the target does not sample functions.
        ValueError: the inputs are not a matrix.
    """
    checked_network(network_prior)
    checked_target(target)
    cpu = torch.Generator().manual_seed(seed)
    sets = Measurements(X_or_sampler).several(num_sets, cpu)
    generator = torch.Generator(sets[0].device).manual_seed(seed)
    prior = copy.deepcopy(network_prior).to(sets[0])
    prior.module.eval()
    number = num_functions * prior.program.num_outputs
    distances, floors, by_input, floor_by_input, network_values, target_values = (
        [] for _ in range(6)
    )
    with torch.no_grad():
        for X in sets:
            theta = directions_like(X, _DIRECTIONS, generator)
            f = functions_of(prior, X, num_functions, generator)
            several = [
                functions_of(target, X, number, generator)[:number] for _ in range(2 * _FLOORS)
            ]
            size = torch.stack(several).square().mean().sqrt()
            truth = several[0]
            distances.append(sliced_wasserstein(f, truth, theta) / size)
            by_input.append(_marginal(f, truth) / size)
            pairs = list(zip(several[::2], several[1::2], strict=True))
            floors.append(torch.stack([sliced_wasserstein(a, b, theta) / size for a, b in pairs]))
            floor_by_input.append(torch.stack([_marginal(a, b) / size for a, b in pairs]))
            network_values.append(f.abs().flatten())
            target_values.append(torch.stack(several).abs().flatten())
        inputs = torch.cat(sets)
        line, points = _line(inputs)
        return MatchReport(
            distance=float(torch.stack(distances).mean()),
            floor=torch.stack(floors).mean(0),
            inputs=inputs,
            by_input=torch.cat(by_input),
            floor_by_input=torch.cat(floor_by_input, -1),
            tail_ratio=_quantile(network_values) / _quantile(target_values),
            line=line,
            network_draws=functions_of(prior, points, _DRAWS, generator)[:_DRAWS],
            target_draws=functions_of(target, points, _DRAWS, generator)[:_DRAWS],
        )


def _marginal(f: Tensor, g: Tensor) -> Tensor:
    """2-Wasserstein distance at every input, `[n]`, of equally many functions."""
    return (f.sort(0).values - g.sort(0).values).square().mean(0).sqrt()


def _quantile(values: list[Tensor]) -> float:
    flat = torch.cat(values)
    rank = math.ceil(_TAIL * len(flat))
    return float(flat.kthvalue(rank).values)


def _line(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Places on the first principal axis, a little beyond the inputs, and the points there."""
    mean = inputs.mean(0)
    centred = inputs - mean
    axis = torch.linalg.svd(centred.double(), full_matrices=False).Vh[0].to(inputs)
    along = centred @ axis
    low, high = along.min(), along.max()
    share = torch.linspace(-0.1, 1.1, _GRID, dtype=inputs.dtype, device=inputs.device)
    place = low + (high - low) * share
    return place, mean + place[:, None] * axis
