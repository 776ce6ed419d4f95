"""Stacks of runs on the devices: in which order, and what is put there once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import streams, trees
from lottery_jax.execution import Execution, Where
from lottery_jax.execution.replicas import whole
from lottery_jax.training.programs import program
from lottery_jax.types import Network, PyTree, Task


class Joining(NamedTuple):
    """Where runs lie on the devices, and when they train.

    Attributes:
      deal: which run lies at each row, int `[P]`; further rows hold copies.
      places: at which row each run lies, int `[R]`.
      joins: of each row; a copy never joins.
      offset: of each row.
    """

    deal: np.ndarray
    places: np.ndarray
    joins: np.ndarray
    offset: np.ndarray


def joining(joins: np.ndarray, offset: np.ndarray, execution: Execution) -> Joining:
    """An order of rows in which every device has as many early as late ones.

    Devices own contiguous rows. Runs that join early cost more, so they are dealt like
    cards; runs that join together stay in their order.

    Args:
      joins: the step at which each run starts, int `[R]`.
      offset: of each run, int `[R]`.
      execution: the devices.
    """
    number = len(joins)
    total = execution.padded(number)
    rising = np.argsort(joins, kind="stable")
    cards = np.concatenate([rising, np.repeat(rising[-1:], total - number)])
    if (joins == joins[0]).all():
        deal = cards
    else:
        hands = cards.reshape(-1, execution.groups)
        # To and fro, so that nobody is always the first.
        odd = np.arange(len(hands))[:, None] % 2
        deal = np.where(odd, hands[:, ::-1], hands).T.reshape(-1)
    places = np.zeros(number, np.int64)
    places[deal[::-1]] = np.arange(total)[::-1]  # of copies, the first place counts
    real = np.isin(np.arange(total), places)
    never = np.iinfo(np.int32).max
    own_joins = np.where(real, joins[deal], never).astype(np.int32)
    return Joining(deal, places, own_joins, offset[deal].astype(np.int32))


def specs_of(tree: PyTree) -> PyTree:
    """Shapes, dtypes and placements of arrays: what a program is compiled for."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def shared_data(task: Task, execution: Execution, where: Where) -> PyTree:
    """A task's data on the devices, shipped once for all that goes on there.

    Splits that are streamed are left out.
    """
    leaves, structure = jax.tree.flatten(task.data)
    return where.held.get(
        ("data", *map(id, leaves), structure, execution.placement),
        # The arrays stay with it, so that their ids stay their own.
        lambda: (execution.share(streams.resident(task.data)), task.data),
    )[0]


def of_rows(start: Network, task: Task, replica: np.ndarray) -> Network:
    """Given weights as a stack, one network per row, in the dtypes of a task.

    Args:
      start: leaf by leaf of one network, or with a leading axis of the replicas; see
        `checked.start`.
      task: whose networks they are.
      replica: the position of each row's replica, int `[P]`.

    Returns:
      The networks on the host, `[P, ...]`. Leaves that all replicas share are held once:
      the rows are views of them.
    """

    def leaf(given: Any, one: Any) -> Any:
        given = given if trees.is_key(given) else np.asarray(given, one.dtype)
        if given.shape == one.shape:
            xp: Any = jnp if trees.is_key(given) else np
            return xp.broadcast_to(given, (len(replica), *one.shape))
        return given[replica]

    return jax.tree.map(leaf, start, Network(*task.shapes[:2]))


def of_replica(start: Network, task: Task, position: int) -> Network:
    """The weights that one replica starts from, of those given for all.

    Args:
      start: leaf by leaf of one network, or with a leading axis of the replicas.
      task: whose networks they are.
      position: of the replica among them, from 0; not its id.
    """
    return trees.rows(of_rows(start, task, np.array([position])), 0)


def take(tree: PyTree, index: np.ndarray, execution: Execution) -> PyTree:
    """Rows of a stack on the devices; its own placement where nothing is to be moved."""
    index = np.asarray(index)
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return tree
    if (
        all(len(x) == len(index) for x in leaves)
        and (index == np.arange(len(index))).all()
    ):
        return execution.place(tree)
    if not all(isinstance(x, jax.Array) for x in leaves):
        return execution.place(trees.rows(trees.host(tree), index))
    with whole(tree, execution.groups):
        taken = program(_take, execution.placement)(tree, index)
        return jax.block_until_ready(taken)


def _take(execution: Execution) -> Callable[..., Any]:
    return jax.jit(trees.rows, out_shardings=execution.sharded)
