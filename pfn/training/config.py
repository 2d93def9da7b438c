"""The configuration of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pfn.architecture import ArchitectureConfig
from priors.tasks.validation import check_at_least

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        architecture: Sizes of the network; with a `time_limit` and no `steps` the default ones
            stand for those that the time can train, see `train`.
        inputs: Units of the inputs, "raw" or "standardised"; see `PFN`.
        targets: Units of the targets, "raw", "given" or "standardised"; see `PFN`.
        steps: Optimisation steps.
        batch: Tasks per step and process, in each of the `accumulate` parts.
        accumulate: Parts whose gradients are added up before a step.
        time_limit: Seconds after which training ends, annealed; None for no limit.
        optimizer: "muon" (matrices, the rest AdamW), "adamw" or "schedule-free" (AdamW, Defazio et
            al. 2024, 2405.15682; needs the package `schedulefree`).
        schedule: "cosine" to zero, "linear" to zero, or "constant"; after the warm-up.
        learning_rate: Peak learning rate of AdamW.
        matrix_learning_rate: Peak learning rate of Muon.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Steps of linear warm-up.
        clip: Largest norm of the gradient.
        spike: A step is left out when the norm of its gradient is so many times the recent one.
        average_decay: Decay of the moving average of the weights.
        known_noise: Share of the steps in which noise variances are given to the network.
        appended: Share of the steps in which some context rows are appended to the others.
        max_buffer: Most appended rows.
        precision: "32-true" or "bf16-mixed".
        compile: Whether to compile the blocks of the network by `torch.compile`.
        border_tasks: Tasks from whose targets the bars are placed.
        held_out_tasks: Tasks on which the average is compared with its earlier states.
        held_out_batch: How many of these, and of the border tasks, are drawn together, and so have
            one size; `batch` if None. Held-out losses of trainings can be compared where this and
            the seed agree.
        evaluate_every: Steps between such comparisons.
        checkpoint_every: Seconds between checkpoints.
        seed: Seed of weights and tasks.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    inputs: str = "raw"
    targets: str = "given"
    steps: int = 20_000
    batch: int = 32
    accumulate: int = 1
    time_limit: float | None = None
    optimizer: str = "muon"
    schedule: str = "cosine"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    spike: float = 20.0
    average_decay: float = 0.999
    known_noise: float = 0.15
    appended: float = 0.25
    max_buffer: int = 32
    precision: str = "32-true"
    compile: bool = False
    border_tasks: int = 2_000
    held_out_tasks: int = 256
    held_out_batch: int | None = None
    evaluate_every: int = 1_000
    checkpoint_every: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "border_tasks", "evaluate_every")
        check_at_least(self, **dict.fromkeys((*counts, "held_out_batch"), 1))
        for name in ("known_noise", "appended"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}.")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of `to_json`."""
        return cls(**{**values, "architecture": ArchitectureConfig(**values["architecture"])})


_CHOICES = {
    "optimizer": ("muon", "adamw", "schedule-free"),
    "schedule": ("cosine", "linear", "constant"),
    # Half precision would need its gradients unscaled before they are clipped and judged.
    "precision": ("32-true", "bf16-mixed"),
}
