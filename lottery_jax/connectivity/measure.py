"""What of a path, a curve or a plane is measured."""

from typing import Literal, NamedTuple, TypeAlias

from numpy.typing import ArrayLike

from lottery_jax import errors

BatchNorm: TypeAlias = Literal["recompute", "interpolate"]

ALPHAS = 30
"""Evenly spaced points of a path, the ends among them, as in Frankle et al. 2020."""

SPLITS = ("train", "test")


class Measure(NamedTuple):
    """Where error and loss are measured, and how BatchNorm is treated there.

    Attributes:
      alphas: how many evenly spaced positions, or the positions, the ends among them.
      batch_norm: what statistics are between networks: "recompute" or "interpolate";
        required for networks with a model state, see `connectivity.points`.
      splits: names of splits.
      statistics_batches: batches of training data for "recompute".
    """

    alphas: int | ArrayLike = ALPHAS
    batch_norm: BatchNorm | None = None
    splits: tuple[str, ...] = SPLITS
    statistics_batches: int = 16


def check(measure: Measure) -> Measure:
    """The measure with Python's own numbers and tuples; its alphas are not looked at.

    Raises:
      ValueError: names the field that makes no sense.
    """
    must = "a connectivity.Measure, such as Measure(batch_norm='recompute')"
    errors.is_a("measure", measure, Measure, must)
    if measure.batch_norm is not None:
        errors.one_of("batch_norm", measure.batch_norm, ("recompute", "interpolate"))
    splits = errors.names("splits", measure.splits)
    errors.some_different("splits", splits)
    batches = errors.whole("statistics_batches", measure.statistics_batches, 1)
    return measure._replace(splits=splits, statistics_batches=batches)
