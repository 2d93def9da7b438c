"""Contract tests for everything that users can add, applied to our own as well.

Subclass in a test module and give the object; pytest (the `dev` extra) collects the rest:

    class TestMyPosterior(PosteriorContract):
        def make_posterior(self, dtype):
            return MyPosterior(...)
"""

from priors.testing.activations import ActivationContract
from priors.testing.kernels import KernelContract
from priors.testing.models import ModelContract
from priors.testing.posteriors import PosteriorContract
from priors.testing.task_priors import TaskPriorContract

__all__ = [
    "ActivationContract",
    "KernelContract",
    "ModelContract",
    "PosteriorContract",
    "TaskPriorContract",
]
