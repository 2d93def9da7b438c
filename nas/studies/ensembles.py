"""The networks of a study as one: a linear pool weighed by log score on the validation rows.

A search trains dozens of networks and a single best one is used. Those that were trained anyway,
averaged with weights of greatest validation log score (stacking of predictive distributions, Yao
et al. 2018, 1704.02030, section 3), predict better at no further cost. The networks were chosen by
the same rows, so few rows would be fitted too well: each member is given one row more, which only
it explains. That is a Dirichlet prior of the weights with all parameters 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import Tensor, nn
from torch.nn import functional

from nas.architectures import Architecture
from nas.fidelity import trained_in_full
from nas.studies.keeping import Kept, kept_of
from nas.trials import architecture_of
from priors import stacking_weights
from priors.files import read_safetensors, write_safetensors_atomically

__all__ = ["Ensemble", "ensemble"]

KIND = "ensemble of a search"
NUM_CANDIDATES = 50  # the solver takes cubic time in them


class Ensemble(nn.Module):
    """A linear pool of trained networks.

    Args:
        members: Networks.
        weights: Of the members, `[k]`, with sum 1.
        noise_var: Variance of the noise that each member has for each output, `[k, m]`; None for
            networks that give logits of classes.
        trials: Number of the trial of each member.
        architectures: Of the members; None for networks of your own.

    Attributes:
        trials: See above.
        architectures: See above.
    """

    weights: Tensor
    noise_var: Tensor | None

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Tensor,
        *,
        noise_var: Tensor | None = None,
        trials: Sequence[int] = (),
        architectures: Sequence[Architecture] | None = None,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", weights)
        self.register_buffer("noise_var", noise_var)
        self.trials = tuple(trials)
        self.architectures = None if architectures is None else tuple(architectures)

    def forward(self, X: Tensor) -> Tensor:
        """Log probabilities of the classes `[n, c]`, which serve as logits, or means `[n, m]`."""
        outputs = torch.stack([member(X) for member in self.members])
        if self.noise_var is None:
            log_probs = functional.log_softmax(outputs, -1)
            return torch.logsumexp(log_probs + self.weights.log()[:, None, None], 0)
        outputs = outputs.reshape(len(self.members), len(X), -1)
        return torch.einsum("k,knm->nm", self.weights, outputs)

    def log_prob(self, X: Tensor, Y: Tensor) -> Tensor:
        """Log probability or density of targets in the pool, `[n]`, in nats.

        Args:
            X: Inputs, `[n, ...]`.
            Y: Classes `[n]`, or values `[n, m]` or `[n]`.
        """
        if self.noise_var is None:
            return self(X).gather(1, Y[:, None])[:, 0]
        means = torch.stack([member(X).reshape(len(X), -1) for member in self.members])
        normal = torch.distributions.Normal(means, self.noise_var.sqrt()[:, None])
        each = normal.log_prob(Y.reshape(len(Y), -1)).sum(-1)
        return torch.logsumexp(each + self.weights.log()[:, None], 0)

    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file.

        Raises:
            ValueError: it has networks of your own; keep their `state_dict` instead.
        """
        if self.architectures is None:
            raise ValueError(
                "This ensemble has networks that no architecture builds; save its state_dict()."
            )
        description = {
            "architectures": [graph.to_json() for graph in self.architectures],
            "trials": list(self.trials),
        }
        write_safetensors_atomically(path, self.state_dict(), kind=KIND, description=description)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Ensemble:
        """Read what `save` wrote, for evaluation.

        Args:
            path: The file.
            device: Where the networks shall be.
        """
        tensors, description = read_safetensors(path, kind=KIND, device=device)
        graphs = [Architecture.from_json(text) for text in description["architectures"]]
        made = cls(
            [graph.build() for graph in graphs],
            tensors["weights"],
            noise_var=tensors.get("noise_var"),
            trials=description["trials"],
            architectures=graphs,
        )
        made.load_state_dict(tensors)
        return made.to(device).eval()


