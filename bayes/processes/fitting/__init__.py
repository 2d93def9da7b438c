"""Finding hyperparameters: the maximum of a marginal likelihood, within limits.

`maximise` runs the optimiser over a `ParameterVector`, a `Watch` keeps the limits and tells how
long it takes, and `runaway_values` says what went wrong where nothing could be found.
"""

from bayes.processes.fitting.diagnosis import runaway_values
from bayes.processes.fitting.maximise import maximise
from bayes.processes.fitting.parameters import ParameterVector
from bayes.processes.fitting.watch import Stopped, Watch

__all__ = ["ParameterVector", "Stopped", "Watch", "maximise", "runaway_values"]
