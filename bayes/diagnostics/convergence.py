"""Can these draws be trusted? A page of words and figures.

R-hat, effective sample sizes, E-BFMI and divergences, of what is predicted and of hyperparameters:
weights of a network have symmetries, by which chains differ that agree in every function.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes.inference import Draws
from bayes.inference.chain_statistics import e_bfmi, nested_r_hat
from bayes.inference.convergence import (
    GROUP,
    MAX_R_HAT,
    MIN_EFFECTIVE,
    MIN_EFFECTIVE_PER_CHAIN,
    agreement,
    effective_sizes,
)
from bayes.inference.draws import SMALLER_STEPS
from bayes.networks.bayesian_network import BayesianNetwork
from bayes.networks.predictions import judged
from bayes.processes.gaussian_process import GaussianProcess
from bayes.processes.hyperparameters import Hyperparameters
from priors.figures import BLACK, BLUE, CATEGORIES, GREY, ORANGE
from priors.representation import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ConvergenceReport", "report"]

MIN_E_BFMI = 0.3
_ROWS = 6  # of the table, the worst
_CHAINS_TO_DRAW = 8


@dataclass(frozen=True)
class ConvergenceReport:
    """Diagnostics of Markov chains, and what they mean.

    Attributes:
        owner: What was sampled, in words.
        names: Of the quantities, k of them.
        values: Their draws, `[chains, draws, k]`.
        r_hat: Rank-normalised split R-hat of each, `[k]`; from eight chains on of groups of four
            chains, of members of an ensemble of their halves. NaN of a single chain.
        nested_r_hat: Nested R-hat of these groups, `[k]`; None of fewer than eight chains and of
            members.
        bulk_ess: Effective sample size of the bulk, `[k]`.
        tail_ess: Effective sample size of the 5% and 95% quantiles, `[k]`.
        e_bfmi: Of each chain, `[chains]`; None where the method has no energy.
        energy: `[chains, draws]`, or None.
        diverging: Draws that diverged; None where the method does not tell.
        smaller_steps: What to do where draws diverge, as of `Draws`.
        members_apart: Whether chains are judged each for itself, as of `Draws`.
    """

    owner: str
    names: tuple[str, ...]
    values: Tensor
    r_hat: Tensor
    nested_r_hat: Tensor | None
    bulk_ess: Tensor
    tail_ess: Tensor
    e_bfmi: Tensor | None
    energy: Tensor | None
    diverging: int | None
    smaller_steps: str = SMALLER_STEPS
    members_apart: bool = False

    @property
    def wanted_ess(self) -> int:
        """Effective draws that are enough."""
        return min(MIN_EFFECTIVE, MIN_EFFECTIVE_PER_CHAIN * len(self.values))

    @property
    def troubles(self) -> list[str]:
        """What is wrong, with what to do, one sentence each; empty if nothing is."""
        chains, draws, _ = self.values.shape
        found = []
        if draws < 4:
            return [f"{count(draws, 'draw')} of each chain cannot be judged. Raise num_samples."]
        if not bool(self.values.isfinite().all()):
            found.append("Some draws are not finite. Check the model for infinities.")
        if self.diverging:
            found.append(
                f"{self.diverging} of {chains * draws} draws diverged: steps are too large where "
                "the posterior is narrow, and draws there are missing. "
                f"{self.smaller_steps[:1].upper()}{self.smaller_steps[1:]}; if that does not help, "
                "use a likelihood with more noise, or tighter priors on scales."
            )
        if chains < 2 and not self.members_apart:
            found.append(
                "One chain cannot show whether chains agree. Take num_chains of 4 or more."
            )
        elif self._largest(self.r_hat) > MAX_R_HAT:
            number = int((self.r_hat > MAX_R_HAT).sum())
            who = "Chains disagree on"
            then = (
                "; if it stays, chains are in different modes: average over more of them, or "
                "start them elsewhere."
            )
            if self.members_apart:
                who, then = "Members still move in", "."
            found.append(
                f"{who} {number} of {_quantities(len(self.names))}: R-hat up to "
                f"{self._largest(self.r_hat):.3f} ({self._worst_by_r_hat}), wanted at most "
                f"{MAX_R_HAT}. Raise num_warmup and num_samples{then}"
            )
        for what, sizes in (("bulk of", self.bulk_ess), ("tails of", self.tail_ess)):
            least = float(sizes.nan_to_num(nan=math.inf).min())
            if least < self.wanted_ess:
                more = math.ceil(self.wanted_ess / max(least, 1.0))
                found.append(
                    f"There are {least:.0f} effective draws in the {what} "
                    f"{self.names[int(sizes.nan_to_num(nan=math.inf).argmin())]}, wanted "
                    f"{self.wanted_ess}. Take about {more} times as many num_samples."
                )
        if self.e_bfmi is not None and float(self.e_bfmi.min()) < MIN_E_BFMI:
            low = int((self.e_bfmi < MIN_E_BFMI).sum())
            found.append(
                f"E-BFMI is {float(self.e_bfmi.min()):.2f} in the worst chain, below {MIN_E_BFMI} "
                f"in {low} of {chains}: the energies of the posterior are explored too slowly, as "
                "with heavy tails. Raise num_warmup, or whiten the model (draw scales apart from "
                "what they scale)."
            )
        return found

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return not self.troubles

    @property
    def _worst_by_r_hat(self) -> str:
        return self.names[int(self.r_hat.nan_to_num(nan=-math.inf).argmax())]

    @staticmethod
    def _largest(values: Tensor) -> float:
        return float(values.nan_to_num(nan=-math.inf).max())

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        chains, draws, k = self.values.shape
        each = f"{count(chains, 'chain')} of {count(draws, 'draw')}"
        lines = [f"Convergence of {self.owner}: {each}, {_quantities(k)}"]
        nested = self.nested_r_hat
        within = " within members" if self.members_apart else ""
        r_hats = f"R-hat up to {self._largest(self.r_hat):.3f}{within}"
        if chains < 2 and not self.members_apart:
            r_hats = "no R-hat"
        if nested is not None:
            r_hats += f" (nested, groups of {GROUP}: {self._largest(nested):.3f})"
        lines.append(
            f"  {r_hats}; effective draws from {self.bulk_ess.min().item():.0f} (bulk) and "
            f"{self.tail_ess.min().item():.0f} (tails), wanted {self.wanted_ess}"
        )
        energy = "" if self.e_bfmi is None else f"E-BFMI from {float(self.e_bfmi.min()):.2f}"
        divergent = "" if self.diverging is None else count(self.diverging, "divergence")
        if energy or divergent:
            lines.append("  " + "; ".join(part for part in (energy, divergent) if part))
        wide = max(30, *(len(self.names[index]) for index in self._worst()))
        lines += ["", f"  {'the worst':{wide}} {'R-hat':>7} {'bulk':>7} {'tails':>7}"]
        for index in self._worst():
            lines.append(
                f"  {self.names[index]:{wide}} {float(self.r_hat[index]):7.3f} "
                f"{float(self.bulk_ess[index]):7.0f} {float(self.tail_ess[index]):7.0f}"
            )
        lines.append("")
        lines += [f"* {trouble}" for trouble in self.troubles] or [
            f"No sign of trouble: {self._agree}, and there are enough effective draws."
        ]
        return "\n".join(lines)

    @property
    def _agree(self) -> str:
        return "members have settled" if self.members_apart else "chains agree"

    def _worst(self) -> list[int]:
        """The quantities with the fewest effective draws."""
        sizes = torch.minimum(self.bulk_ess, self.tail_ess).nan_to_num(nan=0.0)
        return sizes.argsort(stable=True)[:_ROWS].tolist()

    def plot(self) -> Figure:
        """R-hat and effective draws of every quantity, traces of the worst, energies.

        Returns:
            A figure with four axes.
        """
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
        place = torch.arange(1, len(self.names) + 1).numpy()
        ax = axes[0, 0]
        ax.plot(place, self.r_hat.cpu(), ".", color=BLUE, label="R-hat")
        if self.nested_r_hat is not None:
            ax.plot(place, self.nested_r_hat.cpu(), "x", color=ORANGE, label="nested R-hat")
        ax.axhline(MAX_R_HAT, color=GREY, linewidth=0.8, label=f"{MAX_R_HAT}, the most")
        ax.set(title="do chains agree?", xlabel="quantity", ylabel="R-hat")
        ax.legend()
        ax = axes[0, 1]
        ax.plot(place, self.bulk_ess.cpu(), ".", color=BLUE, label="bulk")
        ax.plot(place, self.tail_ess.cpu(), ".", color=ORANGE, label="tails")
        ax.axhline(self.wanted_ess, color=GREY, linewidth=0.8, label=f"{self.wanted_ess}, wanted")
        ax.set(title="are there enough draws?", xlabel="quantity", ylabel="effective draws")
        ax.set_ylim(0, None)
        ax.legend()
        ax = axes[1, 0]
        worst = self._worst()[0]
        for chain, values in enumerate(self.values[:_CHAINS_TO_DRAW, :, worst].cpu()):
            ax.plot(values, color=CATEGORIES[chain % len(CATEGORIES)], linewidth=0.7)
        ax.set(title=f"the worst: {self.names[worst]}", xlabel="draw", ylabel="value")
        ax = axes[1, 1]
        if self.energy is None:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "this method has no energies", ha="center", color=BLACK)
            return figure
        energy = self.energy.double().cpu()
        marginal = (energy - energy.mean()).flatten().numpy()
        change = energy.diff(dim=1).flatten().numpy()
        for numbers, color, label in (
            (marginal, BLUE, "energy, less its mean"),
            (change, ORANGE, "change between draws"),
        ):
            ax.hist(numbers, bins=40, density=True, histtype="step", color=color, label=label)
        ax.set(title="are all energies reached?", xlabel="energy", ylabel="density")
        ax.legend()
        return figure

    def to_html(self) -> str:
        """Words and figure as one page, without other files."""
        import matplotlib.pyplot as plt

        figure, buffer = self.plot(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        image = base64.b64encode(buffer.getvalue()).decode()
        return (
            f"<pre>{html.escape(str(self))}</pre>\n"
            f'<img alt="R-hat, effective draws, traces and energies" '
            f'src="data:image/png;base64,{image}">\n'
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to an HTML file."""
        head = '<!doctype html>\n<meta charset="utf-8">\n<title>Convergence</title>\n'
        Path(path).write_text(head + self.to_html(), encoding="utf-8")