def ensemble(
    study: optuna.Study,
    size: int,
    *,
    build: Callable[[FrozenTrial], nn.Module] | None = None,
    folder: str | Path | None = None,
) -> Ensemble:
    """The trained networks of a study as one, weighed by their validation log score.

    Weights of greatest log score of the pool, under a weak prior that draws them together, are
    found for the 50 trials that score best alone, and again for the heaviest `size` of them.

    Args:
        study: Whose objective calls `nas.keep_predictions`.
        size: Members at most; with 1 it is the trial of the best validation log score.
        build: From a trial to the untrained network whose weights it kept; None builds the trial's
            architecture.
        folder: As in `keep_predictions`.

    Returns:
        The ensemble, for evaluation, on the CPU.

    Raises:
        ValueError: no complete trial kept predictions, or of different rows, or weights that do not
            fit the network.
        FileNotFoundError: a file of a trial is gone.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    trials, kept = _candidates(study, folder)
    scores = torch.stack([one.log_scores.double() for one in kept], 1)
    best = scores.mean(0).argsort(descending=True, stable=True)[:NUM_CANDIDATES]
    chosen, weights = chosen_members(scores[:, best], size)
    numbers = best[chosen].tolist()
    graphs = [architecture_of(trials[k]) for k in numbers]
    make = build or _built
    members = [_restored(make(trials[k]), trials[k].number, kept[k]) for k in numbers]
    first = kept[numbers[0]]
    own = build is not None or any(graph is None for graph in graphs)
    dtype = first.predictions.dtype
    return Ensemble(
        members,
        weights.to(dtype),
        noise_var=None
        if first.is_classification
        else torch.stack([kept[k].noise_var for k in numbers]).to(dtype),
        trials=[trials[k].number for k in numbers],
        architectures=None if own else [graph for graph in graphs if graph is not None],
    ).eval()


def chosen_members(log_scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """At most `size` members, and their weights.

    Args:
        log_scores: Of held-out rows, `[n, k]`, in nats.
        size: At least 1; with 1 it is the member that scores best.

    Returns:
        Numbers of the members and their weights.
    """
    if size == 1:
        best = log_scores.mean(0).argmax()[None]
        return best, log_scores.new_ones(1)
    weights = _weights(log_scores)
    members = weights.argsort(descending=True, stable=True)[:size]
    return members, _weights(log_scores[:, members])


def _weights(log_scores: Tensor) -> Tensor:
    """Of greatest log score of the pool of all rows and of one for each member alone."""
    number = log_scores.shape[1]
    alone = torch.full((number, number), -torch.inf, dtype=log_scores.dtype)
    alone.fill_diagonal_(0.0)
    return stacking_weights(torch.cat([log_scores, alone]))


def _candidates(
    study: optuna.Study, folder: str | Path | None
) -> tuple[list[FrozenTrial], list[Kept]]:
    """Complete trials with finite log scores, all of the same rows."""
    trials: list[FrozenTrial] = []
    kept: list[Kept] = []
    for trial in trained_in_full(study):
        one = kept_of(study, trial, folder=folder)
        if one is None or not bool(one.log_scores.isfinite().all()):
            continue
        if kept and not torch.equal(one.targets, kept[0].targets):
            raise ValueError(
                f"Trials {trials[0].number} and {trial.number} kept predictions of different rows; "
                "an ensemble needs the same validation rows in the same order."
            )
        trials.append(trial)
        kept.append(one)
    if not kept:
        raise ValueError(
            "No complete trial kept finite predictions; call nas.keep_predictions(trial, network, "
            "predictions, targets) in the objective."
        )
    return trials, kept


def _built(trial: FrozenTrial) -> nn.Module:
    architecture = architecture_of(trial)
    if architecture is None:
        raise ValueError(
            f"Trial {trial.number} has no architecture; pass build, a function from a trial to the "
            "network whose weights it kept."
        )
    return architecture.build()


def _restored(network: nn.Module, number: int, kept: Kept) -> nn.Module:
    try:
        network.load_state_dict(kept.weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The weights that trial {number} kept do not fit its network ({reason}); pass build, "
            "a function from a trial to the network whose weights it kept."
        ) from error
    return network
