"""What is measured of networks: the scalars that a task's functions return, by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import trees
from lottery_jax.execution import Execution, Where, default_execution, memory
from lottery_jax.keys import of_seed
from lottery_jax.training.programs import program, remembered
from lottery_jax.training.rows import shared_data
from lottery_jax.types import Key, Metrics, Network, PyTree, Task


def loss_metrics(task: Task) -> list[str]:
    """The names of the scalars of a task's loss; nothing is computed."""
    return remembered(_loss_metrics, task.functions, _shapes(task.data))


def _loss_metrics(task: Task, data: PyTree) -> list[str]:
    def one(key: Key, data: PyTree) -> Metrics:
        params, model_state, stream = task.init(key)
        indices = task.order(key, jnp.int32(0))
        batch = task.batch(data, indices, key, jnp.int32(0))
        value, (_, _, found) = task.loss(params, model_state, stream, batch, key)
        return {"loss": value} | found

    return _scalars(jax.eval_shape(one, of_seed(0), data))


def metrics(task: Task, split: str) -> list[str]:
    """The names of the scalars of a task's `evaluate`; nothing is computed."""
    return remembered(_metrics, task.functions, _shapes(task.data), split)


def _metrics(functions: Task, data: PyTree, split: str) -> list[str]:
    def one(key: Key, data: PyTree) -> Metrics:
        params, model_state, _ = functions.init(key)
        return functions.evaluate(params, model_state, data, key, split)

    return _scalars(jax.eval_shape(one, of_seed(0), data))


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _scalars(found: Metrics) -> list[str]:
    return [name for name, x in found.items() if x.shape == ()]


def evaluate(
    task: Task,
    networks: Network,
    split: str = "test",
    *,
    where: Where | None = None,
) -> dict[str, np.ndarray]:
    """The scalars that a task's `evaluate` returns for each of many networks.

    Args:
      task: the task.
      networks: a stack of R.
      split: name of a split.
      where: the devices; on a full one fewer networks are evaluated at once.

    Returns:
      Arrays `[R]` by name, `loss` among them.

    Raises:
      MemoryError: not even one network fits on a device.
    """
    where = where or Where()
    execution = (where.execution or default_execution()).check()
    number = trees.count(networks.params)
    placed = execution.spread(networks)
    data = shared_data(task, execution, where)

    def attempt(execution: Execution) -> dict[str, np.ndarray]:
        found = program(tested, task.functions, execution, split)(data, placed)
        return {name: np.asarray(x)[:number] for name, x in found.items()}

    return memory.with_room(execution, number, attempt)[0]


def tested(functions: Task, execution: Execution, split: str) -> Callable[..., Any]:
    """Builds the program that evaluates many networks on a split, `(data, networks)`."""

    def test(data: PyTree, network: Network) -> Metrics:
        return evaluated(functions, network, data, split)

    return execution.parallel(test, (None, 0))


def evaluated(functions: Task, network: Network, data: PyTree, split: str) -> Metrics:
    """The scalars of one network on a split: pure."""
    # Evaluation has one key: it draws nothing that may differ between steps or runs.
    params, model_state = network
    found = functions.evaluate(params, model_state, data, of_seed(0), split)
    return {name: x for name, x in found.items() if jnp.shape(x) == ()}
