"""The quantity that networks are compared by, and how it is shown.

Inside it is what the task measures, an error as a fraction; people read percent and points.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from lottery_jax import verdicts


# Swap: `from lottery_jax.verdicts import ERROR as ERROR, Metric as Metric` for these two.
class Metric(NamedTuple):
    """A quantity that is measured on a split.

    Attributes:
      name: as the task names it; results hold it as test_NAME.
      unit: "error" for a fraction of wrong answers, or the quantity's own.
      better: which direction is.
      tolerance: up to where a difference is none.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    tolerance: float = 0.0


ERROR = Metric("error", "error", "lower", 0.002)


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
        return f"{self.name} ({self.unit})"


def level(metric: Metric) -> Shown:
    """The metric itself: an error in percent."""
    if metric.unit == "error":
        return Shown(metric.name, "%", lambda x: 100 * x)
    return Shown(metric.name, metric.unit, lambda x: x)


def quality(metric: Metric) -> Shown:
    """The metric as one reports it: the accuracy, in percent, of an error."""
    if metric.unit == "error":
        return Shown("accuracy", "%", lambda x: 100 * (1 - x))
    return level(metric)


def difference(metric: Metric) -> Shown:
    """A difference of two values: an error's in points."""
    return level(metric)._replace(
        unit="points" if metric.unit == "error" else metric.unit
    )


# --- verdicts -------------------------------------------------------------------------
# Swap: those of `lottery_jax.verdicts` that take a metric.


def matching(
    metric: Metric, values: Any, dense: Any, tolerance: float, **options: Any
) -> verdicts.Verdict:
    """`verdicts.matching`, of any metric."""
    if metric == ERROR:
        return verdicts.matching(values, dense, tolerance, **options)
    return verdicts.paired(
        _worse(metric, values, dense),
        side="<=",
        tolerance=tolerance,
        claim="matches dense",
        unit=metric.unit,
        **options,
    )


def better(
    metric: Metric, values: Any, control: Any, claim: str, **options: Any
) -> verdicts.Verdict:
    """`verdicts.better`, of any metric."""
    if metric == ERROR:
        return verdicts.better(values, control, claim=claim, **options)
    return verdicts.paired(
        _worse(metric, values, control),
        side="<",
        tolerance=0.0,
        claim=claim,
        unit=metric.unit,
        **options,
    )


def _worse(metric: Metric, values: Any, reference: Any) -> np.ndarray:
    """By how much values are worse than others: negative is good."""
    return (np.asarray(values) - reference) * (1 if metric.better == "lower" else -1)
