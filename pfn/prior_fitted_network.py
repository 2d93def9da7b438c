"""A trained network as an object: conditioned on data, with its record, saved and loaded."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from botorch.models.model import Model
from torch import Tensor

from pfn.architecture import ArchitectureConfig
from pfn.finetuning import finetuned
from pfn.model import PFNModel
from pfn.network import Network
from priors.files import read_safetensors, write_safetensors_atomically
from priors.posteriors.transforms import DEFAULT

__all__ = ["PFN", "load"]

_WHAT_TO_DO = (
    "Pass `fallback`, repair predictions by `pfn.reweighting.reweight`, train a network on a prior "
    "that fits, or silence this with warnings.filterwarnings('ignore', 'This data set')."
)


class PFN(Network):
    """A prior-data fitted network: Bayesian inference on a data set by one forward pass.

    Made by `pfn.load("regression")`, by `pfn.load` of a file, or by `pfn.train`; its own arguments
    are those of `Network`.

    Methods:
        condition: A `PFNModel` of a data set, which answers `posterior(X)`.
        finetune: A network that fits one data set better.
        save: Write to a file; `pfn.load` reads it.

    `certificate` says how far the network was measured to be from the exact posterior, and
    `print(network)` shows it with the prior and the training. All else is inherited from
    `torch.nn.Module`.
    """

    def condition(
        self,
        X: Tensor,
        y: Tensor,
        *,
        train_Yvar: Tensor | None = None,
        categorical: Tensor | None = None,
        num_classes: int | None = None,
        input_transform: Any = DEFAULT,
        outcome_transform: Any = DEFAULT,
        num_orders: int = 1,
        column_seed: int = 0,
        check: bool = True,
        fallback: Callable[[Tensor, Tensor], Model] | None = None,
    ) -> Model:
        """Condition on a data set, or on a batch of them.

        Args:
            X: Inputs `[..., n, d]`; n may be 0; NaN where missing, for a network that was
                trained with missing values.
            y: Targets `[..., n, m]`, or `[..., n]` for one output; outputs are inferred one by
                one. In classification classes 0, 1, ..., in one column, of any number type.
            train_Yvar: Known noise variances, of the shape of y, in squared units of y; NaN where
                unknown.
            categorical: `[d]`, True for columns that hold category numbers, for a network that
                was trained with such.
            num_classes: Number of classes that are possible; by default those up to the largest
                of y. Others have probability 0.
            input_transform: `DEFAULT` or None leave inputs to the network, which standardises
                them itself if it was trained so; or a BoTorch `InputTransform`, of which the model
                keeps a copy; one that learns does so from X, once.
            outcome_transform: `DEFAULT` or None leave targets to the network likewise; or an
                elementwise `torch.distributions` transform from the network's scale to y's.
            num_orders: Orders of the points over which joint samples and joint densities are
                averaged.
            column_seed: Seed of the codes of the columns, for networks of cells: invariance to
                the order of columns is exact in distribution over seeds. For networks of slots
                the seed of a random order in which columns fill the slots, in distribution over
                which invariance is exact as well; 0 is the order given, for which it is learnt as
                far as the prior has it. With more columns than slots the first of that order are
                used.
            check: Whether to compare how well the two halves of each data set predict each other
                with what data sets of the prior do, where the certificate knows that; a data set
                outside the range of 99% of them warns (above it, only if the inputs have no part
                in that), and of a batch or several outputs more than chance puts there. Costs two
                more encodings.
            fallback: Makes a model of X and y to return instead when data sets are unlike the
                prior, such as `lambda X, y: bayes.GaussianProcess(X, y, kernel).fit()`. For a
                batch it replaces the whole model.

        Returns:
            A `PFNModel`, or what `fallback` makes.

        Raises:
            TypeError: not floating-point tensors of one dtype.
            ValueError: shapes disagree or values are not finite.
        """
        model = PFNModel(
            self,
            X,
            y,
            train_Yvar=train_Yvar,
            categorical=categorical,
            num_classes=num_classes,
            input_transform=input_transform,
            outcome_transform=outcome_transform,
            num_orders=num_orders,
            column_seed=column_seed,
        )
        if check or fallback is not None:
            unlike = model.unlike_the_prior()
            if unlike is not None:
                told = "the model of `fallback` is used instead." if fallback else _WHAT_TO_DO
                warnings.warn(f"{unlike} {told}", stacklevel=2)
                if fallback is not None:
                    return fallback(X, y)
        return model

    def finetune(
        self,
        X: Tensor,
        y: Tensor,
        *,
        categorical: Tensor | None = None,
        steps: int = 200,
        seconds: float = 60.0,
        learning_rate: float = 1e-4,
        seed: int = 0,
        progress: bool | None = None,
    ) -> PFN:
        """A copy that predicts data like these better; condition it on them as usual.

        A fifth of the rows judges: the result is the state that predicted these best from the
        others, the first one if none was better. `metadata["finetuned"]` has the losses before and
        after, nats per row in units of y, and the certificate says that it is of the time before.

        Args:
            X: Inputs `[n, d]` of at least 20 rows, as for `condition`; in their dtype and on their
                device the steps are taken.
            y: Targets `[n]` or `[n, 1]`.
            categorical: As for `condition`.
            steps: Most steps.
            seconds: After which it stops earlier.
            learning_rate: Of AdamW.
            seed: Of the splits.
            progress: Show a bar; None shows it after ten seconds.

        Raises:
            ValueError: the data are more than one set, too few, or not what the network takes.
        """
        return finetuned(
            self,
            X,
            y,
            categorical=categorical,
            steps=steps,
            seconds=seconds,
            learning_rate=learning_rate,
            seed=seed,
            progress=progress,
        )

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """What is recorded of each training that led here, the last one first."""
        found, training = [], self.metadata.get("training")
        while training:
            found.append(training)
            training = training.get("from")
        return found

    @property
    def tasks_seen(self) -> int:
        """Number of tasks in all trainings."""
        return sum(training["tasks"] for training in self.trainings)

    @property
    def training_seconds(self) -> float:
        """Seconds of all trainings."""
        return sum(training["seconds"] for training in self.trainings)

    def __repr__(self) -> str:
        sizes = self.architecture
        size = sum(p.numel() for p in self.network.parameters())
        kind = f"up to {sizes.classes} classes" if sizes.classes else "regression"
        measured = "no certificate" if self.certificate is None else repr(self.certificate)
        return (
            f"PFN({kind}; up to {self.coverage.max_context} context rows and {sizes.max_features} "
            f"features; {size:,} parameters; {measured})"
        )

    def __str__(self) -> str:
        trainings = self.trainings
        size = sum(p.numel() for p in self.network.parameters())
        kind = f"{self.architecture.classes} classes" if self.architecture.classes else "regression"
        lines = [
            f"PFN, {kind}, {size:,} parameters; inputs {self.inputs}, targets {self.targets}",
            textwrap.fill(
                f"prior: {trainings[0]['prior'] if trainings else 'not recorded'}",
                width=100,
                subsequent_indent="  ",
            ),
            f"training: {self.tasks_seen:,} tasks in {self.training_seconds:,.0f} s; "
            f"up to {self.coverage.max_context} context rows, "
            f"{self.architecture.max_features} features",
            str(self.certificate or "no certificate"),
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, sizes and metadata to one safetensors file, atomically."""
        description = {
            "architecture": asdict(self.architecture),
            "inputs": self.inputs,
            "targets": self.targets,
            "tail_scale": None if self.bars is None else self.bars.tail_scale,
            "tail_index": None if self.bars is None else self.bars.tail_index,
            "prior_location": self.prior_location,
            "prior_scale": self.prior_scale,
            "metadata": self.metadata,
        }
        write_safetensors_atomically(path, self.state_dict(), kind="PFN", description=description)


