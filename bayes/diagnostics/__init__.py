"""Whether a model is to be believed: its calibration, its chains, and models side by side."""

from bayes.diagnostics.calibration import Calibration, calibration
from bayes.diagnostics.comparison import Comparison, compare
from bayes.diagnostics.convergence import ConvergenceReport, report
from bayes.diagnostics.plots import plot_posterior, plot_predictions
from bayes.diagnostics.reliability import Reliability, reliability

__all__ = [
    "Calibration",
    "Comparison",
    "ConvergenceReport",
    "Reliability",
    "calibration",
    "compare",
    "plot_posterior",
    "plot_predictions",
    "reliability",
    "report",
]
