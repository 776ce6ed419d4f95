"""The plane through three networks, for pictures.

References:
  Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018,
    appendix A.1.
"""

from typing import NamedTuple

import jax
import numpy as np

from lottery_jax import trees
from lottery_jax.connectivity import evaluation, points
from lottery_jax.connectivity.measure import Measure, check
from lottery_jax.errors import at_least, is_a, whole
from lottery_jax.execution import Where
from lottery_jax.training import check as check_task
from lottery_jax.training import checked
from lottery_jax.types import Network, Params, Task


class Plane(NamedTuple):
    """Error and loss on a grid of the plane through three networks.

    Attributes:
      x: coordinates along the first axis, from `a` towards `b`, in units of L2 distance
        between weights, float `[X]`.
      y: along the second axis, at a right angle to it, towards `c`, `[Y]`.
      networks: where a, b and c lie, `[3, 2]`.
      values: by metric, all that the task's `evaluate` returns, `[splits, Y, X]`.
      splits: names along the first axis.
    """

    x: np.ndarray
    y: np.ndarray
    networks: np.ndarray
    values: dict[str, np.ndarray]
    splits: tuple[str, ...]

    @property
    def error(self) -> np.ndarray:
        """Fractions in [0, 1], `[splits, Y, X]`."""
        return self.values["error"]

    @property
    def loss(self) -> np.ndarray:
        """Likewise, nats."""
        return self.values["loss"]


def _flat(params: Params) -> np.ndarray:
    """All weights in one float64 vector."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)]
    return np.concatenate(leaves)


def plane(
    task: Task,
    a: Network,
    b: Network,
    c: Network,
    measure: Measure,
    *,
    size: int = 15,
    margin: float = 0.25,
    where: Where | None = None,
) -> Plane:
    """Error on the plane through three networks (Garipov et al. 2018, appendix A.1).

    Args:
      task: the task.
      a: the network at the origin.
      b: a network on the first axis.
      c: a network above it.
      measure: splits and the policy; its alphas are not looked at. "interpolate" is
        refused where there are statistics: beyond the triangle a variance may become
        negative.
      size: points along each axis, at least 2.
      margin: how far the grid goes beyond the three, as a share of their extent.
      where: the devices, who watches.

    Raises:
      ValueError: networks that do not match or lie on one line, no fitting policy.
    """
    measure, where, size = check(measure), checked.place(where), whole("size", size, 2)
    check_task(task, trains=False, splits=measure.splits)
    at_least("margin", margin, 0)
    for name, network in (("a", a), ("b", b), ("c", c)):
        is_a(name, network, Network, "a lottery_jax.Network")
    if measure.batch_norm == "interpolate" and points.has_statistics(a.model_state):
        raise ValueError(
            "batch_norm='interpolate': beyond the triangle of the networks a variance "
            "may become negative; use 'recompute'"
        )
    for other in (b, c):
        trees.same(a, other)
    # Where c lies. In double precision: the height of a flat triangle is a small
    # difference of large numbers.
    origin, first, third = (_flat(n.params) for n in (a, b, c))
    along, towards = first - origin, third - origin
    ab = float(np.linalg.norm(along))
    foot = float(towards @ along) / ab if ab else 0.0
    height = float(np.linalg.norm(towards - foot / ab * along)) if ab else 0.0
    # What rounding to float32 may make of a point on the line is none.
    scale = max(float(np.linalg.norm(x)) for x in (origin, first, third, towards))
    if height <= 1e-6 * scale:
        raise ValueError("the three networks lie on one line; they span no plane")
    places = np.array([[0, 0], [ab, 0], [foot, height]])

    def axis(values: np.ndarray) -> np.ndarray:
        low, high = values.min(), values.max()
        edge = margin * (high - low)
        return np.linspace(low - edge, high + edge, size)

    x, y = axis(places[:, 0]), axis(places[:, 1])
    grid_x, grid_y = np.meshgrid(x, y)
    of_c = grid_y / height
    of_b = (grid_x - of_c * foot) / ab
    weights = np.stack([1 - of_b - of_c, of_b, of_c], axis=-1).reshape(-1, 3)
    found = evaluation.evaluate_many(
        task,
        trees.stack([a, b, c]),
        np.tile(np.arange(3), (len(weights), 1)),
        weights,
        measure,
        rows=3,
        where=where,
    )
    shaped = {
        name: np.moveaxis(v.reshape(size, size, -1), -1, 0) for name, v in found.items()
    }
    return Plane(x, y, places, shaped, measure.splits)
