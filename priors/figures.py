"""How figures look: colours that everybody tells apart, and logarithmic axes that can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["BLACK", "BLUE", "CATEGORIES", "GREY", "ORANGE", "axes_or_new", "letter", "log_axis"]

# Okabe & Ito 2008 ("blue" and "vermilion"), told apart in every kind of colour blindness.
BLUE, ORANGE = "#0072B2", "#D55E00"
BLACK, GREY = "0.1", "0.6"
# Ten for classes and curves: the "muted" scheme of Tol 2021 and black.
CATEGORIES = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77", "#882255", "#44AA99", "#999933",
    "#AA4499", "#000000",
)  # fmt: skip


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes, or those of a new pyplot figure, which notebooks and `plt.show()` show."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def letter(axis: Axis) -> str:
    """ "x" or "y", as in the names of what is set for an axis."""
    return "x" if axis is axis.axes.xaxis else "y"


def log_axis(axis: Axis) -> None:
    """Make an axis, on which all is drawn already, logarithmic, with few ticks.

    Plain numbers at steps of 1, 2, 5 within two decades, powers of ten beyond.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.axes.set(**{f"{letter(axis)}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    if high > 100 * low:
        axis.set_major_locator(LogLocator(numticks=6))
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        shown = sum(low <= step * 10.0**k <= high for k in decades for step in (1, 2, 5))
        few = LogLocator(subs=(1.0, 2.0, 5.0))
        axis.set_major_locator(few if shown > 1 else MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
