"""All runs in one data order: what is read for one of them serves all.

Replicas, arms and branches of a task with this wrapper see the same examples at the same
step. Their noise keys differ as ever, so that what they draw of it, augmentation and
dropout, differs too. Where examples are read while runs train, all runs share the read.

    task = lj.tasks.shared_order(task, seed=0)

It takes from SGD's noise most of what branches of an instability study differ in: what is
measured is then what the rest of the noise does.
"""

import dataclasses

from lottery_jax import keys
from lottery_jax.errors import is_a
from lottery_jax.types import Array, Key, Task


@dataclasses.dataclass(frozen=True)
class _Shared:
    """The static part of the task; its method is the Task's order."""

    inner: Task
    seed: int

    def order(self, key: Key, step: Array) -> Array:
        return self.inner.order(keys.shared_order(self.seed), step)


def shared_order(task: Task, seed: int = 0) -> Task:
    """The same task, whose data order is a function of the step alone.

    Args:
      task: what is trained.
      seed: of the order, in [0, 2**32).

    Raises:
      ValueError: no task, or no seed.
    """
    is_a("task", task, Task, "a lottery_jax.Task, as tasks.classification(...) makes")
    static = _Shared(task.functions, keys.check_seed(seed))
    return task._replace(order=static.order)