def report(model: BayesianNetwork | GaussianProcess | Draws) -> ConvergenceReport:
    """Diagnose the draws of a model.

    Of a `BayesianNetwork` function values at training rows (at most 50) and noise are judged, of a
    `GaussianProcess` with `fit(method=ChEES())` its hyperparameters, and of both the log density.

    Args:
        model: The fitted model, or the `Draws` of a method, of which every number is judged.

    Returns:
        The report: print it, `.plot()` it, `.save("page.html")`.

    Raises:
        TypeError: another kind of model.
        RuntimeError: the model is not fitted, or its hyperparameters were not drawn.
        ValueError: the draws are independent ones of an approximation, which cannot be judged so.
    """
    given: Any = model  # a module may be of several of these kinds, for all that mypy knows
    if isinstance(given, Draws):
        draws, owner = given, "draws"
        names, values = _of_sites(draws.samples)
    elif isinstance(given, GaussianProcess):
        if given.draws is None:
            raise RuntimeError(
                "This GaussianProcess holds no chains of hyperparameters: call "
                "fit(method=ChEES()), and report before save, which keeps no chains."
            )
        draws, owner = given.draws, "the hyperparameters of a GaussianProcess"
        target = Hyperparameters(given)
        values = target.constrained(draws.samples["position"])
        names = [
            name
            for slot in target.slots
            for name in _numbered(slot.name.replace("raw_", ""), slot.shape)
        ]
    elif isinstance(given, BayesianNetwork):
        draws, owner = given.fitted_draws(), "a BayesianNetwork"
        names, values = _of_network(given)
    else:
        raise TypeError(
            "report takes a BayesianNetwork, a GaussianProcess or Draws, got "
            f"{type(model).__name__}."
        )
    if not draws.stats:
        raise ValueError(
            "These draws are independent ones of an approximation, so that there are no chains to "
            "judge: compare with a sampler such as ChEES(), or look at calibration(...)."
        )
    return _of(owner, names, values.detach(), draws)


