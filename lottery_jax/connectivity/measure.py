"""What of a path, a curve or a plane is measured."""

from typing import Literal, NamedTuple, TypeAlias

from numpy.typing import ArrayLike

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
