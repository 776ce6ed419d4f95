"""Masks of many replicas of a task at initialisation, by one method, at several densities."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lottery_jax import at_init, errors, keys, masks, streams, trees
from lottery_jax.at_init import Method, Pruned
from lottery_jax.execution import GROUP, Execution, Where, default_execution
from lottery_jax.imp.results import SAID
from lottery_jax.keys import ReplicaKeys
from lottery_jax.training import checked, measured, windows
from lottery_jax.training.programs import program
from lottery_jax.training.rows import shared_data
from lottery_jax.types import Array, Mask, Network, PyTree, Task


class AtInit(NamedTuple):
    """Networks that were pruned at initialisation, on the host.

    Attributes:
      masks: `[density, replica, ...]` leaves.
      networks: at initialisation, unmasked, `[replica, ...]` leaves.
      densities: of the masks.
      replicas: the ids.
    """

    masks: Mask
    networks: Network
    densities: tuple[float, ...]
    replicas: tuple[int, ...]


def prune_at_init(
    task: Task,
    method: Method | str,
    densities: Sequence[float],
    *,
    replicas: int | Sequence[int],
    seed: int = 0,
    batches: int = 8,
    where: Where | None = None,
) -> AtInit:
    """Prunes the networks that a study of these replicas starts from, untrained.

    Args:
      task: what they are for.
      method: from `at_init.METHODS`, or its name there.
      densities: shares of the prunable weights to keep, each in (0, 1).
      replicas: their ids; or how many, from 0.
      seed: of all keys, as in `Plan`.
      batches: of the replica's data order, on which a loss is derived, 1 or more.
      where: the devices.

    Returns:
      Masks and networks: the same networks as those of a study with this seed.

    Raises:
      ValueError: an argument that makes no sense, a method that the task does not allow, or
        scores that are infinite or nan; names the layer.
      MemoryError: not even one network fits on a device.

    Warns:
      RuntimeWarning: a layer has lost all its weights; says in which networks. Or a device
        was full; fewer run at once from then on.
    """
    ids, where = checked.replicas(replicas), checked.place(where)
    measured.check(task, where=where)
    if isinstance(method, str):
        errors.one_of("method", method, at_init.METHODS)
        method = at_init.METHODS[method]
    method, name = at_init.check(method), _name(method)
    densities = errors.several("densities", densities, "shares in (0, 1)")
    errors.some_different("densities", densities)
    batches = errors.whole("batches", batches, 1)
    if method.score == "synflow" and task.outputs is None:
        raise errors.wrong("task.outputs", None, "a function: 'synflow' needs it")
    flags = masks.of_task(task)
    shapes = task.shapes[0]
    keep = np.stack(
        [
            at_init.keep_counts(method, shapes, density, flags, task.exclude)
            for density in densities
        ]
    )
    number = (len(densities), len(ids))
    own = keys.of_replicas(seed, np.tile(ids, number[0]))
    execution = (where.execution or default_execution()).check()
    rows = execution.spread((own, np.repeat(keep, number[1], axis=0)))
    data = shared_data(task, execution, where)
    window: Any = ()
    if windows.TRAIN in streams.streamed(task.data):
        most = min(batches, task.steps_per_epoch)
        noise = rows[0].noise
        window = windows.of_first_steps(task, execution, noise, most, where.waited)

    def attempt(execution: Execution) -> Any:
        parts = (task.functions, execution, method, batches, bool(window))
        return program(_pruned, *parts)(data, rows, *window)

    total = number[0] * number[1]
    stage = f"pruning at initialisation by {name}"
    made, _ = where.room.run(stage, execution, total, attempt)
    networks, found = trees.host(execution.gather(made, total))
    emptied = []
    for row in range(total):
        density, replica = densities[row // number[1]], ids[row % number[1]]
        of = f"{name}, density {density:g}, replica {replica}"
        one = trees.rows(found, row)
        at_init.check_finite(one, flags, of)
        if layers := at_init.collapsed(one.mask, flags):
            emptied.append(f"{of}: {', '.join(layers)}")
    if len(emptied) > SAID:
        emptied = [*emptied[:SAID], f"and {len(emptied) - SAID} more"]
    if emptied:
        warnings.warn(
            f"layers have lost all their weights: {'; '.join(emptied)}. Prune less, in more "
            "rounds or by synflow, or exclude these layers",
            RuntimeWarning,
            stacklevel=2,
        )
    square = jax.tree.map(lambda x: x.reshape(*number, *x.shape[1:]), found.mask)
    first = trees.rows(networks, slice(number[1]))
    return AtInit(square, first, densities, ids)


def _name(method: Method) -> str:
    """A method in words."""
    score = method.score
    score = score if isinstance(score, str) else errors.shown(score)
    return f"{score}, inverted" if method.inverted else score


def _pruned(
    functions: Task,
    execution: Execution,
    method: Method,
    batches: int,
    streamed: bool = False,
) -> Callable[..., Any]:
    def one(
        data: PyTree, row: tuple[ReplicaKeys, Array], *window: PyTree
    ) -> tuple[Network, Pruned]:
        task = functions._replace(data=data)
        if streamed:
            examples, places = window
            task = windows.seen(functions, data, examples, places, 0)
        return at_init.of_task(task, method, *row, batches)

    return execution.parallel(one, (None, 0, *((GROUP, 0) if streamed else ())))