def _of(owner: str, names: list[str], values: Tensor, draws: Draws) -> ConvergenceReport:
    stats = draws.stats
    if "lp" in stats:
        values = torch.cat([values, stats["lp"].to(values).unsqueeze(-1)], -1)
        names = [*names, "log density"]
    # Numbers that never change have nothing to converge.
    moving = (values != values[:1, :1]).flatten(0, 1).any(0)
    if bool(moving.any()):
        values = values[..., moving]
        names = [name for name, moves in zip(names, moving.tolist(), strict=True) if moves]
    chains = len(values)
    energy = stats.get("energy")
    nan = torch.full((values.shape[-1],), math.nan, dtype=torch.float64, device=values.device)
    return ConvergenceReport(
        owner,
        tuple(names),
        values,
        agreement(values, draws.members_apart) if chains > 1 or draws.members_apart else nan,
        nested_r_hat(values, GROUP) if chains >= 2 * GROUP and not draws.members_apart else None,
        *effective_sizes(values, draws.members_apart),
        None if energy is None or energy.shape[1] < 2 else e_bfmi(energy),
        energy,
        int(stats["diverging"].sum()) if "diverging" in stats else None,
        draws.smaller_steps,
        draws.members_apart,
    )


def _of_network(model: BayesianNetwork) -> tuple[list[str], Tensor]:
    """Functions at some training rows, and all sites but the whitened weights."""
    rows, f, others = judged(model)
    several = [f", output {j}" for j in range(f.shape[-1])] if f.shape[-1] > 1 else [""]
    names = [f"f at training row {row}{output}" for row in rows for output in several]
    further, values = _of_sites(others) if others else ([], None)
    functions = f.flatten(2)
    return [*names, *further], functions if values is None else torch.cat([functions, values], -1)


def _of_sites(samples: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    names = [name for site, v in samples.items() for name in _numbered(site, v.shape[2:])]
    return names, torch.cat([v.reshape(*v.shape[:2], -1) for v in samples.values()], -1)


def _numbered(name: str, shape: Any) -> list[str]:
    size = math.prod(shape)
    return [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]


def _quantities(number: int) -> str:
    return "1 quantity" if number == 1 else f"{number:,} quantities"
