"""An architecture as a prior over functions, infinitely wide or at the widths it has."""
