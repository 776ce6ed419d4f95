"""The error on curves between networks; they are trained as `tasks.curve`.

References:
  Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018,
    section 3.
"""

import numpy as np

from lottery_jax import trees
from lottery_jax.connectivity import evaluation, linear, points
from lottery_jax.connectivity.measure import Measure, check
from lottery_jax.errors import is_a, several
from lottery_jax.execution import Where
from lottery_jax.tasks.curve import Kind, coefficients
from lottery_jax.training import check as check_task
from lottery_jax.training import checked
from lottery_jax.types import Network, Params, Task


def error_along_curve(
    task: Task,
    a: Network,
    b: Network,
    bends: tuple[Params, ...],
    measure: Measure,
    *,
    kind: Kind,
    where: Where | None = None,
) -> linear.Path:
    """Error and loss on a curve, in one pass over all its points.

    Args:
      task: the task of the networks, not that of the curve.
      a: the network at t = 0.
      b: the network at t = 1.
      bends: weights of the bends.
      measure: its alphas are the positions t; the policy "interpolate" is refused where
        there are statistics, since the bends have none of their own.
      kind: see `tasks.coefficients`.
      where: the devices.

    Returns:
      A `linear.Path` of one pair; its alphas are the positions t.

    Raises:
      ValueError: networks that do not match, no fitting policy.
    """
    measure, where = check(measure), checked.place(where)
    check_task(task, trains=False, splits=measure.splits)
    for name, network in (("a", a), ("b", b)):
        is_a(name, network, Network, "a lottery_jax.Network")
    bends = several("bends", bends, "a tuple of the weights of the bends")
    if measure.batch_norm == "interpolate" and points.has_statistics(a.model_state):
        raise ValueError(
            "batch_norm='interpolate': the bends of a curve have no statistics of their "
            "own; use 'recompute'"
        )
    for bend in (*bends, b.params):
        trees.same(a.params, bend)
    members = [a, *(Network(bend, a.model_state) for bend in bends), b]
    at = linear.positions(measure.alphas)
    weights = np.stack([np.asarray(coefficients(kind, t, len(bends))) for t in at])
    found = evaluation.evaluate_many(
        task,
        trees.stack(members),
        np.tile(np.arange(len(members)), (len(at), 1)),
        weights,
        measure,
        rows=1,
        where=where,
    )
    values = {name: x.T[None] for name, x in found.items()}
    return linear.Path(at, values, measure.splits)
