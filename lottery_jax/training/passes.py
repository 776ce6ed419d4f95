"""One pass over many items that need no training: in groups, with checkpoints.

What `runs.train` is to training, this is to measuring hundreds of points that are
evaluated alike: equal groups through one program, fewer at once on a full device, going
on from what a folder holds.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lottery_jax import trees
from lottery_jax.execution import Execution, Progress, Where
from lottery_jax.execution.deadline import BETWEEN
from lottery_jax.storage import checkpoints
from lottery_jax.training import identity
from lottery_jax.training.identity import Fields
from lottery_jax.types import PyTree

Found = dict[str, np.ndarray]


def in_groups(
    measure: Callable[[Execution], Callable[[PyTree], Any]],
    items: PyTree,
    *,
    group: int,
    execution: Execution,
    own: Fields,
    stage: str,
    rows: int,
    where: Where,
) -> Found:
    """Measures many items, a group of them in each call of one program.

    Args:
      measure: for an execution, a function of a placed group of items that returns arrays
        by name with the same leading axis.
      items: a stack of N, on the host.
      group: how many in a call.
      execution: devices, and how many at once on each.
      own: what a folder must have in common with what continues there.
      stage: what this is called for the watcher, who counts items.
      rows: how many networks are compared, for the watcher.
      where: folder, who watches.

    Returns:
      Arrays `[N, ...]` by name.

    Raises:
      ValueError: the folder holds another pass.
      MemoryError: not even one item fits on a device.
      execution.OutOfTimeError: the deadline is near. What was measured is stored, and the
        same call goes on.

    Warns:
      RuntimeWarning: a device was full; what is left is measured fewer at once.
    """
    number = trees.count(items)
    calls = -(-number // execution.padded(group))
    size = execution.padded(-(-number // calls))
    parts = [] if where.store is None else _restore(where.store, own)
    done = sum(len(next(iter(part.values()))) for part in parts)
    where.tell(Progress(stage, done, number, rows, resumed=done > 0))
    begins = f"the start of {stage}"
    where.ended(BETWEEN)
    if done < number and where.ending(begins, stage):
        raise where.stopped()

    def save() -> None:
        if where.store is not None:
            with where.clock:
                _save(where.store, _joined(parts), own)
            where.written(stage)

    while done < number:
        # Every call has the same shape; the last one repeats its last item.
        at = np.minimum(np.arange(done, done + size), number - 1)
        real = min(size, number - done)

        def attempt(
            execution: Execution, at: np.ndarray = at, real: int = real
        ) -> Found:
            found = measure(execution)(execution.place(trees.rows(items, at)))
            return {name: np.asarray(x)[:real] for name, x in found.items()}

        part, execution = where.room.run(stage, execution, size, attempt)
        parts.append(part)
        done += real
        where.tell(Progress(stage, done, number, rows))
        where.ended(begins if begins else stage)
        begins = ""
        saved = done == number or where.unmeasured(stage) or where.due()
        if saved:
            save()
        if done < number and where.ending(stage, stage):
            if not saved:
                save()
            raise where.stopped()
    return _joined(parts)


def _joined(parts: Sequence[Found]) -> Found:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _save(store: pathlib.Path, found: Found, own: Fields) -> None:
    shapes = {name: [list(x.shape), x.dtype.name] for name, x in found.items()}
    checkpoints.save(store, found, identity.stored(own) | {"shapes": shapes})


def _restore(store: pathlib.Path, own: Fields) -> list[Found]:
    found = checkpoints.metadata(store)
    if found is None:
        return []
    identity.check(store, "the evaluation of other points", found, own)
    like = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for name, (shape, dtype) in found["shapes"].items()
    }
    restored = checkpoints.restore(store, like)
    assert restored is not None
    return [jax.tree.map(np.asarray, restored[0])]
