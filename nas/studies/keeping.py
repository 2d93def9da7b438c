"""What trials keep of the networks they train: weights, and predictions of the validation rows.

One safetensors file for each trial, in a folder beside the study's SQLite file or one of your own;
the name of the file is stored with the trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import Tensor, nn
from torch.nn import functional

from nas.compat import database_file
from nas.trials import KEPT
from priors.files import read_safetensors, tensors_under, write_safetensors_atomically

__all__ = ["Kept", "keep_predictions", "kept_of"]

KIND = "kept trial"


@dataclass(frozen=True)
class Kept:
    """What a trial kept.

    Attributes:
        weights: `state_dict` of its network, on the CPU.
        predictions: Logits `[n, c]` of classes, or means `[n, m]`.
        targets: Classes `[n]`, or values `[n, m]`.
    """

    weights: dict[str, Tensor]
    predictions: Tensor
    targets: Tensor

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return not self.targets.is_floating_point()

    @property
    def noise_var(self) -> Tensor:
        """Mean squared residual of each output of a regression, `[m]`, in squared units of y."""
        return (self.targets - self.predictions).square().mean(0)

    @property
    def log_scores(self) -> Tensor:
        """Log probability or density of each target, `[n]`, in nats.

        A regression is Gaussian about its means, with the variance `noise_var`.
        """
        if self.is_classification:
            return -functional.cross_entropy(self.predictions, self.targets, reduction="none")
        normal = torch.distributions.Normal(self.predictions, self.noise_var.sqrt())
        return normal.log_prob(self.targets).sum(-1)


def keep_predictions(
    trial: optuna.Trial,
    network: nn.Module,
    predictions: Tensor,
    targets: Tensor,
    *,
    folder: str | Path | None = None,
) -> None:
    """Keep a trained network and what it predicts for the validation rows, for `ensemble`.

    Call it in the objective. All trials of a study must predict the same rows, in the same order.
    A second call in a trial replaces the first.

    Args:
        trial: The running trial.
        network: Its weights are kept.
        predictions: Logits `[n, c]` where targets are classes; means `[n, m]` or `[n]` where they
            are numbers.
        targets: Classes, integers `[n]`; or numbers of the shape of the means.
        folder: Where the files of all trials go; it is made. None takes a folder beside the SQLite
            file of the study, `study.db.kept`.

    Raises:
        ValueError: shapes that do not fit, or no folder where the study is in memory or in a
            database.
    """
    kept = _checked(network, predictions, targets)
    place = _folder(trial.study, folder)
    place.mkdir(parents=True, exist_ok=True)
    name = f"trial-{trial.number}.safetensors"
    tensors = {f"weights.{key}": value for key, value in kept.weights.items()}
    tensors |= {"predictions": kept.predictions, "targets": kept.targets}
    write_safetensors_atomically(
        place / name, tensors, kind=KIND, description={"trial": trial.number}
    )
    trial.set_user_attr(KEPT, name)


def kept_of(
    study: optuna.Study, trial: FrozenTrial, *, folder: str | Path | None = None
) -> Kept | None:
    """What a trial kept, None if it kept nothing.

    Args:
        study: Its study.
        trial: The stored trial.
        folder: As in `keep_predictions`.

    Raises:
        ValueError: no folder is given where one is needed.
        FileNotFoundError: the file is gone.
    """
    name = trial.user_attrs.get(KEPT)
    if name is None:
        return None
    path = _folder(study, folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"What trial {trial.number} kept is not at {path}; pass the folder where it is now as "
            "folder."
        )
    tensors, _ = read_safetensors(path, kind=KIND)
    weights = tensors_under("weights", tensors)
    return Kept(weights, tensors["predictions"], tensors["targets"])


def _checked(network: nn.Module, predictions: Tensor, targets: Tensor) -> Kept:
    predictions, targets = predictions.detach().cpu(), targets.detach().cpu()
    if targets.is_floating_point():
        if predictions.shape != targets.shape or targets.dim() not in (1, 2) or not len(targets):
            raise ValueError(
                "keep_predictions got numbers as targets, so predictions must be means of their "
                f"shape, [n] or [n, m]; got {tuple(predictions.shape)} for {tuple(targets.shape)}. "
                "Classes must be integers."
            )
        predictions = predictions.reshape(len(predictions), -1)
        targets = targets.reshape(len(targets), -1).to(predictions)
    else:
        if predictions.dim() != 2 or targets.shape != predictions.shape[:1] or not len(targets):
            raise ValueError(
                "keep_predictions got classes as targets, so predictions must be logits [n, c] and "
                f"targets [n]; got {tuple(predictions.shape)} and {tuple(targets.shape)}."
            )
        if int(targets.min()) < 0 or int(targets.max()) >= predictions.shape[1]:
            raise ValueError(
                f"keep_predictions got classes from {int(targets.min())} to {int(targets.max())} "
                f"and logits of {predictions.shape[1]} classes, which count from 0."
            )
        targets = targets.long()
    return Kept(dict(network.state_dict()), predictions, targets)


def _folder(study: optuna.Study, folder: str | Path | None) -> Path:
    """Of the kept files of this study."""
    if folder is None:
        file = database_file(study)
        if file is None:
            raise ValueError(
                f"The study {study.study_name!r} is not stored in an SQLite file, so what its "
                "trials keep needs a place: pass folder, a path that all workers share."
            )
        folder = file.with_name(f"{file.name}.kept")
    return Path(folder) / quote(study.study_name, safe="")
