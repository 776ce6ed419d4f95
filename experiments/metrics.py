"""How the quantity that networks are compared by is shown.

Inside it is what the task measures, an error as a fraction; people read percent and points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from lottery_jax.verdicts import ERROR, Metric


class Shown(NamedTuple):
    """How values of a metric are written.

    Attributes:
      name: what they are called.
      unit: of what is shown.
      of: from what is stored to what is shown; arrays of any kind.
    """

    name: str
    unit: str
    of: Callable[[Any], Any]

    @property
    def label(self) -> str:
        """For an axis: "error (%)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def text(self) -> str:
        """In a sentence: "error in %"."""
        return f"{self.name} in {self.unit}" if self.unit else self.name


def level(metric: Metric) -> Shown:
    """The metric itself: an error in percent, a correlation in hundredths."""
    share = metric.bounds == (0, 1)
    unit = ("%" if share else "x 100") if metric.unit == "points" else metric.unit
    return Shown(metric.name, unit, lambda x: metric.scale * x)


def quality(metric: Metric) -> Shown:
    """The metric as one reports it: the accuracy, in percent, of an error."""
    if metric == ERROR:
        return Shown("accuracy", "%", lambda x: 100 * (1 - x))
    return level(metric)


def difference(metric: Metric) -> Shown:
    """A difference of two values: an error's in points."""
    return level(metric)._replace(unit=metric.unit)
