"""Training of a prior-data fitted network; see `pfn.training.run`."""

from pfn.training.config import TrainingConfig
from pfn.training.run import train

__all__ = ["TrainingConfig", "train"]