def load(name_or_path: str | os.PathLike[str]) -> PFN:
    """Load a shipped network by name, or one of your own from its file.

    Args:
        name_or_path: A shipped name, such as "regression", or the path of a file that
            `PFN.save` wrote. Nothing in the file is executed.

    Returns:
        The network, on the CPU whatever device it was saved on.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: the file is damaged, foreign, or does not hold what it describes.
    """
    path = Path(name_or_path)
    folder = Path(__file__).parent / "checkpoints"
    shipped = folder / f"{name_or_path}.safetensors"
    if not path.is_file() and not shipped.is_file():
        names = sorted(file.stem for file in folder.glob("*.safetensors"))
        raise FileNotFoundError(
            f"{str(name_or_path)!r} is neither a file nor a shipped network; shipped are {names}."
        )
    tensors, description = read_safetensors(path if path.is_file() else shipped, kind="PFN")
    try:
        tails = {}
        if description["tail_scale"] is not None:
            tails = {k: description[k] for k in ("tail_scale", "tail_index")}
        with torch.device("cpu"):
            pfn = PFN(
                ArchitectureConfig(**description["architecture"]),
                tensors.get("bars.borders"),
                inputs=description["inputs"],
                targets=description["targets"],
                prior_location=description["prior_location"],
                prior_scale=description["prior_scale"],
                metadata=description["metadata"],
                **tails,
            )
        pfn.to(next(v.dtype for v in tensors.values() if v.is_floating_point()))
        pfn.load_state_dict(tensors)
    except (KeyError, StopIteration, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name_or_path} does not hold the network it describes: {error}"
        ) from error
    return pfn.eval()
