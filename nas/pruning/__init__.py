"""Values of a trial while it runs, and stopping it early."""

from nas.pruning.curves import report_value
from nas.pruning.pruners import LearningCurvePruner, ParetoPruner, should_prune

__all__ = ["LearningCurvePruner", "ParetoPruner", "report_value", "should_prune"]
